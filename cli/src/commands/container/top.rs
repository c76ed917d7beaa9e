//! `layerfs top`.

use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use clap::Args;
use layerfs_runner::cgroup::Cgroup;

use super::store::Containers;
use crate::exit::Hinted;
use crate::ui;

/// Show the processes of a container
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Options of ps [default: -ef]
    #[arg(value_name = "OPTION", num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

pub(crate) fn top(args: TopArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open()?;
    let container = containers.find(&args.container)?;
    if !container.is_running() {
        bail!("container {} is not running", container.id());
    }
    let mut pids: Vec<i32> = Cgroup::borrowed(&container.record.cgroup)
        .processes()
        .into_iter()
        .map(|pid| pid.as_raw_nonzero().get())
        .collect();
    // Without a cgroup the first process is all that is known.
    if let Some(process) = container.record.process.filter(|_| pids.is_empty()) {
        pids.push(process.pid);
    }
    let options = if args.options.is_empty() { vec!["-ef".to_owned()] } else { args.options };
    let output = Command::new("ps").args(&options).output().map_err(|error| Hinted {
        message: format!("run ps: {error}"),
        hint: "install it (Debian: procps)".into(),
    })?;
    if !output.status.success() {
        bail!("ps {}: {}", options.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let column = header
        .split_whitespace()
        .position(|word| word == "PID")
        .context("Couldn't find PID field in ps output")?;
    let is_ours = |line: &&str| {
        line.split_whitespace()
            .nth(column)
            .and_then(|word| word.parse().ok())
            .is_some_and(|pid: i32| pids.contains(&pid))
    };
    let mut out = format!("{header}\n");
    for line in lines.filter(is_ours) {
        out.push_str(line);
        out.push('\n');
    }
    crate::events::container("top", &container.config, &[]);
    ui::print(out)?;
    Ok(ExitCode::SUCCESS)
}
