//! The locks of the store: flock(2), freed by the kernel however a process ends.
//!
//! Order: `lock`, then `index.lock`, then `tmp/.lock`. None is held while waiting for the network.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::Store;
use crate::error::Error;

/// While it lives, nothing of the store is removed.
#[derive(Debug)]
pub struct UseLock {
    _file: File,
}

/// While it lives, nobody else changes index.json.
#[derive(Debug)]
pub(super) struct NamesLock {
    _file: File,
}

/// While it lives, nobody else uses the store.
#[derive(Debug)]
pub(super) struct CollectLock {
    _file: File,
}

impl Store {
    /// Waits while something is being removed.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn lock_shared(&self) -> Result<UseLock, Error> {
        Ok(UseLock { _file: self.flock("lock", FlockOperation::LockShared)? })
    }

    /// `None` while somebody else uses the store: what is not removed now is removed by the next one.
    pub(super) fn try_lock_exclusive(&self) -> Result<Option<CollectLock>, Error> {
        match self.flock("lock", FlockOperation::NonBlockingLockExclusive) {
            Ok(file) => Ok(Some(CollectLock { _file: file })),
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn lock_exclusive(&self) -> Result<CollectLock, Error> {
        Ok(CollectLock { _file: self.flock("lock", FlockOperation::LockExclusive)? })
    }

    pub(super) fn lock_names(&self) -> Result<NamesLock, Error> {
        Ok(NamesLock { _file: self.flock("index.lock", FlockOperation::LockExclusive)? })
    }

    pub(super) fn lock_sessions(&self) -> Result<File, Error> {
        self.flock("tmp/.lock", FlockOperation::LockExclusive)
    }

    fn flock(&self, name: &str, operation: FlockOperation) -> Result<File, Error> {
        let path = self.root.join(name);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io("open lock file", &path))?;
        loop {
            match rustix::fs::flock(&file, operation) {
                Ok(()) => return Ok(file),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::io("lock", &path)(errno)),
            }
        }
    }
}
