//! Messages of the domain name system (RFC 1035, RFC 6891): reading questions without trust, writing answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const HEADER: usize = 12;
/// Longest name in its written form.
const MAX_NAME: usize = 255;
/// Without EDNS, an answer over UDP is no longer.
pub(crate) const PLAIN_LIMIT: usize = 512;
/// More than that is sent over TCP, whatever the client would take: it fits one packet of a usual network.
const EDNS_LIMIT: usize = 1232;

pub(crate) const A: u16 = 1;
pub(crate) const PTR: u16 = 12;
pub(crate) const AAAA: u16 = 28;
const OPT: u16 = 41;
const ANY: u16 = 255;
const INTERNET: u16 = 1;

/// How an answer came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    Success = 0,
    BadFormat = 1,
    ServerFailure = 2,
    NoSuchName = 3,
    NotImplemented = 4,
}

/// A question as received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) id: u16,
    /// In lower case, without the dot at the end. Bytes that are no ASCII letters, digits, `-` or `_` are replaced by
    /// `?`, which is in no name of a container.
    pub(crate) name: String,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    /// The question's own bytes, for the answer.
    raw: Vec<u8>,
    flags: u16,
    /// What the client takes over UDP.
    pub(crate) limit: usize,
    edns: bool,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    Address(IpAddr),
    Name(String),
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Reads a name without pointers, as a question has it. Gives the name and where it ends.
fn plain_name(bytes: &[u8], mut at: usize) -> Option<(String, usize)> {
    let start = at;
    let mut name = String::new();
    loop {
        let len = usize::from(*bytes.get(at)?);
        at += 1;
        if len == 0 {
            return Some((name, at));
        }
        if len > 63 || at + len - start > MAX_NAME {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        for byte in bytes.get(at..at + len)? {
            let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            name.push(if plain { char::from(byte.to_ascii_lowercase()) } else { '?' });
        }
        at += len;
    }
}

/// Where a name ends that may be a pointer.
fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            len if len >= 0xc0 => return Some(at + 2),
            len if len > 63 => return None,
            len => at += 1 + usize::from(len),
        }
    }
}

