//! What is agreed with the kernel when it introduces itself.

use std::io;
use std::time::Duration;

use super::Adapter;
use super::abi::InitFlags;
use super::request::{Fields, Malformed};
use crate::config::{Config, IoMode};

/// Names and attributes change only through the mount: the kernel may keep them as long as it likes.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
/// Layers may change behind the mount.
const BRIEFLY: Duration = Duration::from_secs(1);

/// Requests that the kernel sends without anybody waiting for each: read-ahead, writing back.
pub(super) const MAX_BACKGROUND: u16 = 64;

/// How the kernel is spoken to; decided while it introduces itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Protocol {
    /// Never `Auto` once decided.
    pub(crate) io: IoMode,
    /// Opens come without a message: descriptors are the node's.
    pub(crate) zero_message_open: bool,
    /// How long the kernel may keep names and attributes.
    pub(crate) ttl: Duration,
}

/// What the kernel says (`struct fuse_init_in`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Offer {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) max_readahead: u32,
    /// What it can do; bits that are not known here are kept.
    pub(super) flags: InitFlags,
}

impl Offer {
    pub(super) fn parse(mut fields: Fields<'_>) -> Result<Self, Malformed> {
        let (major, minor) = (fields.u32()?, fields.u32()?);
        // A newer major version is asked to come again: nothing else in it can be relied on.
        let max_readahead = fields.u32().unwrap_or_default();
        let low = u64::from(fields.u32().unwrap_or_default());
        let extended = InitFlags::from_bits_retain(low).contains(InitFlags::INIT_EXT);
        let high = if extended { u64::from(fields.u32()?) } else { 0 };
        Ok(Self { major, minor, max_readahead, flags: InitFlags::from_bits_retain(low | high << 32) })
    }
}

/// What the server says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    /// What it would like; what the kernel cannot do is left out.
    pub(super) wanted: InitFlags,
    /// How many filesystems may lie between a file here and the disk.
    pub(super) stack_depth: u32,
}

/// Decides by what was asked for, what this process may do, and what the kernel can.
pub(super) fn negotiate(adapter: &Adapter, offer: &Offer) -> io::Result<Answer> {
    let settings = &adapter.overlay.layers().config;
    let has = offer.flags;
    let mut wanted = InitFlags::ASYNC_READ
        | InitFlags::BIG_WRITES
        | InitFlags::MAX_PAGES
        | InitFlags::PARALLEL_DIROPS
        | InitFlags::DO_READDIRPLUS
        | InitFlags::CACHE_SYMLINKS
        | InitFlags::HANDLE_KILLPRIV_V2
        | InitFlags::DONT_MASK
        | InitFlags::ASYNC_DIO;
    if settings.acl && !settings.xattr_permissions {
        wanted |= InitFlags::POSIX_ACL;
    }
    let can_pass = adapter.may_pass_through && has.contains(InitFlags::PASSTHROUGH);
    let io = match adapter.wanted {
        IoMode::Passthrough if !can_pass => {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "io=passthrough needs Linux 6.9 and CAP_SYS_ADMIN in the initial user namespace; use io=auto",
            ));
        }
        IoMode::Auto if can_pass && passing_pays(settings) => IoMode::Passthrough,
        IoMode::Auto => IoMode::Cached,
        chosen => chosen,
    };
    let mut stack_depth = 0;
    match io {
        IoMode::Passthrough => {
            wanted |= InitFlags::PASSTHROUGH;
            // One level leaves room for another stacked filesystem on this one.
            stack_depth = if adapter.overlay.upper_is_stacked() { 2 } else { 1 };
        }
        IoMode::Writeback => {
            wanted |= InitFlags::WRITEBACK_CACHE;
            adapter.overlay.leave_mtime_to_kernel();
        }
        IoMode::Cached | IoMode::Auto => {}
    }
    let zero_message_open =
        io != IoMode::Passthrough && adapter.may_reopen && has.contains(InitFlags::NO_OPEN_SUPPORT);
    if zero_message_open {
        wanted |= InitFlags::NO_OPEN_SUPPORT;
    }
    // Truncation never comes with the open (FUSE_ATOMIC_O_TRUNC): the kernel looks only after it whether the file
    // is a running program, which must be ETXTBSY and not cut under its feet.
    wanted |= InitFlags::NO_OPENDIR_SUPPORT;
    let ttl = if settings.volatile_lower { BRIEFLY } else { FOREVER };
    if adapter.protocol.set(Protocol { io, zero_message_open, ttl }).is_err() {
        return Err(io::Error::other("the kernel introduced itself twice"));
    }
    Ok(Answer { wanted, stack_depth })
}

/// Whether passing files through is the better choice, where it is possible (docs/decisions/0005-io-modes.md): files of
/// the upper are, and lower ones never, so without an upper it would only cost messages. The kernel moves the upper's
/// own access times, which knows nothing of a mount without them.
fn passing_pays(settings: &Config) -> bool {
    settings.upper.is_some() && !settings.flags.noatime
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(words: &[u32]) -> Result<Offer, Malformed> {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        Offer::parse(Fields(&bytes))
    }

    #[test]
    fn the_upper_flags_count_where_the_kernel_says_so() {
        let extended = InitFlags::INIT_EXT.bits() as u32;
        let with = offer(&[7, 40, 131_072, extended, 1 << 5]).unwrap();
        assert!(with.flags.contains(InitFlags::PASSTHROUGH));
        assert_eq!((with.major, with.minor, with.max_readahead), (7, 40, 131_072));
        let without = offer(&[7, 31, 131_072, 1, 1 << 5]).unwrap();
        assert!(!without.flags.contains(InitFlags::PASSTHROUGH));
        assert!(offer(&[7, 40, 0, extended]).is_err(), "the word it promised is not there");
    }

    #[test]
    fn an_unknown_major_version_is_read_as_far_as_it_can_be() {
        assert_eq!(offer(&[8, 0]).map(|o| o.major), Ok(8));
        assert!(offer(&[7]).is_err());
    }
}
