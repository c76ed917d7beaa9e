//! What a process is given beyond its user and rights: scheduling, execution domain, CPUs, and how its root was changed.

use std::fs;
use std::process::Command;

use layerfs_tests::bundle::Bundles;
use serde_json::{Value, json};

/// Field `number` of a line of /proc/PID/stat, counted from 1 as in its manual page.
fn field(stat: &str, number: usize) -> &str {
    let after_name = stat.rsplit_once(')').unwrap().1;
    after_name.split_whitespace().nth(number - 3).unwrap()
}

#[test]
fn process_has_its_scheduler() {
    // runc 1.1 does not know the field.
    let Some(bundles) = Bundles::own() else { return };
    let asked = |scheduler: Value| move |spec: &mut Value| spec["process"]["scheduler"] = scheduler;
    // The shell reads its own line; a program that it starts reads another.
    let script = "read own < /proc/self/stat; echo \"$own\"; cat /proc/self/stat";
    let seen = bundles.run_well(script, asked(json!({"policy": "SCHED_BATCH", "nice": 5})));
    for line in seen.lines() {
        assert_eq!((field(line, 19), field(line, 41)), ("5", "3"), "{line}");
    }
    let reset = json!({"policy": "SCHED_OTHER", "nice": -5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
    let seen = bundles.run_well(script, asked(reset));
    let values: Vec<_> = seen.lines().map(|line| field(line, 19)).collect();
    assert_eq!(values, ["-5", "0"], "{seen}");
}

#[test]
fn process_has_its_io_priority() {
    let Some(bundles) = Bundles::own() else { return };
    let seen = bundles.run_well("ionice -p $$", |spec| {
        spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    });
    assert_eq!(seen.trim(), "best-effort: prio 6");
    let seen = bundles.run_well("ionice -p $$", |spec| {
        spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
    });
    assert!(seen.starts_with("idle"), "{seen}");
}

#[test]
fn an_executed_process_has_its_cpus() {
    let Some(bundles) = Bundles::own() else { return };
    let allowed = fs::read_to_string("/proc/self/status").unwrap();
    let allowed = allowed.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    let Some((first, last)) = allowed.split_once(['-', ',']) else {
        layerfs_tests::privilege::skip("this machine has one CPU");
        return;
    };
    let last = last.rsplit(['-', ',']).next().unwrap();
    let (id, _) = bundles.start("grep Cpus_allowed_list /proc/self/status; sleep 1000", |_| {});
    let description = bundles.path().join("process.json");
    let mut process = layerfs_tests::bundle::document(bundles.rootfs(), &id)["process"].take();
    process["args"] = json!(["grep", "Cpus_allowed_list", "/proc/self/status"]);
    process["execCPUAffinity"] = json!({"initial": first, "final": last});
    fs::write(&description, process.to_string()).unwrap();
    let seen = bundles.well(&["exec", "--process", description.to_str().unwrap(), &id]);
    assert_eq!(seen.split_whitespace().last(), Some(last));
}

#[test]
fn process_has_its_execution_domain() {
    let Some(bundles) = Bundles::new() else { return };
    let seen = bundles.run_well("uname -m", |spec| {
        spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    });
    let native = bundles.run_well("uname -m", |_| {});
    assert_eq!(native.trim(), std::env::consts::ARCH);
    assert_ne!(seen, native);
}

#[test]
fn memory_comes_from_the_nodes_asked_for() {
    let Some(bundles) = Bundles::own() else { return };
    let output = bundles.run("cat /proc/self/numa_maps | cut -d ' ' -f 2 | head -n 1", |spec| {
        spec["linux"]["memoryPolicy"] =
            json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
    });
    if output.stderr.contains("not implemented") {
        assert!(output.stderr.contains("linux.memoryPolicy"), "{output:?}");
        layerfs_tests::privilege::skip("this kernel knows no NUMA nodes");
        return;
    }
    assert_eq!(output.stdout, "bind=static:0\n", "{output:?}");
    let output = bundles.run("true", |spec| {
        spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "1000"});
    });
    assert!(output.code == 125 && output.stderr.contains("linux.memoryPolicy"), "{output:?}");
}

#[test]
fn an_interface_of_the_machine_becomes_the_containers_with_its_addresses() {
    let Some(bundles) = Bundles::own() else { return };
    let host = format!("lt{}", std::process::id() % 1_000_000);
    let ip =
        |arguments: &[&str]| Command::new("ip").args(arguments).status().is_ok_and(|status| status.success());
    if !ip(&["link", "add", &host, "type", "dummy"]) {
        layerfs_tests::privilege::skip("no dummy interface can be made");
        return;
    }
    assert!(ip(&["addr", "add", "10.99.7.1/24", "dev", &host]) && ip(&["link", "set", &host, "up"]));
    let output = bundles.run("ip -o addr show dev eth7; cat /sys/class/net/eth7/flags", |spec| {
        spec["linux"]["netDevices"] = json!({(&*host): {"name": "eth7"}});
    });
    // With the namespace the interface is gone; without, it is to be removed.
    let is_left = ip(&["link", "del", &host]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stdout.contains("10.99.7.1/24"), "{output:?}");
    let flags = output.stdout.lines().last().unwrap().trim_start_matches("0x").to_owned();
    assert_eq!(u32::from_str_radix(&flags, 16).unwrap() & 1, 1, "it is down: {output:?}");
    assert!(!is_left, "it is still the machine's");
    let output = bundles.run("true", |spec| spec["linux"]["netDevices"] = json!({"nosuch7": {}}));
    assert!(output.code == 125 && output.stderr.contains("linux.netDevices"), "{output:?}");
}

