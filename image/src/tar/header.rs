//! The 512 bytes of a header: fields at fixed places (POSIX.1-1988 ustar; GNU tar manual, "Basic Tar Format").

use super::{BLOCK, Piece};

/// A header block.
pub(super) struct Header<'a>(pub(super) &'a [u8; BLOCK]);

/// Which extension of the old format a header follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    Ustar,
    Gnu,
}

impl Header<'_> {
    /// True when the checksum is right; some old programs added signed bytes.
    pub(super) fn is_valid(&self) -> bool {
        let Some(stored) = number(&self.0[148..156]) else { return false };
        let in_sum = |at: usize, byte: u8| if (148..156).contains(&at) { b' ' } else { byte };
        let unsigned: i64 = self.0.iter().enumerate().map(|(at, b)| i64::from(in_sum(at, *b))).sum();
        let signed: i64 = self.0.iter().enumerate().map(|(at, b)| i64::from(in_sum(at, *b) as i8)).sum();
        stored == unsigned || stored == signed
    }

    pub(super) fn format(&self) -> Format {
        match &self.0[257..265] {
            b"ustar\x0000" => Format::Ustar,
            b"ustar  \0" => Format::Gnu,
            magic if magic.starts_with(b"ustar") => Format::Ustar,
            _ => Format::V7,
        }
    }

    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        if self.format() == Format::Ustar {
            let prefix = text(&self.0[345..500]);
            if !prefix.is_empty() {
                return [prefix, b"/", name].concat();
            }
        }
        name.to_vec()
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn mode(&self) -> Option<i64> {
        number(&self.0[100..108])
    }

    pub(super) fn uid(&self) -> Option<i64> {
        number(&self.0[108..116])
    }

    pub(super) fn gid(&self) -> Option<i64> {
        number(&self.0[116..124])
    }

    pub(super) fn size(&self) -> Option<i64> {
        number(&self.0[124..136])
    }

    pub(super) fn mtime(&self) -> Option<i64> {
        number(&self.0[136..148])
    }

    pub(super) fn device(&self) -> Option<(i64, i64)> {
        if self.format() == Format::V7 {
            return Some((0, 0));
        }
        Some((number(&self.0[329..337])?, number(&self.0[337..345])?))
    }

    /// GNU sparse: the first four pieces, whether more follow in extension blocks, and the file's real size.
    pub(super) fn gnu_sparse(&self) -> Option<(Vec<Piece>, bool, u64)> {
        let real = u64::try_from(number(&self.0[483..495])?).ok()?;
        Some((sparse_pieces(&self.0[386..482])?, self.0[482] != 0, real))
    }
}

/// Pairs of offset and length, of 12 bytes each number; ends at an empty one.
pub(super) fn sparse_pieces(field: &[u8]) -> Option<Vec<(u64, u64)>> {
    let mut pieces = Vec::new();
    for pair in field.chunks_exact(24) {
        if pair[0] == 0 || pair[12] == 0 {
            break;
        }
        pieces.push((number(&pair[..12])?.try_into().ok()?, number(&pair[12..])?.try_into().ok()?));
    }
    Some(pieces)
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits, or base 256 when the first bit is set. An empty field is 0. `None` for anything else, and for
/// numbers beyond 63 bits.
fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Two's complement over the field without its first bit.
        let negative = first & 0x40 != 0;
        let start = if negative { i128::from(first | 0x80) - 256 } else { i128::from(first & 0x3f) };
        let mut value = start;
        for &byte in rest {
            value = value.checked_mul(256)? + i128::from(byte);
        }
        return i64::try_from(value).ok();
    }
    let digits = field.iter().copied().skip_while(|b| *b == b' ');
    let mut value: i64 = 0;
    for byte in digits {
        match byte {
            b'0'..=b'7' => value = value.checked_mul(8)?.checked_add(i64::from(byte - b'0'))?,
            b' ' | 0 => break,
            _ => return None,
        }
    }
    Some(value)
}

/// Fields of a header that is to be written; what does not fit must be in a PAX header before it.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    pub(super) path: &'a [u8],
    pub(super) link: &'a [u8],
    pub(super) type_flag: u8,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) device: (u32, u32),
}

/// Greatest numbers that ustar's octal fields of 8 and 12 bytes hold.
pub(super) const MAX_SHORT: u64 = 0o777_7777;
pub(super) const MAX_LONG: u64 = 0o777_7777_7777;

impl Fields<'_> {
    /// Encodes; numbers and names that do not fit are cut, as the PAX header says them better.
    pub(super) fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0_u8; BLOCK];
        let (prefix, name) = split_path(self.path).unwrap_or((b"", self.path));
        put(&mut block[..100], name);
        put(&mut block[345..500], prefix);
        put(&mut block[157..257], self.link);
        octal(&mut block[100..108], u64::from(self.mode));
        octal(&mut block[108..116], u64::from(self.uid).min(MAX_SHORT));
        octal(&mut block[116..124], u64::from(self.gid).min(MAX_SHORT));
        octal(&mut block[124..136], self.size.min(MAX_LONG));
        octal(&mut block[136..148], u64::try_from(self.mtime).unwrap_or(0).min(MAX_LONG));
        block[156] = self.type_flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut block[329..337], u64::from(self.device.0).min(MAX_SHORT));
        octal(&mut block[337..345], u64::from(self.device.1).min(MAX_SHORT));
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// Prefix and name such that both fit; `None` where that cannot be.
pub(super) fn split_path(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return Some((b"", path));
    }
    // A directory's final slash belongs to its name.
    let body = path.strip_suffix(b"/").unwrap_or(path);
    let earliest = path.len().saturating_sub(101);
    let cut = (earliest..=155.min(body.len().saturating_sub(1))).find(|at| body[*at] == b'/')?;
    (cut > 0).then(|| (&path[..cut], &path[cut + 1..]))
}

fn put(field: &mut [u8], bytes: &[u8]) {
    let len = bytes.len().min(field.len());
    field[..len].copy_from_slice(&bytes[..len]);
}

fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    put(field, format!("{value:0width$o}").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000755\0"), Some(0o755));
        assert_eq!(number(b"   755 \0"), Some(0o755));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"12345678"), None);
        assert_eq!(number(b"77777777"), Some(0o77777777));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0xbf; 12]), None, "beyond 63 bits");
    }

    #[test]
    fn long_paths_are_split_where_both_parts_fit() {
        let path = [b"d/".repeat(70), b"n".repeat(60)].concat();
        let (prefix, name) = split_path(&path).unwrap();
        assert!(prefix.len() <= 155 && name.len() <= 100);
        assert_eq!([prefix, b"/", name].concat(), path);
        assert_eq!(split_path(&b"n".repeat(101)), None);
        assert_eq!(split_path(&b"d/".repeat(200)), None);
    }
}
