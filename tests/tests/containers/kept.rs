//! Foreground runs on a root filesystem whose changes are kept.

use super::world::World;

/// It is a container then: with a name, to be started again and forked; and an image of it has what was changed alone.
#[test]
fn a_foreground_run_that_is_kept_is_a_container() {
    let Some(world) = World::new() else { return };
    let rootfs = world.path().join("rootfs");
    let rootfs = rootfs.to_str().unwrap();
    let script = "echo $COLOUR >> /data/f; cat /data/f; exit 3";
    let output = world.layerfs(&["run", "--rootfs", rootfs, "-e", "COLOUR=red", "sh", "-c", script]);
    assert_eq!((output.code, output.stdout.as_str()), (3, "red\n"), "{output:?}");
    let name = world.ok(&["ps", "-a", "--format", "{{.Names}}"]);
    assert!(name.contains('_') && output.stderr.contains(&format!("container {name}")), "{name} {output:?}");
    assert_eq!(world.inspect(&name, "{{.State.ExitCode}} {{.State.Status}}"), "3 exited");
    assert_eq!(world.ok(&["diff", &name]), "C /data\nA /data/f");
    // Again, and with no other network than it had.
    let again = world.layerfs(&["start", "-a", &name]);
    assert_eq!((again.code, again.stdout.as_str()), (3, "red\nred\n"), "{again:?}");
    assert_eq!(world.inspect(&name, "{{.HostConfig.NetworkMode}}"), "none");
    let forked = world.ok(&["fork", &name, "--name", "other"]);
    assert_eq!(world.layerfs(&["start", "-a", "other"]).stdout, "red\nred\nred\n", "{forked}");
    assert_eq!(world.ok(&["diff", &name]), "C /data\nA /data/f");
    world.ok(&["commit", &name, "made"]);
    let shown = world.ok(&["run", "--rm", "--network", "none", "made", "/bin/cat", "/data/f"]);
    assert_eq!(shown, "red\nred");
    let archive = world.path().join("made.tar");
    world.ok(&["save", "--format", "oci-archive", "-o", archive.to_str().unwrap(), "made"]);
    world.ok(&["rm", &name, "other"]);
    assert_eq!(world.ok(&["ps", "-aq"]), "");
    assert_eq!(world.layerfs(&["system", "check", "--quick"]).code, 0);
}

/// Killed between config and state: both kinds of state are understood.
#[test]
fn a_kept_run_with_the_state_of_a_run_is_read() {
    let Some(world) = World::new() else { return };
    let rootfs = world.path().join("rootfs");
    world.layerfs(&["run", "--rootfs", rootfs.to_str().unwrap(), "true"]);
    let name = world.ok(&["ps", "-a", "--format", "{{.Names}}"]);
    let directory = world.directory(&name);
    let id = directory.file_name().unwrap().to_str().unwrap();
    let old = serde_json::json!({
        "id": id, "status": "stopped", "rootfs": rootfs, "remove": false, "created": 1_700_000_000,
        "process": null, "servants": [], "cgroup": [], "exit_code": 5,
    });
    std::fs::write(directory.join("state.json"), old.to_string()).unwrap();
    assert_eq!(world.inspect(&name, "{{.State.ExitCode}} {{.State.Status}}"), "5 exited");
    assert_eq!(world.layerfs(&["start", "-a", &name]).code, 0);
    world.ok(&["rm", &name]);
}

/// Neither its own command nor a monitor is there to tell of its end.
#[test]
fn regression_a_killed_foreground_run_is_at_its_end() {
    let Some(world) = World::new() else { return };
    let rootfs = world.path().join("rootfs");
    let script = "echo new > /data/new; echo written; sleep 1000";
    let mut run = world.running(&["run", "--rootfs", rootfs.to_str().unwrap(), "sh", "-c", script]);
    run.wait_for("written");
    let id = world.ok(&["ps", "-q"]);
    run.kill();
    let output = world.layerfs(&["system", "check", "--quick"]);
    assert!(output.code == 1 && output.stdout.contains("its run was killed"), "{output:?}");
    assert_eq!(world.ok(&["ps", "-q"]), "");
    assert_eq!(world.inspect(&id, "{{.State.ExitCode}} {{.State.Status}}"), "137 exited");
    assert_eq!(world.layerfs(&["system", "check", "--quick"]).code, 0);
    assert_eq!(world.ok(&["diff", &id]), "C /data\nA /data/new");
}
