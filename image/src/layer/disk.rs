//! Objects of a layer on disk: making them, and giving them their attributes and marks.
//!
//! Everything is reached by one name beneath a directory descriptor of the tree.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Statx, StatxFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::index::ObjectStat;
use crate::tar::{Timestamp, Xattr};

/// Where owner, mode and type are kept that the disk cannot store (containers/storage, `override_stat`).
pub(super) const OVERRIDE_STAT: &CStr = c"user.containers.override_stat";

/// In front of the names of marks.
pub(super) const PREFIXES: [&str; 2] = ["trusted.overlay.", "user.overlay."];

/// In which form marks and attributes are kept: what this process may write here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// `trusted.overlay.*`, else `user.overlay.*`.
    pub trusted: bool,
    /// A whiteout is a device 0:0, else a file `.wh.NAME`.
    pub devices: bool,
    /// Owners, modes and types are kept in an xattr: this process may not give files away.
    pub overrides: bool,
}

impl Marks {
    /// Tries what is possible in `dir`, which is left as it was.
    ///
    /// # Errors
    /// When nothing can be made in `dir`, or its filesystem has no xattrs at all.
    pub fn probe(dir: BorrowedFd<'_>) -> Result<Self, Errno> {
        let name = CString::new(format!(".probe-{}-{:?}", std::process::id(), std::thread::current().id()))
            .map_err(|_| Errno::INVAL)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(dir, &name, flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::unlinkat(dir, &name, AtFlags::empty())?;
        let trusted = rustix::fs::fsetxattr(&file, c"trusted.overlay.opaque", b"y", XattrFlags::empty());
        let devices = rustix::fs::mknodat(dir, &name, FileType::CharacterDevice, Mode::empty(), 0);
        if devices.is_ok() {
            rustix::fs::unlinkat(dir, &name, AtFlags::empty())?;
        }
        let chown = rustix::fs::fchown(&file, Some(Uid::from_raw(1)), Some(Gid::from_raw(1)));
        let marks = Self { trusted: trusted.is_ok(), devices: devices.is_ok(), overrides: chown.is_err() };
        if !marks.trusted {
            rustix::fs::fsetxattr(&file, c"user.overlay.opaque", b"y", XattrFlags::empty())?;
        }
        Ok(marks)
    }

    pub(super) fn opaque(self) -> &'static CStr {
        if self.trusted { c"trusted.overlay.opaque" } else { c"user.overlay.opaque" }
    }

    /// What an archive's xattr is called on disk; `None` for what would be read as something else than data.
    pub(super) fn stored(self, name: &[u8]) -> Option<CString> {
        if name == OVERRIDE_STAT.to_bytes()
            || name == b"security.fuseoverlayfs.override_stat"
            || name.starts_with(b"user.fuseoverlayfs.")
        {
            return None;
        }
        // As the kernel does, the nesting escape for the names that are read as marks where these are: they show as
        // the archive has them and mean nothing. Those of the other form are data, and show unchanged as they are.
        let prefix = PREFIXES[usize::from(!self.trusted)].as_bytes();
        match name.strip_prefix(prefix) {
            Some(rest) => CString::new([prefix, b"overlay.", rest].concat()).ok(),
            None => CString::new(name).ok(),
        }
    }
}

/// What new files look like where a layer is unpacked: what they have already need not be given to them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fresh {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Bits of the mode that are taken away.
    pub(super) umask: u32,
    /// They have no xattrs: no label, and no ACL of their directory.
    pub(super) bare: bool,
}

impl Fresh {
    /// Of a file that was just made with all permissions.
    pub(super) fn of(file: BorrowedFd<'_>) -> Result<Self, Errno> {
        let stat = rustix::fs::fstat(file)?;
        let umask = !stat.st_mode & 0o777;
        let bare = matches!(rustix::fs::flistxattr(file, &mut [0_u8; 0][..]), Ok(0) | Err(Errno::OPNOTSUPP));
        Ok(Self { uid: stat.st_uid, gid: stat.st_gid, umask, bare })
    }
}

/// Attributes that an object got when it was made.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Given {
    pub(super) owner: bool,
    pub(super) mode: bool,
    pub(super) xattrs: bool,
}

