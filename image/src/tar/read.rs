//! Reading an archive, entry by entry, in one pass over any stream.

use std::io::{self, BufRead};

use super::header::{Format, Header, sparse_pieces};
use super::pax::{MAX_RECORDS, Pax, decimal};
use super::{BLOCK, Entry, EntryKind, TarError, lossy};

/// What an archive may ask for before it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TarLimits {
    /// Bytes of a PAX header (1 MiB at most), or of a GNU long name.
    pub extension: u64,
    /// Bytes of a path or of a link's target.
    pub path: u64,
    /// Pieces of a sparse file.
    pub pieces: u64,
    /// Extended attributes of one entry.
    pub xattrs: u64,
}

impl Default for TarLimits {
    fn default() -> Self {
        Self { extension: 4 << 20, path: 4095, pieces: 1 << 20, xattrs: 4096 }
    }
}

/// A reader of archives. After an error it is of no more use.
#[derive(Debug)]
pub struct TarReader<R> {
    input: R,
    limits: TarLimits,
    /// Bytes of the archive that were read.
    position: u64,
    /// Data of the current entry that was not read yet, and what fills its last block.
    remaining: u64,
    padding: u64,
    global: Pax,
    ended: bool,
}

impl<R: BufRead> TarReader<R> {
    /// Reads from the beginning of an uncompressed archive.
    pub fn new(input: R, limits: TarLimits) -> Self {
        Self { input, limits, position: 0, remaining: 0, padding: 0, global: Pax::default(), ended: false }
    }

    /// Bytes of the archive that were read.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The input, wherever it is.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// The input, for whoever can skip in it: `len` bytes of the current entry's data were passed over.
    pub fn skipped(&mut self, len: u64) -> &mut R {
        let len = len.min(self.remaining);
        self.remaining -= len;
        self.position += len;
        &mut self.input
    }

