//! The commands for images through the real program: words, columns, exit codes; against a real registry and a false one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is test code: a broken expectation is a failed test"
)]

mod local;
mod remote;
mod server;
mod world;
