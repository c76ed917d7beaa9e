//! `layerfs system`: what is left is found and mended, what is not used removed, and what should run started.

use std::fs;

use super::world::World;

#[test]
fn what_killed_commands_left_is_found_and_mended() {
    let Some(world) = World::new() else { return };
    assert_eq!(world.ok(&["system", "check"]), "all is well");
    world.ok(&["create", "--name", "c", "box", "true"]);
    world.ok(&["snapshot", "c"]);
    let (store, directory) = (world.path().join("store"), world.directory("c"));
    fs::create_dir(store.join("containers").join("0".repeat(64))).unwrap();
    fs::create_dir(store.join("containers/.fork-x")).unwrap();
    fs::create_dir(store.join("containers/.gone-y")).unwrap();
    fs::create_dir_all(directory.join(".upper.new/x")).unwrap();
    fs::create_dir_all(directory.join("snapshots/.new-2/upper")).unwrap();
    fs::create_dir(directory.join("oci")).unwrap();
    std::os::unix::fs::symlink("1".repeat(64), store.join("names/nobody")).unwrap();
    fs::remove_file(store.join("names/c")).unwrap();
    world.ok(&["run", "-d", "--name", "k", "box", "sleep", "1000"]);
    let monitor = world.state("k")["monitor"]["pid"].as_i64().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(monitor).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    // Its lock is free when it is gone.
    while fs::read_to_string(format!("/proc/{monitor}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        std::thread::yield_now();
    }
    let output = world.layerfs(&["system", "check"]);
    assert_eq!(output.code, 1, "{output:?}");
    for words in [
        "000000000000 was never finished",
        ".fork-x was not finished",
        ".gone-y was not finished",
        ".upper.new was not finished",
        ".new-2 was not finished",
        "the runtime's oci is left",
        "the name nobody is no container's",
        "container c is not found by its name",
        "container k: its monitor was killed",
        "9 problems, 9 of them left",
    ] {
        assert!(output.stdout.contains(words), "{words}: {}", output.stdout);
    }
    let mended = world.ok(&["system", "check", "--repair"]);
    assert!(mended.ends_with("all mended"), "{mended}");
    assert_eq!(world.ok(&["system", "check"]), "all is well");
    assert_eq!(world.inspect("k", "{{.State.Status}} {{.State.ExitCode}}"), "exited 137");
    assert_eq!(world.ok(&["snapshot", "ls", "-q", "c"]), "1");
}

#[test]
fn what_is_not_used_is_removed() {
    let Some(world) = World::new() else { return };
    world.ok(&["create", "--name", "kept", "--label", "keep", "box", "true"]);
    let id = world.ok(&["create", "--name", "gone", "box", "true"]);
    world.ok(&["run", "-d", "--name", "runs", "box", "sleep", "1000"]);
    world.ok(&["network", "create", "unused"]);
    let volume = world.ok(&["volume", "create"]);
    let output = world.with_input(&["system", "prune"], "n\n");
    assert!(output.code == 0 && output.stderr.contains("  - all stopped containers\n"), "{output:?}");
    let output = world.layerfs(&["system", "prune", "--volumes", "--filter", "until=1h"]);
    assert!(output.code == 1 && output.stderr.contains("until"), "{output:?}");
    let said = world.ok(&["system", "prune", "-f", "--filter", "label!=keep"]);
    let expected =
        format!("Deleted Containers:\n{id}\n\nDeleted Networks:\nunused\n\nTotal reclaimed space: ");
    assert!(said.starts_with(&expected), "{said}");
    let said = world.ok(&["system", "prune", "-f", "-a", "--volumes"]);
    assert!(said.contains("Deleted Volumes:\n") && said.contains(&volume), "{said}");
    // A running container's image is used.
    assert_eq!(world.ok(&["ps", "-a", "--format", "{{.Names}}"]), "runs");
    assert!(world.ok(&["images"]).contains("box"));
}

#[test]
fn containers_start_with_the_machine() {
    let Some(world) = World::new() else { return };
    let run = |name: &str, policy: &str| {
        world.ok(&[
            "run",
            "-d",
            "--name",
            name,
            "--restart",
            policy,
            "--stop-timeout",
            "0",
            "box",
            "sleep",
            "1000",
        ]);
    };
    run("always", "always");
    run("unless", "unless-stopped");
    run("stopped", "unless-stopped");
    run("never", "no");
    world.ok(&["create", "--name", "new", "--restart", "always", "box", "true"]);
    world.ok(&["stop", "stopped"]);
    let mut ended: Vec<_> = world.ok(&["system", "stop"]).lines().map(str::to_owned).collect();
    ended.sort();
    assert_eq!(ended, ["always", "never", "unless"]);
    assert_eq!(world.ok(&["ps", "-q"]), "");
    assert_eq!(world.ok(&["system", "start"]), "always\nunless");
    assert_eq!(world.ok(&["system", "start"]), "");
    // Its monitor may not be gone when `stop` is.
    world.ok(&["stop", "always"]);
    assert_eq!(world.ok(&["system", "start"]), "always");
    // The machine goes down while they run.
    world.ok(&["system", "stop"]);
    for name in ["always", "unless", "stopped", "never"] {
        let path = world.directory(name).join("state.json");
        let mut state = world.state(name);
        if name != "stopped" {
            state["status"] = "running".into();
            state["boot"] = "another".into();
        }
        fs::write(path, serde_json::to_vec(&state).unwrap()).unwrap();
    }
    assert_eq!(world.ok(&["system", "start"]), "always\nunless");
    assert_eq!(world.inspect("never", "{{.State.ExitCode}}"), "255");
    assert!(world.ok(&["system", "unit"]).contains("system start"));
}

#[test]
fn regression_inspect_finds_networks_and_volumes_and_templates_have_dockers_fields() {
    let Some(world) = World::with_networks() else { return };
    world.ok(&["network", "create", "n1"]);
    world.ok(&["volume", "create", "v1"]);
    assert_eq!(world.inspect("n1", "{{.Driver}}"), "bridge");
    assert_eq!(world.inspect("v1", "{{.Name}}"), "v1");
    assert_eq!(world.ok(&["inspect", "--type", "volume", "-f", "{{.Driver}}", "v1"]), "local");
    assert_eq!(world.layerfs(&["inspect", "--type", "container", "v1"]).code, 1);
    world.ok(&["create", "--name", "c", "-l", "role=db", "-v", "/srv:/mnt", "box", "true"]);
    assert_eq!(
        world.inspect("c", "{{range .Mounts}}{{if eq .Type \"bind\"}}<{{.Name}}>{{end}}{{end}}"),
        "<>"
    );
    assert_eq!(world.ok(&["ps", "-a", "--format", "{{.Names}} {{.Label \"role\"}}"]), "c db");
    let missing = world.layerfs(&["inspect", "-f", "{{.State.Health.Status}}", "c"]);
    assert!(missing.code == 1 && missing.stderr.contains("map has no entry"), "{missing:?}");
    let sizes = world.ok(&["inspect", "-s", "-f", "{{.SizeRw}} {{.SizeRootFs}}", "c"]);
    let (own, all) = sizes.split_once(' ').unwrap();
    assert!(all.parse::<u64>().unwrap() > own.parse::<u64>().unwrap() + 100_000, "{sizes}");
    world.ok(&[
        "events",
        "--since",
        "1h",
        "--until",
        "0s",
        "--filter",
        "container=c",
        "--format",
        "{{.Status}} {{.ID}} {{.Time}}",
    ]);
    let events = world.ok(&[
        "events",
        "--since",
        "1.5h",
        "--until",
        "0s",
        "--filter",
        "event=create",
        "--format",
        "{{.Status}} {{.Type}}",
    ]);
    assert!(events.contains("create container"), "{events}");
    world.ok(&["volume", "rm", "v1"]);
    world.ok(&["rm", "c"]);
    world.ok(&["network", "rm", "n1"]);
}

#[test]
fn regression_a_container_goes_from_a_full_disk() {
    let Some(world) = World::on_small_disk(24 << 20) else { return };
    let script = "busybox dd if=/dev/zero of=/big bs=1M count=100 2>/dev/null";
    let output = world.layerfs(&["run", "--rm", "box", "sh", "-c", script]);
    assert_eq!(output.code, 1, "{output:?}");
    assert_eq!(world.ok(&["ps", "-aq"]), "");
}
