//! What a container uses, in the form of `runc events --stats`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Cgroup;

/// One reading. Times are in nanoseconds, sizes in bytes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Stats {
    /// Processors.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Processes.
    pub pids: Pids,
    /// Disks.
    pub blkio: BlockIo,
    /// Huge pages by size.
    pub hugetlb: BTreeMap<String, Usage>,
}

/// Processors.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Cpu {
    /// Time used.
    pub usage: CpuUsage,
    /// Time withheld.
    pub throttling: Throttling,
}

/// Time used.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CpuUsage {
    /// All of it.
    pub total: u64,
    /// On each processor, where the kernel counts so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// In the kernel.
    pub kernel: u64,
    /// In programs.
    pub user: u64,
}

/// Time withheld by a quota.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Throttling {
    /// Periods passed.
    pub periods: u64,
    /// Periods in which the quota was used up.
    #[serde(rename = "throttledPeriods")]
    pub throttled_periods: u64,
    /// Time waited.
    #[serde(rename = "throttledTime")]
    pub throttled_time: u64,
}

/// Something limited.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Usage {
    /// The limit; the largest number when there is none.
    pub limit: u64,
    /// Now.
    pub usage: u64,
    /// Most ever.
    pub max: u64,
    /// How often the limit was met.
    pub failcnt: u64,
}

/// Memory.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Memory {
    /// Of that, cached files.
    pub cache: u64,
    /// Memory.
    pub usage: Usage,
    /// Memory and swap.
    pub swap: Usage,
    /// `memory.stat`.
    pub raw: BTreeMap<String, u64>,
}

/// Processes and threads.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Pids {
    /// Now.
    pub current: u64,
    /// 0 when there is none.
    pub limit: u64,
}

/// Disks.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BlockIo {
    /// Bytes by device and operation.
    #[serde(rename = "ioServiceBytesRecursive")]
    pub bytes: Vec<BlockIoEntry>,
    /// Operations by device and operation.
    #[serde(rename = "ioServicedRecursive")]
    pub operations: Vec<BlockIoEntry>,
}

/// One count.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BlockIoEntry {
    /// Device number.
    pub major: u64,
    /// Device number.
    pub minor: u64,
    /// `Read`, `Write`, ...
    pub op: String,
    /// The count.
    pub value: u64,
}

impl Cgroup {
    /// Reads what is counted; what is not is 0.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        let read = |name: &str| self.file(name).and_then(|path| fs::read_to_string(path).ok());
        let number = |name: &str| read(name).map_or(0, |text| number_of(&text));
        match self.file("cpuacct.usage") {
            Some(_) => {
                stats.cpu.usage.total = number("cpuacct.usage");
                let split = pairs(&read("cpuacct.stat").unwrap_or_default());
                let ticks = |name: &str| split.get(name).copied().unwrap_or(0) * NANOSECONDS_PER_TICK;
                (stats.cpu.usage.user, stats.cpu.usage.kernel) = (ticks("user"), ticks("system"));
                stats.cpu.usage.percpu = read("cpuacct.usage_percpu")
                    .unwrap_or_default()
                    .split_ascii_whitespace()
                    .filter_map(|word| word.parse().ok())
                    .collect();
            }
            None => {
                let counts = pairs(&read("cpu.stat").unwrap_or_default());
                let nanoseconds = |name: &str| counts.get(name).copied().unwrap_or(0) * 1000;
                stats.cpu.usage.total = nanoseconds("usage_usec");
                stats.cpu.usage.user = nanoseconds("user_usec");
                stats.cpu.usage.kernel = nanoseconds("system_usec");
            }
        }
        let throttled = pairs(&read("cpu.stat").unwrap_or_default());
        let count = |name: &str| throttled.get(name).copied().unwrap_or(0);
        stats.cpu.throttling = Throttling {
            periods: count("nr_periods"),
            throttled_periods: count("nr_throttled"),
            throttled_time: throttled
                .get("throttled_time")
                .copied()
                .unwrap_or(count("throttled_usec") * 1000),
        };
        self.memory_stats(&mut stats.memory);
        stats.pids = Pids { current: number("pids.current"), limit: limit_or_zero(read("pids.max")) };
        stats.blkio = self.block_io_stats();
        for directory in self.directories() {
            stats.hugetlb.extend(huge_pages(directory));
        }
        stats
    }

    fn memory_stats(&self, memory: &mut Memory) {
        let read = |name: &str| self.file(name).and_then(|path| fs::read_to_string(path).ok());
        let number = |name: &str| read(name).map_or(0, |text| number_of(&text));
        memory.raw = pairs(&read("memory.stat").unwrap_or_default());
        let usage = |prefix: &str| Usage {
            limit: number(&format!("{prefix}.limit_in_bytes")),
            usage: number(&format!("{prefix}.usage_in_bytes")),
            max: number(&format!("{prefix}.max_usage_in_bytes")),
            failcnt: number(&format!("{prefix}.failcnt")),
        };
        if self.file("memory.usage_in_bytes").is_some() {
            memory.cache = memory.raw.get("cache").copied().unwrap_or(0);
            (memory.usage, memory.swap) = (usage("memory"), usage("memory.memsw"));
        } else if self.file("memory.current").is_some() {
            memory.cache = memory.raw.get("file").copied().unwrap_or(0);
            let events = pairs(&read("memory.events").unwrap_or_default());
            memory.usage = Usage {
                limit: number("memory.max"),
                usage: number("memory.current"),
                max: number("memory.peak"),
                failcnt: events.get("max").copied().unwrap_or(0),
            };
            memory.swap = Usage {
                limit: number("memory.swap.max").saturating_add(memory.usage.limit),
                usage: number("memory.swap.current").saturating_add(memory.usage.usage),
                ..Usage::default()
            };
        }
    }

    fn block_io_stats(&self) -> BlockIo {
        let read = |name: &str| self.file(name).and_then(|path| fs::read_to_string(path).ok());
        if let Some(text) = read("io.stat") {
            let mut io = BlockIo::default();
            for line in text.lines() {
                let Some((device, counts)) = line.split_once(' ') else { continue };
                for word in counts.split_ascii_whitespace() {
                    let Some((name, value)) = word.split_once('=') else { continue };
                    let (list, op) = match name {
                        "rbytes" => (&mut io.bytes, "Read"),
                        "wbytes" => (&mut io.bytes, "Write"),
                        "dbytes" => (&mut io.bytes, "Discard"),
                        "rios" => (&mut io.operations, "Read"),
                        "wios" => (&mut io.operations, "Write"),
                        "dios" => (&mut io.operations, "Discard"),
                        _ => continue,
                    };
                    list.extend(entry(device, op, value));
                }
            }
            return io;
        }
        let list = |name: &str| {
            let text = read(name).unwrap_or_default();
            let lines = text.lines().filter_map(|line| {
                let mut words = line.split_ascii_whitespace();
                let (device, op, value) = (words.next()?, words.next()?, words.next()?);
                entry(device, op, value)
            });
            lines.collect::<Vec<_>>()
        };
        BlockIo {
            bytes: list("blkio.throttle.io_service_bytes_recursive"),
            operations: list("blkio.throttle.io_serviced_recursive"),
        }
    }
}

