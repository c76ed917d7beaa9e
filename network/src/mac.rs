//! Hardware addresses.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A hardware address of an Ethernet interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The one that goes with an address, as docker makes it: an address that is given out again keeps its hardware
    /// address, and no neighbour's table becomes wrong.
    #[must_use]
    pub fn of(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0x42, a, b, c, d])
    }

    /// One that is made of six bytes: locally administered, not multicast.
    #[must_use]
    pub fn local(mut bytes: [u8; 6]) -> Self {
        bytes[0] = bytes[0] & 0xfc | 0x02;
        Self(bytes)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::Invalid(format!("{text} is not a valid mac address"));
        let mut bytes = [0; 6];
        let parts: Vec<&str> = text.split([':', '-']).collect();
        if parts.len() != bytes.len() {
            return Err(bad());
        }
        for (byte, part) in bytes.iter_mut().zip(parts) {
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(Error::Invalid(format!("{text} is not the hardware address of one interface")));
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Mac {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_one_interface() {
        assert_eq!("02:42:0A:58:00:02".parse::<Mac>().ok(), Some(Mac::of(Ipv4Addr::new(10, 88, 0, 2))));
        assert_eq!(Mac::of(Ipv4Addr::new(10, 88, 0, 2)).to_string(), "02:42:0a:58:00:02");
        for bad in [
            "",
            "1:2:3:4:5:6",
            "02:42:ac:11:00",
            "02:42:ac:11:00:02:03",
            "03:42:ac:11:00:02",
            "00:00:00:00:00:00",
            "0+:42:ac:11:00:02",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
