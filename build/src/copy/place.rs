//! Where things go: a layer's archive with what a step copies, over the layers that are there.
//!
//! Links of the image are followed within its root; directories that are there keep their attributes. Nothing is
//! mounted: the layers below are read only where the destination leads.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{BufReader, Read, Write};

use layerfs_image::compression::decompress;
use layerfs_image::layer::{MergedDirectory, Stack, is_plain_root};
use layerfs_image::tar::{Entry, EntryKind, TarLimits, TarReader, TarWriter, Timestamp};
use rustix::fs::FileType;

use super::CopyError;
use super::select::{Content, Group, GroupKind, Item};

/// Links that a destination may lead over.
const MAX_LINKS: usize = 40;
/// Directories of the layers below that are kept open.
const MAX_OPEN: usize = 200;

/// How things are placed.
#[derive(Debug, Clone, Default)]
pub struct Placement {
    /// Absolute; with a slash at its end it is a directory.
    pub destination: String,
    /// Owner of all.
    pub owner: Option<(u32, u32)>,
    /// Permission bits of all but links.
    pub mode: Option<u32>,
    /// What is below does not count (`--link`).
    pub link: bool,
    /// Time of directories that are made.
    pub now: Timestamp,
    /// No later time is kept.
    pub latest: Option<i64>,
}

/// Writes the layer that has `groups` at their places over `lowers`. Answers with `out`.
///
/// # Errors
/// When something is in the way, or cannot be read or written.
pub fn place<W: Write>(
    placement: &Placement,
    groups: &[Group],
    lowers: &Stack,
    out: W,
) -> Result<W, CopyError> {
    let mut layer = LayerWriter {
        placement,
        lowers,
        made: HashMap::new(),
        opened: HashMap::new(),
        out: TarWriter::new(out),
    };
    layer.root()?;
    let wants_directory = placement.destination.ends_with('/') || groups.len() > 1;
    let names: Vec<Vec<u8>> = names_of(placement.destination.as_bytes());
    let destination = layer.resolve(&names, true)?;
    if wants_directory || groups.is_empty() {
        layer.directories(&destination)?;
    }
    for group in groups {
        let is_directory = layer.look(&destination)? == Seen::Directory;
        match group.kind {
            GroupKind::File if !wants_directory && !is_directory => layer.group(group, &destination)?,
            GroupKind::File => {
                let target = [destination.as_slice(), std::slice::from_ref(&group.base)].concat();
                layer.group(group, &target)?;
            }
            GroupKind::Contents | GroupKind::Parents => {
                layer.directories(&destination)?;
                layer.group(group, &destination)?;
            }
            GroupKind::Archive => {
                layer.directories(&destination)?;
                layer.archive(group, &destination)?;
            }
        }
    }
    layer.out.finish().map_err(CopyError::Write)
}

/// Writes a layer with an empty object at each of `targets` (a path, and whether it is a directory) that `lowers` do not
/// have: what mounts go on. Answers with the number of objects, and `out`.
///
/// # Errors
/// When something is in the way, or cannot be read or written.
pub fn place_mountpoints<W: Write>(
    targets: &[(String, bool)],
    lowers: &Stack,
    out: W,
) -> Result<(usize, W), CopyError> {
    let placement = Placement::default();
    let mut layer = LayerWriter {
        placement: &placement,
        lowers,
        made: HashMap::new(),
        opened: HashMap::new(),
        out: TarWriter::new(out),
    };
    layer.root()?;
    let mut count = 0;
    for (target, is_directory) in targets {
        let path = layer.resolve(&names_of(target.as_bytes()), true)?;
        if path.is_empty() || layer.look(&path)? != Seen::Absent {
            continue;
        }
        count += 1;
        if *is_directory {
            layer.directories(&path)?;
            continue;
        }
        let mut entry = Entry::new(Vec::new(), EntryKind::File);
        entry.mode = 0o644;
        let item = Item { name: Vec::new(), entry, content: Content::None, digest: None, same_as: None };
        layer.object(&item, &path, None)?;
    }
    Ok((count, layer.out.finish().map_err(CopyError::Write)?))
}

fn names_of(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

fn shown(path: &[Vec<u8>]) -> String {
    format!("/{}", String::from_utf8_lossy(&path.join(&b'/')))
}

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Absent,
    Directory,
    Link(Vec<u8>),
    Other,
}

