//! Which requests go through a proxy. The variables mean what they mean to docker: one proxy per scheme, and
//! `NO_PROXY` with host names, domains, addresses and networks. This machine itself is always reached directly.

use std::net::IpAddr;

use super::environment::Environment;

/// The proxy for `scheme://host:port`.
pub(super) fn for_host<'a>(environment: &'a Environment, https: bool, authority: &str) -> Option<&'a str> {
    let proxy = if https { &environment.https_proxy } else { &environment.http_proxy };
    let proxy = proxy.as_deref()?;
    let excepted = environment.no_proxy.as_deref().unwrap_or_default();
    (!is_loopback(authority) && !is_excepted(excepted, authority)).then_some(proxy)
}

/// Host and port of `HOST`, `HOST:PORT`, `[V6]` or `[V6]:PORT`; the brackets are taken off.
pub(super) fn host_and_port(authority: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (host, rest.strip_prefix(':'));
    }
    match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    }
}

/// True for this machine by name or address.
pub(super) fn is_loopback(authority: &str) -> bool {
    let (host, _) = host_and_port(authority);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_excepted(list: &str, authority: &str) -> bool {
    let (host, port) = host_and_port(authority);
    let host = host.to_ascii_lowercase();
    let address = host.parse::<IpAddr>().ok();
    list.split([',', ' ']).filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let (Some(address), Some((network, bits))) = (address, entry.split_once('/')) {
            return in_network(address, network, bits);
        }
        let (name, only_port) = host_and_port(entry);
        if only_port.is_some() && only_port != port {
            return false;
        }
        let name = name.to_ascii_lowercase();
        if address.is_some() {
            return name.parse::<IpAddr>().ok() == address;
        }
        // ".example.com" means what is below it, "example.com" itself as well.
        let name = name.strip_prefix('*').unwrap_or(&name);
        match name.strip_prefix('.') {
            Some(domain) => host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
            None => host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')),
        }
    })
}

/// Whether `address` is in `network/bits`.
pub(super) fn in_network(address: IpAddr, network: &str, bits: &str) -> bool {
    let (Ok(network), Ok(bits)) = (network.parse::<IpAddr>(), bits.parse::<u32>()) else { return false };
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            u32::from(a) & mask == u32::from(n) & mask
        }
        (IpAddr::V6(a), IpAddr::V6(n)) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            u128::from(a) & mask == u128::from(n) & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_by_host_domain_port_and_network() {
        let list = "one.example,.two.example:5000, 10.0.0.0/8,fd00::/8,192.0.2.7,*.three.example";
        let table = [
            ("one.example", true),
            ("ONE.example:443", true),
            ("x.one.example", true),
            ("xone.example", false),
            ("two.example:5000", false),
            ("x.two.example:5000", true),
            ("x.two.example", false),
            ("10.1.2.3:5000", true),
            ("11.1.2.3", false),
            ("[fd00::1]:5000", true),
            ("[fe00::1]", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("x.three.example", true),
        ];
        for (host, excepted) in table {
            assert_eq!(is_excepted(list, host), excepted, "{host}");
        }
        assert!(is_excepted("*", "anything"));
        assert!(in_network("1.2.3.4".parse().unwrap(), "0.0.0.0", "0"));
    }

    #[test]
    fn each_scheme_has_its_proxy_and_loopback_none() {
        let environment = Environment {
            https_proxy: Some("http://p:1".into()),
            no_proxy: Some("quay.io".into()),
            ..Environment::default()
        };
        assert_eq!(for_host(&environment, true, "docker.io"), Some("http://p:1"));
        assert_eq!(for_host(&environment, false, "docker.io"), None);
        assert_eq!(for_host(&environment, true, "quay.io"), None);
        for host in ["localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:80", "LOCALHOST"] {
            assert_eq!(for_host(&environment, true, host), None, "{host}");
        }
    }
}
