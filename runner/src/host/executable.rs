//! Keeping a container from overwriting the program that made it.
//!
//! The container's first process is this program until it becomes the container's. If the container's program
//! is `/proc/self/exe`, or a link to it, it becomes this program again, inside, and that link opened for writing
//! is this program's file on the machine. On a mount that is read-only nothing can be opened for writing.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

use rustix::fs::StatVfsMountFlags;
use rustix::mount::OpenTreeFlags;

use crate::config::mounts::attribute;
use crate::step::{Doing, StepError};
use crate::sys;
use crate::sys::mount::{MountAttr, mount_setattr};

/// Set in the environment of the second start only, against starting for ever.
const MARK: &str = "_LAYERFS_PROTECTED";

/// Starts the calling program again from a read-only mount of its own file, unless that is where it runs from
/// already, or the file has no name that it could be found by. Arguments and environment stay as they are, with
/// `additional` variables; nothing else of the process may matter to it yet.
///
/// Needs CAP_SYS_ADMIN in the user namespace that owns the mount namespace.
///
/// # Errors
/// When it cannot be done; the program still runs as it did.
pub fn protect_executable(additional: &[(&str, &OsStr)]) -> Result<(), StepError> {
    let words = || "protect the running program's file".to_owned();
    let file = File::open("/proc/self/exe").doing(words)?;
    let is_read_only = rustix::fs::fstatvfs(&file).doing(words)?.f_flag.contains(StatVfsMountFlags::RDONLY);
    if is_read_only || rustix::fs::fstat(&file).doing(words)?.st_nlink == 0 {
        return Ok(());
    }
    if std::env::var_os(MARK).is_some() {
        return Err(StepError::refused(words(), "a read-only mount of it does not hold"));
    }
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = rustix::mount::open_tree(file.as_fd(), "", flags).doing(words)?;
    let read_only = MountAttr { set: attribute::RDONLY, ..MountAttr::default() };
    mount_setattr(&copy, c"", false, read_only).doing(words)?;
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

/// Arguments and environment came from exec, where strings cannot hold zero bytes.
fn strings(list: impl Iterator<Item = Vec<u8>>) -> Vec<CString> {
    list.filter_map(|bytes| CString::new(bytes).ok()).collect()
}
