//! Limits in the unified hierarchy.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use super::Cgroup;
use super::limits::{Files, LimitError, or_max};

/// The controllers that this project sets limits by, as `cgroup.controllers` calls them.
const CONTROLLERS: [&str; 7] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma"];

/// Has each directory from `top` down to the parent of `path` hand its controllers to those below, as far as it may.
///
/// Where the controllers are in version 1 (`beside_legacy`), only those that a limit asks for: the kernel lets nobody
/// mount a controller as version 1 while cgroups of the unified hierarchy have it.
pub(super) fn hand_controllers_down(
    top: &Path,
    path: &Path,
    resources: &LinuxResources,
    beside_legacy: bool,
) {
    let Ok(controllers) = fs::read_to_string(top.join("cgroup.controllers")) else { return };
    let asked = asked(resources);
    // Controllers cost; those that nobody limits by are of use for statistics all the same.
    let handed: Vec<&str> = controllers
        .split_ascii_whitespace()
        .filter(|name| asked.contains(name) || (!beside_legacy && CONTROLLERS.contains(name)))
        .collect();
    if handed.is_empty() {
        return;
    }
    let mut above: Vec<&Path> =
        path.ancestors().skip(1).take_while(|directory| directory.starts_with(top)).collect();
    above.reverse();
    for directory in above {
        for controller in &handed {
            let word = format!("+{controller}");
            if let Err(error) = fs::write(directory.join("cgroup.subtree_control"), word)
                && asked.contains(controller)
            {
                // A directory with processes of its own may not; a limit that depends on it fails by name later.
                tracing::debug!(%error, controller, path = %directory.display(), "hand a controller down");
            }
        }
    }
}

/// The controllers that the limits need.
fn asked(resources: &LinuxResources) -> Vec<&str> {
    let cpu = resources.cpu().as_ref();
    let is_named = |value: Option<&String>| value.is_some_and(|value| !value.is_empty());
    let set = cpu.is_some_and(|cpu| is_named(cpu.cpus().as_ref()) || is_named(cpu.mems().as_ref()));
    let mut names: Vec<&str> = [
        ("cpuset", set),
        ("cpu", cpu.is_some()),
        ("io", resources.block_io().is_some()),
        ("memory", resources.memory().is_some()),
        ("hugetlb", resources.hugepage_limits().as_ref().is_some_and(|limits| !limits.is_empty())),
        ("pids", resources.pids().is_some()),
        ("rdma", resources.rdma().as_ref().is_some_and(|limits| !limits.is_empty())),
    ]
    .into_iter()
    .filter_map(|(name, is_asked)| is_asked.then_some(name))
    .collect();
    for file in resources.unified().iter().flat_map(HashMap::keys) {
        names.extend(file.split('.').next());
    }
    names
}

pub(super) fn memory(files: &Files<'_>, memory: &LinuxMemory) -> Result<(), LimitError> {
    let (limit, swap) = (memory.limit().filter(|limit| *limit != 0), memory.swap().filter(|swap| *swap != 0));
    if memory.check_before_update() == Some(true)
        && let (Some(limit), Some(usage)) = (limit, files.number("memory.current"))
        && limit > 0
        && limit < usage
    {
        return Err(LimitError::new("memory.limit", format!("{limit} is below the {usage} in use")));
    }
    if let Some(swap) = swap {
        // The specification has the sum, the kernel swap alone.
        let alone = match limit {
            _ if swap < 0 => -1,
            Some(limit) if limit > 0 && swap >= limit => swap - limit,
            Some(limit) => {
                let problem = format!("{swap} with memory {limit}: it is the sum of both");
                return Err(LimitError::new("memory.swap", problem));
            }
            None => return Err(LimitError::new("memory.swap", "needs memory.limit, of which it is the sum")),
        };
        // Without swap in the kernel there is no such file, and no swap to limit.
        if files.has("memory.swap.max") || alone != 0 {
            files.write("memory.swap.max", &or_max(alone), "memory.swap")?;
        }
    } else if limit.is_some_and(|limit| limit < 0) && files.has("memory.swap.max") {
        files.write("memory.swap.max", "max", "memory.swap")?;
    }
    files.write_if("memory.max", limit.map(or_max), "memory.limit")?;
    files.write_if(
        "memory.low",
        memory.reservation().filter(|v| *v != 0).map(or_max),
        "memory.reservation",
    )?;
    if memory.disable_oom_killer() == Some(true) {
        return Err(LimitError::new("memory.disableOOMKiller", "is not in the unified hierarchy"));
    }
    if memory.swappiness().is_some() {
        tracing::warn!("linux.resources.memory.swappiness has no effect in the unified hierarchy");
    }
    Ok(())
}

