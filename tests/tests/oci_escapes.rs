//! Known ways out of a container, each refused.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use layerfs_tests::bundle::Bundles;
use serde_json::json;

#[test]
fn the_runtimes_file_cannot_be_overwritten_through_proc_self_exe() {
    let Some(bundles) = Bundles::own() else { return };
    // The runtime becomes itself again, inside; its link to itself must not be open to writing.
    let (id, _) = bundles.start("sleep 1000", |_| {});
    let script = "for n in 1 2 3 4 5 6 7 8 9 10; do for p in /proc/[0-9]*; do \
                  echo x 2>/dev/null >> $p/exe && echo written $(readlink $p/exe); done; done; true";
    let before = fs::read(layerfs_tests::privilege::layerfs_binary().unwrap()).unwrap();
    bundles.call(&["exec", &id, "/proc/self/exe", "--help"]);
    let seen = bundles.well(&["exec", &id, "sh", "-c", script]);
    assert!(!seen.contains("layerfs"), "{seen}");
    symlink("/proc/self/exe", bundles.rootfs().join("bin/self")).unwrap();
    fs::write(bundles.rootfs().join("bin/script"), "#!/proc/self/exe\n").unwrap();
    bundles.call(&["exec", &id, "/bin/self", "--version"]);
    assert!(before == fs::read(layerfs_tests::privilege::layerfs_binary().unwrap()).unwrap());
}

#[test]
fn the_file_that_runs_is_on_a_read_only_mount_or_sealed() {
    let Some(bundles) = Bundles::own() else { return };
    // The first process of a created container is the runtime itself. While it runs, its file is busy, as any program's
    // is; what keeps it from being written when it ends is where it runs from.
    let id = bundles.id();
    let bundle = bundles.bundle(&id, "true", |_| {});
    bundles.well(&["create", "--bundle", bundle.to_str().unwrap(), &id]);
    let pid = bundles.state(&id)["pid"].to_string();
    let file = fs::File::open(format!("/proc/{pid}/exe")).unwrap();
    let is_read_only =
        rustix::fs::fstatvfs(&file).unwrap().f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
    let is_sealed =
        rustix::fs::fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(rustix::fs::SealFlags::WRITE));
    assert!(is_read_only || is_sealed, "the runtime's own file can be written through /proc/{pid}/exe");
}

#[test]
fn no_descriptor_of_the_machine_is_open_inside() {
    let Some(bundles) = Bundles::own() else { return };
    let leak = fs::File::open("/").unwrap();
    // Open in the runtime, not close-on-exec.
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let (id, _) = bundles.start("sleep 1000", |_| {});
    let list = "for p in 1 self; do ls /proc/$p/fd; readlink /proc/$p/cwd; readlink /proc/$p/root; done";
    let seen = bundles.well(&["exec", &id, "sh", "-c", list]);
    let numbers: Vec<u32> = seen.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.iter().all(|number| *number <= 3), "{seen}");
    assert!(seen.lines().filter(|line| line.starts_with('/')).all(|line| line == "/"), "{seen}");
}

#[test]
fn a_working_directory_that_is_a_descriptor_is_refused() {
    let Some(bundles) = Bundles::own() else { return };
    for number in 3..12 {
        let cwd = format!("/proc/self/fd/{number}");
        let output = bundles
            .run("pwd; cat etc/hostname ../../etc/hostname", |spec| spec["process"]["cwd"] = json!(cwd));
        assert_ne!(output.code, 0, "{cwd}: {output:?}");
    }
    let (id, _) = bundles.start("sleep 1000", |_| {});
    for number in 3..12 {
        let cwd = format!("/proc/self/fd/{number}");
        let output = bundles.call(&["exec", "--cwd", &cwd, &id, "pwd"]);
        assert_ne!(output.code, 0, "exec {cwd}: {output:?}");
    }
}

