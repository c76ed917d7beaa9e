//! Reading directories.

use std::sync::Arc;

use super::{Overlay, Reply};
use crate::error::{Errno, OpResult};
use crate::listing::FIRST_OFFSET;
use crate::node::Node;

/// One name of a directory.
#[derive(Debug)]
pub struct DirEntry {
    /// The name.
    pub name: Arc<[u8]>,
    /// What an offset must be to go on after it.
    pub offset: u64,
    /// What it is; an error where it cannot be told (a corrupt mark, an object that may not be read). The name is
    /// there all the same.
    pub object: OpResult<Reply>,
    /// It is a directory, as far as the listing tells.
    pub is_dir: bool,
}

/// Where reading stands: `.` and `..` first, then names in the order of their offsets.
#[derive(Debug)]
pub struct ReadDir<'a> {
    overlay: &'a Overlay,
    dir: Arc<Node>,
    offset: u64,
    batch: std::vec::IntoIter<(u64, Arc<[u8]>)>,
    done: bool,
}

/// Names taken from the listing at once: about what one reply holds.
const BATCH: usize = 64;

impl Overlay {
    /// Reads a directory after `offset` (0 from the beginning).
    ///
    /// # Errors
    /// ENOTDIR.
    pub fn read_dir(&self, dir: &Arc<Node>, offset: u64) -> OpResult<ReadDir<'_>> {
        dir.dir().ok_or(Errno::NOTDIR)?;
        Ok(ReadDir { overlay: self, dir: dir.clone(), offset, batch: Vec::new().into_iter(), done: false })
    }

    /// The directory above; the root's is itself.
    pub fn parent(&self, dir: &Arc<Node>) -> Arc<Node> {
        dir.place.read().parent.clone().unwrap_or_else(|| self.root().clone())
    }
}

impl ReadDir<'_> {
    /// The next name; entries that vanish while being looked at are skipped.
    ///
    /// # Errors
    /// What reading the layers fails with.
    pub fn next_entry(&mut self) -> OpResult<Option<DirEntry>> {
        if self.offset < FIRST_OFFSET - 1 {
            let (name, node) = match self.offset {
                0 => (&b"."[..], self.dir.clone()),
                _ => (&b".."[..], self.overlay.parent(&self.dir)),
            };
            self.offset += 1;
            let attr = self.overlay.getattr(&node)?;
            let object = Ok(Reply { node, attr });
            return Ok(Some(DirEntry { name: Arc::from(name), offset: self.offset, object, is_dir: true }));
        }
        loop {
            let (offset, name) = match self.batch.next() {
                Some(next) => next,
                None if self.done => return Ok(None),
                None => {
                    let names = self.overlay.with_names(&self.dir, |l| l.after(self.offset, BATCH))?;
                    self.done = names.len() < BATCH;
                    self.batch = names.into_iter();
                    match self.batch.next() {
                        Some(next) => next,
                        None => return Ok(None),
                    }
                }
            };
            self.offset = offset;
            match self.overlay.lookup(&self.dir, &name) {
                Ok(None) => {}
                Ok(Some(object)) => {
                    let is_dir = object.attr.kind() == crate::attr::Kind::Dir;
                    return Ok(Some(DirEntry { name, offset, object: Ok(object), is_dir }));
                }
                Err(e) => {
                    let is_dir = self.overlay.entry(&self.dir, &name)?.is_some_and(|entry| entry.is_dir);
                    return Ok(Some(DirEntry { name, offset, object: Err(e), is_dir }));
                }
            }
        }
    }
}
