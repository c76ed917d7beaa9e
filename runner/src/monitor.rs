//! What stays with a container of this project's own engine: one small process per container.
//!
//! It is the parent of the container's program and of those executed in it, owns their standard streams or terminals,
//! writes the log, serves whoever attaches over a unix socket, records how the program ended, and starts it again where
//! a restart policy says so. It survives the command that started it, and ends when the container has.
//!
//! One thread and one loop over descriptors (`serve`). What needs memory (mounting, making the container) is done by
//! a process forked for it (`worker`), whose children become this process's: it is a child subreaper. What such work
//! is, the caller says with a [`Body`]: this crate knows neither images nor union mounts.
//!
//! Must hold: nothing that a client does stops the loop or another client; no input makes it panic; the state on disk is
//! written before anybody is told.

pub mod connection;
pub mod health;
pub mod log;
mod peer;
mod program;
pub mod protocol;
pub mod record;
pub mod restart;
mod serve;
mod spawn;
mod worker;

pub use self::serve::{Settings, serve};
pub use self::spawn::{Begun, Inherited, spawn, take_begun, take_inherited};
pub use self::worker::{Body, Executed, Happening, Made, Started, Undone};
