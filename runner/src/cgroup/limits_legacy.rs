//! Limits in legacy hierarchies.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxNetwork, LinuxThrottleDevice};

use super::limits::{Files, LimitError};

pub(super) fn memory(files: &Files<'_>, memory: &LinuxMemory) -> Result<(), LimitError> {
    let (limit, swap) = (memory.limit().filter(|limit| *limit != 0), memory.swap().filter(|swap| *swap != 0));
    if memory.check_before_update() == Some(true)
        && let (Some(limit), Some(usage)) = (limit, files.number("memory.usage_in_bytes"))
        && limit > 0
        && limit < usage
    {
        return Err(LimitError::new("memory.limit", format!("{limit} is below the {usage} in use")));
    }
    if let (Some(limit), Some(swap)) = (limit, swap)
        && swap > 0
        && (limit < 0 || swap < limit)
    {
        return Err(LimitError::new(
            "memory.swap",
            format!("{swap} with memory {limit}: it is the sum of both"),
        ));
    }
    const SWAP: &str = "memory.memsw.limit_in_bytes";
    const LIMIT: &str = "memory.limit_in_bytes";
    // Memory and swap together may never be below memory alone, not even between the two writes.
    let grows = match (limit, files.number(SWAP)) {
        (Some(limit), Some(current)) => limit < 0 || limit > current,
        _ => false,
    };
    // An unlimited memory makes the sum unlimited.
    let swap = match (limit, swap) {
        (Some(limit), None) if limit < 0 && files.has(SWAP) => Some(-1),
        (_, swap) => swap,
    };
    if grows {
        files.write_if(SWAP, swap, "memory.swap")?;
        files.write_if(LIMIT, limit, "memory.limit")?;
    } else {
        files.write_if(LIMIT, limit, "memory.limit")?;
        files.write_if(SWAP, swap, "memory.swap")?;
    }
    files.write_if("memory.soft_limit_in_bytes", memory.reservation(), "memory.reservation")?;
    files.write_if("memory.kmem.tcp.limit_in_bytes", memory.kernel_tcp(), "memory.kernelTCP")?;
    if let Some(swappiness) = memory.swappiness() {
        if swappiness > 100 {
            return Err(LimitError::new("memory.swappiness", format!("{swappiness} is above 100")));
        }
        files.write("memory.swappiness", &swappiness.to_string(), "memory.swappiness")?;
    }
    if memory.disable_oom_killer() == Some(true) {
        files.write("memory.oom_control", "1", "memory.disableOOMKiller")?;
    }
    if memory.kernel().is_some_and(|kernel| kernel > 0) {
        tracing::warn!("linux.resources.memory.kernel has no effect since Linux 5.4");
    }
    Ok(())
}

pub(super) fn cpu(files: &Files<'_>, cpu: &LinuxCpu) -> Result<(), LimitError> {
    files.write_if("cpu.shares", cpu.shares().filter(|shares| *shares != 0), "cpu.shares")?;
    let period = cpu.period().filter(|period| *period != 0);
    let quota = cpu.quota().filter(|quota| *quota != 0);
    // The kernel refuses a quota and period that give more than the parent has at any moment: if the period alone is too
    // short for the old quota, the quota goes first.
    if let Some(period) = period
        && files.write("cpu.cfs_period_us", &period.to_string(), "cpu.period").is_err()
    {
        files.write_if("cpu.cfs_quota_us", quota, "cpu.quota")?;
        files.write("cpu.cfs_period_us", &period.to_string(), "cpu.period")?;
    }
    files.write_if("cpu.cfs_quota_us", quota, "cpu.quota")?;
    files.write_if("cpu.cfs_burst_us", cpu.burst(), "cpu.burst")?;
    files.write_if("cpu.rt_period_us", cpu.realtime_period().filter(|v| *v != 0), "cpu.realtimePeriod")?;
    files.write_if("cpu.rt_runtime_us", cpu.realtime_runtime().filter(|v| *v != 0), "cpu.realtimeRuntime")?;
    files.write_if("cpu.idle", cpu.idle(), "cpu.idle")
}

pub(super) fn block_io(files: &Files<'_>, io: &LinuxBlockIo) -> Result<(), LimitError> {
    // The name depends on the scheduler of the kernel.
    let weight_file = if files.has("blkio.weight") { "blkio.weight" } else { "blkio.bfq.weight" };
    files.write_if(weight_file, io.weight().filter(|weight| *weight != 0), "blockIO.weight")?;
    files.write_if(
        "blkio.leaf_weight",
        io.leaf_weight().filter(|weight| *weight != 0),
        "blockIO.leafWeight",
    )?;
    for (index, device) in io.weight_device().iter().flatten().enumerate() {
        let field = format!("blockIO.weightDevice[{index}]");
        let line = |weight: u16| format!("{}:{} {weight}", device.major(), device.minor());
        files.write_if(&format!("{weight_file}_device"), device.weight().map(line), &field)?;
        files.write_if("blkio.leaf_weight_device", device.leaf_weight().map(line), &field)?;
    }
    let throttles: [(&Option<Vec<LinuxThrottleDevice>>, &str, &str); 4] = [
        (io.throttle_read_bps_device(), "blkio.throttle.read_bps_device", "throttleReadBpsDevice"),
        (io.throttle_write_bps_device(), "blkio.throttle.write_bps_device", "throttleWriteBpsDevice"),
        (io.throttle_read_iops_device(), "blkio.throttle.read_iops_device", "throttleReadIOPSDevice"),
        (io.throttle_write_iops_device(), "blkio.throttle.write_iops_device", "throttleWriteIOPSDevice"),
    ];
    for (devices, file, field) in throttles {
        for (index, device) in devices.iter().flatten().enumerate() {
            let line = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            files.write(file, &line, &format!("blockIO.{field}[{index}]"))?;
        }
    }
    Ok(())
}

pub(super) fn network(files: &Files<'_>, network: &LinuxNetwork) -> Result<(), LimitError> {
    files.write_if("net_cls.classid", network.class_id(), "network.classID")?;
    for (index, entry) in network.priorities().iter().flatten().enumerate() {
        let line = format!("{} {}", entry.name(), entry.priority());
        files.write("net_prio.ifpriomap", &line, &format!("network.priorities[{index}]"))?;
    }
    Ok(())
}
