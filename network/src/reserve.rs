//! Host ports: which one a container gets, and keeping it from other programs.
//!
//! The packet filter takes packets for a published port before any socket sees them. A socket is bound to the port all
//! the same, so that no other program gets it and a port that another has is refused. It does not listen.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

use crate::error::{Error, Result};
use crate::lease::Lease;
use crate::ports::{PortMapping, Protocol, Published};
use crate::sysctl;

/// Sockets that keep published ports from other programs. Whoever stays with the container keeps it (or the
/// descriptors, which may be passed on); when they are closed, the ports still work.
#[derive(Debug, Default)]
pub struct Reservation {
    sockets: Vec<OwnedFd>,
}

impl Reservation {
    /// The sockets.
    #[must_use]
    pub fn into_sockets(self) -> Vec<OwnedFd> {
        self.sockets
    }
}

/// Finds a host port for each mapping. `v4` and `v6` say which addresses the container has.
pub(crate) fn reserve(
    mappings: &[PortMapping],
    default: Option<IpAddr>,
    (v4, v6): (bool, bool),
    leases: &[Lease],
) -> Result<(Vec<Published>, Reservation)> {
    let mut published: Vec<Published> = Vec::new();
    let mut reservation = Reservation::default();
    let ephemeral = sysctl::ephemeral_ports();
    for mapping in mappings {
        let addresses = match mapping.host_ip.or(default) {
            Some(ip @ IpAddr::V6(address)) if !v6 => {
                if address.is_unspecified() && v4 {
                    vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)]
                } else {
                    return Err(Error::Invalid(format!(
                        "port {} cannot be published on {ip}: the container has no address of IPv6 (make the network with --ipv6)",
                        mapping.container
                    )));
                }
            }
            Some(ip) => vec![ip],
            None => {
                let both = [(v4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)), (v6, IpAddr::V6(Ipv6Addr::UNSPECIFIED))];
                both.into_iter().filter(|(has, _)| *has).map(|(_, ip)| ip).collect()
            }
        };
        let candidates = mapping.host.unwrap_or(ephemeral);
        let any = candidates.0 != candidates.1;
        let span = u32::from(candidates.1 - candidates.0) + 1;
        // Free ports are sought from a place by chance: two containers that start at once do not try the same ones.
        let offset =
            if mapping.host.is_none() { u32::from_ne_bytes(crate::store::random_bytes()?) % span } else { 0 };
        let mut refused = None;
        let mut found = None;
        for step in 0..span {
            let at = u32::from(candidates.0) + (offset + step) % span;
            let Ok(port) = u16::try_from(at) else { continue };
            match one_port(&addresses, port, mapping, leases, &published) {
                Ok(sockets) => {
                    found = Some((port, sockets));
                    break;
                }
                Err(error) if any && is_taken(&error) => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        let Some((port, sockets)) = found else {
            return Err(match refused {
                Some(error) if mapping.host.is_some() => error,
                _ => Error::Invalid(format!("no host port is free for port {}", mapping.container)),
            });
        };
        reservation.sockets.extend(sockets);
        published.extend(addresses.iter().map(|ip| Published {
            host_ip: *ip,
            host_port: port,
            container_port: mapping.container.port,
            protocol: mapping.container.protocol,
        }));
    }
    Ok((published, reservation))
}

/// Another port may do.
fn is_taken(error: &Error) -> bool {
    match error {
        Error::PortAllocated(_) => true,
        Error::PortTaken { source, .. } => source.kind() == std::io::ErrorKind::AddrInUse,
        _ => false,
    }
}

fn one_port(
    addresses: &[IpAddr],
    port: u16,
    mapping: &PortMapping,
    leases: &[Lease],
    before: &[Published],
) -> Result<Vec<OwnedFd>> {
    let protocol = mapping.container.protocol;
    let others = leases.iter().flat_map(|lease| &lease.ports).chain(before);
    let mut sockets = Vec::new();
    for ip in addresses {
        let address = SocketAddr::new(*ip, port);
        let collides = |other: &Published| {
            other.protocol == protocol
                && other.host_port == port
                && other.host_ip.is_ipv4() == ip.is_ipv4()
                && (other.host_ip == *ip || other.host_ip.is_unspecified() || ip.is_unspecified())
        };
        if others.clone().any(collides) {
            return Err(Error::PortAllocated(address));
        }
        match bind(address, protocol) {
            Ok(socket) => sockets.push(socket),
            // A host without IPv6.
            Err(Errno::AFNOSUPPORT) if ip.is_ipv6() => {}
            Err(errno) => return Err(Error::PortTaken { address, protocol, source: errno.into() }),
        }
    }
    Ok(sockets)
}

fn bind(address: SocketAddr, protocol: Protocol) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let open = || {
        let socket = net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        if address.is_ipv6() {
            net::sockopt::set_ipv6_v6only(&socket, true)?;
        }
        Ok::<_, Errno>(socket)
    };
    let socket = open()?;
    match net::bind(&socket, &address) {
        Ok(()) => Ok(socket),
        // Connections of a program that has just ended keep a port from those who do not ask to share. Listening tells
        // them from a program that is there.
        Err(Errno::ADDRINUSE) if protocol == Protocol::Tcp => {
            let socket = open()?;
            net::sockopt::set_socket_reuseaddr(&socket, true)?;
            net::bind(&socket, &address)?;
            net::listen(&socket, 1)?;
            Ok(socket)
        }
        Err(errno) => Err(errno),
    }
}
