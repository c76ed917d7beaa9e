//! Interfaces, addresses and routes (rtnetlink).
//!
//! Numbers from the kernel's `rtnetlink.h`, `if_link.h`, `if_addr.h` and `veth.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use rustix::io::Errno;

use super::message::{ACK, Batch, CREATE, DUMP, EXCLUSIVE, Message, attributes, read_u32};
use super::socket::Socket;
use crate::mac::Mac;

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const SETLINK: u16 = 19;
const NEWADDR: u16 = 20;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;
const GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

const IFF_UP: u32 = 1;
/// No duplicate address detection: the address is usable at once.
const IFA_F_NODAD: u32 = 2;
const AF_BRIDGE: u8 = 7;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

/// Length of `struct ifinfomsg`, `ifaddrmsg` and `rtmsg`.
const IFINFO: usize = 16;
const IFADDR: usize = 8;
const RTMSG: usize = 12;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
}

/// A pair of interfaces: one end in a bridge here, the other in a namespace.
#[derive(Debug)]
pub(crate) struct Veth<'a> {
    pub(crate) host: &'a str,
    pub(crate) bridge: u32,
    pub(crate) mtu: Option<u32>,
    pub(crate) inside: &'a str,
    pub(crate) mac: Mac,
    pub(crate) namespace: BorrowedFd<'a>,
}

