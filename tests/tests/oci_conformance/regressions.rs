//! What users of this runtime found wrong, once: each stays right.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use layerfs_tests::bundle::Bundles;
use layerfs_tests::privilege::layerfs_binary;
use serde_json::{Value, json};

use super::wait_until_stopped;

fn add(list: &mut Value, entry: Value) {
    list.as_array_mut().unwrap().push(entry);
}

fn map_users(spec: &mut Value, first: u32, count: u32) {
    spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": first, "size": count}]);
    spec["linux"]["gidMappings"] = spec["linux"]["uidMappings"].clone();
}

/// Without a namespace of its own, a new cgroup filesystem would show all of the machine's, and let root out of its limits.
#[test]
fn regression_only_its_own_cgroups_are_mounted_without_a_cgroup_namespace() {
    let Some(bundles) = Bundles::new() else { return };
    for has_users in [false, true] {
        let id = bundles.id();
        let script = "grep ' - cgroup' /proc/self/mountinfo | grep ' /sys/fs/cgroup'";
        let bundle = bundles.bundle(&id, script, |spec| {
            add(
                &mut spec["mounts"],
                json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev"]}),
            );
            if has_users {
                add(&mut spec["linux"]["namespaces"], json!({"type": "user"}));
                map_users(spec, 0, 65536);
            }
        });
        let seen = bundles.call(&["run", "--bundle", bundle.to_str().unwrap(), &id]);
        assert_eq!(seen.code, 0, "{seen:?}");
        for line in seen.stdout.lines() {
            let fields: Vec<_> = line.split(' ').collect();
            assert!(fields[3].ends_with(&format!("/{id}")), "with users {has_users}: {line}");
            assert!(fields[5].starts_with("rw,nosuid,nodev,noexec"), "{line}");
        }
    }
}

/// The highest number leaves a process the user that it has: root.
#[test]
fn regression_the_highest_id_is_refused() {
    let Some(bundles) = Bundles::own() else { return };
    let (id, _) = bundles.start("sleep 1000", |_| {});
    for user in ["4294967295", "0:4294967295", "2147483648"] {
        let output = bundles.call(&["exec", "--user", user, &id, "id"]);
        assert_eq!((output.code, output.stdout.as_str()), (125, ""), "{user}: {output:?}");
    }
    let output = bundles.call(&["exec", "-g", "4294967295", &id, "id"]);
    assert!(output.code == 125 && output.stderr.contains("process.user.additionalGids[0]"), "{output:?}");
    let description = bundles.path().join("process.json");
    fs::write(&description, r#"{"cwd":"/","args":["id"],"user":{"uid":4294967295,"gid":0}}"#).unwrap();
    let output = bundles.call(&["exec", "--process", description.to_str().unwrap(), &id]);
    assert!(output.code == 125 && output.stderr.contains("process.user.uid"), "{output:?}");
}

#[test]
fn regression_an_ordinary_user_runs_a_container() {
    let Some(bundles) = Bundles::own() else { return };
    let nobody = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        command
    };
    if !nobody().args(["unshare", "--user", "true"]).output().is_ok_and(|output| output.status.success()) {
        layerfs_tests::privilege::skip("an ordinary user may make no user namespace here");
        return;
    }
    // Where the program is built may be closed to others.
    fs::copy(layerfs_binary().unwrap(), bundles.path().join("layerfs-runtime")).unwrap();
    fs::set_permissions(bundles.state_directory(), fs::Permissions::from_mode(0o777)).unwrap();
    let id = bundles.id();
    let extra = bundles.path().join("extra");
    fs::create_dir(&extra).unwrap();
    fs::write(extra.join("file"), "bound\n").unwrap();
    let bundle = bundles.bundle(&id, "id -u; cat /data/file /tmp/file", |spec| {
        spec["linux"]["namespaces"] =
            json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "user"}]);
        spec["linux"]["resources"] = json!({});
        map_users(spec, 65534, 1);
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/sys");
        mounts
            .push(json!({"destination": "/tmp", "type": "bind", "source": extra, "options": ["bind", "ro"]}));
    });
    let run = bundles.command(&["run", "--bundle", bundle.to_str().unwrap(), &id]);
    let output = bundles.within(nobody(), run).output().unwrap();
    let seen = String::from_utf8_lossy(&output.stdout);
    assert_eq!(seen, "0\ndata\nbound\n", "{}", String::from_utf8_lossy(&output.stderr));
}

/// Root of the namespace that is joined may not have anybody born in a cgroup of the machine.
#[test]
fn regression_a_user_namespace_is_joined_by_its_path() {
    let Some(bundles) = Bundles::new() else { return };
    let with_users = |spec: &mut Value, namespace: Value| {
        add(&mut spec["linux"]["namespaces"], namespace);
        spec["linux"]["resources"] = json!({});
        map_users(spec, 100_000, 1000);
    };
    let (_, first) = bundles.start("sleep 1000", |spec| with_users(spec, json!({"type": "user"})));
    let path = format!("/proc/{first}/ns/user");
    let (id, second) = bundles.start("exec sleep 1000", |spec| {
        with_users(spec, json!({"type": "user", "path": path}));
    });
    let users = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    assert_eq!(users(first), users(second));
    let memberships = fs::read_to_string(format!("/proc/{second}/cgroup")).unwrap();
    for line in memberships.lines() {
        let is_made = !bundles.cgroups(&id).is_empty();
        assert!(!is_made || line.ends_with(&format!("/{id}")), "it is not in its cgroup: {line}");
    }
    assert_eq!(bundles.well(&["exec", &id, "id", "-u"]), "0\n");
}

