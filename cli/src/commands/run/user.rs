//! `--user` by the container's own `/etc/passwd` and `/etc/group`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, bail};
use layerfs_runner::config::{ID_MAX, User};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Longest user or group file that is read.
const FILE_MAX: u64 = 16 << 20;

/// Who the command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// Home directory; `/` for users without one.
    pub(crate) home: OsString,
}

impl Identity {
    /// `USER[:GROUP]`, each a name or a number, in the root filesystem at `root`; without it, root.
    pub(super) fn resolve(user: Option<&str>, root: &Path) -> anyhow::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            rustix::fs::openat(CWD, root, flags, Mode::empty()).context("open the container's root")?;
        let passwd = read_inside(&root, "etc/passwd").context("read /etc/passwd of the container")?;
        let group = read_inside(&root, "etc/group").context("read /etc/group of the container")?;
        Self::from_files(user.unwrap_or("0"), &passwd, &group)
    }

    /// As [`Self::resolve`], with further groups by name or number.
    pub(crate) fn resolve_with(user: Option<&str>, groups: &[String], root: &Path) -> anyhow::Result<Self> {
        let mut identity = Self::resolve(user.filter(|user| !user.is_empty()), root)?;
        if !groups.is_empty() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root =
                rustix::fs::openat(CWD, root, flags, Mode::empty()).context("open the container's root")?;
            let text = read_inside(&root, "etc/group").context("read /etc/group of the container")?;
            for name in groups {
                let group = group_id(name, &text)?;
                if !identity.groups.contains(&group) {
                    identity.groups.push(group);
                }
            }
        }
        Ok(identity)
    }

    fn from_files(user: &str, passwd: &[u8], group: &[u8]) -> anyhow::Result<Self> {
        let (user, wanted_group) = match user.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (user, None),
        };
        // As docker: without a user it is root, without a group the user's own.
        let user = if user.is_empty() { "0" } else { user };
        let wanted_group = wanted_group.filter(|group| !group.is_empty());
        let number = user.parse::<u32>().ok();
        let entry = lines(passwd).find(|fields| {
            field(fields, 0) == Some(user.as_bytes()) || (number.is_some() && id(fields, 2) == number)
        });
        let (uid, default_gid, home, name) = match (&entry, number) {
            (Some(fields), _) => {
                let (Some(uid), Some(gid)) = (id(fields, 2), id(fields, 3)) else {
                    bail!("user {user:?}: its line in the container's /etc/passwd has no ids");
                };
                let home = field(fields, 5).filter(|home| !home.is_empty()).unwrap_or(b"/");
                (uid, gid, OsStr::from_bytes(home).to_owned(), field(fields, 0))
            }
            (None, Some(0)) => (0, 0, OsString::from("/root"), None),
            (None, Some(uid)) => (uid, 0, OsString::from("/"), None),
            (None, None) => bail!("user {user:?} is not in the container's /etc/passwd"),
        };
        let (gid, groups) = match wanted_group {
            Some(wanted) => (group_id(wanted, group)?, Vec::new()),
            None => (default_gid, memberships(name, group)),
        };
        check_id("user", user, uid)?;
        check_id("group", wanted_group.unwrap_or(user), gid)?;
        Ok(Self { uid, gid, groups, home })
    }

    /// For the runner.
    pub(super) fn user(&self) -> User {
        User { uid: self.uid, gid: self.gid, groups: self.groups.clone(), umask: None }
    }
}

fn group_id(wanted: &str, group: &[u8]) -> anyhow::Result<u32> {
    let by_name = lines(group).find(|fields| field(fields, 0) == Some(wanted.as_bytes()));
    let gid = match (by_name.and_then(|fields| id(&fields, 2)), wanted.parse()) {
        (Some(gid), _) | (None, Ok(gid)) => gid,
        (None, Err(_)) => bail!("group {wanted:?} is not in the container's /etc/group"),
    };
    check_id("group", wanted, gid).map(|()| gid)
}

/// What is no id must not be taken for the one that is there already: root's.
fn check_id(what: &str, wanted: &str, id: u32) -> anyhow::Result<()> {
    if id > ID_MAX {
        bail!("{what} {wanted:?}: {id} is no id; ids are 0 to {ID_MAX}");
    }
    Ok(())
}

