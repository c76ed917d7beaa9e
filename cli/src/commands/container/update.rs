//! `layerfs update`.

// Help texts put what may be left out in brackets, as usage lines do.
#![allow(rustdoc::broken_intra_doc_links)]

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use layerfs_runner::cgroup::Cgroup;
use layerfs_runner::monitor::protocol::{Event, Request};
use layerfs_runner::monitor::restart::RestartPolicy;

use super::create_values as values;
use super::each;
use super::store::Containers;
use crate::exit::Usage;

/// Change limits and restart policies of containers
#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Most memory: a number with b, k, m or g
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// Memory and swap; -1 for any amount of swap
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Memory below which nothing is taken from it
    #[arg(long, value_name = "BYTES")]
    memory_reservation: Option<String>,
    /// CPUs, as a decimal number
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Weight among others
    #[arg(short, long, value_name = "NUMBER")]
    cpu_shares: Option<u64>,
    /// Length of a period, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// CPU time in a period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// CPUs it may run on: 0-3,7
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes it may use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Most processes; -1 for any number
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Weight of disk I/O, 10 to 1000
    #[arg(long, value_name = "NUMBER")]
    blkio_weight: Option<u16>,
    /// Start again after an end: no, on-failure[:N], always, unless-stopped
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    /// The containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

pub(crate) fn update(args: UpdateArgs) -> anyhow::Result<ExitCode> {
    let restart = args.restart.as_deref().map(RestartPolicy::parse).transpose().map_err(Usage)?;
    let containers = Containers::open()?;
    each(&args.containers, |name| {
        let store = containers.lock()?;
        let mut container = containers.find(name)?;
        if container.config.is_foreground {
            bail!("container {} was kept by `run --rootfs` and has no limits", container.short());
        }
        let mut resources = container.config.resources.clone();
        change(&mut resources, &args)?;
        values::check(&resources)?;
        if let Some(restart) = restart {
            if container.config.remove && restart != RestartPolicy::No {
                bail!("Restart policy cannot be updated because AutoRemove is enabled for the container");
            }
            container.config.restart = restart;
        }
        if container.is_running() && resources != container.config.resources {
            let spec = serde_json::from_value(resources.to_spec_here()).context("make limits of it")?;
            Cgroup::borrowed(&container.record.cgroup).set_limits(&spec)?;
        }
        container.config.resources = resources;
        container.save_config()?;
        // A monitor that is removing its container waits for it.
        drop(store);
        crate::events::container("update", &container.config, &[]);
        if let Some(restart) = restart
            && let Some(mut connection) = container.connect()?
        {
            match connection.ask(Request::Policy { restart }, None) {
                // It has ended meanwhile; the next one reads the config.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => return Ok(name.clone()),
                result => result.context("tell the monitor")?,
            }
            if let Some(Event::Refused { words }) =
                connection.next_event().context("hear from the monitor")?
            {
                bail!("{words}");
            }
        }
        Ok(name.clone())
    })
}

fn change(resources: &mut super::config::Resources, args: &UpdateArgs) -> anyhow::Result<()> {
    let size = |text: &Option<String>| text.as_deref().map(values::bytes).transpose();
    if let Some(memory) = size(&args.memory)? {
        resources.memory = memory;
    }
    match args.memory_swap.as_deref() {
        Some("-1") => resources.memory_swap = -1,
        _ => resources.memory_swap = size(&args.memory_swap)?.unwrap_or(resources.memory_swap),
    }
    resources.memory_reservation = size(&args.memory_reservation)?.unwrap_or(resources.memory_reservation);
    if let Some(cpus) = &args.cpus {
        resources.nano_cpus = values::nano_cpus(cpus)?;
    }
    resources.cpu_shares = args.cpu_shares.unwrap_or(resources.cpu_shares);
    resources.cpu_period = args.cpu_period.unwrap_or(resources.cpu_period);
    resources.cpu_quota = args.cpu_quota.unwrap_or(resources.cpu_quota);
    resources.pids_limit = args.pids_limit.unwrap_or(resources.pids_limit);
    resources.blkio_weight = args.blkio_weight.unwrap_or(resources.blkio_weight);
    if let Some(cpus) = &args.cpuset_cpus {
        resources.cpuset_cpus.clone_from(cpus);
    }
    if let Some(nodes) = &args.cpuset_mems {
        resources.cpuset_mems.clone_from(nodes);
    }
    Ok(())
}
