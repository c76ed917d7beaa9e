//! The writable layer: its directories, its lock, what its filesystem can do, and the scratch directory in which
//! everything is prepared before one rename or link makes it visible.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, StatxFlags};

use super::dir::{LayerDir, open_beneath};
use super::mark_io::c_name;
use crate::error::Errno;
use crate::marks::{MarkNames, OPAQUE_ENTRY, WHITEOUT_PREFIX};
use crate::sys::creds;
use crate::sys::xattr::{self, Target};

/// How a whiteout is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhiteoutForm {
    /// Character device 0:0.
    Device,
    /// Empty file with an xattr, in a directory marked `x`.
    Xattr,
    /// `.wh.NAME`
    File,
}

/// What the upper's filesystem lets this process do; found out once at mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpperAbilities {
    /// The best form of whiteout that works.
    pub whiteout: WhiteoutForm,
    /// Marks can be kept as xattrs.
    pub xattrs: bool,
    /// O_TMPFILE and linking it.
    pub tmpfile: bool,
    /// RENAME_EXCHANGE
    pub exchange: bool,
    /// Its journal keeps changes of metadata in their order, and a file's extents are in it before its pages count as
    /// written: data that was written back is on disk before a later rename is.
    pub ordered: bool,
}

/// ext4 (in its modes with a journal) and xfs have that order. btrfs notes extents after the pages are written.
const ORDERED: [u64; 2] = [0xef53, 0x5846_5342];

/// The writable layer.
#[derive(Debug)]
pub struct Upper {
    /// As the user named it.
    pub path: PathBuf,
    /// Its root.
    pub root: Arc<LayerDir>,
    /// Abilities.
    pub can: UpperAbilities,
    pub(super) work: OwnedFd,
    pub(super) lock: [OwnedFd; 2],
    pub(super) counter: AtomicU64,
    /// A whiteout in `work` that others are linked to.
    pub(super) shared_whiteout: AtomicBool,
}

const SHARED_WHITEOUT: &[u8] = b"#whiteout";

/// A temporary name in the work directory; removed when dropped unless it was published.
#[derive(Debug)]
pub struct Temp<'a> {
    upper: &'a Upper,
    /// Its name in the work directory.
    pub name: CString,
    armed: bool,
    is_dir: bool,
}

impl Temp<'_> {
    /// It was moved to its place: nothing to clean up.
    pub fn published(mut self) {
        self.armed = false;
    }

    /// What is to be removed is a directory.
    pub fn set_dir(&mut self) {
        self.is_dir = true;
    }

    /// The name as bytes.
    pub fn bytes(&self) -> &[u8] {
        self.name.to_bytes()
    }
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        if self.armed {
            let result = if self.is_dir {
                remove_tree(self.upper.work(), self.name.to_bytes())
            } else {
                rustix::fs::unlinkat(self.upper.work(), &self.name, AtFlags::empty())
            };
            match result {
                // Never created, or moved away by the step that failed later.
                Ok(()) | Err(Errno::NOENT) => {}
                // The next mount cleans the work directory.
                Err(e) => tracing::warn!(name = ?self.name, "leftover in the work directory: {e}"),
            }
        }
    }
}

