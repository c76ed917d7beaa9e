//! Between the engine's types and the protocol's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::attr::{Attr, Kind, Time};
use crate::error::Errno;
use crate::overlay::SetTime;

/// The protocol's errno.
pub(super) fn errno(e: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(e.raw_os_error())
}

fn system_time(t: Time) -> SystemTime {
    let nanos = Duration::from_nanos(t.nsec.into());
    let seconds = Duration::from_secs(t.sec.unsigned_abs());
    let whole = if t.sec < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    whole.and_then(|w| w.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// A time as the kernel sent it. Before 1970 `fuser` subtracts the nanoseconds that the kernel means to be added;
/// seconds and nanoseconds are still both there to be taken apart again.
fn kernel_time(t: SystemTime) -> Time {
    match t.duration_since(UNIX_EPOCH) {
        Ok(after) => {
            Time { sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nsec: after.subsec_nanos() }
        }
        Err(before) => {
            let before = before.duration();
            let sec = i64::try_from(before.as_secs()).map_or(i64::MIN, |s| -s);
            Time { sec, nsec: before.subsec_nanos() }
        }
    }
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(t) => SetTime::At(kernel_time(t)),
    }
}

/// `new_encode_dev` of linux/kdev_t.h.
fn rdev_to_kernel((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// `new_decode_dev` of linux/kdev_t.h.
pub(super) fn rdev_from_kernel(dev: u32) -> (u32, u32) {
    ((dev & 0xf_ff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Char => FileType::CharDevice,
        Kind::Block => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind()),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: rdev_to_kernel(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// Node 0: the name does not exist, and the kernel may remember that.
pub(super) fn negative() -> FileAttr {
    let zero = Time::default();
    file_attr(&Attr {
        ino: 0,
        dev: 0,
        mode: libc::S_IFREG,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: (0, 0),
        size: 0,
        blocks: 0,
        blksize: 0,
        atime: zero,
        mtime: zero,
        ctime: zero,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_round_trip() {
        for dev in [(0, 0), (1, 3), (8, 1), (259, 70_000), (4095, 0xf_ffff)] {
            assert_eq!(rdev_from_kernel(rdev_to_kernel(dev)), dev);
        }
    }

    /// The library's decoding of times before 1970 subtracts nanoseconds; ours must undo that.
    #[test]
    fn regression_times_before_1970() {
        for (sec, nsec) in [(-1i64, 500_000_000u32), (-1, 0), (-100, 1), (0, 5), (7, 999_999_999)] {
            let as_library = if sec >= 0 {
                UNIX_EPOCH + Duration::new(sec as u64, nsec)
            } else {
                UNIX_EPOCH - Duration::new(sec.unsigned_abs(), nsec)
            };
            assert_eq!(kernel_time(as_library), Time { sec, nsec });
        }
        let half_before = system_time(Time { sec: -1, nsec: 500_000_000 });
        assert_eq!(UNIX_EPOCH.duration_since(half_before).unwrap(), Duration::from_millis(500));
    }
}
