//! What a container changed: listed, shown as a patch, committed.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::world::World;

const SCRIPT: &str = "cd /data
echo new > added; : > empty; mkdir -p deep/er; echo x > deep/er/file
echo 'me:x:7:7::/:/bin/sh' >> /etc/passwd; chmod 600 /etc/group; rm /srv/plain
echo one > 'a name'; ln -s added link; printf 'no end' > unended; head -c 100 /dev/zero > binary
chmod 755 added; touch -d 2001-01-01 /root; mkdir /root/gone; rm -r /root/gone";

fn changed(world: &World) {
    world.ok(&[
        "run",
        "--name",
        "c",
        "-v",
        "/mounted/here",
        "--tmpfs",
        "/srv/tmp",
        "box",
        "sh",
        "-c",
        SCRIPT,
    ]);
}

#[test]
fn diff_lists_what_programs_did_and_not_what_was_made_to_mount_on() {
    let Some(world) = World::new() else { return };
    changed(&world);
    let expected = "C /data
A /data/a name
A /data/added
A /data/binary
A /data/deep
A /data/deep/er
A /data/deep/er/file
A /data/empty
A /data/link
A /data/unended
C /etc
C /etc/group
C /etc/passwd
C /root
C /srv
D /srv/plain";
    assert_eq!(world.ok(&["diff", "c"]), expected);
    assert_eq!(world.ok(&["diff", "c", "/etc", "data/deep"]).lines().count(), 6);
    let json = world.ok(&["diff", "--format", "json", "c", "/srv/plain"]);
    assert_eq!(json, r#"{"Kind":2,"Path":"/srv/plain","Type":"D"}"#);
    let output = world.layerfs(&["diff", "c", "/bin"]);
    assert!(output.code == 1 && output.stderr.contains("nothing was changed at /bin"), "{output:?}");
    // While it runs too.
    world.ok(&[
        "run",
        "-d",
        "--name",
        "r",
        "box",
        "sh",
        "-c",
        "echo x > /data/x; touch /data/done; sleep 1000",
    ]);
    while world.layerfs(&["exec", "r", "test", "-e", "/data/done"]).code != 0 {}
    assert_eq!(world.ok(&["diff", "r"]), "C /data\nA /data/done\nA /data/x");
}

#[test]
fn a_committed_image_has_no_mount_points_of_ours() {
    let Some(world) = World::new() else { return };
    changed(&world);
    world.ok(&["commit", "c", "again"]);
    let archive = world.path().join("again.tar");
    world.ok(&["create", "--name", "n", "again"]);
    world.ok(&["export", "-o", archive.to_str().unwrap(), "n"]);
    let listed = Command::new("tar").arg("-tf").arg(&archive).output().unwrap().stdout;
    let listed = String::from_utf8(listed).unwrap();
    let has = |name: &str| listed.lines().any(|line| line.trim_end_matches('/') == name);
    for name in ["proc", "sys", "dev", "etc/hosts", "etc/hostname", "etc/resolv.conf", "mounted", "srv/tmp"] {
        assert!(!has(name), "{name} is in the image");
    }
    assert!(has("data/deep/er/file") && has("data/empty") && !has("srv/plain"));
}

/// The patch makes of the image's files the container's.
#[test]
fn a_patch_can_be_applied_by_patch_and_by_git() {
    let Some(world) = World::new() else { return };
    changed(&world);
    let patch = world.ok(&["diff", "--patch", "c"]) + "\n";
    assert!(patch.contains("# /etc/group: mode 0644 -> 0600\n"), "{patch}");
    assert!(patch.contains("# Binary files /dev/null and b/data/binary differ\n"), "{patch}");
    assert!(patch.contains("\\ No newline at end of file\n"), "{patch}");
    let file = world.path().join("changes.patch");
    fs::write(&file, &patch).unwrap();
    let programs: [(&str, &[&str]); 2] =
        [("patch", &["-p1", "-s", "-i"]), ("git", &["apply", "--whitespace=nowarn"])];
    for (program, arguments) in programs {
        let tree = world.path().join(format!("by-{program}"));
        let copied =
            Command::new("cp").arg("-a").arg(world.path().join("rootfs")).arg(&tree).status().unwrap();
        assert!(copied.success());
        let applied = Command::new(program).args(arguments).arg(&file).current_dir(&tree).output();
        let Ok(applied) = applied else {
            layerfs_tests::privilege::skip(&format!("no {program} is installed"));
            continue;
        };
        assert!(applied.status.success(), "{program}: {applied:?}\n{patch}");
        let read = |path: &str| fs::read_to_string(tree.join(path)).unwrap();
        assert!(read("etc/passwd").ends_with("me:x:7:7::/:/bin/sh\n"));
        assert_eq!((read("data/added"), read("data/unended")), ("new\n".into(), "no end".into()));
        assert_eq!(read("data/a name"), "one\n");
        assert_eq!(fs::read_link(tree.join("data/link")).unwrap(), Path::new("added"));
        assert!(!tree.join("srv/plain").exists());
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(tree.join("data/added")).unwrap().permissions().mode() & 0o111, 0o111);
    }
}
