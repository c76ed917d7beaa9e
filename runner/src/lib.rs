//! Containers out of a root filesystem: the runtime of layerfs.
//!
//! The specification's document becomes a validated [`config::Config`]; a [`Container`] is created from it,
//! started, waited for and deleted. The library knows nothing of images or of the union filesystem: a root
//! filesystem is a directory. It prints nothing.
//!
//! Code map: `config` (document to values), `runtime` (containers by name on disk), `process` (the stages: parent and
//! init, joined by `channel`), `rootfs` (mounts, devices, pivot), `cgroup`, `capabilities`, `seccomp`, `hooks`, `network`,
//! `terminal` and `attach` (the user's terminal and signals), `monitor`, `state`, `sys` (system calls).
//!
//! Invariant: the calling process has one thread when a container is created; the child runs on a copy of
//! its memory. Invariant: nothing outside the new mount namespace and the container's own cgroup is changed.

pub mod attach;
pub mod capabilities;
pub mod cgroup;
mod channel;
pub mod config;
mod hooks;
pub mod host;
pub mod monitor;
mod mountinfo;
pub mod namespaces;
mod network;
mod process;
mod relay;
mod rootfs;
pub mod runtime;
pub mod seccomp;
pub mod state;
mod step;
mod sys;
pub mod terminal;

pub use channel::{Failure, FailureKind, Stage};
pub use process::{
    Container, CreateError, Execution, ExitStatus, HookState, Outliving, Stdio, execute, start_over,
};
pub use step::StepError;
