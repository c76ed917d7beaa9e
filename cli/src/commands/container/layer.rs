//! The writable layer of a container as a tool: what it changed, keeping and forgetting that, and copies of it.

pub(crate) mod apply;
pub(crate) mod diff;
pub(crate) mod discard;
pub(crate) mod fork;
mod rest;
pub(crate) mod rollback;
pub(crate) mod snapshot;
pub(crate) mod snapshots;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, bail};
use layerfs_image::layer::{Change, Layer, Stack, changes, visible};
use layerfs_image::store::{Image, Store};
use rustix::fs::{Mode, OFlags};

use super::store::{Container, Containers};
use crate::images;

pub(super) use rest::LAYER_LOCK;

/// Where something of ours is mounted in every container.
const MOUNTED: [&str; 6] = ["/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// A container, and its layers as they are on disk.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) container: Container,
    pub(crate) store: Store,
    /// `None` on a root filesystem.
    pub(crate) image: Option<Image>,
    /// The writable layer on all it is on.
    pub(crate) stack: Stack,
}

impl Subject {
    /// Finds the container that `name` means, and opens its layers.
    pub(crate) fn open(name: &str) -> anyhow::Result<Self> {
        Self::of(Containers::open_beside(name)?.find(name)?)
    }

    /// Opens the layers of a container.
    pub(crate) fn of(container: Container) -> anyhow::Result<Self> {
        let store = images::open_store()?;
        let mut paths = vec![container.directory.join("upper")];
        let image = match (&container.config.image, &container.config.rootfs) {
            (_, Some(rootfs)) => {
                paths.push(rootfs.clone());
                None
            }
            (Some(id), None) => {
                let words = || format!("find the image of container {}", container.config.name);
                let image = images::find(&store, id).with_context(words)?;
                images::with_session(&store, |session| Ok(store.ensure_layers(session, &image)?))?;
                paths.extend(image.diff_ids().iter().rev().map(|diff_id| store.layer_tree(diff_id)));
                Some(image)
            }
            (None, None) => {
                bail!("container {}: its config does not tell what it is on", container.config.name)
            }
        };
        let open = |path: &PathBuf| Layer::open(path).with_context(|| format!("open {}", path.display()));
        let stack = Stack::new(paths.iter().map(open).collect::<anyhow::Result<_>>()?);
        Ok(Self { container, store, image, stack })
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.container.directory.join("upper")
    }

    /// Has the kernel write down what it holds back of the container's files.
    pub(crate) fn flush(&self) -> anyhow::Result<()> {
        flush(&self.container)
    }

    /// What the container's programs changed, without what was made to mount something on; and the paths of the latter.
    pub(crate) fn changes(&self) -> anyhow::Result<(Vec<Change>, Vec<Vec<u8>>)> {
        let all = changes(&self.stack).context("compare the container with what it is on")?;
        let own = self.container.config.mounts.iter().map(|mount| mount.target());
        let mut targets = BTreeSet::new();
        for target in MOUNTED.into_iter().chain(own) {
            targets
                .insert(self.stack.resolve(target.as_bytes()).with_context(|| format!("look up {target}"))?);
        }
        Ok(visible(all, &targets))
    }

    /// The paths in the writable layer that are only there because something was mounted on them.
    pub(crate) fn placeholders(&self) -> anyhow::Result<BTreeSet<Vec<u8>>> {
        Ok(self.changes()?.1.into_iter().collect())
    }
}

/// Has the kernel write down what it holds back of a running container's files.
pub(crate) fn flush(container: &Container) -> anyhow::Result<()> {
    let Some(process) = container.record.process.filter(|_| container.is_running()) else { return Ok(()) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(format!("/proc/{}/root", process.pid), flags, Mode::empty()) {
        Ok(root) => rustix::fs::syncfs(&root).context("write down the container's files"),
        // It has just ended: its mount has been written down, or soon will be.
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).context("reach the root directory of the container"),
    }
}

/// A path of a command line in a container, from the root, without what leads nowhere.
pub(crate) fn path_in(text: &std::ffi::OsStr) -> anyhow::Result<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    let mut names: Vec<&[u8]> = Vec::new();
    for name in text.as_bytes().split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => bail!(crate::exit::Usage(format!(
                "{text:?}: name paths from the container's root, without `..`"
            ))),
            name => names.push(name),
        }
    }
    Ok(names.iter().flat_map(|name| [b"/".as_slice(), name].concat()).collect())
}

/// Whether `path` is one of `chosen`, or beneath one.
pub(crate) fn is_chosen(path: &[u8], chosen: &[Vec<u8>]) -> bool {
    chosen.iter().any(|own| {
        path.strip_prefix(own.as_slice()).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    })
}

/// The changes that `chosen` (all, when empty) names; each must name one.
pub(crate) fn choose(changes: Vec<Change>, chosen: &[Vec<u8>]) -> anyhow::Result<Vec<Change>> {
    for path in chosen {
        if !changes.iter().any(|change| is_chosen(&change.path, std::slice::from_ref(path))) {
            let path = String::from_utf8_lossy(path).into_owned();
            bail!(crate::exit::Hinted {
                message: format!("nothing was changed at {}", if path.is_empty() { "/" } else { &path }),
                hint: "`layerfs diff` lists what was".into(),
            });
        }
    }
    Ok(match chosen {
        [] => changes,
        chosen => changes.into_iter().filter(|change| is_chosen(&change.path, chosen)).collect(),
    })
}
