//! Containers with a monitor: their whole life by docker's words, attaching, restarting, and what a crash leaves.
//!
//! Each test has a store and an image of its own (a static busybox); at its end no container, mount or process stays.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is test code: a broken expectation is a failed test"
)]

mod apply;
mod apply_filesystems;
mod changes;
mod chaos;
mod crash;
mod files;
mod health;
mod images;
mod kept;
mod lifecycle;
mod options;
mod ordinary_user;
mod sharing;
mod snapshots;
mod streams;
mod system;
mod world;
