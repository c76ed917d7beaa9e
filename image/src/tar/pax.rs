//! PAX headers: `LENGTH KEY=VALUE\n` records (POSIX.1-2008, pax, "pax Extended Header").

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Timestamp;

/// Bytes of a name, and of an extended attribute's value (`XATTR_SIZE_MAX` of linux/limits.h).
const MAX_VALUE: usize = 64 << 10;
/// Bytes of all records of one header, and of one entry's extended attributes.
pub(super) const MAX_RECORDS: usize = 1 << 20;
/// Numbers in a sparse map, however many headers it is spread over.
const MAX_MAP: usize = 2 << 20;

/// What PAX headers said about the next entry, or about all that follow.
#[derive(Debug, Clone, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) atime: Option<Timestamp>,
    pub(super) device: (Option<u64>, Option<u64>),
    /// Shared: what a global header says is not copied for each entry.
    pub(super) xattrs: Arc<BTreeMap<Vec<u8>, Vec<u8>>>,
    /// Bytes of their names and values.
    xattr_bytes: usize,
    pub(super) sparse: Sparse,
}

/// GNU's sparse records, in their three versions.
#[derive(Debug, Clone, Default)]
pub(super) struct Sparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    pub(super) map: Vec<u64>,
    pub(super) has_map: bool,
}

impl Pax {
    /// Takes the records of one header; later ones win.
    pub(super) fn read(&mut self, mut records: &[u8], max_xattrs: u64) -> Result<(), &'static str> {
        if records.len() > MAX_RECORDS {
            return Err("more than the limit of 1 MiB of records");
        }
        while !records.is_empty() {
            // Some writers pad with NULs.
            if records.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            let space = records.iter().position(|b| *b == b' ').ok_or("a record without length")?;
            let len = decimal(&records[..space]).ok_or("a length that is no number")?;
            let len = usize::try_from(len).map_err(|_| "a record that is too long")?;
            if len <= space + 1 || len > records.len() {
                return Err("a record whose length is wrong");
            }
            let (record, rest) = records.split_at(len);
            let record = record[space + 1..].strip_suffix(b"\n").ok_or("a record without newline")?;
            let equals = record.iter().position(|b| *b == b'=').ok_or("a record without `=`")?;
            self.set(&record[..equals], &record[equals + 1..], max_xattrs)?;
            records = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8], max_xattrs: u64) -> Result<(), &'static str> {
        match key {
            b"path" => self.path = name(value)?,
            b"linkpath" => self.link = name(value)?,
            b"size" => self.size = optional(value, decimal, "a size that is no number")?,
            b"uid" => self.uid = optional(value, decimal, "an owner that is no number")?,
            b"gid" => self.gid = optional(value, decimal, "a group that is no number")?,
            b"mtime" => self.mtime = optional(value, timestamp, "a time that is no number")?,
            b"atime" => self.atime = optional(value, timestamp, "a time that is no number")?,
            b"SCHILY.devmajor" => self.device.0 = optional(value, decimal, "a device that is no number")?,
            b"SCHILY.devminor" => self.device.1 = optional(value, decimal, "a device that is no number")?,
            b"GNU.sparse.major" => self.sparse.major = decimal(value),
            b"GNU.sparse.minor" => self.sparse.minor = decimal(value),
            b"GNU.sparse.name" => self.sparse.name = name(value)?,
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                self.sparse.real_size = optional(value, decimal, "a size that is no number")?;
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                self.sparse.has_map = true;
                if self.sparse.map.len() == MAX_MAP {
                    return Err("a sparse map beyond the limit of 1,048,576 pieces");
                }
                self.sparse.map.push(decimal(value).ok_or("a sparse map that is no number")?);
            }
            b"GNU.sparse.map" => {
                self.sparse.has_map = true;
                self.sparse.map = match value {
                    b"" => Vec::new(),
                    _ => value
                        .split(|b| *b == b',')
                        .map(|n| decimal(n).ok_or("a sparse map that is no number"))
                        .collect::<Result<_, _>>()?,
                };
            }
            _ => {
                if let Some(xattr) = key.strip_prefix(b"SCHILY.xattr.") {
                    if xattr.is_empty() || xattr.contains(&0) {
                        return Err("an extended attribute whose name is none");
                    }
                    self.set_xattr(xattr, value, max_xattrs)?;
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8], max: u64) -> Result<(), &'static str> {
        if value.len() > MAX_VALUE {
            return Err("an extended attribute beyond the limit of 64 KiB");
        }
        let xattrs = Arc::make_mut(&mut self.xattrs);
        let old = xattrs.insert(name.to_vec(), value.to_vec());
        self.xattr_bytes += value.len() + if old.is_none() { name.len() } else { 0 };
        self.xattr_bytes -= old.map_or(0, |old| old.len());
        if xattrs.len() as u64 > max {
            return Err("more extended attributes than the limit for one entry");
        }
        if self.xattr_bytes > MAX_RECORDS {
            return Err("extended attributes beyond the limit of 1 MiB for one entry");
        }
        Ok(())
    }
}