#[test]
fn the_root_propagates_as_asked() {
    let Some(bundles) = Bundles::new() else { return };
    // Optional fields are between the options of the mount and a dash.
    let script =
        "grep ' / / ' /proc/self/mountinfo || grep -E '^[0-9]+ [0-9]+ [^ ]+ [^ ]+ / ' /proc/self/mountinfo";
    let optional = |word: &str| {
        let seen = bundles.run_well(script, |spec| spec["linux"]["rootfsPropagation"] = json!(word));
        let fields = seen.lines().last().unwrap().split(" - ").next().unwrap().to_owned();
        fields.split(' ').skip(6).map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    assert!(optional("shared").contains("shared:"));
    assert_eq!(optional("private"), "");
    assert!(optional("unbindable").contains("unbindable"));
}

#[test]
fn without_a_pivot_the_root_is_another_all_the_same() {
    let Some(bundles) = Bundles::new() else { return };
    let id = bundles.id();
    let bundle = bundles.bundle(&id, "cat /data/file; ls -d /work /root /home 2>/dev/null; pwd", |_| {});
    let seen = bundles.well(&["run", "--no-pivot", "--bundle", bundle.to_str().unwrap(), &id]);
    assert_eq!(seen, "data\n/\n");
}

#[test]
fn a_mount_is_changed_by_remounting() {
    let Some(bundles) = Bundles::own() else { return };
    let seen =
        bundles.run_well("grep ' /dev/shm ' /proc/self/mountinfo; ! touch /dev/shm/x 2>/dev/null", |spec| {
            let mount = json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["remount", "ro", "nosuid", "nodev"]});
            spec["mounts"].as_array_mut().unwrap().push(mount);
        });
    assert!(seen.contains(" ro,nosuid,nodev"), "{seen}");
}

#[test]
fn a_runtime_that_cannot_go_back_is_not_born_into_a_joined_pid_namespace() {
    let Some(bundles) = Bundles::own() else { return };
    // Root of a user namespace, as ordinary users' engines are: it may enter the container's pid namespace, and not the
    // machine's again.
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount"]);
        command
    };
    let log = bundles.path().join("hook");
    let ids = [bundles.id(), bundles.id()];
    let edit = |spec: &mut Value| spec["linux"]["resources"] = json!({});
    let first = bundles.bundle(&ids[0], "sleep 1000", edit);
    let create = ["create", "--bundle", first.to_str().unwrap(), &ids[0]];
    // One user namespace for all that follows: the shell in it does the rest.
    let second = bundles.bundle(&ids[1], "readlink /proc/self/ns/pid", |spec| {
        edit(spec);
        spec["linux"]["namespaces"][0] = json!({"type": "pid", "path": "/proc/PID/ns/pid"});
        spec["mounts"][0] =
            json!({"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"]});
        spec["linux"]["maskedPaths"] = json!([]);
        spec["linux"]["readonlyPaths"] = json!([]);
        let hook = format!("readlink /proc/self/ns/pid > {}", log.display());
        spec["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", hook]}]});
    });
    let script = format!(
        "set -e; rt=$0; \"$@\"; root=$3; $rt --root $root start {first}; \
         pid=$($rt --root $root state {first} | grep -o '\"pid\": *[0-9]*' | grep -o '[0-9]*'); \
         sed -i s,/proc/PID/,/proc/$pid/, {bundle}/config.json; \
         readlink /proc/$pid/ns/pid; \
         $rt --root $root exec {first} readlink /proc/self/ns/pid; \
         $rt --root $root run --bundle {bundle} {second} || echo failed; \
         $rt --root $root delete --force {first}",
        first = ids[0],
        second = ids[1],
        bundle = second.display(),
    );
    let mut outer = unshare();
    let program = bundles.path().join("layerfs-runtime");
    outer.args(["sh", "-c", &script]).arg(&program);
    let output = bundles.within(outer, bundles.command(&create)).output().unwrap();
    let seen = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<_> = seen.lines().collect();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(lines.len(), 3, "{output:?}");
    assert!(lines.iter().all(|line| *line == lines[0]), "{output:?}");
    let of_the_hook = fs::read_to_string(&log).unwrap();
    assert_ne!(of_the_hook.trim(), lines[0], "the runtime's child was born in the container");
}
