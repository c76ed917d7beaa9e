//! What is answered to one query; where it is none of ours, what the host's resolvers say.

use std::net::IpAddr;
use std::path::Path;

use super::message::{A, AAAA, Code, PTR, Question, Record};
use super::names::Names;
use super::upstream;
use crate::files;

/// Seconds that an answer may be kept: containers come and go.
const TTL: u32 = 5;

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// What is to be done with a query.
#[derive(Debug)]
pub(crate) enum Decision {
    /// Say this.
    Answer(Vec<u8>),
    /// Ask these.
    Forward(Question, Vec<IpAddr>),
    /// Nothing.
    Ignore,
}

impl Question {
    fn limit_over(&self, transport: Transport) -> usize {
        match transport {
            Transport::Udp => self.limit,
            Transport::Tcp => usize::from(u16::MAX),
        }
    }
}

/// Decides without waiting for anybody.
pub(crate) fn decide(
    names: &Names,
    network: &str,
    source: IpAddr,
    query: &[u8],
    transport: Transport,
    host_resolv: &Path,
) -> Decision {
    if !names.admits(network, source) {
        return Decision::Ignore;
    }
    let question = match Question::parse(query) {
        Ok(question) => question,
        Err(Some(refusal)) => return Decision::Answer(refusal),
        Err(None) => return Decision::Ignore,
    };
    let limit = question.limit_over(transport);
    let say = |code, records: &[Record]| Decision::Answer(question.answer(code, records, TTL, limit));
    let asker = names.asker(network, source);
    if question.is_internet() {
        if question.kind == PTR {
            if let Some(address) = question.reversed()
                && let Some(name) = names.name(network, asker, address)
            {
                return match name {
                    Some(name) => say(Code::Success, &[Record::Name(name)]),
                    None => say(Code::NoSuchName, &[]),
                };
            }
        } else if let Some(addresses) = names.addresses(network, asker, &question.name) {
            // Other kinds of records of a name that exists: there are none.
            let wanted = |ip: &&IpAddr| match question.kind {
                A => ip.is_ipv4(),
                AAAA => ip.is_ipv6(),
                _ => false,
            };
            let records: Vec<Record> =
                addresses.iter().filter(wanted).map(|ip| Record::Address(*ip)).collect();
            return say(Code::Success, &records);
        }
    }
    let home = names.networks.iter().find(|n| n.id == network);
    // From a network without a way out, questions do not get out either.
    if home.is_none_or(|home| home.internal) {
        return say(Code::NoSuchName, &[]);
    }
    let own: Vec<IpAddr> =
        names.networks.iter().flat_map(|n| n.subnets.iter().map(|subnet| subnet.gateway)).collect();
    let servers = match asker.map(|asker| asker.dns.as_slice()) {
        Some(servers @ [_, ..]) => servers.to_vec(),
        _ => files::HostResolver::read(host_resolv).servers,
    };
    // Asking oneself would go on for ever.
    let servers: Vec<IpAddr> = servers.into_iter().filter(|server| !own.contains(server)).collect();
    if servers.is_empty() {
        return say(Code::ServerFailure, &[]);
    }
    Decision::Forward(question, servers)
}

/// Asks the servers in turn; the answer is for the client as it is.
pub(crate) fn forward(
    question: &Question,
    servers: &[IpAddr],
    query: &[u8],
    transport: Transport,
) -> Vec<u8> {
    upstream::ask(question, servers, query, transport)
        .unwrap_or_else(|| question.answer(Code::ServerFailure, &[], 0, question.limit_over(transport)))
}
