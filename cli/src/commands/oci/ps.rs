//! `ps`: the processes of a container.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::Context;
use crate::ui;

/// Show the processes of a container
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    format: Format,
    #[arg(value_name = "ID")]
    id: String,
    /// Options of ps(1) [default: -ef]
    #[arg(value_name = "OPTION", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// As ps(1) prints them.
    Table,
    /// Their numbers as one JSON array.
    Json,
}

pub(super) fn ps(args: PsArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let view = context.runtime.load(&args.id)?;
    let mut pids: Vec<i32> = view.cgroup().processes().iter().map(|pid| pid.as_raw_nonzero().get()).collect();
    pids.sort_unstable();
    let text = match args.format {
        Format::Json => format!("{}\n", json!(pids)),
        Format::Table => table(&pids, &args.options)?,
    };
    ui::print(text)?;
    Ok(ExitCode::SUCCESS)
}

fn table(pids: &[i32], options: &[String]) -> anyhow::Result<String> {
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() { &default[..] } else { options };
    let output = Command::new("ps")
        .args(options)
        .stderr(Stdio::inherit())
        .output()
        .context("run ps(1) (is the package procps installed?)")?;
    if !output.status.success() {
        bail!("ps {}: {}", options.join(" "), output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let Some(header) = lines.next() else { bail!("ps {} printed nothing", options.join(" ")) };
    let Some(column) = header.split_ascii_whitespace().position(|name| name == "PID") else {
        bail!("ps {} has no column PID", options.join(" "));
    };
    let is_ours = |line: &&str| {
        let pid = line.split_ascii_whitespace().nth(column).and_then(|word| word.parse().ok());
        pid.is_some_and(|pid: i32| pids.contains(&pid))
    };
    let rows = [header].into_iter().chain(lines.filter(is_ours));
    Ok(rows.map(|row| format!("{row}\n")).collect())
}
