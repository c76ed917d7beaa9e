//! The stages of making a container: the parent, which stays; init, which becomes the program; sometimes one in between.
//!
//! One `clone3` makes init in all its new namespaces, where that is possible (see [`join`]); the cgroup namespace alone
//! is entered by init itself, once the parent has placed it. They talk over [`crate::channel`].

mod console;
mod environment;
mod exec;
mod home;
mod identity;
mod init;
mod join;
mod parent;
mod pid1;
mod program;

pub use self::exec::{Execution, execute};
pub use self::parent::{Container, CreateError, ExitStatus, HookState, Outliving, Stdio, start_over};
