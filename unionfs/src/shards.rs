//! Maps that several threads use at once.

use std::hash::{BuildHasher, Hash};

use dashmap::DashMap;

/// Parts with a lock of their own. The library's own choice goes by the number of CPUs, for which the standard library
/// reads a dozen files of the cgroup; a mount has at most eight threads.
const SHARDS: usize = 16;

/// An empty map.
pub(crate) fn map<K: Eq + Hash, V, S: BuildHasher + Default + Clone>() -> DashMap<K, V, S> {
    DashMap::with_capacity_and_hasher_and_shard_amount(0, S::default(), SHARDS)
}
