//! Tables, chains and rules of the packet filter (nf_tables).
//!
//! Numbers from the kernel's `include/uapi/linux/netfilter/nf_tables.h`; all integers are in network byte order. One
//! transaction replaces one table of family `inet` as a whole: the kernel shows the old or the new one, nothing between.

use std::net::IpAddr;

use ipnet::IpNet;
use rustix::io::Errno;

use super::message::{ACK, APPEND, Attributes, Batch, CREATE, attributes};
use super::socket::{Failure, Socket};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEWTABLE: u16 = SUBSYSTEM;
const GETTABLE: u16 = SUBSYSTEM | 1;
const DELTABLE: u16 = SUBSYSTEM | 2;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const NEWRULE: u16 = SUBSYSTEM | 6;

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const TABLE_NAME: u16 = 1;
const TABLE_USERDATA: u16 = 6;
const REGISTER_1: u32 = 1;
const REGISTER_2: u32 = 2;
const VERDICT: u32 = 0;

/// Where packets come past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Prerouting = 0,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// What a chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChainKind {
    Filter,
    Nat,
}

/// A chain: at a hook with a priority, or called by others.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) base: Option<(ChainKind, Hook, i32)>,
    pub(crate) rules: Vec<Vec<Part>>,
}

/// A part of a rule: a condition, or at the end what happens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// The packet came in by this interface.
    From(String),
    /// It will leave by this interface.
    To(String),
    /// It will leave by another one.
    NotTo(String),
    /// Its source is in this network.
    Source(IpNet),
    /// Its destination is in this network.
    Destination(IpNet),
    /// Its destination is an address of this machine.
    DestinationIsLocal,
    /// It is of IPv4, or else of IPv6.
    Version4(bool),
    /// Transport protocol by number; both ends of the range of destination ports belong to it.
    Port(u8, u16, u16),
    /// It belongs to a connection that was let through.
    Established,
    /// It belongs to a connection whose destination was replaced.
    DestinationReplaced,
    /// Go through the rules of that chain.
    Jump(&'static str),
    Accept,
    Drop,
    /// Replace the source by the address of the interface.
    Masquerade,
    /// Replace the destination; the port stays unless one is given.
    Redirect(IpAddr, Option<u16>),
}

fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

fn batch_header() -> [u8; 4] {
    let [a, b] = 10_u16.to_be_bytes();
    [0, 0, a, b]
}

