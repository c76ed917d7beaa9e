//! Volumes, and the texts that ask for mounts of a container.
//!
//! Knows directories. Mounting is done by who runs a container; what to mount is said in values ([`request`]). How it
//! fits together is in docs/volumes.md.

mod copy;
mod error;
pub mod request;
mod store;

pub use copy::copy_up;
pub use error::{Error, Result};
pub use store::{Backing, NewVolume, Volume, Volumes};
