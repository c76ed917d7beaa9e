//! The device on which requests come and answers go.

use std::io;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::abi::{NOTIFY_INVAL_INODE, OUT_HEADER};
use crate::error::Errno;
use crate::sys::fuse_device;

/// /dev/fuse, connected to one mount. An answer goes to the same device that gave the request.
#[derive(Debug)]
pub(crate) struct Device(OwnedFd);

/// A backing file that the kernel knows; it forgets it when this is dropped.
#[derive(Debug)]
pub(super) struct Backing {
    device: Arc<Device>,
    pub(super) id: u32,
}

impl Drop for Backing {
    fn drop(&mut self) {
        if let Err(e) = fuse_device::close_backing(self.device.0.as_fd(), self.id) {
            tracing::debug!("backing {} not closed: {e}", self.id);
        }
    }
}

impl Device {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// A queue of its own for another thread, where /dev/fuse may be opened again.
    pub(super) fn again(&self, unconnected: OwnedFd) -> io::Result<Self> {
        fuse_device::connect(unconnected.as_fd(), self.0.as_fd())?;
        Ok(Self(unconnected))
    }

    /// Waits for a request. `None` when the mount is gone.
    ///
    /// # Errors
    /// What read(2) says, but for requests that were withdrawn and for signals.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::io::read(&self.0, &mut *buffer) {
                Ok(len) => return Ok(Some(len)),
                Err(Errno::NODEV) => return Ok(None),
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Sends one message whole.
    pub(super) fn send(&self, message: &[u8]) -> Result<(), Errno> {
        rustix::io::write(&self.0, message).map(drop)
    }

    /// Sends one message in two parts.
    pub(super) fn send_parts(&self, header: &[u8], data: &[u8]) -> Result<(), Errno> {
        rustix::io::writev(&self.0, &[IoSlice::new(header), IoSlice::new(data)]).map(drop)
    }

    /// Makes a file known to the kernel, for opens that it serves itself.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN, EOPNOTSUPP or ELOOP where the file's filesystem cannot be stacked on.
    pub(super) fn open_backing(self: &Arc<Self>, file: BorrowedFd<'_>) -> io::Result<Backing> {
        let id = fuse_device::open_backing(self.0.as_fd(), file)?;
        Ok(Backing { device: self.clone(), id })
    }

    /// Makes the kernel ask for a node's attributes again. Its pages stay.
    ///
    /// # Errors
    /// ENOENT when the kernel has forgotten the node.
    pub(super) fn expire_attributes(&self, node: u64) -> Result<(), Errno> {
        let mut message = [0u8; OUT_HEADER + 24];
        let len = (message.len() as u32).to_ne_bytes();
        message[..4].copy_from_slice(&len);
        message[4..8].copy_from_slice(&NOTIFY_INVAL_INODE.to_ne_bytes());
        message[16..24].copy_from_slice(&node.to_ne_bytes());
        // A negative offset leaves the pages alone.
        message[24..32].copy_from_slice(&(-1i64).to_ne_bytes());
        self.send(&message)
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
