//! The packet filter: one table, computed from the networks and leases, replaced as a whole when it differs.
//!
//! The table carries a mark, a hash of what it should be. What is right already costs one question to the kernel.
//! Other tables are neither read nor changed; a packet passes only if theirs let it pass too.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use crate::document::{Driver, Network};
use crate::error::{Error, Result};
use crate::lease::Lease;
use crate::netlink::nft::{Chain, ChainKind, Hook, Part};
use crate::netlink::socket::Socket;
use crate::ports::{Protocol, Published};
use crate::store::Networks;

/// Before connection tracking.
const RAW: i32 = -300;
const DESTINATION: i32 = -100;
const FILTER: i32 = 0;
const SOURCE: i32 = 100;

impl Networks {
    /// The name of the table.
    pub(crate) fn table(&self) -> String {
        match self.options.instance.as_str() {
            "" => "layerfs".into(),
            instance => format!("layerfs-{instance}"),
        }
    }

    /// Makes the kernel's table what it should be. True when it had to be changed.
    pub(crate) fn sync_firewall(&self, networks: &[Network], leases: &[Lease]) -> Result<bool> {
        let table = self.table();
        let changed = || -> std::io::Result<bool> {
            let mut socket = Socket::netfilter()?;
            let chains = chains(networks, leases);
            let now = socket.table_mark(&table)?;
            if chains.is_empty() {
                if now.is_some() {
                    socket.delete_table(&table)?;
                }
                return Ok(now.is_some());
            }
            let mark = mark(&chains);
            if now.as_deref() == Some(&mark) {
                return Ok(false);
            }
            socket.replace_table(&table, &mark, &chains)?;
            Ok(true)
        };
        changed().map_err(|source| Error::Kernel {
            doing: match source.raw_os_error() {
                Some(code) if code == rustix::io::Errno::OPNOTSUPP.raw_os_error() || code == rustix::io::Errno::NOENT.raw_os_error() => {
                    format!("write table {table} of the packet filter (the kernel needs nf_tables with NAT in family inet: modules nf_tables, nft_chain_nat, nft_masq, nft_fib_inet)")
                }
                _ => format!("write table {table} of the packet filter"),
            },
            source,
        })
    }
}

