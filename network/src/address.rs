//! Choosing subnets and addresses. Computed from what is given; nothing is looked up here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::document::{NewNetwork, Subnet};
use crate::error::{Error, Result};

/// Whether two networks have an address in common.
pub(crate) fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// The first subnet of version 4 that nobody uses: large ones for the default network, small ones for others.
pub(crate) fn free_v4(default: bool, used: &[IpNet]) -> Option<IpNet> {
    let free = |net: &IpNet| used.iter().all(|other| !overlap(*net, *other));
    let net =
        |a: u8, b: u8, c: u8, prefix| Ipv4Net::new(Ipv4Addr::new(a, b, c, 0), prefix).ok().map(IpNet::from);
    if default {
        let large = (88..=255).filter_map(|b| net(10, b, 0, 16));
        return large.chain((16..32).filter_map(|b| net(172, b, 0, 16))).find(free);
    }
    let small = (89..=255_u8).flat_map(|b| (0..=255_u8).filter_map(move |c| net(10, b, c, 24)));
    small.chain((0..=255).filter_map(|c| net(192, 168, c, 24))).find(free)
}

/// A unique local subnet of version 6 (RFC 4193), made of random bytes.
pub(crate) fn unique_local(random: [u8; 7]) -> Option<IpNet> {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..8].copy_from_slice(&random);
    Ipv6Net::new(Ipv6Addr::from(octets), 64).ok().map(IpNet::from)
}

/// The address after `address`.
pub(crate) fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(address) => address.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

/// Whether a container may have `address`: no network's own address, no broadcast, not the gateway.
fn usable(subnet: &Subnet, address: IpAddr) -> bool {
    let broadcast = match subnet.subnet {
        IpNet::V4(net) if net.prefix_len() < 31 => Some(IpAddr::from(net.broadcast())),
        _ => None,
    };
    let point_to_point = match subnet.subnet {
        IpNet::V4(net) => net.prefix_len() >= 31,
        IpNet::V6(net) => net.prefix_len() >= 127,
    };
    subnet.subnet.contains(&address)
        && address != subnet.gateway
        && Some(address) != broadcast
        && (point_to_point || address != subnet.subnet.network())
}

/// Whether `address` may be given with `--ip`.
pub(crate) fn check_wanted(network: &str, subnet: Option<&Subnet>, address: IpAddr) -> Result<()> {
    let Some(subnet) = subnet else {
        return Err(Error::Invalid(format!("network {network} has no subnet for address {address}")));
    };
    if !subnet.subnet.contains(&address) {
        return Err(Error::Invalid(format!(
            "no configured subnet contains IP address {address}: network {network} has {}",
            subnet.subnet
        )));
    }
    if !usable(subnet, address) {
        return Err(Error::Invalid(format!(
            "address {address} of network {network} is not for containers: it is the gateway's, the subnet's or the broadcast address"
        )));
    }
    Ok(())
}

/// The first free address behind `last`, around the end if need be.
pub(crate) fn allocate(
    subnet: &Subnet,
    last: Option<IpAddr>,
    taken: &dyn Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    let range = subnet.range.unwrap_or(subnet.subnet).trunc();
    let (first, end) = (range.network(), range.broadcast());
    let start = last.and_then(next).filter(|start| range.contains(start)).unwrap_or(first);
    // At most one round; a subnet of version 6 is never full before it is found.
    let behind = std::iter::successors(Some(start), |at| next(*at)).take_while(|at| *at <= end);
    let before = std::iter::successors(Some(first), |at| next(*at)).take_while(|at| *at < start);
    behind.chain(before).find(|address| usable(subnet, *address) && !taken(*address))
}

