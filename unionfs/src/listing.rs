//! The merged names of one directory.
//!
//! Entries are ordered by a hash of their name. That order is also the directory's offset order: an offset stays
//! valid while entries come and go, over closing, forgetting and remounting, and reading a directory ends also
//! when entries are renamed meanwhile. No I/O happens here.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::layer::scan::{Found, ObjectKind, Scan};

/// Which part of the merged directory's lowers: 0 is the topmost.
pub type PartNo = u16;

/// What the upper has under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InUpper {
    /// An object.
    pub object: bool,
    /// A whiteout of the name itself.
    pub whiteout: bool,
    /// A file `.wh.NAME`.
    pub whiteout_file: bool,
}

/// One name.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The name.
    pub name: Arc<[u8]>,
    /// The upper's share.
    pub upper: InUpper,
    /// The topmost lower part that shows an object under this name, whether or not the upper hides it.
    pub lower: Option<PartNo>,
    /// Lower parts below that one whose directory of this name merges with it.
    /// Boxed twice: few entries have any, and a million entries pay for its room.
    pub deeper: Option<Box<Box<[PartNo]>>>,
    /// The visible object is a directory.
    pub is_dir: bool,
    /// The lower object is a directory.
    pub lower_is_dir: bool,
    /// The node's inode number once it was looked up, else 0.
    pub ino: u64,
}

impl Entry {
    /// There is something to be seen under this name.
    pub fn is_visible(&self) -> bool {
        self.upper.object || (self.lower.is_some() && !self.upper.whiteout && !self.upper.whiteout_file)
    }
}

/// The first offset of a named entry: 1 and 2 follow `.` and `..`.
pub const FIRST_OFFSET: u64 = 3;

/// All names of a merged directory.
#[derive(Debug, Default)]
pub struct Listing {
    entries: BTreeMap<u64, Entry>,
    /// The furthest that a name was ever put from its own offset, because names before it had the same.
    furthest: u64,
}