/// Attributes that an object is to have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a> {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) atime: Option<Timestamp>,
    /// Names as in archives.
    pub(super) xattrs: &'a [Xattr],
    /// What the object has already.
    pub(super) given: Given,
    /// The type, where overrides have to say it: `file`, `dir`, `symlink`, `pipe`, `char-1-3`, `block-8-0`.
    pub(super) type_word: &'a str,
}

/// What has attributes: an open object, or a name that cannot be opened.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target<'a> {
    Open(BorrowedFd<'a>),
    /// Not followed.
    Name(BorrowedFd<'a>, &'a CStr),
}

/// Gives owner, xattrs, mode and times, in this order: a chown takes set-id bits and capabilities away. Answers with
/// the names of xattrs that the filesystem would not take.
pub(super) fn apply(
    marks: Marks,
    target: Target<'_>,
    is_symlink: bool,
    attributes: &Attributes<'_>,
) -> Result<Vec<Vec<u8>>, Errno> {
    let mut refused = Vec::new();
    if marks.overrides {
        let value =
            format!("{}:{}:0{:o}:{}", attributes.uid, attributes.gid, attributes.mode, attributes.type_word);
        set_xattr(target, OVERRIDE_STAT, value.as_bytes())?;
    } else if !attributes.given.owner {
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        match target {
            Target::Open(fd) => rustix::fs::fchown(fd, Some(uid), Some(gid))?,
            Target::Name(dir, name) => {
                rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
    }
    for (name, value) in attributes.xattrs {
        let Some(stored) = marks.stored(name) else { continue };
        match set_xattr(target, &stored, value) {
            Ok(()) => {}
            // Namespaces that this filesystem, this kind of object or this user cannot have.
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => refused.push(name.clone()),
            Err(errno) => return Err(errno),
        }
    }
    if !is_symlink && !marks.overrides && !attributes.given.mode {
        let mode = Mode::from_raw_mode(attributes.mode);
        match target {
            Target::Open(fd) => rustix::fs::fchmod(fd, mode)?,
            Target::Name(dir, name) => set_mode(dir, name, mode)?,
        }
    }
    let times = Timestamps {
        last_access: timespec(attributes.atime.unwrap_or(attributes.mtime)),
        last_modification: timespec(attributes.mtime),
    };
    match target {
        Target::Open(fd) => rustix::fs::futimens(fd, &times)?,
        Target::Name(dir, name) => rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?,
    }
    Ok(refused)
}

/// Sets the mode of the object called `name` in `dir`, which need not be one that can be opened. Who can write into `dir`
/// may exchange it for a symlink, which leads anywhere on this machine: that is not followed.
///
/// # Errors
/// `LOOP` for a symlink; those of chmod(2). Needs /proc.
pub fn set_mode(dir: impl AsFd, name: &CStr, mode: Mode) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let object = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&object)?.st_mode) == FileType::Symlink {
        return Err(Errno::LOOP);
    }
    rustix::fs::chmod(format!("/proc/self/fd/{}", object.as_raw_fd()), mode)
}

fn timespec((seconds, nanoseconds): Timestamp) -> Timespec {
    Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() }
}

pub(super) fn set_xattr(target: Target<'_>, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    match target {
        Target::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
        Target::Name(dir, file) => {
            rustix::fs::lsetxattr(proc_path(dir, file), name, value, XattrFlags::empty())
        }
    }
}

pub(super) fn remove_xattr(target: Target<'_>, name: &CStr) -> Result<(), Errno> {
    match target {
        Target::Open(fd) => rustix::fs::fremovexattr(fd, name),
        Target::Name(dir, file) => rustix::fs::lremovexattr(proc_path(dir, file), name),
    }
}

