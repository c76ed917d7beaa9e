//! One function for each kind of request: decode, call the [`Overlay`](crate::overlay::Overlay), answer.
//!
//! Requests run on the session's threads. One that would have to copy much data, or wait for somebody who does,
//! goes on a thread of its own, so that no other request waits for it.

use std::sync::Arc;

use super::Adapter;
use super::abi::{FSYNC_DATA, Op, fattr, write_flag};
use super::buffer;
use super::convert::rdev_from_kernel;
use super::reply::{Entry, Listing, Reply};
use super::request::{Malformed, Request};
use crate::attr::Time;
use crate::error::{Errno, OpError, OpResult};
use crate::ino::ROOT_INO;
use crate::mount::REPORT_XATTR;
use crate::overlay::{DirEntry, NewObject, OpenOptions, RenameMode, SetAttr, SetTime};

/// Answers one request.
pub(super) fn serve(a: &Arc<Adapter>, request: &Request<'_>, reply: Reply) {
    let Some(op) = request.header.op else {
        // The kernel remembers, and does without.
        return reply.error(Errno::NOSYS);
    };
    a.counters.count(op);
    let mut reply = Some(reply);
    if dispatch(a, op, request, &mut reply).is_err() {
        tracing::error!(op = op.name(), len = request.body_len(), "{Malformed}");
        if let Some(reply) = reply {
            reply.error(Errno::IO);
        }
    }
}