#[test]
fn proc_is_not_mounted_through_a_symlink() {
    let Some(bundles) = Bundles::own() else { return };
    let proc = bundles.rootfs().join("proc");
    fs::remove_dir(&proc).unwrap();
    symlink("/tmp", &proc).unwrap();
    let output = bundles.run("true", |_| {});
    assert_eq!(output.code, 125, "{output:?}");
    assert!(output.stderr.contains("/proc"), "{output:?}");
}

#[test]
fn mount_targets_lead_nowhere_else() {
    let Some(bundles) = Bundles::own() else { return };
    let outside = bundles.path().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, bundles.rootfs().join("absolute")).unwrap();
    symlink("../../../../../../..", bundles.rootfs().join("climbing")).unwrap();
    for target in ["/absolute/made", "/climbing/made"] {
        bundles.run("true", |spec| {
            let mount = json!({"destination": target, "type": "tmpfs", "source": "t"});
            spec["mounts"].as_array_mut().unwrap().push(mount);
        });
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "something was made outside of the root");
    assert!(!std::path::Path::new("/made").exists());
}

#[test]
fn devices_outside_of_the_list_can_be_made_but_not_used() {
    let Some(bundles) = Bundles::own() else { return };
    let seen = bundles.run_well(
        "mknod /data/mem c 1 1 && ! dd if=/data/mem bs=1 count=1 2>/dev/null && echo kept out",
        |_| {},
    );
    assert_eq!(seen, "kept out\n");
}

#[test]
fn masks_cannot_be_taken_away() {
    let Some(bundles) = Bundles::own() else { return };
    let seen = bundles.run_well(
        "umount /proc/keys 2>/dev/null && echo away; mount -t tmpfs t /proc/keys 2>/dev/null && echo over; \
         mount -o remount,rw /proc/sys 2>/dev/null && echo writable; cat /proc/keys | wc -c",
        |_| {},
    );
    assert_eq!(seen, "0\n");
}

#[test]
fn cgroup_files_are_not_open_to_writing() {
    let Some(bundles) = Bundles::own() else { return };
    let seen = bundles.run_well(
        "for f in $(ls -d /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/cgroup.procs \
         2>/dev/null); do echo 1 2>/dev/null > $f && echo wrote $f; done; echo done",
        |spec| {
            let options = json!(["nosuid", "noexec", "nodev", "ro"]);
            let mount = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "c", "options": options});
            spec["mounts"].as_array_mut().unwrap().push(mount);
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
        },
    );
    assert_eq!(seen, "done\n");
}

#[test]
fn a_process_that_joins_cannot_be_looked_at() {
    let Some(bundles) = Bundles::own() else { return };
    // The waiting first process is such a one: an unprivileged look at its files must fail.
    let id = bundles.id();
    let bundle = bundles.bundle(&id, "true", |_| {});
    bundles.well(&["create", "--bundle", bundle.to_str().unwrap(), &id]);
    let pid = bundles.state(&id)["pid"].to_string();
    let owner = |path: String| std::os::unix::fs::MetadataExt::uid(&fs::metadata(path).unwrap());
    assert_eq!(owner(format!("/proc/{pid}/environ")), 0);
    let (denied, environment) = layerfs_tests::privilege::as_user(0, 0, || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        (status.lines().any(|line| line.starts_with("CoreDumping:")), status)
    });
    assert!(denied, "{environment}");
    // With a user namespace of its own, what is not dumpable belongs to the machine's root.
    let id = bundles.id();
    let bundle = bundles.bundle(&id, "true", |spec| {
        let map = json!([{"containerID": 0, "hostID": 300_000, "size": 1000}]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        spec["linux"]["resources"] = json!({});
    });
    bundles.well(&["create", "--bundle", bundle.to_str().unwrap(), &id]);
    let pid = bundles.state(&id)["pid"].to_string();
    assert_eq!(owner(format!("/proc/{pid}/environ")), 0, "it is dumpable");
}

/// Exchanges what two names stand for, as fast as it can, while `work` runs.
fn while_exchanging(a: &Path, b: &Path, work: impl FnOnce()) {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(Ordering::Relaxed) {
                renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
            }
        });
        // The other thread ends when this one panics, too.
        struct Ends<'a>(&'a AtomicBool);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _ends = Ends(&ends);
        work();
    });
}

