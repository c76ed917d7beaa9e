//! What a program that runs containers does to itself before it makes one.
//!
//! All of it concerns the calling process alone: its mount namespace, its user namespace, the file it was
//! started from. Each must be done while the process has one thread.

mod executable;
mod mounts;
mod user_namespace;
mod view;

pub use self::executable::{protect_executable, restart_protected};
pub use self::mounts::enter_private_mounts;
pub use self::user_namespace::{
    UserNamespace, enter_user_namespace, has_group, has_user, is_initial_user_namespace,
};
pub use self::view::{ReadOnlyView, is_pseudo};

/// Has orphans among the calling process's descendants become its children.
///
/// # Errors
/// Of the system call.
pub fn adopt_orphans() -> std::io::Result<()> {
    crate::sys::process::become_subreaper()
}

/// Copies what is at `path` beneath `root`, no symlink of which leads out, into the empty directory `to`: content, owners,
/// modes, times. What is no directory, or not there, leaves it empty.
///
/// # Errors
/// Of the filesystems.
pub fn copy_beneath(
    root: &std::path::Path,
    path: &std::path::Path,
    to: &std::path::Path,
) -> std::io::Result<()> {
    use crate::rootfs::resolve::{Links, find};
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let open = |path| rustix::fs::open(path, flags, rustix::fs::Mode::empty());
    let root = open(root)?;
    let found = match find(&root, path, Links::Follow) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        result => result?,
    };
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
    match kind == rustix::fs::FileType::Directory {
        true => crate::rootfs::copy_tree(found, open(to)?),
        false => Ok(()),
    }
}
