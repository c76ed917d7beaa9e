//! What options do.

use std::fs;

use super::world::World;

#[test]
fn mounts_limits_and_rights_are_as_asked() {
    let Some(world) = World::new() else { return };
    let shared = world.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "of the machine").unwrap();
    let shared = shared.to_str().unwrap();
    let run = |options: &[&str], script: &str| {
        let mut arguments = vec!["run", "--rm"];
        arguments.extend(options);
        arguments.extend(["box", "sh", "-c", script]);
        world.layerfs(&arguments)
    };
    let bind = format!("{shared}:/mnt");
    assert_eq!(run(&["-v", &bind], "cat /mnt/file; echo new > /mnt/new").stdout, "of the machine");
    assert_eq!(fs::read_to_string(format!("{shared}/new")).unwrap(), "new\n");
    let read_only = format!("type=bind,src={shared},dst=/mnt,readonly");
    assert_ne!(run(&["--mount", &read_only], "echo x > /mnt/x").code, 0);
    let output = run(&["--mount", "type=bind,src=/no/such/place,dst=/mnt"], "true");
    assert_eq!(output.code, 125, "{output:?}");
    assert!(output.stderr.contains("bind source path does not exist: /no/such/place"), "{output:?}");
    assert_eq!(
        run(&["--tmpfs", "/run:size=1m"], "grep -c ' /run tmpfs .*size=1024k' /proc/mounts").stdout,
        "1\n"
    );
    assert_eq!(run(&["--shm-size", "1m"], "grep -c ' /dev/shm .*size=1024k' /proc/mounts").stdout, "1\n");
    let output = run(&["--read-only", "--tmpfs", "/tmp"], "echo x > /tmp/x && echo x > /data/x");
    assert!(output.code != 0 && output.stderr.contains("Read-only"), "{output:?}");
    assert_eq!(run(&["--ulimit", "nofile=100:200"], "ulimit -Sn; ulimit -Hn").stdout, "100\n200\n");
    assert_eq!(
        run(&["--sysctl", "net.ipv4.ip_forward=1"], "cat /proc/sys/net/ipv4/ip_forward").stdout,
        "1\n"
    );
    let caps = |options: &[&str]| run(options, "grep CapEff /proc/self/status").stdout;
    assert_eq!(caps(&["--cap-drop", "ALL"]), "CapEff:\t0000000000000000\n");
    assert_eq!(caps(&["--cap-drop", "ALL", "--cap-add", "chown"]), "CapEff:\t0000000000000001\n");
    assert_eq!(
        run(&["--security-opt", "no-new-privileges"], "grep NoNewPrivs /proc/self/status").stdout,
        "NoNewPrivs:\t1\n"
    );
    assert_eq!(run(&["--init"], "cat /proc/1/comm").stdout, "init\n");
    assert_eq!(run(&["--init"], "cat /proc/1/cmdline /proc/1/environ").stdout.trim_end_matches('\0'), "init");
    assert!(!run(&["--network", "host"], "ls /sys/class/net").stdout.is_empty());
    assert_eq!(run(&[], "ls /sys/class/net").stdout, "lo\n");
    assert_eq!(run(&["--pid", "host"], "test $$ != 1 && echo shared").stdout, "shared\n");
    assert_eq!(run(&["--group-add", "audio", "--group-add", "77"], "id -G").stdout, "0 29 77\n");
    assert_eq!(run(&["-u", ":100"], "id -u; id -g").stdout, "0\n100\n");
    assert_eq!(run(&["-u", "me:", "--group-add", "audio"], "id -G").stdout, "100 29\n");
    let output = run(&["--dns", "bogus"], "true");
    assert!(output.code == 125 && output.stderr.contains("bogus is not an ip address"), "{output:?}");
    assert!(run(&["--add-host", "b=[::2]"], "cat /etc/hosts").stdout.contains("::2\tb\n"));
    // Also where the machine has no filesystem for message queues.
    assert_eq!(run(&["--ipc", "host"], "echo fine").stdout, "fine\n");
    let text = run(
        &["--add-host", "db:10.0.0.9", "--dns", "9.9.9.9", "-h", "me"],
        "cat /etc/hosts /etc/resolv.conf /etc/hostname",
    )
    .stdout;
    for line in ["10.0.0.9\tdb", "nameserver 9.9.9.9", "127.0.0.1\tlocalhost", "me"] {
        assert!(text.lines().any(|own| own == line), "no {line:?} in {text}");
    }
    let file = world.path().join("variables");
    fs::write(&file, "# a comment\nFROM_FILE=yes\nFROM_HERE\n").unwrap();
    let text = run(&["--env-file", file.to_str().unwrap(), "-e", "LAST=1"], "env").stdout;
    for line in ["FROM_FILE=yes", "FROM_HERE=from here", "LAST=1", "COLOUR=red"] {
        assert!(text.lines().any(|own| own == line), "no {line:?} in {text}");
    }
    let device = run(&["--device", "/dev/fuse:/dev/shown:r"], "ls -l /dev/shown");
    assert!(device.stdout.contains("10, 229"), "{device:?}");
    let privileged = run(&["--privileged"], "grep Seccomp: /proc/self/status; ls /dev/fuse").stdout;
    assert_eq!(privileged, "Seccomp:\t0\n/dev/fuse\n");
}

