//! Leases: who has which address, interface and published port. One document for all networks, replaced by rename.
//!
//! They are facts about what runs now, so those of an earlier boot are none.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::mac::Mac;
use crate::ports::Published;

/// The document's name below `networks/`.
pub(crate) const FILE: &str = "leases.json";

/// A container in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The container's id.
    pub container: String,
    /// The network's id.
    pub network: String,
    /// Of this connection: 64 hexadecimal digits.
    pub endpoint: String,
    /// The container's name, then its other names in this network.
    #[serde(default)]
    pub names: Vec<String>,
    /// The interface on the host.
    pub host_interface: String,
    /// The interface in the container.
    pub interface: String,
    /// Its hardware address.
    pub mac: Mac,
    /// Its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4Addr>,
    /// Its address of version 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
    /// Published ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Published>,
    /// Name servers to which its other questions go (`--dns`); none: those of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
}

impl Lease {
    /// The container's name, or its id where it has none.
    #[must_use]
    pub fn name(&self) -> &str {
        self.names.first().unwrap_or(&self.container)
    }

    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.ipv4.map(IpAddr::from).into_iter().chain(self.ipv6.map(IpAddr::from))
    }
}

/// All leases.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leases {
    /// The boot of which this is true.
    boot: String,
    /// The address of each version that a network gave out last: the next one is sought behind it, so that an address
    /// that was just returned rests.
    #[serde(default)]
    pub(crate) last: BTreeMap<String, Vec<IpAddr>>,
    #[serde(default)]
    pub(crate) leases: Vec<Lease>,
}

impl Leases {
    /// Reads them. A missing document, or one of another boot, is an empty one.
    pub(crate) fn load(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE);
        let boot = boot_id()?;
        let empty = Self { boot: boot.clone(), ..Self::default() };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(empty),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(leases) if leases.boot == boot => Ok(leases),
            Ok(_) => Ok(empty),
            // A power cut can leave an empty file: it is not synced, since it means nothing after a boot.
            Err(_) if text.iter().all(|byte| *byte == 0) => Ok(empty),
            Err(source) => Err(Error::Json { path, source }),
        }
    }

    /// Writes them beside and renames.
    pub(crate) fn save(&self, directory: &Path) -> Result<()> {
        crate::store::replace(&directory.join(FILE), self, false)
    }

    pub(crate) fn of_network<'a>(&'a self, network: &'a str) -> impl Iterator<Item = &'a Lease> {
        self.leases.iter().filter(move |lease| lease.network == network)
    }
}

fn boot_id() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(text.trim().to_owned())
}
