//! Reading an index in place.
//!
//! Each block is compared with its checksum when it is first touched. Even behind a right checksum no number is
//! trusted: a parent is lower than its child, a child higher than its parent, a link ring rises, so no chain can
//! be endless, and every offset is checked against its section.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::Mmap;

use super::EntryId;
use super::error::IndexError;
use super::format::{
    self, BLOCK_LEN, BadHeader, Body, HEADER_LEN, Head, Header, Kind, OFFSET_LEN, SET_PREFIX_LEN,
};
use super::metadata::{self, Buffers, IndexedStat, Timestamp};
use super::view::View;
use crate::sys::mapping;
use crate::sys::xattr::Target;

/// A layer's index, open for reading from any number of threads. No call takes a lock or, apart from the page
/// faults of the mapping, waits for anything.
#[derive(Debug)]
pub struct LayerIndex {
    map: Mmap,
    header: Header,
    /// One bit for each block whose checksum was right.
    verified: Box<[AtomicU64]>,
}

/// One entry. Slices point into the index.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Its number.
    pub id: EntryId,
    /// Its name in the parent; empty for the root.
    pub name: &'a [u8],
    /// The directory it is in; the root's is the root.
    pub parent: EntryId,
    /// Attributes.
    pub stat: IndexedStat,
    /// Target of a symlink, else `None`.
    pub symlink: Option<&'a [u8]>,
    index: &'a LayerIndex,
    xattrs: Option<u64>,
}

/// One entry as listed: what needs no further reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child<'a> {
    /// Its number.
    pub id: EntryId,
    /// Its name.
    pub name: &'a [u8],
    /// Type and permission bits.
    pub mode: u32,
    /// Its inode number on disk.
    pub ino: u64,
    /// Of a device, else 0.
    pub rdev_major: u32,
    /// Of a device, else 0.
    pub rdev_minor: u32,
}

impl LayerIndex {
    /// Opens the index at `path` for the tree whose root directory `tree_root` is a descriptor of (`O_PATH` will do).
    /// Takes the same time for every size of index.
    ///
    /// The root directory is compared with what was recorded of it: number, time of creation, mode, owner, mtime
    /// and, if its ctime differs (as it does after a rename of the tree), its xattrs. Objects further down are
    /// not looked at; where the tree may have changed since, compare them when they are first used
    /// ([`IndexedStat::same_object`]).
    ///
    /// # Errors
    /// `File` (ENOENT when there is none), `NotAnIndex`, `Version`, `Damaged`, `Stale`, `Foreign`.
    pub fn open(path: &Path, tree_root: impl AsFd) -> Result<Self, IndexError> {
        Self::open_as(path, tree_root, View::current()?)
    }

