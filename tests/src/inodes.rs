//! Inode numbers of a mount, held against the objects of a reference tree.
//!
//! An object of the reference keeps its number as long as it lives; the mount must give one number to one
//! object too, for as long as it lives: over copy-up, rename and remount, and never one number to two objects.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What is known so far.
#[derive(Debug, Default)]
pub struct Inodes {
    /// Number in the reference to number in the mount and the path it was last seen at.
    known: HashMap<u64, (u64, PathBuf)>,
}

impl Inodes {
    /// Expects nothing any more of the objects last seen at these paths.
    pub fn forget(&mut self, forgets: impl Fn(&PathBuf) -> bool) {
        self.known.retain(|_, (_, path)| !forgets(path));
    }

    /// Compares all `paths` of the two roots; to be called after each single operation, since a real
    /// filesystem gives the numbers of removed objects to new ones. Returns what does not hold.
    pub fn check<'a>(
        &mut self,
        paths: impl Iterator<Item = &'a PathBuf>,
        reference: &Path,
        mount: &Path,
    ) -> Vec<String> {
        let mut faults = Vec::new();
        let mut numbers = Vec::new();
        for path in paths {
            match (reference.join(path).symlink_metadata(), mount.join(path).symlink_metadata()) {
                (Ok(expected), Ok(seen)) => numbers.push((path.clone(), expected.ino(), seen.ino())),
                _ => faults.push(format!("{}: cannot be statted in both trees", path.display())),
            }
        }
        faults.extend(self.check_numbers(numbers));
        faults
    }

    /// As [`Self::check`], with the numbers at hand: path, number in the reference, number in the mount.
    pub fn check_numbers(&mut self, numbers: Vec<(PathBuf, u64, u64)>) -> Vec<String> {
        let mut faults = Vec::new();
        let mut now: HashMap<u64, (u64, PathBuf)> = HashMap::new();
        let mut owners: BTreeMap<u64, (u64, PathBuf)> = BTreeMap::new();
        for (path, expected, seen) in numbers {
            if let Some((before, at)) = self.known.get(&expected)
                && *before != seen
            {
                faults.push(format!(
                    "{}: inode number {seen}, was {before} (then at {})",
                    path.display(),
                    at.display()
                ));
            }
            match owners.get(&seen) {
                Some((owner, at)) if *owner != expected => faults.push(format!(
                    "{} and {}: different objects with the inode number {seen}",
                    path.display(),
                    at.display()
                )),
                _ => {
                    owners.insert(seen, (expected, path.clone()));
                }
            }
            now.insert(expected, (seen, path.clone()));
        }
        self.known = now;
        faults
    }
}