impl Upper {
    /// The work directory.
    pub fn work(&self) -> BorrowedFd<'_> {
        self.work.as_fd()
    }

    /// Descriptors that hold the lock on upper and work.
    pub fn lock_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.lock.iter().map(AsFd::as_fd)
    }

    /// A fresh name in the work directory.
    pub fn temp(&self) -> Temp<'_> {
        let n = self.counter.fetch_add(1, Ordering::Relaxed);
        let name = CString::new(format!("#{n:x}")).unwrap_or_default();
        Temp { upper: self, name, armed: true, is_dir: false }
    }

    /// Makes a whiteout under a temporary name in `work`. Only for forms that replace the name itself.
    ///
    /// # Errors
    /// What mknod(2) and link(2) list.
    pub fn temp_whiteout(&self, names: &MarkNames) -> Result<Temp<'_>, Errno> {
        let temp = self.temp();
        self.make_whiteout(self.work(), temp.bytes(), names)?;
        Ok(temp)
    }

    /// Makes a whiteout called `name` in `dir`, where nothing of the name exists; in the xattr form the directory
    /// must be marked already.
    ///
    /// # Errors
    /// What mknod(2) and link(2) list.
    pub fn make_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8], names: &MarkNames) -> Result<(), Errno> {
        // A further link to one whiteout costs no inode and less journal than a new one.
        if self.shared_whiteout.load(Ordering::Relaxed) {
            match rustix::fs::linkat(self.work(), SHARED_WHITEOUT, dir, name, AtFlags::empty()) {
                // Full, or not allowed here: make one of its own below.
                Err(Errno::MLINK | Errno::PERM | Errno::NOENT | Errno::XDEV) => {
                    self.shared_whiteout.store(false, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        self.new_whiteout(dir, name, names)?;
        if self.can.whiteout == WhiteoutForm::Device && !self.shared_whiteout.load(Ordering::Relaxed) {
            self.renew_shared();
        }
        Ok(())
    }

    /// Puts a fresh whiteout with one link where the shared one was. Failing only costs the saving.
    fn renew_shared(&self) {
        let temp = self.temp();
        let made = rustix::fs::mknodat(self.work(), &temp.name, FileType::CharacterDevice, Mode::empty(), 0)
            .and_then(|()| rustix::fs::renameat(self.work(), &temp.name, self.work(), SHARED_WHITEOUT));
        if made.is_ok() {
            temp.published();
            self.shared_whiteout.store(true, Ordering::Relaxed);
        }
    }

    fn new_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8], names: &MarkNames) -> Result<(), Errno> {
        match self.can.whiteout {
            WhiteoutForm::Device => {
                rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
            }
            WhiteoutForm::Xattr => {
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
                xattr::set(Target::Fd(file.as_fd()), &names.whiteout, b"", 0)
            }
            WhiteoutForm::File => make_empty(dir, &whiteout_file_name(name)),
        }
    }

    /// Removes a directory of the work directory with all it holds (whiteouts, or what a failed step left).
    ///
    /// # Errors
    /// What unlink(2) lists.
    pub fn remove_temp_tree(&self, name: &[u8]) -> Result<(), Errno> {
        remove_tree(self.work(), name)
    }

    /// Marks a directory.
    ///
    /// # Errors
    /// What setxattr(2) lists.
    pub fn set_mark(&self, dir: BorrowedFd<'_>, mark: &std::ffi::CStr, value: &[u8]) -> Result<(), Errno> {
        xattr::set(Target::Fd(dir), mark, value, 0)
    }

    /// Makes the directory opaque, in the form its filesystem allows.
    ///
    /// # Errors
    /// What setxattr(2) and open(2) list.
    pub fn set_opaque(&self, dir: BorrowedFd<'_>, names: &MarkNames) -> Result<(), Errno> {
        if self.can.xattrs {
            xattr::set(Target::Fd(dir), &names.opaque, b"y", 0)
        } else {
            make_empty(dir, OPAQUE_ENTRY)
        }
    }

    /// Empties the work directory of what this mount kept in it.
    ///
    /// # Errors
    /// What unlink(2) lists.
    pub fn clean_work(&self) -> Result<(), Errno> {
        self.shared_whiteout.store(false, Ordering::Relaxed);
        clean(self.work())
    }
}

/// `.wh.NAME`
pub fn whiteout_file_name(name: &[u8]) -> Vec<u8> {
    [WHITEOUT_PREFIX, name].concat()
}

fn make_empty(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).map(drop)
}

/// Removes everything beneath `dir`, but not a marker left by a volatile mount.
pub(super) fn clean(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    for (name, _) in entries(dir)? {
        if name != b"incompat" {
            remove_tree(dir, &name)?;
        }
    }
    Ok(())
}

fn entries(dir: BorrowedFd<'_>) -> Result<Vec<(Vec<u8>, FileType)>, Errno> {
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            found.push((name.to_vec(), entry.file_type()));
        }
    }
    Ok(found)
}

