//! What a program that runs containers does to itself before it makes one.
//!
//! All of it concerns the calling process alone: its mount namespace, its user namespace, the file it was
//! started from. Each must be done while the process has one thread.

mod executable;
mod mounts;
mod user_namespace;
mod view;

pub use self::executable::{protect_executable, restart_protected};
pub use self::mounts::{enter_private_mounts, mount_of_another};
pub use self::user_namespace::{
    UserNamespace, enter_user_namespace, has_group, has_user, is_initial_user_namespace, is_rootless,
};
pub use self::view::{ReadOnlyView, is_pseudo};

/// Has orphans among the calling process's descendants become its children.
///
/// # Errors
/// Of the system call.
pub fn adopt_orphans() -> std::io::Result<()> {
    crate::sys::process::become_subreaper()
}

/// Gives the memory back that only the beginning of a process has needed: what is free of its heap, and what a deep call has
/// touched of its stack. For a process that stays, on its first thread.
pub fn give_memory_back() {
    crate::sys::memory::give_back();
}

/// Enters the user namespace of a process of this user's. The calling process must have one thread.
///
/// # Errors
/// Of the system calls.
pub fn join_user_namespace(pid: i32) -> std::io::Result<()> {
    use rustix::fs::{Mode, OFlags};
    let path = format!("/proc/{pid}/ns/user");
    let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let kind = Some(rustix::thread::LinkNameSpaceType::User);
    Ok(rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), kind)?)
}

/// What is at `path` beneath `root`, as a descriptor of the place alone. No symlink leads out.
///
/// # Errors
/// When it is not there.
pub fn beneath(root: &std::path::Path, path: &std::path::Path) -> std::io::Result<std::os::fd::OwnedFd> {
    use crate::rootfs::resolve::{Links, find};
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, rustix::fs::Mode::empty())?;
    match path.as_os_str().is_empty() {
        true => Ok(root),
        false => find(&root, path, Links::Follow),
    }
}
