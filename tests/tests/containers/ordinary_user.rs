//! Containers of a user without rights: everything is in user namespaces, and every monitor has its own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::chown;

use super::world::World;

#[test]
fn regression_the_layer_of_a_running_container_is_read_and_copied() {
    let Some(world) = World::of_ordinary_user() else { return };
    world.ok(&["run", "-d", "--name", "c", "box", "sleep", "1000"]);
    world.ok(&["exec", "c", "sh", "-c", "echo written > /data/file"]);
    assert_eq!(world.ok(&["snapshot", "c"]), "1");
    world.ok(&["fork", "--name", "f", "c"]);
    world.ok(&["commit", "c", "made"]);
    assert!(world.ok(&["diff", "--patch", "c"]).contains("+written"));
    let archive = world.path().join("store/c.tar");
    world.ok(&["export", "-o", archive.to_str().unwrap(), "c"]);
    let listed = std::process::Command::new("tar").arg("-tf").arg(&archive).output().unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).lines().any(|name| name.ends_with("data/file")));
    assert_eq!(world.ok(&["run", "--rm", "made", "cat", "/data/file"]), "written");
    world.ok(&["start", "f"]);
}

#[test]
fn regression_what_is_not_used_is_removed_without_bridges() {
    let Some(world) = World::of_ordinary_user() else { return };
    let id = world.ok(&["create", "--name", "gone", "box", "true"]);
    let output = world.layerfs(&["network", "create", "foo"]);
    assert!(output.code != 0 && output.stderr.contains("need root"), "{output:?}");
    assert!(!world.ok(&["network", "ls"]).contains("foo"));
    world.ok(&["network", "prune", "-f"]);
    let volume = world.ok(&["volume", "create"]);
    let said = world.ok(&["system", "prune", "-f", "--volumes"]);
    assert!(said.contains(&id) && said.contains(&volume) && said.contains("Total reclaimed"), "{said}");
    assert_eq!(world.ok(&["system", "check", "--repair"]), "all is well");
    assert_eq!(world.ok(&["info", "-f", "{{.Rootless}}"]), "true");
}

#[test]
fn regression_namespaces_of_another_container_are_joined() {
    let Some(world) = World::of_ordinary_user() else { return };
    world.ok(&["run", "-d", "--name", "a", "box", "sleep", "1000"]);
    world.ok(&["exec", "a", "sh", "-c", "echo shared > /dev/shm/file"]);
    let namespace = |kind: &str| {
        let pid = world.inspect("a", "{{.State.Pid}}");
        fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display().to_string()
    };
    let joined = |option: &str, script: &str| {
        world.ok(&["run", "--rm", option, "container:a", "box", "sh", "-c", script])
    };
    for (option, kind) in [("--network", "net"), ("--pid", "pid"), ("--ipc", "ipc")] {
        let seen = joined(option, &format!("busybox readlink /proc/self/ns/{kind}"));
        assert_eq!(seen, namespace(kind), "{option}");
    }
    assert_eq!(joined("--ipc", "cat /dev/shm/file"), "shared");
    // Started later, too; and one cannot be in two user namespaces.
    world.ok(&["create", "--name", "later", "--network", "container:a", "box", "true"]);
    world.ok(&["start", "-a", "later"]);
    world.ok(&["run", "-d", "--name", "b", "box", "sleep", "1000"]);
    let both = ["run", "--rm", "--network", "container:a", "--pid", "container:b", "box", "true"];
    let output = world.layerfs(&both);
    assert!(output.code == 125 && output.stderr.contains("another user namespace"), "{output:?}");
}

#[test]
fn regression_groups_devices_and_processes_of_the_machine() {
    let Some(world) = World::of_ordinary_user() else { return };
    // An image whose root is in its own group, and nobody may set groups.
    assert_eq!(world.ok(&["run", "--rm", "--group-add", "root", "box", "id", "-u"]), "0");
    let output = world.layerfs(&["run", "--rm", "--group-add", "audio", "box", "id"]);
    assert!(output.code == 125 && output.stderr.contains("supplementary groups"), "{output:?}");
    let script = "test -c /dev/n2 && echo x > /dev/n2 && test $$ != 1 && echo fine";
    let run = ["run", "--rm", "--device", "/dev/null:/dev/n2", "--pid", "host", "box", "sh", "-c", script];
    assert_eq!(world.ok(&run), "fine");
}

#[test]
fn changes_are_applied_below_what_is_somebody_elses() {
    let Some(world) = World::of_ordinary_user() else { return };
    let root = world.path().join("rootfs");
    fs::create_dir_all(root.join("home/me")).unwrap();
    for place in ["proc", "sys", "dev"] {
        fs::create_dir_all(root.join(place)).unwrap();
    }
    for file in ["etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        fs::write(root.join(file), "").unwrap();
    }
    // What belongs to an owner that the user namespace does not have cannot be copied, and is nobody's to write to.
    let user = fs::metadata(world.path().join("store")).unwrap().uid();
    for directory in ["home", "home/me"] {
        chown(root.join(directory), Some(user), Some(user)).unwrap();
    }
    let run =
        ["run", "--rootfs", root.to_str().unwrap(), "--name", "ra", "--", "sh", "-c", "echo hi > /home/me/f"];
    world.ok(&run);
    world.ok(&["apply", "--yes", "ra"]);
    assert_eq!(fs::read_to_string(root.join("home/me/f")).unwrap(), "hi\n");
}