/// Removes `name` and all beneath it, never through a symlink. Depth is bounded by the descriptors in use: one
/// per level, as the trees that land here were emptied of visible entries before.
pub(crate) fn remove_tree(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other,
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        other => return other,
    }
    let child = open_beneath(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
    for (entry, _) in entries(child.as_fd())? {
        remove_tree(child.as_fd(), &entry)?;
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// What the filesystem of `work` allows: known of some, else found out by trying.
///
/// # Errors
/// Those of [`probe`].
pub(super) fn abilities(work: BorrowedFd<'_>, trusted: bool) -> Result<UpperAbilities, Errno> {
    if trusted && let Some(known) = known_abilities(work) {
        return Ok(known);
    }
    probe(work, trusted)
}

/// ext4, xfs, btrfs, tmpfs.
const KNOWN: [u64; 4] = [EXT, 0x5846_5342, 0x9123_683e, 0x0102_1994];
/// ext4, and ext2, which has another driver where the kernel has one for it.
const EXT: u64 = 0xef53;
/// linux/capability.h
const CAP_SYS_ADMIN: u32 = 21;

/// For trusted marks: the filesystems of [`KNOWN`] have all of it for a process with CAP_SYS_ADMIN in the first user
/// namespace, since Linux 5.8, from where on anybody may make whiteout devices. Trying takes ten changes of the disk's
/// metadata, which is more than all the rest of a mount.
fn known_abilities(work: BorrowedFd<'_>) -> Option<UpperAbilities> {
    if !creds::has_capability(CAP_SYS_ADMIN) || !creds::in_initial_user_namespace() {
        return None;
    }
    let kind = rustix::fs::fstatfs(work).ok()?.f_type as u64;
    let asked = StatxFlags::BTIME | StatxFlags::MNT_ID;
    let found = rustix::fs::statx(work, c"", AtFlags::EMPTY_PATH, asked).ok()?;
    let has = |what: StatxFlags| found.stx_mask & what.bits() != 0;
    // The number of the mount came with 5.8. The driver of ext2, which cannot exchange names, knows no time of birth.
    if !KNOWN.contains(&kind) || !has(StatxFlags::MNT_ID) || kind == EXT && !has(StatxFlags::BTIME) {
        return None;
    }
    // tmpfs has xattrs as the kernel was configured.
    let has_xattrs = xattr::get_vec(Target::Fd(work), &MarkNames::trusted().impure).is_ok();
    has_xattrs.then_some(UpperAbilities {
        whiteout: WhiteoutForm::Device,
        xattrs: true,
        tmpfile: true,
        exchange: true,
        ordered: ORDERED.contains(&kind),
    })
}

/// Finds out what the filesystem of `work` allows, by trying in `work`.
///
/// # Errors
/// EROFS, ENOSPC, EACCES and what else makes the directory useless as scratch.
fn probe(work: BorrowedFd<'_>, trusted: bool) -> Result<UpperAbilities, Errno> {
    let names = if trusted { MarkNames::trusted() } else { MarkNames::user() };
    rustix::fs::mkdirat(work, c"#probe", Mode::RWXU)?;
    let probe_dir = open_beneath(work, b"#probe", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let dir = probe_dir.as_fd();
    let xattrs = xattr::set(Target::Fd(dir), &names.impure, b"y", 0).is_ok();
    let device = rustix::fs::mknodat(dir, c"device", FileType::CharacterDevice, Mode::empty(), 0).is_ok();
    let whiteout = match (device, xattrs) {
        (true, _) => WhiteoutForm::Device,
        (false, true) => WhiteoutForm::Xattr,
        (false, false) => WhiteoutForm::File,
    };
    make_empty(dir, b"a")?;
    make_empty(dir, b"b")?;
    let exchange = rustix::fs::renameat_with(dir, c"a", dir, c"b", RenameFlags::EXCHANGE).is_ok();
    let tmpfile = tmpfile(dir).and_then(|file| link_open(file.as_fd(), dir, b"linked")).is_ok();
    drop(probe_dir);
    remove_tree(work, b"#probe")?;
    let ordered = rustix::fs::fstatfs(work).is_ok_and(|st| ORDERED.contains(&(st.f_type as u64)));
    Ok(UpperAbilities { whiteout, xattrs, tmpfile, exchange, ordered })
}

/// An unnamed file on the filesystem of `dir`.
///
/// # Errors
/// EOPNOTSUPP where the filesystem has none.
pub fn tmpfile(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, c".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
}

/// Gives an open file a name.
///
/// # Errors
/// What linkat(2) lists; ENOENT for a file whose last name was removed.
pub fn link_open(file: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    // AT_EMPTY_PATH needs CAP_DAC_READ_SEARCH; the way through /proc is the documented one without it.
    match rustix::fs::linkat(file, c"", dir, name, AtFlags::EMPTY_PATH) {
        Err(Errno::NOENT | Errno::PERM | Errno::INVAL) => {
            let path = c_name(format!("/proc/self/fd/{}", file.as_raw_fd()).as_bytes())?;
            rustix::fs::linkat(rustix::fs::CWD, &path, dir, name, AtFlags::SYMLINK_FOLLOW)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_a_filesystem_is_what_trying_shows() {
        // Whatever this machine has of the known ones: the disk, and memory.
        for place in [std::env::temp_dir(), "/dev/shm".into(), env!("CARGO_MANIFEST_DIR").into()] {
            let Ok(scratch) = tempfile::Builder::new().tempdir_in(&place) else { continue };
            let dir: OwnedFd = std::fs::File::open(scratch.path()).unwrap().into();
            if let Some(known) = known_abilities(dir.as_fd()) {
                assert_eq!(known, probe(dir.as_fd(), true).unwrap(), "{}", place.display());
            }
        }
    }
}
