//! The kernel's side of a mount: mount(2) where it is permitted, else the setuid helper fusermount3.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, StatxFlags};
use rustix::mount::{MountFlags as Flags, UnmountFlags};

use super::MountError;
use crate::config::MountFlags;
use crate::error::Errno;

/// A mount in the tree.
#[derive(Debug)]
pub(super) struct Attached {
    /// Absolute.
    target: PathBuf,
    /// By fusermount3, which then must unmount it too.
    by_helper: bool,
    /// Device number of the mounted filesystem (minor; the major is 0).
    minor: Option<u32>,
}

/// The mountpoint, absolute and known to be a directory.
pub(super) fn check_target(target: &Path) -> Result<PathBuf, MountError> {
    let error = |source| MountError::Target { path: target.to_path_buf(), source };
    let absolute = std::fs::canonicalize(target).map_err(error)?;
    let meta = std::fs::metadata(&absolute).map_err(error)?;
    if !meta.is_dir() {
        return Err(error(io::Error::from(Errno::NOTDIR)));
    }
    Ok(absolute)
}

/// Opens /dev/fuse, not yet connected to a mount.
pub(super) fn open_device() -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open("/dev/fuse", flags, rustix::fs::Mode::empty())?)
}

/// Mounts, and returns the descriptor on which requests arrive.
pub(super) fn attach(
    flags: &MountFlags,
    given: &Path,
    target: &Path,
) -> Result<(OwnedFd, Attached), MountError> {
    let direct = match open_device() {
        Ok(device) => match mount_direct(flags, target, &device) {
            Ok(()) => Ok(device),
            Err(e) => Err(MountError::Mount { path: given.to_path_buf(), source: e, hint: String::new() }),
        },
        Err(e) => Err(MountError::Device(e)),
    };
    let (device, by_helper) = match direct {
        Ok(device) => (device, false),
        Err(e) if rustix::process::geteuid().is_root() && !is_permission(&e) => return Err(e),
        Err(first) => (mount_by_helper(flags, given, target, &first)?, true),
    };
    let minor = mounted_minor(target);
    Ok((device, Attached { target: target.to_path_buf(), by_helper, minor }))
}

fn is_permission(e: &MountError) -> bool {
    let (MountError::Mount { source, .. } | MountError::Device(source)) = e else { return false };
    source.kind() == io::ErrorKind::PermissionDenied
}

fn mount_direct(flags: &MountFlags, target: &Path, device: &OwnedFd) -> io::Result<()> {
    let mut bits = Flags::empty();
    for (on, flag) in [
        (flags.read_only, Flags::RDONLY),
        (flags.nodev, Flags::NODEV),
        (flags.nosuid, Flags::NOSUID),
        (flags.noexec, Flags::NOEXEC),
        (flags.noatime, Flags::NOATIME),
        (flags.strictatime, Flags::STRICTATIME),
        (flags.nodiratime, Flags::NODIRATIME),
        (flags.lazytime, Flags::LAZYTIME),
        (flags.sync, Flags::SYNCHRONOUS),
        (flags.dirsync, Flags::DIRSYNC),
        // MS_NOSYMFOLLOW of linux/mount.h, since 5.10.
        (flags.nosymfollow, Flags::from_bits_retain(256)),
    ] {
        bits.set(flag, on);
    }
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    if !flags.private {
        data.push_str(",allow_other");
    }
    if let Some(context) = &flags.context {
        data.push(',');
        data.push_str(context);
    }
    let data = CString::new(data).map_err(|_| io::Error::from(Errno::INVAL))?;
    let source = CString::new(flags.source.as_bytes()).map_err(|_| io::Error::from(Errno::INVAL))?;
    Ok(rustix::mount::mount(&source, target, super::FS_TYPE, bits, Some(data.as_c_str()))?)
}