#[test]
fn mount_targets_are_not_exchanged_for_symlinks_while_they_are_mounted_on() {
    let Some(bundles) = Bundles::own() else { return };
    // Two containers share a volume; the one changes what the other mounts on.
    let outside = bundles.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let volume = bundles.rootfs().join("data");
    fs::create_dir(volume.join("target")).unwrap();
    symlink(&outside, volume.join("link")).unwrap();
    let source = bundles.path().join("source");
    fs::write(&source, "bound\n").unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts.lines().filter(|line| line.contains(outside.to_str().unwrap())).count();
    while_exchanging(&volume.join("target"), &volume.join("link"), || {
        for round in 0..40 {
            let output = bundles.run("true", |spec| {
                let mounts = spec["mounts"].as_array_mut().unwrap();
                mounts.push(json!({"destination": "/data/target", "type": "tmpfs", "source": "t"}));
                mounts.push(
                    json!({"destination": format!("/data/link/d{round}"), "type": "tmpfs", "source": "t"}),
                );
                mounts.push(json!({"destination": format!("/data/target/f{round}"), "type": "bind",
                    "source": source, "options": ["bind"]}));
                spec["linux"]["maskedPaths"].as_array_mut().unwrap().push(json!("/data/link"));
            });
            // Whatever it met, it made nothing outside; a refusal is no harm.
            assert!(matches!(output.code, 0 | 125), "{output:?}");
            let made: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert_eq!(made, Vec::<std::path::PathBuf>::new(), "made outside of the root");
        }
    });
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(mounts.lines().filter(|line| line.contains(outside.to_str().unwrap())).count(), before);
}

#[test]
fn proc_is_proc_while_its_place_is_exchanged_for_a_symlink() {
    let Some(bundles) = Bundles::own() else { return };
    let (proc, link) = (bundles.rootfs().join("proc"), bundles.rootfs().join("other"));
    symlink("/tmp", &link).unwrap();
    let mut is_run = false;
    while_exchanging(&proc, &link, || {
        for _ in 0..30 {
            // The shell has no other way to its own: a /proc that is none has nothing in it.
            let output = bundles.run("read line < /proc/self/status && echo proc", |_| {});
            match output.code {
                0 => assert_eq!(output.stdout, "proc\n", "{output:?}"),
                125 => {}
                // It was exchanged after it had been mounted on.
                1 | 2 => {}
                _ => panic!("{output:?}"),
            }
            is_run |= output.code == 0;
        }
    });
    eprintln!("some were made: {is_run}");
    assert_eq!(fs::read_dir(bundles.rootfs().join("tmp")).unwrap().count(), 0);
}

#[test]
fn who_joins_cannot_be_looked_at_by_who_is_inside() {
    let Some(bundles) = Bundles::own() else { return };
    // Root inside, without CAP_SYS_PTRACE, as containers are: it looks at every process of the runtime's name.
    // What it could see it was shown before the program ran only if the name is still the runtime's after it.
    let script = "still() { read again < $p/comm && case $again in layerfs*) echo seen $1;; esac; }; \
                  while :; do for p in /proc/[0-9]*; do read name < $p/comm && case $name in layerfs*) echo met; \
                  for f in exe root cwd fd/0 fd/3 fd/4 fd/5; do readlink $p/$f > /dev/null && still $f; done; \
                  read line < $p/environ && still environ; read line < $p/syscall && still syscall;; \
                  esac; done; done 2>/dev/null";
    let out = bundles.rootfs().join("data/seen");
    let (id, _) = bundles.start(&format!("{{ {script}; }} > /data/seen"), |_| {});
    let mut tries = 0;
    // A test that never meets a joining process could not fail.
    while tries < 20 || !fs::read_to_string(&out).unwrap().contains("met") {
        bundles.well(&["exec", &id, "true"]);
        tries += 1;
        assert!(tries < 500, "no joining process was met");
    }
    let seen = fs::read_to_string(&out).unwrap();
    assert!(!seen.contains("seen"), "{seen}");
}