impl Question {
    /// Reads a query. An error is what to answer, if anything.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Option<Vec<u8>>> {
        let (Some(id), Some(flags)) = (u16_at(bytes, 0), u16_at(bytes, 2)) else { return Err(None) };
        // An answer is not answered.
        if bytes.len() < HEADER || flags & 0x8000 != 0 {
            return Err(None);
        }
        if flags >> 11 & 0xf != 0 {
            return Err(Some(refusal(id, flags, Code::NotImplemented)));
        }
        Self::body(bytes, id, flags).ok_or_else(|| Some(refusal(id, flags, Code::BadFormat)))
    }

    fn body(bytes: &[u8], id: u16, flags: u16) -> Option<Self> {
        if u16_at(bytes, 4)? != 1 {
            return None;
        }
        let (name, end) = plain_name(bytes, HEADER)?;
        let (kind, class) = (u16_at(bytes, end)?, u16_at(bytes, end + 2)?);
        let raw = bytes.get(HEADER..end + 4)?.to_vec();
        let mut question = Self { id, name, kind, class, raw, flags, limit: PLAIN_LIMIT, edns: false };
        let records =
            [6, 8, 10].iter().try_fold(0_usize, |sum, at| Some(sum + usize::from(u16_at(bytes, *at)?)))?;
        let mut at = end + 4;
        for _ in 0..records {
            at = skip_name(bytes, at)?;
            let (kind, class, len) = (u16_at(bytes, at)?, u16_at(bytes, at + 2)?, u16_at(bytes, at + 8)?);
            if kind == OPT {
                question.edns = true;
                question.limit = usize::from(class).clamp(PLAIN_LIMIT, EDNS_LIMIT);
            }
            at += 10 + usize::from(len);
            if at > bytes.len() {
                return None;
            }
        }
        Some(question)
    }

    /// It is about addresses or names of the internet.
    pub(crate) fn is_internet(&self) -> bool {
        matches!(self.class, INTERNET | ANY)
    }

    /// The address that a question for a name by address is about.
    pub(crate) fn reversed(&self) -> Option<IpAddr> {
        if let Some(front) = self.name.strip_suffix(".in-addr.arpa") {
            let mut octets: Vec<u8> =
                front.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
            octets.reverse();
            return Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into());
        }
        let front = self.name.strip_suffix(".ip6.arpa")?;
        let nibbles: Vec<u128> = front
            .split('.')
            .map(|part| (part.len() == 1).then(|| u128::from_str_radix(part, 16).ok())?)
            .collect::<Option<_>>()?;
        if nibbles.len() != 32 {
            return None;
        }
        let bits = nibbles.iter().rev().fold(0, |bits, nibble| bits << 4 | nibble);
        Some(Ipv6Addr::from_bits(bits).into())
    }

    /// Writes an answer that is not longer than `limit`; one that would be says so and has no records.
    pub(crate) fn answer(&self, code: Code, records: &[Record], ttl: u32, limit: usize) -> Vec<u8> {
        let full = self.write(code, records, ttl, false);
        if full.len() <= limit { full } else { self.write(code, &[], ttl, true) }
    }

    fn write(&self, code: Code, records: &[Record], ttl: u32, cut: bool) -> Vec<u8> {
        // An answer with authority, recursion as wanted, recursion available.
        let authority = if code == Code::ServerFailure { 0 } else { 0x0400 };
        let flags = 0x8080 | authority | self.flags & 0x0100 | if cut { 0x0200 } else { 0 } | code as u16;
        let count = u16::try_from(records.len()).unwrap_or(u16::MAX);
        let mut bytes = Vec::with_capacity(PLAIN_LIMIT);
        for value in [self.id, flags, 1, count, 0, u16::from(self.edns)] {
            bytes.extend_from_slice(&value.to_be_bytes());
        }
        bytes.extend_from_slice(&self.raw);
        for record in records.iter().take(usize::from(count)) {
            let (kind, data) = match record {
                Record::Address(IpAddr::V4(address)) => (A, address.octets().to_vec()),
                Record::Address(IpAddr::V6(address)) => (AAAA, address.octets().to_vec()),
                Record::Name(name) => (PTR, written_name(name)),
            };
            // The name: that of the question.
            bytes.extend_from_slice(&[0xc0, 12]);
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&INTERNET.to_be_bytes());
            bytes.extend_from_slice(&ttl.to_be_bytes());
            bytes.extend_from_slice(&u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
            bytes.extend_from_slice(&data);
        }
        if self.edns {
            bytes.push(0);
            bytes.extend_from_slice(&OPT.to_be_bytes());
            bytes.extend_from_slice(&u16::try_from(EDNS_LIMIT).unwrap_or(512).to_be_bytes());
            bytes.extend_from_slice(&[0; 6]);
        }
        bytes
    }

    /// Whether `bytes` is an answer to this question, asked with the number `id`.
    pub(crate) fn is_answered_by(&self, bytes: &[u8], id: u16) -> bool {
        let header =
            u16_at(bytes, 0) == Some(id) && u16_at(bytes, 2).is_some_and(|flags| flags & 0x8000 != 0);
        let question = bytes.get(HEADER..HEADER + self.raw.len());
        // Some servers leave the question out when they refuse.
        header && (u16_at(bytes, 4) == Some(0) || question.is_some_and(|q| q.eq_ignore_ascii_case(&self.raw)))
    }
}

fn refusal(id: u16, flags: u16, code: Code) -> Vec<u8> {
    let flags = 0x8080 | flags & 0x7900 | code as u16;
    [id, flags, 0, 0, 0, 0].iter().flat_map(|value| value.to_be_bytes()).collect()
}

