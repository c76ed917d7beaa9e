//! Health checks and events.

use super::world::World;

#[test]
fn health_follows_the_checks() {
    let Some(world) = World::new() else { return };
    world.ok(&[
        "run",
        "-d",
        "--name",
        "c",
        "--health-cmd",
        "echo checked; test -e /data/ok",
        "--health-interval",
        "50ms",
        "--health-retries",
        "2",
        "box",
        "sleep",
        "1000",
    ]);
    assert!(world.inspect("c", "{{.Config.Healthcheck.Test}}").contains("CMD-SHELL"));
    world.wait_until("c", "{{.State.Health.Status}}", "unhealthy");
    assert_eq!(world.ok(&["ps", "-q", "--filter", "health=unhealthy"]).lines().count(), 1);
    assert!(world.ok(&["ps", "--format", "{{.Status}}"]).ends_with("(unhealthy)"));
    world.ok(&["exec", "c", "touch", "/data/ok"]);
    world.wait_until("c", "{{.State.Health.Status}}", "healthy");
    assert_eq!(world.inspect("c", "{{.State.Health.FailingStreak}}"), "0");
    assert!(world.inspect("c", "{{json .State.Health.Log}}").contains("checked"));
    // Neither the log nor the program knows of the checks.
    assert_eq!(world.ok(&["logs", "c"]), "");
    world.ok(&["rm", "-f", "c"]);
    // One that takes too long is ended.
    world.ok(&[
        "run",
        "-d",
        "--name",
        "c",
        "--health-cmd",
        "sleep 1000",
        "--health-interval",
        "50ms",
        "--health-timeout",
        "100ms",
        "--health-retries",
        "1",
        "box",
        "sleep",
        "1000",
    ]);
    world.wait_until("c", "{{.State.Health.Status}}", "unhealthy");
    assert!(world.inspect("c", "{{json .State.Health.Log}}").contains("exceeded timeout"));
    world.ok(&["rm", "-f", "c"]);
    let happened = world.ok(&[
        "events",
        "--since",
        "1h",
        "--until",
        "0s",
        "--filter",
        "event=health_status",
        "--format",
        "{{.Action}}",
    ]);
    let happened: Vec<&str> = happened.lines().collect();
    assert_eq!(happened, ["health_status: unhealthy", "health_status: healthy", "health_status: unhealthy"]);
}

#[test]
fn what_happens_is_told() {
    let Some(world) = World::new() else { return };
    // Somebody listens from the beginning.
    let mut listener = world.running(&[
        "events",
        "--filter",
        "type=container",
        "--format",
        "{{.Action}} {{.Actor.Attributes.name}}",
    ]);
    let mut first = world.running(&["events", "--since", "1h"]);
    first.wait_for("image import");
    world.ok(&["create", "--name", "one", "--label", "role=db", "box", "sh", "-c", "exit 3"]);
    world.layerfs(&["start", "-a", "one"]);
    world.ok(&["rename", "one", "two"]);
    world.ok(&["rm", "two"]);
    world.ok(&["volume", "create", "vol"]);
    world.ok(&["volume", "rm", "vol"]);
    for expected in ["create one", "start one", "die one", "rename two", "destroy two"] {
        listener.wait_for(expected);
    }
    let select = |filter: &str, format: &str| {
        world.ok(&["events", "--since", "1h", "--until", "0s", "--filter", filter, "--format", format])
    };
    assert_eq!(select("event=die", "{{.Actor.Attributes.exitCode}}"), "3");
    assert_eq!(select("label=role=db", "{{.Action}}"), "create\nstart\ndie\nrename\ndestroy");
    assert_eq!(select("volume=vol", "{{.Action}}"), "create\ndestroy");
    assert!(
        select("type=container", "json")
            .lines()
            .all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok())
    );
    assert_ne!(world.layerfs(&["events", "--filter", "what=1"]).code, 0);
}

#[test]
fn what_is_done_in_and_with_containers_is_told() {
    let Some(world) = World::new() else { return };
    world.ok(&["run", "-d", "--name", "c", "-v", "vol:/v", "box", "sleep", "1000"]);
    assert_eq!(world.layerfs(&["exec", "c", "sh", "-c", "exit 7"]).code, 7);
    world.ok(&["cp", "c:/srv/plain", world.path().join("plain").to_str().unwrap()]);
    world.ok(&["commit", "c", "made"]);
    world.ok(&["export", "-o", world.path().join("c.tar").to_str().unwrap(), "c"]);
    world.ok(&["update", "--restart", "no", "c"]);
    world.ok(&["stop", "-t", "0", "c"]);
    world.ok(&["container", "prune", "-f"]);
    world.ok(&["image", "prune", "-f"]);
    world.ok(&["volume", "prune", "-af"]);
    let select = |filter: &str, format: &str| {
        world.ok(&["events", "--since", "1h", "--until", "0s", "--filter", filter, "--format", format])
    };
    let happened = select("container=c", "{{.Action}}");
    let happened: Vec<&str> = happened.lines().collect();
    // The end of a program is told by its monitor: before or after its client is.
    let (ends, happened): (Vec<&str>, Vec<&str>) =
        happened.into_iter().partition(|action| *action == "exec_die");
    assert_eq!(ends, ["exec_die"]);
    let expected = [
        "create",
        "start",
        "exec_create: sh -c exit 7",
        "exec_start: sh -c exit 7",
        "archive-path",
        "commit",
        "export",
        "update",
        "die",
        "stop",
        "destroy",
    ];
    let known: Vec<&str> = happened.into_iter().filter(|action| expected.contains(action)).collect();
    assert_eq!(known, expected);
    assert_eq!(select("event=exec_die", "{{.Actor.Attributes.exitCode}}"), "7");
    let ids = select("event=exec_create", "{{.Actor.Attributes.execID}}");
    assert!(ids.len() == 64 && select("event=exec_start", "{{.Actor.Attributes.execID}}") == ids, "{ids}");
    let pruned = select("event=prune", "{{.Type}}");
    assert_eq!(pruned.lines().collect::<Vec<_>>(), ["container", "image", "volume"]);
    assert_eq!(select("volume=vol", "{{.Action}}"), "create\nmount\nunmount\ndestroy");
}
