//! The stages of making a container: the parent, which stays, and init, which becomes the program.
//!
//! One `clone3` makes init in all its new namespaces, so that no intermediate process is needed; the cgroup
//! namespace alone is entered by init itself, once the parent has placed it. They talk over
//! [`crate::channel`].

mod init;
mod parent;
mod program;

pub use self::parent::{Container, CreateError, ExitStatus, Stdio};
