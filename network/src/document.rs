//! What is kept of a network, and what is asked of a new one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::lease::Lease;

/// Interfaces with docker's meaning of these options are few; what is not here is refused.
const OPTIONS: [(&str, Meaning); 6] = [
    ("mtu", Meaning::Mtu),
    ("com.docker.network.driver.mtu", Meaning::Mtu),
    ("com.docker.network.bridge.name", Meaning::Name),
    ("com.docker.network.bridge.enable_icc", Meaning::Flag),
    ("com.docker.network.bridge.enable_ip_masquerade", Meaning::Flag),
    ("com.docker.network.bridge.host_binding_ipv4", Meaning::Address),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Mtu,
    Name,
    Flag,
    Address,
}

/// What a network is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// A bridge of the host with a pair of interfaces for each container.
    Bridge,
    /// The host's own network.
    Host,
    /// Nothing but loopback.
    Null,
}

impl Driver {
    /// Its name, as docker has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::Null => "null",
        }
    }
}

/// A range of addresses of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// All of it.
    pub subnet: IpNet,
    /// The host's address in it.
    pub gateway: IpAddr,
    /// Where containers get theirs from, if not from all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<IpNet>,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its name, unique.
    pub name: String,
    /// 64 hexadecimal digits.
    pub id: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// What it is made of.
    pub driver: Driver,
    /// The bridge on the host; empty for other drivers.
    #[serde(default)]
    pub interface: String,
    /// At most one of each version.
    #[serde(default)]
    pub subnets: Vec<Subnet>,
    /// Without a way out.
    #[serde(default)]
    pub internal: bool,
    /// Containers find each other by name. Not on the default network, as docker has it.
    #[serde(default)]
    pub names: bool,
    /// `--opt`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// `--label`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// What is asked of a new network.
#[derive(Debug, Clone, Default)]
pub struct NewNetwork {
    /// Its name.
    pub name: String,
    /// `--driver`; only `bridge` can be made.
    pub driver: Option<String>,
    /// `--subnet`
    pub subnets: Vec<String>,
    /// `--gateway`
    pub gateways: Vec<String>,
    /// `--ip-range`
    pub ranges: Vec<String>,
    /// `--internal`
    pub internal: bool,
    /// `--ipv6`
    pub ipv6: bool,
    /// `--opt`
    pub options: BTreeMap<String, String>,
    /// `--label`
    pub labels: BTreeMap<String, String>,
}

