//! Netlink: messages as bytes, a socket, and the two families that are used, routes and nf_tables.

pub(crate) mod conntrack;
pub(crate) mod message;
pub(crate) mod nft;
pub(crate) mod route;
pub(crate) mod socket;
