//! Unix sockets: the one on which a container waits to be started, and those of callers.

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};

/// Name in a container's directory.
const NAME: &str = "start.sock";

/// An address that is short enough whatever the path: through the directory's descriptor.
fn address(directory: &File, name: &std::ffi::OsStr) -> io::Result<SocketAddrUnix> {
    let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok(SocketAddrUnix::new(&path)?)
}

/// The socket on which the first process will wait.
pub(super) fn listen(directory: &Path) -> io::Result<OwnedFd> {
    let handle = File::open(directory)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &address(&handle, NAME.as_ref())?)?;
    rustix::net::listen(&socket, 8)?;
    Ok(socket)
}

/// Reaches the first process that waits.
pub(super) fn connect(directory: &Path) -> io::Result<OwnedFd> {
    connect_as(directory, NAME.as_ref(), SocketType::SEQPACKET)
}

fn connect_as(directory: &Path, name: &std::ffi::OsStr, kind: SocketType) -> io::Result<OwnedFd> {
    let handle = File::open(directory)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    rustix::io::retry_on_intr(|| {
        rustix::net::connect(&socket, &address(&handle, name).map_err(|_| rustix::io::Errno::INVAL)?)
    })?;
    Ok(socket)
}

/// True while the first process waits there.
pub(super) fn is_answered(directory: &Path) -> bool {
    connect(directory).is_ok()
}

/// Sends a descriptor with some bytes to whoever listens at `path`.
pub(super) fn send_descriptor(path: &Path, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let socket = connect_as(directory, name, SocketType::STREAM)?;
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}