/// Labels with their lengths. What is too long for one is cut: no name of a container is.
fn written_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = label.as_bytes().get(..63).unwrap_or(label.as_bytes());
        if bytes.len() + label.len() + 2 > MAX_NAME {
            break;
        }
        bytes.push(u8::try_from(label.len()).unwrap_or(0));
        bytes.extend_from_slice(label);
    }
    bytes.push(0);
    bytes
}

/// A query as a client sends it.
#[cfg(test)]
pub(crate) fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut bytes: Vec<u8> = [id, 0x0100, 1, 0, 0, 0].iter().flat_map(|value| value.to_be_bytes()).collect();
    bytes.extend_from_slice(&written_name(name));
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&INTERNET.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_question_is_read_and_answered() {
        let bytes = query(7, "Web.Example", A);
        let question = Question::parse(&bytes).unwrap_or_else(|_| panic!("refused"));
        assert_eq!((question.name.as_str(), question.kind, question.limit), ("web.example", A, 512));
        let answer =
            question.answer(Code::Success, &[Record::Address(Ipv4Addr::new(10, 1, 2, 3).into())], 5, 512);
        assert!(question.is_answered_by(&answer, 7));
        assert!(!question.is_answered_by(&answer, 8));
        assert!(answer.ends_with(&[0, 4, 10, 1, 2, 3]));
    }

    #[test]
    fn addresses_are_read_backwards() {
        let of = |name: &str| {
            Question::parse(&query(1, name, PTR)).ok().and_then(|q| q.reversed()).map(|ip| ip.to_string())
        };
        assert_eq!(of("3.2.1.10.in-addr.arpa").as_deref(), Some("10.1.2.3"));
        let six = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(of(six).as_deref(), Some("fd00::1"));
        for bad in [
            "1.2.3.in-addr.arpa",
            "1.2.3.4.5.in-addr.arpa",
            "x.2.3.4.in-addr.arpa",
            "1.ip6.arpa",
            "in-addr.arpa",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_long_answer_says_that_it_is_cut() {
        let question = Question::parse(&query(7, "web", A)).unwrap_or_else(|_| panic!("refused"));
        let many = vec![Record::Address(Ipv4Addr::LOCALHOST.into()); 60];
        let cut = question.answer(Code::Success, &many, 5, PLAIN_LIMIT);
        assert_eq!(u16_at(&cut, 2).map(|flags| flags & 0x0200), Some(0x0200));
        assert_eq!(u16_at(&cut, 6), Some(0));
        assert_eq!(u16_at(&question.answer(Code::Success, &many, 5, 65_535), 6), Some(60));
    }

    #[test]
    fn what_is_no_question_gets_no_answer_or_a_refusal() {
        let mut answer = query(7, "web", A);
        answer[2] |= 0x80;
        assert_eq!(Question::parse(&answer), Err(None));
        assert_eq!(Question::parse(&[1, 2, 3]), Err(None));
        let mut update = query(7, "web", A);
        update[2] = 5 << 3;
        assert!(matches!(Question::parse(&update), Err(Some(bytes)) if bytes[3] & 0xf == 4));
        let mut pointer = query(7, "web", A);
        pointer[12] = 0xc0;
        assert!(matches!(Question::parse(&pointer), Err(Some(bytes)) if bytes[3] & 0xf == 1));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(question) = Question::parse(&bytes) {
                prop_assert!(question.name.len() <= MAX_NAME);
                prop_assert!(question.answer(Code::NoSuchName, &[], 0, 512).len() <= 512);
                prop_assert!(question.reversed().is_none() || question.name.ends_with(".arpa"));
            }
        }

        #[test]
        fn a_changed_question_is_read(at in 0_usize..40, byte in any::<u8>(), cut in 0_usize..40) {
            let mut bytes = query(7, "some.name.of.a.host", AAAA);
            if let Some(target) = bytes.get_mut(at) {
                *target = byte;
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            prop_assert!(Question::parse(&bytes).map_or(true, |question| question.name.len() <= MAX_NAME));
        }
    }
}
