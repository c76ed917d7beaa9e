//! Carrying a complete journal out; any number of times, from wherever it was left.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::super::disk::Target;
use super::super::merged::Stack;
use super::super::remove::remove_at;
use super::ApplyError;
use super::journal::{Entry, Journal, StepAction};
use super::plan::lookup;
use super::root::{Root, look_at};
use super::stage::{give, set_times, sync};
use crate::tar::Timestamp;

/// Puts everything in its place. New objects first, parents before what is in them; then what goes; then attributes.
pub(super) fn perform(stack: &Stack, journal: &Journal, root: &Root) -> Result<(), ApplyError> {
    let of = |action: StepAction| journal.entries.iter().filter(move |entry| entry.action == action);
    // One thing that cannot be done keeps nothing else from being done.
    let mut done: Vec<Result<(), ApplyError>> = Vec::new();
    done.extend(of(StepAction::Put).map(|entry| put(root, entry)));
    done.extend(of(StepAction::Remove).map(|entry| remove(root, entry)));
    done.extend(of(StepAction::Attributes).map(|entry| attributes(stack, root, entry)));
    // Putting things in changes the time of a directory: the deepest first.
    let made = of(StepAction::Put).filter_map(|entry| Some((&entry.path, entry.time?)));
    done.extend(made.collect::<Vec<_>>().into_iter().rev().map(|(path, time)| set_time(root, path, time)));
    let times = journal.times.iter().map(|directory| match set_time(root, &directory.path, directory.time) {
        // Entries may be made in a directory of somebody else's, its time may not be chosen.
        Err(error) if error.is_not_permitted() => Ok(()),
        result => result,
    });
    done.extend(times);
    if done.iter().any(Result::is_err) {
        // What waits in vain.
        done.push(take_back(journal, root));
    }
    done.push(sync(root, journal));
    done.into_iter().collect()
}

fn place(root: &Root, path: &[u8]) -> Result<(OwnedFd, CString), ApplyError> {
    root.place(path).map_err(ApplyError::object("reach the directory of", path))
}

fn put(root: &Root, entry: &Entry) -> Result<(), ApplyError> {
    let failed = |operation| ApplyError::object(operation, &entry.path);
    let (from, temporary) = match root.place(&entry.beside) {
        Err(Errno::NOENT) => return Ok(()),
        found => found.map_err(failed("reach the directory of"))?,
    };
    let Some(waiting) = look_at(&from, &temporary).map_err(failed("look at the new"))? else { return Ok(()) };
    if waiting.stx_ino != entry.ino {
        // It is in its place, and what was there is here.
        return remove_at(from.as_fd(), &temporary).map_err(failed("remove the old"));
    }
    let (to, name) = place(root, &entry.path)?;
    let old = look_at(&to, &name).map_err(failed("look at"))?;
    let replaced = old.map(|old| FileType::from_raw_mode(old.stx_mode.into()));
    let is_directory = FileType::from_raw_mode(waiting.stx_mode.into()) == FileType::Directory;
    match replaced {
        // One of several names of an object: renaming it over another does nothing.
        Some(_)
            if look_at(&to, &name)
                .map_err(failed("look at"))?
                .is_some_and(|old| old.stx_ino == entry.ino) =>
        {
            remove_at(from.as_fd(), &temporary).map_err(failed("remove the temporary of"))
        }
        Some(old) if is_directory || old == FileType::Directory => {
            rustix::fs::renameat_with(&from, &temporary, &to, &name, RenameFlags::EXCHANGE)
                .map_err(failed("replace"))?;
            remove_at(from.as_fd(), &temporary).map_err(failed("remove the old"))
        }
        _ => rustix::fs::renameat(&from, &temporary, &to, &name).map_err(failed("put in its place")),
    }
}

fn remove(root: &Root, entry: &Entry) -> Result<(), ApplyError> {
    let failed = |operation| ApplyError::object(operation, &entry.path);
    let gone = match root.place(&entry.path) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
        found => Some(found.map_err(failed("reach the directory of"))?),
    };
    let (aside, temporary) = match root.place(&entry.beside) {
        Err(Errno::NOENT) => return Ok(()),
        found => found.map_err(failed("reach the directory of"))?,
    };
    if let Some((dir, name)) = gone
        && look_at(&dir, &name).map_err(failed("look at"))?.is_some_and(|old| old.stx_ino == entry.ino)
    {
        // Out of sight in one step; a part of a directory is never to be seen.
        rustix::fs::renameat_with(&dir, &name, &aside, &temporary, RenameFlags::NOREPLACE)
            .map_err(failed("remove"))?;
    }
    remove_at(aside.as_fd(), &temporary).map_err(failed("remove"))
}

fn attributes(stack: &Stack, root: &Root, entry: &Entry) -> Result<(), ApplyError> {
    let failed = |operation| ApplyError::object(operation, &entry.path);
    let (dir, name) = place(root, &entry.path)?;
    let is_same =
        look_at(&dir, &name).map_err(failed("look at"))?.is_some_and(|old| old.stx_ino == entry.ino);
    let Some(object) = lookup(stack, &entry.path).map_err(failed("read"))?.filter(|_| is_same) else {
        return Ok(());
    };
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match object.kind() {
        FileType::RegularFile | FileType::Directory => {
            let opened = match rustix::fs::openat(&dir, &name, flags | OFlags::RDONLY, Mode::empty()) {
                // Its owner may change it all the same.
                Err(Errno::ACCESS) => {
                    return give(stack, &object, Target::Name(dir.as_fd(), &name), &entry.path);
                }
                opened => opened.map_err(failed("open"))?,
            };
            give(stack, &object, Target::Open(opened.as_fd()), &entry.path)
        }
        _ => give(stack, &object, Target::Name(dir.as_fd(), &name), &entry.path),
    }
}

fn set_time(root: &Root, path: &[u8], time: Timestamp) -> Result<(), ApplyError> {
    let (dir, name) = match root.place(path) {
        // Somebody has removed it meanwhile.
        Err(Errno::NOENT) => return Ok(()),
        found => found.map_err(ApplyError::object("reach the directory of", path))?,
    };
    match set_times(Target::Name(dir.as_fd(), &name), time, time) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(ApplyError::object("change the times of", path)(errno)),
    }
}

/// Removes what was prepared.
pub(super) fn take_back(journal: &Journal, root: &Root) -> Result<(), ApplyError> {
    for entry in &journal.entries {
        match root.place(&entry.beside) {
            Err(Errno::NOENT) => {}
            found => {
                let (dir, name) =
                    found.map_err(ApplyError::object("reach the directory of", &entry.beside))?;
                remove_at(dir.as_fd(), &name).map_err(ApplyError::object("remove", &entry.beside))?;
            }
        }
    }
    Ok(())
}
