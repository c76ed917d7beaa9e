//! Being root without being root: a user namespace for an ordinary user's containers.
//!
//! The caller's own id is root in it. Where the user has subordinate ids (`/etc/subuid`, `/etc/subgid`) and the
//! programs `newuidmap` and `newgidmap` are installed, those are the other users; else root is the only one.

use std::fs;
use std::io;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{WaitId, WaitIdOptions};

use crate::step::{Doing, StepError};
use crate::sys;
use crate::sys::process::Forked;

/// True when user `uid` exists in the process's user namespace.
///
/// # Errors
/// When /proc cannot be read.
pub fn has_user(uid: u32) -> io::Result<bool> {
    Ok(maps(&fs::read_to_string("/proc/self/uid_map")?, uid))
}

/// True when group `gid` exists in the process's user namespace.
///
/// # Errors
/// When /proc cannot be read.
pub fn has_group(gid: u32) -> io::Result<bool> {
    Ok(maps(&fs::read_to_string("/proc/self/gid_map")?, gid))
}

/// Lines of `FIRST OUTSIDE COUNT`.
fn maps(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) = (fields.next(), fields.next(), fields.next())
        else {
            return false;
        };
        id.checked_sub(first).is_some_and(|offset| offset < count)
    })
}

/// What the namespace has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserNamespace {
    /// There are other ids than root's.
    pub has_range: bool,
}

/// A range of subordinate ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u32,
    count: u32,
}

/// True in the user namespace that the machine booted with.
///
/// # Errors
/// When /proc cannot be read.
pub fn is_initial_user_namespace() -> io::Result<bool> {
    let map = fs::read_to_string("/proc/self/uid_map")?;
    Ok(map.split_ascii_whitespace().eq(["0", "0", "4294967295"]))
}

/// True when the process has no rights over the machine itself: it is an ordinary user's, or root's of a user namespace
/// alone. Asking for the user id is not enough, as an ordinary user's process becomes root of its own user namespace.
#[must_use]
pub fn is_rootless() -> bool {
    // Without /proc nothing can be said but by the id.
    !rustix::process::geteuid().is_root() || !is_initial_user_namespace().unwrap_or(true)
}

/// Moves the process into a user namespace of its own, as its root.
///
/// The process must have one thread.
///
/// # Errors
/// When the kernel or its settings forbid user namespaces, or the ids cannot be mapped.
pub fn enter_user_namespace() -> Result<UserNamespace, StepError> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let ranges = subordinate_ranges(uid);
    // The maps are written from outside, once the namespace exists: by a child that stays there.
    let (wait, go) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).doing(|| "make a pipe".into())?;
    let me = rustix::process::getpid();
    let mapper = match sys::process::fork_into(0).doing(|| "start a process to map ids".into())? {
        Forked::Child => {
            drop(go);
            let status = map_ids_of(me.as_raw_nonzero().get(), (uid, gid), ranges, wait);
            sys::process::exit_now(status)
        }
        Forked::Parent { pidfd, .. } => pidfd,
    };
    drop(wait);
    sys::process::unshare(libc::CLONE_NEWUSER).doing(|| {
        "make a user namespace (see /proc/sys/user/max_user_namespaces and \
         /proc/sys/kernel/unprivileged_userns_clone)"
            .into()
    })?;
    rustix::io::write(&go, b"g").doing(|| "start mapping ids".into())?;
    drop(go);
    let status = wait_for(&mapper).doing(|| "wait for the process that maps ids".into())?;
    match status {
        MAPPED_RANGE => Ok(UserNamespace { has_range: true }),
        MAPPED_ONE => Ok(UserNamespace { has_range: false }),
        _ => Err(StepError::refused("map ids into the user namespace", "writing /proc/PID/uid_map failed")),
    }
}

/// Exit statuses of the mapping process.
const MAPPED_RANGE: i32 = 0;
const MAPPED_ONE: i32 = 1;
const MAPPED_NONE: i32 = 2;

fn wait_for(pidfd: &OwnedFd) -> io::Result<i32> {
    use std::os::fd::AsFd;
    let status = rustix::io::retry_on_intr(|| {
        rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
    })?;
    Ok(status.and_then(|status| status.exit_status()).unwrap_or(MAPPED_NONE))
}

fn map_ids_of(pid: i32, own: (u32, u32), ranges: Option<(Range, Range)>, wait: OwnedFd) -> i32 {
    let mut byte = [0_u8; 1];
    // The end without a byte: the parent failed.
    if !matches!(fs::File::from(wait).read(&mut byte), Ok(1)) {
        return MAPPED_NONE;
    }
    if let Some((uids, gids)) = ranges
        && newidmap("newuidmap", pid, own.0, uids)
        && newidmap("newgidmap", pid, own.1, gids)
    {
        return MAPPED_RANGE;
    }
    let write = |file: &str, text: String| fs::write(format!("/proc/{pid}/{file}"), text);
    // Without it an ordinary user may not map a group: it could drop one that denies it access.
    let denied = write("setgroups", "deny".into());
    let written = denied
        .and_then(|()| write("gid_map", format!("0 {} 1\n", own.1)))
        // One half may have been written by newuidmap.
        .and_then(|()| match write("uid_map", format!("0 {} 1\n", own.0)) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) && ranges.is_some() => Ok(()),
            result => result,
        });
    if written.is_ok() { MAPPED_ONE } else { MAPPED_NONE }
}

fn newidmap(program: &str, pid: i32, own: u32, range: Range) -> bool {
    Command::new(program)
        .args([pid.to_string(), "0".into(), own.to_string(), "1".into()])
        .args(["1".into(), range.first.to_string(), range.count.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The user's ranges for uids and gids, if both exist and the programs that map them too.
fn subordinate_ranges(uid: u32) -> Option<(Range, Range)> {
    for program in ["newuidmap", "newgidmap"] {
        find_in_path(program)?;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = name_of(&passwd, uid);
    let range = |file: &str| parse_ranges(&fs::read_to_string(file).ok()?, name, uid);
    Some((range("/etc/subuid")?, range("/etc/subgid")?))
}

fn find_in_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| Path::new(&directory).join(program))
        .find(|path| path.is_file())
}

fn name_of(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

/// The first range of a user, who is named or numbered in `NAME:FIRST:COUNT`.
fn parse_ranges(text: &str, name: Option<&str>, uid: u32) -> Option<Range> {
    let number = uid.to_string();
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        if Some(owner) != name && owner != number {
            return None;
        }
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (count > 0).then_some(Range { first, count })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "other:100000:65536\nme:165536:65536\n1001:300000:10\nbad:x:1\n";
        assert_eq!(parse_ranges(text, Some("me"), 1000), Some(Range { first: 165_536, count: 65_536 }));
        assert_eq!(parse_ranges(text, Some("you"), 1001), Some(Range { first: 300_000, count: 10 }));
        assert_eq!(parse_ranges(text, Some("bad"), 7), None);
        assert_eq!(parse_ranges(text, None, 7), None);
    }

    #[test]
    fn mapped_ids_are_told_from_others() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        assert!(maps(map, 0) && maps(map, 1) && maps(map, 65_536));
        assert!(!maps(map, 65_537));
        assert!(maps("0 0 4294967295", 4_000_000_000));
        assert!(!maps("", 0) && !maps("x y z", 0));
    }

    #[test]
    fn names_are_found_by_id() {
        let passwd = "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\nbroken\n";
        assert_eq!(name_of(passwd, 1000), Some("me"));
        assert_eq!(name_of(passwd, 5), None);
    }
}
