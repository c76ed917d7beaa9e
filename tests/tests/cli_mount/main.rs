//! `layerfs mount`, `umount` and the mount-helper forms, as users and other programs call them.
//!
//! Each test has a mount namespace and a scratch disk of its own. What a command prints and its exit code are
//! part of what is tested: engines parse the one, scripts act on the other.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is test code: a broken expectation is a failed test"
)]

mod helper;
mod mounting;
mod mounts;
mod refusals;
mod world;
