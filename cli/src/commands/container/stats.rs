//! `layerfs stats`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use layerfs_runner::cgroup::Cgroup;
use serde_json::{Value, json};

use super::store::{Container, Containers};
use crate::images::{human, listing};
use crate::ui;

/// Show what containers use, live
#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// `table`, `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Once, and end
    #[arg(long)]
    no_stream: bool,
    /// Do not cut ids
    #[arg(long)]
    no_trunc: bool,
    /// The containers [default: all that run]
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

const COLUMNS: [listing::Column; 8] = [
    ("CONTAINER ID", "ID"),
    ("NAME", "Name"),
    ("CPU %", "CPUPerc"),
    ("MEM USAGE / LIMIT", "MemUsage"),
    ("MEM %", "MemPerc"),
    ("NET I/O", "NetIO"),
    ("BLOCK I/O", "BlockIO"),
    ("PIDS", "PIDs"),
];

pub(crate) fn stats(args: StatsArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open()?;
    loop {
        let found = chosen(&containers, &args)?;
        let before: Vec<(u64, Instant)> =
            found.iter().map(|container| (cpu(container), Instant::now())).collect();
        // What a second's use is takes a second to see.
        wait_a_second(args.no_stream)?;
        let rows: Vec<Value> = found
            .iter()
            .zip(before)
            .map(|(container, before)| row(container, before, args.no_trunc))
            .collect();
        if !args.no_stream && ui::width().is_some() {
            ui::print("\u{1b}[H\u{1b}[J")?;
        }
        let is_read = listing::print(&rows, &COLUMNS, &COLUMNS, args.format.as_deref())?;
        if args.no_stream || !is_read {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// One interval of measuring; an interrupt ends the program as it ends any.
fn wait_a_second(is_short: bool) -> anyhow::Result<()> {
    let interval = if is_short { Duration::from_millis(300) } else { Duration::from_secs(1) };
    let timeout = rustix::event::Timespec {
        tv_sec: i64::try_from(interval.as_secs())?,
        tv_nsec: i64::from(interval.subsec_nanos()),
    };
    rustix::event::poll(&mut [], Some(&timeout)).context("wait")?;
    Ok(())
}

fn chosen(containers: &Containers, args: &StatsArgs) -> anyhow::Result<Vec<Container>> {
    if !args.containers.is_empty() {
        return args.containers.iter().map(|name| containers.find(name)).collect();
    }
    let mut all = containers.all()?;
    all.retain(|container| args.all || container.is_running());
    Ok(all)
}

fn cpu(container: &Container) -> u64 {
    Cgroup::borrowed(&container.record.cgroup).stats().cpu.usage.total
}

/// Units of 1024, as docker's table has them here.
fn binary(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[allow(clippy::cast_precision_loss)]
    let mut value = bytes as f64;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while value >= 1024.0 {
        let Some(next) = units.next() else { break };
        (value, unit) = (value / 1024.0, Some(next));
    }
    let decimals = if value >= 100.0 || value.fract() == 0.0 {
        0
    } else if value >= 10.0 {
        2
    } else {
        3
    };
    format!("{value:.decimals$}{}", unit.copied().unwrap_or_default())
}

/// Bytes that were received and sent by its interfaces, as its program's network namespace has them.
fn network(container: &Container) -> (u64, u64) {
    let pid = container.record.process.filter(|_| container.is_running()).map_or(0, |process| process.pid);
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    let count = |line: &str| {
        let (_, numbers) = line.split_once(':').filter(|(name, _)| name.trim() != "lo")?;
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        Some((*numbers.first()?, *numbers.get(8)?))
    };
    text.lines().filter_map(count).fold((0, 0), |(received, sent), (r, s)| (received + r, sent + s))
}

/// Two numbers of bytes, in units of 1000, as docker's table has them here.
fn pair((first, second): (u64, u64)) -> String {
    format!("{} / {}", human::size(first), human::size(second))
}

fn row(container: &Container, (before, since): (u64, Instant), whole: bool) -> Value {
    let stats = Cgroup::borrowed(&container.record.cgroup).stats();
    let machine = {
        let info = rustix::system::sysinfo();
        info.totalram as u64 * u64::from(info.mem_unit)
    };
    let limit = stats.memory.usage.limit.min(machine);
    // As docker does: what can be taken back at once is not counted.
    let used = stats.memory.usage.usage.saturating_sub(stats.memory.cache.min(stats.memory.usage.usage));
    #[allow(clippy::cast_precision_loss)]
    let percent = |part: u64, whole: u128| if whole == 0 { 0.0 } else { part as f64 / whole as f64 * 100.0 };
    let cpu = percent(stats.cpu.usage.total.saturating_sub(before), since.elapsed().as_nanos());
    let disk = |op: &str| -> u64 {
        let all = stats.blkio.bytes.iter().filter(|entry| entry.op.eq_ignore_ascii_case(op));
        all.map(|entry| entry.value).sum()
    };
    json!({
        "ID": if whole { container.id() } else { container.short() },
        "Container": container.short(),
        "Name": container.config.name,
        "CPUPerc": format!("{cpu:.2}%"),
        "MemUsage": format!("{} / {}", binary(used), binary(limit)),
        "MemPerc": format!("{:.2}%", percent(used, u128::from(limit))),
        "NetIO": pair(network(container)),
        "BlockIO": pair((disk("read"), disk("write"))),
        "PIDs": stats.pids.current.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in
            [(0, "0B"), (1024, "1KiB"), (1536, "1.500KiB"), (64 << 20, "64MiB"), (20_000_000, "19.07MiB")]
        {
            assert_eq!(binary(bytes), text);
        }
    }
}