/// containerd kills everything of a container whose program has ended, and knows that it has by these words.
#[test]
fn regression_a_stopped_container_is_killed_as_engines_expect() {
    let Some(bundles) = Bundles::own() else { return };
    let (id, pid) = bundles.start("sleep 1000 & exec sleep 1000", |spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    bundles.well(&["kill", &id, "0"]);
    let process = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    wait_until_stopped(&bundles, &id);
    let members = || {
        let read = |path: &std::path::PathBuf| fs::read_to_string(path.join("cgroup.procs")).unwrap();
        bundles.cgroups(&id).iter().map(read).collect::<String>().lines().count()
    };
    assert_ne!(members(), 0, "the other program has ended with the first");
    bundles.well(&["kill", "--all", &id, "KILL"]);
    for _ in 0..100_000 {
        if members() == 0 {
            break;
        }
    }
    assert_eq!(members(), 0);
    bundles.well(&["kill", "--all", &id, "TERM"]);
    for signal in ["KILL", "TERM", "0"] {
        let output = bundles.call(&["kill", &id, signal]);
        assert!(output.code == 1 && output.stderr.contains("container not running"), "{signal}: {output:?}");
    }
}

#[test]
fn regression_home_is_that_of_the_user() {
    let Some(bundles) = Bundles::new() else { return };
    fs::write(
        bundles.rootfs().join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n",
    )
    .unwrap();
    let (id, _) = bundles.start("echo $HOME > /data/home; exec sleep 1000", |spec| {
        spec["process"]["env"] = json!(["PATH=/bin"]);
    });
    let home = |user: &str| bundles.well(&["exec", "--user", user, &id, "sh", "-c", "echo $HOME"]);
    assert_eq!([home("0"), home("1000"), home("77")], ["/root\n", "/home/me\n", "/\n"]);
    assert_eq!(fs::read_to_string(bundles.rootfs().join("data/home")).unwrap(), "/root\n");
    // What an image puts there is not waited for, nor followed out of the root.
    let passwd = bundles.rootfs().join("etc/passwd");
    fs::remove_file(&passwd).unwrap();
    symlink("/proc/1/fd/0", &passwd).unwrap();
    assert_eq!(home("1000"), "/\n");
}

#[test]
fn regression_failed_late_hooks_are_told_and_the_others_run() {
    let Some(bundles) = Bundles::own() else { return };
    let (seen, log) = (bundles.path().join("seen"), bundles.path().join("log"));
    let hooks = |name: &str| {
        let hook = |script: String| json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
        json!([
            hook(format!("echo {name} is broken; exit 3")),
            hook(format!("echo {name} >> {}", seen.display()))
        ])
    };
    let id = bundles.id();
    let bundle = bundles.bundle(&id, "true", |spec| {
        spec["hooks"] = json!({"poststart": hooks("poststart"), "poststop": hooks("poststop")});
    });
    let global = ["--log", log.to_str().unwrap(), "--log-format", "json"];
    let output = bundles.call(&[&global[..], &["run", "--bundle", bundle.to_str().unwrap(), &id]].concat());
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(fs::read_to_string(&seen).unwrap(), "poststart\npoststop\n");
    let log = fs::read_to_string(log).unwrap();
    let logged: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(logged.len(), 2, "{log}");
    for (name, line) in ["poststart", "poststop"].into_iter().zip(logged) {
        let words = line["msg"].as_str().unwrap();
        assert_eq!(line["level"], "warning");
        assert!(words.contains(&format!("hooks.{name}[0]")) && words.contains("is broken"), "{words}");
        assert!(output.stderr.contains(words), "{output:?}");
    }
}

#[test]
fn regression_hooks_in_the_container_have_its_own_number_of_the_process() {
    let Some(bundles) = Bundles::new() else { return };
    let created = bundles.path().join("created");
    bundles.run_well("true", |spec| {
        let hook = |to: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("/bin/cat > {to}")]}]);
        spec["hooks"] =
            json!({"createContainer": hook(created.to_str().unwrap()), "startContainer": hook("/tmp/started")});
    });
    for file in [created, bundles.rootfs().join("tmp/started")] {
        let state: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        assert_eq!(state["pid"], 1, "{state}");
    }
}

#[test]
fn regression_errors_name_what_is_wrong() {
    let Some(bundles) = Bundles::own() else { return };
    let (id, _) = bundles.start("sleep 1000", |_| {});
    let bundle = bundles.path().join(format!("bundle-{id}"));
    let bundle = bundle.to_str().unwrap();
    let output = bundles.call(&["create", "--bundle", bundle, &id]);
    assert!(output.stderr.contains("container with given ID already exists"), "{output:?}");
    assert!(!output.stderr.contains("cgroup"), "{output:?}");
    let other = bundles.id();
    bundles.bundle(&other, "true", |_| {});
    let bundle = bundle.replace(&id, &other);
    let output = bundles.call(&["create", "--bundle", &bundle, "--pid-file", "/no/such/pid", &other]);
    assert!(output.stderr.contains("write --pid-file /no/such/pid: No such file"), "{output:?}");
    assert!(!output.stderr.contains("state"), "{output:?}");
    // A word with an o in it is none of a mount helper.
    assert!(bundles.well(&["ps", &id, "-o", "pid,comm"]).contains("COMMAND"));
    assert_eq!(bundles.call(&["exec", &id, "sh", "-o", "errexit", "-c", "echo well"]).stdout, "well\n");
    assert_eq!(bundles.call(&["exec", "-u", "nobody", &id, "id"]).code, 125);
}