/// Fields are taken before the reply is, so that a malformed request can still be answered.
fn dispatch(
    a: &Arc<Adapter>,
    op: Op,
    request: &Request<'_>,
    slot: &mut Option<Reply>,
) -> Result<(), Malformed> {
    macro_rules! reply {
        () => {
            match slot.take() {
                Some(reply) => reply,
                None => return Ok(()),
            }
        };
    }
    let node = request.header.node;
    tracing::trace!(op = op.name(), node, "request");
    let mut fields = request.fields();
    match op {
        Op::Lookup => {
            let name = fields.name()?;
            lookup(a, node, name, reply!());
        }
        Op::Forget => {
            let count = fields.u64()?;
            reply!().none();
            a.forget(node, count);
        }
        Op::BatchForget => {
            let count = fields.u32()?;
            fields.skip(4)?;
            reply!().none();
            for _ in 0..count {
                let (node, count) = (fields.u64()?, fields.u64()?);
                a.forget(node, count);
            }
        }
        Op::GetAttr => {
            let attr = a.node(node).and_then(|n| a.overlay.getattr(&n));
            a.reply_attr(reply!(), "getattr", attr);
        }
        Op::SetAttr => set_attr(a, request, slot)?,
        Op::ReadLink => {
            let reply = reply!();
            match a.node(node).and_then(|n| a.overlay.readlink(&n)) {
                Ok(target) => reply.data(&target),
                Err(e) => reply.error(note("readlink", &e)),
            }
        }
        Op::Symlink => {
            let (name, target) = (fields.name()?, fields.name()?);
            make(a, request, name, NewObject::Symlink(target), 0, "symlink", reply!());
        }
        Op::MkNod => {
            let (mode, rdev, umask) = (fields.u32()?, fields.u32()?, fields.u32()?);
            fields.skip(4)?;
            let name = fields.name()?;
            let new = if mode & libc::S_IFMT == libc::S_IFREG {
                NewObject::File(mode & 0o7777)
            } else {
                NewObject::Node(mode, rdev_from_kernel(rdev))
            };
            make(a, request, name, new, umask, "mknod", reply!());
        }
        Op::MkDir => {
            let (mode, umask) = (fields.u32()?, fields.u32()?);
            let name = fields.name()?;
            make(a, request, name, NewObject::Dir(mode & 0o7777), umask, "mkdir", reply!());
        }
        Op::Unlink => {
            let name = fields.name()?;
            let done = a.node(node).and_then(|dir| a.overlay.unlink(&dir, name));
            reply_done(reply!(), "unlink", done);
        }
        Op::RmDir => {
            let name = fields.name()?;
            let done = a.node(node).and_then(|dir| a.overlay.rmdir(&dir, name));
            reply_done(reply!(), "rmdir", done);
        }
        Op::Rename => {
            let to = fields.u64()?;
            let names = (fields.name()?, fields.name()?);
            rename(a, request, names, to, 0, reply!());
        }
        Op::Rename2 => {
            let (to, flags) = (fields.u64()?, fields.u32()?);
            fields.skip(4)?;
            let names = (fields.name()?, fields.name()?);
            rename(a, request, names, to, flags, reply!());
        }
        Op::Link => {
            let object = fields.u64()?;
            let name = fields.name()?.to_vec();
            let reply = reply!();
            a.run(object, false, reply, move |a, reply| {
                let made = a.node(object).and_then(|n| {
                    let dir = a.node(node)?;
                    a.overlay.link(&n, &dir, &name)
                });
                a.reply_entry(reply, "link", made);
            });
        }
        Op::Open => {
            let flags = fields.i32()?;
            let reply = reply!();
            if a.zero_message_open() {
                // Remembered by the kernel: no open is sent any more.
                reply.error(Errno::NOSYS);
                return Ok(());
            }
            let (mut options, caller) = (open_options(flags), request.caller());
            // Later writes open the file again, which must be possible then.
            options.lazy = a.may_reopen;
            a.run(node, options.write && !options.truncate, reply, move |a, reply| {
                a.open(node, options, &caller, reply);
            });
        }
        Op::Create => {
            let (flags, mode, umask) = (fields.i32()?, fields.u32()?, fields.u32()?);
            fields.skip(4)?;
            let name = fields.name()?;
            let reply = reply!();
            if a.zero_message_open() {
                // Remembered by the kernel: MKNOD follows, and there will be no handle to release.
                reply.error(Errno::NOSYS);
                return Ok(());
            }
            a.create(node, name, (mode & 0o7777, umask), open_options(flags), &request.caller(), reply);
        }
        Op::Read => {
            fields.skip(8)?;
            let (offset, size) = (fields.u64()?, fields.u32()?);
            read(a, node, offset, size, reply!());
        }
        Op::Write => write(a, request, slot)?,
        Op::StatFs => {
            let reply = reply!();
            match a.overlay.statfs() {
                Ok(s) => reply.statfs(&s),
                Err(e) => reply.error(note("statfs", &e)),
            }
        }
        Op::Release => {
            let handle = fields.u64()?;
            let reply = reply!();
            a.release(node, handle);
            reply.ok_unawaited();
        }
        Op::Fsync | Op::FsyncDir => {
            fields.skip(8)?;
            let data_only = fields.u32()? & FSYNC_DATA != 0;
            let done = a.node(node).and_then(|n| a.overlay.fsync(&n, data_only));
            reply_done(reply!(), op.name(), done);
        }
        Op::SetXattr => {
            let (size, flags) = (fields.u32()?, fields.i32()?);
            let name = fields.name()?.to_vec();
            let value = fields.bytes(size as usize)?.to_vec();
            let caller = request.caller();
            a.run(node, false, reply!(), move |a, reply| {
                let done = a.node(node).and_then(|n| a.overlay.setxattr(&n, &name, &value, flags, &caller));
                reply_done(reply, "setxattr", done);
            });
        }
        Op::GetXattr => {
            let size = fields.u32()?;
            fields.skip(4)?;
            let name = fields.name()?;
            let value = if name == REPORT_XATTR.as_bytes() && node == ROOT_INO {
                a.report_json()
            } else {
                a.node(node).and_then(|n| a.overlay.getxattr(&n, name))
            };
            reply_xattr(reply!(), "getxattr", size, value);
        }
        Op::ListXattr => {
            let size = fields.u32()?;
            let names = a.node(node).and_then(|n| a.overlay.listxattr(&n));
            let list = names.map(|names| {
                // Ordinary users do not see trusted xattrs (`xattr_list_one` of the kernel's filesystems).
                let shown = names.into_iter().filter(|n| request.is_root() || !n.starts_with(b"trusted."));
                shown.flat_map(|n| n.into_iter().chain([0])).collect()
            });
            reply_xattr(reply!(), "listxattr", size, list);
        }
        Op::RemoveXattr => {
            let name = fields.name()?.to_vec();
            a.run(node, false, reply!(), move |a, reply| {
                let done = a.node(node).and_then(|n| a.overlay.removexattr(&n, &name));
                reply_done(reply, "removexattr", done);
            });
        }
        Op::ReadDir | Op::ReadDirPlus => {
            fields.skip(8)?;
            let (offset, size) = (fields.u64()?, fields.u32()?);
            read_dir(a, op, node, offset, size, reply!());
        }
        Op::Fallocate => {
            fields.skip(8)?;
            let (offset, length, mode) = (fields.u64()?, fields.u64()?, fields.u32()?);
            let caller = request.caller();
            a.run(node, true, reply!(), move |a, reply| {
                let done = a.node(node).and_then(|n| {
                    a.overlay.with_room(|| a.overlay.fallocate(&n, mode, offset, length, &caller))
                });
                reply_done(reply, "fallocate", done);
            });
        }
        Op::Lseek => {
            fields.skip(8)?;
            let (offset, whence) = (fields.i64()?, fields.i32()?);
            seek(a, node, offset, whence, reply!());
        }
        Op::CopyFileRange => {
            fields.skip(8)?;
            let (offset_in, out) = (fields.u64()?, fields.u64()?);
            fields.skip(8)?;
            let (offset_out, len) = (fields.u64()?, fields.u64()?);
            let caller = request.caller();
            a.run(out, true, reply!(), move |a, reply| {
                let copied = a.node(node).and_then(|from| {
                    let to = a.node(out)?;
                    a.overlay.copy_range((&from, offset_in), (&to, offset_out), len, &caller)
                });
                match copied {
                    Ok(n) => reply.size(n as u32),
                    Err(e) => reply.error(note("copy_file_range", &e)),
                }
            });
        }
        Op::Ioctl => reply!().error(Errno::NOTTY),
        Op::ReleaseDir => reply!().ok_unawaited(),
        // Remembered by the kernel, which then does it alone. Permissions it checks itself (default_permissions);
        // offsets are a directory's own and need no open; regular files are always ready; an interrupted request is
        // carried out all the same.
        Op::Access | Op::OpenDir | Op::Flush | Op::Poll | Op::Bmap | Op::Interrupt => {
            reply!().error(Errno::NOSYS);
        }
        Op::TmpFile | Op::Statx => reply!().error(Errno::NOSYS),
        // Both are the session's.
        Op::Init | Op::Destroy => reply!().error(Errno::IO),
    }
    Ok(())
}