    /// The next entry; what is left of the data of the one before is passed over. `None` at the end.
    ///
    /// # Errors
    /// Whatever [`TarError`] tells.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        if self.ended {
            return Ok(None);
        }
        self.skip_data()?;
        let mut pax = self.global.clone();
        let (mut long_name, mut long_link) = (None, None);
        let mut extended = false;
        let xattrs = self.limits.xattrs;
        loop {
            let at = self.position;
            let Some(block) = self.read_header(extended)? else { return Ok(None) };
            let header = Header(&block);
            if !header.is_valid() {
                return Err(TarError::Checksum { at });
            }
            let field = |what: &str| TarError::Field { path: lossy(&header.path()), what: what.into() };
            let size = u64::try_from(header.size().ok_or_else(|| field("a size that is no number"))?)
                .map_err(|_| field("a negative size"))?;
            match header.type_flag() {
                b'x' | b'X' => {
                    let records = self.read_extension(size, "a PAX header", MAX_RECORDS as u64)?;
                    pax.read(&records, xattrs).map_err(|what| TarError::Pax { at, what })?;
                }
                b'g' => {
                    let records = self.read_extension(size, "a PAX header", MAX_RECORDS as u64)?;
                    self.global.read(&records, xattrs).map_err(|what| TarError::Pax { at, what })?;
                    if self.global.sparse.has_map {
                        return Err(TarError::Pax { at, what: "a sparse map for all entries" });
                    }
                    pax.read(&records, xattrs).map_err(|what| TarError::Pax { at, what })?;
                }
                b'L' => {
                    long_name =
                        Some(trimmed(self.read_extension(size, "a long name", self.limits.extension)?))
                }
                b'K' => {
                    long_link =
                        Some(trimmed(self.read_extension(size, "a long name", self.limits.extension)?))
                }
                // A volume's label describes no object.
                b'V' => {
                    self.set_data(size);
                    self.skip_data()?;
                }
                _ => {
                    let mut entry = self.entry(&header, size, &pax)?;
                    // GNU's names are overridden by PAX as everywhere.
                    if let Some(name) = long_name.filter(|_| pax.path.is_none() && pax.sparse.name.is_none())
                    {
                        entry.path = name;
                        entry.kind = kind_of(&header, &entry.path)?;
                    }
                    if let Some(link) = long_link.filter(|_| pax.link.is_none()) {
                        entry.link = link;
                    }
                    self.finish_entry(&mut entry, &header, &pax)?;
                    return Ok(Some(entry));
                }
            }
            extended = true;
        }
    }

    /// The next bytes of the current entry's data; empty at its end. [`consume`](Self::consume) takes them.
    ///
    /// # Errors
    /// `Read`, `Truncated`.
    pub fn data(&mut self) -> Result<&[u8], TarError> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let remaining = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let bytes = fill(&mut self.input).map_err(TarError::Read)?;
        if bytes.is_empty() {
            return Err(TarError::Truncated("a file"));
        }
        Ok(&bytes[..bytes.len().min(remaining)])
    }

    /// Takes `len` of the bytes that [`data`](Self::data) gave.
    pub fn consume(&mut self, len: usize) {
        self.input.consume(len);
        self.remaining = self.remaining.saturating_sub(len as u64);
        self.position += len as u64;
    }

    /// All data of the current entry.
    ///
    /// # Errors
    /// `Limit` when it is longer than `limit`; `Read`, `Truncated`.
    pub fn read_data(&mut self, limit: u64) -> Result<Vec<u8>, TarError> {
        if self.remaining > limit {
            return Err(TarError::Limit { path: String::new(), what: "its size", limit });
        }
        let mut all = Vec::with_capacity(usize::try_from(self.remaining).unwrap_or(0));
        loop {
            let bytes = self.data()?;
            let len = bytes.len();
            if len == 0 {
                return Ok(all);
            }
            all.extend_from_slice(bytes);
            self.consume(len);
        }
    }

    /// Reads what follows the end of the archive: its digest covers that too.
    ///
    /// # Errors
    /// `Read`.
    pub fn drain(&mut self) -> Result<(), TarError> {
        loop {
            let len = fill(&mut self.input).map_err(TarError::Read)?.len();
            if len == 0 {
                return Ok(());
            }
            self.input.consume(len);
            self.position += len as u64;
        }
    }

    fn set_data(&mut self, size: u64) {
        self.remaining = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn skip_data(&mut self) -> Result<(), TarError> {
        while self.remaining > 0 {
            let len = self.data()?.len();
            self.consume(len);
        }
        let mut left = std::mem::take(&mut self.padding);
        while left > 0 {
            let len = fill(&mut self.input).map_err(TarError::Read)?.len();
            if len == 0 {
                return Err(TarError::Truncated("a file's last block"));
            }
            let len = len.min(usize::try_from(left).unwrap_or(usize::MAX));
            self.input.consume(len);
            self.position += len as u64;
            left -= len as u64;
        }
        Ok(())
    }

    /// The next header block; `None` at the end of the archive, which may be cut short there.
    fn read_header(&mut self, extended: bool) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        match self.read_block(&mut block)? {
            true if block.iter().any(|byte| *byte != 0) => Ok(Some(block)),
            _ if extended => Err(TarError::Truncated("an entry: a header announces one, and none follows")),
            _ => {
                self.ended = true;
                Ok(None)
            }
        }
    }

    /// False at the end of the input.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, TarError> {
        let mut have = 0;
        while have < BLOCK {
            let bytes = fill(&mut self.input).map_err(TarError::Read)?;
            let len = bytes.len().min(BLOCK - have);
            if len == 0 {
                return if have == 0 { Ok(false) } else { Err(TarError::Truncated("a header")) };
            }
            block[have..have + len].copy_from_slice(&bytes[..len]);
            self.input.consume(len);
            self.position += len as u64;
            have += len;
        }
        Ok(true)
    }

    fn read_extension(&mut self, size: u64, what: &'static str, most: u64) -> Result<Vec<u8>, TarError> {
        let limit = self.limits.extension.min(most);
        if size > limit {
            return Err(TarError::Limit { path: String::new(), what, limit });
        }
        self.set_data(size);
        let bytes = self.read_data(size)?;
        self.skip_data()?;
        Ok(bytes)
    }

    fn entry(&self, header: &Header<'_>, size: u64, pax: &Pax) -> Result<Entry, TarError> {
        let path = match (&pax.sparse.name, &pax.path) {
            (Some(name), _) | (None, Some(name)) => name.clone(),
            (None, None) => header.path(),
        };
        let field = |what: &str| TarError::Field { path: lossy(&path), what: what.into() };
        let kind = kind_of(header, &path)?;
        let number = |value: Option<i64>, what: &str| value.ok_or_else(|| field(what));
        let id = |pax: Option<u64>, own: Option<i64>, what: &str| match pax {
            Some(id) => u32::try_from(id).map_err(|_| field(what)),
            None => number(own, what).and_then(|id| u32::try_from(id).map_err(|_| field(what))),
        };
        let device = match kind {
            EntryKind::CharDevice | EntryKind::BlockDevice => {
                let own = header.device().ok_or_else(|| field("a device number that is none"))?;
                let part = |pax: Option<u64>, own: i64| {
                    pax.map_or_else(|| u32::try_from(own).ok(), |n| u32::try_from(n).ok())
                        .ok_or_else(|| field("a device number that is none"))
                };
                (part(pax.device.0, own.0)?, part(pax.device.1, own.1)?)
            }
            _ => (0, 0),
        };
        let xattrs = pax.xattrs.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        Ok(Entry {
            kind,
            link: pax.link.clone().unwrap_or_else(|| header.link()),
            mode: number(header.mode(), "a mode that is no number")? as u32 & 0o7777,
            uid: id(pax.uid, header.uid(), "an owner beyond 32 bits")?,
            gid: id(pax.gid, header.gid(), "a group beyond 32 bits")?,
            size: pax.size.unwrap_or(size),
            mtime: match pax.mtime {
                Some(time) => time,
                None => (number(header.mtime(), "a time that is no number")?, 0),
            },
            atime: pax.atime,
            device,
            xattrs,
            sparse: None,
            path,
        })
    }

    /// What the data is, and whether all is within the limits.
    fn finish_entry(&mut self, entry: &mut Entry, header: &Header<'_>, pax: &Pax) -> Result<(), TarError> {
        let limits = self.limits;
        let limit = |path: &[u8], what, limit| TarError::Limit { path: lossy(path), what, limit };
        if entry.path.len() as u64 > limits.path {
            return Err(limit(&entry.path[..80], "the length of its name", limits.path));
        }
        if entry.link.len() as u64 > limits.path {
            return Err(limit(&entry.path, "the length of its target", limits.path));
        }
        if entry.xattrs.len() as u64 > limits.xattrs {
            return Err(limit(&entry.path, "the number of its xattrs", limits.xattrs));
        }
        let stored = entry.size;
        if entry.kind != EntryKind::File {
            // Old programs wrote a size for hard links (the file's) and for directories; data follows neither,
            // except where POSIX' PAX allows it, which nobody does.
            self.set_data(if header.type_flag() == b'D' { stored } else { 0 });
            entry.size = 0;
            return Ok(());
        }
        self.set_data(stored);
        if header.type_flag() == b'S' && header.format() == Format::Gnu {
            let field = |what: &str| TarError::Field { path: lossy(&entry.path), what: what.into() };
            let (mut pieces, mut more, real) =
                header.gnu_sparse().ok_or_else(|| field("a sparse map that is none"))?;
            while more {
                let mut block = [0; BLOCK];
                if !self.read_block(&mut block)? {
                    return Err(TarError::Truncated("a sparse map"));
                }
                pieces
                    .extend(sparse_pieces(&block[..504]).ok_or_else(|| field("a sparse map that is none"))?);
                more = block[504] != 0;
                if pieces.len() as u64 > limits.pieces {
                    return Err(limit(&entry.path, "the number of its pieces", limits.pieces));
                }
            }
            entry.size = real;
            entry.sparse = Some(pieces);
        } else if pax.sparse.major == Some(1) && pax.sparse.minor == Some(0) {
            entry.sparse = Some(self.read_sparse_map(entry)?);
            entry.size = pax.sparse.real_size.unwrap_or(stored);
        } else if pax.sparse.has_map {
            let map = &pax.sparse.map;
            if !map.len().is_multiple_of(2) {
                return Err(TarError::Field {
                    path: lossy(&entry.path),
                    what: "a sparse map of an odd number of numbers".into(),
                });
            }
            entry.size = pax.sparse.real_size.unwrap_or(stored);
            entry.sparse = Some(map.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect());
        }
        match &entry.sparse {
            Some(pieces) => check_pieces(entry, pieces, self.remaining, limits),
            None => Ok(()),
        }
    }

    /// Version 1.0: the map stands in front of the data, as decimal numbers, a newline after each.
    fn read_sparse_map(&mut self, entry: &Entry) -> Result<Vec<(u64, u64)>, TarError> {
        let bad = || TarError::Field { path: lossy(&entry.path), what: "a sparse map that is none".into() };
        let mut taken: u64 = 0;
        let mut numbers = Vec::new();
        let mut digits = Vec::new();
        let mut expected = None;
        while expected != Some(numbers.len()) {
            let Some(&byte) = self.data()?.first() else { return Err(bad()) };
            self.consume(1);
            taken += 1;
            match byte {
                b'\n' => {
                    let number = decimal(&digits).ok_or_else(bad)?;
                    digits.clear();
                    if expected.is_some() {
                        numbers.push(number);
                    } else if number > self.limits.pieces {
                        let path = lossy(&entry.path);
                        let limit = self.limits.pieces;
                        return Err(TarError::Limit { path, what: "the number of its pieces", limit });
                    } else {
                        expected = Some(number as usize * 2);
                    }
                }
                _ if digits.len() < 20 => digits.push(byte),
                _ => return Err(bad()),
            }
        }
        // The map fills whole blocks.
        let mut fill = (BLOCK as u64 - taken % BLOCK as u64) % BLOCK as u64;
        while fill > 0 {
            let len = self.data()?.len().min(usize::try_from(fill).unwrap_or(usize::MAX));
            if len == 0 {
                return Err(bad());
            }
            self.consume(len);
            fill -= len as u64;
        }
        Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }
}

