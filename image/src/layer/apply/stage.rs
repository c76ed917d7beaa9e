//! Making all that is new beside its place.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Access, AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::super::copy::copy_data;
use super::super::disk::{self, Target};
use super::super::index::ObjectStat;
use super::super::merged::{MergedObject, Stack};
use super::journal::{DirectoryTime, Entry, Journal, StepAction};
use super::plan::{Action, Plan, lookup};
use super::root::{Root, look_at, split};
use super::{ApplyError, TEMPORARY};
use crate::tar::Timestamp;

/// Prepares `plan`; answers with the journal, which is complete and on disk.
pub(super) fn stage(
    stack: &Stack,
    plan: &Plan,
    root: &Root,
    journal: &Path,
    tag: &str,
) -> Result<Journal, ApplyError> {
    let lowers = stack.lowers();
    // Directories that do not stay, or are not there yet: nothing can wait in them.
    let unsteady: BTreeSet<&[u8]> =
        plan.steps.iter().filter(|step| step.action != Action::Attributes).map(|step| &*step.path).collect();
    let mut found = Journal { whole: plan.whole, times: times(plan), ..Journal::default() };
    for (number, step) in plan.steps.iter().enumerate() {
        let mut holder = split(&step.path).0;
        while !holder.is_empty() && is_within(holder, &unsteady) {
            holder = split(holder).0;
        }
        let name = format!("{TEMPORARY}{tag}-{number}").into_bytes();
        let was = lookup(&lowers, &step.path).map_err(ApplyError::object("look at", &step.path))?;
        found.entries.push(Entry {
            path: step.path.clone(),
            action: StepAction::from(step.action),
            beside: [holder, b"/", &name].concat(),
            ino: was.map_or(0, |was| was.stat().ino),
            time: None,
        });
    }
    // From here on a killed run is noticed.
    found.save(journal)?;
    let made = prepare(stack, root, &mut found);
    if let Err(error) = made {
        super::perform::take_back(&found, root)?;
        super::journal::remove(journal)?;
        return Err(error);
    }
    sync(root, &found)?;
    found.complete = true;
    found.save(journal)?;
    Ok(found)
}

fn times(plan: &Plan) -> Vec<DirectoryTime> {
    plan.times.iter().map(|(path, time)| DirectoryTime { path: path.clone(), time: *time }).collect()
}

fn is_within(path: &[u8], unsteady: &BTreeSet<&[u8]>) -> bool {
    let mut at = path;
    while !at.is_empty() {
        if unsteady.contains(at) {
            return true;
        }
        at = split(at).0;
    }
    false
}

