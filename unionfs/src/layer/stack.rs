//! Opening the layers of a mount, and refusing what cannot be right before anything is mounted.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::dir::{FdContext, LayerDir, LayerNo, UPPER, open_beneath, stat_fd};
use super::mark_io::{Listed, dir_marks, override_stat};
use super::upper::{self, Upper};
use super::{Layers, Lower};
use crate::attr::Attr;
use crate::config::{Config, LowerSpec, MarkNamespace, UpperSpec};
use crate::error::Errno;
use crate::fdcache::FdCache;
use crate::index::{self, IndexError, LayerIndex};
use crate::marks::MarkNames;
use crate::sys::xattr::Target;

/// Largest number of lower layers (as the kernel's overlayfs).
pub const MAX_LOWERS: usize = 500;

/// Why a stack of layers cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// A directory cannot be opened.
    #[error("{role} {path:?}: {source}")]
    Open {
        /// lowerdir, upperdir or workdir.
        role: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No layer, or too many.
    #[error("{0} lower layers given; a mount takes 1 to {MAX_LOWERS}")]
    Count(usize),
    /// Upper and work are on different filesystems.
    #[error(
        "workdir {work:?} is not on the filesystem of upperdir {upper:?}; files are moved between them by rename: put workdir beside upperdir"
    )]
    WorkElsewhere {
        /// The work directory.
        work: PathBuf,
        /// The upper directory.
        upper: PathBuf,
    },
    /// Two of the directories are the same or one is inside the other.
    #[error("{what}; use separate directories")]
    Overlap {
        /// Which, in words.
        what: String,
    },
    /// Another mount uses the directory.
    #[error("{role} {path:?} is in use by another mount; unmount that first, or use another directory")]
    Busy {
        /// upperdir or workdir.
        role: &'static str,
        /// The directory.
        path: PathBuf,
    },
    /// The upper was mounted volatile and not unmounted cleanly.
    #[error(
        "upperdir {upper:?} was mounted volatile and not cleanly unmounted: its data may be incomplete; discard it, or remove {marker:?} to use it as it is"
    )]
    Dirty {
        /// The upper.
        upper: PathBuf,
        /// The marker.
        marker: PathBuf,
    },
    /// The work directory cannot be used.
    #[error("prepare workdir {path:?}: {step}: {source}")]
    Work {
        /// The work directory.
        path: PathBuf,
        /// What failed.
        step: &'static str,
        /// With what.
        source: Errno,
    },
    /// Marks in the namespace asked for cannot be written.
    #[error("upperdir {path:?} cannot hold {prefix}* xattrs, which the options ask for; {hint}")]
    NoMarks {
        /// The upper.
        path: PathBuf,
        /// The namespace.
        prefix: &'static str,
        /// What to do.
        hint: &'static str,
    },
}

impl Layers {
    /// Opens every layer by descriptor, locks and prepares the upper.
    ///
    /// # Errors
    /// See [`StackError`]; nothing is changed on disk where one is returned, but an empty `work` directory may
    /// have been made in workdir.
    pub fn open(config: Config, fd_budget: usize) -> Result<Self, StackError> {
        if config.lowers.is_empty() || config.lowers.len() > MAX_LOWERS {
            return Err(StackError::Count(config.lowers.len()));
        }
        let mut opened: Vec<(OwnedFd, Attr)> = Vec::with_capacity(config.lowers.len());
        let mut paths = Vec::with_capacity(config.lowers.len());
        for spec in &config.lowers {
            let (fd, attr) = open_root("lowerdir", &spec.path)?;
            paths.push(canonical(&fd, &spec.path));
            opened.push((fd, attr));
        }
        private_clones(&config.lowers, &paths, &mut opened);
        check_lowers(&config.lowers, &paths, &opened)?;
        let fds = FdCache::new(fd_budget);
        let (upper, names) = match &config.upper {
            Some(spec) => {
                open_upper(spec, &config, &paths, &opened, &fds).map(|(upper, names)| (Some(upper), names))?
            }
            None => (None, read_names(config.marks)),
        };
        let indexes = Indexes::new(&config);
        let mut lowers = Vec::with_capacity(opened.len());
        for (number, (spec, (fd, attr))) in config.lowers.iter().zip(opened).enumerate() {
            let index = indexes.open(spec, &paths[number], &fd);
            lowers.push(open_lower(spec, number as LayerNo, fd, &attr, index, &config, &names, &fds)?);
        }
        Ok(Self { lowers, upper, names, context: FdContext { fds, tree: RwLock::new(()) }, config })
    }
}

