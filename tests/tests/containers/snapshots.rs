//! Snapshots, going back to them, and forks.

use super::world::World;

fn content(world: &World, name: &str) -> String {
    world.ok(&["diff", "--patch", name])
}

#[test]
fn back_to_a_snapshot_and_on_from_one() {
    let Some(world) = World::new() else { return };
    world.ok(&[
        "run",
        "--name",
        "c",
        "box",
        "sh",
        "-c",
        "echo 1 > /data/f; chmod 600 /etc/passwd; rm -f /srv/plain; mv /srv/d /srv/moved; true",
    ]);
    let first = content(&world, "c");
    assert_eq!(world.ok(&["snapshot", "-m", "the first", "c"]), "1");
    world.ok(&["start", "-a", "c"]);
    world.ok(&["snapshot", "c", "later"]);
    assert_eq!(world.ok(&["snapshot", "ls", "-q", "c"]), "1\nlater");
    let row = world.ok(&["snapshot", "ls", "--format", "{{.Name}} {{.Message}}", "c"]);
    assert_eq!(row, "1 the first\nlater ");
    let output = world.layerfs(&["snapshot", "c", "later"]);
    assert!(output.code == 1 && output.stderr.contains("already"), "{output:?}");

    world.ok(&["run", "--name", "other", "box", "sh", "-c", "true"]);
    let output = world.layerfs(&["rollback", "other", "1"]);
    assert!(output.stderr.contains("no snapshot"), "{output:?}");
    world.ok(&["rollback", "c", "1"]);
    assert_eq!(content(&world, "c"), first);

    // A fork has all of it, and what it does is its own.
    world.ok(&["fork", "--name", "f", "c"]);
    assert_eq!(content(&world, "f"), first);
    world.ok(&["start", "-a", "f"]);
    assert_eq!(content(&world, "c"), first);
    world.ok(&["fork", "--name", "g", "--snapshot", "later", "c"]);
    world.ok(&["rm", "c"]);
    world.ok(&["start", "-a", "g"]);
    world.ok(&["rm", "g"]);
    assert_eq!(world.inspect("f", "{{.Name}}"), "/f");
}

#[test]
fn a_running_container_is_copied_as_it_is() {
    let Some(world) = World::new() else { return };
    let script = "echo first > /data/f; touch /data/ready; while :; do echo more >> /data/log; done";
    world.ok(&["run", "-d", "--name", "c", "--stop-timeout", "0", "-v", "/vol", "box", "sh", "-c", script]);
    while world.layerfs(&["exec", "c", "test", "-s", "/data/log"]).code != 0 {}
    world.ok(&["exec", "c", "sh", "-c", "echo kept > /vol/file"]);
    world.ok(&["snapshot", "c"]);
    assert_eq!(world.inspect("c", "{{.State.Status}}"), "running");
    world.ok(&["fork", "--name", "f", "c"]);
    world.ok(&["start", "f"]);
    assert_eq!(world.ok(&["exec", "f", "cat", "/vol/file", "/data/f"]), "kept\nfirst");
    let output = world.layerfs(&["rollback", "c", "1"]);
    assert!(output.code == 1 && output.stderr.contains("stop"), "{output:?}");
    world.ok(&["rollback", "--restart", "c", "1"]);
    assert_eq!(world.ok(&["exec", "c", "cat", "/data/f"]), "first");
    // Paused by its user it stays.
    world.ok(&["pause", "c"]);
    world.ok(&["snapshot", "c", "paused"]);
    assert_eq!(world.inspect("c", "{{.State.Status}}"), "paused");
    world.ok(&["snapshot", "rm", "c", "1", "paused"]);
    assert_eq!(world.ok(&["snapshot", "ls", "-q", "c"]), "");
}
