//! The column PORTS of `ps`, as docker has it: ports that follow on each other are one range.

use std::net::IpAddr;

use layerfs_network::Lease;

use super::config::{ContainerConfig, NetworkMode};
use super::network::ports_of;

/// One port of a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Port {
    container: u16,
    /// Where it is published: the address, and the port or the range that one is taken from.
    host: Option<(IpAddr, String)>,
    protocol: String,
}

/// What is published, then what is exposed only.
pub(super) fn ports_column(config: &ContainerConfig, leases: &[Lease]) -> String {
    let mut ports: Vec<Port> = Vec::new();
    for port in leases.iter().filter(|lease| lease.container == config.id).flat_map(|lease| &lease.ports) {
        ports.push(Port {
            container: port.container_port,
            host: Some((port.host_ip, port.host_port.to_string())),
            protocol: port.protocol.to_string(),
        });
    }
    if config.network == NetworkMode::Userland {
        for mapping in &config.networking.ports {
            let host = mapping.host.map_or_else(|| mapping.container.port.to_string(), ports_of);
            ports.push(Port {
                container: mapping.container.port,
                host: Some((mapping.host_ip.unwrap_or(IpAddr::from([0, 0, 0, 0])), host)),
                protocol: mapping.container.protocol.to_string(),
            });
        }
    }
    for text in &config.exposed {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let Ok(container) = number.parse() else { continue };
        if !ports.iter().any(|port| port.container == container && port.protocol == protocol) {
            ports.push(Port { container, host: None, protocol: protocol.to_owned() });
        }
    }
    column(ports)
}

/// Docker joins ports only that have the same number on both sides, and shows the others behind them.
fn column(mut ports: Vec<Port>) -> String {
    ports.sort();
    let mut ranges: Vec<(Port, u16)> = Vec::new();
    let mut single = Vec::new();
    for port in ports {
        if let Some((address, number)) = &port.host
            && *number != port.container.to_string()
        {
            let address = bracketed(address);
            single.push(format!("{address}:{number}->{}/{}", port.container, port.protocol));
            continue;
        }
        let address = |port: &Port| port.host.as_ref().map(|(address, _)| *address);
        let of_its_kind = ranges.iter_mut().find(|(first, last)| {
            (address(first), &first.protocol) == (address(&port), &port.protocol)
                && last.checked_add(1) == Some(port.container)
        });
        match of_its_kind {
            Some((_, last)) => *last = port.container,
            None => ranges.push((port.clone(), port.container)),
        }
    }
    // What is published goes before what is only exposed.
    ranges.sort_by_key(|(first, _)| first.host.is_none());
    let exposed_from = ranges.iter().position(|(first, _)| first.host.is_none()).unwrap_or(ranges.len());
    let text = |(first, last): &(Port, u16)| {
        let numbers = ports_of((first.container, *last));
        match &first.host {
            Some((address, _)) => format!("{}:{numbers}->{numbers}/{}", bracketed(address), first.protocol),
            None => format!("{numbers}/{}", first.protocol),
        }
    };
    let mut shown: Vec<String> = ranges.iter().map(text).collect();
    shown.splice(exposed_from..exposed_from, single);
    shown.join(", ")
}

fn bracketed(address: &IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(container: u16, host: Option<(&str, &str)>, protocol: &str) -> Port {
        let host = host.map(|(address, number)| (address.parse().unwrap(), number.to_owned()));
        Port { container, host, protocol: protocol.to_owned() }
    }

    #[test]
    fn ports_that_follow_on_each_other_are_a_range() {
        let any = |number: u16| (port(number, None, "tcp").container, number.to_string());
        let mut ports: Vec<Port> = (8000..=8010)
            .map(any)
            .flat_map(|(number, text)| {
                [port(number, Some(("0.0.0.0", &text)), "tcp"), port(number, Some(("::", &text)), "tcp")]
            })
            .collect();
        ports.reverse();
        assert_eq!(column(ports), "0.0.0.0:8000-8010->8000-8010/tcp, [::]:8000-8010->8000-8010/tcp");
        let mixed = vec![
            port(80, Some(("0.0.0.0", "8080")), "tcp"),
            port(53, Some(("127.0.0.1", "53")), "udp"),
            port(54, Some(("127.0.0.1", "54")), "tcp"),
            port(56, Some(("127.0.0.1", "56")), "tcp"),
            port(9000, None, "tcp"),
            port(9001, None, "tcp"),
        ];
        assert_eq!(
            column(mixed),
            "127.0.0.1:53->53/udp, 127.0.0.1:54->54/tcp, 127.0.0.1:56->56/tcp, 0.0.0.0:8080->80/tcp, 9000-9001/tcp"
        );
        assert_eq!(column(vec![port(65535, None, "udp")]), "65535/udp");
        assert_eq!(column(Vec::new()), "");
    }
}
