//! Mounts of a container's monitor that only serve to be mounted in the container: of a thing that is known by descriptor, or
//! that is in another mount namespace. In `parts/` of the container's directory; seen by nobody but its monitor.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use rustix::fs::FileType;
use rustix::mount::UnmountFlags;

const DIRECTORY: &str = "parts";

/// Mounts what a descriptor is of.
pub(super) fn of_descriptor(container: &Path, name: &str, part: &OwnedFd) -> anyhow::Result<PathBuf> {
    let is_directory = FileType::from_raw_mode(rustix::fs::fstat(part)?.st_mode) == FileType::Directory;
    let place = place(container, name, is_directory)?;
    rustix::mount::mount_bind_recursive(format!("/proc/self/fd/{}", part.as_raw_fd()), &place)
        .with_context(|| format!("mount on {}", place.display()))?;
    Ok(place)
}

/// Mounts what a process of another mount namespace has at `path`, a directory.
pub(super) fn of_another(container: &Path, name: &str, pid: i32, path: &Path) -> anyhow::Result<PathBuf> {
    let place = place(container, name, true)?;
    layerfs_runner::host::mount_of_another(pid, path, &place).map_err(|error| anyhow!(error.words()))?;
    Ok(place)
}

fn place(container: &Path, name: &str, is_directory: bool) -> anyhow::Result<PathBuf> {
    let directory = container.join(DIRECTORY);
    let place = directory.join(name);
    let words = || format!("make a mountpoint at {}", place.display());
    fs::create_dir_all(&directory).with_context(words)?;
    // Of the last start.
    rustix::mount::unmount(&place, UnmountFlags::DETACH).ok();
    match is_directory {
        true => fs::create_dir_all(&place).with_context(words)?,
        false => fs::write(&place, "").with_context(words)?,
    }
    Ok(place)
}

/// Takes all of them away.
pub(super) fn remove(container: &Path) -> anyhow::Result<()> {
    let directory = container.join(DIRECTORY);
    let Ok(entries) = fs::read_dir(&directory) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        rustix::mount::unmount(&path, UnmountFlags::DETACH).ok();
        let words = || format!("remove mountpoint {}", path.display());
        // Not with what is in it: a mount that is still there must not be emptied.
        match path.is_dir() {
            true => fs::remove_dir(&path).with_context(words)?,
            false => fs::remove_file(&path).with_context(words)?,
        }
    }
    fs::remove_dir(&directory).context("remove a directory of mountpoints")
}
