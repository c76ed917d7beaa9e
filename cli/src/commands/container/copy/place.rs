//! The two ends of a copy: a root directory, and paths in it that cannot leave it.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use layerfs_runner::host;
use layerfs_volume::Backing;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::super::body::{self, Own};
use super::super::config::MountSpec;
use super::super::store::{Container, Containers, Locked};
use super::super::volume;
use crate::commands::run::store_root;
use crate::logging::LogOptions;

/// A tree that is copied from or into.
#[derive(Debug)]
pub(super) struct Root {
    root: OwnedFd,
    /// What relative paths begin with.
    base: PathBuf,
    mounted: Option<Mounted>,
}

/// A container that does not run, mounted for the copy. Its lock is held as long.
#[derive(Debug)]
struct Mounted {
    own: Own,
    is_mounted: bool,
    _lock: OwnedFd,
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    Other,
}

/// Something that is copied.
#[derive(Debug)]
pub(super) struct Object {
    /// The directory that it is in.
    pub(super) parent: OwnedFd,
    /// Its name there; `.` for the root itself.
    pub(super) name: Vec<u8>,
    kind: FileType,
}

impl Object {
    pub(super) fn is_directory(&self) -> bool {
        self.kind == FileType::Directory
    }
}

impl Root {
    /// The machine, from the directory of the caller.
    pub(super) fn here() -> anyhow::Result<Self> {
        let root = open_root("/").context("open /")?;
        let base = std::env::current_dir().context("find the current directory")?;
        Ok(Self { root, base, mounted: None })
    }

    /// A container, by name or id. One that does not run is mounted, in a mount namespace of this process's own.
    pub(super) fn of_container(name: &str) -> anyhow::Result<Self> {
        let found = Containers::at(&store_root()?)?.find(name);
        if let Ok(container) = &found
            && let Some(root) = running(container)?
        {
            return Ok(root);
        }
        let containers = Containers::open()?;
        match containers.find(name)?.lock()? {
            Locked::Runs(container) => {
                running(&container)?.with_context(|| format!("container {name} is ending"))
            }
            Locked::Mine(lock, container) => stopped(*container, lock),
        }
    }

    /// The same tree once more. Must be finished before `self`.
    pub(super) fn again(&self) -> anyhow::Result<Self> {
        let root = self.root.try_clone().context("duplicate a descriptor")?;
        Ok(Self { root, base: self.base.clone(), mounted: None })
    }

    fn absolute(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// Opens what is at `path`; with `follow`, what a symlink there leads to.
    pub(super) fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // A race with a rename somewhere in the path asks for another attempt.
        for _ in 0..100 {
            match rustix::fs::openat2(
                &self.root,
                self.absolute(path),
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            ) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
        Err(Errno::AGAIN)
    }

    /// What is at `path`, symlinks followed; `None`: nothing.
    pub(super) fn kind(&self, path: &Path) -> anyhow::Result<Option<Kind>> {
        let words = || format!("look at {}", path.display());
        match self.open(path, OFlags::PATH) {
            Ok(fd) => {
                Ok(Some(match FileType::from_raw_mode(rustix::fs::fstat(&fd).with_context(words)?.st_mode) {
                    FileType::Directory => Kind::Directory,
                    _ => Kind::Other,
                }))
            }
            Err(Errno::NOENT) => Ok(None),
            // A symlink to nothing is written through by nobody: it is replaced.
            Err(Errno::LOOP) => Ok(Some(Kind::Other)),
            Err(error) => Err(error).with_context(words),
        }
    }

    /// What is to be copied, and what it is called.
    pub(super) fn source(&self, path: &Path, follow: bool) -> anyhow::Result<(Object, Vec<u8>)> {
        let bytes = path.as_os_str().as_bytes();
        let follow = follow || bytes.ends_with(b"/") || bytes.ends_with(b"/.");
        let missing = |error: Errno| match error {
            Errno::NOENT => anyhow::anyhow!("Could not find the file {}", path.display()),
            error => anyhow::Error::from(error).context(format!("open {}", path.display())),
        };
        let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
        let found = self.open(path, flags).map_err(missing)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found).map_err(missing)?.st_mode);
        if kind != FileType::Directory && bytes.ends_with(b"/") {
            bail!("not a directory: {}", path.display());
        }
        let clean: PathBuf = self.absolute(path).components().collect();
        let name = match clean.file_name() {
            Some(name) => name.as_bytes().to_owned(),
            // `/`, or a path that ends in `..`.
            None => b".".to_vec(),
        };
        if kind == FileType::Directory {
            // From inside: a rename of it meanwhile changes nothing.
            return Ok((Object { parent: found, name: b".".to_vec(), kind }, name));
        }
        if follow {
            // Where the link leads to is found by the kernel alone; it is opened again from there.
            let place =
                fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(anyhow::Error::from)?;
            let real = place.file_name().map(|name| name.as_bytes().to_owned()).unwrap_or_default();
            return Ok((Object { parent: found, name: real, kind }, name));
        }
        let directory = clean.parent().unwrap_or(Path::new("/"));
        let parent = self.open(directory, OFlags::PATH | OFlags::DIRECTORY).map_err(missing)?;
        Ok((Object { parent, name: name.clone(), kind }, name))
    }

    /// Unmounts what was mounted for the copy.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        let Self { root, mounted, .. } = self;
        drop(root);
        match mounted {
            Some(mut mounted) => mounted.unmount(),
            None => Ok(()),
        }
    }
}

