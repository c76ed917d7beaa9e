//! Settings of the kernel below `/proc/sys/net`, of the calling thread's network namespace.

use std::fs;
use std::path::Path;

use crate::error::{Doing, Result};

/// Sets `name` (with slashes) to `value`, unless it has it already: where `/proc/sys` is read-only, what is right can stay.
pub(crate) fn set(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(name);
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).doing(|| format!("set net/{name} to {value}"))
}

/// The ports that the kernel takes for connections of its own choice; free host ports are taken from them.
pub(crate) fn ephemeral_ports() -> (u16, u16) {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(first), Some(last)) if first > 0 && first <= last => (first, last),
        _ => (32768, 60999),
    }
}
