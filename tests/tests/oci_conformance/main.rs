//! What the OCI runtime specification says a runtime MUST do, seen from inside and outside of containers. The table in
//! docs/runtime-conformance.md names the clause of each test. `RUNTIME=runc` or `RUNTIME=crun` runs it on those.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod after_a_crash;
mod limits;
mod process;
mod regressions;

use std::fs;
use std::path::PathBuf;

use layerfs_tests::bundle::Bundles;
use serde_json::json;

macro_rules! bundles {
    () => {
        match Bundles::new() {
            Some(bundles) => bundles,
            None => return,
        }
    };
}

#[test]
fn process_has_its_arguments_environment_and_directory() {
    let bundles = bundles!();
    let seen = bundles.run_well("echo \"$0-$1-$A\"; pwd", |spec| {
        let args = spec["process"]["args"].as_array_mut().unwrap();
        args.extend([json!("zero"), json!("one two")]);
        spec["process"]["env"] = json!(["PATH=/bin", "A=b c"]);
        spec["process"]["cwd"] = json!("/data");
    });
    assert_eq!(seen, "zero-one two-b c\n/data\n");
}

#[test]
fn process_has_its_user_groups_and_umask() {
    let bundles = bundles!();
    let seen = bundles.run_well("id -u; id -g; grep Groups: /proc/self/status; umask", |spec| {
        spec["process"]["user"] = json!({"uid": 1000, "gid": 100, "additionalGids": [5, 7], "umask": 23});
    });
    let lines: Vec<_> =
        seen.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(&lines[..2], ["1000", "100"]);
    assert!(lines[2].contains("5 7"), "{seen}");
    assert_eq!(lines[3], "0027");
}

#[test]
fn process_has_exactly_its_capabilities() {
    let bundles = bundles!();
    let seen = bundles.run_well("grep Cap /proc/self/status", |spec| {
        let (kill, chown) = (json!(["CAP_KILL"]), json!(["CAP_CHOWN", "CAP_KILL"]));
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        spec["process"]["capabilities"] =
            json!({"bounding": chown, "permitted": kill, "effective": kill, "inheritable": kill, "ambient": kill});
    });
    let values: Vec<_> = seen.lines().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    let (kill, both) = ("0000000000000020", "0000000000000021");
    assert_eq!(values, [kill, kill, kill, both, kill]);
}

#[test]
fn process_has_its_limits() {
    let bundles = bundles!();
    let seen = bundles.run_well("grep -E 'open files|core file' /proc/self/limits", |spec| {
        spec["process"]["rlimits"] = json!([
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
    });
    let words = seen.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("Max open files 100 200") && words.contains("Max core file size 0 0"), "{seen}");
}

#[test]
fn process_has_no_new_privileges_and_its_oom_score() {
    let bundles = bundles!();
    let seen = bundles.run_well("grep NoNewPrivs /proc/self/status; cat /proc/self/oom_score_adj", |spec| {
        spec["process"]["noNewPrivileges"] = json!(true);
        spec["process"]["oomScoreAdj"] = json!(321);
    });
    assert_eq!(seen, "NoNewPrivs:\t1\n321\n");
}

#[test]
fn exit_status_is_the_programs() {
    let bundles = bundles!();
    assert_eq!(bundles.run("exit 42", |_| {}).code, 42);
    assert_eq!(bundles.run("sh -c 'kill -TERM $$'; exit $?", |_| {}).code, 143);
}

#[test]
fn names_are_those_of_the_uts_namespace() {
    let bundles = bundles!();
    let before = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(bundles.run_well("hostname", |_| {}), "inside\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before);
}

#[test]
fn namespaces_are_new_or_joined() {
    let bundles = bundles!();
    let link = |pid: &str, name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
    let (_, first) = bundles.start("sleep 1000", |_| {});
    for name in ["pid", "net", "ipc", "uts", "mnt"] {
        assert_ne!(link(&first.to_string(), name), link("self", name), "{name}");
    }
    assert_eq!(link(&first.to_string(), "user"), link("self", "user"));
    let (_, second) = bundles.start("sleep 1000", |spec| {
        let path = |name: &str| format!("/proc/{first}/ns/{name}");
        spec["hostname"] = json!("");
        spec["linux"]["namespaces"] = json!([
            {"type": "mount"}, {"type": "pid", "path": path("pid")}, {"type": "network", "path": path("net")},
            {"type": "ipc", "path": path("ipc")}, {"type": "uts", "path": path("uts")}]);
    });
    for name in ["pid", "net", "ipc", "uts"] {
        assert_eq!(link(&first.to_string(), name), link(&second.to_string(), name), "{name}");
    }
    assert_ne!(link(&first.to_string(), "mnt"), link(&second.to_string(), "mnt"));
}

#[test]
fn user_namespace_has_its_ids() {
    let bundles = bundles!();
    let seen =
        bundles.run_well("id -u; cat /proc/self/uid_map /proc/self/gid_map; stat -c %u /data/file", |spec| {
            spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 1},
            {"containerID": 1, "hostID": 200000, "size": 1000}]);
            spec["linux"]["gidMappings"] = spec["linux"]["uidMappings"].clone();
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
            spec["linux"]["resources"] = json!({});
        });
    let words: Vec<_> = seen.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "0", "1", "1", "200000", "1000", "0", "0", "1", "1", "200000", "1000", "0"]);
}

