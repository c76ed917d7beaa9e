//! Limits of every controller, where this machine has it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use layerfs_tests::bundle::Bundles;
use layerfs_tests::privilege::skip;
use serde_json::json;

/// What is in the first of these files that one of the container's cgroups has.
fn value(bundles: &Bundles, id: &str, names: &[&str]) -> Option<String> {
    let directories = bundles.cgroups(id);
    let files = names.iter().flat_map(|name| directories.iter().map(move |path| path.join(name)));
    files.filter_map(|file| fs::read_to_string(file).ok()).next().map(|text| text.trim().to_owned())
}

/// Where the unified hierarchy is mounted.
fn unified() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    line.split(' ').nth(4).map(PathBuf::from)
}

/// The controllers that are in the unified hierarchy.
fn unified_controllers() -> String {
    unified().and_then(|top| fs::read_to_string(top.join("cgroup.controllers")).ok()).unwrap_or_default()
}

/// True when a controller is mounted, in whichever version.
fn has_controller(name: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let legacy = mounts.lines().any(|line| {
        line.contains(" - cgroup ")
            && line.rsplit(' ').next().unwrap().split(',').any(|option| option == name)
    });
    let found = legacy || unified_controllers().split_whitespace().any(|controller| controller == name);
    if !found {
        skip(&format!("the {name} controller is not mounted"));
    }
    found
}

#[test]
fn io_is_throttled_by_device() {
    let Some(bundles) = Bundles::new() else { return };
    if !has_controller("blkio") && !has_controller("io") {
        return;
    }
    let mut devices = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path().join("dev"));
    let number = devices.find_map(|file| fs::read_to_string(file).ok()).unwrap();
    let (major, minor) = number.trim().split_once(':').unwrap();
    let limit = |rate: u64| json!([{"major": major.parse::<u32>().unwrap(), "minor": minor.parse::<u32>().unwrap(), "rate": rate}]);
    let (id, _) = bundles.start("sleep 1000", |spec| {
        spec["linux"]["resources"]["blockIO"] = json!({
            "throttleReadBpsDevice": limit(1 << 20), "throttleWriteBpsDevice": limit(2 << 20),
            "throttleReadIOPSDevice": limit(300), "throttleWriteIOPSDevice": limit(400)});
    });
    let device = number.trim();
    match value(&bundles, &id, &["io.max"]) {
        Some(line) => assert_eq!(line, format!("{device} rbps=1048576 wbps=2097152 riops=300 wiops=400")),
        None => {
            for (file, rate) in [
                ("read_bps", "1048576"),
                ("write_bps", "2097152"),
                ("read_iops", "300"),
                ("write_iops", "400"),
            ] {
                let found = value(&bundles, &id, &[&format!("blkio.throttle.{file}_device")]);
                assert_eq!(found, Some(format!("{device} {rate}")), "{file}");
            }
        }
    }
}

#[test]
fn cpus_are_those_of_the_cpuset() {
    let Some(bundles) = Bundles::new() else { return };
    if !has_controller("cpuset") {
        return;
    }
    let seen = bundles.run_well("grep -E '^(Cpus|Mems)_allowed_list' /proc/self/status", |spec| {
        spec["linux"]["resources"]["cpu"] = json!({"cpus": "0", "mems": "0"});
    });
    assert_eq!(seen, "Cpus_allowed_list:\t0\nMems_allowed_list:\t0\n");
}

#[test]
fn cpu_time_is_shared_and_bounded() {
    let Some(bundles) = Bundles::new() else { return };
    if !has_controller("cpu") {
        return;
    }
    let (id, _) = bundles.start("sleep 1000", |spec| {
        spec["linux"]["resources"]["cpu"] = json!({"shares": 512, "quota": 20000, "period": 50000});
    });
    let of = |names: &[&str]| value(&bundles, &id, names);
    match of(&["cpu.max"]) {
        Some(line) => {
            assert_eq!(line, "20000 50000");
            assert_eq!(of(&["cpu.weight"]).as_deref(), Some("20"));
        }
        None => {
            assert_eq!(of(&["cpu.shares"]).as_deref(), Some("512"));
            assert_eq!(of(&["cpu.cfs_quota_us"]).as_deref(), Some("20000"));
            assert_eq!(of(&["cpu.cfs_period_us"]).as_deref(), Some("50000"));
        }
    }
}

#[test]
fn real_time_is_bounded_or_the_field_is_named() {
    let Some(bundles) = Bundles::own() else { return };
    let id = bundles.id();
    let bundle = bundles.bundle(&id, "sleep 1000", |spec| {
        spec["linux"]["resources"]["cpu"] = json!({"realtimePeriod": 900_000, "realtimeRuntime": 1000});
    });
    let output = bundles.call(&["create", "--bundle", bundle.to_str().unwrap(), &id]);
    match output.code {
        0 => assert_eq!(value(&bundles, &id, &["cpu.rt_runtime_us"]).as_deref(), Some("1000")),
        _ => assert!(output.stderr.contains("linux.resources.cpu.realtime"), "{output:?}"),
    }
}

