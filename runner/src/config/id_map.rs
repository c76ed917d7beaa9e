//! Ids of a user namespace: validated, and in the form that the kernel reads.

use std::fmt::Write as _;
use std::fs;
use std::io;

use oci_spec::runtime::LinuxIdMapping;

use super::ConfigError;

/// Lines that the kernel takes in one map (user_namespaces(7)).
const LINES_MAX: usize = 340;

/// One range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id in the container.
    pub container: u32,
    /// First id outside.
    pub host: u32,
    /// How many.
    pub size: u32,
}

/// A validated map of users or groups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdMap(Vec<IdRange>);

impl IdMap {
    /// From the specification's list; `field` names it in errors.
    ///
    /// # Errors
    /// A range that is empty, ends beyond the largest id, or overlaps another; too many of them.
    pub fn from_spec(list: &[LinuxIdMapping], field: &str) -> Result<Self, ConfigError> {
        let mut ranges: Vec<IdRange> = Vec::with_capacity(list.len());
        if list.len() > LINES_MAX {
            return Err(ConfigError::new(field, format!("has more than {LINES_MAX} ranges")));
        }
        for (index, entry) in list.iter().enumerate() {
            let refused = |problem: String| Err(ConfigError::new(format!("{field}[{index}]"), problem));
            let range =
                IdRange { container: entry.container_id(), host: entry.host_id(), size: entry.size() };
            if range.size == 0 {
                return refused("is of size 0".into());
            }
            // The last id, 2^32 - 1, means "no change" and is nobody's.
            for first in [range.container, range.host] {
                if u64::from(first) + u64::from(range.size) > u64::from(u32::MAX) {
                    return refused(format!("{} ids from {first} end beyond the largest id", range.size));
                }
            }
            let overlap = |a: u32, n: u32, b: u32, m: u32| {
                u64::from(a) < u64::from(b) + u64::from(m) && u64::from(b) < u64::from(a) + u64::from(n)
            };
            for (other, before) in ranges.iter().enumerate() {
                if overlap(range.container, range.size, before.container, before.size) {
                    return refused(format!("overlaps range {other} in the container"));
                }
                if overlap(range.host, range.size, before.host, before.size) {
                    return refused(format!("overlaps range {other} outside of the container"));
                }
            }
            ranges.push(range);
        }
        Ok(Self(ranges))
    }

    /// No range.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True when `id` exists in the container.
    #[must_use]
    pub fn contains(&self, id: u32) -> bool {
        self.0.iter().any(|range| id.checked_sub(range.container).is_some_and(|at| at < range.size))
    }

    /// The id outside that `id` of the container stands for.
    #[must_use]
    pub fn to_host(&self, id: u32) -> Option<u32> {
        self.0.iter().find_map(|range| {
            id.checked_sub(range.container).filter(|at| *at < range.size).map(|at| range.host + at)
        })
    }

    /// As written to /proc/PID/uid_map.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for IdRange { container, host, size } in &self.0 {
            // Writing to a string cannot fail.
            writeln!(text, "{container} {host} {size}").ok();
        }
        text
    }

    /// The ranges in order.
    #[must_use]
    pub fn ranges(&self) -> &[IdRange] {
        &self.0
    }

    /// Refuses ranges of ids that this process's own user namespace does not have. `file` is
    /// `/proc/self/uid_map` or its sibling.
    ///
    /// # Errors
    /// The first such range.
    pub(crate) fn check_outside(&self, file: &str, field: &str) -> Result<(), ConfigError> {
        let outside =
            own_ranges(file).map_err(|error| ConfigError::new(field, format!("read {file}: {error}")))?;
        for (index, range) in self.0.iter().enumerate() {
            let (mut at, end) = (u64::from(range.host), u64::from(range.host) + u64::from(range.size));
            while at < end {
                let Some((first, count)) = outside.iter().find(|(f, n)| (*f..f + n).contains(&at)) else {
                    let problem =
                        format!("id {at} outside does not exist in the runtime's own user namespace");
                    return Err(ConfigError::new(format!("{field}[{index}]"), problem));
                };
                at = first + count;
            }
        }
        Ok(())
    }
}

/// First ids and counts of this process's user namespace.
fn own_ranges(file: &str) -> io::Result<Vec<(u64, u64)>> {
    let text = fs::read_to_string(file)?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().map(|field| field.parse::<u64>().ok());
            let first = fields.next()??;
            fields.next()??;
            Some((first, fields.next()??))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(json: &str) -> Result<IdMap, ConfigError> {
        IdMap::from_spec(&serde_json::from_str::<Vec<_>>(json).unwrap(), "linux.uidMappings")
    }

    #[test]
    fn impossible_ranges_are_named() {
        for (json, field) in [
            (r#"[{"containerID":0,"hostID":1000,"size":0}]"#, "linux.uidMappings[0]"),
            (r#"[{"containerID":0,"hostID":4294967290,"size":10}]"#, "linux.uidMappings[0]"),
            (
                r#"[{"containerID":0,"hostID":1000,"size":10},{"containerID":5,"hostID":5000,"size":1}]"#,
                "linux.uidMappings[1]",
            ),
            (
                r#"[{"containerID":0,"hostID":1000,"size":10},{"containerID":50,"hostID":1009,"size":9}]"#,
                "linux.uidMappings[1]",
            ),
        ] {
            assert_eq!(map(json).unwrap_err().field(), field, "{json}");
        }
    }

    #[test]
    fn ids_are_found_and_written() {
        let map =
            map(r#"[{"containerID":0,"hostID":1000,"size":1},{"containerID":1,"hostID":100000,"size":10}]"#)
                .unwrap();
        assert!(map.contains(0) && map.contains(10) && !map.contains(11));
        assert_eq!(map.to_host(3), Some(100_002));
        assert_eq!(map.to_host(11), None);
        assert_eq!(map.text(), "0 1000 1\n1 100000 10\n");
    }
}