struct LayerWriter<'a, W: Write> {
    placement: &'a Placement,
    lowers: &'a Stack,
    /// What this layer has, by its path.
    made: HashMap<Vec<Vec<u8>>, Seen>,
    opened: HashMap<Vec<Vec<u8>>, Option<MergedDirectory>>,
    out: TarWriter<W>,
}

impl<W: Write> LayerWriter<'_, W> {
    /// The root looks as it did; about a plain one nothing is said.
    fn root(&mut self) -> Result<(), CopyError> {
        let entry = self.lowers.root_entry().map_err(CopyError::read("/"))?;
        match entry.filter(|entry| !is_plain_root(entry)) {
            Some(mut entry) => {
                entry.path = b"./".to_vec();
                self.header(&mut entry)
            }
            None => Ok(()),
        }
    }

    fn header(&mut self, entry: &mut Entry) -> Result<(), CopyError> {
        if let Some(latest) = self.placement.latest.filter(|latest| entry.mtime > (*latest, 0)) {
            entry.mtime = (latest, 0);
        }
        entry.atime = None;
        self.out.header(entry).map_err(CopyError::Write)
    }

    /// The directory at `path`, without links, in the layers below.
    fn below(&mut self, path: &[Vec<u8>]) -> Result<Option<MergedDirectory>, CopyError> {
        if self.placement.link {
            return Ok(None);
        }
        if let Some(known) = self.opened.get(path) {
            return Ok(known.clone());
        }
        let found = match path.split_last() {
            None if self.lowers.is_empty() => None,
            None => Some(self.lowers.root().map_err(CopyError::read("/"))?),
            Some((name, parent)) => match self.below(parent)? {
                None => None,
                Some(directory) => {
                    let object =
                        self.lowers.child(&directory, name).map_err(CopyError::read(&shown(path)))?;
                    object.and_then(|object| object.directory().cloned())
                }
            },
        };
        if self.opened.len() >= MAX_OPEN {
            self.opened.clear();
        }
        self.opened.insert(path.to_vec(), found.clone());
        Ok(found)
    }

    fn look(&mut self, path: &[Vec<u8>]) -> Result<Seen, CopyError> {
        if let Some(made) = self.made.get(path) {
            return Ok(made.clone());
        }
        let Some((name, parent)) = path.split_last() else { return Ok(Seen::Directory) };
        let Some(directory) = self.below(parent)? else { return Ok(Seen::Absent) };
        let failed = || CopyError::read(&shown(path));
        Ok(match self.lowers.child(&directory, name).map_err(failed())? {
            None => Seen::Absent,
            Some(object) => match object.kind() {
                FileType::Directory => Seen::Directory,
                FileType::Symlink => Seen::Link(object.describe(self.lowers).map_err(failed())?.link),
                _ => Seen::Other,
            },
        })
    }

    /// The path without links that `names` lead to, within the root; a link at the end is followed if `follow`.
    fn resolve(&mut self, names: &[Vec<u8>], follow: bool) -> Result<Vec<Vec<u8>>, CopyError> {
        let mut left: VecDeque<Vec<u8>> = names.iter().cloned().collect();
        let mut at: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            if name == b".." {
                at.pop();
                continue;
            }
            at.push(name);
            if left.is_empty() && !follow {
                break;
            }
            match self.look(&at)? {
                Seen::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(CopyError::Loop(shown(names)));
                    }
                    at.pop();
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    for name in names_of(&target).into_iter().rev() {
                        left.push_front(name);
                    }
                }
                Seen::Other if !left.is_empty() => {
                    return Err(CopyError::NotADirectory { path: shown(names), in_the_way: shown(&at) });
                }
                _ => {}
            }
        }
        Ok(at)
    }

    /// Sees to it that the directory at `path`, which has no links, and all above it are in the layer.
    fn directories(&mut self, path: &[Vec<u8>]) -> Result<(), CopyError> {
        for len in 1..=path.len() {
            let path = path.get(..len).unwrap_or_default();
            if self.made.get(path) == Some(&Seen::Directory) {
                continue;
            }
            let mut entry = match self.look(path)? {
                Seen::Directory => self.existing(path)?,
                Seen::Absent => {
                    let mut entry = Entry::new(Vec::new(), EntryKind::Directory);
                    entry.mode = 0o755;
                    (entry.uid, entry.gid) = self.placement.owner.unwrap_or((0, 0));
                    entry.mtime = self.placement.now;
                    entry
                }
                _ => {
                    return Err(CopyError::NotADirectory {
                        path: format!("{}/", shown(path)),
                        in_the_way: shown(path),
                    });
                }
            };
            entry.path = path.join(&b'/');
            self.refuse_whiteout(path)?;
            self.header(&mut entry)?;
            self.made.insert(path.to_vec(), Seen::Directory);
        }
        Ok(())
    }

    /// A directory of the layers below, as it is.
    fn existing(&mut self, path: &[Vec<u8>]) -> Result<Entry, CopyError> {
        let failed = || CopyError::read(&shown(path));
        let (name, parent) = path.split_last().ok_or_else(|| CopyError::Loop(shown(path)))?;
        let object = match self.below(parent)? {
            Some(directory) => self.lowers.child(&directory, name).map_err(failed())?,
            None => None,
        };
        let object = object.ok_or_else(|| failed()(rustix::io::Errno::NOENT))?;
        object.describe(self.lowers).map_err(failed())
    }

    fn refuse_whiteout(&self, path: &[Vec<u8>]) -> Result<(), CopyError> {
        match path.last().is_some_and(|name| name.starts_with(b".wh.")) {
            true => Err(CopyError::Whiteout(shown(path))),
            false => Ok(()),
        }
    }

    fn group(&mut self, group: &Group, base: &[Vec<u8>]) -> Result<(), CopyError> {
        let mut paths: Vec<Vec<u8>> = Vec::with_capacity(group.items.len());
        for item in &group.items {
            let names = [base, item.name.as_slice()].concat();
            let path = self.resolve(&names, item.entry.kind == EntryKind::Directory)?;
            paths.push(path.join(&b'/'));
            if item.entry.kind == EntryKind::Directory {
                match self.look(&path)? {
                    Seen::Directory => self.directories(&path)?,
                    Seen::Absent => self.object(item, &path, None)?,
                    _ => {
                        return Err(CopyError::NotADirectory {
                            path: shown(&names),
                            in_the_way: shown(&path),
                        });
                    }
                }
                continue;
            }
            let first = item.same_as.and_then(|first| paths.get(first).cloned());
            self.object(item, &path, first)?;
        }
        Ok(())
    }

    fn object(&mut self, item: &Item, path: &[Vec<u8>], same_as: Option<Vec<u8>>) -> Result<(), CopyError> {
        self.refuse_whiteout(path)?;
        let is_directory = item.entry.kind == EntryKind::Directory;
        if !is_directory && self.look(path)? == Seen::Directory {
            return Err(CopyError::OverDirectory(shown(path)));
        }
        self.directories(path.split_last().map_or(&[][..], |(_, parent)| parent))?;
        let mut entry = item.entry.clone();
        entry.path = path.join(&b'/');
        (entry.uid, entry.gid) = self.placement.owner.unwrap_or((entry.uid, entry.gid));
        if let Some(mode) = self.placement.mode.filter(|_| entry.kind != EntryKind::Symlink) {
            entry.mode = mode;
        }
        let seen = match entry.kind {
            EntryKind::Directory => Seen::Directory,
            EntryKind::Symlink => Seen::Link(entry.link.clone()),
            _ => Seen::Other,
        };
        if let Some(first) = same_as {
            entry.kind = EntryKind::HardLink;
            entry.link = first;
            entry.xattrs.clear();
            entry.size = 0;
        }
        self.header(&mut entry)?;
        if entry.kind == EntryKind::File {
            self.content(item, &entry)?;
        }
        self.made.insert(path.to_vec(), seen);
        Ok(())
    }

    fn content(&mut self, item: &Item, entry: &Entry) -> Result<(), CopyError> {
        let shown = String::from_utf8_lossy(&entry.path).into_owned();
        let failed = |source| CopyError::Read { path: shown, source };
        match &item.content {
            Content::None => self.out.data(&mut std::io::empty(), entry.size).map_err(failed),
            Content::Bytes(bytes) => self.out.data(&mut bytes.as_slice(), entry.size).map_err(failed),
            Content::File(path) => {
                let mut file = File::open(path).map_err(CopyError::read(&path.to_string_lossy()))?;
                self.out.data(&mut file, entry.size).map_err(failed)
            }
            Content::Object(tree, object) => {
                let file = object.open(&tree.stack).map_err(CopyError::read(&tree.place))?;
                self.out.data(&mut File::from(file), entry.size).map_err(failed)
            }
        }
    }

    /// Unpacks an archive beneath `base`.
    fn archive(&mut self, group: &Group, base: &[Vec<u8>]) -> Result<(), CopyError> {
        let source = &group.source;
        for item in &group.items {
            let file = match &item.content {
                Content::File(path) => File::open(path).map_err(CopyError::read(source))?,
                Content::Object(tree, object) => {
                    File::from(object.open(&tree.stack).map_err(CopyError::read(source))?)
                }
                _ => continue,
            };
            let (_, plain) =
                decompress(BufReader::with_capacity(256 * 1024, file)).map_err(CopyError::read(source))?;
            let mut reader = TarReader::new(plain, TarLimits::default());
            let failed = |error| CopyError::Archive { path: source.clone(), source: error };
            while let Some(entry) = reader.next_entry().map_err(failed)? {
                self.archived(entry, base, &mut reader, source)?;
            }
        }
        Ok(())
    }

    fn archived<R: std::io::BufRead>(
        &mut self,
        mut entry: Entry,
        base: &[Vec<u8>],
        reader: &mut TarReader<R>,
        source: &str,
    ) -> Result<(), CopyError> {
        let within = inside(&entry.path);
        if within.is_empty() {
            return Ok(());
        }
        let names = [base, within.as_slice()].concat();
        let path = self.resolve(&names, entry.kind == EntryKind::Directory)?;
        self.refuse_whiteout(&path)?;
        let seen = self.look(&path)?;
        let is_directory = entry.kind == EntryKind::Directory;
        match (&seen, is_directory) {
            (Seen::Directory, false) => return Err(CopyError::OverDirectory(shown(&path))),
            (Seen::Other, true) => {
                return Err(CopyError::NotADirectory { path: shown(&names), in_the_way: shown(&path) });
            }
            _ => {}
        }
        self.directories(path.split_last().map_or(&[][..], |(_, parent)| parent))?;
        if entry.kind == EntryKind::HardLink {
            let first = [base, inside(&entry.link).as_slice()].concat();
            entry.link = self.resolve(&first, false)?.join(&b'/');
        }
        entry.path = path.join(&b'/');
        (entry.uid, entry.gid) = self.placement.owner.unwrap_or((entry.uid, entry.gid));
        if let Some(mode) = self.placement.mode.filter(|_| entry.kind != EntryKind::Symlink) {
            entry.mode = mode;
        }
        if entry.sparse.is_some() {
            return self.sparse(entry, path, reader, source);
        }
        let size = entry.size;
        self.header(&mut entry)?;
        if entry.kind == EntryKind::File {
            let mut data = Data { reader, left: size };
            self.out.data(&mut data, size).map_err(CopyError::read(source))?;
        }
        let now = match entry.kind {
            EntryKind::Directory => Seen::Directory,
            EntryKind::Symlink => Seen::Link(entry.link),
            _ => Seen::Other,
        };
        self.made.insert(path, now);
        Ok(())
    }

    /// A file with holes: written with zeros, the unpacker finds them again.
    fn sparse<R: std::io::BufRead>(
        &mut self,
        mut entry: Entry,
        path: Vec<Vec<u8>>,
        reader: &mut TarReader<R>,
        source: &str,
    ) -> Result<(), CopyError> {
        let pieces = entry.sparse.take().unwrap_or_default();
        self.header(&mut entry)?;
        let mut at = 0;
        for (start, len) in pieces {
            let zeros = start.saturating_sub(at);
            std::io::copy(&mut std::io::repeat(0).take(zeros), self.out.out()).map_err(CopyError::Write)?;
            let mut data = Data { reader: &mut *reader, left: len };
            let copied = std::io::copy(&mut data, self.out.out()).map_err(CopyError::read(source))?;
            if copied != len {
                return Err(CopyError::read(source)(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)));
            }
            at = start + len;
        }
        std::io::copy(&mut std::io::repeat(0).take(entry.size.saturating_sub(at)), self.out.out())
            .map_err(CopyError::Write)?;
        self.out.pad(entry.size).map_err(CopyError::Write)?;
        self.made.insert(path, Seen::Other);
        Ok(())
    }
}

/// Names of an archive's path that stay inside: `..` never leads above where it is unpacked.
fn inside(path: &[u8]) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    for name in names_of(path) {
        if name == b".." {
            names.pop();
        } else {
            names.push(name);
        }
    }
    names
}

/// Data of the entry that the reader is at.
struct Data<'a, R> {
    reader: &'a mut TarReader<R>,
    left: u64,
}

impl<R: std::io::BufRead> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        if left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let data = self.reader.data().map_err(std::io::Error::other)?;
        let len = data.len().min(buffer.len()).min(left);
        buffer[..len].copy_from_slice(&data[..len]);
        self.reader.consume(len);
        self.left -= len as u64;
        Ok(len)
    }
}