/// The errno to answer; errors that somebody should read about are logged.
pub(super) fn note(op: &'static str, error: &OpError) -> Errno {
    if error.is_expected() {
        tracing::debug!(op, "{error}");
    } else {
        tracing::error!(op, "{error}");
    }
    error.errno()
}

pub(super) fn open_options(flags: i32) -> OpenOptions {
    OpenOptions {
        write: flags & libc::O_ACCMODE != libc::O_RDONLY,
        truncate: flags & libc::O_TRUNC != 0,
        lazy: false,
    }
}

fn reply_done(reply: Reply, op: &'static str, done: OpResult<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(note(op, &e)),
    }
}

fn reply_xattr(reply: Reply, op: &'static str, size: u32, value: OpResult<Vec<u8>>) {
    match value {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::RANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(note(op, &e)),
    }
}

fn lookup(a: &Arc<Adapter>, parent: u64, name: &[u8], reply: Reply) {
    match a.node(parent).and_then(|dir| a.overlay.lookup(&dir, name)) {
        Ok(Some(object)) => a.reply_entry(reply, "lookup", Ok(object)),
        // The kernel may remember that there is none.
        Ok(None) => reply.entry(Entry { attr: None, name_ttl: a.ttl(), attr_ttl: a.ttl() }),
        Err(e) => reply.error(note("lookup", &e)),
    }
}

