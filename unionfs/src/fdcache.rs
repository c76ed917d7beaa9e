//! Descriptors that can be opened again, kept within a budget.
//!
//! Directories of layers and files without an open handle keep their descriptor here. When the budget is
//! exceeded, those not used since the last sweep are closed; a use in progress holds its own reference. Nothing
//! here is held across a system call but the closing of descriptors.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// An open descriptor counted against the budget.
#[derive(Debug)]
pub struct CachedFd {
    fd: OwnedFd,
    open: Arc<AtomicUsize>,
    /// Where the file ended when it was opened; `u64::MAX` where that says nothing.
    end: u64,
}

impl CachedFd {
    /// The file ended at `offset` when it was opened, and is not changed through this mount.
    #[must_use]
    pub fn ends_at(&self, offset: u64) -> bool {
        self.end == offset
    }
}

impl AsFd for CachedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for CachedFd {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What came of asking a holder to close its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evicted {
    /// It holds none any more.
    Gone,
    /// It was used since the last sweep, or is in use: ask again later.
    Later,
}

/// Something that keeps a descriptor it could open again.
pub trait Holder: Send + Sync + std::fmt::Debug {
    /// Closes the descriptor unless it was used since the last call.
    fn evict(&self) -> Evicted;
}

/// The budget and its holders.
#[derive(Debug)]
pub struct FdCache {
    limit: usize,
    open: Arc<AtomicUsize>,
    holders: Mutex<VecDeque<Weak<dyn Holder>>>,
}

impl FdCache {
    /// A cache of at most about `limit` descriptors.
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.max(16), open: Arc::default(), holders: Mutex::default() }
    }

    /// Number of descriptors open in the cache.
    pub fn open_count(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Counts a descriptor. The caller [registers](Self::register) its holder once it is in place.
    pub fn count(&self, fd: OwnedFd) -> Arc<CachedFd> {
        self.count_file(fd, None)
    }

    /// As [`Self::count`], for a file whose data ends at `end` as long as nobody changes it.
    pub fn count_file(&self, fd: OwnedFd, end: Option<u64>) -> Arc<CachedFd> {
        self.open.fetch_add(1, Ordering::Relaxed);
        Arc::new(CachedFd { fd, open: self.open.clone(), end: end.unwrap_or(u64::MAX) })
    }

    /// Remembers who can be asked to close, and asks some when the budget is exceeded.
    pub fn register(&self, holder: Weak<dyn Holder>) {
        let mut holders = self.holders.lock();
        holders.push_back(holder);
        if holders.len() > 4 * self.limit {
            holders.retain(|h| h.strong_count() > 0);
        }
        drop(holders);
        if self.open_count() > self.limit {
            self.shrink(self.limit / 8 + 1);
        }
    }

    /// Closes up to `wanted` descriptors that were not used lately; also called when the process runs out of them.
    pub fn shrink(&self, wanted: usize) {
        let mut closed = 0;
        // Two rounds: the first clears the marks of use, the second closes what was not used meanwhile.
        let rounds = 2 * self.holders.lock().len();
        for _ in 0..rounds {
            if closed >= wanted {
                break;
            }
            let Some(weak) = self.holders.lock().pop_front() else { break };
            let Some(holder) = weak.upgrade() else { continue };
            match holder.evict() {
                Evicted::Gone => closed += 1,
                Evicted::Later => self.holders.lock().push_back(weak),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Slot(Mutex<(Option<Arc<CachedFd>>, bool)>);

    impl Holder for Slot {
        fn evict(&self) -> Evicted {
            let mut slot = self.0.lock();
            if std::mem::take(&mut slot.1) {
                return Evicted::Later;
            }
            slot.0 = None;
            Evicted::Gone
        }
    }

    #[test]
    fn stays_within_its_budget_and_keeps_what_is_used() {
        let cache = FdCache::new(16);
        let mut slots = Vec::new();
        for _ in 0..100 {
            let fd = cache.count(std::fs::File::open("/dev/null").unwrap().into());
            let slot = Arc::new(Slot(Mutex::new((Some(fd), false))));
            cache.register(Arc::downgrade(&slot) as Weak<dyn Holder>);
            slots.push(slot);
            slots[0].0.lock().1 = true;
        }
        assert!(cache.open_count() <= 17, "{}", cache.open_count());
        assert!(slots[0].0.lock().0.is_some(), "the one in use was closed");
        drop(slots);
        assert_eq!(cache.open_count(), 0);
    }
}
