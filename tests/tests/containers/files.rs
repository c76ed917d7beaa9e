//! Volumes, images as mounts, and `cp`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::{Command, Stdio};

use super::world::World;

#[test]
fn volumes_with_and_without_a_name() {
    let Some(world) = World::new() else { return };
    let volumes = || world.ok(&["volume", "ls", "-q"]);
    // A new volume has what the image has in its place, once.
    assert_eq!(
        world.ok(&["run", "--rm", "-v", "data:/srv/volume", "box", "cat", "/srv/volume/file"]),
        "from the image"
    );
    world.ok(&["run", "--rm", "-v", "data:/srv/volume", "box", "rm", "/srv/volume/file"]);
    assert_eq!(world.ok(&["run", "--rm", "-v", "data:/srv/volume", "box", "ls", "/srv/volume"]), "");
    assert_eq!(world.ok(&["run", "--rm", "-v", "empty:/srv/volume:nocopy", "box", "ls", "/srv/volume"]), "");
    // The image's own volume went with --rm; those with names stay.
    assert_eq!(volumes(), "data\nempty");
    world.ok(&["run", "--name", "one", "box", "sh", "-c", "echo mine > /srv/volume/own"]);
    let own = volumes().lines().find(|name| name.len() == 64).expect("no volume without a name").to_owned();
    assert_eq!(
        world.inspect("one", "{{(index .Mounts 0).Name}} {{(index .Mounts 0).Type}}"),
        format!("{own} volume")
    );
    assert_eq!(
        world.ok(&["run", "--rm", "--volumes-from", "one:ro", "box", "cat", "/srv/volume/own"]),
        "mine"
    );
    let refused =
        world.layerfs(&["run", "--rm", "--volumes-from", "one:ro", "box", "touch", "/srv/volume/x"]);
    assert!(refused.code != 0 && refused.stderr.contains("Read-only"), "{refused:?}");
    let refused = world.layerfs(&["volume", "rm", &own]);
    assert!(refused.code == 1 && refused.stderr.contains("volume is in use"), "{refused:?}");
    // As docker: rm leaves it, rm -v does not.
    world.ok(&["rm", "one"]);
    assert!(volumes().contains(&own));
    world.ok(&["volume", "prune", "-f"]);
    assert_eq!(volumes(), "data\nempty");
    world.ok(&["create", "--name", "two", "box"]);
    world.ok(&["rm", "-v", "two"]);
    assert_eq!(volumes(), "data\nempty");
    // A part of one, and through no symlink.
    world.ok(&[
        "run",
        "--rm",
        "-v",
        "data:/d",
        "box",
        "sh",
        "-c",
        "mkdir -p /d/part; touch /d/part/in; busybox ln -s / /d/out",
    ]);
    let mount = |subpath: &str| format!("type=volume,src=data,dst=/p,volume-subpath={subpath}");
    assert_eq!(world.ok(&["run", "--rm", "--mount", &mount("part"), "box", "ls", "/p"]), "in");
    assert_eq!(world.layerfs(&["run", "--rm", "--mount", &mount("out"), "box", "ls", "/p"]).code, 125);
    assert_eq!(
        world.ok(&[
            "run",
            "--rm",
            "--mount",
            "type=image,src=box,dst=/i,image-subpath=srv/volume",
            "box",
            "ls",
            "/i"
        ]),
        "file"
    );
    let refused =
        world.layerfs(&["run", "--rm", "--mount", "type=image,src=box,dst=/i", "box", "touch", "/i/x"]);
    assert!(refused.code != 0 && refused.stderr.contains("Read-only"), "{refused:?}");
    assert_eq!(world.layerfs(&["create", "--mount", "type=image,src=nosuch,dst=/i", "box"]).code, 1);
    // What failed has left no volume.
    assert_eq!(volumes(), "data\nempty");
}