impl Mounted {
    fn unmount(&mut self) -> anyhow::Result<()> {
        self.is_mounted = false;
        unmount(&self.own).context("unmount the container")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_mounted
            && let Err(error) = self.unmount()
        {
            tracing::warn!("{error:#}");
        }
    }
}

fn open_root(path: impl AsRef<Path>) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path.as_ref(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The tree as the container's program sees it.
fn running(container: &Container) -> anyhow::Result<Option<Root>> {
    let process = container.record.process.filter(|process| container.is_running() && process.is_alive());
    let Some(process) = process else { return Ok(None) };
    if !rustix::process::geteuid().is_root() {
        // Its owners are the container's, and its root is nobody else's to look into.
        host::join_user_namespace(process.pid).context("enter the container's user namespace")?;
    }
    let root = open_root(format!("/proc/{}/root", process.pid)).context("open the container's root")?;
    Ok(Some(Root { root, base: "/".into(), mounted: None }))
}

/// The tree as the container's program would see it, with its volumes and binds.
fn stopped(container: Container, lock: OwnedFd) -> anyhow::Result<Root> {
    host::enter_private_mounts().map_err(|error| anyhow::anyhow!(error.words()))?;
    let own = Own { log: LogOptions::from_env(), container, begun: None };
    own.mount()?;
    let merged = own.merged();
    let made = (|| -> anyhow::Result<OwnedFd> {
        let root = open_root(&merged).context("open the container's root")?;
        for mount in &own.container.config.mounts {
            bind(&root, mount).with_context(|| format!("mount {}", mount.target()))?;
        }
        // Again: what was mounted on the root itself would not be seen through the first one.
        open_root(&merged).context("open the container's root")
    })();
    match made {
        Ok(root) => {
            Ok(Root { root, base: "/".into(), mounted: Some(Mounted { own, is_mounted: true, _lock: lock }) })
        }
        Err(error) => {
            unmount(&own)?;
            Err(error)
        }
    }
}

/// What is mounted in it goes first: the mount would be busy.
fn unmount(own: &Own) -> anyhow::Result<()> {
    rustix::mount::unmount(own.merged(), rustix::mount::UnmountFlags::DETACH).context("unmount")?;
    body::end_mount_of(own)
}

/// Binds a volume, or a path of the machine, where the container has it.
fn bind(root: &OwnedFd, mount: &MountSpec) -> anyhow::Result<()> {
    let source = match mount {
        MountSpec::Bind { source, .. } => volume::part_of(source, "")?,
        MountSpec::Volume { name, subpath, .. } => {
            let volumes = crate::commands::volume::open()?;
            let found = volumes.find(name)?;
            // As at a start: what the image has there is the volume's content now.
            match found.backing() {
                Backing::Directory(path) => volume::part_of(&path, subpath)?,
                Backing::Bind { device, .. } => volume::part_of(&device, subpath)?,
                Backing::Filesystem { .. } => return Ok(()),
            }
        }
        // Memory that is not there, and images that nobody writes to.
        MountSpec::Tmpfs { .. } | MountSpec::Image { .. } => return Ok(()),
    };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let target = mount.target();
    let place =
        match rustix::fs::openat2(root, target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Ok(place) => place,
            Err(Errno::NOENT) => {
                if FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode) != FileType::Directory {
                    return Ok(());
                }
                make_directories(root, Path::new(target))?
            }
            Err(error) => return Err(error.into()),
        };
    let to = format!("/proc/self/fd/{}", place.as_raw_fd());
    let from = format!("/proc/self/fd/{}", source.as_raw_fd());
    rustix::mount::mount_bind_recursive(from.as_str(), to.as_str())?;
    Ok(())
}

/// As a start makes mount points: in the container's writable layer.
fn make_directories(root: &OwnedFd, path: &Path) -> anyhow::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut done = PathBuf::from("/");
    let mut directory = root.as_fd().try_clone_to_owned()?;
    for part in path.components().filter_map(|part| match part {
        std::path::Component::Normal(part) => Some(part),
        _ => None,
    }) {
        done.push(part);
        let open = || rustix::fs::openat2(root, &done, flags, Mode::empty(), resolve);
        directory = match open() {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&directory, OsStr::new(part), Mode::from_raw_mode(0o755))?;
                open()?
            }
            result => result?,
        };
    }
    Ok(directory)
}
