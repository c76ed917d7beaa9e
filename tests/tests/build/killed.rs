//! Builds that are killed or interrupted at any moment: nothing stays, and the next one succeeds.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::world::World;

/// Nothing here takes this long, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const TEXT: &str = "FROM box\nCOPY a /a\nRUN echo 1 > /one\nRUN echo 2 > /two && mkdir /d && touch /d/x\nRUN rm -r /d && cat /one /two > /three\n\
                    WORKDIR /w\nRUN --mount=type=cache,target=/c --network=none touch /c/x && echo 4 > four\n";

/// Processes whose environment names the store.
fn processes(world: &World) -> Vec<u32> {
    let store = world.store();
    let wanted = format!("LAYERFS_ROOT={}", store.display());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let own = std::process::id();
    pids.filter(|pid| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        *pid != own && environ.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
    })
    .collect()
}

/// Waits until what a killed build had started has ended: the kernel tells it to, and it needs a moment.
pub(crate) fn wait_for_the_end(world: &World) {
    let end = Instant::now() + PATIENCE;
    loop {
        let left = processes(world);
        let Some(pid) = left.first().and_then(|pid| Pid::from_raw(i32::try_from(*pid).unwrap())) else {
            return;
        };
        assert!(Instant::now() < end, "processes {left:?} do not end");
        // Gone meanwhile is as good.
        let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
            continue;
        };
        let mut wanted = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        rustix::event::poll(&mut wanted, Some(&timeout)).unwrap();
    }
}

fn cgroups(id: &str) -> Vec<String> {
    let mut found = Vec::new();
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified"] {
        let names = fs::read_dir(root).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        found.extend(names.filter(|name| name.contains(id)));
    }
    found
}

fn kill_at(world: &World, context: &str, after: Duration, signal: Signal) {
    let mut child = world.spawn(&["build", "--no-cache", "-t", "killed", context]);
    std::thread::sleep(after);
    // It may have ended, and is not waited for: its number is its own.
    rustix::process::kill_process(Pid::from_child(&child), signal).ok();
    child.wait().unwrap();
    wait_for_the_end(world);
}

fn check(world: &World, context: &str) {
    // Containers of this store: their names are remembered before the next build takes them away.
    let steps = world.store().join("build/steps");
    let ids: Vec<String> = fs::read_dir(&steps)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    world.ok(&["build", "-t", "next", context]);
    for id in ids {
        assert!(cgroups(&id).is_empty(), "a cgroup is left");
    }
    assert!(fs::read_dir(&steps).unwrap().next().is_none(), "a step's directory is left");
    let left: Vec<_> = fs::read_dir(world.store().join("images/tmp"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name != ".lock")
        .collect();
    assert!(left.is_empty(), "{left:?} is left");
    let text = world.ok(&["run", "--rm", "--network", "none", "next", "cat", "/three", "/w/four"]);
    assert_eq!(text, "1\n2\n4");
    world.ok(&["store", "check"]);
}

#[test]
fn a_killed_build_leaves_nothing() {
    let Some(world) = World::new() else { return };
    let context = world.context("killed", &[("Dockerfile", TEXT), ("a", "1")]);
    let context = context.to_str().unwrap();
    let started = Instant::now();
    world.ok(&["build", "--no-cache", "-t", "killed", context]);
    let whole = started.elapsed();
    // More by hand: BUILD_KILLS=20.
    let kills: u32 = std::env::var("BUILD_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    for kill in 1..=kills {
        kill_at(&world, context, whole * kill / (kills + 1), Signal::KILL);
        check(&world, context);
    }
    kill_at(&world, context, whole / 2, Signal::TERM);
    check(&world, context);
}

#[test]
fn an_interrupted_build_ends_at_once_and_keeps_its_steps() {
    let Some(world) = World::new() else { return };
    let text = "FROM box\nRUN echo 1 > /one\nRUN touch /started && sleep 1000\n";
    let context = world.context("interrupted", &[("Dockerfile", text)]);
    let asked = world.command(&["build", "--progress", "plain", context.to_str().unwrap()]);
    // What a shell runs in the background ignores SIGINT, and so would this test's build.
    let mut command = std::process::Command::new("env");
    command.arg("--default-signal=INT").arg(asked.get_program()).args(asked.get_args());
    for (name, value) in asked.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    lines
        .by_ref()
        .map(Result::unwrap)
        .find(|line| line.contains("[stage-0 2/2]"))
        .expect("the second step begins");
    rustix::process::kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("interrupted")), "{rest:?}");
    wait_for_the_end(&world);
    fs::write(context.join("Dockerfile"), text.replace("sleep 1000", "true")).unwrap();
    let output = world.run(&["build", "--progress", "plain", context.to_str().unwrap()]);
    assert!(output.code == 0 && output.stderr.matches("CACHED").count() == 1, "{}", output.stderr);
}