/// What cannot be done later for want of permission is found out while nothing has changed.
fn permitted(root: &Root, entry: &Entry) -> Result<(), Errno> {
    let may_write = |path: &[u8]| -> Result<(), Errno> {
        let dir = match root.directory(split(path).0) {
            // It is about to be made.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            dir => dir?,
        };
        rustix::fs::accessat(&dir, c".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
    };
    match entry.action {
        StepAction::Put | StepAction::Remove => {
            may_write(&entry.beside)?;
            may_write(&entry.path)
        }
        StepAction::Attributes => {
            let (dir, name) = root.place(&entry.path)?;
            let Some(stat) = look_at(&dir, &name)? else { return Ok(()) };
            let own = rustix::process::geteuid();
            let is_known = stat.stx_uid != OVERFLOW_ID && stat.stx_gid != OVERFLOW_ID;
            // The root of a user namespace owns what has an owner in it.
            let may = own.as_raw() == stat.stx_uid || own.is_root() && (is_known || is_initial_namespace());
            if may { Ok(()) } else { Err(Errno::PERM) }
        }
    }
}

/// The owner of what has none in a user namespace (`/proc/sys/kernel/overflowuid`'s default).
const OVERFLOW_ID: u32 = 65534;

fn is_initial_namespace() -> bool {
    let whole = |text: &str| text.split_whitespace().collect::<Vec<_>>() == ["0", "0", "4294967295"];
    std::fs::read_to_string("/proc/self/uid_map").map_or(true, |map| whole(&map))
}

fn prepare(stack: &Stack, root: &Root, journal: &mut Journal) -> Result<(), ApplyError> {
    for entry in &journal.entries {
        let words = match entry.action {
            StepAction::Attributes => "change the attributes of",
            StepAction::Remove => "remove",
            StepAction::Put => "replace",
        };
        permitted(root, entry).map_err(ApplyError::object(words, &entry.path))?;
    }
    let mut links: HashMap<(usize, u64), Vec<u8>> = HashMap::new();
    for entry in journal.entries.iter_mut().filter(|entry| entry.action == StepAction::Put) {
        let path = entry.path.clone();
        let object = lookup(stack, &path)
            .and_then(|object| object.ok_or(Errno::STALE))
            .map_err(ApplyError::object("read", &path))?;
        let (dir, name) =
            root.place(&entry.beside).map_err(ApplyError::object("reach the directory of", &path))?;
        let is_link = object.kind() != FileType::Directory && object.stat().nlink > 1;
        match links.get(&object.identity()).filter(|_| is_link) {
            Some(first) => {
                let (from, first) =
                    root.place(first).map_err(ApplyError::object("reach the directory of", &path))?;
                rustix::fs::linkat(&from, &first, &dir, &name, AtFlags::empty())
                    .map_err(ApplyError::object("link", &path))?;
            }
            None => make(stack, &object, &dir, &name, &path)?,
        }
        if is_link {
            links.entry(object.identity()).or_insert_with(|| entry.beside.clone());
        }
        entry.time = (object.kind() == FileType::Directory).then_some(object.stat().mtime);
        let made = look_at(&dir, &name).map_err(ApplyError::object("look at the new", &path))?;
        entry.ino = made.map_or(0, |made| made.stx_ino);
    }
    Ok(())
}

/// Makes a copy of `object`; of a directory without what is in it.
fn make(
    stack: &Stack,
    object: &MergedObject,
    dir: &OwnedFd,
    name: &CStr,
    path: &[u8],
) -> Result<(), ApplyError> {
    let write = || ApplyError::object("write", path);
    match object.kind() {
        FileType::RegularFile => {
            let from = File::from(object.open(stack).map_err(ApplyError::object("read", path))?);
            let to = File::from(disk::create_file(dir.as_fd(), name).map_err(write())?);
            copy_data(&from, &to)
                .map_err(|error| write()(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
            give(stack, object, Target::Open(to.as_fd()), path)
        }
        FileType::Directory => {
            rustix::fs::mkdirat(dir, name, Mode::RWXU).map_err(write())?;
            let made = disk::open_directory(dir, name).map_err(write())?;
            give(stack, object, Target::Open(made.as_fd()), path)
        }
        FileType::Symlink => {
            let target = object.link_target().map_err(ApplyError::object("read", path))?;
            let target = CString::new(target).map_err(|_| write()(Errno::INVAL))?;
            rustix::fs::symlinkat(&target, dir, name).map_err(write())?;
            give(stack, object, Target::Name(dir.as_fd(), name), path)
        }
        kind => {
            let (major, minor) = object.stat().device;
            let mode = Mode::RUSR | Mode::WUSR;
            rustix::fs::mknodat(dir, name, kind, mode, rustix::fs::makedev(major, minor)).map_err(write())?;
            give(stack, object, Target::Name(dir.as_fd(), name), path)
        }
    }
}

/// Owner, xattrs, mode and times of `object`, in this order: a change of owner takes set-id bits and capabilities away.
/// Xattrs that the target has and `object` has not go.
pub(super) fn give(
    stack: &Stack,
    object: &MergedObject,
    target: Target<'_>,
    path: &[u8],
) -> Result<(), ApplyError> {
    let stat = object.stat();
    let is_link = object.kind() == FileType::Symlink;
    let now = disk::stat(target).map_err(ApplyError::object("look at", path))?;
    if (now.uid, now.gid) != (stat.uid, stat.gid) {
        chown(target, stat).map_err(ApplyError::object("change the owner of", path))?;
    }
    let xattr = || ApplyError::object("change the xattrs of", path);
    let wanted = object.xattrs(stack).map_err(ApplyError::object("read the xattrs of", path))?;
    let present = disk::xattrs(target).map_err(xattr())?;
    for (name, value) in &wanted {
        if present.iter().any(|(own, old)| own == name && old == value) {
            continue;
        }
        let c_name = CString::new(name.as_slice()).map_err(|_| xattr()(Errno::INVAL))?;
        match disk::set_xattr(target, &c_name, value) {
            // Labels belong to the filesystem they are on.
            Err(Errno::OPNOTSUPP | Errno::PERM) if name == b"security.selinux" => {}
            result => result.map_err(xattr())?,
        }
    }
    for (name, _) in present.iter().filter(|(name, _)| !wanted.iter().any(|(own, _)| own == name)) {
        if name == b"security.selinux" {
            continue;
        }
        let c_name = CString::new(name.as_slice()).map_err(|_| xattr()(Errno::INVAL))?;
        disk::remove_xattr(target, &c_name).map_err(xattr())?;
    }
    if !is_link {
        let mode = Mode::from_raw_mode(stat.mode & 0o7777);
        let changed = match target {
            Target::Open(fd) => rustix::fs::fchmod(fd, mode),
            Target::Name(dir, name) => disk::set_mode(dir, name, mode),
        };
        changed.map_err(ApplyError::object("change the mode of", path))?;
    }
    set_times(target, stat.atime, stat.mtime).map_err(ApplyError::object("change the times of", path))
}

fn chown(target: Target<'_>, stat: &ObjectStat) -> Result<(), Errno> {
    let (uid, gid) = (Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)));
    match target {
        Target::Open(fd) => rustix::fs::fchown(fd, uid, gid),
        Target::Name(dir, name) => rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
    }
}

pub(in crate::layer) fn set_times(
    target: Target<'_>,
    access: Timestamp,
    change: Timestamp,
) -> Result<(), Errno> {
    let time = |(seconds, nanoseconds): Timestamp| Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    let times = Timestamps { last_access: time(access), last_modification: time(change) };
    match target {
        Target::Open(fd) => rustix::fs::futimens(fd, &times),
        Target::Name(dir, name) => rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW),
    }
}

/// Has every filesystem that something was or will be made on written to disk.
pub(super) fn sync(root: &Root, journal: &Journal) -> Result<(), ApplyError> {
    let mut seen = BTreeSet::new();
    for entry in &journal.entries {
        let holder = split(&entry.beside).0;
        let dir = match root.directory(holder) {
            Err(Errno::NOENT) => continue,
            dir => dir.map_err(ApplyError::object("open", holder))?,
        };
        let device = rustix::fs::fstat(&dir).map_err(ApplyError::object("look at", holder))?.st_dev;
        if seen.insert(device) {
            rustix::fs::syncfs(&dir).map_err(ApplyError::object("write to disk", holder))?;
        }
    }
    Ok(())
}
