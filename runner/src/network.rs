//! The network of a container: its loopback interface, and interfaces of the machine that become its own.

pub(crate) mod devices;
mod netlink;

use rustix::net::{AddressFamily, SocketType};

use crate::step::{Doing, StepError};
use crate::sys;

/// Brings `lo` up in the calling process's network namespace.
pub(crate) fn bring_loopback_up() -> Result<(), StepError> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)
        .doing(|| "open a socket in the network namespace".into())?;
    sys::network::bring_loopback_up(&socket).doing(|| "bring interface \"lo\" up".into())
}
