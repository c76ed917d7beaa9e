//! Packing: a tree, or what the topmost layer changes, into a tar stream that depends on nothing else.

mod joined;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::FileType;
use rustix::io::Errno;
use thiserror::Error;

pub use self::joined::pack_joined;
use super::disk::{self, Target};
use super::merged::{MergedDirectory, MergedObject, Stack, is_mark_name};
use super::remove::list;
use crate::tar::{Entry, EntryKind, TarWriter, lossy};

/// Why a tree was not packed.
#[derive(Debug, Error)]
pub enum PackError {
    /// An object could not be read.
    #[error("{operation} {path:?}")]
    Read {
        /// What was attempted.
        operation: &'static str,
        /// Name within the tree.
        path: String,
        /// What came of it.
        source: Errno,
    },
    /// A file changed meanwhile, or could not be read.
    #[error("pack {path:?}")]
    Data {
        /// Name within the tree.
        path: String,
        /// What came of it.
        source: io::Error,
    },
    /// A name that would be read as a whiteout.
    #[error(
        "{path:?} cannot be kept in a layer: names that begin with `.wh.` mean removals there; rename it"
    )]
    Name {
        /// Name within the tree.
        path: String,
    },
    /// The archive could not be written.
    #[error("write the archive")]
    Write(#[source] io::Error),
}

const BUFFER: usize = 256 * 1024;

/// Packs all that `stack` shows, hard links kept. Only in a layer (`as_layer`) the root has an entry too, and names that
/// would mean removals are refused.
///
/// # Errors
/// Whatever [`PackError`] tells.
pub fn pack_merged<W: Write>(stack: &Stack, out: W, as_layer: bool) -> Result<W, PackError> {
    let mut packer = Packer::new(stack, out);
    if as_layer {
        packer.root()?;
    }
    let root = stack.root().map_err(|source| read("open", b"", source))?;
    packer.merged(&root, b"", as_layer)?;
    packer.finish()
}

/// Packs what the topmost layer of `stack` changes, as an OCI layer: whiteouts and opaque directories as entries,
/// metadata-only copies with their data, renamed directories with all that is in them.
///
/// # Errors
/// Whatever [`PackError`] tells.
pub fn pack_changes<W: Write>(stack: &Stack, out: W) -> Result<W, PackError> {
    let mut packer = Packer::new(stack, out);
    let root = stack.root().map_err(|source| read("open", b"", source))?;
    packer.root()?;
    packer.changes(&root, b"")?;
    packer.finish()
}

/// As [`pack_changes`], with an entry for the root only where its attributes are not those that a layer without one gets:
/// what changes nothing is an empty archive, as docker has it.
///
/// # Errors
/// Whatever [`PackError`] tells.
pub fn pack_step<W: Write>(stack: &Stack, out: W) -> Result<W, PackError> {
    let mut packer = Packer::new(stack, out);
    let root = stack.root().map_err(|source| read("open", b"", source))?;
    let own = stack.root_entry().map_err(|source| read("look at", b"", source))?;
    if own.is_some_and(|own| !is_plain_root(&own)) {
        packer.root()?;
    }
    packer.changes(&root, b"")?;
    packer.finish()
}

/// Whether a root directory looks like one about which a layer says nothing.
pub fn is_plain_root(entry: &Entry) -> bool {
    (entry.mode, entry.uid, entry.gid) == (0o755, 0, 0) && entry.xattrs.is_empty()
}

struct Packer<'a, W: Write> {
    stack: &'a Stack,
    writer: TarWriter<BufWriter<W>>,
    /// First name of each object that has several.
    links: HashMap<(usize, u64), Vec<u8>>,
}

impl<'a, W: Write> Packer<'a, W> {
    fn new(stack: &'a Stack, out: W) -> Self {
        Self { stack, writer: TarWriter::new(BufWriter::with_capacity(BUFFER, out)), links: HashMap::new() }
    }

    fn finish(self) -> Result<W, PackError> {
        let out = self.writer.finish().map_err(PackError::Write)?;
        out.into_inner().map_err(|error| PackError::Write(error.into_error()))
    }

    /// The root directory itself: a layer says what it looks like.
    fn root(&mut self) -> Result<(), PackError> {
        let entry = self.stack.root_entry().map_err(|source| read("look at", b"", source))?;
        let Some(mut entry) = entry else { return Ok(()) };
        entry.path = b"./".to_vec();
        self.writer.header(&entry).map_err(PackError::Write)
    }

    /// All of a directory. In a layer, names that would be whiteouts are refused.
    fn merged(&mut self, directory: &MergedDirectory, path: &[u8], in_layer: bool) -> Result<(), PackError> {
        let entries = self.stack.list(directory).map_err(|source| read("list", path, source))?;
        for (name, object) in entries {
            let path = join(path, &name);
            if in_layer && name.starts_with(b".wh.") {
                return Err(PackError::Name { path: lossy(&path) });
            }
            self.object(&object, &path)?;
            if let Some(directory) = object.directory() {
                self.merged(directory, &path, in_layer)?;
            }
        }
        Ok(())
    }

