//! From create to rm.

use super::world::World;

#[test]
fn a_container_is_made_started_stopped_and_removed() {
    let Some(world) = World::new() else { return };
    let id = world.ok(&["create", "--name", "web", "box", "sleep", "1000"]);
    assert_eq!(id.len(), 64);
    assert_eq!(world.inspect("web", "{{.State.Status}} {{.State.Pid}}"), "created 0");
    assert_eq!(world.ok(&["ps", "-q"]), "");
    assert_eq!(world.ok(&["start", "web"]), "web");
    assert_eq!(world.inspect(&id[..5], "{{.State.Status}}"), "running");
    assert_eq!(world.ok(&["ps", "-q"]), id[..12]);
    assert_eq!(world.ok(&["exec", "web", "cat", "/proc/1/comm"]), "sleep");
    assert_eq!(world.ok(&["pause", "web"]), "web");
    assert_eq!(world.inspect("web", "{{.State.Status}}"), "paused");
    assert_eq!(world.ok(&["unpause", "web"]), "web");
    assert_eq!(world.ok(&["rename", "web", "site"]), "");
    assert_eq!(world.layerfs(&["rm", "site"]).code, 1, "a running container was removed");
    assert!(world.ok(&["top", "site"]).contains("sleep 1000"));
    // Process 1 without a handler is not stopped by asking.
    assert_eq!(world.ok(&["stop", "-t", "0", "site"]), "site");
    assert_eq!(world.inspect("site", "{{.State.Status}} {{.State.ExitCode}}"), "exited 137");
    assert_eq!(world.ok(&["start", "site"]), "site");
    assert_eq!(world.ok(&["restart", "-t", "0", "site"]), "site");
    assert_eq!(world.inspect("site", "{{.State.Running}}"), "true");
    assert_eq!(world.ok(&["kill", "site"]), "site");
    assert_eq!(world.ok(&["wait", "site"]), "137");
    assert_eq!(world.ok(&["rm", "site"]), "site");
    assert_eq!(world.layerfs(&["inspect", "site"]).code, 1);
    assert_eq!(world.layerfs(&["rm", "site"]).stderr, "layerfs: No such container: site\n");
}

#[test]
fn the_image_says_how_it_runs() {
    let Some(world) = World::new() else { return };
    assert_eq!(world.ok(&["run", "--rm", "box"]), "from the image");
    let text = "echo $COLOUR $PATH $HOME; pwd; id -u; cat /srv/volume/file; hostname";
    let run = |options: &[&str]| {
        let mut arguments = vec!["run", "--rm"];
        arguments.extend(options);
        arguments.extend(["box", "sh", "-c", text]);
        world.ok(&arguments)
    };
    assert_eq!(
        run(&["--hostname", "h"]).lines().collect::<Vec<_>>(),
        ["red /bin /root", "/data", "0", "from the imageh"]
    );
    assert_eq!(
        run(&["-e", "COLOUR=blue", "-w", "/made", "-u", "me", "-h", "x"]).lines().collect::<Vec<_>>(),
        ["blue /bin /home/me", "/made", "1000", "from the imagex"]
    );
    // A new entrypoint leaves nothing of the image's command.
    assert_eq!(world.ok(&["run", "--rm", "--entrypoint", "pwd", "box"]), "/data");
    // Changes of a volume, and of the root, are the container's own.
    world.ok(&["run", "--name", "one", "box", "sh", "-c", "echo new > /srv/volume/file; echo x > /data/x"]);
    assert_eq!(world.ok(&["run", "--rm", "box", "cat", "/srv/volume/file"]), "from the image");
    let changes = world.ok(&["diff", "one"]);
    assert!(changes.lines().any(|line| line == "A /data/x"), "{changes}");
    assert_eq!(world.ok(&["run", "--rm", "box", "ls", "/data"]), "");
}

#[test]
fn exit_codes_are_dockers() {
    let Some(world) = World::new() else { return };
    for (arguments, code) in [
        (&["run", "--rm", "box", "sh", "-c", "exit 7"][..], 7),
        (&["run", "--rm", "box", "sh", "-c", "kill -9 $$"][..], 0),
        (&["run", "--rm", "box", "no-such-command"][..], 127),
        (&["run", "--rm", "box", "/etc/passwd"][..], 126),
        (&["run", "--rm", "--no-such-option", "box"][..], 125),
        (&["run", "--rm", "--pull", "never", "no-such-image"][..], 125),
        (&["run", "--rm", "--network", "magic", "box"][..], 125),
        (&["run", "--gpus", "all", "box"][..], 125),
        (&["run", "-p", "80:80", "box"][..], 125),
    ] {
        let output = world.layerfs(arguments);
        // Process 1 cannot kill itself.
        assert_eq!(output.code, code, "{arguments:?}: {output:?}");
        assert_eq!(output.stderr.is_empty(), code == 7 || code == 0, "{arguments:?}: {output:?}");
    }
    assert_eq!(world.containers().len(), 0, "a run with --rm, or a refused one, left something");
    world.ok(&["run", "-d", "--name", "c", "box", "sleep", "1000"]);
    for (arguments, code) in [
        (&["exec", "c", "sh", "-c", "exit 9"][..], 9),
        (&["exec", "c", "no-such-command"][..], 127),
        (&["exec", "c", "/etc/passwd"][..], 126),
        (&["exec", "nobody", "true"][..], 1),
        (&["start", "nobody"][..], 1),
        (&["attach", "nobody"][..], 1),
        (&["stop", "nobody"][..], 1),
    ] {
        let output = world.layerfs(arguments);
        assert_eq!(output.code, code, "{arguments:?}: {output:?}");
    }
}

