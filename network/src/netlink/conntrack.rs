//! Flows that the kernel remembers (ctnetlink): forgetting those that lead to the wrong place.
//!
//! Rules that replace destinations are asked for the first packet of a flow only. A flow of UDP has no end: as long as
//! a client goes on, its packets go where the first one went. Numbers from the kernel's `nfnetlink_conntrack.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;

use super::message::{ACK, Batch, DUMP, attributes};
use super::socket::Socket;
use crate::ports::Protocol;

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const NEST: u16 = 0x8000;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const HEADER: [u8; 4] = [0; 4];

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Direction {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    port: u16,
}

/// What is known of a flow of UDP to a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    /// Where the client sends to.
    pub(crate) port: u16,
    /// Who answers, if that is not whom the client sends to.
    pub(crate) redirected: Option<IpAddr>,
    /// The client's address is replaced on the way.
    pub(crate) masqueraded: bool,
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

fn direction(tuple: &[u8]) -> Option<Direction> {
    let find = |bytes: &[u8], wanted: &[u16]| {
        attributes(bytes, 0).find(|(kind, _)| wanted.contains(kind)).map(|(_, value)| value.to_vec())
    };
    let (ip, proto) = (find(tuple, &[1])?, find(tuple, &[2])?);
    let port: [u8; 2] = find(&proto, &[3])?.try_into().ok()?;
    Some(Direction {
        source: address(&find(&ip, &[1, 3])?)?,
        destination: address(&find(&ip, &[2, 4])?)?,
        protocol: *find(&proto, &[1])?.first()?,
        port: u16::from_be_bytes(port),
    })
}

impl Socket {
    /// Forgets flows of UDP for which `wanted` is true.
    pub(crate) fn forget_flows(&mut self, wanted: impl Fn(Flow) -> bool) -> Result<(), Errno> {
        let mut found: Vec<(u8, Vec<u8>)> = Vec::new();
        self.query(
            GET,
            DUMP,
            &HEADER,
            |_| {},
            |message| {
                let tuple =
                    |kind| attributes(message.body, 4).find(|(own, _)| *own == kind).map(|(_, value)| value);
                let (Some(original), Some(reply)) = (tuple(ORIGINAL), tuple(REPLY)) else { return };
                let (Some(there), Some(back)) = (direction(original), direction(reply)) else { return };
                let flow = Flow {
                    port: there.port,
                    redirected: (back.source != there.destination).then_some(back.source),
                    masqueraded: back.destination != there.source,
                };
                if there.protocol == Protocol::Udp.number() && wanted(flow) {
                    let family = if there.source.is_ipv4() { 2 } else { 10 };
                    found.push((family, original.to_vec()));
                }
            },
        )?;
        for (family, tuple) in found {
            let mut batch = Batch::default();
            batch.push(DELETE, ACK, &[family, 0, 0, 0], |a| a.bytes(ORIGINAL | NEST, &tuple));
            match self.execute(batch) {
                // It ended meanwhile.
                Err(failure) if failure.errno != Errno::NOENT => return Err(failure.errno),
                _ => {}
            }
        }
        Ok(())
    }
}
