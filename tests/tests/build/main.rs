//! `layerfs build`: Dockerfiles with what must come of them, the cache, secrets, reproducible images, killed builds.
//!
//! Each test has a store of its own; at its end no mount or process stays.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is test code: a broken expectation is a failed test"
)]

mod cache;
mod cases;
mod inputs;
mod killed;
#[path = "../../../image/tests/support/registry.rs"]
#[allow(dead_code, reason = "made for other suites too")]
mod registry;
mod remote;
mod ssh;
mod world;
