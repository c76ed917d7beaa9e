//! `uidmapping=` and `gidmapping=`: triples `DISK:SHOWN:LENGTH` joined by colons.
//!
//! Container engines write `ContainerID:HostID:Size`: an image stores the container's ids, and the container's
//! user namespace translates the host ids that the mount shows back into them. So the first number is the id on
//! disk and the second the id shown. Empty fields are passed over, since callers write a leading colon.

use crate::config::{IdMap, IdRange};

use super::error::IdMapFault;
use super::text;

/// The id that means "none" to every system call; no range may hold it.
const INVALID_ID: u64 = u32::MAX as u64;

/// Reads a mapping and checks that its ranges are valid and disjoint on both sides. No ranges: identity.
pub(super) fn parse(value: &[u8]) -> Result<IdMap, IdMapFault> {
    let fields: Vec<&[u8]> = value.split(|&b| b == b':').filter(|f| !f.is_empty()).collect();
    let numbers = fields.iter().map(|f| number(f)).collect::<Result<Vec<u32>, _>>()?;
    if numbers.len() % 3 != 0 {
        return Err(IdMapFault::NotTriples { fields: numbers.len() });
    }
    let ranges: Vec<IdRange> =
        numbers.chunks_exact(3).map(|n| IdRange { disk: n[0], shown: n[1], length: n[2] }).collect();
    for range in &ranges {
        if range.length == 0 {
            return Err(IdMapFault::Empty { disk: range.disk, shown: range.shown });
        }
        let end = u64::from(range.disk.max(range.shown)) + u64::from(range.length);
        if end > INVALID_ID {
            return Err(IdMapFault::TooLong(*range));
        }
    }
    disjoint(&ranges, |r| r.disk, "on disk")?;
    disjoint(&ranges, |r| r.shown, "as shown")?;
    Ok(IdMap(ranges))
}

fn disjoint(ranges: &[IdRange], start: fn(&IdRange) -> u32, side: &'static str) -> Result<(), IdMapFault> {
    let mut sorted = ranges.to_vec();
    sorted.sort_by_key(start);
    for pair in sorted.windows(2) {
        // The sum cannot wrap: the ends were checked.
        if start(&pair[1]) < start(&pair[0]) + pair[0].length {
            return Err(IdMapFault::Overlap { first: pair[0], second: pair[1], side });
        }
    }
    Ok(())
}

fn number(field: &[u8]) -> Result<u32, IdMapFault> {
    decimal(field)
        .and_then(|n| u32::try_from(n).ok())
        .ok_or_else(|| IdMapFault::NotNumber { field: text::shown(field).to_string_lossy().into_owned() })
}

/// A number of decimal digits only (no sign, no blank).
pub(super) fn decimal(field: &[u8]) -> Option<u64> {
    if field.is_empty() || !field.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// True for `N:N:N`, which is what a mapping written with commas falls into.
pub(super) fn looks_like_range(word: &[u8]) -> bool {
    let fields: Vec<&[u8]> = word.split(|&b| b == b':').collect();
    fields.len() >= 3 && fields.iter().all(|f| decimal(f).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(disk: u32, shown: u32, length: u32) -> IdRange {
        IdRange { disk, shown, length }
    }

    #[test]
    fn triples_are_disk_shown_length() {
        let table: &[(&str, Vec<IdRange>)] = &[
            ("", vec![]),
            ("0:1000:1", vec![range(0, 1000, 1)]),
            (":0:1000:1:1:100000:65536", vec![range(0, 1000, 1), range(1, 100_000, 65_536)]),
            ("0:0:4294967295", vec![range(0, 0, u32::MAX)]),
            ("4294967294:0:1", vec![range(4_294_967_294, 0, 1)]),
        ];
        for (text, ranges) in table {
            assert_eq!(parse(text.as_bytes()).unwrap().0, *ranges, "{text}");
        }
        let map = parse(b"0:1000:1:1:100000:65536").unwrap();
        assert_eq!((map.to_shown(0), map.to_shown(33)), (1000, 100_032));
        assert_eq!((map.to_disk(1000), map.to_disk(100_032), map.to_disk(5)), (Some(0), Some(33), None));
    }

    #[test]
    fn faulty_ranges_are_named() {
        let table: &[(&str, IdMapFault)] = &[
            ("0:1000", IdMapFault::NotTriples { fields: 2 }),
            ("0:1000:1:5", IdMapFault::NotTriples { fields: 4 }),
            ("0:x:1", IdMapFault::NotNumber { field: "x".into() }),
            ("0:-1:1", IdMapFault::NotNumber { field: "-1".into() }),
            ("0:+1:1", IdMapFault::NotNumber { field: "+1".into() }),
            ("0:4294967296:1", IdMapFault::NotNumber { field: "4294967296".into() }),
            (
                "0:99999999999999999999999:1",
                IdMapFault::NotNumber { field: "99999999999999999999999".into() },
            ),
            ("0:1:0", IdMapFault::Empty { disk: 0, shown: 1 }),
            ("4294967295:0:1", IdMapFault::TooLong(range(u32::MAX, 0, 1))),
            ("0:1:4294967295", IdMapFault::TooLong(range(0, 1, u32::MAX))),
            (
                "0:1000:10:9:5000:1",
                IdMapFault::Overlap { first: range(0, 1000, 10), second: range(9, 5000, 1), side: "on disk" },
            ),
            (
                "0:1000:10:100:1009:1",
                IdMapFault::Overlap {
                    first: range(0, 1000, 10),
                    second: range(100, 1009, 1),
                    side: "as shown",
                },
            ),
        ];
        for (text, fault) in table {
            assert_eq!(parse(text.as_bytes()).unwrap_err(), *fault, "{text}");
        }
    }
}