fn open_error<'a>(role: &'static str, path: &'a Path) -> impl Fn(Errno) -> StackError + 'a {
    move |e| StackError::Open { role, path: path.to_path_buf(), source: e.into() }
}

fn open_root(role: &'static str, path: &Path) -> Result<(OwnedFd, Attr), StackError> {
    let error = open_error(role, path);
    // The user's own path may go through symlinks; everything beneath it may not.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(&error)?;
    let attr = stat_fd(&fd).map_err(&error)?;
    Ok((fd, attr))
}

/// Replaces the layers' directories by the same ones as seen through a mount of our own with nothing mounted on it, where
/// this process may make one; the kernel's overlayfs does the same. A mountpoint inside a layer then leads into no mount of
/// ours. Layers on one mount share one clone, of the directory that holds them all: each clone costs a mount namespace.
fn private_clones(specs: &[LowerSpec], paths: &[PathBuf], opened: &mut [(OwnedFd, Attr)]) {
    let mut by_mount: HashMap<u64, Vec<usize>> = HashMap::new();
    for (number, spec) in specs.iter().enumerate() {
        if spec.submounts {
            continue;
        }
        match mount_of(&opened[number].0) {
            Some(mount) => by_mount.entry(mount).or_default().push(number),
            None => clone_one(&mut opened[number]),
        }
    }
    for (mount, layers) in by_mount {
        let shared = if layers.len() > 1 { shared_clone(mount, &layers, paths) } else { None };
        for number in layers {
            let beneath = shared.as_ref().and_then(|(top, tree)| {
                let rest = paths[number].strip_prefix(top).ok()?;
                let name = if rest.as_os_str().is_empty() { b"." } else { rest.as_os_str().as_bytes() };
                let fd = open_beneath(tree, name, OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
                // Found by path: it must be the directory that was opened.
                stat_fd(&fd).is_ok_and(|attr| same(&attr, &opened[number].1)).then_some(fd)
            });
            match beneath {
                Some(fd) => opened[number].0 = fd,
                None => clone_one(&mut opened[number]),
            }
        }
    }
}

/// The mount a directory was opened on (Linux 5.8).
fn mount_of(fd: &OwnedFd) -> Option<u64> {
    let stat =
        rustix::fs::statx(fd, c"", rustix::fs::AtFlags::EMPTY_PATH, rustix::fs::StatxFlags::MNT_ID).ok()?;
    (stat.stx_mask & rustix::fs::StatxFlags::MNT_ID.bits() != 0).then_some(stat.stx_mnt_id)
}

/// The lowest directory above all `layers` that is on their mount, and a clone of the mount there.
fn shared_clone(mount: u64, layers: &[usize], paths: &[PathBuf]) -> Option<(PathBuf, OwnedFd)> {
    let mut top = paths[*layers.first()?].parent()?.to_path_buf();
    for number in layers {
        while !paths[*number].starts_with(&top) {
            if !top.pop() {
                return None;
            }
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(&top, flags, Mode::empty()).ok()?;
    if mount_of(&fd)? != mount {
        return None;
    }
    Some((top, clone_of(&fd).ok()?))
}

fn clone_of(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    use rustix::mount::OpenTreeFlags;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(fd, c"", flags)?;
    rustix::fs::openat(&tree, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn clone_one(layer: &mut (OwnedFd, Attr)) {
    if let Ok(fd) = clone_of(&layer.0) {
        layer.0 = fd;
    }
}

fn check_lowers(
    specs: &[LowerSpec],
    paths: &[PathBuf],
    opened: &[(OwnedFd, Attr)],
) -> Result<(), StackError> {
    let mut seen: HashMap<(u64, u64), &Path> = HashMap::new();
    for (spec, (_, attr)) in specs.iter().zip(opened) {
        if let Some(other) = seen.insert((attr.dev, attr.ino), &spec.path) {
            let what = format!("lowerdir {:?} and lowerdir {:?} are the same directory", other, spec.path);
            return Err(StackError::Overlap { what });
        }
    }
    // One lower inside another would show every object in it twice. (An upper inside a lower is allowed, as by the
    // kernel: `lowerdir=/` could not be mounted otherwise.)
    let by_path: HashMap<&Path, usize> = paths.iter().enumerate().map(|(i, p)| (p.as_path(), i)).collect();
    for (inner, path) in paths.iter().enumerate() {
        for outer in path.ancestors().skip(1).filter_map(|a| by_path.get(a).copied()) {
            let (fd, _) = &opened[outer];
            if is_beneath((fd, &paths[outer]), (&opened[inner].1, path)) {
                let what =
                    format!("lowerdir {:?} is inside lowerdir {:?}", specs[inner].path, specs[outer].path);
                return Err(StackError::Overlap { what });
            }
        }
    }
    Ok(())
}

fn same(a: &Attr, b: &Attr) -> bool {
    (a.dev, a.ino) == (b.dev, b.ino)
}

/// The path of an opened directory without symlinks, for [`is_beneath`]: the kernel knows it.
fn canonical(fd: &OwnedFd, given: &Path) -> PathBuf {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .or_else(|_| given.canonicalize())
        .unwrap_or_else(|_| given.to_path_buf())
}

/// True when `inner` is a directory somewhere beneath `outer` as `outer` shows it (a mount that covers the way
/// makes the two separate). Paths are [canonical]: hundreds of layers are compared with the same two.
fn is_beneath(outer: (&OwnedFd, &Path), inner: (&Attr, &Path)) -> bool {
    let Ok(rest) = inner.1.strip_prefix(outer.1) else { return false };
    if rest.as_os_str().is_empty() {
        return false;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::openat(outer.0, rest.as_os_str().as_bytes(), flags, Mode::empty()) else {
        return false;
    };
    stat_fd(&fd).is_ok_and(|attr| same(&attr, inner.0))
}

fn read_names(asked: MarkNamespace) -> MarkNames {
    let may_read_trusted = crate::sys::creds::has_capability(CAP_SYS_ADMIN);
    match asked {
        MarkNamespace::Trusted => MarkNames::trusted(),
        MarkNamespace::User => MarkNames::user(),
        MarkNamespace::Auto if may_read_trusted => MarkNames::trusted(),
        MarkNamespace::Auto => MarkNames::user(),
    }
}

/// linux/capability.h
const CAP_SYS_ADMIN: u32 = 21;

#[allow(clippy::too_many_arguments)]
fn open_lower(
    spec: &LowerSpec,
    number: LayerNo,
    fd: OwnedFd,
    attr: &Attr,
    index: Option<LayerIndex>,
    config: &Config,
    names: &MarkNames,
    fds: &FdCache,
) -> Result<Lower, StackError> {
    let error = open_error("lowerdir", &spec.path);
    let target = Target::Fd(fd.as_fd());
    let xattrs = Listed::new(&target).map_err(&error)?;
    let marks = dir_marks(&xattrs, names, true).map_err(&error)?;
    let has_override = override_stat(&xattrs).map_err(&error)?.is_some();
    let index_root = index.as_ref().map(LayerIndex::root);
    Ok(Lower {
        path: spec.path.clone(),
        root: LayerDir::root(number, index_root, attr, marks.opaque, marks.flags, fds.count(fd)),
        immutable: spec.immutable || config.trust_index && index.is_some(),
        index,
        index_bad: AtomicBool::new(false),
        override_stat: has_override,
        hard_links: OnceLock::new(),
    })
}

/// Opens the layers' indexes; what is the same for all of them is found out once.
struct Indexes {
    /// How this process sees layers; `None` where no index is wanted.
    view: Option<Result<index::View, IndexError>>,
}

impl Indexes {
    fn new(config: &Config) -> Self {
        Self { view: (config.use_index && !config.volatile_lower).then(index::View::current) }
    }

    /// The index of the layer at `resolved`, a path without symlinks, if there is one that can be used.
    fn open(&self, spec: &LowerSpec, resolved: &Path, root: &OwnedFd) -> Option<LayerIndex> {
        let path = spec.index.clone().unwrap_or_else(|| index::beside(resolved));
        let opened = match self.view.as_ref()? {
            Ok(view) => LayerIndex::open_as(&path, root, *view),
            Err(e) => {
                tracing::warn!("no layer index used: {e}");
                return None;
            }
        };
        match opened {
            Ok(index) => Some(index),
            // Most directories have none.
            Err(IndexError::File { source: Errno::NOENT, .. }) if spec.index.is_none() => None,
            Err(e) => {
                tracing::warn!(layer = %spec.path.display(), index = %path.display(), "layer index not used: {e}");
                None
            }
        }
    }
}

fn open_upper(
    spec: &UpperSpec,
    config: &Config,
    lower_paths: &[PathBuf],
    lowers: &[(OwnedFd, Attr)],
    fds: &FdCache,
) -> Result<(Upper, MarkNames), StackError> {
    let (upper_fd, upper_attr) = open_root("upperdir", &spec.upper)?;
    let (work_fd, work_attr) = open_root("workdir", &spec.work)?;
    let overlap = |what: String| Err(StackError::Overlap { what });
    if same(&upper_attr, &work_attr) {
        return overlap(format!("upperdir and workdir are the same directory {:?}", spec.upper));
    }
    if upper_attr.dev != work_attr.dev {
        return Err(StackError::WorkElsewhere { work: spec.work.clone(), upper: spec.upper.clone() });
    }
    let (upper_path, work_path) = (canonical(&upper_fd, &spec.upper), canonical(&work_fd, &spec.work));
    if is_beneath((&upper_fd, &upper_path), (&work_attr, &work_path)) {
        return overlap(format!("workdir {:?} is inside upperdir {:?}", spec.work, spec.upper));
    }
    if is_beneath((&work_fd, &work_path), (&upper_attr, &upper_path)) {
        return overlap(format!("upperdir {:?} is inside workdir {:?}", spec.upper, spec.work));
    }
    for ((lower_spec, lower_path), (_, lower_attr)) in config.lowers.iter().zip(lower_paths).zip(lowers) {
        for (role, path, fd, attr) in
            [("upperdir", &upper_path, &upper_fd, &upper_attr), ("workdir", &work_path, &work_fd, &work_attr)]
        {
            if same(attr, lower_attr) {
                return overlap(format!("lowerdir {:?} and {role} are the same directory", lower_spec.path));
            }
            if is_beneath((fd, path), (lower_attr, lower_path)) {
                return overlap(format!("lowerdir {:?} is inside {role} {path:?}", lower_spec.path));
            }
        }
    }
    let upper_lock = lock("upperdir", &spec.upper)?;
    let work_lock = lock("workdir", &spec.work)?;
    let work = prepare_work(spec, &work_fd)?;
    let work_error = |step| move |source| StackError::Work { path: spec.work.clone(), step, source };
    let (can, names) = match config.marks {
        MarkNamespace::User => (upper::abilities(work.as_fd(), false), MarkNames::user()),
        MarkNamespace::Trusted => (upper::abilities(work.as_fd(), true), MarkNames::trusted()),
        MarkNamespace::Auto => match upper::abilities(work.as_fd(), true) {
            Ok(can) if can.xattrs => (Ok(can), MarkNames::trusted()),
            Ok(_) => (upper::abilities(work.as_fd(), false), MarkNames::user()),
            Err(e) => (Err(e), MarkNames::user()),
        },
    };
    let can = can.map_err(work_error("try what its filesystem can do"))?;
    if !can.xattrs && config.marks != MarkNamespace::Auto {
        let hint = if config.marks == MarkNamespace::Trusted {
            "trusted.* needs CAP_SYS_ADMIN: mount as root, or with userxattr"
        } else {
            "put it on a filesystem with user xattrs (ext4, xfs, btrfs, tmpfs since Linux 6.6)"
        };
        return Err(StackError::NoMarks { path: spec.upper.clone(), prefix: names.prefix, hint });
    }
    if config.volatile {
        mark_volatile(work.as_fd()).map_err(work_error("write the volatile marker"))?;
    }
    let error = open_error("upperdir", &spec.upper);
    let marks = dir_marks(&Target::Fd(upper_fd.as_fd()), &names, false).map_err(error)?;
    let root = LayerDir::root(UPPER, None, &upper_attr, marks.opaque, marks.flags, fds.count(upper_fd));
    let upper = Upper {
        path: spec.upper.clone(),
        root,
        can,
        work,
        lock: [upper_lock, work_lock],
        counter: AtomicU64::new(0),
        shared_whiteout: AtomicBool::new(false),
    };
    Ok((upper, names))
}

/// Longest wait for a mount that was just unmounted to let go of its upper. umount(2) returns before the process behind
/// the mount has heard of it, has emptied `work` and closed its descriptors.
const LETTING_GO: Duration = Duration::from_secs(2);

/// Locks a directory against other mounts, on a description of its own that lives as long as the mount.
///
/// flock(2) has no time limit, hence the tries in between; a holder that lives on is told of after [`LETTING_GO`].
fn lock(role: &'static str, path: &Path) -> Result<OwnedFd, StackError> {
    let open = |e: io::Error| StackError::Open { role, path: path.to_path_buf(), source: e };
    let dir: OwnedFd = File::open(path).map_err(open)?.into();
    let started = Instant::now();
    let mut pause = Duration::from_micros(500);
    loop {
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(dir),
            Err(Errno::WOULDBLOCK) if started.elapsed() < LETTING_GO => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            Err(Errno::WOULDBLOCK) => return Err(StackError::Busy { role, path: path.to_path_buf() }),
            Err(Errno::INTR) => {}
            Err(e) => return Err(open(e.into())),
        }
    }
}

/// `WORKDIR/work`, made or emptied of what a crash left.
fn prepare_work(spec: &UpperSpec, work_fd: &OwnedFd) -> Result<OwnedFd, StackError> {
    let error = |step| move |source| StackError::Work { path: spec.work.clone(), step, source };
    match rustix::fs::mkdirat(work_fd, c"work", Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(error("make `work` in it")(e)),
    }
    let work = match open_beneath(work_fd, b"work", OFlags::RDONLY | OFlags::DIRECTORY) {
        // The kernel's overlayfs leaves it without any permission bit.
        Err(Errno::ACCESS) => rustix::fs::chmodat(work_fd, c"work", Mode::RWXU, rustix::fs::AtFlags::empty())
            .and_then(|()| open_beneath(work_fd, b"work", OFlags::RDONLY | OFlags::DIRECTORY)),
        other => other,
    }
    .map_err(error("open `work` in it"))?;
    if rustix::fs::accessat(
        &work,
        c"incompat/volatile",
        rustix::fs::Access::EXISTS,
        rustix::fs::AtFlags::empty(),
    )
    .is_ok()
    {
        let marker = spec.work.join("work/incompat/volatile");
        return Err(StackError::Dirty { upper: spec.upper.clone(), marker });
    }
    upper::clean(work.as_fd()).map_err(error("remove what an earlier mount left in it"))?;
    Ok(work)
}

fn mark_volatile(work: BorrowedFd<'_>) -> Result<(), Errno> {
    for dir in [c"incompat", c"incompat/volatile"] {
        match rustix::fs::mkdirat(work, dir, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

impl Upper {
    /// Takes the marker of a volatile mount away; the upper is then as complete as any.
    ///
    /// # Errors
    /// What syncfs(2) and unlink(2) list.
    pub fn clear_volatile(&self) -> Result<(), Errno> {
        upper::remove_tree(self.work(), b"incompat")
    }

    /// Lets another mount have the upper, before this process has put everything else away. Nothing may be written to
    /// the upper after it.
    pub fn release(&self) {
        for dir in &self.lock {
            if let Err(e) = rustix::fs::flock(dir, FlockOperation::Unlock) {
                tracing::debug!("unlock: {e}; the end of the process does it");
            }
        }
    }
}