#[test]
fn huge_pages_are_bounded() {
    let Some(bundles) = Bundles::own() else { return };
    let is_somewhere = || {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let is_legacy = |line: &str| line.contains(" - cgroup ") && line.contains("hugetlb");
        mounts.lines().any(is_legacy)
            || unified_controllers().split_whitespace().any(|name| name == "hugetlb")
    };
    if !is_somewhere() {
        // A hierarchy of version 1 that was unmounted with dying cgroups in it keeps its controllers, until it is mounted
        // and unmounted once more.
        let script = "mount -t cgroup -o hugetlb hugetlb \"$1\" && umount \"$1\"";
        let place = bundles.path().join("hugetlb");
        fs::create_dir(&place).unwrap();
        let mut once = Command::new("unshare");
        once.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]).arg(&place);
        let released = once.status().unwrap().success();
        let started = std::time::Instant::now();
        while released && !is_somewhere() && started.elapsed().as_secs() < 10 {
            std::thread::yield_now();
        }
        if !is_somewhere() {
            // No privilege: a kernel without it, or one whose version 1 hierarchy is mounted elsewhere.
            eprintln!("SKIPPED: this machine has no hugetlb controller");
            return;
        }
    }
    let (id, _) = bundles.start("sleep 1000", |spec| {
        spec["linux"]["resources"]["hugepageLimits"] = json!([{"pageSize": "2MB", "limit": 4 << 20}]);
    });
    let found = value(&bundles, &id, &["hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"]);
    assert_eq!(found.as_deref(), Some("4194304"));
}

/// A controller that cgroups of the unified hierarchy have cannot be mounted as version 1 by others: without a limit that
/// needs it, none is handed down where the controllers are in version 1.
#[test]
fn beside_version_1_no_controller_is_taken_that_nobody_asked_for() {
    let Some(bundles) = Bundles::own() else { return };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let is_legacy = mounts
        .lines()
        .any(|line| line.contains(" - cgroup ") && !line.rsplit(' ').next().unwrap().contains("name="));
    let (Some(top), true) = (unified(), is_legacy) else {
        eprintln!("nothing to see: this machine's hierarchies are not mixed");
        return;
    };
    // A parent of its own, which no other container shares.
    let parent = format!("layerfs-alone-{}", std::process::id());
    let _container = bundles.start("sleep 1000", |spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
        spec["linux"]["cgroupsPath"] = json!(format!("/{parent}/below"));
    });
    let handed = fs::read_to_string(top.join(parent).join("cgroup.subtree_control")).unwrap();
    assert_eq!(handed.trim(), "");
}

#[test]
fn a_kill_for_lack_of_memory_is_an_event() {
    let Some(bundles) = Bundles::new() else { return };
    if !has_controller("memory") {
        return;
    }
    let script = "read go; dd if=/dev/zero of=/dev/null bs=100M count=1 2>/dev/null; sleep 1000";
    let fifo = bundles.rootfs().join("data/go");
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let (id, _) = bundles.start(&format!("{{ {script}; }} < /data/go"), |spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    });
    // The first statistics say that it watches.
    let mut command = bundles.command(&["events", "--interval", "1s", &id]);
    let mut events = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let mut next = || lines.next().map(Result::unwrap);
    assert!(next().is_some(), "it says nothing");
    fs::write(&fifo, "\n").unwrap();
    let mut is_told = false;
    // Statistics come every second: so many without the event are too many.
    for line in std::iter::from_fn(&mut next).take(30) {
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        if event["type"] == "oom" {
            is_told = true;
            break;
        }
    }
    events.kill().unwrap();
    events.wait().unwrap();
    assert!(is_told, "no event within its time");
}

#[test]
fn a_controller_that_is_missing_is_named_with_the_field() {
    let Some(bundles) = Bundles::own() else { return };
    let cases = [
        ("rdma", json!({"mlx5_0": {"hcaHandles": 3}}), "linux.resources.rdma"),
        ("unified", json!({"no.such": "1"}), "linux.resources.unified"),
        ("unified", json!({"../../x": "1"}), "linux.resources.unified"),
        ("hugepageLimits", json!([{"pageSize": "3MB", "limit": 1}]), "linux.resources.hugepageLimits[0]"),
    ];
    for (name, asked, field) in cases {
        let id = bundles.id();
        let bundle = bundles.bundle(&id, "true", |spec| spec["linux"]["resources"][name] = asked.clone());
        let output = bundles.call(&["create", "--bundle", bundle.to_str().unwrap(), &id]);
        assert!(output.code == 1 && output.stderr.contains(field), "{field}: {output:?}");
        assert_eq!(bundles.cgroups(&id), Vec::<PathBuf>::new());
    }
}