fn make(
    a: &Arc<Adapter>,
    request: &Request<'_>,
    name: &[u8],
    new: NewObject<'_>,
    umask: u32,
    op: &'static str,
    reply: Reply,
) {
    let made = a
        .node(request.header.node)
        .and_then(|dir| a.overlay.with_room(|| a.overlay.create(&dir, name, new, umask, &request.caller())));
    a.reply_entry(reply, op, made);
}

fn set_attr(a: &Arc<Adapter>, request: &Request<'_>, slot: &mut Option<Reply>) -> Result<(), Malformed> {
    let mut fields = request.fields();
    let valid = fields.u32()?;
    // padding, fh
    fields.skip(12)?;
    let size = fields.u64()?;
    // lock_owner
    fields.skip(8)?;
    let (atime, mtime) = (fields.i64()?, fields.i64()?);
    // ctime
    fields.skip(8)?;
    let (atime_nsec, mtime_nsec) = (fields.u32()?, fields.u32()?);
    // ctimensec
    fields.skip(4)?;
    let mode = fields.u32()?;
    fields.skip(4)?;
    let (uid, gid) = (fields.u32()?, fields.u32()?);
    let has = |bit| valid & bit != 0;
    let time = |set, now, sec, nsec| match (has(set), has(now)) {
        (false, _) => None,
        (true, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At(Time { sec, nsec })),
    };
    let set = SetAttr {
        mode: has(fattr::MODE).then_some(mode),
        uid: has(fattr::UID).then_some(uid),
        gid: has(fattr::GID).then_some(gid),
        size: has(fattr::SIZE).then_some(size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, atime, atime_nsec),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, mtime, mtime_nsec),
    };
    let Some(reply) = slot.take() else { return Ok(()) };
    let (node, caller) = (request.header.node, request.caller());
    a.run(node, set.size.is_some_and(|s| s > 0), reply, move |a, reply| {
        let done = a.node(node).and_then(|n| a.overlay.with_room(|| a.overlay.setattr(&n, &set, &caller)));
        a.reply_attr(reply, "setattr", done);
    });
    Ok(())
}

fn rename(
    a: &Arc<Adapter>,
    request: &Request<'_>,
    (name, newname): (&[u8], &[u8]),
    newparent: u64,
    flags: u32,
    reply: Reply,
) {
    let mode = match flags {
        0 => RenameMode::Replace,
        libc::RENAME_NOREPLACE => RenameMode::NoReplace,
        libc::RENAME_EXCHANGE => RenameMode::Exchange,
        libc::RENAME_WHITEOUT => RenameMode::Whiteout,
        _ => return reply.error(Errno::INVAL),
    };
    let (parent, caller) = (request.header.node, request.caller());
    // Without metadata-only copy-up a lower file is copied whole before it can be renamed.
    let moved = a.node(parent).and_then(|from| a.overlay.lookup(&from, name));
    let object = moved.ok().flatten().map_or(parent, |object| object.node.ino);
    let (name, newname) = (name.to_vec(), newname.to_vec());
    a.run(object, false, reply, move |a, reply| {
        let done = a.node(parent).and_then(|from| {
            let to = a.node(newparent)?;
            a.overlay.rename(&from, &name, &to, &newname, mode, &caller)
        });
        reply_done(reply, "rename", done);
    });
}

fn read(a: &Arc<Adapter>, node: u64, offset: u64, size: u32, reply: Reply) {
    // No more than was agreed on is asked for.
    let size = (size as usize).min(super::session::MAX_TRANSFER as usize);
    buffer::with_data(size, |space| {
        let Ok(space) = space else { return reply.error(Errno::NOMEM) };
        match a.node(node).and_then(|n| a.overlay.read(&n, offset, space)) {
            Ok(n) => reply.data(&space[..n]),
            Err(e) => reply.error(note("read", &e)),
        }
    });
}