/// Pieces rise, lie within the file, and have all the data there is.
fn check_pieces(entry: &Entry, pieces: &[(u64, u64)], data: u64, limits: TarLimits) -> Result<(), TarError> {
    let field = |what: &str| TarError::Field { path: lossy(&entry.path), what: what.into() };
    if pieces.len() as u64 > limits.pieces {
        let path = lossy(&entry.path);
        return Err(TarError::Limit { path, what: "the number of its pieces", limit: limits.pieces });
    }
    let (mut end, mut total) = (0_u64, 0_u64);
    for &(offset, len) in pieces {
        if offset < end {
            return Err(field("a sparse map whose pieces overlap"));
        }
        end = offset.checked_add(len).ok_or_else(|| field("a sparse map beyond 64 bits"))?;
        total = total.saturating_add(len);
    }
    if end > entry.size {
        return Err(field("a sparse map that leads beyond the file's end"));
    }
    if total != data {
        return Err(field("a sparse map that does not fit the data"));
    }
    Ok(())
}

fn kind_of(header: &Header<'_>, path: &[u8]) -> Result<EntryKind, TarError> {
    Ok(match header.type_flag() {
        // Before POSIX a directory was a name with a slash at its end.
        b'0' | 0 | b'7' if path.ends_with(b"/") => EntryKind::Directory,
        b'0' | 0 | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' | b'D' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        other => return Err(TarError::Kind { path: lossy(path), kind: char::from(other) }),
    })
}

fn trimmed(mut name: Vec<u8>) -> Vec<u8> {
    let len = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    name.truncate(len);
    name
}

/// As `fill_buf`, without being stopped by a signal.
fn fill<R: BufRead>(input: &mut R) -> io::Result<&[u8]> {
    loop {
        match input.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // The bytes are there: this asks nobody again.
    input.fill_buf()
}
