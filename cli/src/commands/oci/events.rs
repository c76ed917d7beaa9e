//! `events`: what a container uses, and when the kernel kills in it for lack of memory.

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::{Value, json};

use super::Context;
use crate::ui;

/// Print statistics and out-of-memory events of a container, a JSON object per line
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Time between statistics, such as 5s, 500ms or 1m
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_interval)]
    interval: Duration,
    /// Print statistics once
    #[arg(long)]
    stats: bool,
    #[arg(value_name = "ID")]
    id: String,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time; write 5s, 500ms or 1m");
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let interval = match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        _ => return Err(wrong()),
    };
    if interval.is_zero() { Err(wrong()) } else { Ok(interval) }
}

pub(super) fn events(args: EventsArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let view = context.runtime.load(&args.id)?;
    if view.pid() == 0 {
        bail!("container {:?} is {}: it has no processes", args.id, view.status_word());
    }
    let cgroup = view.cgroup();
    let event = |kind: &str, data: Option<Value>| {
        let mut event = json!({"type": kind, "id": args.id});
        if let (Some(data), Some(object)) = (data, event.as_object_mut()) {
            object.insert("data".into(), data);
        }
        ui::print(format!("{event}\n"))
    };
    let stats = || serde_json::to_value(cgroup.stats()).context("write the statistics");
    if args.stats {
        event("stats", Some(stats()?))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (_, process) = view.open_process()?;
    let mut oom = cgroup.watch_oom().context("watch for lack of memory")?;
    let timeout = Timespec {
        tv_sec: i64::try_from(args.interval.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(args.interval.subsec_nanos()),
    };
    loop {
        let mut wanted = vec![PollFd::new(&process, PollFlags::IN)];
        wanted.extend(oom.as_ref().map(|oom| PollFd::from_borrowed_fd(oom.as_fd(), PollFlags::IN)));
        let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut wanted, Some(&timeout)))?;
        let is_ready = |at: usize| wanted.get(at).is_some_and(|fd| !fd.revents().is_empty());
        let (ended, killed) = (is_ready(0), is_ready(1));
        let taken = match ready {
            0 => event("stats", Some(stats()?))?,
            _ if killed && oom.as_mut().is_some_and(|oom| oom.happened()) => event("oom", None)?,
            _ => true,
        };
        if ended || !taken {
            return Ok(ExitCode::SUCCESS);
        }
    }
}