#[test]
fn time_namespace_has_its_offsets() {
    let Some(bundles) = Bundles::own() else { return };
    let seen = bundles.run_well("cut -d. -f1 /proc/uptime", |spec| {
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
        spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000}, "monotonic": {"secs": 5}});
    });
    assert!(seen.trim().parse::<u64>().unwrap() > 1_000_000, "{seen}");
}

#[test]
fn kernel_settings_are_those_of_its_namespaces() {
    let bundles = bundles!();
    let seen = bundles.run_well("cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_forward", |spec| {
        spec["linux"]["sysctl"] = json!({"kernel.msgmax": "12345", "net.ipv4.ip_forward": "1"});
    });
    assert_eq!(seen, "12345\n1\n");
    let refused = bundles.run("true", |spec| spec["linux"]["sysctl"] = json!({"vm.overcommit_memory": "1"}));
    assert_ne!(refused.code, 0, "a setting of the machine was taken");
}

#[test]
fn mounts_have_their_options() {
    let bundles = bundles!();
    let data = bundles.rootfs().join("data");
    let seen = bundles.run_well("grep -E ' /(m1|m2|f) ' /proc/self/mountinfo; cat /f; touch /m1/x", |spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/m1", "type": "bind", "source": data, "options": ["rbind", "ro", "nosuid"]}));
        mounts.push(json!({"destination": "/m2", "type": "tmpfs", "source": "t", "options": ["size=4k", "noexec"]}));
        mounts.push(json!({"destination": "/f", "type": "bind", "source": data.join("file"), "options": ["bind"]}));
        spec["process"]["args"][2] = json!("grep -E ' /(m1|m2|f) ' /proc/self/mountinfo; cat /f; ! touch /m1/x");
    });
    let of = |name: &str| seen.lines().find(|line| line.contains(name)).unwrap().to_owned();
    assert!(of(" /m1 ").contains("ro,nosuid"), "{seen}");
    assert!(of(" /m2 ").contains("noexec") && of(" /m2 ").contains("size=4k"), "{seen}");
    assert!(seen.ends_with("data\n"), "{seen}");
}