    /// As [`Self::open`], by a process known to see layers in this way: hundreds of layers are opened by one.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn open_as(path: &Path, tree_root: impl AsFd, view: View) -> Result<Self, IndexError> {
        let index = Self::open_unchecked(path)?;
        index.check_view(view)?;
        index.check_root(tree_root.as_fd(), view)?;
        Ok(index)
    }

    /// Opens the index at `path` without comparing it with any tree: to see what is in it.
    ///
    /// # Errors
    /// `File` (ENOENT when there is none), `NotAnIndex`, `Version`, `Damaged`.
    pub fn open_unchecked(path: &Path) -> Result<Self, IndexError> {
        let (file, len) = open_regular(path)?;
        if len < format::MAGIC.len() as u64 {
            return Err(IndexError::NotAnIndex);
        }
        let map_len = usize::try_from(len).map_err(|_| IndexError::TooLarge { what: "bytes" })?;
        let map = mapping::map_readonly(&file, map_len).map_err(IndexError::file("map", path))?;
        let header = Header::decode(&map, len).map_err(|bad| match bad {
            BadHeader::Magic => IndexError::NotAnIndex,
            BadHeader::Version(found) => IndexError::Version { found, supported: format::VERSION },
            BadHeader::Damaged => IndexError::Damaged { what: "header", offset: 0 },
        })?;
        let verified = (0..header.block_count().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { map, header, verified })
    }

    #[cfg(test)]
    pub(super) fn verified_blocks(&self) -> u64 {
        self.verified.iter().map(|bits| u64::from(bits.load(Ordering::Relaxed).count_ones())).sum()
    }

    #[cfg(test)]
    pub(super) fn block_count(&self) -> u64 {
        self.header.block_count()
    }

    fn check_view(&self, view: View) -> Result<(), IndexError> {
        if view.trusted_xattrs && !self.header.trusted_xattrs {
            return Err(IndexError::Foreign { what: "trusted xattrs could not be seen" });
        }
        if view.id_maps != self.header.id_maps {
            return Err(IndexError::Foreign { what: "user and group ids were mapped differently" });
        }
        Ok(())
    }

    fn check_root(&self, tree_root: BorrowedFd<'_>, view: View) -> Result<(), IndexError> {
        let read_failed =
            |operation| move |source| IndexError::Tree { operation, path: Default::default(), source };
        let st = metadata::stat_at(tree_root, c"").map_err(read_failed("read attributes of"))?;
        let recorded = self.entry(self.root())?;
        let now = IndexedStat::from_statx(&st);
        if let Some(what) = recorded.stat.first_difference(&now, false) {
            return Err(IndexError::Stale { what });
        }
        if let (Some(then), Some(now)) = (self.header.root_birth, metadata::birth_of(&st))
            && then != now
        {
            return Err(IndexError::Stale { what: "time of creation" });
        }
        if recorded.stat.ctime != now.ctime {
            let mut xattrs = Vec::new();
            metadata::read_xattrs(Target::Fd(tree_root), &mut Buffers::default(), &mut xattrs)
                .map_err(read_failed("read xattrs of"))?;
            let xattrs = xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
            // Whoever cannot see `trusted.` xattrs can still use what the index says of the others.
            if !recorded
                .xattrs()?
                .filter(|(n, _)| view.trusted_xattrs || !n.starts_with(b"trusted."))
                .eq(xattrs)
            {
                return Err(IndexError::Stale { what: "xattrs" });
            }
        }
        Ok(())
    }

    /// The tree's root directory.
    pub fn root(&self) -> EntryId {
        EntryId(0)
    }

    /// Number of entries, the root included; at least 1.
    pub fn entry_count(&self) -> u32 {
        self.header.entry_count
    }

    /// Size of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.header.file_len
    }

    /// When the index was built, by the builder's clock.
    pub fn built_at(&self) -> Timestamp {
        self.header.built_at
    }

    /// The entry called `name` in the directory `dir`. `.` and `..` are names like others, that is: not found.
    ///
    /// # Errors
    /// `NotADirectory`, `NoSuchEntry`, `Damaged`.
    pub fn lookup(&self, dir: EntryId, name: &[u8]) -> Result<Option<EntryId>, IndexError> {
        let (first, count) = self.child_range(dir)?;
        let (mut low, mut high) = (first, first + count);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.name(EntryId(middle))?.cmp(name) {
                std::cmp::Ordering::Equal => return Ok(Some(EntryId(middle))),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// Everything about one entry but its xattrs, which are read when asked for.
    ///
    /// # Errors
    /// `NoSuchEntry`, `Damaged`.
    pub fn entry(&self, id: EntryId) -> Result<Entry<'_>, IndexError> {
        let (head, body) = self.decode(id)?;
        Ok(Entry {
            id,
            name: head.name,
            parent: EntryId(body.parent),
            stat: format::stat_of(&head, &body),
            symlink: match head.kind {
                Kind::Symlink(target) => Some(target),
                Kind::Plain | Kind::Directory { .. } | Kind::Device { .. } => None,
            },
            index: self,
            xattrs: body.xattrs,
        })
    }

    /// The entries of a directory in the byte order of their names, without `.` and `..`. Skipping (`nth`, `skip`)
    /// costs nothing.
    ///
    /// # Errors
    /// `NotADirectory`, `NoSuchEntry`, `Damaged`.
    pub fn children(&self, dir: EntryId) -> Result<Children<'_>, IndexError> {
        let (first, count) = self.child_range(dir)?;
        Ok(Children { index: self, next: first, end: first + count })
    }

    /// The directory that an entry is in; the root's is the root.
    ///
    /// # Errors
    /// `NoSuchEntry`, `Damaged`.
    pub fn parent(&self, id: EntryId) -> Result<EntryId, IndexError> {
        self.decode(id).map(|(_, body)| EntryId(body.parent))
    }

    /// The entry's path relative to the root, without a leading slash; empty for the root.
    ///
    /// # Errors
    /// `NoSuchEntry`, `Damaged`.
    pub fn path(&self, id: EntryId) -> Result<Vec<u8>, IndexError> {
        let mut names = Vec::new();
        let mut at = id;
        while at != self.root() {
            let (head, body) = self.decode(at)?;
            names.push(head.name);
            at = EntryId(body.parent);
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    /// All entries of the layer that are the same inode, in rising order, `id` included. Names outside of the layer
    /// are not known, so there may be fewer than `nlink`.
    ///
    /// # Errors
    /// `NoSuchEntry`, `Damaged`.
    pub fn hard_links(&self, id: EntryId) -> Result<Vec<EntryId>, IndexError> {
        let (head, body) = self.decode(id)?;
        let ino = head.ino;
        let mut links = vec![id];
        let (mut at, mut next) = (id, body.next_link);
        let mut wrapped = false;
        while let Some(number) = next.filter(|n| *n != id.0) {
            let link = EntryId(number);
            // Rising but for one step back to the lowest, and never past the start again: so this ends.
            let rises = link > at;
            if wrapped && (!rises || link > id) || !rises && link > id {
                return Err(self.damaged_record(at, "hard links"));
            }
            wrapped |= !rises;
            let (head, body) = self.decode(link)?;
            if head.ino != ino || body.next_link.is_none() {
                return Err(self.damaged_record(link, "hard links"));
            }
            links.push(link);
            (at, next) = (link, body.next_link);
        }
        links.sort_unstable();
        Ok(links)
    }

    /// Reads the whole file: every checksum, every record, and that they fit together.
    ///
    /// # Errors
    /// `Damaged`, with the place of the first fault.
    pub fn verify(&self) -> Result<(), IndexError> {
        self.bytes(HEADER_LEN as u64, self.header.checksums_at - HEADER_LEN as u64, "checksum")?;
        // Children of directories, taken in order of number, must be all entries but the root, in order.
        let mut expected_child = 1;
        for number in 0..self.entry_count() {
            let id = EntryId(number);
            let (head, body) = self.decode(id)?;
            let wrong = |what| self.damaged_record(id, what);
            if let Kind::Directory { first_child, children } = head.kind {
                if children > 0 && first_child != expected_child {
                    return Err(wrong("children"));
                }
                let mut previous: &[u8] = b"";
                for child in first_child..first_child + children {
                    let name = self.name(EntryId(child))?;
                    if name <= previous || self.parent(EntryId(child))? != id {
                        return Err(wrong("children"));
                    }
                    previous = name;
                }
                expected_child += children;
            }
            if body.next_link.is_some() && !self.hard_links_agree(id)? {
                return Err(wrong("hard links"));
            }
            self.entry(id)?.xattrs()?;
        }
        if expected_child != self.entry_count() {
            return Err(self.damaged_record(self.root(), "children"));
        }
        Ok(())
    }

    /// Whether the next link leads on to an entry with the same attributes, and round the ring from the lowest.
    fn hard_links_agree(&self, id: EntryId) -> Result<bool, IndexError> {
        let stat = self.entry(id)?.stat;
        let Some(next) = self.decode(id)?.1.next_link else { return Ok(true) };
        if next > id.0 {
            return Ok(self.entry(EntryId(next))?.stat == stat);
        }
        // The step back to the lowest: from there the ring is walked once.
        Ok(self.hard_links(EntryId(next))?.last() == Some(&id))
    }

    fn child_range(&self, dir: EntryId) -> Result<(u32, u32), IndexError> {
        let head = self.head(dir)?;
        let Kind::Directory { first_child, children } = head.kind else {
            return Err(IndexError::NotADirectory(dir));
        };
        Ok((first_child, children))
    }

    fn name(&self, id: EntryId) -> Result<&[u8], IndexError> {
        format::decode_name(self.record(id)?).ok_or_else(|| self.damaged_record(id, "name"))
    }

    fn head(&self, id: EntryId) -> Result<Head<'_>, IndexError> {
        format::decode_head(self.record(id)?)
            .filter(|head| self.is_sane(id, head))
            .ok_or_else(|| self.damaged_record(id, "record"))
    }

    fn decode(&self, id: EntryId) -> Result<(Head<'_>, Body), IndexError> {
        format::decode_record(self.record(id)?)
            .filter(|(head, body)| {
                let parent_is_lower = body.parent < id.0 || id.0 == 0 && body.parent == 0;
                parent_is_lower && self.is_sane(id, head)
            })
            .ok_or_else(|| self.damaged_record(id, "record"))
    }

    /// Type and mode agree, children are entries, and come after their directory.
    fn is_sane(&self, id: EntryId, head: &Head<'_>) -> bool {
        use rustix::fs::FileType;
        match (head.kind, FileType::from_raw_mode(head.mode)) {
            (Kind::Directory { first_child, children }, FileType::Directory) => {
                let end = first_child.checked_add(children);
                children == 0 || first_child > id.0 && end.is_some_and(|end| end <= self.entry_count())
            }
            (Kind::Device { .. }, FileType::CharacterDevice | FileType::BlockDevice) => true,
            (Kind::Symlink(_), FileType::Symlink) => true,
            (Kind::Plain, FileType::RegularFile | FileType::Fifo | FileType::Socket) => true,
            _ => false,
        }
    }

    /// The bytes of a record, behind right checksums.
    fn record(&self, id: EntryId) -> Result<&[u8], IndexError> {
        if id.0 >= self.entry_count() {
            return Err(IndexError::NoSuchEntry(id));
        }
        let at = self.offset_position(id);
        let offsets = self.bytes(at, 2 * OFFSET_LEN as u64, "offset")?;
        let damaged = || IndexError::Damaged { what: "offset", offset: at };
        let start = format::read_u64(offsets, 0).ok_or_else(damaged)?;
        let end = format::read_u64(offsets, OFFSET_LEN as u64).ok_or_else(damaged)?;
        if start > end || end > self.header.records_len {
            return Err(damaged());
        }
        self.bytes(self.header.records_at + start, end - start, "checksum")
    }

    fn offset_position(&self, id: EntryId) -> u64 {
        self.header.offsets_at + u64::from(id.0) * OFFSET_LEN as u64
    }

    fn damaged_record(&self, id: EntryId, what: &'static str) -> IndexError {
        let start = format::read_u64(&self.map, self.offset_position(id)).unwrap_or(0);
        IndexError::Damaged { what, offset: self.header.records_at.saturating_add(start) }
    }

    /// Bytes of the sections, their blocks compared with their checksums unless that was done before.
    fn bytes(&self, at: u64, len: u64, what: &'static str) -> Result<&[u8], IndexError> {
        let damaged = || IndexError::Damaged { what, offset: at };
        let end = at.checked_add(len).filter(|end| *end <= self.header.checksums_at).ok_or_else(damaged)?;
        // All below the file's length, which was found to fit into memory.
        let (at, end) = (at as usize, end as usize);
        if at < end {
            for block in (at - HEADER_LEN) / BLOCK_LEN..=(end - 1 - HEADER_LEN) / BLOCK_LEN {
                self.verify_block(block)?;
            }
        }
        self.map.get(at..end).ok_or_else(damaged)
    }

    fn verify_block(&self, block: usize) -> Result<(), IndexError> {
        let start = HEADER_LEN + block * BLOCK_LEN;
        let damaged = || IndexError::Damaged { what: "checksum", offset: start as u64 };
        let bits = self.verified.get(block / 64).ok_or_else(damaged)?;
        let bit = 1 << (block % 64);
        // Relaxed: the bit says something of bytes that never change, and two threads may both find it out.
        if bits.load(Ordering::Relaxed) & bit != 0 {
            return Ok(());
        }
        let end = (start + BLOCK_LEN).min(self.header.checksums_at as usize);
        let sum_at = self.header.checksums_at + (block * format::CHECKSUM_LEN) as u64;
        let expected = format::read_u32(&self.map, sum_at).ok_or_else(damaged)?;
        if format::checksum(self.map.get(start..end).ok_or_else(damaged)?) != expected {
            return Err(damaged());
        }
        bits.fetch_or(bit, Ordering::Relaxed);
        Ok(())
    }
}