    /// What the topmost layer has of a directory.
    fn changes(&mut self, directory: &MergedDirectory, path: &[u8]) -> Result<(), PackError> {
        let Some(top) = directory.top() else { return Ok(()) };
        let top = top
            .try_clone_to_owned()
            .map_err(|error| read("open", path, Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        let mut names: Vec<Vec<u8>> = list(top.as_fd())
            .map_err(|source| read("list", path, source))?
            .into_iter()
            .map(|(name, _)| name.into_bytes())
            .collect();
        // A whiteout file and what it stands for are one name.
        for name in &mut names {
            if is_mark_name(name) && name.as_slice() != b".wh..wh..opq" {
                name.drain(..4);
            }
        }
        names.retain(|name| name.as_slice() != b".wh..wh..opq");
        names.sort_unstable();
        names.dedup();
        for name in names {
            let path = join(path, &name);
            if name.starts_with(b".wh.") {
                return Err(PackError::Name { path: lossy(&path) });
            }
            let found =
                self.stack.child(directory, &name).map_err(|source| read("look up", &path, source))?;
            match found {
                Some(object) if object.is_top() => self.changed(&object, &path, &top, &name)?,
                // A whiteout of what the layers below have, or of nothing.
                _ => self.whiteout(&path)?,
            }
        }
        Ok(())
    }

    fn changed(
        &mut self,
        object: &MergedObject,
        path: &[u8],
        top: &OwnedFd,
        name: &[u8],
    ) -> Result<(), PackError> {
        self.object(object, path)?;
        let Some(directory) = object.directory() else { return Ok(()) };
        let c_name = std::ffi::CString::new(name).map_err(|_| read("open", path, Errno::INVAL))?;
        let own = disk::open_directory(top, &c_name).map_err(|source| read("open", path, source))?;
        let mark = |name: &str| {
            ["trusted.overlay.", "user.overlay."].iter().find_map(|prefix| {
                let name = std::ffi::CString::new(format!("{prefix}{name}")).ok()?;
                disk::xattr(Target::Open(own.as_fd()), &name).ok().flatten()
            })
        };
        if mark("redirect").is_some() && directory.has_lowers() {
            // It was elsewhere below: what is below under this name does not show, what it brought does.
            self.opaque(path)?;
            return self.merged(directory, path, true);
        }
        if !directory.has_lowers() && self.is_opaque_on_disk(&own, mark("opaque")) {
            self.opaque(path)?;
        }
        self.changes(directory, path)
    }

    fn is_opaque_on_disk(&self, own: &OwnedFd, mark: Option<Vec<u8>>) -> bool {
        mark.is_some_and(|value| value == b"y")
            || disk::stat(Target::Name(own.as_fd(), c".wh..wh..opq")).is_ok()
            || disk::xattr(Target::Open(own.as_fd()), c"user.fuseoverlayfs.opaque")
                .is_ok_and(|value| value.is_some_and(|value| value == b"y"))
    }

    fn object(&mut self, object: &MergedObject, path: &[u8]) -> Result<(), PackError> {
        let mut entry = match object.describe(self.stack) {
            Ok(entry) => entry,
            // Sockets belong to processes; archives have none.
            Err(Errno::OPNOTSUPP) if object.kind() == FileType::Socket => return Ok(()),
            Err(source) => return Err(read("read", path, source)),
        };
        entry.path = path.to_vec();
        if entry.kind != EntryKind::Directory && object.stat().nlink > 1 {
            if let Some(first) = self.links.get(&object.identity()) {
                entry.link.clone_from(first);
                entry.kind = EntryKind::HardLink;
                entry.xattrs.clear();
                return self.writer.header(&entry).map_err(PackError::Write);
            }
            self.links.insert(object.identity(), path.to_vec());
        }
        self.writer.header(&entry).map_err(PackError::Write)?;
        if entry.kind == EntryKind::File && entry.size > 0 {
            let file = object.open(self.stack).map_err(|source| read("open", path, source))?;
            self.writer
                .data(&mut File::from(file), entry.size)
                .map_err(|source| PackError::Data { path: lossy(path), source })?;
        }
        Ok(())
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<(), PackError> {
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], path),
        };
        self.mark(join(parent, &[b".wh.", name].concat()))
    }

    fn opaque(&mut self, path: &[u8]) -> Result<(), PackError> {
        self.mark(join(path, b".wh..wh..opq"))
    }

    fn mark(&mut self, path: Vec<u8>) -> Result<(), PackError> {
        self.writer.header(&Entry::new(path, EntryKind::File)).map_err(PackError::Write)
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

fn read(operation: &'static str, path: &[u8], source: Errno) -> PackError {
    PackError::Read { operation, path: lossy(path), source }
}