/// Groups that list the user as a member.
fn memberships(name: Option<&[u8]>, group: &[u8]) -> Vec<u32> {
    let Some(name) = name else { return Vec::new() };
    let is_member = |fields: &[&[u8]]| {
        field(fields, 3)
            .is_some_and(|members| members.split(|byte| *byte == b',').any(|member| member == name))
    };
    let mut groups: Vec<u32> =
        lines(group).filter(|fields| is_member(fields)).filter_map(|fields| id(&fields, 2)).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

fn lines(text: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
        .map(|line| line.split(|byte| *byte == b':').collect())
}

fn field<'a>(fields: &[&'a [u8]], index: usize) -> Option<&'a [u8]> {
    fields.get(index).copied()
}

fn id(fields: &[&[u8]], index: usize) -> Option<u32> {
    std::str::from_utf8(field(fields, index)?).ok()?.trim().parse().ok()
}

/// A file beneath `root`, whatever symlinks the image has; nothing when there is none.
fn read_inside(root: &OwnedFd, path: &str) -> anyhow::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
        result => File::from(result?),
    };
    if !file.metadata()?.is_file() {
        bail!("it is not a file");
    }
    let mut text = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\nme:x:1000:100:Me:/home/me:/bin/sh\nbad:x\n7:x:70:70::/:\n";
    const GROUP: &[u8] = b"root:x:0:\nusers:x:100:\nwheel:x:10:root,me\naudio:x:29:me\n";

    fn resolved(user: &str) -> (u32, u32, Vec<u32>, String) {
        let identity = Identity::from_files(user, PASSWD, GROUP).unwrap();
        (identity.uid, identity.gid, identity.groups, identity.home.into_string().unwrap())
    }

    #[test]
    fn names_numbers_and_groups() {
        assert_eq!(resolved("0"), (0, 0, vec![10], "/root".into()));
        assert_eq!(resolved("me"), (1000, 100, vec![10, 29], "/home/me".into()));
        assert_eq!(resolved("1000"), (1000, 100, vec![10, 29], "/home/me".into()));
        assert_eq!(resolved("me:audio"), (1000, 29, vec![], "/home/me".into()));
        assert_eq!(resolved("me:77"), (1000, 77, vec![], "/home/me".into()));
        assert_eq!(resolved("me:"), resolved("me"));
        assert_eq!(resolved(":100"), (0, 100, vec![], "/root".into()));
        assert_eq!(resolved(":"), resolved("0"));
        assert_eq!(resolved("4242"), (4242, 0, vec![], "/".into()));
        // A name that looks like a number is a name first.
        assert_eq!(resolved("7"), (70, 70, vec![], "/".into()));
    }

    #[test]
    fn unknown_names_are_refused() {
        for user in ["nobody", "me:nogroup", "bad"] {
            assert!(Identity::from_files(user, PASSWD, GROUP).is_err(), "{user:?}");
        }
        let without_files = Identity::from_files("0", b"", b"").unwrap();
        assert_eq!(without_files.home, "/root");
    }

    #[test]
    fn regression_the_highest_id_is_not_root() {
        let (passwd, group) = (b"high:x:4294967295:0::/:\nnot:x:5:4294967295::/:\n", b"top:x:4294967295:\n");
        for user in ["4294967295", "2147483648", "0:4294967295", "high", "not", "0:top"] {
            let error = Identity::from_files(user, passwd, group).unwrap_err().to_string();
            assert!(error.contains("ids are 0 to 2147483647"), "{user}: {error}");
        }
        assert_eq!(resolved("2147483647").0, 2147483647);
        group_id("4294967295", b"").unwrap_err();
    }

    #[test]
    fn files_are_read_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(dir.path().join("outside"), "x:x:5:5::/:\n").unwrap();
        std::os::unix::fs::symlink(dir.path().join("outside"), root.join("etc/passwd")).unwrap();
        assert!(Identity::resolve(Some("x"), &root).is_err());
        std::fs::write(root.join("etc/group"), "g:x:9:\n").unwrap();
        assert_eq!(Identity::resolve(Some("5:g"), &root).unwrap().gid, 9);
    }
}
