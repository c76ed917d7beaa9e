//! What a container is on stays, whatever is done to images.

use std::fs;

use super::world::World;

impl World {
    fn refused(&self, arguments: &[&str], words: &str) {
        let output = self.layerfs(arguments);
        assert!(output.code == 1 && output.stderr.contains(words), "{arguments:?}: {output:?}");
    }
}

/// Its content was collected, and what the container had written could not be had any more.
#[test]
fn regression_an_image_that_a_container_is_on_loses_its_names_and_nothing_else() {
    let Some(world) = World::new() else { return };
    let id = world.inspect("box", "{{.Id}}");
    let short = &id["sha256:".len()..][..12];
    world.ok(&["run", "--name", "st", "box", "sh", "-c", "echo precious >/p"]);
    let container = world.inspect("st", "{{.Id}}");
    let container = &container[..12];
    world.refused(
        &["rmi", "box"],
        &format!(
            "conflict: unable to remove repository reference \"box\" (must force) - container {container} is using its \
             referenced image {short}"
        ),
    );
    let stopped = format!("image is being used by stopped container {container}");
    world.refused(&["rmi", &id], &format!("conflict: unable to delete {short} (must be forced) - {stopped}"));
    assert_eq!(world.ok(&["rmi", "-f", "box"]), "Untagged: box:latest");
    world.refused(
        &["rmi", "-f", &id],
        &format!("conflict: unable to delete {short} (cannot be forced) - {stopped}"),
    );
    assert!(!world.ok(&["image", "prune", "-af"]).contains("deleted: "));
    assert_eq!(world.ok(&["images", "-qf", "dangling=true"]), short);

    let works = || {
        assert!(world.ok(&["diff", "st"]).contains("A /p"));
        world.ok(&["start", "-a", "st"]);
        let file = world.path().join("p");
        world.ok(&["cp", "st:/p", file.to_str().unwrap()]);
        assert_eq!(fs::read_to_string(file).unwrap(), "precious\n");
    };
    works();
    // A damaged blob is no reason to take away the layer that was unpacked from it.
    let layer = world.inspect(&id, "{{index .RootFS.Layers 0}}");
    let images = world.ok(&["store", "path"]);
    let blob = format!("{images}/blobs/sha256/{}", &layer["sha256:".len()..]);
    let mut bytes = fs::read(&blob).unwrap();
    bytes[100] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let repair = world.layerfs(&["store", "check", "--repair"]);
    assert!(repair.code == 1 && repair.stdout.contains("pull or load it again"), "{repair:?}");
    works();
    world.ok(&["commit", "-c", "HEALTHCHECK CMD true", "st", "kept:1"]);
    assert_eq!(world.inspect("kept:1", "{{json .Config.Healthcheck.Test}}"), r#"["CMD-SHELL","true"]"#);
    world.ok(&["rm", "st"]);
    assert!(world.ok(&["image", "prune", "-f"]).contains(&format!("deleted: {id}")));
    assert_eq!(world.ok(&["run", "--rm", "kept:1", "cat", "/p"]), "precious");
}

#[test]
fn regression_the_last_name_of_a_running_containers_image_can_be_forced_away() {
    let Some(world) = World::new() else { return };
    let id = world.inspect("box", "{{.Id}}");
    world.ok(&["tag", "box", "t:1"]);
    world.ok(&["run", "-d", "--name", "up", "box", "sleep", "1000"]);
    // Another name is left.
    assert_eq!(world.ok(&["rmi", "box"]), "Untagged: box:latest");
    world.refused(&["rmi", "t:1"], "(must force)");
    let running = "(cannot be forced) - image is being used by running container";
    world.refused(&["rmi", "-f", &id], running);
    assert_eq!(world.ok(&["rmi", "-f", "t:1"]), "Untagged: t:1");
    world.refused(&["rmi", "-f", &id], running);
    assert_eq!(world.ok(&["exec", "up", "echo", "still"]), "still");
    world.ok(&["rm", "-f", "up"]);
    assert!(world.ok(&["rmi", &id]).starts_with(&format!("Deleted: {id}")));
}