impl Network {
    /// The range of version 4.
    #[must_use]
    pub fn v4(&self) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.subnet.addr().is_ipv4())
    }

    /// The name servers for the resolv.conf of its containers: its own; none where it has no names.
    #[must_use]
    pub fn name_servers(&self) -> Vec<IpAddr> {
        match self.names {
            true => self.v4().map(|subnet| subnet.gateway).into_iter().collect(),
            false => Vec::new(),
        }
    }

    /// The range of version 6.
    #[must_use]
    pub fn v6(&self) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.subnet.addr().is_ipv6())
    }

    /// Packet size of its interfaces, where it was given.
    #[must_use]
    pub fn mtu(&self) -> Option<u32> {
        let text = self.options.get("mtu").or_else(|| self.options.get("com.docker.network.driver.mtu"))?;
        text.parse().ok()
    }

    /// Containers may talk to each other.
    pub(crate) fn talks_within(&self) -> bool {
        self.flag("com.docker.network.bridge.enable_icc")
    }

    /// What leaves it has the host's address.
    pub(crate) fn masquerades(&self) -> bool {
        !self.internal && self.flag("com.docker.network.bridge.enable_ip_masquerade")
    }

    /// Where ports are published that name no address.
    pub(crate) fn default_binding(&self) -> Option<IpAddr> {
        self.options.get("com.docker.network.bridge.host_binding_ipv4")?.parse().ok()
    }

    fn flag(&self, name: &str) -> bool {
        self.options.get(name).and_then(|text| boolean(text)).unwrap_or(true)
    }

    /// `bridge`, `host` or `none`: always there.
    #[must_use]
    pub fn is_predefined(&self) -> bool {
        matches!(self.name.as_str(), "bridge" | "host" | "none")
    }

    /// docker's document of it, with the containers that `leases` has in it.
    #[must_use]
    pub fn inspect(&self, leases: &[Lease]) -> Value {
        let config: Vec<Value> = self
            .subnets
            .iter()
            .map(|subnet| {
                let mut entry = json!({ "Subnet": subnet.subnet, "Gateway": subnet.gateway });
                if let (Some(range), Some(entry)) = (subnet.range, entry.as_object_mut()) {
                    entry.insert("IPRange".into(), range.to_string().into());
                }
                entry
            })
            .collect();
        let with_prefix = |address: Option<IpAddr>| {
            let subnet = address.and_then(|ip| self.subnets.iter().find(|s| s.subnet.contains(&ip)));
            match (address, subnet) {
                (Some(address), Some(subnet)) => format!("{address}/{}", subnet.subnet.prefix_len()),
                _ => String::new(),
            }
        };
        let containers: serde_json::Map<String, Value> = leases
            .iter()
            .filter(|lease| lease.network == self.id)
            .map(|lease| {
                let endpoint = json!({
                    "Name": lease.name(),
                    "EndpointID": lease.endpoint,
                    "MacAddress": lease.mac,
                    "IPv4Address": with_prefix(lease.ipv4.map(Into::into)),
                    "IPv6Address": with_prefix(lease.ipv6.map(Into::into)),
                });
                (lease.container.clone(), endpoint)
            })
            .collect();
        json!({
            "Name": self.name,
            "Id": self.id,
            "Created": self.created,
            "Scope": "local",
            "Driver": self.driver.name(),
            "EnableIPv4": self.v4().is_some(),
            "EnableIPv6": self.v6().is_some(),
            "IPAM": { "Driver": "default", "Options": {}, "Config": config },
            "Internal": self.internal,
            "Attachable": false,
            "Ingress": false,
            "ConfigFrom": { "Network": "" },
            "ConfigOnly": false,
            "Containers": containers,
            "Options": self.options,
            "Labels": self.labels,
        })
    }
}

/// Whether `--opt` makes sense.
pub(crate) fn check_options(options: &BTreeMap<String, String>) -> Result<()> {
    for (name, value) in options {
        let Some((_, meaning)) = OPTIONS.iter().find(|(known, _)| known == name) else {
            let known: Vec<&str> = OPTIONS.iter().map(|(name, _)| *name).collect();
            return Err(Error::Invalid(format!(
                "network option {name:?} is not known; there are {}",
                known.join(", ")
            )));
        };
        let fits = match meaning {
            // The least that IPv4 allows, and the most that an interface of this kind takes.
            Meaning::Mtu => value.parse().is_ok_and(|mtu: u32| (68..=65_535).contains(&mtu)),
            Meaning::Name => is_interface(value),
            Meaning::Flag => boolean(value).is_some(),
            Meaning::Address => value.parse::<std::net::Ipv4Addr>().is_ok(),
        };
        if !fits {
            return Err(Error::Invalid(format!("network option {name}: {value:?} is not allowed")));
        }
    }
    Ok(())
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// What the kernel takes as the name of an interface.
fn is_interface(name: &str) -> bool {
    (1..16).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':'))
}

/// docker's grammar of names, and the words that mean something else after `--network`.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if !first || !rest || name.len() > 255 {
        return Err(Error::Invalid(format!(
            "invalid network name {name:?}: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )));
    }
    if matches!(name, "default" | "container" | "private" | "pasta" | "slirp4netns") {
        return Err(Error::Invalid(format!("operation is not permitted on predefined {name} network")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_options() {
        for good in ["a", "my-net_1.x", "0"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a b", "ä", "a/b", "container"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        let check =
            |name: &str, value: &str| check_options(&[(name.to_owned(), value.to_owned())].into()).is_ok();
        assert!(check("mtu", "1400"));
        assert!(!check("mtu", "1"));
        assert!(!check("mtu", "many"));
        assert!(!check("speed", "1"));
        assert!(check("com.docker.network.bridge.name", "br-mine"));
        assert!(!check("com.docker.network.bridge.name", "much-too-long-a-name"));
        assert!(!check("com.docker.network.bridge.name", "a/b"));
    }
}