/// The subnets of a new network. `free` finds one where none was named.
pub(crate) fn subnets(
    new: &NewNetwork,
    used: &[IpNet],
    free: impl Fn(bool) -> Option<IpNet>,
) -> Result<Vec<Subnet>> {
    let mut subnets: Vec<IpNet> = Vec::new();
    for text in &new.subnets {
        let net: IpNet = text.parse().map_err(|_| {
            Error::Invalid(format!("invalid subnet {text:?}: write ADDRESS/PREFIX, for example 10.90.0.0/24"))
        })?;
        if net.trunc() != net {
            return Err(Error::Invalid(format!("invalid subnet {text}: it should be {}", net.trunc())));
        }
        let too_small = match net {
            IpNet::V4(net) => net.prefix_len() > 30,
            IpNet::V6(net) => net.prefix_len() > 126,
        };
        if too_small {
            return Err(Error::Invalid(format!("subnet {net} has no room for a gateway and a container")));
        }
        if subnets.iter().any(|other| other.addr().is_ipv4() == net.addr().is_ipv4()) {
            return Err(Error::Invalid(
                "a network has one subnet of each version: make another network for the other".into(),
            ));
        }
        if let Some(other) = used.iter().find(|other| overlap(net, **other)) {
            return Err(Error::Invalid(format!(
                "Pool overlaps with other one on this address space: {net} and {other}, which another network or the host uses"
            )));
        }
        subnets.push(net);
    }
    let none_left = || {
        Error::Invalid(
            "could not find an available, non-overlapping address pool: name one with --subnet".into(),
        )
    };
    if !subnets.iter().any(|net| net.addr().is_ipv4()) {
        subnets.insert(0, free(false).ok_or_else(none_left)?);
    }
    let wants_v6 = new.ipv6 || subnets.iter().any(|net| net.addr().is_ipv6());
    if wants_v6 && !subnets.iter().any(|net| net.addr().is_ipv6()) {
        subnets.push(free(true).ok_or_else(none_left)?);
    }
    let mut found: Vec<Subnet> = Vec::new();
    for subnet in subnets {
        // The first host address.
        let gateway = next(subnet.network()).ok_or_else(none_left)?;
        found.push(Subnet { subnet, gateway, range: None });
    }
    for text in &new.gateways {
        let gateway: IpAddr =
            text.parse().map_err(|_| Error::Invalid(format!("invalid gateway {text:?}")))?;
        let subnet = found
            .iter_mut()
            .find(|subnet| subnet.subnet.contains(&gateway))
            .ok_or_else(|| Error::Invalid(format!("no matching subnet for gateway {gateway}")))?;
        // Anything but itself; `usable` looks at all else.
        subnet.gateway = subnet.subnet.network();
        if !usable(subnet, gateway) {
            return Err(Error::Invalid(format!(
                "gateway {gateway} is the subnet's own or its broadcast address"
            )));
        }
        subnet.gateway = gateway;
    }
    for text in &new.ranges {
        let range: IpNet = text.parse().map_err(|_| Error::Invalid(format!("invalid IP range {text:?}")))?;
        let subnet = found
            .iter_mut()
            .find(|subnet| subnet.subnet.contains(&range))
            .ok_or_else(|| Error::Invalid(format!("no matching subnet for range {range}")))?;
        subnet.range = Some(range.trunc());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnet(net: &str, gateway: &str, range: Option<&str>) -> Subnet {
        let parse = |text: &str| text.parse::<IpNet>().unwrap_or_else(|e| panic!("{text}: {e}"));
        let gateway = gateway.parse().unwrap_or_else(|e| panic!("{gateway}: {e}"));
        Subnet { subnet: parse(net), gateway, range: range.map(parse) }
    }

    #[test]
    fn addresses_go_round_and_rest() {
        let small = subnet("10.1.0.0/29", "10.1.0.1", None);
        let mut taken: Vec<IpAddr> = Vec::new();
        let mut last = None;
        while let Some(address) = allocate(&small, last, &|a| taken.contains(&a)) {
            taken.push(address);
            last = Some(address);
        }
        let shown: Vec<String> = taken.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]);
        let freed = taken.remove(1);
        assert_eq!(allocate(&small, last, &|a| taken.contains(&a)), Some(freed));
    }

    #[test]
    fn a_range_bounds_what_is_given_out() {
        let ranged = subnet("10.1.0.0/24", "10.1.0.1", Some("10.1.0.128/30"));
        let mut taken: Vec<IpAddr> = Vec::new();
        while let Some(address) = allocate(&ranged, taken.last().copied(), &|a| taken.contains(&a)) {
            taken.push(address);
        }
        let shown: Vec<String> = taken.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.1.0.128", "10.1.0.129", "10.1.0.130", "10.1.0.131"]);
    }

    #[test]
    fn a_subnet_that_is_used_is_passed_over() {
        let used: Vec<IpNet> =
            ["10.88.0.0/16", "10.89.0.0/17"].iter().filter_map(|text| text.parse().ok()).collect();
        assert_eq!(free_v4(true, &used).map(|n| n.to_string()).as_deref(), Some("10.90.0.0/16"));
        assert_eq!(free_v4(false, &used).map(|n| n.to_string()).as_deref(), Some("10.89.128.0/24"));
        let everything = ["0.0.0.0/0".parse().unwrap_or_else(|e| panic!("{e}"))];
        assert_eq!(free_v4(true, &everything), None);
    }

    #[test]
    fn wishes_that_contradict_themselves_are_refused() {
        let with = |subnets: &[&str], gateways: &[&str], ranges: &[&str]| {
            let own = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
            let new = NewNetwork {
                subnets: own(subnets),
                gateways: own(gateways),
                ranges: own(ranges),
                ..NewNetwork::default()
            };
            let used = ["10.5.0.0/16".parse().unwrap_or_else(|e| panic!("{e}"))];
            super::subnets(&new, &used, |_| "10.89.0.0/24".parse().ok()).map_err(|e| e.to_string())
        };
        assert_eq!(with(&[], &[], &[]), Ok(vec![subnet("10.89.0.0/24", "10.89.0.1", None)]));
        assert_eq!(
            with(&["10.9.0.0/16"], &["10.9.0.254"], &["10.9.4.0/24"]),
            Ok(vec![subnet("10.9.0.0/16", "10.9.0.254", Some("10.9.4.0/24"))])
        );
        for (subnets, gateways, ranges, words) in [
            (&["x"][..], &[][..], &[][..], "invalid subnet \"x\""),
            (&["10.9.0.1/16"], &[], &[], "it should be 10.9.0.0/16"),
            (&["10.5.1.0/24"], &[], &[], "Pool overlaps with other one"),
            (&["10.9.0.0/31"], &[], &[], "no room"),
            (&["10.9.0.0/24", "10.10.0.0/24"], &[], &[], "one subnet of each version"),
            (&["10.9.0.0/24"], &["10.10.0.1"], &[], "no matching subnet for gateway 10.10.0.1"),
            (&["10.9.0.0/24"], &["10.9.0.255"], &[], "broadcast"),
            (&["10.9.0.0/24"], &[], &["10.10.0.0/28"], "no matching subnet for range"),
        ] {
            let error = with(subnets, gateways, ranges).err().unwrap_or_default();
            assert!(error.contains(words), "{subnets:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_given_out_is_free_and_inside(
            prefix in 22_u8..=30, last in any::<u32>(), holes in proptest::collection::vec(any::<u8>(), 0..40)
        ) {
            let net = IpNet::from(Ipv4Net::new(Ipv4Addr::new(10, 4, 0, 0), prefix).map_err(|e| TestCaseError::fail(e.to_string()))?);
            let gateway = next(net.network()).ok_or_else(|| TestCaseError::fail("gateway"))?;
            let subnet = Subnet { subnet: net, gateway, range: None };
            let taken = |a: IpAddr| matches!(a, IpAddr::V4(a) if holes.contains(&a.octets()[3]));
            if let Some(found) = allocate(&subnet, Some(Ipv4Addr::from_bits(last).into()), &taken) {
                prop_assert!(net.contains(&found) && found != gateway && !taken(found));
                prop_assert!(found != net.network() && found != net.broadcast());
            } else {
                prop_assert!(net.hosts().all(|a| a == gateway || taken(a)));
            }
        }
    }
}