/// All xattrs of an object, sorted by name.
pub(super) fn xattrs(target: Target<'_>) -> Result<Vec<Xattr>, Errno> {
    let path = match target {
        Target::Open(_) => CString::default(),
        Target::Name(dir, file) => proc_path(dir, file),
    };
    let list = |buffer: &mut [u8]| match target {
        Target::Open(fd) => rustix::fs::flistxattr(fd, buffer),
        Target::Name(..) => rustix::fs::llistxattr(&path, buffer),
    };
    // Nearly everything has none, or few.
    let mut names = vec![0; 256];
    let len = loop {
        match list(&mut names) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Ok(len) => break len,
            // XATTR_LIST_MAX of linux/limits.h.
            Err(Errno::RANGE) if names.len() < 65536 => names = vec![0; 65536],
            Err(errno) => return Err(errno),
        }
    };
    let mut found = Vec::new();
    let mut value = vec![0; 65536];
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let c_name = CString::new(name).map_err(|_| Errno::INVAL)?;
        let read = match target {
            Target::Open(fd) => rustix::fs::fgetxattr(fd, &c_name, &mut value[..]),
            Target::Name(..) => rustix::fs::lgetxattr(&path, &c_name, &mut value[..]),
        };
        match read {
            Ok(len) => found.push((name.to_vec(), value[..len].to_vec())),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// One xattr, `None` when there is none.
pub(super) fn xattr(target: Target<'_>, name: &CStr) -> Result<Option<Vec<u8>>, Errno> {
    let mut value = vec![0; 4096];
    let read = match target {
        Target::Open(fd) => rustix::fs::fgetxattr(fd, name, &mut value[..]),
        Target::Name(dir, file) => rustix::fs::lgetxattr(proc_path(dir, file), name, &mut value[..]),
    };
    match read {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The object by a path that calls without a directory descriptor take.
fn proc_path(dir: BorrowedFd<'_>, name: &CStr) -> CString {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    // A C string has no NUL in it.
    CString::new(path).unwrap_or_default()
}

pub(super) fn stat(target: Target<'_>) -> Result<ObjectStat, Errno> {
    Ok(ObjectStat::of(&statx(target)?))
}

fn statx(target: Target<'_>) -> Result<Statx, Errno> {
    let flags = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    match target {
        Target::Open(fd) => rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, flags),
        Target::Name(dir, name) => {
            rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, flags)
        }
    }
}

pub(super) fn open_directory(dir: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

pub(super) fn create_file(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    create_file_as(dir, name, 0o600)
}

pub(super) fn create_file_as(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode))
}

/// Makes a whiteout of `name`.
pub(super) fn whiteout(marks: Marks, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    if marks.devices {
        return rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0);
    }
    create_file(dir, &whiteout_file(name)).map(|_| ())
}

/// What a whiteout of `name` is called on disk.
pub(super) fn whiteout_name(marks: Marks, name: &CStr) -> CString {
    if marks.devices { name.to_owned() } else { whiteout_file(name) }
}

fn whiteout_file(name: &CStr) -> CString {
    CString::new([b".wh.", name.to_bytes()].concat()).unwrap_or_default()
}

/// All xattrs of an open object as they are on disk.
pub(crate) fn all_xattrs(object: BorrowedFd<'_>) -> Result<Vec<Xattr>, Errno> {
    xattrs(Target::Open(object))
}

/// Gives the object `name` in `to` all xattrs of the one in `from`.
pub(crate) fn copy_name_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    for (key, value) in xattrs(Target::Name(from, name))? {
        set_xattr(Target::Name(to, name), &CString::new(key).map_err(|_| Errno::INVAL)?, &value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn regression_a_mode_is_not_set_through_a_symlink() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "").unwrap();
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
        let mode =
            |name: &str| fs::symlink_metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o7777;
        symlink(&victim, dir.path().join("link")).unwrap();
        let open = File::open(dir.path()).unwrap();
        let wanted = Mode::from_raw_mode(0o4755);
        assert_eq!(set_mode(&open, c"link", wanted), Err(Errno::LOOP));
        // As every caller that gives a node its attributes reaches it.
        let none = Attributes {
            uid: 0,
            gid: 0,
            mode: 0o4755,
            mtime: (0, 0),
            atime: None,
            xattrs: &[],
            type_word: "pipe",
            given: Given { owner: true, ..Given::default() },
        };
        let marks = Marks { trusted: false, devices: false, overrides: false };
        assert_eq!(apply(marks, Target::Name(open.as_fd(), c"link"), false, &none), Err(Errno::LOOP));
        assert_eq!(mode("victim"), 0o600);
        rustix::fs::mknodat(&open, c"pipe", FileType::Fifo, Mode::RUSR, 0).unwrap();
        set_mode(&open, c"pipe", wanted).unwrap();
        assert_eq!(mode("pipe"), 0o4755);
    }
}
