//! Several layers packed as one.

use std::collections::BTreeSet;
use std::io::Write;

use super::super::merged::{MergedDirectory, MergedObject, Stack};
use super::{PackError, Packer, join, read};
use crate::tar::lossy;

/// Packs what the topmost `count` layers of `stack` change together, as one OCI layer for those below: what one of them made
/// and another removed is not in it.
///
/// # Errors
/// Whatever [`PackError`] tells.
pub fn pack_joined<W: Write>(stack: &Stack, count: usize, out: W) -> Result<W, PackError> {
    let lowers = stack.below(count);
    let failed = |source| read("open", b"", source);
    let (root, below) = (stack.root().map_err(failed)?, lowers.root().map_err(failed)?);
    let mut packer = Packer::new(stack, out);
    packer.root()?;
    packer.joined(count, &lowers, &root, &below, b"")?;
    packer.finish()
}

impl<W: Write> Packer<'_, W> {
    /// What they change in a directory that shows what `below` does, with something on it.
    fn joined(
        &mut self,
        count: usize,
        lowers: &Stack,
        directory: &MergedDirectory,
        below: &MergedDirectory,
        path: &[u8],
    ) -> Result<(), PackError> {
        let names = directory.names_above(count).map_err(|source| read("list", path, source))?;
        for name in names.into_iter().collect::<BTreeSet<_>>() {
            let path = join(path, &name);
            if name.starts_with(b".wh.") {
                return Err(PackError::Name { path: lossy(&path) });
            }
            let failed = |source| read("look up", &path, source);
            let now = self.stack.child(directory, &name).map_err(failed)?;
            let was = lowers.child(below, &name).map_err(failed)?;
            match (now, was) {
                (Some(now), was) => self.joined_object(count, lowers, &now, was.as_ref(), &path)?,
                (None, Some(_)) => self.whiteout(&path)?,
                // One of them made it, and another removed it.
                (None, None) => {}
            }
        }
        Ok(())
    }

    fn joined_object(
        &mut self,
        count: usize,
        lowers: &Stack,
        now: &MergedObject,
        was: Option<&MergedObject>,
        path: &[u8],
    ) -> Result<(), PackError> {
        self.object(now, path)?;
        let Some(directory) = now.directory() else { return Ok(()) };
        match was.and_then(MergedObject::directory) {
            Some(was) if directory.merges_above(count, was) => {
                self.joined(count, lowers, directory, was, path)
            }
            // Another one than below, or one that was elsewhere there.
            Some(_) => {
                self.opaque(path)?;
                self.merged(directory, path, true)
            }
            None => self.merged(directory, path, true),
        }
    }
}
