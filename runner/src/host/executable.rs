//! Keeping a container from overwriting the program that made it.
//!
//! The container's first process is this program until it becomes the container's. If the container's program
//! is `/proc/self/exe`, or a link to it, it becomes this program again, inside, and that link opened for writing
//! is this program's file on the machine. On a mount that is read-only, and in memory that is sealed,
//! nothing can be opened for writing.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{CWD, MemfdFlags, SealFlags, StatVfsMountFlags};
use rustix::mount::OpenTreeFlags;

use std::convert::Infallible;

use crate::config::mounts::attribute;
use crate::step::{Doing, StepError};
use crate::sys;
use crate::sys::mount::{MountAttr, mount_setattr};

/// Set in the environment of the second start only, against starting for ever.
const MARK: &str = "_LAYERFS_PROTECTED";

/// Starts the calling program again from a read-only mount of its own file, unless that is where it runs from
/// already. Arguments and environment stay as they are, with `additional` variables; nothing else of the process may matter to it yet.
///
/// Needs CAP_SYS_ADMIN in the user namespace that owns the mount namespace.
///
/// # Errors
/// When it cannot be done; the program still runs as it did.
pub fn protect_executable(additional: &[(&str, &OsStr)]) -> Result<(), StepError> {
    let words = || "protect the running program's file".to_owned();
    let file = File::open("/proc/self/exe").doing(words)?;
    let is_read_only = rustix::fs::fstatvfs(&file).doing(words)?.f_flag.contains(StatVfsMountFlags::RDONLY);
    let is_sealed = || rustix::fs::fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::WRITE));
    if is_read_only || is_sealed() {
        return Ok(());
    }
    if std::env::var_os(MARK).is_some() {
        return Err(StepError::refused(words(), "what was made for it does not hold"));
    }
    let copy = unchangeable(file).doing(words)?;
    let arguments = strings(std::env::args_os().map(OsStringExt::into_vec));
    let mark = format!("{MARK}=1").into_bytes();
    let inherited = std::env::vars_os().filter(|(name, _)| additional.iter().all(|(other, _)| name != other));
    let additional = additional.iter().map(|(name, value)| (OsString::from(name), value.to_os_string()));
    let environment = inherited.chain(additional).map(|(name, value)| {
        let mut entry = name.into_vec();
        entry.push(b'=');
        entry.extend(value.into_vec());
        entry
    });
    let environment = strings(environment.chain([mark]));
    Err(sys::process::exec_descriptor(&copy, &arguments, &environment)).doing(words)
}

/// Starts the calling program from such a file with other `arguments`, its name among them. The mount namespace must be
/// the process's own.
///
/// # Errors
/// When it cannot be done; the program still runs as it did.
pub fn restart_protected(arguments: &[CString]) -> Result<Infallible, StepError> {
    let words = || "start this program from a file that nobody can change".to_owned();
    let file = File::open("/proc/self/exe").doing(words)?;
    let copy = unchangeable(file).doing(words)?;
    let environment = std::env::vars_os().map(|(name, value)| {
        let mut entry = name.into_vec();
        entry.push(b'=');
        entry.extend(value.into_vec());
        entry
    });
    let environment = strings(environment);
    Err(sys::process::exec_descriptor(&copy, arguments, &environment)).doing(words)
}

fn unchangeable(file: File) -> io::Result<OwnedFd> {
    match read_only_mount(&file)? {
        Some(mount) => Ok(mount),
        None => sealed_copy(file),
    }
}

/// A mount of the file alone, attached nowhere. None when its path leads to another file by now, or to one on a
/// mount of another namespace.
fn read_only_mount(file: &File) -> io::Result<Option<OwnedFd>> {
    // By path: the link itself leads to the mount namespace that the program was started in.
    let Ok(path) = std::fs::read_link("/proc/self/exe") else { return Ok(None) };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let Ok(copy) = rustix::mount::open_tree(CWD, &path, flags) else { return Ok(None) };
    let (found, wanted) = (rustix::fs::fstat(&copy)?, rustix::fs::fstat(file)?);
    if (found.st_dev, found.st_ino) != (wanted.st_dev, wanted.st_ino) {
        return Ok(None);
    }
    let read_only = MountAttr { set: attribute::RDONLY, ..MountAttr::default() };
    mount_setattr(&copy, c"", false, read_only)?;
    Ok(Some(copy))
}

/// A copy in memory that nobody can change.
fn sealed_copy(mut file: File) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create(c"layerfs", flags)?);
    io::copy(&mut file, &mut copy)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}

/// Arguments and environment came from exec, where strings cannot hold zero bytes.
fn strings(list: impl Iterator<Item = Vec<u8>>) -> Vec<CString> {
    list.filter_map(|bytes| CString::new(bytes).ok()).collect()
}
