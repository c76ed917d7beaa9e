//! How this process sees ids and xattrs, which is what an index built by it contains.
//!
//! Owners are translated by the user namespace, and `trusted.` xattrs are listed to CAP_SYS_ADMIN of the initial
//! namespace only. An index built under one view gives wrong answers under another: an overlay mark in
//! `trusted.` would be missing.

use std::fs;

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::error::IndexError;
use super::format;

/// Number of the initial user namespace in its filesystem, `PROC_USER_INIT_INO` of linux/proc_ns.h.
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// One way of seeing a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    /// Checksum of the id maps of the user namespace.
    pub(super) id_maps: u32,
    /// `trusted.` xattrs are visible.
    pub(super) trusted_xattrs: bool,
}

/// Checksum of the id maps by user namespace: opening hundreds of layers must not read them hundreds of times.
static LAST_SEEN: Mutex<Option<(u64, u32)>> = Mutex::new(None);

impl View {
    /// The calling thread's.
    pub(crate) fn current() -> Result<Self, IndexError> {
        let namespace = rustix::fs::stat("/proc/thread-self/ns/user")
            .map_err(|source| IndexError::Namespace { what: "/proc/thread-self/ns/user", source })?
            .st_ino;
        let capable = rustix::thread::capabilities(None)
            .map_err(|source| IndexError::Namespace { what: "capabilities", source })?
            .effective
            .contains(CapabilitySet::SYS_ADMIN);
        Ok(Self {
            id_maps: id_maps(namespace)?,
            trusted_xattrs: capable && namespace == INITIAL_USER_NAMESPACE,
        })
    }
}

fn id_maps(namespace: u64) -> Result<u32, IndexError> {
    if let Some((known, maps)) = *LAST_SEEN.lock()
        && known == namespace
    {
        return Ok(maps);
    }
    let uids = read_map("/proc/thread-self/uid_map")?;
    let gids = read_map("/proc/thread-self/gid_map")?;
    let maps = format::checksum(format!("{uids}/{gids}").as_bytes());
    // A namespace's maps can be written once; before that they are empty and may still change.
    if !uids.is_empty() && !gids.is_empty() {
        *LAST_SEEN.lock() = Some((namespace, maps));
    }
    Ok(maps)
}

/// The numbers of a map file, one space between them.
fn read_map(path: &'static str) -> Result<String, IndexError> {
    let text = fs::read_to_string(path).map_err(|e| IndexError::Namespace {
        what: path,
        source: Errno::from_io_error(&e).unwrap_or(Errno::IO),
    })?;
    Ok(text.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
}
