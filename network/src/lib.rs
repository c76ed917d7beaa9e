//! Networks of containers: documents on disk, addresses, bridges and veth pairs, the packet filter, published ports, names.
//!
//! Knows containers by their ids and network namespaces only. Everything that it makes in the kernel is computed from
//! what is on disk ([`Networks`]), under one lock, and can be made or removed again after a crash at any point.
//! How it fits together is in docs/network.md.

mod address;
mod attach;
mod check;
pub mod dns;
mod document;
mod error;
pub mod files;
mod firewall;
mod lease;
mod mac;
pub mod namespace;
mod netlink;
pub mod ports;
mod reserve;
mod store;
mod sys;
mod sysctl;
pub mod userland;

pub use attach::{Attachment, Namespace, Request};
pub use check::Problem;
pub use document::{Driver, Network, NewNetwork, Subnet};
pub use error::{Error, Result};
pub use lease::Lease;
pub use mac::Mac;
pub use reserve::Reservation;
pub use store::{Networks, Options};

#[cfg(test)]
mod tests;