/// A file that can be mapped, and its length. A fifo or device in its place must not be waited for.
fn open_regular(path: &Path) -> Result<(File, u64), IndexError> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty());
    let fd = fd.map_err(|e| IndexError::file("open", path)(e.into()))?;
    let file = File::from(fd);
    let metadata = file.metadata().map_err(IndexError::file("read attributes of", path))?;
    if metadata.is_file() { Ok((file, metadata.len())) } else { Err(IndexError::NotAnIndex) }
}

impl<'a> Entry<'a> {
    /// Names and values of all xattrs, in the byte order of the names.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn xattrs(&self) -> Result<Xattrs<'a>, IndexError> {
        let Some(offset) = self.xattrs else { return Ok(Xattrs { set: b"" }) };
        let header = &self.index.header;
        let at = header.xattrs_at.saturating_add(offset);
        let damaged = || IndexError::Damaged { what: "xattrs", offset: at };
        let room = header.records_at.checked_sub(at).ok_or_else(damaged)?;
        let prefix = self.index.bytes(at, SET_PREFIX_LEN as u64, "xattrs")?;
        let len = u64::from(format::read_u32(prefix, 0).ok_or_else(damaged)?);
        if len + SET_PREFIX_LEN as u64 > room {
            return Err(damaged());
        }
        let set = self.index.bytes(at + SET_PREFIX_LEN as u64, len, "xattrs")?;
        // Read through once, so that the iterator cannot meet an error half-way.
        let mut rest = set;
        while !rest.is_empty() {
            format::decode_xattr(&mut rest).ok_or_else(damaged)?;
        }
        Ok(Xattrs { set })
    }

    /// The value of one xattr.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn xattr(&self, name: &[u8]) -> Result<Option<&'a [u8]>, IndexError> {
        Ok(self.xattrs()?.find(|(n, _)| *n == name).map(|(_, value)| value))
    }

    /// Whether there is any xattr, without reading them.
    pub fn has_xattrs(&self) -> bool {
        self.xattrs.is_some()
    }
}

/// Iterator over an entry's xattrs: name and value.
#[derive(Debug, Clone)]
pub struct Xattrs<'a> {
    set: &'a [u8],
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.set.is_empty() { None } else { format::decode_xattr(&mut self.set) }
    }
}

/// Iterator over a directory's entries.
#[derive(Debug, Clone)]
pub struct Children<'a> {
    index: &'a LayerIndex,
    next: u32,
    end: u32,
}

impl<'a> Iterator for Children<'a> {
    type Item = Result<Child<'a>, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.nth(0)
    }

    fn nth(&mut self, skipped: usize) -> Option<Self::Item> {
        if skipped >= self.len() {
            self.next = self.end;
            return None;
        }
        // Less than the length, which is a difference of two u32.
        let id = EntryId(self.next + skipped as u32);
        self.next = id.0 + 1;
        Some(self.index.head(id).map(|head| {
            let (rdev_major, rdev_minor) = format::rdev_of(&head);
            Child { id, name: head.name, mode: head.mode, ino: head.ino, rdev_major, rdev_minor }
        }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let len = (self.end - self.next) as usize;
        (len, Some(len))
    }
}

impl ExactSizeIterator for Children<'_> {}
