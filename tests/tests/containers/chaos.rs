//! Random operations by many processes at once, with commands, monitors and mounts killed at random: afterwards
//! `system check` has nothing to say, and nothing is left.
//!
//! A hundred operations; three hundred with LAYERFS_TEST_LONG. LAYERFS_TEST_SEED repeats a run, as far as the machine does.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use layerfs_tests::privilege::{layerfs_binary, skip};
use rustix::process::{Pid, Signal};

use super::world::World;

const WORKERS: u64 = 8;

/// Choices by a generator of a given seed.
struct Choices(u64);

impl Choices {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.next(all.len() as u64) as usize]
    }
}

/// A network namespace that stands for the machine's.
struct Host(Child);

impl Host {
    fn new() -> Option<Self> {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up; echo ready; read x"]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let Ok(mut child) = child else {
            skip("unshare (util-linux) cannot be executed");
            return None;
        };
        let mut said = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        Some(Self(child))
    }

    fn command(&self, world: &World, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.0.id()))
            .arg("--")
            .arg(layerfs_binary().unwrap())
            .args(arguments)
            .env("LAYERFS_ROOT", world.path().join("store"))
            .stdin(Stdio::null());
        command
    }

    /// What a command outside layerfs prints about this namespace.
    fn says(&self, program: &[&str]) -> String {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.0.id())).arg("--").args(program);
        let output = command.output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().ok();
    }
}

fn ids(world: &World) -> Vec<String> {
    let names =
        world.containers().into_iter().filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
    names.filter(|name| name.len() == 64).collect()
}

/// Kills the monitor, the program or the mount of some container.
fn kill_somebody(world: &World, choices: &mut Choices) {
    let ids = ids(world);
    let Some(id) = ids.get(choices.next(ids.len().max(1) as u64) as usize) else { return };
    let state =
        fs::read(world.path().join("store/containers").join(id).join("state.json")).unwrap_or_default();
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap_or_default();
    let victim = choices.of(&["monitor", "process", "mount"]);
    let Some(pid) = state[victim]["pid"].as_i64() else { return };
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    // By then the number may be another's: its command line says whether it is ours. (A container's program is no word.)
    let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    let store = world.path().as_os_str().as_encoded_bytes();
    let is_ours =
        line.windows(store.len()).any(|window| window == store) || line.starts_with(b"sleep\x001000");
    if is_ours {
        rustix::process::kill_process(pid, Signal::KILL).ok();
    }
}

fn operate(world: &World, host: &Host, choices: &mut Choices, log: &Mutex<Vec<String>>) {
    // Few enough that workers meet, and a fresh one, so that there is always something to meet at.
    let name = choices.of(&["n0", "n1", "n2", "n3", "n4", "n5"]);
    let other = choices.of(&["n0", "n1", "n2", "n3", "n4", "n5"]);
    let fresh = format!("f{}", choices.next(u64::MAX >> 33));
    let fresh = fresh.as_str();
    let inside = format!("{name}:/data/");
    let cgroup = cgroup_parent();
    let restart = choices.of(&["no", "always", "on-failure:2"]);
    let network = choices.of(&["none", "chaos", "host"]);
    let words: &[&[&str]] = &[
        &[
            "run",
            "-d",
            "--stop-timeout",
            "0",
            "--name",
            name,
            "--network",
            network,
            "--restart",
            restart,
            "box",
            "sleep",
            "1000",
        ],
        &[
            "run",
            "-d",
            "--stop-timeout",
            "0",
            "--name",
            name,
            "--network",
            network,
            "--restart",
            restart,
            "box",
            "sleep",
            "1000",
        ],
        &[
            "run",
            "-d",
            "--stop-timeout",
            "0",
            "--cgroup-parent",
            &cgroup,
            "--name",
            name,
            "--network",
            "none",
            "box",
            "sleep",
            "1000",
        ],
        &[
            "run",
            "-d",
            "--stop-timeout",
            "0",
            "--name",
            name,
            "--network",
            "chaos",
            "--rm",
            "box",
            "sleep",
            "1000",
        ],
        &[
            "run",
            "-d",
            "--stop-timeout",
            "0",
            "--name",
            fresh,
            "--network",
            network,
            "-p",
            "80",
            "box",
            "sleep",
            "1000",
        ],
        &[
            "run",
            "-d",
            "--stop-timeout",
            "0",
            "--name",
            name,
            "-v",
            "/vol",
            "box",
            "sh",
            "-c",
            "echo x > /data/x; exec sleep 1000",
        ],
        &["run", "--rm", "--cgroup-parent", &cgroup, "--network", network, "box", "true"],
        &[
            "create",
            "--stop-timeout",
            "0",
            "--cgroup-parent",
            &cgroup,
            "--name",
            name,
            "box",
            "sleep",
            "1000",
        ],
        &["start", name],
        &["start", name],
        &["stop", "-t", "0", name],
        &["kill", name],
        &["restart", "-t", "0", name],
        &["rm", "-f", name],
        &["exec", name, "sh", "-c", "echo y >> /data/y; rm -f /srv/plain"],
        &["pause", name],
        &["unpause", name],
        &["rename", name, other],
        &["update", "--restart", restart, name],
        &["ps", "-a"],
        &["restart", "-t", "0", name],
        &["rollback", "--restart", name, "1"],
        &["cp", "/etc/hostname", &inside],
        &["diff", name],
        &["snapshot", name],
        &["snapshot", "rm", name, "1"],
        &["rollback", name, "1"],
        &["fork", "--name", other, name],
        &["fork", "--name", fresh, name],
        &["discard", "-y", name],
        &["commit", name, "committed"],
        &["network", "prune", "-f", "--filter", "label!=keep"],
        &["system", "check", "--quick"],
        &["system", "start"],
    ];
    let arguments = choices.of(words);
    let mut command = host.command(world, arguments);
    let tells = arguments[0] == "system";
    let stdout = if tells { Stdio::piped() } else { Stdio::null() };
    let mut child = command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
    let killed = choices.next(4) == 0;
    if killed {
        // A moment of its work, which is what is varied here.
        std::thread::sleep(Duration::from_micros(choices.next(60_000)));
        child.kill().ok();
    }
    let mut said = String::new();
    let mut stderr = child.stderr.take().unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    // What a killed command has started may hold the pipe.
    if !killed {
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "{arguments:?} does not end; before: {:?}", log.lock().unwrap());
            std::thread::sleep(Duration::from_millis(2));
        }
        stderr.read_to_string(&mut said).ok();
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_string(&mut said).ok();
        }
    }
    let status = child.wait().unwrap();
    log.lock().unwrap().push(format!("{arguments:?} {status} {said}"));
    assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    if choices.next(8) == 0 {
        kill_somebody(world, choices);
    }
}

