//! What a container's `/etc/resolv.conf` and `/etc/hosts` say, as functions of what was asked for.

use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use crate::error::{Error, Result};

/// Name servers for a container whose host has only such as it cannot reach. docker's choice.
const PUBLIC: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)), IpAddr::V4(Ipv4Addr::new(8, 8, 4, 4))];
/// Where systemd-resolved keeps what it asks itself.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// The resolver's settings of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostResolver {
    /// `nameserver`
    pub servers: Vec<IpAddr>,
    /// `search`, or `domain`
    pub search: Vec<String>,
    /// `options`
    pub options: Vec<String>,
}

impl HostResolver {
    /// Reads a resolv.conf. One that is missing says nothing.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        Self::parse(&fs::read_to_string(path).unwrap_or_default())
    }

    /// The host's settings as a container in another network namespace can use them: where the host asks a stub of its
    /// own, those behind the stub.
    #[must_use]
    pub fn for_containers() -> Self {
        let own = Self::read(Path::new("/etc/resolv.conf"));
        if own.servers == [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53))] {
            let behind = Self::read(Path::new(BEHIND_RESOLVED));
            if !behind.servers.is_empty() {
                return behind;
            }
        }
        own
    }

    /// As [`read`](Self::read), of a text.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // An address of one link is written with the interface's name behind it; elsewhere it means nothing.
                    found.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()));
                }
                // The last one counts.
                Some("search" | "domain") => found.search = words.map(str::to_owned).collect(),
                Some("options") => found.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        found
    }
}

/// `--dns`, `--dns-search`, `--dns-option`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers.
    pub servers: Vec<IpAddr>,
    /// Search domains; a single `.` for none.
    pub search: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

/// A container's network, as far as its resolv.conf depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach<'a> {
    /// The host's own: what the host can ask, the container can.
    Host,
    /// A network without names of its own: loopback addresses are not the host's.
    Plain,
    /// A network with name servers. `--dns` is for them (see [`Request::dns`](crate::Request)).
    Named(&'a [IpAddr]),
}

/// The text of a container's resolv.conf.
#[must_use]
pub fn resolv_conf(host: &HostResolver, dns: &Dns, reach: Reach<'_>) -> String {
    let servers = match reach {
        Reach::Named(servers) if !servers.is_empty() => servers.to_vec(),
        _ if !dns.servers.is_empty() => dns.servers.clone(),
        Reach::Host => host.servers.clone(),
        Reach::Plain | Reach::Named(_) => {
            let reachable: Vec<IpAddr> =
                host.servers.iter().copied().filter(|ip| !ip.is_loopback()).collect();
            if reachable.is_empty() { PUBLIC.to_vec() } else { reachable }
        }
    };
    let search = match dns.search.as_slice() {
        [] => host.search.clone(),
        [dot] if dot == "." => Vec::new(),
        search => search.to_vec(),
    };
    let options = if dns.options.is_empty() { &host.options } else { &dns.options };
    let mut text = String::new();
    if !search.is_empty() {
        text.push_str("search ");
        text.push_str(&search.join(" "));
        text.push('\n');
    }
    for server in servers {
        // Writing to a text cannot fail.
        writeln!(text, "nameserver {server}").ok();
    }
    if !options.is_empty() {
        text.push_str("options ");
        text.push_str(&options.join(" "));
        text.push('\n');
    }
    text
}

/// Where a name of `--add-host` leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostAddress {
    /// An address.
    Address(IpAddr),
    /// `host-gateway`: the host, as the container reaches it.
    Gateway,
}

/// Reads one `--add-host NAME:ADDRESS` or `NAME=ADDRESS`.
///
/// # Errors
/// docker's words for what is wrong with it.
pub fn parse_add_host(text: &str) -> Result<(String, HostAddress)> {
    let (name, address) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .filter(|(name, _)| !name.is_empty() && !name.contains(char::is_whitespace))
        .ok_or_else(|| Error::Invalid(format!("bad format for add-host: {text:?}")))?;
    if address == "host-gateway" {
        return Ok((name.to_owned(), HostAddress::Gateway));
    }
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    let address =
        bare.parse().map_err(|_| Error::Invalid(format!("invalid IP address in add-host: {address:?}")))?;
    Ok((name.to_owned(), HostAddress::Address(address)))
}

