//! Published ports: docker's `-p [IP:][HOST[-RANGE]]:CONTAINER[-RANGE][/PROTOCOL]` and `--expose`, as values.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A transport protocol that can be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its number in a packet's header.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    fn parse(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" | "" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Err(Error::Invalid(
                "ports of SCTP cannot be published: only tcp and udp (within a network SCTP works)".into(),
            )),
            _ => Err(Error::Invalid(format!("invalid proto: {text}"))),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of a container: `80/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExposedPort {
    /// Its number.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

impl fmt::Display for ExposedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol)
    }
}

/// One port that is to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// The address of the host; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The ports of the host from which one is taken: both ends belong to it. `None`: any free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<(u16, u16)>,
    /// The container's port.
    pub container: ExposedPort,
}

/// A port that is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Published {
    /// The address of the host; unspecified for all of its kind.
    pub host_ip: IpAddr,
    /// The port of the host.
    pub host_port: u16,
    /// The container's port.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// Reads one `-p`. A range gives one mapping for each port.
///
/// # Errors
/// docker's words for what is wrong with it.
pub fn parse_publish(text: &str) -> Result<Vec<PortMapping>> {
    let bad_port = |what: &str, port: &str| Error::Invalid(format!("invalid {what}: {port}"));
    let (text_without, protocol) = match text.rsplit_once('/') {
        Some((rest, protocol)) => (rest, protocol),
        None => (text, ""),
    };
    let (ip, rest) = split_address(text_without)?;
    let (host, container) = match rest.rsplit_once(':') {
        Some((host, container)) => (host, container),
        None => ("", rest),
    };
    if container.is_empty() {
        return Err(Error::Invalid(format!("no port specified: {text}<empty>")));
    }
    let host_ip = match ip {
        None | Some("") => None,
        Some(ip) => Some(ip.parse().map_err(|_| Error::Invalid(format!("invalid IP address: {ip}")))?),
    };
    let containers = range(container).ok_or_else(|| bad_port("containerPort", container))?;
    let hosts = match host {
        "" => None,
        host => Some(
            range(host)
                .or_else(|| (host == "0").then_some((0, 0)))
                .ok_or_else(|| bad_port("hostPort", host))?,
        ),
    };
    let protocol = Protocol::parse(protocol)?;
    let length = |(first, last): (u16, u16)| u32::from(last) - u32::from(first) + 1;
    if let Some(hosts) = hosts
        && length(hosts) != length(containers)
        && length(containers) != 1
    {
        return Err(Error::Invalid(format!(
            "invalid ranges specified for container and host Ports: {container} and {host}"
        )));
    }
    let mapping = |port: u16| {
        let host = match hosts {
            None | Some((0, _)) => None,
            // One port of the container, a range of the host: the first free one.
            Some(hosts) if length(containers) == 1 => Some(hosts),
            Some((first, _)) => Some((first + (port - containers.0), first + (port - containers.0))),
        };
        PortMapping { host_ip, host, container: ExposedPort { port, protocol } }
    };
    Ok((containers.0..=containers.1).map(mapping).collect())
}

/// Reads one `--expose`, or a port of an image: `80`, `80/udp`, `8000-8010`.
///
/// # Errors
/// docker's words for what is wrong with it.
pub fn parse_expose(text: &str) -> Result<Vec<ExposedPort>> {
    let bad = || Error::Invalid(format!("invalid range format for --expose: {text}"));
    if text.contains(':') {
        return Err(Error::Invalid(format!("invalid port format for --expose: {text}")));
    }
    let (ports, protocol) = text.split_once('/').unwrap_or((text, ""));
    let (first, last) = range(ports).ok_or_else(bad)?;
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        // Exposing says what a container listens on; nothing is done with what cannot be published.
        "sctp" => return Ok(Vec::new()),
        _ => return Err(Error::Invalid(format!("invalid proto: {protocol}"))),
    };
    Ok((first..=last).map(|port| ExposedPort { port, protocol }).collect())
}

/// The address at the front, which may be in brackets, and the rest.
fn split_address(text: &str) -> Result<(Option<&str>, &str)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (ip, rest) =
            rest.split_once("]:").ok_or_else(|| Error::Invalid(format!("invalid IP address: {text}")))?;
        return Ok((Some(ip), rest));
    }
    // HOST:CONTAINER are the last two parts; everything before them is the address.
    let Some((front, container)) = text.rsplit_once(':') else { return Ok((None, text)) };
    match front.rsplit_once(':') {
        None => Ok((None, text)),
        Some((ip, host)) => {
            Ok((Some(ip), text.get(text.len() - host.len() - container.len() - 1..).unwrap_or(text)))
        }
    }
}

/// `80` or `80-90`; zero is no port.
fn range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| -> Option<u16> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().ok())?.filter(|port| *port != 0)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> String {
        match parse_publish(text) {
            Ok(mappings) => mappings
                .iter()
                .map(|m| {
                    let ip = m.host_ip.map_or_else(|| "*".into(), |ip| ip.to_string());
                    let host = match m.host {
                        None => "?".into(),
                        Some((first, last)) if first == last => first.to_string(),
                        Some((first, last)) => format!("{first}-{last}"),
                    };
                    format!("{ip}|{host}|{}", m.container)
                })
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn forms_of_publish() {
        for (text, expected) in [
            ("80", "*|?|80/tcp"),
            ("8080:80", "*|8080|80/tcp"),
            ("8080:80/udp", "*|8080|80/udp"),
            ("8080:80/TCP", "*|8080|80/tcp"),
            ("127.0.0.1:8080:80", "127.0.0.1|8080|80/tcp"),
            ("127.0.0.1::80", "127.0.0.1|?|80/tcp"),
            (":80", "*|?|80/tcp"),
            ("::80", "*|?|80/tcp"),
            ("0:80", "*|?|80/tcp"),
            ("[::1]:8080:80", "::1|8080|80/tcp"),
            ("::1:8080:80", "::1|8080|80/tcp"),
            ("7000-7002:80-82", "*|7000|80/tcp *|7001|81/tcp *|7002|82/tcp"),
            ("7000-7009:80", "*|7000-7009|80/tcp"),
            ("80-81/udp", "*|?|80/udp *|?|81/udp"),
            ("65535:65535", "*|65535|65535/tcp"),
            ("", "no port specified: <empty>"),
            ("8080:", "no port specified: 8080:<empty>"),
            ("8080:x", "invalid containerPort: x"),
            ("8080:0", "invalid containerPort: 0"),
            ("8080:65536", "invalid containerPort: 65536"),
            ("x:80", "invalid hostPort: x"),
            ("70000:80", "invalid hostPort: 70000"),
            ("82-80:1-3", "invalid hostPort: 82-80"),
            ("localhost:8080:80", "invalid IP address: localhost"),
            ("1.2.3:8080:80", "invalid IP address: 1.2.3"),
            ("[::1:80", "invalid IP address: [::1:80"),
            ("80/icmp", "invalid proto: icmp"),
            ("7000-7001:80-82", "invalid ranges specified for container and host Ports: 80-82 and 7000-7001"),
            (
                "80:80/sctp",
                "ports of SCTP cannot be published: only tcp and udp (within a network SCTP works)",
            ),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn forms_of_expose() {
        let count = |text| parse_expose(text).map(|ports| ports.len()).map_err(|e| e.to_string());
        assert_eq!(count("80"), Ok(1));
        assert_eq!(count("8000-8009/udp"), Ok(10));
        assert_eq!(count("80:80"), Err("invalid port format for --expose: 80:80".into()));
        assert_eq!(count("x"), Err("invalid range format for --expose: x".into()));
    }

    proptest! {
        #[test]
        fn any_text_gives_ports_or_words(text in "[0-9a-z:/.\\[\\]-]{0,24}") {
            if let Ok(mappings) = parse_publish(&text) {
                prop_assert!(!mappings.is_empty());
                prop_assert!(mappings.iter().all(|m| m.container.port != 0));
            }
        }
    }
}
