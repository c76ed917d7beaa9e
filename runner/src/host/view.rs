//! A read-only view of a directory, the mounts below it included, in the calling process's mount namespace.
//!
//! It is what a container's lower layer is read through: nothing can be written by that way, whatever goes
//! wrong, and reading leaves no access times. Filesystems that are not storage (proc, sysfs, device nodes, ...)
//! are left out, as is any directory that must not be part of it.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::UnmountFlags;

use crate::config::mounts::{Attributes, attribute};
use crate::rootfs::mounts::{attach, clone_tree, new_filesystem};
use crate::rootfs::resolve::{Links, find};
use crate::step::{Doing, StepError};
use crate::sys::mount::{MountAttr, mount_setattr};

/// Filesystem types that show the kernel's state, not stored files.
const PSEUDO: [&str; 25] = [
    "autofs",
    "binder",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "cpuset",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "smackfs",
    "sysfs",
    "tracefs",
];

/// True for filesystem types that show the kernel's state instead of stored files.
#[must_use]
pub fn is_pseudo(fstype: &str) -> bool {
    PSEUDO.contains(&fstype)
}

/// The view; dropping it takes it away.
#[derive(Debug)]
pub struct ReadOnlyView {
    target: PathBuf,
    attached: bool,
    covered: Vec<PathBuf>,
}

impl ReadOnlyView {
    /// Shows `source` at `target`, an empty directory, with `hidden` (absolute paths on the machine) empty.
    ///
    /// The process must be in a mount namespace of its own (see [`super::enter_private_mounts`]).
    ///
    /// # Errors
    /// What could not be cloned, left out or covered; nothing stays mounted then.
    pub fn new(source: &Path, target: &Path, hidden: &[&Path]) -> Result<Self, StepError> {
        let words = |what: &str| format!("{what} {}", source.display());
        let source_path = fs::canonicalize(source).doing(|| words("find"))?;
        let tree = clone_tree(&source_path, true).doing(|| words("clone the mounts of"))?;
        restrict(&tree).doing(|| words("make a read-only view of"))?;
        let place = open_directory(target).doing(|| format!("open {}", target.display()))?;
        attach(&tree, &place).doing(|| format!("mount {} on {}", source.display(), target.display()))?;
        let mut view = Self { target: target.to_owned(), attached: true, covered: Vec::new() };
        drop((tree, place));

        let view_path = fs::canonicalize(target).doing(|| format!("find {}", target.display()))?;
        view.leave_pseudo_out(&view_path, &source_path)?;
        for path in hidden {
            view.hide(&view_path, &source_path, path)?;
        }
        Ok(view)
    }

    /// Paths beneath the target that something empty was mounted on, because what is there could not be
    /// unmounted.
    #[must_use]
    pub fn covered(&self) -> &[PathBuf] {
        &self.covered
    }

    /// Unmounts what is not storage. Mounts that came from another user namespace are locked together:
    /// those are covered.
    fn leave_pseudo_out(&mut self, view: &Path, source: &Path) -> Result<(), StepError> {
        let table = fs::read("/proc/self/mountinfo").doing(|| "read the mount table".into())?;
        let mut points: Vec<PathBuf> = table
            .split(|byte| *byte == b'\n')
            .filter_map(MountLine::parse)
            .filter(|line| line.point.starts_with(view) && line.point != view)
            .filter(|line| is_pseudo(&line.fstype) || is_kernel_place(source, view, &line.point))
            .map(|line| line.point)
            .collect();
        points.sort();
        points.dedup();
        // What is below another goes with it.
        let mut tops: Vec<PathBuf> = Vec::new();
        for point in points {
            if !tops.last().is_some_and(|top| point.starts_with(top)) {
                tops.push(point);
            }
        }
        for top in tops {
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            match rustix::mount::unmount(&top, flags) {
                Ok(()) => {
                    // Several may be stacked on one place; the lower ones came along.
                    while rustix::mount::unmount(&top, flags).is_ok() {}
                }
                Err(_) => {
                    cover(&top)?;
                    self.covered.push(top);
                }
            }
        }
        Ok(())
    }

    /// Covers what the machine calls `path`, if it is part of the view.
    fn hide(&mut self, view: &Path, source: &Path, path: &Path) -> Result<(), StepError> {
        let words = || format!("leave {} out", path.display());
        let path = fs::canonicalize(path).doing(words)?;
        let Ok(below) = path.strip_prefix(source) else { return Ok(()) };
        let root = open_directory(view).doing(words)?;
        match find(&root, below, Links::Refuse) {
            Ok(_) => {
                cover(&view.join(below))?;
                self.covered.push(view.join(below));
                Ok(())
            }
            // On one of the filesystems that were left out.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).doing(words),
        }
    }

    /// Takes the view away.
    ///
    /// # Errors
    /// Of the system call.
    pub fn remove(mut self) -> Result<(), StepError> {
        self.detach()
    }

    fn detach(&mut self) -> Result<(), StepError> {
        if std::mem::take(&mut self.attached) {
            rustix::mount::unmount(&self.target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .doing(|| format!("unmount {}", self.target.display()))?;
        }
        Ok(())
    }
}

impl Drop for ReadOnlyView {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            tracing::warn!(error = error.words(), "the view stays until its mount namespace ends");
        }
    }
}

/// Everything mounted below these of the machine belongs to the kernel or to the running system (`/dev/shm`).
fn is_kernel_place(source: &Path, view: &Path, point: &Path) -> bool {
    let Ok(below) = point.strip_prefix(view) else { return false };
    let on_machine = source.join(below);
    ["/proc", "/sys", "/dev"].iter().any(|place| on_machine.starts_with(place))
}

/// Read-only and without access times, all mounts alike, before anybody can see them.
fn restrict(tree: &OwnedFd) -> io::Result<()> {
    let private = MountAttr {
        set: attribute::RDONLY | attribute::NOATIME,
        clear: attribute::ATIME_MASK,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    match mount_setattr(tree, c"", true, private) {
        // Mounts from another user namespace keep how they count access times.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            mount_setattr(tree, c"", true, MountAttr { set: attribute::RDONLY, clear: 0, ..private })
        }
        result => result,
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

/// Mounts something empty on `path`: a directory, or /dev/null on anything else.
fn cover(path: &Path) -> Result<(), StepError> {
    let words = || format!("cover {}", path.display());
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::openat(CWD, path, flags, Mode::empty()).doing(words)?;
    let stat = rustix::fs::fstat(&place).doing(words)?;
    let empty = if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory {
        let data = [("mode".to_owned(), Some("755".to_owned())), ("size".to_owned(), Some("4k".to_owned()))];
        let set = attribute::RDONLY | attribute::NOSUID | attribute::NODEV | attribute::NOEXEC;
        new_filesystem("tmpfs", OsStr::new("tmpfs"), &data, Attributes { set, clear: 0 })?
    } else {
        clone_tree(Path::new("/dev/null"), false).doing(words)?
    };
    attach(&empty, &place).doing(words)
}

/// The fields of a line of mountinfo that matter here.
struct MountLine {
    point: PathBuf,
    fstype: String,
}

impl MountLine {
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let separator = fields.iter().position(|field| *field == b"-")?;
        let fstype = String::from_utf8_lossy(fields.get(separator + 1)?).into_owned();
        Some(Self { point: crate::mountinfo::unescape(fields.get(4)?), fstype })
    }
}
