//! Commands that need no registry.

use std::fs;

use serde_json::{Value, json};

use layerfs_tests::privilege::require_root_and_fuse;

use crate::world::{World, table, text};

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn lists_have_dockers_columns_filters_and_formats() {
    let Some(world) = World::new() else { return };
    let first = world.import("example.com/a/first:1", "one", &["-c", "LABEL kind=old", "-m", "made by hand"]);
    let second = world.import("second", "two", &["-c", "CMD [\"sh\"]", "-c", "ENV A=1"]);
    assert!(first.starts_with("sha256:") && first != second);

    let listed = world.run(&["images"]).ok();
    let rows = table(&listed);
    assert_eq!(rows[0], ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]);
    assert_eq!(rows.len(), 3, "{listed}");
    let row = rows.iter().find(|row| row[0] == "second").unwrap();
    assert_eq!((row[1], row[2], row[4]), ("latest", &second[7..19], "3B"));
    assert_eq!(table(&world.run(&["images", "--digests"]).ok())[0][2], "DIGEST");
    assert_eq!(world.run(&["images", "-q", "--no-trunc", "second"]).ok(), format!("{second}\n"));
    assert_eq!(world.run(&["images", "none"]).ok().lines().count(), 1);
    let line = json_of(&world.run(&["images", "--format", "json", "second"]).ok());
    assert_eq!((&line["Repository"], &line["Tag"]), (&json!("second"), &json!("latest")));
    let made = world.run(&["images", "--format", "table {{.ID}}\t{{.Repository}}", "second"]).ok();
    assert_eq!(table(&made), [vec!["IMAGE ID", "REPOSITORY"], vec![&second[7..19], "second"]]);

    // Each filter, by the names it leaves.
    world.run(&["tag", "second", "gone:x"]).ok();
    for (filter, left) in [
        ("label=kind", "example.com/a/first"),
        ("label=kind=old", "example.com/a/first"),
        ("label=kind=new", ""),
        ("reference=sec*", "second"),
        ("reference=*:1", ""),
        ("reference=example.com/*/first", "example.com/a/first"),
        ("dangling=true", ""),
        ("before=example.com/a/first:1", ""),
        ("until=24h", ""),
    ] {
        let found = world.run(&["images", "--filter", filter, "--format", "{{.Repository}}"]).ok();
        assert_eq!(found.trim(), left, "{filter}");
    }
    for bad in ["nonsense=1", "dangling", "dangling=maybe", "until=soon"] {
        world.run(&["images", "-f", bad]).refused();
    }
    assert!(world.run(&["images", "-f", "since=absent"]).refused().contains("No such image: absent"));
    // Bytes that two images have are shared, others unique.
    let line = json_of(&world.run(&["images", "--format", "json", "gone"]).ok());
    assert_eq!((&line["SharedSize"], &line["UniqueSize"]), (&json!("0B"), &json!("3B")));

    let history = world.run(&["history", "example.com/a/first:1"]).ok();
    let rows = table(&history);
    assert_eq!(rows[0], ["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"]);
    assert_eq!((rows[1][0], *rows[1].last().unwrap()), (&first[7..19], "made by hand"));
    let whole =
        world.run(&["history", "--no-trunc", "--format", "{{.ID}} {{.Comment}}", "example.com/a/first:1"]);
    assert_eq!(whole.ok(), format!("{first} made by hand\n"));
    assert_eq!(world.run(&["history", "-q", "second"]).ok(), format!("{}\n", &second[7..19]));
}

