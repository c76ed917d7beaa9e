//! Streams, terminals, logs, attaching.

use std::io::{Read, Write};
use std::process::Stdio;

use super::world::{Terminal, World};

#[test]
fn every_byte_passes_both_ways_and_streams_stay_apart() {
    let Some(world) = World::new() else { return };
    let output = world.with_input(&["run", "--rm", "-i", "box", "cat"], "some\ninput");
    assert_eq!((output.code, output.stdout.as_str()), (0, "some\ninput"));
    let output = world.layerfs(&["run", "--rm", "box", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
    // Without -i there is no input.
    assert_eq!(world.with_input(&["run", "--rm", "box", "cat"], "unseen").stdout, "");
    // Far more than any buffer, to a reader that begins late.
    let mut child =
        world.command(&["run", "--rm", "box", "seq", "1", "300000"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(text.lines().count(), 300_000);
    assert!(text.ends_with("\n300000\n"));
}

#[test]
fn a_terminal_has_the_users_size_and_is_left_by_keys() {
    let Some(world) = World::new() else { return };
    let terminal = Terminal::new();
    terminal.resize(33, 101);
    let mut run = world.on_terminal(&["run", "-it", "--name", "tty", "box", "sh"], &terminal);
    // What is typed ahead, before the terminal is raw, is the program's too.
    run.type_in(b"stty size; tty\n");
    run.wait_for("33 101");
    run.wait_for("/dev/pts/0");
    terminal.resize(40, 120);
    // The kernel tells the terminal's session; the test is not on it.
    run.window_changed();
    run.type_in(b"while test \"$(stty size)\" != '40 120'; do :; done; echo re''sized\n");
    run.wait_for("resized");
    run.type_in(b"\x10\x11");
    assert_eq!(run.code(), 0);
    assert_eq!(world.inspect("tty", "{{.State.Running}}"), "true");
    // Another client, on another terminal, goes on with it.
    let other = Terminal::new();
    let mut attached = world.on_terminal(&["attach", "tty"], &other);
    // It draws its prompt again when somebody comes.
    attached.wait_for("# ");
    attached.type_in(b"echo st''ill here; exit 5\n");
    attached.wait_for("still here");
    assert_eq!(attached.code(), 5);
    assert_eq!(world.ok(&["wait", "tty"]), "5");
}

#[test]
fn a_program_executed_on_a_terminal_has_one_of_its_own() {
    let Some(world) = World::new() else { return };
    world.ok(&["run", "-d", "--name", "c", "box", "sleep", "1000"]);
    let terminal = Terminal::new();
    let mut exec = world.on_terminal(&["exec", "-it", "c", "sh"], &terminal);
    exec.wait_for("# ");
    exec.type_in(b"stty size; exit 4\n");
    exec.wait_for("24 80");
    assert_eq!(exec.code(), 4);
    let output = world.with_input(&["exec", "-i", "c", "cat"], "through exec");
    assert_eq!(output.stdout, "through exec");
    let text = world.ok(&[
        "exec",
        "-u",
        "me:audio",
        "-e",
        "A=1",
        "-w",
        "/etc",
        "c",
        "sh",
        "-c",
        "id -u; id -g; echo $A $HOME; pwd",
    ]);
    assert_eq!(text, "1000\n29\n1 /home/me\n/etc");
    world.ok(&["exec", "-d", "c", "touch", "/data/detached"]);
    world.ok(&["exec", "c", "sh", "-c", "until [ -e /data/detached ]; do sleep 0; done"]);
}

#[test]
fn logs_are_kept_followed_and_cut() {
    let Some(world) = World::new() else { return };
    let script = "echo one; echo two >&2; echo three; cat > /dev/null; echo end";
    let mut child = world
        .command(&["run", "-i", "--name", "kept", "box", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    // It exists once somebody has asked for it with success. (No id of an image begins with its name.)
    while world.layerfs(&["inspect", "kept"]).code != 0 {
        std::thread::yield_now();
    }
    world.wait_until("kept", "{{.State.Status}}", "running");
    let mut follow = world.running(&["logs", "-f", "kept"]);
    follow.wait_for("three");
    input.write_all(b"x").unwrap();
    drop(input);
    follow.wait_for("end");
    assert_eq!(follow.code(), 0);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let output = world.layerfs(&["logs", "kept"]);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("one\nthree\nend\n", "two\n"));
    assert_eq!(world.ok(&["logs", "--tail", "1", "kept"]), "end");
    assert_eq!(world.ok(&["logs", "-n", "0", "kept"]), "");
    assert_eq!(world.ok(&["logs", "--since", "1h", "--until", "1h", "kept"]), "");
    let line = world.ok(&["logs", "-t", "--tail", "1", "kept"]);
    assert!(line.ends_with("Z end") && line.starts_with("20"), "{line}");
    world.ok(&[
        "run",
        "--name",
        "small",
        "--log-opt",
        "max-size=1k",
        "--log-opt",
        "max-file=2",
        "box",
        "seq",
        "1",
        "500",
    ]);
    let files = std::fs::read_dir(world.directory("small")).unwrap();
    let logs = files
        .flatten()
        .filter(|file| file.file_name().to_string_lossy().starts_with("container.log"))
        .count();
    assert_eq!(logs, 2);
    assert!(world.ok(&["logs", "small"]).ends_with("\n500"));
    assert_eq!(world.layerfs(&["run", "--log-driver", "none", "--name", "mute", "box"]).code, 0);
    assert_eq!(world.layerfs(&["logs", "mute"]).code, 1);
}

#[test]
fn streams_that_are_passed_on_are_the_programs_own() {
    let Some(world) = World::new() else { return };
    let driver = ["run", "--log-driver", "passthrough"];
    let run = |more: &[&str], input: &str| world.with_input(&[&driver[..], more].concat(), input);
    let output = run(&["--rm", "-i", "box", "sh", "-c", "cat; echo problem >&2; exit 4"], "fed");
    assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (4, "fed", "problem\n"));
    let mut running = world.running(&[
        "run",
        "-d",
        "--name",
        "c",
        "--log-driver",
        "passthrough",
        "box",
        "sh",
        "-c",
        "echo direct; sleep 1000",
    ]);
    running.wait_for("direct");
    assert!(world.layerfs(&["logs", "c"]).stderr.contains("does not support reading"));
    world.ok(&["rm", "-f", "c"]);
    assert_eq!(run(&["-t", "box"], "").code, 125);
}

/// As a command that SIGPIPE ends; what it was with goes on.
#[test]
fn regression_who_is_not_read_any_more_leaves() {
    let Some(world) = World::new() else { return };
    let script = "while echo again; do sleep 0.01; done";
    let mut run = world.running(&["run", "--name", "c", "box", "sh", "-c", script]);
    run.wait_for("again");
    run.close();
    assert_eq!(run.code(), 141);
    assert_eq!(world.inspect("c", "{{.State.Running}}"), "true");
    for arguments in [&["exec", "c", "sh", "-c", script][..], &["attach", "c"]] {
        let mut command = world.running(arguments);
        command.wait_for("again");
        command.close();
        assert_eq!(command.code(), 141, "{arguments:?}");
    }
    let mut stats = world.running(&["stats", "--format", "{{.Name}}"]);
    stats.wait_for("c\n");
    stats.close();
    assert_eq!(stats.code(), 0);
    world.ok(&["kill", "c"]);
}

/// The end of the input of whom it was made for is the program's.
#[test]
fn regression_what_was_created_interactive_has_its_input_once() {
    let Some(world) = World::new() else { return };
    world.ok(&["create", "-i", "--name", "c", "box", "cat"]);
    assert_eq!(world.inspect("c", "{{.Config.StdinOnce}} {{.Config.AttachStdin}}"), "true true");
    let output = world.with_input(&["start", "-ai", "c"], "once");
    assert_eq!((output.code, output.stdout.as_str()), (0, "once"));
    let output = world.with_input(&["start", "-ai", "c"], "again");
    assert_eq!((output.code, output.stdout.as_str()), (0, "again"));
}
