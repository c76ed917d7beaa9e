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

/// True when a controller is mounted, in whichever version.
fn has_controller(name: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let legacy = mounts.lines().any(|line| {
        line.contains(" - cgroup ")
            && line.rsplit(' ').next().unwrap().split(',').any(|option| option == name)
    });
    let unified = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let found = legacy || unified.split_whitespace().any(|controller| controller == name);
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
    let id = bundles.id();
    let bundle = bundles.bundle(&id, "sleep 1000", |spec| {
        spec["linux"]["resources"]["hugepageLimits"] = json!([{"pageSize": "2MB", "limit": 4 << 20}]);
    });
    let place = bundles.path().join("hugetlb");
    fs::create_dir(&place).unwrap();
    // The controller is mounted in a mount namespace that ends with the shell, unless it is mounted already.
    let script = "set -e; if ! grep -q ' - cgroup [^ ]* [^ ]*hugetlb' /proc/self/mountinfo; then \
                  mount -t cgroup -o hugetlb hugetlb \"$1\" || exit 77; fi; id=$2; shift 2; \"$@\"; \
                  cat $(awk '/ - cgroup [^ ]* .*hugetlb/ { print $5; exit }' /proc/self/mountinfo)/$id/hugetlb.2MB.limit_in_bytes; \
                  \"$1\" \"$2\" \"$3\" delete --force $id";
    let mut outer = Command::new("unshare");
    outer.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]).arg(&place).arg(&id);
    let create = bundles.command(&["create", "--bundle", bundle.to_str().unwrap(), &id]);
    let out = bundles.path().join("out");
    let mut command = bundles.within(outer, create);
    let status = command.stdin(Stdio::null()).stdout(fs::File::create(&out).unwrap()).status().unwrap();
    if status.code() == Some(77) {
        skip("the hugetlb controller cannot be mounted");
        return;
    }
    assert!(status.success());
    assert_eq!(fs::read_to_string(&out).unwrap(), "4194304\n");
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
