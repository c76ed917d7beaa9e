//! Killed monitors, and many commands at once.

use std::process::Stdio;

use rustix::process::{Pid, Signal};

use super::world::World;

fn kill(pid: &serde_json::Value) {
    let pid = Pid::from_raw(i32::try_from(pid.as_i64().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
}

/// A dead process that nobody has waited for does not.
fn runs(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[test]
fn what_a_killed_monitor_leaves_is_settled_by_the_next_command() {
    let Some(world) = World::new() else { return };
    world.ok(&["run", "-d", "--name", "c", "box", "sleep", "1000"]);
    let state = world.state("c");
    let first = Pid::from_raw(i32::try_from(state["process"]["pid"].as_i64().unwrap()).unwrap()).unwrap();
    kill(&state["monitor"]["pid"]);
    world.wait_until("c", "{{.State.Status}} {{.State.ExitCode}}", "exited 137");
    assert!(!runs(first), "its program is left");
    assert_eq!(world.ok(&["ps", "-q"]), "");
    world.ok(&["start", "c"]);
    assert_eq!(world.ok(&["exec", "c", "echo", "again"]), "again");
    // And without anybody looking in between.
    kill(&world.state("c")["monitor"]["pid"]);
    world.ok(&["rm", "-f", "c"]);
}

#[test]
fn what_was_to_go_at_its_end_goes_without_its_monitor_too() {
    let Some(world) = World::new() else { return };
    world.ok(&["run", "-d", "--rm", "--name", "c", "-v", "/vol", "box", "sleep", "1000"]);
    kill(&world.state("c")["monitor"]["pid"]);
    // Its lock is free when it is gone.
    let output = loop {
        let output = world.layerfs(&["start", "c"]);
        if output.code != 0 {
            break output;
        }
    };
    assert!(output.stderr.contains("No such container"), "{output:?}");
    assert_eq!(world.ok(&["ps", "-aq"]), "");
    assert_eq!(world.ok(&["volume", "ls", "-q"]), "");
    assert_eq!(world.ok(&["system", "check"]), "all is well");
}

#[test]
fn without_its_filesystem_a_container_ends() {
    let Some(world) = World::new() else { return };
    world.ok(&["run", "-d", "--name", "c", "box", "sleep", "1000"]);
    kill(&world.state("c")["mount"]["pid"]);
    let code = world.ok(&["wait", "c"]);
    // Killed by the monitor, unless it has touched a page of its file before: SIGBUS.
    assert!(code == "137" || code == "135", "{code}");
    let error = world.inspect("c", "{{.State.Error}}");
    assert!(error.contains("root filesystem"), "{error:?}");
    world.ok(&["start", "c"]);
    assert_eq!(world.ok(&["exec", "c", "echo", "again"]), "again");
}

#[test]
fn a_killed_client_leaves_the_container() {
    let Some(world) = World::new() else { return };
    let mut run = world.running(&["run", "--name", "c", "box", "sh", "-c", "echo ready; sleep 1000"]);
    run.wait_for("ready");
    run.kill();
    assert_eq!(world.inspect("c", "{{.State.Running}}"), "true");
    assert_eq!(world.ok(&["logs", "c"]), "ready");
}

#[test]
fn many_commands_at_once_leave_nothing_half_made() {
    let Some(world) = World::new() else { return };
    let script = |number: usize| {
        // Every command may fail: another one may have been there first.
        let words: [&[&str]; 8] = [
            &["create", "--name", "NAME", "box", "sleep", "1000"],
            &["start", "NAME"],
            &["run", "-d", "--name", "NAME", "box", "sleep", "1000"],
            &["kill", "NAME"],
            &["ps", "-a"],
            &["stop", "-t", "0", "NAME"],
            &["run", "--rm", "box", "true"],
            &["rm", "-f", "NAME"],
        ];
        let names = ["n0", "n1", "n2"];
        (0..8).map(move |step| {
            let at = (number * 5 + step * 3) % words.len();
            let name = names[(number + step) % names.len()];
            words[at].iter().map(|word| if *word == "NAME" { name } else { *word }).collect::<Vec<_>>()
        })
    };
    std::thread::scope(|scope| {
        for number in 0..4 {
            let world = &world;
            scope.spawn(move || {
                for arguments in script(number) {
                    let mut child = world
                        .command(&arguments)
                        .stdout(Stdio::null())
                        .stderr(Stdio::piped())
                        .spawn()
                        .unwrap();
                    let mut words = String::new();
                    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut words).unwrap();
                    let code = child.wait().unwrap().code();
                    assert!(matches!(code, Some(0 | 1 | 125)), "{arguments:?}: {code:?} {words}");
                    assert!(!words.contains("panicked"), "{arguments:?}: {words}");
                }
            });
        }
    });
    // Whatever is there is whole: it can be looked at, and removed (by the world).
    for id in world.ok(&["ps", "-aq", "--no-trunc"]).lines() {
        assert_eq!(world.inspect(id, "{{.Id}}"), id);
        let state = world.inspect(id, "{{.State.Status}}");
        assert!(["created", "running", "exited"].contains(&state.as_str()), "{state}");
    }
    assert_eq!(world.ok(&["ps", "-aq"]).lines().count(), world.containers().len());
}
