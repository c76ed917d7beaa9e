//! Writing an index file: blocks with their checksums into a temporary file beside the place, then one rename.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::error::IndexError;
use super::format::{self, BLOCK_LEN, HEADER_LEN, Header};

/// An index in the making. Dropped before [`publish`](Self::publish), it leaves nothing behind.
#[derive(Debug)]
pub(super) struct IndexWriter {
    temporary: Temporary,
    file: BufWriter<File>,
    place: PathBuf,
    /// What the next block has so far.
    block: Vec<u8>,
    checksums: Vec<u8>,
    written: u64,
}

/// A file that is removed unless it was renamed.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    published: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published
            && let Err(e) = fs::remove_file(&self.path)
        {
            tracing::warn!("remove unfinished layer index {:?}: {e}", self.path);
        }
    }
}

impl IndexWriter {
    /// Begins an index that will be at `place`, in an existing directory.
    pub(super) fn create(place: &Path) -> Result<Self, IndexError> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
        // Short, and without the place's name: a name of the greatest length must still have a temporary.
        let name = OsString::from(format!(".layerfs-index.{}.{unique}.tmp", std::process::id()));
        let path = directory_of(place).join(name);
        match fs::remove_file(&path) {
            // Left by a crashed process that had our number.
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(IndexError::file("remove old", path)(e)),
        }
        // Names and xattrs of directories that only their owner may read are in it.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(IndexError::file("create", &path))?;
        let mut writer = Self {
            temporary: Temporary { path, published: false },
            file: BufWriter::with_capacity(64 * BLOCK_LEN, file),
            place: place.to_path_buf(),
            block: Vec::with_capacity(BLOCK_LEN),
            checksums: Vec::new(),
            written: HEADER_LEN as u64,
        };
        writer.emit(&[0; HEADER_LEN])?;
        Ok(writer)
    }

    /// Where in the file the next byte goes.
    pub(super) fn position(&self) -> u64 {
        self.written
    }

    /// Appends to the sections.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), IndexError> {
        self.written += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_LEN - self.block.len()));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() == BLOCK_LEN {
                self.end_block()?;
            }
        }
        Ok(())
    }

    /// Completes `header` with where the sections end, and puts the file in its place. With `sync` it is on disk when this
    /// returns.
    pub(super) fn publish(mut self, mut header: Header, sync: bool) -> Result<u64, IndexError> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        header.checksums_at = self.written;
        let checksums = std::mem::take(&mut self.checksums);
        header.file_len = self.written + checksums.len() as u64;
        self.emit(&checksums)?;
        let encoded = header.encode().ok_or(IndexError::TooLarge { what: "bytes in its header" })?;
        let failed = |e| IndexError::file("write", &self.temporary.path)(e);
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        self.file.write_all(&encoded).map_err(failed)?;
        self.file.flush().map_err(failed)?;
        if sync {
            self.file.get_ref().sync_all().map_err(failed)?;
        }
        fs::rename(&self.temporary.path, &self.place)
            .map_err(IndexError::file("put in place", &self.place))?;
        self.temporary.published = true;
        if sync {
            let directory = directory_of(&self.place);
            File::open(directory)
                .and_then(|d| d.sync_all())
                .map_err(IndexError::file("sync directory of", &self.place))?;
        }
        Ok(header.file_len)
    }

    fn end_block(&mut self) -> Result<(), IndexError> {
        let block = std::mem::take(&mut self.block);
        self.checksums.extend_from_slice(&format::checksum(&block).to_le_bytes());
        self.emit(&block)?;
        self.block = block;
        self.block.clear();
        Ok(())
    }

    fn emit(&mut self, bytes: &[u8]) -> Result<(), IndexError> {
        self.file.write_all(bytes).map_err(|e| IndexError::file("write", &self.temporary.path)(e))
    }
}

/// The directory that `place` is in.
pub(super) fn directory_of(place: &Path) -> &Path {
    match place.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