/// The text of a container's hosts file.
///
/// `own` are its addresses, `names` its host name and others for them; `gateway` is what `host-gateway` means.
///
/// # Errors
/// When `host-gateway` is asked for and there is none.
pub fn hosts(
    own: &[IpAddr],
    names: &[&str],
    extra: &[(String, HostAddress)],
    gateway: Option<IpAddr>,
) -> Result<String> {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    for (name, address) in extra {
        let address = match address {
            HostAddress::Address(address) => *address,
            HostAddress::Gateway => gateway.ok_or_else(|| {
                Error::Invalid(format!(
                    "--add-host {name}:host-gateway: the container's network has no gateway"
                ))
            })?,
        };
        writeln!(text, "{address}\t{name}").ok();
    }
    if !names.is_empty() {
        for address in own {
            writeln!(text, "{address}\t{}", names.join(" ")).ok();
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn resolv_conf_by_network() {
        let host = HostResolver::parse(
            "# made\nnameserver 127.0.0.1\nnameserver 192.0.2.1 # x\nnameserver fe80::1%eth0\ndomain old\nsearch a.example b.example\noptions edns0 trust-ad\nbogus\n",
        );
        let none = Dns::default();
        let common = "search a.example b.example\n";
        let options = "options edns0 trust-ad\n";
        assert_eq!(
            resolv_conf(&host, &none, Reach::Host),
            format!("{common}nameserver 127.0.0.1\nnameserver 192.0.2.1\n{options}")
        );
        assert_eq!(
            resolv_conf(&host, &none, Reach::Plain),
            format!("{common}nameserver 192.0.2.1\n{options}")
        );
        let own = [ip("10.89.0.1")];
        let dns =
            Dns { servers: vec![ip("192.0.2.9")], search: vec![".".into()], options: vec!["ndots:2".into()] };
        assert_eq!(resolv_conf(&host, &dns, Reach::Named(&own)), "nameserver 10.89.0.1\noptions ndots:2\n");
        assert_eq!(resolv_conf(&host, &dns, Reach::Plain), "nameserver 192.0.2.9\noptions ndots:2\n");
        let stub = HostResolver::parse("nameserver 127.0.0.53");
        assert_eq!(resolv_conf(&stub, &none, Reach::Plain), "nameserver 8.8.8.8\nnameserver 8.8.4.4\n");
    }

    #[test]
    fn hosts_with_and_without_gateway() {
        let extra: Vec<_> = ["db:192.0.2.7", "six=[2001:db8::1]", "colon:2001:db8::2", "up:host-gateway"]
            .iter()
            .filter_map(|t| parse_add_host(t).ok())
            .collect();
        assert_eq!(extra.len(), 4);
        let text =
            hosts(&[ip("10.88.0.2")], &["c0ffee", "web"], &extra, Some(ip("10.88.0.1"))).unwrap_or_default();
        assert!(
            text.ends_with(
                "192.0.2.7\tdb\n2001:db8::1\tsix\n2001:db8::2\tcolon\n10.88.0.1\tup\n10.88.0.2\tc0ffee web\n"
            ),
            "{text}"
        );
        assert!(hosts(&[], &[], &extra, None).is_err());
        for (bad, words) in [
            ("x", "bad format for add-host: \"x\""),
            (":1.2.3.4", "bad format for add-host: \":1.2.3.4\""),
            ("x:", "invalid IP address in add-host: \"\""),
            ("x:y", "invalid IP address in add-host: \"y\""),
        ] {
            assert_eq!(parse_add_host(bad).err().map(|e| e.to_string()).as_deref(), Some(words));
        }
    }
}