/// A comment, as nft(8) shows it, that tells this content from another.
fn mark(chains: &[Chain]) -> Vec<u8> {
    let mut hasher = DefaultHasher::new();
    for chain in chains {
        (chain.name, &chain.rules).hash(&mut hasher);
    }
    let text = format!("layerfs {:016x}", hasher.finish());
    // Type 0, length with the zero byte.
    let mut bytes = vec![0, u8::try_from(text.len() + 1).unwrap_or(u8::MAX)];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

/// What the table should hold; nothing when no bridge is in use.
fn chains(networks: &[Network], leases: &[Lease]) -> Vec<Chain> {
    let mut active: Vec<&Network> = networks
        .iter()
        .filter(|n| n.driver == Driver::Bridge && leases.iter().any(|lease| lease.network == n.id))
        .collect();
    active.sort_by(|a, b| a.id.cmp(&b.id));
    if active.is_empty() {
        return Vec::new();
    }
    let publish = published(&active, leases);
    let mut chains = Vec::new();
    let base = |name, kind, hook, priority, rules| Chain { name, base: Some((kind, hook, priority)), rules };
    // Also without a port: `route_localnet` stays on a bridge that once had one.
    chains.push(base("raw", ChainKind::Filter, Hook::Prerouting, RAW, loopback_guard(&active)));
    if !publish.is_empty() {
        let into = || vec![vec![Part::DestinationIsLocal, Part::Jump("publish")]];
        chains.push(Chain { name: "publish", base: None, rules: publish });
        chains.push(base("prerouting", ChainKind::Nat, Hook::Prerouting, DESTINATION, into()));
        chains.push(base("output", ChainKind::Nat, Hook::Output, DESTINATION, into()));
    }
    chains.push(base("forward", ChainKind::Filter, Hook::Forward, FILTER, forward(&active)));
    chains.push(base("postrouting", ChainKind::Nat, Hook::Postrouting, SOURCE, postrouting(&active)));
    chains
}

fn loopback() -> Option<IpNet> {
    Ipv4Net::new(std::net::Ipv4Addr::new(127, 0, 0, 0), 8).ok().map(IpNet::from)
}

/// Ports published on 127.0.0.1 need `route_localnet` on the bridge, which would let containers talk to what listens on
/// the host's loopback addresses. They may not.
fn loopback_guard(active: &[&Network]) -> Vec<Vec<Part>> {
    let Some(loopback) = loopback() else { return Vec::new() };
    let from = |network: &&Network| Part::From(network.interface.clone());
    active
        .iter()
        .flat_map(|network| {
            [
                vec![from(network), Part::Destination(loopback), Part::Drop],
                vec![from(network), Part::Source(loopback), Part::Drop],
            ]
        })
        .collect()
}

/// Who may talk to whom. The first accepting rule ends it; what no rule speaks of is none of our business.
fn forward(active: &[&Network]) -> Vec<Vec<Part>> {
    let from = |network: &&Network| Part::From(network.interface.clone());
    let to = |network: &&Network| Part::To(network.interface.clone());
    let mut rules = Vec::new();
    for network in active {
        rules.push(vec![from(network), to(network), Part::Accept]);
    }
    for network in active.iter().filter(|network| network.internal) {
        rules.push(vec![from(network), Part::Drop]);
        rules.push(vec![to(network), Part::Drop]);
    }
    rules.push(vec![Part::Established, Part::Accept]);
    rules.push(vec![Part::DestinationReplaced, Part::Accept]);
    // Other networks, and what the world sends to a container's own address.
    for network in active {
        rules.push(vec![to(network), Part::Drop]);
    }
    rules
}

fn postrouting(active: &[&Network]) -> Vec<Vec<Part>> {
    let mut rules = Vec::new();
    for network in active {
        let to = || Part::To(network.interface.clone());
        for subnet in network.subnets.iter().map(|subnet| subnet.subnet) {
            if let (IpNet::V4(_), Some(loopback)) = (subnet, loopback()) {
                // From the host to a port published on 127.0.0.1: the answer must find back.
                rules.push(vec![to(), Part::Source(loopback), Part::Masquerade]);
            }
            // From a container to a port published for its own network: the answer must come this way.
            rules.push(vec![to(), Part::Source(subnet), Part::DestinationReplaced, Part::Masquerade]);
            if network.masquerades() {
                rules.push(vec![
                    Part::Source(subnet),
                    Part::NotTo(network.interface.clone()),
                    Part::Masquerade,
                ]);
            }
        }
    }
    rules
}

/// One rule for each published port, or for each range whose ports stay what they are.
fn published(active: &[&Network], leases: &[Lease]) -> Vec<Vec<Part>> {
    let mut all: Vec<(Published, IpAddr)> = Vec::new();
    for network in active.iter().filter(|network| !network.internal) {
        for lease in leases.iter().filter(|lease| lease.network == network.id) {
            for port in &lease.ports {
                let target = match port.host_ip {
                    IpAddr::V4(_) => lease.ipv4.map(IpAddr::from),
                    IpAddr::V6(_) => lease.ipv6.map(IpAddr::from),
                };
                all.extend(target.map(|target| (*port, target)));
            }
        }
    }
    // Those for one address before those for all.
    all.sort_by_key(|(port, target)| {
        (port.host_ip.is_unspecified(), port.host_ip, port.protocol, *target, port.host_port)
    });
    let mut rules = Vec::new();
    let mut rest = all.as_slice();
    while let Some(((first, target), behind)) = rest.split_first() {
        let stays = first.host_port == first.container_port;
        let mut end = *first;
        let mut count = 0;
        if stays {
            for (port, other) in behind {
                let follows = (port.host_ip, port.protocol, *other)
                    == (first.host_ip, first.protocol, *target)
                    && Some(port.host_port) == end.host_port.checked_add(1)
                    && port.container_port == port.host_port;
                if !follows {
                    break;
                }
                end = *port;
                count += 1;
            }
        }
        rules.push(publish_rule(*first, end.host_port, *target));
        rest = behind.get(count..).unwrap_or_default();
    }
    rules
}

fn publish_rule(port: Published, last: u16, target: IpAddr) -> Vec<Part> {
    let mut rule = Vec::new();
    if port.host_ip.is_unspecified() {
        rule.push(Part::Version4(port.host_ip.is_ipv4()));
    } else {
        rule.push(Part::Destination(IpNet::from(port.host_ip)));
    }
    rule.push(Part::Port(Protocol::number(port.protocol), port.host_port, last));
    let stays = port.host_port == port.container_port;
    rule.push(Part::Redirect(target, (!stays).then_some(port.container_port)));
    rule
}
