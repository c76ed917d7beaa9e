//! System calls that `rustix` lacks or offers only as `unsafe`.
//!
//! One call per function, no policy. All `unsafe` code of the crate is below this module.

pub(crate) mod bpf;
pub(crate) mod memory;
pub(crate) mod mount;
pub(crate) mod network;
pub(crate) mod process;
pub(crate) mod seccomp;
pub(crate) mod signal;