/// How often each command succeeded, failed and was killed: a run in which nearly all fail shows nothing.
fn tally(log: &[String]) -> String {
    let mut counts: BTreeMap<String, [usize; 3]> = BTreeMap::new();
    for line in log {
        let command = line.split('"').nth(1).unwrap_or_default().to_owned();
        let how = match () {
            () if line.contains("signal: 9") => 2,
            () if line.contains("exit status: 0") => 0,
            () => 1,
        };
        counts.entry(command).or_default()[how] += 1;
    }
    counts
        .iter()
        .map(|(command, [ok, failed, killed])| format!("{command} {ok} {failed} {killed}\n"))
        .collect()
}

/// All cgroups of this test are in one: whatever is in it at the end is left.
fn cgroup_parent() -> String {
    format!("chaos-{}", std::process::id())
}

/// Takes the parents away; answers with what is in them.
fn cgroups_left(path: &Path, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let is_ours = entry.file_name().to_str() == Some(&cgroup_parent());
        if is_ours {
            let inner = fs::read_dir(entry.path()).into_iter().flatten().flatten();
            found.extend(
                inner
                    .filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|e| e.path().display().to_string()),
            );
            // With something in it, it stays to be looked at.
            fs::remove_dir(entry.path()).ok();
        } else {
            cgroups_left(&entry.path(), found);
        }
    }
}

#[test]
fn whatever_is_killed_nothing_is_left() {
    let Some(world) = World::new() else { return };
    let Some(host) = Host::new() else { return };
    let operations = if std::env::var_os("LAYERFS_TEST_LONG").is_some() { 300 } else { 96 };
    let seed = std::env::var("LAYERFS_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(11_u64);
    let ok = |arguments: &[&str]| {
        let output = host.command(&world, arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    ok(&["network", "create", "--label", "keep", "chaos"]);
    let log = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (world, host, log) = (&world, &host, &log);
            scope.spawn(move || {
                let mut choices = Choices(seed * 1000 + worker);
                for _ in 0..operations / WORKERS {
                    operate(world, host, &mut choices, log);
                }
            });
        }
    });
    let history = || log.lock().unwrap().join("\n");
    // Commands that were killed may have started others, which are about to end.
    let repaired = host.command(&world, &["system", "check", "--repair"]).output().unwrap();
    let said =
        String::from_utf8_lossy(&repaired.stdout).into_owned() + &String::from_utf8_lossy(&repaired.stderr);
    assert!(repaired.status.success(), "{said}\n{}", history());
    println!("{said}{}", tally(&log.lock().unwrap()));
    if std::env::var_os("LAYERFS_TEST_LONG").is_some() {
        println!("{}", history());
    }
    let checked = ok(&["system", "check"]);
    assert_eq!(checked, "all is well\n", "{}", history());
    let all = ok(&["ps", "-aq", "--no-trunc"]);
    for id in all.lines() {
        ok(&["rm", "-f", id]);
    }
    ok(&["network", "prune", "-f"]);
    assert_eq!(ok(&["system", "check"]), "all is well\n");
    let mut left = Vec::new();
    cgroups_left(Path::new("/sys/fs/cgroup"), &mut left);
    assert_eq!(left, Vec::<String>::new(), "cgroups are left\n{}", log.lock().unwrap().join("\n"));
    let links = host.says(&["ip", "-o", "link"]);
    assert_eq!(links.lines().count(), 1, "interfaces are left: {links}");
    let tables = host.says(&["nft", "list", "tables"]);
    assert_eq!(tables, "", "tables of the packet filter are left");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(world.path().to_str().unwrap()), "mounts are left: {mounts}");
}