/// Offset of a name: FNV-1a, finished so that all bits take part, within the positive half of `off_t`.
fn hash(name: &[u8]) -> u64 {
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    for b in name {
        h = (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
    }
    h ^= h >> 32;
    h = h.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    h ^= h >> 29;
    // Room is left above for the steps that clashes take.
    (h >> 2).max(FIRST_OFFSET)
}

impl Listing {
    /// Merges the listing of the upper and those of the lowers, topmost first. Lowers after an opaque one are not
    /// passed.
    pub fn merge(upper: Option<Scan>, lowers: Vec<Scan>) -> Self {
        let mut listing = Self::default();
        for (name, found) in upper.map(|s| s.entries).unwrap_or_default() {
            let entry = listing.entry(name);
            entry.upper.object |= found.object.is_some();
            entry.upper.whiteout |= found.whiteout;
            entry.upper.whiteout_file |= found.whiteout_file;
            entry.is_dir |= found.object == Some(ObjectKind::Dir);
        }
        for (part, scan) in lowers.into_iter().enumerate() {
            listing.merge_lower(part as PartNo, scan);
        }
        // What only served to stop the merge shows nothing and hides nothing.
        listing.entries.retain(|_, e| e.lower.is_some() || e.upper != InUpper::default());
        for entry in listing.entries.values_mut() {
            if !entry.upper.object {
                entry.is_dir = entry.lower_is_dir;
            }
            if entry.ino == STOPPED {
                entry.ino = 0;
            }
        }
        listing
    }

    fn merge_lower(&mut self, part: PartNo, scan: Scan) {
        // A name may come twice within one part: object and whiteout of the layers below count together.
        let mut twice: BTreeMap<Arc<[u8]>, Found> = BTreeMap::new();
        for (name, found) in scan.entries {
            if found.whiteout_file {
                twice.insert(name, found);
            } else {
                self.add_lower(part, name, found);
            }
        }
        for (name, found) in twice {
            self.add_lower(part, name, found);
        }
    }

    fn add_lower(&mut self, part: PartNo, name: Arc<[u8]>, found: Found) {
        let entry = self.entry(name);
        if entry.ino == STOPPED && entry.lower != Some(part) {
            return;
        }
        if let Some(kind) = found.object {
            let is_dir = kind == ObjectKind::Dir;
            match entry.lower {
                None => {
                    entry.lower = Some(part);
                    entry.lower_is_dir = is_dir;
                }
                Some(_) if is_dir && entry.lower_is_dir => {
                    let mut deeper = entry.deeper.take().map(|d| Vec::from(*d)).unwrap_or_default();
                    deeper.push(part);
                    entry.deeper = Some(Box::new(deeper.into()));
                }
                Some(_) => {}
            }
        }
        if found.hides_below() {
            entry.ino = STOPPED;
        }
    }

    fn entry(&mut self, name: Arc<[u8]>) -> &mut Entry {
        let at = self.place(&name).unwrap_or_else(|free| {
            self.furthest = self.furthest.max(free - hash(&name));
            free
        });
        self.entries.entry(at).or_insert_with(|| Entry {
            name,
            upper: InUpper::default(),
            lower: None,
            deeper: None,
            is_dir: false,
            lower_is_dir: false,
            ino: 0,
        })
    }

    /// The offset at which `name` is, or the one at which it belongs. Names of one hash take the next free steps;
    /// since removing opens gaps before them, the search goes as far as any name ever went.
    fn place(&self, name: &[u8]) -> Result<u64, u64> {
        let home = hash(name);
        let mut free = home;
        for (at, entry) in self.entries.range(home..=home + self.furthest) {
            if *entry.name == *name {
                return Ok(*at);
            }
            if *at == free {
                free += 1;
            }
        }
        while self.entries.contains_key(&free) {
            free += 1;
        }
        Err(free)
    }

    /// The entry of a name, visible or not.
    pub fn get(&self, name: &[u8]) -> Option<&Entry> {
        self.entries.get(&self.place(name).ok()?)
    }

    /// As [`Self::get`], to change it.
    pub fn get_mut(&mut self, name: &[u8]) -> Option<&mut Entry> {
        let at = self.place(name).ok()?;
        self.entries.get_mut(&at)
    }

    /// Adds a name, or finds it, and lets `change` set its share. Entries that neither show nor hide anything
    /// afterwards are dropped.
    pub fn update(&mut self, name: &Arc<[u8]>, change: impl FnOnce(&mut Entry)) {
        let entry = self.entry(name.clone());
        change(entry);
        if entry.lower.is_none()
            && entry.upper == InUpper::default()
            && let Ok(at) = self.place(name)
        {
            self.entries.remove(&at);
        }
    }

    /// Up to `count` visible entries after `offset`, each with its own offset.
    pub fn after(&self, offset: u64, count: usize) -> Vec<(u64, Arc<[u8]>)> {
        self.entries
            .range(offset.saturating_add(1)..)
            .filter(|(_, e)| e.is_visible())
            .take(count)
            .map(|(at, e)| (*at, e.name.clone()))
            .collect()
    }

    /// True when no name shows.
    pub fn is_empty(&self) -> bool {
        !self.entries.values().any(Entry::is_visible)
    }

    /// True when the upper has nothing at all here.
    pub fn upper_is_empty(&self) -> bool {
        self.entries.values().all(|e| e.upper == InUpper::default())
    }

    /// Number of names held, visible or not.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// All entries, visible or not.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }
}

/// While merging: nothing of lower parts counts for this name any more. No node has this number.
const STOPPED: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(entries: &[(&str, Found)]) -> Scan {
        Scan { entries: entries.iter().map(|(n, f)| (Arc::from(n.as_bytes()), *f)).collect(), opaque: false }
    }
    const DIR: Found = Found { object: Some(ObjectKind::Dir), whiteout: false, whiteout_file: false };
    const FILE: Found = Found { object: Some(ObjectKind::Other), whiteout: false, whiteout_file: false };
    const GONE: Found = Found { object: None, whiteout: true, whiteout_file: false };
    const WH: Found = Found { object: None, whiteout: false, whiteout_file: true };

    fn visible(listing: &Listing) -> Vec<String> {
        let mut names: Vec<_> = listing
            .after(0, 1000)
            .into_iter()
            .map(|(_, n)| String::from_utf8_lossy(&n).into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn merging() {
        let listing = Listing::merge(
            Some(scan(&[("u", FILE), ("gone", GONE), ("d", DIR)])),
            vec![
                scan(&[("gone", FILE), ("d", DIR), ("x", FILE), ("mid", GONE), ("filedir", FILE)]),
                scan(&[("d", DIR), ("mid", FILE), ("x", DIR), ("filedir", DIR), ("deep", DIR)]),
                scan(&[("d", FILE), ("deep", DIR)]),
                scan(&[("d", DIR), ("deep", DIR)]),
            ],
        );
        assert_eq!(visible(&listing), ["d", "deep", "filedir", "u", "x"]);
        let d = listing.get(b"d").unwrap();
        assert_eq!(
            (d.lower, d.deeper.as_deref().map(|d| &**d)),
            (Some(0), Some(&[1][..])),
            "a file below stops the merge"
        );
        let deep = listing.get(b"deep").unwrap();
        assert_eq!((deep.lower, deep.deeper.as_deref().map(|d| &**d)), (Some(1), Some(&[2, 3][..])));
        assert_eq!(listing.get(b"x").unwrap().deeper, None, "a file hides a directory below");
        assert!(listing.get(b"gone").unwrap().lower.is_some(), "what is hidden is still known");
        assert!(listing.get(b"mid").is_none(), "a lower whiteout leaves nothing to know");
    }

    #[test]
    fn whiteout_files_hide_lower_layers_only() {
        for order in [[("n", FILE), ("n", WH)], [("n", WH), ("n", FILE)]] {
            let listing = Listing::merge(None, vec![scan(&order), scan(&[("n", DIR)])]);
            assert_eq!(visible(&listing), ["n"]);
            assert!(!listing.get(b"n").unwrap().is_dir);
        }
        let listing = Listing::merge(None, vec![scan(&[("d", WH), ("d", DIR)]), scan(&[("d", DIR)])]);
        assert_eq!(listing.get(b"d").unwrap().deeper, None);
        let listing = Listing::merge(None, vec![scan(&[("n", WH)]), scan(&[("n", FILE)])]);
        assert!(listing.is_empty());
    }

    #[test]
    fn offsets_hold_while_entries_come_and_go() {
        let mut listing = Listing::default();
        let name = |i: u32| -> Arc<[u8]> { Arc::from(format!("name{i}").as_bytes()) };
        for i in 0..1000 {
            listing.update(&name(i), |e| e.upper.object = true);
        }
        let all = listing.after(0, 2000);
        assert_eq!(all.len(), 1000);
        let (middle, _) = all[499];
        for (_, gone) in &all[..300] {
            listing.update(gone, |e| e.upper.object = false);
        }
        assert_eq!(listing.after(middle, 2000), all[500..]);
        assert_eq!(listing.len(), 700);
    }
}
