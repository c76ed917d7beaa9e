//! The container's root filesystem: a read-only view of the machine's directory, and the union mount on it.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use layerfs_runner::host::ReadOnlyView;
use layerfs_unionfs::config::{Config, LowerSpec, UpperSpec};
use layerfs_unionfs::index::default_index_path;
use rustix::mount::UnmountFlags;
use rustix::process::PidfdFlags;

use super::options::Request;
use super::store::{self, ContainerDirectory, Store};
use crate::mount_process::{self, MountProcess};

/// Both mounts; dropping it takes them away, the upper one first.
#[derive(Debug)]
pub(super) struct ContainerRoot {
    merged: PathBuf,
    mount: Option<MountProcess>,
    // After the mount, which reads through it.
    view: Option<ReadOnlyView>,
}

impl ContainerRoot {
    /// Mounts the root filesystem that `request` names in `directory`.
    pub(super) fn mount(
        directory: &mut ContainerDirectory,
        request: &Request,
        store: &Store,
    ) -> anyhow::Result<Self> {
        let lower = directory.path().join(store::LOWER);
        let merged = directory.path().join(store::MERGED);
        let view = ReadOnlyView::new(&request.rootfs, &lower, &[store.root()])
            .map_err(|error| anyhow::anyhow!(error.words()))
            .context("make a read-only view of the root filesystem")?;
        let mut root = Self { merged, mount: None, view: Some(view) };
        let upper = directory.path().join(store::UPPER);
        take_attributes(&request.rootfs, &upper);
        let config = config(request, lower, upper, directory);
        let mut log = request.log.clone();
        // The process outlives its standard error; what it has to say later is kept.
        log.file.get_or_insert_with(|| directory.path().join(store::MOUNT_LOG));
        let mount = mount_process::spawn(&config, &root.merged, &log)
            .with_context(|| format!("mount a writable layer on {}", request.rootfs.display()))?;
        directory.note_servant(mount.pid);
        root.mount = Some(mount);
        // Not before: the mount process starts a log of its own.
        request.log.start()?;
        Ok(root)
    }

    /// The directory that the container gets as its root.
    pub(super) fn merged(&self) -> &Path {
        &self.merged
    }

    /// A descriptor that becomes readable when the process behind the mount ends.
    pub(super) fn watch(&self) -> anyhow::Result<OwnedFd> {
        let mount = self.mount.as_ref().context("the root filesystem is not mounted")?;
        rustix::process::pidfd_open(mount.pid, PidfdFlags::empty()).context("watch the mount process")
    }

    /// Unmounts, waits for the mount process, and takes the view away.
    pub(super) fn unmount(mut self) -> anyhow::Result<()> {
        let result = self.end_mount();
        if let Some(view) = self.view.take() {
            view.remove().map_err(|error| anyhow::anyhow!(error.words()))?;
        }
        result
    }

    fn end_mount(&mut self) -> anyhow::Result<()> {
        let Some(mount) = self.mount.take() else { return Ok(()) };
        let result = mount.unmount_and_wait().context("unmount the root filesystem");
        if result.is_err() {
            // Without its process the mount answers nothing; it must not be in the way of removing the rest.
            rustix::mount::unmount(&self.merged, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).ok();
        }
        result
    }
}

impl Drop for ContainerRoot {
    fn drop(&mut self) {
        if let Err(error) = self.end_mount() {
            tracing::warn!(error = format!("{error:#}"), "end the mount process");
        }
    }
}

fn config(request: &Request, lower: PathBuf, upper: PathBuf, directory: &ContainerDirectory) -> Config {
    let mut layer = LowerSpec::plain(lower);
    layer.submounts = true;
    // The view is elsewhere than the tree; its index, if it has one, is beside the tree.
    let index = default_index_path(&request.rootfs);
    if request.rootfs.parent().is_some() && index.is_file() {
        layer.index = Some(index);
    }
    let work = directory.path().join(store::WORK);
    let mut config = Config::new(vec![layer], Some(UpperSpec { upper, work }));
    config.flags.source = format!("layerfs:{}", store::short(directory.id()));
    // Nobody will ask for what a crash leaves of it.
    config.volatile = request.remove;
    // Its changes may be applied to the root filesystem later.
    config.record_lower = true;
    config
}

/// The root directory of the merged tree is the upper's: it shall look like the one it stands for. Owners that
/// do not exist in a user namespace cannot be given; permissions are then the caller's own.
fn take_attributes(from: &Path, to: &Path) {
    let copied = fs::metadata(from).and_then(|metadata| {
        std::os::unix::fs::chown(to, Some(metadata.uid()), Some(metadata.gid())).ok();
        fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))
    });
    if let Err(error) = copied {
        tracing::debug!(%error, "give the root directory the attributes of {}", from.display());
    }
}
