//! Taking changes out of an upper: what is below shows again.

use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType};
use rustix::io::Errno;

use super::apply::compare::{same_attributes, same_content};
use super::apply::plan::lookup;
use super::apply::root::{Root, look_at, split};
use super::apply::stage::set_times;
use super::disk::{self, Target};
use super::merged::Stack;
use super::remove::remove_tree;

/// Takes what `upper` has at `path` (with a slash in front) out of it, in one step: it is moved to `aside`, on the same
/// filesystem, and removed there.
///
/// # Errors
/// Those of the system calls.
pub fn forget(upper: &Path, path: &[u8], aside: &Path) -> io::Result<()> {
    let root = open(upper)?;
    let (dir, name) = root.place(path)?;
    let whiteout = whiteout_of(&name)?;
    if look_at(&dir, &name)?.is_some() {
        remove_tree(aside)?;
        rustix::fs::renameat(&dir, &name, CWD, aside)?;
        remove_tree(aside)?;
    }
    match rustix::fs::unlinkat(&dir, &whiteout, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes those of `paths` out of the upper under which the layers below have the same by now, as far as that changes
/// nothing of what shows: in a directory that does not show what is below, everything stays.
///
/// # Errors
/// Those of the system calls.
pub fn drop_applied(stack: &Stack, upper: &Path, paths: &[Vec<u8>]) -> io::Result<()> {
    let lowers = stack.lowers();
    let root = open(upper)?;
    let mut deepest_first: Vec<&Vec<u8>> = paths.iter().collect();
    deepest_first.sort_by_key(|path| std::cmp::Reverse(path.iter().filter(|byte| **byte == b'/').count()));
    for path in deepest_first {
        let (parent, _) = split(path);
        let is_merged = if parent.is_empty() {
            stack.root()?.merges_with(&lowers.root()?)
        } else {
            let now = lookup(stack, parent)?.and_then(|object| object.directory().cloned());
            let was = lookup(&lowers, parent)?.and_then(|object| object.directory().cloned());
            now.zip(was).is_some_and(|(now, was)| now.merges_with(&was))
        };
        let (now, was) = (lookup(stack, path)?, lookup(&lowers, path)?);
        let is_same = match (&now, &was) {
            (None, None) => true,
            (Some(now), Some(was)) => {
                let (new, old) = ((stack, now), (&lowers, was));
                same_content(new, old)? && same_attributes(new, old)?
            }
            _ => false,
        };
        if !is_merged || !is_same {
            continue;
        }
        let (dir, name) = match root.place(path) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            place => place?,
        };
        // What is taken out is no change of the directory.
        let keep = disk::stat(Target::Open(dir.as_fd()))?;
        let is_directory = now.as_ref().is_some_and(|now| now.kind() == FileType::Directory);
        let merges = || {
            let of =
                |object: &Option<super::MergedObject>| object.as_ref().and_then(|o| o.directory().cloned());
            of(&now).zip(of(&was)).is_some_and(|(now, was)| now.merges_with(&was))
        };
        if is_directory {
            if merges() {
                match rustix::fs::unlinkat(dir.as_fd(), &name, AtFlags::REMOVEDIR) {
                    // There are changes in it that were not chosen.
                    Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => {}
                    Err(errno) => return Err(errno.into()),
                }
                set_times(Target::Open(dir.as_fd()), keep.atime, keep.mtime)?;
            }
            continue;
        }
        for name in [name.clone(), whiteout_of(&name)?] {
            match rustix::fs::unlinkat(dir.as_fd(), &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT | Errno::NAMETOOLONG) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        set_times(Target::Open(dir.as_fd()), keep.atime, keep.mtime)?;
    }
    Ok(())
}

fn open(upper: &Path) -> io::Result<Root> {
    Root::open_directory(upper).map_err(Into::into)
}

fn whiteout_of(name: &CString) -> io::Result<CString> {
    Ok(CString::new([b".wh.", name.to_bytes()].concat())?)
}