#[test]
fn inspect_shows_dockers_document() {
    let Some(world) = World::new() else { return };
    let id = world.import("some/image:2", "x", &["-c", "CMD [\"sh\"]", "-c", "ENV A=1", "-c", "LABEL b=c"]);
    let document = json_of(&world.run(&["inspect", "some/image:2"]).ok());
    let image = &document[0];
    assert_eq!(image["Id"], *id);
    assert_eq!(image["RepoTags"], json!(["some/image:2"]));
    assert_eq!((&image["Os"], &image["RootFS"]["Type"]), (&json!("linux"), &json!("layers")));
    assert_eq!(image["Config"]["Env"], json!(["A=1"]));
    for key in ["RepoDigests", "Created", "Architecture", "Size", "GraphDriver", "Metadata"] {
        assert!(!image[key].is_null(), "{key} in {image}");
    }
    let line = |format: &str| world.run(&["inspect", "-f", format, &id[7..15]]).ok();
    assert_eq!(line("{{.Id}}"), format!("{id}\n"));
    assert_eq!(line("{{json .Config.Cmd}} {{index .Config.Labels \"b\"}}"), "[\"sh\"] c\n");
    assert_eq!(line("{{range .Config.Env}}<{{.}}>{{end}}"), "<A=1>\n");
    // What is there is shown, what is not is told.
    let both = world.run(&["inspect", "some/image:2", "absent"]);
    assert_eq!(both.code, 1);
    assert!(both.stdout.contains(&id) && both.stderr.contains("No such object: absent"), "{both:?}");
}

#[test]
fn names_come_and_go() {
    let Some(world) = World::new() else { return };
    let id = world.import("one", "x", &[]);
    world.run(&["tag", "one", "two:a", "three"]).ok();
    assert_eq!(world.names(), ["one:latest", "three:latest", "two:a"]);
    world.run(&["image", "untag", "one", "two:a"]).ok();
    assert!(world.run(&["image", "untag", "one", "two:a"]).refused().contains("tag not known"));
    world.run(&["image", "exists", "three"]).ok();
    assert_eq!(world.run(&["image", "exists", "two:a"]).code, 1);
    assert_eq!(world.run(&["image", "exists", "two:a"]).stderr, "");
    // By its id an image goes only whole.
    let refusal = world.run(&["rmi", &id[7..19]]).refused();
    assert!(
        refusal.contains("referenced in multiple repositories") && refusal.contains("hint:"),
        "{refusal}"
    );
    assert_eq!(world.run(&["rmi", "three"]).ok(), "Untagged: three:latest\n");
    let gone = world.run(&["rmi", "one"]).ok();
    let lines: Vec<&str> = gone.lines().collect();
    assert_eq!(lines[..2], ["Untagged: one:latest", &format!("Deleted: {id}")]);
    assert!(lines[2].starts_with("Deleted: sha256:"), "{gone}");
    assert!(world.run(&["rmi", "one"]).refused().contains("No such image: one"));
    world.run(&["rmi", "-f", "one"]).ok();
    assert!(world.run(&["tag", "absent", "x"]).refused().contains("No such image: absent"));
    assert!(world.run(&["tag", "one", "a/UPPER"]).refused().contains("a/UPPER"));
}

#[test]
fn prune_asks_and_spares_what_is_used() {
    let Some(world) = World::new() else { return };
    let kept = world.import("kept", "kept", &["-c", "LABEL keep=yes"]);
    let used = world.import("used", "used", &[]);
    let free = world.import("free", "free", &[]);
    let nameless = world.import("nameless", "nameless", &[]);
    world.run(&["image", "untag", "nameless"]).ok();
    let container = world.path("root/containers").join("c".repeat(64));
    fs::create_dir_all(container.join("upper")).unwrap();
    let state = json!({ "status": "stopped", "image": used, "rootfs": "", "args": ["sh", "-c", "x"] });
    fs::write(container.join("state.json"), state.to_string()).unwrap();

    let silent = world.run(&["image", "prune"]);
    assert!(silent.code == 1 && silent.stderr.contains("--force"), "{silent:?}");
    let asked = world.run_with(&["image", "prune"], "n\n");
    assert!(asked.code == 0 && asked.stderr.contains("remove all dangling images"), "{asked:?}");
    assert_eq!(world.names().len(), 4);
    let pruned = world.run_with(&["image", "prune"], "y\n").ok();
    assert!(
        pruned.starts_with("Deleted Images:\n") && pruned.contains(&format!("deleted: {nameless}")),
        "{pruned}"
    );
    assert!(pruned.lines().last().unwrap().starts_with("Total reclaimed space: "), "{pruned}");
    assert_eq!(world.run(&["image", "prune", "-f"]).ok(), "Total reclaimed space: 0B\n");

    let usage = table(&world.run(&["system", "df"]).ok()).concat().join("|");
    assert!(
        usage.starts_with("TYPE|TOTAL|ACTIVE|SIZE|RECLAIMABLE|Images|3|1|12B|8B (66%)|Containers|1|0|"),
        "{usage}"
    );
    let verbose = world.run(&["system", "df", "-v"]).ok();
    assert!(verbose.starts_with("Images space usage:\n\nREPOSITORY"), "{verbose}");
    let row = verbose.lines().find(|line| line.starts_with("used ")).unwrap();
    assert!(row.ends_with('1') && verbose.contains("\nCONTAINER ID"), "{verbose}");
    let document = json_of(&world.run(&["system", "df", "-v", "--format", "json"]).ok());
    assert_eq!(document["Containers"][0]["Command"], "sh -c x");

    let pruned = world.run(&["image", "prune", "-a", "-f", "--filter", "label!=keep"]).ok();
    assert!(pruned.contains("untagged: free:latest") && pruned.contains(&free), "{pruned}");
    assert!(!pruned.contains(&kept) && !pruned.contains(&used), "{pruned}");
    assert_eq!(world.names(), ["kept:latest", "used:latest"]);
    world.run(&["image", "prune", "-a", "-f", "--filter", "until=1h"]).ok();
    assert_eq!(world.names(), ["kept:latest", "used:latest"]);
    // A container that is stopped holds its image against rmi too.
    assert!(
        world
            .run(&["rmi", "used"])
            .refused()
            .contains("container cccccccccccc is using its referenced image")
    );
    let warned = world.run_with(&["system", "prune", "-a"], "y\n");
    assert!(warned.stderr.contains("all images without at least one container"), "{warned:?}");
    assert_eq!(world.names(), ["used:latest"]);
    assert!(world.run(&["store", "check"]).ok().contains("all is well"));
}

