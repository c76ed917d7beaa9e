//! Files in an archive, or in a directory of the same form, by name and in any order.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::compression::{Compression, decompress};
use crate::error::Error;
use crate::tar::{EntryKind, TarError, TarLimits, TarReader, lossy};

mod directory;

/// Links followed from one name of an archive to another.
const MAX_LINKS: usize = 8;
/// Entries of an archive of images: two for each layer, and some documents.
const MAX_ENTRIES: usize = 100_000;

/// An archive that can be read at any place, or a directory.
#[derive(Debug)]
pub enum Source {
    /// A tar.
    Archive {
        /// Uncompressed.
        file: Arc<File>,
        /// What is where.
        members: HashMap<String, Member>,
    },
    /// A directory of the same files.
    Directory(PathBuf),
}

/// Where the content of a name is.
#[derive(Debug, Clone)]
pub enum Member {
    /// Offset and length in the archive.
    At(u64, u64),
    /// Under another name.
    Link(String),
}

/// The content of one file, read from its own place: several can be read at once.
#[derive(Debug)]
pub struct Section {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Section {
    /// Bytes that are left of it.
    pub fn len(&self) -> u64 {
        self.left
    }

    /// True when nothing is left.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if len == 0 {
            return Ok(0);
        }
        let len = self.file.read_at(&mut buffer[..len], self.at)?;
        if len == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive ends in the middle of a file",
            ));
        }
        self.at += len as u64;
        self.left -= len as u64;
        Ok(len)
    }
}

impl Source {
    /// Opens an archive, compressed or not, or a directory. What cannot be read at any place is copied to
    /// `scratch` first.
    ///
    /// # Errors
    /// When it cannot be read, or is no tar.
    pub fn open(path: &Path, scratch: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        if file.metadata().map_err(Error::io("look at", path))?.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        Self::from_file(file, scratch)
    }

    /// As [`open`](Self::open), from standard input and the like.
    ///
    /// # Errors
    /// As above.
    pub fn from_file(mut file: File, scratch: &Path) -> Result<Self, Error> {
        let is_plain_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        if is_plain_file && file.stream_position().is_ok_and(|at| at == 0) {
            let mut magic = [0; 6];
            let len = file.read_at(&mut magic, 0).map_err(Error::read("the archive"))?;
            if Compression::sniff(&magic[..len]) == Compression::None {
                return Self::scan(file);
            }
        }
        let mut copy = tempfile::tempfile_in(scratch).map_err(Error::io("make a file in", scratch))?;
        let input = BufReader::with_capacity(256 * 1024, file);
        let (_, mut plain) = decompress(input).map_err(Error::read("the archive"))?;
        spool(&mut *plain, &mut copy, scratch)?;
        copy.seek(SeekFrom::Start(0)).map_err(Error::read("the archive"))?;
        Self::scan(copy)
    }

    fn scan(file: File) -> Result<Self, Error> {
        let length = file.metadata().map_err(Error::read("the archive"))?.len();
        let mut members = HashMap::new();
        let mut reader = TarReader::new(BufReader::with_capacity(4096, file), TarLimits::default());
        let mut count = 0;
        while let Some(entry) = reader.next_entry()? {
            count += 1;
            if count > MAX_ENTRIES {
                return Err(Error::document("the archive", format!("more than {MAX_ENTRIES} entries")));
            }
            let path = lossy(&entry.path);
            let name = normal(&path);
            match entry.kind {
                EntryKind::File if entry.sparse.is_none() => {
                    let len = entry.data_len();
                    if reader.position().saturating_add(len) > length {
                        return Err(Error::Archive(TarError::Truncated("a file")));
                    }
                    members.insert(name, Member::At(reader.position(), len));
                    let skip = i64::try_from(len).unwrap_or(i64::MAX);
                    reader.skipped(len).seek_relative(skip).map_err(Error::read("the archive"))?;
                }
                EntryKind::Symlink => {
                    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                    let target = normal(&format!("{parent}/{}", lossy(&entry.link)));
                    members.insert(name, Member::Link(target));
                }
                EntryKind::HardLink => {
                    members.insert(name, Member::Link(normal(&lossy(&entry.link))));
                }
                _ => {}
            }
        }
        Ok(Self::Archive { file: Arc::new(reader.into_inner().into_inner()), members })
    }

    /// The content called `name`; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn find(&self, name: &str) -> Result<Option<Section>, Error> {
        let mut name = normal(name);
        match self {
            Self::Archive { file, members } => {
                for _ in 0..MAX_LINKS {
                    match members.get(&name) {
                        None => return Ok(None),
                        Some(Member::At(at, len)) => {
                            return Ok(Some(Section { file: file.clone(), at: *at, left: *len }));
                        }
                        Some(Member::Link(target)) => name.clone_from(target),
                    }
                }
                Err(Error::document("the archive", format!("{name} is a link without end")))
            }
            Self::Directory(directory) => {
                let Some((file, len)) = directory::open(directory, &name)? else { return Ok(None) };
                Ok(Some(Section { file: Arc::new(file), at: 0, left: len }))
            }
        }
    }

    /// A document that must be there.
    ///
    /// # Errors
    /// When it is not, or is too long for one.
    pub fn document(&self, name: &str) -> Result<Vec<u8>, Error> {
        let Some(mut section) = self.find(name)? else {
            return Err(Error::document("the archive", format!("{name:?} is missing in it")));
        };
        if section.len() > crate::config::MAX_DOCUMENT {
            return Err(Error::document("the archive", format!("{name:?} is longer than any document")));
        }
        let mut bytes = Vec::new();
        section.read_to_end(&mut bytes).map_err(Error::read(name))?;
        Ok(bytes)
    }
}

/// Without `.` and empty parts; `..` goes up, and not beyond the top.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// What a copy of an archive must leave of the disk for everybody else: 5 %, and 64 MiB at least.
fn room(file: &File, scratch: &Path) -> Result<u64, Error> {
    let stat = rustix::fs::fstatvfs(file).map_err(Error::io("look at the filesystem of", scratch))?;
    let reserve = (stat.f_blocks / 20).saturating_mul(stat.f_frsize).max(64 << 20);
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize).saturating_sub(reserve))
}

/// Bytes written between two looks at how much room there is.
const STEP: u64 = 64 << 20;

fn spool(input: &mut dyn BufRead, copy: &mut File, scratch: &Path) -> Result<(), Error> {
    let (mut written, mut checked) = (0_u64, 0_u64);
    let mut left = room(copy, scratch)?;
    loop {
        let bytes = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(Error::read("the archive"))?,
        };
        if bytes.is_empty() {
            return Ok(());
        }
        let len = bytes.len();
        written += len as u64;
        if written - checked >= STEP {
            (checked, left) = (written, room(copy, scratch)?);
        }
        if written - checked > left || left == 0 {
            return Err(Error::document(
                "the archive",
                format!(
                    "a copy of it, uncompressed, is needed to read it and has {} MiB or more; {} would be nearly full \
                     with it. Remedy: make room there, or uncompress the archive yourself and load that file, of \
                     which no copy is made",
                    written >> 20,
                    scratch.display(),
                ),
            ));
        }
        copy.write_all(bytes).map_err(Error::io("write a copy of the archive in", scratch))?;
        input.consume(len);
    }
}
