//! Which names a container may ask for: those of all networks that it is in.

use std::net::IpAddr;

use crate::document::Network;
use crate::lease::Lease;

/// The networks and leases at one moment.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) networks: Vec<Network>,
    pub(crate) leases: Vec<Lease>,
}

/// Digits of an id that are a name too.
const SHORT_ID: usize = 12;

impl Names {
    /// The lease of the one who asks in `network`; nobody's when the host asks.
    pub(crate) fn asker(&self, network: &str, source: IpAddr) -> Option<&Lease> {
        self.leases.iter().find(|lease| lease.network == network && lease.addresses().any(|ip| ip == source))
    }

    /// Whether `source` may ask in `network` at all: one of its containers, or the host itself, which asks from the address
    /// that it asks. Whoever else reaches the gateway (another network's container, a machine that has a route) may not.
    pub(crate) fn admits(&self, network: &str, source: IpAddr) -> bool {
        let is_host =
            |n: &Network| n.id == network && n.subnets.iter().any(|subnet| subnet.gateway == source);
        self.asker(network, source).is_some() || self.networks.iter().any(is_host)
    }

    /// The networks whose names the one who asks may know.
    fn visible<'a>(&'a self, network: &'a str, asker: Option<&'a Lease>) -> Vec<&'a Network> {
        let member = |id: &str| {
            asker.is_some_and(|asker| {
                self.leases.iter().any(|lease| lease.container == asker.container && lease.network == id)
            })
        };
        self.networks.iter().filter(|n| n.names && (n.id == network || member(&n.id))).collect()
    }

    /// The addresses of a name; `None` when no container has it.
    pub(crate) fn addresses(&self, network: &str, asker: Option<&Lease>, name: &str) -> Option<Vec<IpAddr>> {
        let mut found: Option<Vec<IpAddr>> = None;
        for network in self.visible(network, asker) {
            let suffix = format!(".{}", network.name.to_ascii_lowercase());
            let bare = name.strip_suffix(&suffix).unwrap_or(name);
            for lease in self.leases.iter().filter(|lease| lease.network == network.id) {
                let is = |wanted: &str| {
                    lease.names.iter().any(|own| own.eq_ignore_ascii_case(wanted))
                        || lease.container.get(..SHORT_ID) == Some(wanted)
                };
                if is(name) || is(bare) {
                    found.get_or_insert_default().extend(lease.addresses());
                }
            }
        }
        found
    }

    /// The name of an address: `Some(None)` for one of these networks that nobody has.
    pub(crate) fn name(
        &self,
        network: &str,
        asker: Option<&Lease>,
        address: IpAddr,
    ) -> Option<Option<String>> {
        let networks = self.visible(network, asker);
        let home =
            networks.iter().find(|n| n.subnets.iter().any(|subnet| subnet.subnet.contains(&address)))?;
        let owner = self
            .leases
            .iter()
            .find(|lease| lease.network == home.id && lease.addresses().any(|ip| ip == address));
        Some(owner.map(|lease| format!("{}.{}", lease.name(), home.name)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::document::{Driver, Subnet};
    use crate::mac::Mac;

    fn network(name: &str, subnet: &str) -> Network {
        let subnet = subnet.parse().unwrap_or_else(|e| panic!("{e}"));
        Network {
            name: name.into(),
            id: format!("id-{name}"),
            created: String::new(),
            driver: Driver::Bridge,
            interface: String::new(),
            subnets: vec![Subnet { subnet, gateway: subnet.network(), range: None }],
            internal: false,
            names: true,
            options: std::collections::BTreeMap::new(),
            labels: std::collections::BTreeMap::new(),
        }
    }

    fn lease(container: &str, network: &str, names: &[&str], last: [u8; 2]) -> Lease {
        let ipv4 = Ipv4Addr::new(10, 1, last[0], last[1]);
        Lease {
            container: container.into(),
            network: format!("id-{network}"),
            endpoint: String::new(),
            names: names.iter().map(|n| (*n).to_owned()).collect(),
            host_interface: String::new(),
            interface: String::new(),
            mac: Mac::of(ipv4),
            ipv4: Some(ipv4),
            ipv6: None,
            ports: Vec::new(),
            dns: Vec::new(),
        }
    }

    #[test]
    fn a_container_sees_the_names_of_its_networks_and_no_others() {
        let names = Names {
            networks: vec![
                network("a", "10.1.1.0/24"),
                network("b", "10.1.2.0/24"),
                network("c", "10.1.3.0/24"),
            ],
            leases: vec![
                lease("1111111111111111", "a", &["both"], [1, 2]),
                lease("1111111111111111", "b", &["both"], [2, 2]),
                lease("2222222222222222", "b", &["Web", "www"], [2, 3]),
                lease("3333333333333333", "b", &["web2", "www"], [2, 4]),
                lease("4444444444444444", "c", &["secret"], [3, 2]),
            ],
        };
        let asker = names.asker("id-a", Ipv4Addr::new(10, 1, 1, 2).into());
        let ask = |name: &str| {
            names
                .addresses("id-a", asker, name)
                .map(|found| found.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(ask("web").as_deref(), Some(&["10.1.2.3".to_owned()][..]));
        assert_eq!(ask("web.b").as_deref(), Some(&["10.1.2.3".to_owned()][..]));
        assert_eq!(ask("222222222222").as_deref(), Some(&["10.1.2.3".to_owned()][..]));
        assert_eq!(ask("www").map(|found| found.len()), Some(2));
        assert_eq!(ask("secret"), None);
        assert_eq!(names.addresses("id-a", None, "web"), None);
        for (source, is_admitted) in [
            ([10, 1, 1, 2], true),
            ([10, 1, 1, 0], true),
            ([10, 1, 2, 3], false),
            ([10, 1, 1, 9], false),
            ([192, 0, 2, 1], false),
        ] {
            assert_eq!(names.admits("id-a", Ipv4Addr::from(source).into()), is_admitted, "{source:?}");
        }
        let name = |last| names.name("id-a", asker, Ipv4Addr::new(10, 1, 2, last).into());
        assert_eq!(name(3), Some(Some("Web.b".into())));
        assert_eq!(name(9), Some(None));
        assert_eq!(names.name("id-a", asker, Ipv4Addr::new(10, 1, 3, 2).into()), None);
    }
}
