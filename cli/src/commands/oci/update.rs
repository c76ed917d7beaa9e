//! `update`: other limits for a container that runs.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use layerfs_runner::config::document;
use serde_json::{Map, Value, json};

use super::Context;
use crate::exit::Usage;

/// Change the limits of a container
#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Read the limits from FILE (linux.resources of the specification); - is standard input
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Weight of disk I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// Length of a period, in microseconds
    #[arg(long, value_name = "US")]
    cpu_period: Option<u64>,
    /// CPU time in a period, in microseconds; -1 is unlimited
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Quota that may be saved up, in microseconds
    #[arg(long, value_name = "US")]
    cpu_burst: Option<u64>,
    /// Weight of CPU time, 2 to 262144
    #[arg(short = 'c', long, value_name = "SHARES", alias = "cpu-shares")]
    cpu_share: Option<u64>,
    /// Length of a real-time period, in microseconds
    #[arg(long, value_name = "US")]
    cpu_rt_period: Option<u64>,
    /// Real-time CPU time in a period, in microseconds
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_rt_runtime: Option<i64>,
    /// CPUs, such as 0-3,7
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// 1: only where nobody else wants the CPU
    #[arg(long, value_name = "0|1")]
    cpu_idle: Option<i64>,
    /// Memory, such as 512m; -1 is unlimited
    #[arg(long, value_name = "BYTES", value_parser = parse_size, allow_hyphen_values = true)]
    memory: Option<i64>,
    /// Memory that is left to it when memory is short
    #[arg(long, value_name = "BYTES", value_parser = parse_size, allow_hyphen_values = true)]
    memory_reservation: Option<i64>,
    /// Memory and swap together; -1 is unlimited
    #[arg(long, value_name = "BYTES", value_parser = parse_size, allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Processes and threads; -1 is unlimited
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    #[arg(value_name = "ID")]
    id: String,
}

/// `512m`, `1g`, `4096`, `-1`.
fn parse_size(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is no size; write 4096, 512k, 512m, 1g, or -1 for unlimited");
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (number, factor) = match lower.char_indices().last() {
        Some((at, 'k')) => (&lower[..at], 1 << 10),
        Some((at, 'm')) => (&lower[..at], 1 << 20),
        Some((at, 'g')) => (&lower[..at], 1 << 30),
        Some((at, 't')) => (&lower[..at], 1_i64 << 40),
        _ => (lower, 1),
    };
    let number: i64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).filter(|size| *size >= -1).ok_or_else(wrong)
}

pub(super) fn update(args: UpdateArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let resources = match &args.resources {
        Some(path) if path.as_os_str() == "-" => {
            let mut text = Vec::new();
            std::io::stdin().read_to_end(&mut text).context("read the limits")?;
            document::parse(&text).context("the limits")?
        }
        Some(path) => document::read_as(path)?,
        None => document::parse(from_options(&args).to_string().as_bytes())?,
    };
    if resources == Default::default() {
        return Err(Usage("give a limit to change".into()).into());
    }
    context.runtime.update(&args.id, &resources)?;
    Ok(ExitCode::SUCCESS)
}

fn from_options(args: &UpdateArgs) -> Value {
    let object = |entries: Vec<(&str, Option<Value>)>| -> Option<Value> {
        let entries: Map<String, Value> =
            entries.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
        (!entries.is_empty()).then_some(Value::Object(entries))
    };
    object(vec![
        (
            "cpu",
            object(vec![
                ("shares", args.cpu_share.map(|v| json!(v))),
                ("quota", args.cpu_quota.map(|v| json!(v))),
                ("period", args.cpu_period.map(|v| json!(v))),
                ("burst", args.cpu_burst.map(|v| json!(v))),
                ("realtimePeriod", args.cpu_rt_period.map(|v| json!(v))),
                ("realtimeRuntime", args.cpu_rt_runtime.map(|v| json!(v))),
                ("cpus", args.cpuset_cpus.as_ref().map(|v| json!(v))),
                ("mems", args.cpuset_mems.as_ref().map(|v| json!(v))),
                ("idle", args.cpu_idle.map(|v| json!(v))),
            ]),
        ),
        (
            "memory",
            object(vec![
                ("limit", args.memory.map(|v| json!(v))),
                ("reservation", args.memory_reservation.map(|v| json!(v))),
                ("swap", args.memory_swap.map(|v| json!(v))),
            ]),
        ),
        ("pids", args.pids_limit.map(|limit| json!({ "limit": limit }))),
        ("blockIO", args.blkio_weight.map(|weight| json!({ "weight": weight }))),
    ])
    .unwrap_or_else(|| json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, size) in
            [("4096", 4096), ("512k", 512 << 10), ("2M", 2 << 20), ("1gb", 1 << 30), ("-1", -1)]
        {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "x", "1x", "-2", "9999999999999g"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
