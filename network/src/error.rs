//! What can go wrong with networks, in words for people. Where docker has words for it, they are docker's.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::ports::Protocol;

/// Any failure of this crate.
#[derive(Debug, Error)]
pub enum Error {
    /// The disk.
    #[error("{operation} {path:?}")]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// A document that cannot be understood.
    #[error("{path:?} is not a document of this program")]
    Json {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The kernel refused a change of interfaces, addresses, routes or packet filter rules.
    #[error("{doing}")]
    Kernel {
        /// What was attempted, with which object.
        doing: String,
        /// What came of it.
        source: io::Error,
    },
    /// No network has this name or id.
    #[error("network {0} not found")]
    NoSuchNetwork(String),
    /// The beginning of an id that several networks share.
    #[error("network {0} is ambiguous: several ids begin so")]
    Ambiguous(String),
    /// A new network has the name of an old one.
    #[error("network with name {0} already exists")]
    Exists(String),
    /// `bridge`, `host` and `none` stay.
    #[error("{0} is a pre-defined network and cannot be removed")]
    Predefined(String),
    /// The network has containers.
    #[error("error while removing network: network {name} has active endpoints ({endpoints})")]
    Active {
        /// The network.
        name: String,
        /// Its containers.
        endpoints: String,
    },
    /// What was asked for has no meaning, or contradicts itself.
    #[error("{0}")]
    Invalid(String),
    /// Another container has the port.
    #[error("Bind for {0} failed: port is already allocated")]
    PortAllocated(SocketAddr),
    /// Another program on the host has the port, or it may not be had.
    #[error("failed to bind host port {address}/{protocol}")]
    PortTaken {
        /// The port.
        address: SocketAddr,
        /// TCP or UDP.
        protocol: Protocol,
        /// What the kernel said.
        source: io::Error,
    },
    /// All addresses are given out.
    #[error("no available addresses in {range} of network {network}")]
    NoAddress {
        /// The network.
        network: String,
        /// Where one was sought.
        range: String,
    },
    /// Another container has the address that was asked for.
    #[error("Address already in use: {address} of network {network} belongs to container {container}")]
    AddressInUse {
        /// The address.
        address: std::net::IpAddr,
        /// The network.
        network: String,
        /// Its owner.
        container: String,
    },
    /// The container is in the network already.
    #[error("endpoint with name {container} already exists in network {network}")]
    AlreadyAttached {
        /// The container.
        container: String,
        /// The network.
        network: String,
    },
    /// The container is not in the network.
    #[error("container {container} is not connected to network {network}")]
    NotAttached {
        /// The container.
        container: String,
        /// The network.
        network: String,
    },
    /// The responder for names did not come up.
    #[error("start the name server of network {network}: {why}")]
    Responder {
        /// The network.
        network: String,
        /// What it said.
        why: String,
    },
}

/// The result of most functions here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { operation, path: path.to_owned(), source: source.into() }
    }

    /// What the user can do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoSuchNetwork(_) => Some("layerfs network ls shows the networks".into()),
            Self::Active { .. } => {
                Some("stop the containers first, or take them out with layerfs network disconnect".into())
            }
            Self::PortAllocated(_) => {
                Some("choose another host port, or none for a free one; layerfs ps shows who has which".into())
            }
            Self::PortTaken { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Some("another program on this machine listens there: ss -tulpn shows which".into())
            }
            Self::PortTaken { source, .. } if source.kind() == io::ErrorKind::AddrNotAvailable => {
                Some("the address belongs to no interface of this machine".into())
            }
            Self::Kernel { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Some(
                "bridges need root; as an ordinary user, install passt (pasta) or slirp4netns, or use --network none or host"
                    .into(),
            ),
            Self::Responder { .. } => Some(
                "another name server may listen on port 53 of all addresses: let it listen on its own ones only".into(),
            ),
            Self::NoAddress { .. } => {
                Some("layerfs system check --repair frees what killed containers left; or make a larger network".into())
            }
            _ => None,
        }
    }
}

/// Names what was attempted on an error of the kernel.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::Kernel { doing: what(), source: error.into() })
    }
}
