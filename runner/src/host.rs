//! What a program that runs containers does to itself before it makes one.
//!
//! All of it concerns the calling process alone: its mount namespace, its user namespace, the file it was
//! started from. Each must be done while the process has one thread.

mod executable;
mod mounts;
mod user_namespace;
mod view;

pub use self::executable::protect_executable;
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