#[test]
fn names_are_unique_and_given_up_with_their_container() {
    let Some(world) = World::new() else { return };
    world.ok(&["create", "--name", "one", "box"]);
    let output = world.layerfs(&["create", "--name", "one", "box"]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("is already in use by container"), "{}", output.stderr);
    assert_eq!(world.layerfs(&["create", "--name", "-x", "box"]).code, 125);
    assert_eq!(world.layerfs(&["create", "--name", "a/b", "box"]).code, 1);
    world.ok(&["rm", "one"]);
    world.ok(&["create", "--name", "one", "box"]);
    let made_up = world.ok(&["create", "box"]);
    let name = world.inspect(&made_up, "{{.Name}}");
    assert!(name.starts_with('/') && name.contains('_'), "{name}");
    assert_eq!(
        world.ok(&["ps", "-a", "--filter", "name=^one$", "--format", "{{.Names}} {{.Status}}"]),
        "one Created"
    );
    assert!(world.ok(&["container", "prune", "-f"]).starts_with("Deleted Containers:\n"));
    assert_eq!(world.ok(&["container", "ls", "-aq"]), "");
}

#[test]
fn an_image_in_use_stays_and_a_container_becomes_one() {
    let Some(world) = World::new() else { return };
    world.ok(&["run", "--name", "one", "box", "sh", "-c", "echo changed > /data/new"]);
    assert_eq!(world.layerfs(&["rmi", "box"]).code, 1, "the image of a container was removed");
    world.ok(&["commit", "one", "changed"]);
    assert_eq!(world.ok(&["run", "--rm", "changed", "cat", "/data/new"]), "changed");
    world.ok(&["rm", "one"]);
    world.ok(&["rmi", "changed"]);
}

#[test]
fn a_container_is_paused_while_it_becomes_an_image_and_goes_on() {
    let Some(world) = World::new() else { return };
    world.ok(&["run", "-d", "--name", "busy", "box", "sh", "-c", "while :; do echo x > /data/new; done"]);
    for pause in ["--pause", "--pause=false"] {
        world.ok(&["commit", pause, "busy", "live"]);
        assert_eq!(world.inspect("busy", "{{.State.Status}}"), "running", "{pause}");
    }
    world.ok(&["pause", "busy"]);
    world.ok(&["commit", "busy", "live"]);
    assert_eq!(world.inspect("busy", "{{.State.Status}}"), "paused", "it was so before");
    world.ok(&["rm", "-f", "busy"]);
    world.ok(&["rmi", "live"]);
}

#[test]
fn restart_policies_hold() {
    let Some(world) = World::new() else { return };
    let script = "echo started; exit 3";
    world.ok(&["run", "-d", "--name", "twice", "--restart", "on-failure:2", "box", "sh", "-c", script]);
    assert_eq!(world.ok(&["logs", "-f", "twice"]), "started\nstarted\nstarted");
    world.wait_until("twice", "{{.State.Status}}", "exited");
    assert_eq!(world.inspect("twice", "{{.State.ExitCode}} {{.RestartCount}}"), "3 2");
    // The policy does not bring back what somebody has stopped.
    world.ok(&["run", "-d", "--name", "always", "--restart", "always", "box", "sleep", "1000"]);
    let pid = world.inspect("always", "{{.State.Pid}}");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    world.wait_until("always", "{{.RestartCount}} {{.State.Status}}", "1 running");
    assert_ne!(world.inspect("always", "{{.State.Pid}}"), pid);
    world.ok(&["stop", "-t", "0", "always"]);
    assert_eq!(world.inspect("always", "{{.State.Status}}"), "exited");
    world.ok(&["update", "--restart", "no", "always"]);
    assert_eq!(world.inspect("always", "{{.HostConfig.RestartPolicy.Name}}"), "no");
    let output = world.layerfs(&["run", "--rm", "--restart", "always", "box"]);
    assert_eq!(output.code, 125, "{output:?}");
}

/// There is no process to be sent anything; that none comes again is what is wanted.
#[test]
fn regression_a_container_that_is_being_restarted_can_be_killed() {
    let Some(world) = World::new() else { return };
    world.ok(&["run", "-d", "--restart", "always", "--name", "c", "box", "false"]);
    // Each restart is awaited twice as long as the one before.
    world.wait_until("c", "{{gt .RestartCount 2}} {{.State.Restarting}}", "true true");
    let output = world.layerfs(&["exec", "c", "true"]);
    assert!(output.code == 1 && output.stderr.contains("is restarting, wait until"), "{output:?}");
    world.ok(&["kill", "c"]);
    world.wait_until("c", "{{.State.Status}} {{.State.Running}}", "exited false");
}
