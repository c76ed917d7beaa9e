//! `layerfs run`: what a container sees, what it cannot do, how it ends, and what is left of it.
//!
//! Each test has a store and a root filesystem of its own (a static busybox), and a mount namespace of its own; it
//! checks at its end that no mount, cgroup, process or directory stays.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is test code: a broken expectation is a failed test"
)]

#[path = "run_container/world.rs"]
mod world;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Stdio;

use layerfs_tests::privilege::layerfs_binary;
use rustix::process::Signal;

use world::{Running, World, tree};

#[test]
fn the_exit_code_is_the_commands() {
    let Some(world) = World::new() else { return };
    assert_eq!(world.run(&["--", "true"]).code, 0);
    assert_eq!(world.run(&["--", "sh", "-c", "exit 7"]).code, 7);
    assert_eq!(world.run(&["--", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"]).code, 137);
    // Without "--": what follows the command belongs to it.
    let output = world.run(&["echo", "-n", "--rm"]);
    assert_eq!((output.code, output.stdout.as_str()), (0, "--rm"));
}

#[test]
fn a_command_that_cannot_run_has_dockers_codes() {
    let Some(world) = World::new() else { return };
    fs::write(world.rootfs().join("plain"), "no program").unwrap();
    let garbage = world.rootfs().join("garbage");
    fs::write(&garbage, "\u{7f}neither script nor program").unwrap();
    fs::set_permissions(&garbage, fs::Permissions::from_mode(0o755)).unwrap();
    for (command, code) in [
        ("no-such-command", 127),
        ("/no/such/command", 127),
        ("/bin/busybox/x", 127),
        ("/plain", 126),
        ("/etc", 126),
        ("/garbage", 126),
    ] {
        let output = world.run(&["--", command]);
        assert_eq!(output.code, code, "{command}: {}", output.stderr);
        assert!(output.stderr.contains(command), "{command}: {}", output.stderr);
    }
}

#[test]
fn own_failures_are_125_and_say_what_to_do() {
    let Some(world) = World::new() else { return };
    let output = world.run_on("/no/such/root", &["--", "true"]);
    assert_eq!(output.code, 125);
    assert!(output.stderr.contains("/no/such/root") && output.stderr.contains("hint:"), "{}", output.stderr);
    assert_eq!(world.run_on("/proc/version", &["--", "true"]).code, 125);
    for wrong in [
        &["-w", "relative", "--", "true"][..],
        &["--hostname", "a b", "--", "true"],
        &["-e", "=x", "--", "true"],
        &["--user", "nobody-here", "--", "true"],
        &["--security-opt", "magic", "--", "true"],
        &["--no-such-option", "--", "true"],
        &["-it", "--", "true"],
        &[],
    ] {
        let output = world.run(wrong);
        assert_eq!(output.code, 125, "{wrong:?}: {}", output.stderr);
        assert!(!output.stderr.is_empty(), "{wrong:?}");
    }
}

#[test]
fn environment_directory_name_and_user() {
    let Some(world) = World::new() else { return };
    let output = world.run(&[
        "-e",
        "A=1",
        "-e",
        "B=x=y",
        "-e",
        "A=2",
        "-e",
        "FROM_HERE",
        "-e",
        "NOT_SET_ANYWHERE",
        "-w",
        "/made/here",
        "--hostname",
        "box.example",
        "--",
        "sh",
        "-c",
        "env; pwd; hostname; id -u",
    ]);
    let has =
        |line: &str| assert!(output.stdout.lines().any(|l| l == line), "no {line:?} in {}", output.stdout);
    for line in ["A=2", "B=x=y", "HOME=/root", "HOSTNAME=box.example", "/made/here", "box.example", "0"] {
        has(line);
    }
    has("FROM_HERE=from here");
    has("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    assert!(!output.stdout.contains("NOT_SET_ANYWHERE"));
    assert!(!output.stdout.contains("LAYERFS_ROOT"), "the machine's environment shows: {}", output.stdout);

    let output = world.run(&[
        "-u",
        "me",
        "--",
        "sh",
        "-c",
        "id -u; id -g; id -G; echo $HOME; grep Cap.*f: /proc/self/status",
    ]);
    assert_eq!(output.stdout.lines().collect::<Vec<_>>()[..4], ["1000", "100", "100 29", "/home/me"]);
    assert!(output.stdout.ends_with("CapEff:\t0000000000000000\n"), "{}", output.stdout);
    let output = world.run(&["-u", "77:88", "--", "sh", "-c", "id -u; id -g; touch /x"]);
    assert_eq!(output.stdout, "77\n88\n");
    assert_ne!(output.code, 0, "an ordinary user wrote to the root directory");
}

#[test]
fn standard_streams() {
    let Some(world) = World::new() else { return };
    let output = world.run_with_input(&["-i", "--", "cat"], "through\n");
    assert_eq!((output.code, output.stdout.as_str()), (0, "through\n"));
    // Without -i there is nothing to read, whatever the caller has.
    let output = world.run_with_input(&["--", "cat"], "not for you\n");
    assert_eq!((output.code, output.stdout.as_str()), (0, ""));
    let output = world.run(&["--", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
}

#[test]
fn nothing_of_the_machine_is_open_or_mounted() {
    let Some(world) = World::new() else { return };
    let output =
        world.run(&["--", "sh", "-c", "ls /proc/self/fd; echo --; cut -d' ' -f5 /proc/self/mountinfo"]);
    let (descriptors, mounts) = output.stdout.split_once("--\n").unwrap();
    // 3 is the listing itself.
    assert_eq!(descriptors.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    let expected = ["/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"];
    let mounts: Vec<&str> = mounts.lines().collect();
    assert_eq!(mounts[..expected.len()], expected);
    let inside = |mount: &str| ["/proc/", "/sys/"].iter().any(|place| mount.starts_with(place));
    assert!(mounts[expected.len()..].iter().all(|mount| inside(mount)), "{mounts:?}");
}

#[test]
fn namespaces_are_its_own() {
    let Some(world) = World::new() else { return };
    let script = "echo $$; for n in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$n; done; \
                  cat /proc/net/dev | tail -n +3 | cut -d: -f1; cat /proc/self/cgroup | cut -d: -f3 | sort -u; ps | wc -l";
    let output = world.run(&["--", "sh", "-c", script]);
    let lines: Vec<&str> = output.stdout.lines().map(str::trim).collect();
    assert_eq!(lines[0], "1", "{}", output.stdout);
    for namespace in &lines[1..7] {
        let name = namespace.split(':').next().unwrap();
        let own = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(own.to_str().unwrap(), *namespace);
    }
    assert_eq!(lines[7..9], ["lo", "/"], "{}", output.stdout);
    let output = world.run(&["--", "sh", "-c", "ping -c 1 -W 5 127.0.0.1 >/dev/null && echo up"]);
    assert_eq!(output.stdout, "up\n", "{}", output.stderr);
}

#[test]
fn devices_are_dockers() {
    let Some(world) = World::new() else { return };
    let output = world.run(&[
        "--",
        "sh",
        "-c",
        "cd /dev; ls; echo hi >null; head -c 2 zero | wc -c; readlink fd; readlink ptmx",
    ]);
    let words: Vec<&str> = output.stdout.split_whitespace().collect();
    assert_eq!(
        words,
        [
            "core",
            "fd",
            "full",
            "mqueue",
            "null",
            "ptmx",
            "pts",
            "random",
            "shm",
            "stderr",
            "stdin",
            "stdout",
            "tty",
            "urandom",
            "zero",
            "2",
            "/proc/self/fd",
            "pts/ptmx"
        ]
    );
    // 7:0 is a loop device, of no use to anybody here.
    let output =
        world.run(&["--", "sh", "-c", "mknod /dev/disk b 7 0; cat /dev/disk; mknod /disk b 7 0; cat /disk"]);
    assert_ne!(output.code, 0);
    let denied = output.stderr.matches("Operation not permitted").count();
    let denied = denied + output.stderr.matches("Permission denied").count();
    assert!(denied >= 2, "a disk could be opened: {}", output.stderr);
}

#[test]
fn a_machine_with_unified_cgroups() {
    let Some(mut world) = World::new() else { return };
    world.unify_cgroups();
    let script = "mknod /n c 1 3; echo x > /n && echo null; head -n 1 /sys/fs/cgroup/cgroup.procs; \
                  mknod /disk b 7 0 && echo made; cat /disk";
    let output = world.run(&["--", "sh", "-c", script]);
    assert_eq!(output.stdout, "null\n1\nmade\n", "{}", output.stderr);
    assert!(output.stderr.contains("Operation not permitted"), "a disk could be opened: {}", output.stderr);
}

#[test]
fn an_ordinary_user() {
    let Some(world) = World::new() else { return };
    let before = tree(world.rootfs());
    let script = "id -u; cat /proc/self/uid_map; echo x > /dev/null && echo null; echo mine > /file; cat /file; \
                  ping -c 1 127.0.0.1 > /dev/null && echo up; ls -A /sys/fs/cgroup > /dev/null && echo cgroups; \
                  mount -t tmpfs x /mnt || echo confined; kill -0 1 && echo $$";
    let Some(output) = world.run_as_ordinary_user(&["--", "sh", "-c", script]) else { return };
    assert_eq!(output.code, 0, "{}", output.stderr);
    let words: Vec<&str> = output.stdout.split_whitespace().collect();
    assert_eq!(
        words,
        ["0", "0", "54321", "1", "null", "mine", "up", "cgroups", "confined", "1"],
        "{}",
        output.stderr
    );
    assert_eq!(tree(world.rootfs()), before);
    let output = world.run_as_ordinary_user(&["-u", "me", "--", "true"]).unwrap();
    assert_eq!(output.code, 125);
    assert!(output.stderr.contains("1000:100") && output.stderr.contains("/etc/subuid"), "{}", output.stderr);
}

#[test]
fn what_a_container_may_not_do() {
    let Some(world) = World::new() else { return };
    let status = world.run(&["--", "cat", "/proc/self/status"]).stdout;
    for (name, value) in [
        ("CapBnd", "00000000a80425fb"),
        ("CapEff", "00000000a80425fb"),
        ("CapPrm", "00000000a80425fb"),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("Seccomp", "2"),
    ] {
        assert!(status.contains(&format!("{name}:\t{value}\n")), "{name} is not {value}: {status}");
    }
    for refused in [
        "mount -t tmpfs none /mnt",
        "umount /proc",
        "unshare -m true",
        "unshare -U true",
        "hostname other",
        "echo 0 > /proc/sys/kernel/printk",
        "echo b > /proc/sysrq-trigger",
        "echo x > /sys/kernel/uevent_helper",
        "mkdir /sys/fs/cgroup/escape",
        "cat /proc/kcore",
        "cat /proc/keys | grep .",
        "ls /sys/firmware | grep .",
        "nice -n -5 true 2>&1 | grep -q denied && false",
        "chroot /proc/1/root/../../../../../.. test -e /machine-marker",
    ] {
        let output = world.run(&["--", "sh", "-c", refused]);
        assert_ne!(output.code, 0, "{refused}: {}", output.stdout);
    }
    let output =
        world.run(&["--security-opt", "no-new-privileges", "--", "grep", "NoNewPrivs", "/proc/self/status"]);
    assert_eq!(output.stdout, "NoNewPrivs:\t1\n");
    let output = world.run(&["--read-only", "--", "touch", "/x"]);
    assert!(output.stderr.contains("Read-only"), "{}", output.stderr);
}

#[test]
fn changes_go_to_the_container_and_the_rootfs_stays() {
    let Some(world) = World::new() else { return };
    let before = tree(world.rootfs());
    let script = "rm -rf /etc /data; echo new > /bin/new; chmod 700 /bin; mv /srv /moved; ls /bin/new";
    let output = world.run(&["--", "sh", "-c", script]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert_eq!(tree(world.rootfs()), before);

    // Without --rm the changes are kept, and where they are is said.
    let output = world.run_keeping(&["--", "sh", "-c", "echo kept > /file; rm /data/f1"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let containers = world.containers();
    assert_eq!(containers.len(), 1, "{containers:?}");
    let upper = containers[0].join("upper");
    assert!(output.stderr.contains(upper.to_str().unwrap()), "{}", output.stderr);
    assert_eq!(fs::read_to_string(upper.join("file")).unwrap(), "kept\n");
    assert!(upper.join("data/f1").symlink_metadata().is_ok(), "no whiteout");
    assert!(!containers[0].join("lower").exists() && !containers[0].join("merged").exists());
    assert_eq!(tree(world.rootfs()), before);
    // Another run leaves it alone.
    world.run(&["--", "true"]);
    assert!(upper.join("file").exists());
    fs::remove_dir_all(&containers[0]).unwrap();
}

#[test]
fn links_of_an_image_lead_nowhere_outside() {
    let Some(world) = World::new() else { return };
    let outside = world.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let root = world.rootfs();
    symlink(&outside, root.join("dev")).unwrap();
    let output = world.run(&["--", "sh", "-c", "ls -d /dev/null"]);
    assert_ne!(output.stdout, "/dev/null\n");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "mounted or made through a link");
    fs::remove_file(root.join("dev")).unwrap();

    // /proc decides what masks mean: it may not be elsewhere.
    fs::create_dir_all(root.join("elsewhere")).unwrap();
    symlink("/elsewhere", root.join("proc")).unwrap();
    let output = world.run(&["--", "true"]);
    assert_eq!(output.code, 125);
    assert!(output.stderr.contains("/proc"), "{}", output.stderr);
    fs::remove_file(root.join("proc")).unwrap();

    // A working directory that jumps.
    symlink("/proc/self/fd", root.join("jump")).unwrap();
    let output = world.run(&["-w", "/jump/7", "--", "pwd"]);
    assert_ne!(output.code, 0, "{}", output.stdout);
}

#[test]
fn the_machines_root_as_rootfs() {
    let Some(world) = World::new() else { return };
    let marker = world.path().join("marker");
    fs::write(&marker, "of the machine").unwrap();
    let doomed = world.path().join("doomed");
    fs::create_dir_all(doomed.join("deep/er")).unwrap();
    fs::write(doomed.join("deep/er/file"), "x").unwrap();
    let before = tree(&doomed);
    let script = format!(
        "cat {0}; rm -rf {1}; test -e {1} || echo gone; echo changed > {0}; cat {0}; ls -A {2} | wc -l; \
         ls -A /dev/disk 2>/dev/null; test -e /proc/1/root && echo proc; test -w /proc/sys/kernel/hostname || echo ro",
        marker.display(),
        doomed.display(),
        world.store().display()
    );
    let output = world.run_on("/", &["--", "sh", "-c", &script]);
    assert_eq!(output.stdout, "of the machinegone\nchanged\n0\nproc\nro\n", "{}", output.stderr);
    assert_eq!(fs::read_to_string(&marker).unwrap(), "of the machine");
    assert_eq!(tree(&doomed), before);
}

#[test]
fn a_filesystem_mounted_below_the_rootfs_is_part_of_it() {
    let Some(world) = World::new() else { return };
    let below = world.rootfs().join("below");
    fs::create_dir(&below).unwrap();
    let tmpfs = world.mount_tmpfs(&below);
    fs::write(below.join("file"), "on a submount").unwrap();
    let output = world.run(&["--", "sh", "-c", "cat /below/file; rm /below/file; ls -A /below"]);
    assert_eq!(output.stdout, "on a submount", "{}", output.stderr);
    assert!(below.join("file").exists());
    drop(tmpfs);
}

#[test]
fn signals_are_passed_on() {
    let Some(world) = World::new() else { return };
    let script = "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 100 & wait; done";
    let mut running = world.start(&["--", "sh", "-c", script], Stdio::null());
    running.wait_for("ready\n");
    let state = world.state();
    running.signal(Signal::TERM);
    running.wait_for("got\n");
    assert_eq!(running.wait(), 9);
    for path in state["cgroup"].as_array().unwrap() {
        assert!(!fs::exists(path.as_str().unwrap()).unwrap(), "cgroup {path} is left");
    }
}

#[test]
fn a_command_that_ignores_signals_is_killed_at_the_third() {
    let Some(world) = World::new() else { return };
    let mut running = world.start(&["--", "sh", "-c", "echo ready; exec sleep 1000"], Stdio::null());
    running.wait_for("ready\n");
    // Signals of one number merge while they wait: different ones are certain to be counted.
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        running.signal(signal);
    }
    assert_eq!(running.wait(), 137);
}

#[test]
fn a_killed_run_takes_its_container_along_and_the_next_run_cleans_up() {
    let Some(world) = World::new() else { return };
    let mut running =
        world.start(&["--", "sh", "-c", "echo ready; touch /file; exec sleep 1000"], Stdio::null());
    running.wait_for("ready\n");
    let state = world.state();
    let cgroups: Vec<_> =
        state["cgroup"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
    assert!(!cgroups.is_empty() && cgroups.iter().all(|path| fs::exists(path).unwrap()), "{cgroups:?}");
    let command = world::Watch::new(state["process"]["pid"].as_i64().unwrap());
    let mount = world::Watch::new(state["servants"][0]["pid"].as_i64().unwrap());
    running.signal(Signal::KILL);
    assert_eq!(running.wait(), 128 + 9);
    command.wait_for_end();
    let output = world.run(&["--", "true"]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    mount.wait_for_end();
    assert!(world.containers().is_empty());
    assert!(cgroups.iter().all(|path| !fs::exists(path).unwrap()), "cgroups are left: {cgroups:?}");
}

#[test]
fn a_lost_mount_process_ends_the_container() {
    let Some(world) = World::new() else { return };
    let mut running = world.start(&["--", "sh", "-c", "echo ready; exec sleep 1000"], Stdio::null());
    running.wait_for("ready\n");
    let state = world.state();
    world::Watch::new(state["servants"][0]["pid"].as_i64().unwrap()).kill();
    assert_eq!(running.wait(), 125);
}

#[test]
fn a_terminal_of_its_own() {
    let Some(world) = World::new() else { return };
    let terminal = world::Terminal::new(33, 101);
    let modes = terminal.modes();
    let mut running = world.start_on(&["-it", "--", "sh"], &terminal);
    running.wait_for("# ");
    assert_ne!(terminal.modes(), modes, "the user's terminal is not raw");
    running.type_in("tty; stty size; echo $TERM; test -c /dev/console && echo 'con''sole'\n");
    running.wait_for("/dev/pts/0\r\n33 101\r\nxterm\r\nconsole\r\n");
    terminal.resize(44, 55);
    // A shell with job control would have told; this test is not on that terminal's session.
    running.signal(Signal::WINCH);
    running.type_in("while test \"$(stty size)\" != '44 55'; do :; done; echo re''sized\n");
    running.wait_for("resized\r\n");
    // Keys arrive as keys: Ctrl-C interrupts the command in the container, not the run.
    running.type_in(
        "sh -c 'trap \"echo inter\"\"rupted; exit\" INT; echo be\"\"gin; while :; do sleep 1; done'\n",
    );
    running.wait_for("begin\r\n");
    running.type_in("\u{3}");
    running.wait_for("interrupted\r\n");
    running.type_in("exit 5\n");
    assert_eq!(running.wait(), 5);
    assert_eq!(terminal.modes(), modes, "the terminal is not as it was");
}

#[test]
fn a_terminal_without_input_and_output_complete() {
    let Some(world) = World::new() else { return };
    let output = world.run(&[
        "-t",
        "--",
        "sh",
        "-c",
        "tty; i=0; while test $i -lt 2000; do echo line $i; i=$((i+1)); done",
    ]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let lines: Vec<&str> = output.stdout.split("\r\n").collect();
    assert_eq!(lines.len(), 2002, "output is missing");
    assert_eq!((lines[0], lines[2000]), ("/dev/pts/0", "line 1999"));
}

#[test]
fn the_users_terminal_is_not_handed_to_a_container_without_one() {
    let Some(world) = World::new() else { return };
    let terminal = world::Terminal::new(24, 80);
    let mut running =
        world.start_on(&["-i", "--", "sh", "-c", "test -t 0 || test -t 1 || echo pi''pes; cat"], &terminal);
    running.wait_for("pipes");
    running.type_in("typed\n");
    // Once from the terminal's echo, once from the command.
    running.wait_for("typed");
    running.wait_for("typed");
    running.type_in("\u{4}");
    assert_eq!(running.wait(), 0);
}

#[test]
fn the_running_program_cannot_be_overwritten_from_inside() {
    let Some(world) = World::new() else { return };
    let mut running = world.start(&["--", "sh", "-c", "echo ready; exec sleep 1000"], Stdio::null());
    running.wait_for("ready\n");
    let exe = fs::File::open(format!("/proc/{}/exe", running.pid())).unwrap();
    let flags = rustix::fs::fstatvfs(&exe).unwrap().f_flag;
    assert!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY), "it runs from a writable mount");
    let own = fs::metadata(layerfs_binary().unwrap()).unwrap();
    assert_eq!(exe.metadata().unwrap().ino(), own.ino());
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        running.signal(signal);
    }
    running.wait();
}

#[test]
fn many_at_once() {
    let Some(world) = World::new() else { return };
    let mut running: Vec<Running> = (0..8)
        .map(|n| world.start(&["--", "sh", "-c", &format!("echo {n} > /n; cat /n; exit {n}")], Stdio::null()))
        .collect();
    for (n, running) in running.iter_mut().enumerate() {
        running.wait_for(&format!("{n}\n"));
        assert_eq!(running.wait(), n as i32);
    }
}