/// Asks fusermount3 to mount; it passes the device back over a socket.
fn mount_by_helper(
    flags: &MountFlags,
    given: &Path,
    target: &Path,
    first: &MountError,
) -> Result<OwnedFd, MountError> {
    let fail =
        |source: io::Error, hint: String| MountError::Mount { path: given.to_path_buf(), source, hint };
    let (ours, theirs) = socket_pair().map_err(|e| fail(e, String::new()))?;
    let mut options = format!("default_permissions,subtype=layerfs,fsname={}", escape(&flags.source));
    for (on, word) in [
        (flags.read_only, "ro"),
        (flags.nodev, "nodev"),
        (flags.nosuid, "nosuid"),
        (flags.noexec, "noexec"),
        (flags.noatime, "noatime"),
        (flags.sync, "sync"),
        (flags.dirsync, "dirsync"),
    ] {
        if on {
            options.push(',');
            options.push_str(word);
        }
    }
    if let Some(context) = &flags.context {
        options.push(',');
        options.push_str(context);
    }
    let with_others = format!("{options},allow_other");
    let attempts: &[&str] = if flags.private { &[&options] } else { &[&with_others, &options] };
    let mut last = String::new();
    for attempt in attempts {
        let output = Command::new("fusermount3")
            .args([OsStr::new("-o"), OsStr::new(attempt), OsStr::new("--"), target.as_os_str()])
            .env("_FUSE_COMMFD", "0")
            // The helper writes to the descriptor that the variable names; standard input is one it inherits.
            .stdin(Stdio::from(theirs.try_clone().map_err(|e| fail(e, String::new()))?))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output();
        match output {
            Ok(output) if output.status.success() => {
                return receive_device(&ours).map_err(|e| fail(e, String::new()));
            }
            Ok(output) => last = String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(e) => {
                let hint = format!(
                    " ({first}); without root, mounting needs fusermount3 (package fuse3) or a user namespace"
                );
                return Err(fail(e, hint));
            }
        }
    }
    Err(fail(io::Error::from(io::ErrorKind::PermissionDenied), format!(": {last}")))
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace(',', "\\,")
}

fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

fn receive_device(socket: &OwnedFd) -> io::Result<OwnedFd> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut data = [io::IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket, &mut data, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "fusermount3 passed no device"))
}

/// The device number of what is mounted on `target` now. The kernel answers from what it knows itself: the mount may
/// not be served yet, or not any more.
fn mounted_minor(target: &Path) -> Option<u32> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let known = rustix::fs::statx(rustix::fs::CWD, target, flags, StatxFlags::empty()).ok()?;
    // Filesystems without a disk have minor numbers of major number 0.
    (known.stx_dev_major == 0).then_some(known.stx_dev_minor)
}

/// Read-ahead of the mount in KiB; the protocol starts with 128.
const READ_AHEAD_KIB: u32 = 1024;

impl Attached {
    /// Raises the read-ahead, where this process may.
    pub(super) fn tune(&self) {
        let Some(minor) = self.minor else { return };
        let path = format!("/sys/class/bdi/0:{minor}/read_ahead_kb");
        if let Err(e) = std::fs::write(&path, READ_AHEAD_KIB.to_string()) {
            tracing::debug!("read-ahead stays as it is: {path}: {e}");
        }
    }

    /// Takes the mount out of the tree.
    pub(super) fn detach(&self) -> io::Result<()> {
        if self.by_helper {
            let status = Command::new("fusermount3")
                .args([OsStr::new("-u"), OsStr::new("-z"), OsStr::new("--"), self.target.as_os_str()])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()?;
            return if status.success() { Ok(()) } else { Err(io::Error::other("fusermount3 -u failed")) };
        }
        // By path, but never something else that was mounted over it or put in its place.
        if self.minor.is_some() && mounted_minor(&self.target) != self.minor {
            return Ok(());
        }
        match rustix::mount::unmount(&self.target, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
            Err(Errno::BUSY) => {
                Ok(rustix::mount::unmount(&self.target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
            }
            Err(e) => Err(e.into()),
        }
    }
}