fn write(a: &Arc<Adapter>, request: &Request<'_>, slot: &mut Option<Reply>) -> Result<(), Malformed> {
    let mut fields = request.fields();
    fields.skip(8)?;
    let (offset, size, flags) = (fields.u64()?, fields.u32()?, fields.u32()?);
    // lock_owner, flags, padding
    fields.skip(16)?;
    let data = fields.bytes(size as usize)?;
    let Some(reply) = slot.take() else { return Ok(()) };
    let kill = (flags & write_flag::KILL_SUIDGID != 0).then(|| request.caller());
    let cached = flags & write_flag::CACHE != 0;
    let node = match a.node(request.header.node) {
        Ok(node) => node,
        Err(e) => {
            reply.error(note("write", &e));
            return Ok(());
        }
    };
    let finish = move |written: OpResult<usize>, reply: Reply| match written {
        Ok(n) => reply.size(n as u32),
        Err(e) => reply.error(note("write", &e)),
    };
    if !a.overlay.copy_up_may_block(&node, true) {
        let written = a.overlay.with_room(|| a.overlay.write(&node, offset, data, kill.as_ref(), cached));
        finish(written, reply);
        return Ok(());
    }
    let data = data.to_vec();
    a.run(node.ino, true, reply, move |a, reply| {
        let written = a.overlay.with_room(|| a.overlay.write(&node, offset, &data, kill.as_ref(), cached));
        finish(written, reply);
    });
    Ok(())
}

fn read_dir(a: &Arc<Adapter>, op: Op, node: u64, offset: u64, size: u32, reply: Reply) {
    let mut listing = Listing::new(size);
    let filled = a.node(node).and_then(|dir| {
        let mut entries = a.overlay.read_dir(&dir, offset)?;
        while let Some(entry) = entries.next_entry()? {
            let added = match op {
                Op::ReadDirPlus => add_with_attributes(a, &mut listing, &entry),
                _ => {
                    let (ino, mode) = shown_or_unknown(&entry);
                    listing.add(None, ino, entry.offset, mode, &entry.name)
                }
            };
            if !added {
                break;
            }
        }
        Ok(())
    });
    match filled {
        Ok(()) => reply.data(listing.bytes()),
        // References go with the entries that are in the answer: it must be sent. The next one meets the error.
        Err(_) if !listing.bytes().is_empty() => reply.data(listing.bytes()),
        Err(e) => reply.error(note(op.name(), &e)),
    }
}

/// Number and type of a directory entry; for one that cannot be read, a number that is none and the type alone.
fn shown_or_unknown(entry: &DirEntry) -> (u64, u32) {
    match &entry.object {
        Ok(object) => (object.attr.ino, object.attr.mode),
        Err(e) => {
            note("readdir", e);
            (entry.offset, if entry.is_dir { libc::S_IFDIR } else { libc::S_IFREG })
        }
    }
}

fn add_with_attributes(a: &Arc<Adapter>, listing: &mut Listing, entry: &DirEntry) -> bool {
    let (ino, mode) = shown_or_unknown(entry);
    // The kernel takes a reference to every name but these two, and to none without a node.
    let object = entry.object.as_ref().ok().filter(|_| &*entry.name != b"." && &*entry.name != b"..");
    if let Some(object) = object {
        a.overlay.table().add_lookup(&object.node);
    }
    let attr = entry.object.as_ref().ok().map(|o| &o.attr);
    let ttl = a.attr_ttl(ino);
    let added =
        listing.add(Some(Entry { attr, name_ttl: ttl, attr_ttl: ttl }), ino, entry.offset, mode, &entry.name);
    if !added && object.is_some() {
        a.overlay.table().forget(ino, 1);
    }
    added
}

fn seek(a: &Arc<Adapter>, node: u64, offset: i64, whence: i32, reply: Reply) {
    let data = match whence {
        libc::SEEK_DATA => true,
        libc::SEEK_HOLE => false,
        _ => return reply.error(Errno::INVAL),
    };
    let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::NXIO) };
    match a.node(node).and_then(|n| a.overlay.seek(&n, offset, data)) {
        Ok(at) => reply.position(at),
        Err(e) => reply.error(note("lseek", &e)),
    }
}