fn ifinfo(family: u8, index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut bytes = vec![family, 0, 0, 0];
    bytes.extend_from_slice(&index.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&change.to_ne_bytes());
    bytes
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

fn link_of(message: Message<'_>) -> Option<Link> {
    let index = read_u32(message.body, 4)?;
    let (_, name) = attributes(message.body, IFINFO).find(|(kind, _)| *kind == IFLA_IFNAME)?;
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    Some(Link { index, name: String::from_utf8_lossy(name).into_owned() })
}

impl Socket {
    /// The interface of this name.
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>, Errno> {
        let mut found = None;
        let fixed = ifinfo(0, 0, 0, 0);
        match self.query(GETLINK, 0, &fixed, |a| a.text(IFLA_IFNAME, name), |m| found = link_of(m)) {
            Ok(()) => Ok(found),
            Err(Errno::NODEV) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// All interfaces.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, Errno> {
        let mut found = Vec::new();
        self.query(GETLINK, DUMP, &ifinfo(0, 0, 0, 0), |_| {}, |m| found.extend(link_of(m)))?;
        Ok(found)
    }

    /// Makes a bridge that is up. Its own hardware address keeps it from taking that of one of its ports, which
    /// would change as ports come and go.
    pub(crate) fn add_bridge(&mut self, name: &str, mac: Mac, mtu: Option<u32>) -> Result<(), Errno> {
        let mut batch = Batch::default();
        batch.push(NEWLINK, ACK | CREATE | EXCLUSIVE, &ifinfo(0, 0, IFF_UP, IFF_UP), |a| {
            a.text(IFLA_IFNAME, name);
            a.bytes(IFLA_ADDRESS, &mac.0);
            if let Some(mtu) = mtu {
                a.u32(IFLA_MTU, mtu);
            }
            a.nest(IFLA_LINKINFO, |a| a.bytes(IFLA_INFO_KIND, b"bridge"));
        });
        self.execute(batch).map_err(|failure| failure.errno)
    }

    /// Makes a pair. The inner end is in its namespace from the beginning and not up: the kernel refuses that for an end
    /// that has no partner yet. The outer one is.
    pub(crate) fn add_veth(&mut self, veth: &Veth<'_>) -> Result<(), Errno> {
        let mut batch = Batch::default();
        let up = ifinfo(0, 0, IFF_UP, IFF_UP);
        batch.push(NEWLINK, ACK | CREATE | EXCLUSIVE, &up, |a| {
            a.text(IFLA_IFNAME, veth.host);
            a.u32(IFLA_MASTER, veth.bridge);
            if let Some(mtu) = veth.mtu {
                a.u32(IFLA_MTU, mtu);
            }
            a.nest(IFLA_LINKINFO, |a| {
                a.bytes(IFLA_INFO_KIND, b"veth");
                a.nest(IFLA_INFO_DATA, |a| {
                    a.nest(VETH_INFO_PEER, |a| {
                        a.raw(&ifinfo(0, 0, 0, 0));
                        a.text(IFLA_IFNAME, veth.inside);
                        a.bytes(IFLA_ADDRESS, &veth.mac.0);
                        if let Some(mtu) = veth.mtu {
                            a.u32(IFLA_MTU, mtu);
                        }
                        a.u32(IFLA_NET_NS_FD, veth.namespace.as_raw_fd().cast_unsigned());
                    });
                });
            });
        });
        self.execute(batch).map_err(|failure| failure.errno)
    }

    /// How a port of a bridge behaves. `isolated`: it may talk to the bridge's own address only, not to other such
    /// ports. `hairpin`: what came in by it may go out by it.
    pub(crate) fn configure_port(&mut self, index: u32, isolated: bool, hairpin: bool) -> Result<(), Errno> {
        let mut batch = Batch::default();
        batch.push(SETLINK, ACK, &ifinfo(AF_BRIDGE, index, 0, 0), |a| {
            a.nest(IFLA_PROTINFO, |a| {
                a.bytes(IFLA_BRPORT_MODE, &[u8::from(hairpin)]);
                a.bytes(IFLA_BRPORT_ISOLATED, &[u8::from(isolated)]);
            });
        });
        self.execute(batch).map_err(|failure| failure.errno)
    }

    /// Brings an interface up.
    pub(crate) fn set_up(&mut self, index: u32) -> Result<(), Errno> {
        let mut batch = Batch::default();
        batch.push(NEWLINK, ACK, &ifinfo(0, index, IFF_UP, IFF_UP), |_| {});
        self.execute(batch).map_err(|failure| failure.errno)
    }

    /// Removes an interface. True when there was one.
    pub(crate) fn delete_link(&mut self, name: &str) -> Result<bool, Errno> {
        let mut batch = Batch::default();
        batch.push(DELLINK, ACK, &ifinfo(0, 0, 0, 0), |a| a.text(IFLA_IFNAME, name));
        match self.execute(batch) {
            Ok(()) => Ok(true),
            Err(failure) if failure.errno == Errno::NODEV => Ok(false),
            Err(failure) => Err(failure.errno),
        }
    }

    /// Gives an interface an address. It is fine when it has it.
    pub(crate) fn add_address(&mut self, index: u32, address: IpNet) -> Result<(), Errno> {
        let mut fixed = vec![family(address.addr()), address.prefix_len(), 0, 0];
        fixed.extend_from_slice(&index.to_ne_bytes());
        let value = octets(address.addr());
        let mut batch = Batch::default();
        batch.push(NEWADDR, ACK | CREATE | EXCLUSIVE, &fixed, |a| {
            a.bytes(IFA_LOCAL, &value);
            a.bytes(IFA_ADDRESS, &value);
            if address.addr().is_ipv6() {
                a.u32(IFA_FLAGS, IFA_F_NODAD);
            }
        });
        match self.execute(batch) {
            Err(failure) if failure.errno != Errno::EXIST => Err(failure.errno),
            _ => Ok(()),
        }
    }

    /// Makes the way to everywhere else lead to `gateway`. False when there is a way already.
    pub(crate) fn add_default_route(&mut self, index: u32, gateway: IpAddr) -> Result<bool, Errno> {
        let mut batch = Batch::default();
        batch.push(NEWROUTE, ACK | CREATE | EXCLUSIVE, &rtmsg(gateway), |a| {
            a.bytes(RTA_GATEWAY, &octets(gateway));
            a.u32(RTA_OIF, index);
        });
        match self.execute(batch) {
            Ok(()) => Ok(true),
            Err(failure) if failure.errno == Errno::EXIST => Ok(false),
            Err(failure) => Err(failure.errno),
        }
    }

    /// The networks to which addresses and routes of this namespace lead, with the interface's number. Default routes
    /// are left out.
    pub(crate) fn occupied(&mut self) -> Result<Vec<(IpNet, u32)>, Errno> {
        let mut found = Vec::new();
        self.query(
            GETADDR,
            DUMP,
            &[0; IFADDR],
            |_| {},
            |message| {
                let prefix = message.body.get(1).copied();
                let index = read_u32(message.body, 4).unwrap_or(0);
                let pick = |wanted: u16| {
                    let value = attributes(message.body, IFADDR).find(|(kind, _)| *kind == wanted);
                    value.and_then(|(_, bytes)| address_of(bytes))
                };
                let address = pick(IFA_LOCAL).or_else(|| pick(IFA_ADDRESS));
                if let (Some(address), Some(prefix)) = (address, prefix) {
                    found.extend(IpNet::new(address, prefix).map(|net| (net.trunc(), index)));
                }
            },
        )?;
        self.query(
            GETROUTE,
            DUMP,
            &[0; RTMSG],
            |_| {},
            |message| {
                let (Some(prefix), Some(table)) = (message.body.get(1).copied(), message.body.get(4)) else {
                    return;
                };
                if prefix == 0 || *table != RT_TABLE_MAIN {
                    return;
                }
                let pick = |wanted| attributes(message.body, RTMSG).find(|(kind, _)| *kind == wanted);
                let index = pick(RTA_OIF).and_then(|(_, bytes)| read_u32(bytes, 0)).unwrap_or(0);
                if let Some(address) = pick(RTA_DST).and_then(|(_, bytes)| address_of(bytes)) {
                    found.extend(IpNet::new(address, prefix).map(|net| (net.trunc(), index)));
                }
            },
        )?;
        Ok(found)
    }
}

fn rtmsg(gateway: IpAddr) -> Vec<u8> {
    let mut fixed = vec![family(gateway), 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST];
    fixed.extend_from_slice(&[0; 4]);
    fixed
}