#[test]
fn limits_of_the_cgroup_hold_and_can_be_changed() {
    let Some(world) = World::new() else { return };
    world.ok(&["run", "-d", "--name", "c", "-m", "64m", "--pids-limit", "20", "box", "sleep", "1000"]);
    let state = world.state("c");
    let limit = |files: &[&str]| {
        let directories = state["cgroup"].as_array().unwrap().iter().map(|d| d.as_str().unwrap());
        let mut found = directories.flat_map(|d| files.iter().map(move |f| format!("{d}/{f}")));
        let file = found.find(|file| fs::metadata(file).is_ok()).expect("no such controller");
        fs::read_to_string(file).unwrap().trim().to_owned()
    };
    let memory = ["memory.limit_in_bytes", "memory.max"];
    assert_eq!(limit(&memory), (64 << 20).to_string());
    assert_eq!(limit(&["pids.max"]), "20");
    world.ok(&["update", "-m", "128m", "c"]);
    assert_eq!(limit(&memory), (128 << 20).to_string());
    assert_eq!(world.inspect("c", "{{.HostConfig.Memory}}"), (128 << 20).to_string());
    let stats = world.ok(&["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}}", "c"]);
    assert!(stats.starts_with("c ") && stats.contains("/ 128MiB") && stats.ends_with(" 1"), "{stats}");
    for (options, words) in [
        (&["-m", "1m"][..], "Minimum memory limit allowed is 6MB"),
        (&["--memory-swap", "1g"][..], "You should always set the Memory limit"),
    ] {
        let mut arguments = vec!["create"];
        arguments.extend(options);
        arguments.push("box");
        let output = world.layerfs(&arguments);
        assert!(output.code != 0 && output.stderr.contains(words), "{output:?}");
    }
    let killed = world.layerfs(&[
        "run",
        "--name",
        "oom",
        "-m",
        "16m",
        "box",
        "sh",
        "-c",
        "x=$(yes 0123456789012345678901234567890123456789 | head -c 100000000); echo no",
    ]);
    assert_eq!(killed.code, 137, "{killed:?}");
    assert_eq!(world.inspect("oom", "{{.State.OOMKilled}}"), "true");
}

#[test]
fn a_root_filesystem_is_as_good_as_an_image() {
    let Some(world) = World::new() else { return };
    let rootfs = world.path().join("rootfs");
    let rootfs = rootfs.to_str().unwrap();
    world.ok(&["run", "-d", "--name", "c", "--rootfs", rootfs, "--", "/bin/sleep", "1000"]);
    world.ok(&["exec", "c", "/bin/touch", "/data/made"]);
    assert!(world.ok(&["diff", "c"]).lines().any(|line| line == "A /data/made"));
    assert!(!world.path().join("rootfs/data/made").exists());
    assert_eq!(world.inspect("c", "{{.Config.Image}}"), rootfs);
    world.ok(&["rm", "-f", "c"]);
}

#[test]
fn the_id_is_written_where_asked() {
    let Some(world) = World::new() else { return };
    let file = world.path().join("cid");
    let id = world.ok(&["create", "--cidfile", file.to_str().unwrap(), "--label", "a=b", "box"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), id);
    assert_ne!(world.layerfs(&["create", "--cidfile", file.to_str().unwrap(), "box"]).code, 0);
    assert_eq!(
        world.inspect(&id, "{{index .Config.Labels \"a\"}} {{index .Config.Labels \"kind\"}}"),
        "b test"
    );
    assert_eq!(world.containers().len(), 1);
}
