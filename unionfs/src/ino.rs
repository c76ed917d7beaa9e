//! Inode numbers of the mount.
//!
//! An object's number is its real number on its filesystem, with the filesystem's index in the high bits: the
//! same over remounts, unique over several filesystems. Numbers too large for that, and clashes, get a number
//! from a counter that lives as long as the mount.

use dashmap::DashMap;
use parking_lot::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::Xino;

/// Number of the root (FUSE gives it).
pub const ROOT_INO: u64 = 1;

/// Bits of the real number; above them the filesystem's index, below the sign bit.
const REAL_BITS: u32 = 56;
/// The index in the high bits that says: counted, not composed.
const COUNTED: u64 = 0x7f;

/// Composes numbers.
#[derive(Debug)]
pub struct InoMap {
    compose: bool,
    devices: RwLock<Vec<u64>>,
    counted: DashMap<(u64, u64), u64>,
    /// Objects whose own number is claimed by a mark on another one.
    displaced: DashMap<(u64, u64), u64>,
    next: AtomicU64,
}

impl InoMap {
    /// `devices` in the order that fixes their index: the upper's, then the lowers', so that a remount of the
    /// same stack composes the same numbers.
    pub fn new(xino: Xino, devices: impl IntoIterator<Item = u64>) -> Self {
        let mut known = Vec::new();
        for dev in devices {
            if !known.contains(&dev) {
                known.push(dev);
            }
        }
        Self {
            compose: xino != Xino::Off,
            devices: RwLock::new(known),
            counted: crate::shards::map(),
            displaced: crate::shards::map(),
            next: AtomicU64::new(1),
        }
    }

    fn index(&self, dev: u64) -> u64 {
        if let Some(at) = self.devices.read().iter().position(|d| *d == dev) {
            return at as u64;
        }
        let mut devices = self.devices.write();
        if let Some(at) = devices.iter().position(|d| *d == dev) {
            return at as u64;
        }
        devices.push(dev);
        (devices.len() - 1) as u64
    }

    /// The number of the object `ino` on the filesystem `dev`.
    pub fn number(&self, dev: u64, ino: u64) -> u64 {
        if !self.displaced.is_empty()
            && let Some(number) = self.displaced.get(&(dev, ino))
        {
            return *number;
        }
        let index = self.index(dev);
        let fits = ino >> REAL_BITS == 0 && (index == 0 || self.compose && index < COUNTED);
        let composed = index << REAL_BITS | ino;
        if fits && composed > ROOT_INO {
            return composed;
        }
        *self.counted.entry((dev, ino)).or_insert_with(|| self.fresh())
    }

    /// Another number for an object whose own is claimed by a mark; the same for the life of the mount.
    pub fn displace(&self, dev: u64, ino: u64) -> u64 {
        *self.displaced.entry((dev, ino)).or_insert_with(|| self.fresh())
    }

    /// A number that no object on disk composes to.
    pub fn fresh(&self) -> u64 {
        COUNTED << REAL_BITS | self.next.fetch_add(1, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_repeatable() {
        let map = InoMap::new(Xino::Auto, [10, 20, 10]);
        assert_eq!(map.number(10, 5), 5);
        assert_ne!(map.number(20, 5), 5);
        assert_eq!(map.number(20, 5), InoMap::new(Xino::Auto, [10, 20]).number(20, 5));
        let huge = map.number(10, u64::MAX);
        assert_eq!(map.number(10, u64::MAX), huge);
        assert_ne!(map.number(20, u64::MAX), huge);
        assert_ne!(map.number(30, 1), ROOT_INO);
        assert_ne!(map.number(10, 1), ROOT_INO);
    }

    #[test]
    fn without_composing_only_the_first_filesystem_keeps_its_numbers() {
        let map = InoMap::new(Xino::Off, [10, 20]);
        assert_eq!(map.number(10, 7), 7);
        assert_eq!(map.number(20, 7) >> REAL_BITS, COUNTED);
    }
}