impl Socket {
    /// The mark that [`replace_table`](Self::replace_table) left on a table; `None` when there is no table.
    pub(crate) fn table_mark(&mut self, table: &str) -> Result<Option<Vec<u8>>, Errno> {
        let mut mark = None;
        let found = self.query(
            GETTABLE,
            0,
            &header(NFPROTO_INET),
            |a| a.text(TABLE_NAME, table),
            |message| {
                let data = attributes(message.body, 4).find(|(kind, _)| *kind == TABLE_USERDATA);
                mark = Some(data.map(|(_, bytes)| bytes.to_vec()).unwrap_or_default());
            },
        );
        match found {
            Ok(()) => Ok(mark),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Removes a table, if there is one.
    pub(crate) fn delete_table(&mut self, table: &str) -> Result<(), Failure> {
        let mut batch = Batch::default();
        batch.push(BATCH_BEGIN, 0, &batch_header(), |_| {});
        // Making it first keeps the removal from failing when there is none.
        batch.push(NEWTABLE, CREATE, &header(NFPROTO_INET), |a| a.text(TABLE_NAME, table));
        batch.push(DELTABLE, ACK, &header(NFPROTO_INET), |a| a.text(TABLE_NAME, table));
        self.transact(batch)
    }

    /// Makes `chains` all that the table holds, in one step, with `mark` on it.
    pub(crate) fn replace_table(
        &mut self,
        table: &str,
        mark: &[u8],
        chains: &[Chain],
    ) -> Result<(), Failure> {
        let mut batch = Batch::default();
        let header = header(NFPROTO_INET);
        batch.push(BATCH_BEGIN, 0, &batch_header(), |_| {});
        batch.push(NEWTABLE, CREATE, &header, |a| a.text(TABLE_NAME, table));
        batch.push(DELTABLE, 0, &header, |a| a.text(TABLE_NAME, table));
        let last = chains.is_empty();
        batch.push(NEWTABLE, CREATE | if last { ACK } else { 0 }, &header, |a| {
            a.text(TABLE_NAME, table);
            a.bytes(TABLE_USERDATA, mark);
        });
        // Chains before rules: a rule may jump to any.
        let rules: Vec<(&Chain, &Vec<Part>)> =
            chains.iter().flat_map(|chain| chain.rules.iter().map(move |rule| (chain, rule))).collect();
        for (at, chain) in chains.iter().enumerate() {
            let last = rules.is_empty() && at + 1 == chains.len();
            batch.push(NEWCHAIN, CREATE | if last { ACK } else { 0 }, &header, |a| {
                write_chain(a, table, chain)
            });
        }
        for (at, (chain, rule)) in rules.iter().enumerate() {
            let last = at + 1 == rules.len();
            batch.push(NEWRULE, CREATE | APPEND | if last { ACK } else { 0 }, &header, |a| {
                a.text(1, table);
                a.text(2, chain.name);
                a.nest(4, |a| rule.iter().for_each(|part| write_part(a, part)));
            });
        }
        self.transact(batch)
    }

    fn transact(&mut self, mut batch: Batch) -> Result<(), Failure> {
        // The end is not confirmed; it goes with the rest in one datagram, or nothing is done.
        batch.push_unconfirmed(BATCH_END, &batch_header());
        self.execute(batch)
    }
}

fn write_chain(a: &mut Attributes<'_>, table: &str, chain: &Chain) {
    a.text(1, table);
    a.text(3, chain.name);
    if let Some((kind, hook, priority)) = chain.base {
        a.nest(4, |a| {
            a.be32(1, hook as u32);
            a.be32(2, priority.cast_unsigned());
        });
        a.text(
            7,
            match kind {
                ChainKind::Filter => "filter",
                ChainKind::Nat => "nat",
            },
        );
    }
}

fn expression(a: &mut Attributes<'_>, name: &str, data: impl FnOnce(&mut Attributes<'_>)) {
    a.nest(1, |a| {
        a.text(1, name);
        a.nest(2, data);
    });
}

fn value(a: &mut Attributes<'_>, kind: u16, bytes: &[u8]) {
    a.nest(kind, |a| a.bytes(1, bytes));
}

/// Puts a property of the packet (`NFT_META_*`) into register 1.
fn meta(a: &mut Attributes<'_>, key: u32) {
    expression(a, "meta", |a| {
        a.be32(1, REGISTER_1);
        a.be32(2, key);
    });
}

/// Compares register 1; the rule ends where it differs (or, with `not`, where it does not).
fn compare(a: &mut Attributes<'_>, not: bool, bytes: &[u8]) {
    expression(a, "cmp", |a| {
        a.be32(1, REGISTER_1);
        a.be32(2, u32::from(not));
        value(a, 3, bytes);
    });
}

fn mask(a: &mut Attributes<'_>, bytes: &[u8]) {
    expression(a, "bitwise", |a| {
        a.be32(1, REGISTER_1);
        a.be32(2, REGISTER_1);
        a.be32(3, u32::try_from(bytes.len()).unwrap_or(0));
        value(a, 4, bytes);
        value(a, 5, &vec![0; bytes.len()]);
    });
}

/// Puts `len` bytes of a header (1: network, 2: transport) into register 1.
fn payload(a: &mut Attributes<'_>, base: u32, offset: u32, len: u32) {
    expression(a, "payload", |a| {
        a.be32(1, REGISTER_1);
        a.be32(2, base);
        a.be32(3, offset);
        a.be32(4, len);
    });
}

fn immediate(a: &mut Attributes<'_>, register: u32, bytes: &[u8]) {
    expression(a, "immediate", |a| {
        a.be32(1, register);
        value(a, 2, bytes);
    });
}

fn verdict(a: &mut Attributes<'_>, code: i32, chain: Option<&str>) {
    expression(a, "immediate", |a| {
        a.be32(1, VERDICT);
        a.nest(2, |a| {
            a.nest(2, |a| {
                a.be32(1, code.cast_unsigned());
                if let Some(chain) = chain {
                    a.text(2, chain);
                }
            });
        });
    });
}

fn interface(a: &mut Attributes<'_>, key: u32, not: bool, name: &str) {
    // The register holds the name filled up with zeros.
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    meta(a, key);
    compare(a, not, &bytes);
}

fn within(a: &mut Attributes<'_>, network: IpNet, source: bool) {
    let (offset, octets, netmask) = match network {
        IpNet::V4(net) => {
            let offset = if source { 12 } else { 16 };
            (offset, net.network().octets().to_vec(), net.netmask().octets().to_vec())
        }
        IpNet::V6(net) => {
            let offset = if source { 8 } else { 24 };
            (offset, net.network().octets().to_vec(), net.netmask().octets().to_vec())
        }
    };
    version(a, matches!(network, IpNet::V4(_)));
    payload(a, 1, offset, u32::try_from(octets.len()).unwrap_or(0));
    if netmask.iter().any(|byte| *byte != 0xff) {
        mask(a, &netmask);
    }
    compare(a, false, &octets);
}

fn version(a: &mut Attributes<'_>, four: bool) {
    meta(a, 15);
    compare(a, false, &[if four { NFPROTO_IPV4 } else { NFPROTO_IPV6 }]);
}

/// A bit of the connection's state (0) or status (2).
fn connection(a: &mut Attributes<'_>, key: u32, bits: u32) {
    expression(a, "ct", |a| {
        a.be32(1, REGISTER_1);
        a.be32(2, key);
    });
    mask(a, &bits.to_ne_bytes());
    compare(a, true, &[0; 4]);
}

fn write_part(a: &mut Attributes<'_>, part: &Part) {
    match part {
        Part::From(name) => interface(a, 6, false, name),
        Part::To(name) => interface(a, 7, false, name),
        Part::NotTo(name) => interface(a, 7, true, name),
        Part::Source(network) => within(a, *network, true),
        Part::Destination(network) => within(a, *network, false),
        Part::DestinationIsLocal => {
            expression(a, "fib", |a| {
                a.be32(1, REGISTER_1);
                // The type of the destination's address.
                a.be32(2, 3);
                a.be32(3, 1 << 1);
            });
            // RTN_LOCAL
            compare(a, false, &2_u32.to_ne_bytes());
        }
        Part::Version4(four) => version(a, *four),
        Part::Port(protocol, first, last) => {
            meta(a, 16);
            compare(a, false, &[*protocol]);
            payload(a, 2, 2, 2);
            if first == last {
                compare(a, false, &first.to_be_bytes());
            } else {
                expression(a, "range", |a| {
                    a.be32(1, REGISTER_1);
                    a.be32(2, 0);
                    value(a, 3, &first.to_be_bytes());
                    value(a, 4, &last.to_be_bytes());
                });
            }
        }
        // IP_CT_ESTABLISHED and IP_CT_RELATED as bits of a state
        Part::Established => connection(a, 0, 0b110),
        // IPS_DST_NAT
        Part::DestinationReplaced => connection(a, 2, 1 << 5),
        Part::Jump(chain) => verdict(a, -3, Some(chain)),
        Part::Accept => verdict(a, 1, None),
        Part::Drop => verdict(a, 0, None),
        Part::Masquerade => expression(a, "masq", |_| {}),
        Part::Redirect(address, port) => {
            let (family, octets) = match address {
                IpAddr::V4(address) => (NFPROTO_IPV4, address.octets().to_vec()),
                IpAddr::V6(address) => (NFPROTO_IPV6, address.octets().to_vec()),
            };
            immediate(a, REGISTER_1, &octets);
            if let Some(port) = port {
                immediate(a, REGISTER_2, &port.to_be_bytes());
            }
            expression(a, "nat", |a| {
                // Destination
                a.be32(1, 1);
                a.be32(2, u32::from(family));
                a.be32(3, REGISTER_1);
                if port.is_some() {
                    a.be32(5, REGISTER_2);
                }
            });
        }
    }
}