#[test]
fn files_are_copied_both_ways() {
    let Some(world) = World::new() else { return };
    let here = world.path().join("here");
    let at = |name: &str| here.join(name);
    fs::create_dir_all(at("dir/sub")).unwrap();
    fs::write(at("dir/sub/file"), "content").unwrap();
    fs::set_permissions(at("dir/sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(at("dir/sub/file"), at("dir/again")).unwrap();
    symlink("/etc/hostname", at("dir/link")).unwrap();
    let sparse = fs::File::create(at("dir/sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    std::os::unix::fs::chown(at("dir/sub/file"), Some(1000), Some(100)).unwrap();
    world.ok(&["create", "--name", "c", "-v", "data:/data", "box", "sleep", "1000"]);
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    for state in ["created", "running"] {
        if state == "running" {
            world.ok(&["start", "c"]);
        }
        let target = |path: &str| format!("c:{path}/{state}");
        // To a new name, into a directory, and its content only.
        world.ok(&["cp", &text(&at("dir")), &target("/root")]);
        world.ok(&["cp", &text(&at("dir")), "c:/root"]);
        world.ok(&["cp", &format!("{}/.", text(&at("dir/sub"))), "c:/root"]);
        world.ok(&["cp", &text(&at("dir/sub/file")), "c:/data/in-the-volume"]);
        world.ok(&["cp", "-a", &text(&at("dir/sub/file")), "c:root/owned"]);
        let back = at(&format!("back-{state}"));
        world.ok(&["cp", &target("/root"), &text(&back)]);
        assert_eq!(fs::read_to_string(back.join("sub/file")).unwrap(), "content");
        let metadata = fs::metadata(back.join("sub/file")).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.nlink()), (0o640, 0, 2));
        assert_eq!(metadata.mtime(), fs::metadata(at("dir/sub/file")).unwrap().mtime());
        assert_eq!(fs::read_link(back.join("link")).unwrap().to_str(), Some("/etc/hostname"));
        let sparse = fs::metadata(back.join("sparse")).unwrap();
        assert!(sparse.len() == 8 << 20 && sparse.blocks() < 1000, "{}", sparse.blocks());
        world.ok(&["cp", "-a", "c:/root/owned", &text(&at("owned"))]);
        assert_eq!(fs::metadata(at("owned")).unwrap().uid(), 1000);
        // A link of the container leads into the container only; -L follows it.
        world.ok(&["cp", "c:/root/dir/link", &text(&at("as-link"))]);
        assert!(fs::symlink_metadata(at("as-link")).unwrap().is_symlink());
        fs::remove_file(at("as-link")).unwrap();
        if state == "running" {
            world.ok(&["cp", "-L", "c:/root/dir/link", &text(&at("followed"))]);
            assert_eq!(
                fs::read_to_string(at("followed")).unwrap().trim(),
                world.inspect("c", "{{.Config.Hostname}}")
            );
        }
        for (source, target, words) in [
            ("c:/nosuch".to_owned(), text(&here), "Could not find the file /nosuch"),
            (text(&at("dir")), "c:/root/owned".to_owned(), "cannot copy directory"),
            (text(&at("dir/sub/file")), "c:/nosuch/".to_owned(), "no such directory"),
            (text(&at("dir/sub/file")), text(&here), "at least one container"),
            (text(&at("dir/sub/file")), "nosuch:/".to_owned(), "No such container"),
        ] {
            let output = world.layerfs(&["cp", &source, &target]);
            assert!(output.code == 1 && output.stderr.contains(words), "{source} {target}: {output:?}");
        }
        // Archives.
        let mut tar = Command::new("tar")
            .arg("-C")
            .arg(&here)
            .args(["-c", "dir"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let piped = tar.stdout.take().unwrap();
        if state == "running" {
            world.ok(&["exec", "c", "mkdir", "-p", "/root/tar"]);
        }
        let into = if state == "running" { "c:/root/tar" } else { "c:/root" };
        assert!(world.command(&["cp", "-", into]).stdin(piped).status().unwrap().success());
        tar.wait().unwrap();
        let out = world.command(&["cp", &format!("{into}/dir"), "-"]).output().unwrap();
        assert!(out.status.success());
        assert!(out.stdout.windows(12).any(|window| window == b"dir/sub/file"), "no archive");
    }
    assert_eq!(world.ok(&["exec", "c", "cat", "/data/in-the-volume"]), "content");
    let all = world.ok(&["exec", "c", "ls", "/root"]);
    assert_eq!(all.lines().collect::<Vec<_>>(), ["created", "dir", "file", "owned", "running", "tar"]);
    world.ok(&["rm", "-f", "c"]);
}

/// Both ends are one mount then, and its lock was waited for twice.
#[test]
fn regression_files_are_copied_within_a_container_and_between_two() {
    let Some(world) = World::new() else { return };
    for name in ["one", "two"] {
        world.ok(&["create", "--name", name, "box", "sleep", "1000"]);
    }
    world.ok(&["cp", "one:/srv/plain", "one:/data/copied"]);
    world.ok(&["cp", "one:/data/copied", "two:/data"]);
    world.ok(&["cp", "two:/data/copied", "one:/data/back"]);
    for name in ["one", "two"] {
        world.ok(&["start", name]);
        world.ok(&["cp", &format!("{name}:/srv/d"), &format!("{name}:/data")]);
    }
    assert_eq!(
        world.ok(&["exec", "one", "cat", "/data/copied", "/data/back", "/data/d/e/f"]),
        "plain\nplain\nin a directory"
    );
    assert_eq!(world.ok(&["exec", "two", "cat", "/data/copied", "/data/d/e/f"]), "plain\nin a directory");
}