/// USER_HZ is 100 on every architecture that this program runs on.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

fn entry(device: &str, op: &str, value: &str) -> Option<BlockIoEntry> {
    let (major, minor) = device.split_once(':')?;
    Some(BlockIoEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        op: op.to_owned(),
        value: value.parse().ok()?,
    })
}

fn number_of(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

fn limit_or_zero(text: Option<String>) -> u64 {
    match text.map(|text| number_of(&text)) {
        None | Some(u64::MAX) => 0,
        Some(limit) => limit,
    }
}

/// Lines of `NAME NUMBER`.
fn pairs(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

fn huge_pages(directory: &Path) -> Vec<(String, Usage)> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let number = |path: PathBuf| fs::read_to_string(path).map_or(0, |text| number_of(&text));
    names
        .filter_map(|name| {
            let size = name.strip_prefix("hugetlb.")?;
            let (size, of) = match size.strip_suffix(".usage_in_bytes") {
                Some(size) if !size.ends_with(".rsvd") => (size, ["limit_in_bytes", "usage_in_bytes"]),
                _ => (size.strip_suffix(".current").filter(|s| !s.ends_with(".rsvd"))?, ["max", "current"]),
            };
            let file = |what: &str| directory.join(format!("hugetlb.{size}.{what}"));
            let usage = Usage {
                limit: number(file(of[0])),
                usage: number(file(of[1])),
                max: number(file("max_usage_in_bytes")),
                failcnt: number(file("failcnt")),
            };
            Some((size.to_owned(), usage))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unified_cgroup_is_read() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("cgroup.events", "populated 1\n"),
            ("cpu.stat", "usage_usec 50\nuser_usec 30\nsystem_usec 20\nnr_throttled 3\nthrottled_usec 7\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 100\nfile 200\n"),
            ("pids.current", "4\n"),
            ("pids.max", "max\n"),
            ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n"),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let stats = Cgroup::borrowed(&[dir.path().to_owned()]).stats();
        assert_eq!((stats.cpu.usage.total, stats.cpu.throttling.throttled_time), (50_000, 7_000));
        assert_eq!(
            (stats.memory.usage.usage, stats.memory.usage.limit, stats.memory.cache),
            (4096, u64::MAX, 200)
        );
        assert_eq!((stats.pids.current, stats.pids.limit), (4, 0));
        assert_eq!(stats.blkio.bytes[1].value, 20);
    }
}