#[test]
fn info_and_version_are_dockers_documents() {
    let Some(world) = World::new() else { return };
    world.import("one", "x", &[]);
    assert_eq!(world.run(&["info", "-f", "{{.Images}} {{.Driver}} {{.OSType}}"]).ok(), "1 layerfs linux\n");
    let document = json_of(&world.run(&["info", "-f", "json"]).ok());
    for key in ["Containers", "NCPU", "MemTotal", "KernelVersion", "DockerRootDir", "CgroupVersion", "Name"] {
        assert!(!document[key].is_null(), "{key}");
    }
    assert!(world.run(&["info"]).ok().contains("\nImages: 1\n"));
    world.run(&["info", "-f", "{{.NoSuchField}}"]).refused();
    let version = world.run(&["version"]).ok();
    let number = version.trim().strip_prefix("layerfs ").unwrap();
    let both =
        world.run(&["version", "--format", "{{.Client.Version}} {{.Server.Version}} {{.Server.Os}}"]).ok();
    assert_eq!(both, format!("{number} {number} linux\n"));
    assert_eq!(json_of(&world.run(&["version", "-f", "json"]).ok())["Client"]["Version"], number);
}

#[test]
fn an_image_is_mounted_to_be_read_or_changed() {
    let Some(world) = World::new() else { return };
    if !require_root_and_fuse() {
        return;
    }
    let id = world.import("mounted", "content", &[]);
    let target = world.path("mnt");
    fs::create_dir(&target).unwrap();
    let target = text(&target);
    world.run(&["mount", "mounted", target]).ok();
    assert_eq!(fs::read_to_string(format!("{target}/etc/content")).unwrap(), "content");
    assert_eq!(fs::write(format!("{target}/new"), "").unwrap_err().raw_os_error(), Some(30));
    world.run(&["umount", target]).ok();

    let told = world.run(&["mount", "--rw", &id[7..19], target]);
    assert!(told.code == 0 && told.stderr.contains("changes go to "), "{told:?}");
    fs::write(format!("{target}/etc/content"), "changed").unwrap();
    world.run(&["umount", target]).ok();
    let upper = told.stderr.trim().rsplit(' ').next().unwrap();
    assert_eq!(fs::read_to_string(format!("{upper}/etc/content")).unwrap(), "changed");
    world.run(&["mount", "mounted", target]).ok();
    assert_eq!(fs::read_to_string(format!("{target}/etc/content")).unwrap(), "content");
    world.run(&["umount", target]).ok();
    assert_eq!(world.run(&["mount", "absent", target]).code, 32);
}