pub(super) fn cpu(files: &Files<'_>, cpu: &LinuxCpu) -> Result<(), LimitError> {
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        files.write("cpu.weight", &weight_of_shares(shares).to_string(), "cpu.shares")?;
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let current =
            files.path("cpu.max").and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let mut words = current.split_ascii_whitespace();
        let quota = quota.map_or_else(|| words.clone().next().unwrap_or("max").to_owned(), or_max);
        let period = period.map_or_else(|| words.nth(1).unwrap_or("100000").to_owned(), |p| p.to_string());
        files.write("cpu.max", &format!("{quota} {period}"), "cpu.quota")?;
    }
    files.write_if("cpu.max.burst", cpu.burst(), "cpu.burst")?;
    files.write_if("cpu.idle", cpu.idle(), "cpu.idle")?;
    if cpu.realtime_period().is_some_and(|v| v != 0) || cpu.realtime_runtime().is_some_and(|v| v != 0) {
        return Err(LimitError::new("cpu.realtimeRuntime", "is not in the unified hierarchy"));
    }
    Ok(())
}

/// 2 to 262144 on a scale of 1 to 10000 (the specification's conversion).
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// 10 to 1000 on a scale of 1 to 10000.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990
}

pub(super) fn block_io(files: &Files<'_>, io: &LinuxBlockIo) -> Result<(), LimitError> {
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        match files.has("io.bfq.weight") {
            true => files.write("io.bfq.weight", &weight.to_string(), "blockIO.weight")?,
            false => files.write("io.weight", &format!("default {}", io_weight(weight)), "blockIO.weight")?,
        }
    }
    for (index, device) in io.weight_device().iter().flatten().enumerate() {
        if let Some(weight) = device.weight() {
            let line = format!("{}:{} {}", device.major(), device.minor(), io_weight(weight));
            files.write("io.weight", &line, &format!("blockIO.weightDevice[{index}]"))?;
        }
    }
    let throttles: [(&Option<Vec<LinuxThrottleDevice>>, &str, &str); 4] = [
        (io.throttle_read_bps_device(), "rbps", "throttleReadBpsDevice"),
        (io.throttle_write_bps_device(), "wbps", "throttleWriteBpsDevice"),
        (io.throttle_read_iops_device(), "riops", "throttleReadIOPSDevice"),
        (io.throttle_write_iops_device(), "wiops", "throttleWriteIOPSDevice"),
    ];
    for (devices, word, field) in throttles {
        for (index, device) in devices.iter().flatten().enumerate() {
            let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
            let line = format!("{}:{} {word}={rate}", device.major(), device.minor());
            files.write("io.max", &line, &format!("blockIO.{field}[{index}]"))?;
        }
    }
    Ok(())
}

/// Files of the unified hierarchy by name.
pub(super) fn plain(cgroup: &Cgroup, files: &HashMap<String, String>) -> Result<(), LimitError> {
    let mut names: Vec<_> = files.iter().collect();
    names.sort();
    for (name, value) in names {
        let field = format!("unified[{name:?}]");
        if name.is_empty() || name.contains('/') || name.starts_with('.') || name.starts_with("cgroup.") {
            return Err(LimitError::new(&field, "is not the name of a controller's file"));
        }
        let Some(directory) = &cgroup.unified else {
            return Err(LimitError::new(&field, "there is no unified hierarchy here"));
        };
        let path = directory.join(name);
        if !path.exists() {
            let problem =
                format!("{} does not exist (is its controller in the unified hierarchy?)", path.display());
            return Err(LimitError::new(&field, problem));
        }
        fs::write(&path, value).map_err(|error| {
            LimitError::new(&field, format!("write {value:?} to {}: {error}", path.display()))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_converted_end_to_end() {
        assert_eq!((weight_of_shares(2), weight_of_shares(262_144)), (1, 10_000));
        assert_eq!(weight_of_shares(1024), 39);
        assert_eq!((io_weight(10), io_weight(1000)), (1, 10_000));
    }
}