#[test]
fn a_tmpfs_can_begin_with_what_it_covers() {
    let Some(bundles) = Bundles::own() else { return };
    let seen = bundles.run_well("cat /data/file; stat -f -c %T /data; echo new > /data/file", |spec| {
        let mount = json!({"destination": "/data", "type": "tmpfs", "source": "t", "options": ["tmpcopyup"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    });
    assert_eq!(seen, "data\ntmpfs\n");
    assert_eq!(fs::read_to_string(bundles.rootfs().join("data/file")).unwrap(), "data\n");
}

#[test]
fn recursive_read_only_reaches_mounts_below() {
    let Some(bundles) = Bundles::own() else { return };
    let outer = bundles.path().join("outer");
    fs::create_dir_all(outer.join("inner")).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", outer.join("inner"), "tmpfs", flags, None).unwrap();
    bundles.run_well("! touch /m/x 2>/dev/null && ! touch /m/inner/x 2>/dev/null", |spec| {
        let mount =
            json!({"destination": "/m", "type": "bind", "source": outer, "options": ["rbind", "rro"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    });
    rustix::mount::unmount(outer.join("inner"), rustix::mount::UnmountFlags::DETACH).unwrap();
}

#[test]
fn an_id_mapped_mount_shows_other_owners() {
    let Some(bundles) = Bundles::own() else { return };
    let data = bundles.rootfs().join("data");
    let output = bundles.run("stat -c %u:%g /m/file", |spec| {
        let map = json!([{"containerID": 0, "hostID": 4000, "size": 10}]);
        let mount = json!({"destination": "/m", "type": "bind", "source": data, "options": ["bind"],
            "uidMappings": map, "gidMappings": map});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    });
    // The filesystem has to know how.
    if output.code != 0 && output.stderr.contains("Invalid argument") {
        layerfs_tests::privilege::skip("this filesystem cannot be id-mapped");
        return;
    }
    assert_eq!(output.stdout, "4000:4000\n", "{output:?}");
}

#[test]
fn root_can_be_read_only() {
    let bundles = bundles!();
    bundles.run_well("! touch /x 2>/dev/null && touch /dev/shm/x", |spec| {
        spec["root"]["readonly"] = json!(true)
    });
    assert!(!bundles.rootfs().join("x").exists());
}

#[test]
fn paths_are_masked_and_read_only() {
    let bundles = bundles!();
    let seen = bundles.run_well(
        "cat /proc/keys | wc -c; ls /sys/firmware | wc -l; ! echo 1 2>/dev/null > /proc/sys/kernel/msgmax",
        |_| {},
    );
    assert_eq!(seen, "0\n0\n");
}

#[test]
fn devices_are_the_default_ones_and_those_listed() {
    let bundles = bundles!();
    let script = "for d in null zero full random urandom tty ptmx; do [ -e /dev/$d ] || echo no $d; done; \
                  stat -c '%t:%T %a %u' /dev/mine; readlink /dev/fd; readlink /dev/stdin; head -c 3 /dev/zero | wc -c";
    let script = script.replace("head -c 3 /dev/zero", "dd if=/dev/zero bs=3 count=1 2>/dev/null");
    let seen = bundles.run_well(&script, |spec| {
        spec["linux"]["devices"] =
            json!([{"path": "/dev/mine", "type": "c", "major": 10, "minor": 229, "fileMode": 432, "uid": 7, "gid": 7}]);
    });
    assert_eq!(seen, "a:e5 660 7\n/proc/self/fd\n/proc/self/fd/0\n3\n");
}

#[test]
fn lifecycle_goes_through_its_states() {
    let bundles = bundles!();
    let id = bundles.id();
    let bundle =
        bundles.bundle(&id, "exec sleep 1000", |spec| spec["annotations"] = json!({"org.test": "yes"}));
    let pid_file = bundles.path().join("pid");
    bundles.well(&[
        "create",
        "--bundle",
        bundle.to_str().unwrap(),
        "--pid-file",
        pid_file.to_str().unwrap(),
        &id,
    ]);
    let state = bundles.state(&id);
    assert_eq!((state["status"].as_str(), state["id"].as_str()), (Some("created"), Some(id.as_str())));
    assert_eq!(state["bundle"].as_str().map(PathBuf::from), Some(bundle.clone()));
    assert_eq!(state["annotations"]["org.test"], "yes");
    let pid = fs::read_to_string(pid_file).unwrap();
    assert_eq!(state["pid"].to_string(), pid);
    let again = bundles.call(&["create", "--bundle", bundle.to_str().unwrap(), &id]);
    assert_ne!(again.code, 0, "an id was used twice");
    bundles.well(&["start", &id]);
    assert_eq!(bundles.state(&id)["status"], "running");
    assert_ne!(bundles.call(&["start", &id]).code, 0, "started twice");
    assert_ne!(bundles.call(&["delete", &id]).code, 0, "deleted while running");
    bundles.well(&["kill", &id, "KILL"]);
    wait_until_stopped(&bundles, &id);
    assert_ne!(bundles.call(&["kill", &id, "TERM"]).code, 0, "a stopped container was killed");
    bundles.well(&["delete", &id]);
    for command in ["state", "start", "kill", "delete"] {
        assert_ne!(bundles.call(&[command, &id]).code, 0, "{command} of what does not exist");
    }
    bundles.well(&["delete", "--force", &id]);
}

/// The runtime is not the parent: its view of the end may be late by a moment.
fn wait_until_stopped(bundles: &Bundles, id: &str) {
    for _ in 0..2000 {
        if bundles.state(id)["status"] == "stopped" {
            return;
        }
    }
    assert_eq!(bundles.state(id)["status"], "stopped");
}

#[test]
fn a_changed_document_changes_no_container() {
    let bundles = bundles!();
    let id = bundles.id();
    let out = bundles.rootfs().join("tmp/out");
    let bundle = bundles.bundle(&id, "echo first > /tmp/out", |_| {});
    bundles.well(&["create", "--bundle", bundle.to_str().unwrap(), &id]);
    fs::write(bundle.join("config.json"), "{}").unwrap();
    bundles.well(&["start", &id]);
    wait_until_stopped(&bundles, &id);
    assert_eq!(fs::read_to_string(out).unwrap(), "first\n");
}

#[test]
fn hooks_run_in_their_order_with_the_state() {
    let bundles = bundles!();
    let log = bundles.path().join("hooks");
    let id = bundles.id();
    let hook = |name: &str| {
        let script = format!(
            "echo {name} $(cat | grep -o '\"status\": *\"[a-z]*\"' | tr -d ' ') >> {}",
            log.display()
        );
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}])
    };
    let bundle = bundles.bundle(&id, "true", |spec| {
        spec["hooks"] = json!({"prestart": hook("prestart"), "createRuntime": hook("createRuntime"),
            "createContainer": hook("createContainer"), "poststart": hook("poststart"), "poststop": hook("poststop"),
            "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "cat > /tmp/started"], "env": ["PATH=/bin"]}]});
    });
    bundles.well(&["create", "--bundle", bundle.to_str().unwrap(), &id]);
    assert!(!bundles.rootfs().join("tmp/started").exists());
    bundles.well(&["start", &id]);
    wait_until_stopped(&bundles, &id);
    bundles.well(&["delete", &id]);
    let names: Vec<String> = fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]);
    let started = fs::read_to_string(bundles.rootfs().join("tmp/started")).unwrap();
    assert!(started.contains(&id), "{started}");
}

#[test]
fn a_failing_hook_stops_the_creation() {
    let bundles = bundles!();
    let id = bundles.id();
    let bundle = bundles.bundle(&id, "true", |spec| {
        spec["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "echo sorry >&2; exit 5"]}]});
    });
    let output = bundles.call(&["create", "--bundle", bundle.to_str().unwrap(), &id]);
    assert_ne!(output.code, 0);
    assert!(output.stderr.contains("sorry"), "{output:?}");
    assert_ne!(bundles.call(&["state", &id]).code, 0, "something is left");
}

#[test]
fn exec_is_in_the_same_namespaces_with_a_user_of_its_own() {
    let bundles = bundles!();
    let (id, _) = bundles.start("sleep 1000", |_| {});
    assert_eq!(bundles.well(&["exec", &id, "hostname"]), "inside\n");
    assert_eq!(
        bundles.well(&[
            "exec",
            "--user",
            "5:6",
            "--cwd",
            "/data",
            "--env",
            "X=y",
            &id,
            "sh",
            "-c",
            "id -u; id -g; pwd; echo $X"
        ]),
        "5\n6\n/data\ny\n"
    );
    assert_eq!(bundles.call(&["exec", &id, "sh", "-c", "exit 9"]).code, 9);
    assert_ne!(bundles.call(&["exec", &id, "nosuch"]).code, 0);
    let seen = bundles.well(&["exec", &id, "sh", "-c", "ls /proc/self/fd | wc -l; cat /proc/1/cmdline"]);
    assert!(seen.contains("sleep"), "{seen}");
}

#[test]
fn pause_stops_and_resume_continues() {
    let bundles = bundles!();
    let (id, _) = bundles.start("sleep 1000", |_| {});
    bundles.well(&["pause", &id]);
    assert_eq!(bundles.state(&id)["status"], "paused");
    assert_ne!(bundles.call(&["exec", &id, "true"]).code, 0, "exec in a paused container");
    bundles.well(&["resume", &id]);
    assert_eq!(bundles.state(&id)["status"], "running");
    bundles.well(&["exec", &id, "true"]);
}

#[test]
fn limits_are_in_the_cgroup_and_can_change() {
    let bundles = bundles!();
    let (id, _) = bundles.start("sleep 1000", |spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
        spec["linux"]["resources"]["pids"] = json!({"limit": 33});
    });
    let value = |names: [&str; 2]| {
        let files = bundles.cgroups(&id).into_iter().flat_map(|path| names.map(|name| path.join(name)));
        files.filter_map(|file| fs::read_to_string(file).ok()).next().map(|text| text.trim().to_owned())
    };
    assert_eq!(value(["memory.limit_in_bytes", "memory.max"]).as_deref(), Some("67108864"));
    assert_eq!(value(["pids.max", "pids.max"]).as_deref(), Some("33"));
    bundles.well(&["update", "--memory", "134217728", "--pids-limit", "44", &id]);
    assert_eq!(value(["memory.limit_in_bytes", "memory.max"]).as_deref(), Some("134217728"));
    assert_eq!(value(["pids.max", "pids.max"]).as_deref(), Some("44"));
    let stats: serde_json::Value = serde_json::from_str(&bundles.well(&["events", "--stats", &id])).unwrap();
    assert_eq!(stats["data"]["pids"]["limit"], 44);
    assert!(bundles.well(&["ps", "--format", "json", &id]).trim().starts_with('['));
}

#[test]
fn a_filter_refuses_as_it_says() {
    let bundles = bundles!();
    let seen = bundles.run_well("mkdir /data/new 2>&1 || true; touch /data/ok", |spec| {
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]});
    });
    assert!(seen.contains("No space left"), "{seen}");
    assert!(!bundles.rootfs().join("data/new").exists() && bundles.rootfs().join("data/ok").exists());
}

#[test]
fn descriptors_are_handed_on_only_as_asked() {
    let bundles = bundles!();
    let seen = bundles.run_well("ls /proc/self/fd", |_| {});
    // ls has the directory open as 3.
    assert_eq!(seen, "0\n1\n2\n3\n");
    let file = bundles.path().join("handed-on");
    fs::write(&file, "from outside\n").unwrap();
    let id = bundles.id();
    let bundle = bundles.bundle(&id, "cat <&3; ls /proc/self/fd | wc -l", |_| {});
    // The shell opens 3 and, not to be handed on, 4.
    let script = "exec 3<\"$1\" 4<\"$1\"; shift; exec \"$@\"";
    let run = bundles.command(&["run", "--preserve-fds", "1", "--bundle", bundle.to_str().unwrap(), &id]);
    let mut command = std::process::Command::new("bash");
    command.args(["-c", script, "bash"]).arg(&file);
    // Under the name by which the program knows that it is the runtime.
    let output = bundles.within(command, run).output().unwrap();
    // 0, 1, 2, 3, and the directory.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "from outside\n5\n", "{output:?}");
}