/// Appends a record with its own length in front.
pub(super) fn append(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // Space, `=` and newline; then as many digits as make the length true.
    let body = key.len() + value.len() + 3;
    let mut len = body + 1;
    while len != body + len.to_string().len() {
        len = body + len.to_string().len();
    }
    records.extend_from_slice(len.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// An empty value takes an earlier one back.
fn optional<T>(
    value: &[u8],
    read: impl Fn(&[u8]) -> Option<T>,
    what: &'static str,
) -> Result<Option<T>, &'static str> {
    if value.is_empty() { Ok(None) } else { read(value).map(Some).ok_or(what) }
}

fn name(value: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    if value.contains(&0) {
        return Err("a name with a NUL in it");
    }
    if value.len() > MAX_VALUE {
        return Err("a name beyond the limit of 64 KiB");
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `-1.25` is a quarter second before -1: seconds are rounded down, nanoseconds count upwards.
fn timestamp(text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, magnitude) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (seconds, fraction) = magnitude.split_once('.').unwrap_or((magnitude, ""));
    let seconds: i64 = decimal(seconds.as_bytes())?.try_into().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut nanoseconds: u32 = 0;
    for digit in fraction.bytes().chain(std::iter::repeat(b'0')).take(9) {
        nanoseconds = nanoseconds * 10 + u32::from(digit - b'0');
    }
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

/// As [`timestamp`] reads it.
pub(super) fn timestamp_text((seconds, nanoseconds): Timestamp) -> String {
    let (sign, seconds, nanoseconds) = match (seconds < 0, nanoseconds) {
        (true, 0) => ("-", seconds.unsigned_abs(), 0),
        (true, _) => ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds),
        (false, _) => ("", seconds.unsigned_abs(), nanoseconds),
    };
    if nanoseconds == 0 {
        return format!("{sign}{seconds}");
    }
    format!("{sign}{seconds}.{nanoseconds:09}").trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_carry_their_own_length() {
        for len in [0, 1, 80, 85, 86, 87, 88, 90, 980, 985, 990] {
            let mut records = Vec::new();
            append(&mut records, b"path", &vec![b'x'; len]);
            append(&mut records, b"uid", b"7");
            let mut pax = Pax::default();
            pax.read(&records, 10).unwrap();
            assert_eq!(pax.path.unwrap_or_default().len(), len);
            assert_eq!(pax.uid, Some(7));
        }
    }

    #[test]
    fn times_before_1970_and_fractions() {
        for (text, time) in [
            ("1", (1, 0)),
            ("1.5", (1, 500_000_000)),
            ("-1.25", (-2, 750_000_000)),
            ("-3", (-3, 0)),
            ("0.000000001", (0, 1)),
        ] {
            assert_eq!(timestamp(text.as_bytes()), Some(time), "{text}");
            assert_eq!(timestamp_text(time), text);
        }
        assert_eq!(timestamp(b"1.1234567899"), Some((1, 123_456_789)));
        for bad in ["", "-", "1.x", "x", "+1", "99999999999999999999"] {
            assert_eq!(timestamp(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn bad_records_are_refused() {
        for bad in [&b"x"[..], b"5 a=b\n9", b"3 a\n", b"99 a=b\n", b"0 a=b\n", b"6 a=bc", b"12 path=a\0b\n"] {
            assert!(Pax::default().read(bad, 10).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    fn xattr(name: &str, value_len: usize) -> Vec<u8> {
        let mut records = Vec::new();
        append(&mut records, format!("SCHILY.xattr.user.{name}").as_bytes(), &vec![b'x'; value_len]);
        records
    }

    /// Many small records took a time that was the square of their number.
    #[test]
    fn regression_extended_attributes_are_bounded_while_they_are_read() {
        let read = |pax: &mut Pax, records: &[u8]| pax.read(records, 4096);
        assert!(read(&mut Pax::default(), &xattr("a", MAX_VALUE)).is_ok());
        assert!(read(&mut Pax::default(), &xattr("a", MAX_VALUE + 1)).unwrap_err().contains("64 KiB"));
        let many: Vec<u8> = (0..4097).flat_map(|n| xattr(&n.to_string(), 0)).collect();
        assert!(read(&mut Pax::default(), &many).unwrap_err().contains("more extended attributes"));
        assert!(read(&mut Pax::default(), &vec![0; MAX_RECORDS + 1]).unwrap_err().contains("1 MiB"));
        // However many headers they are spread over; one that is set again counts once.
        let mut pax = Pax::default();
        for _ in 0..40 {
            read(&mut pax, &xattr("same", MAX_VALUE)).unwrap();
        }
        let error = (0..40).find_map(|n| read(&mut pax, &xattr(&n.to_string(), MAX_VALUE)).err());
        assert!(error.is_some_and(|error| error.contains("1 MiB")), "{error:?}");
    }

    #[test]
    fn regression_global_records_are_shared() {
        let mut global = Pax::default();
        global.read(&xattr("a", 1000), 10).unwrap();
        let entry = global.clone();
        assert!(Arc::ptr_eq(&global.xattrs, &entry.xattrs));
    }
}
