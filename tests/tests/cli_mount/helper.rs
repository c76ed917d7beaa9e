//! The program as a mount helper of others.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use rustix::mount::UnmountFlags;

use layerfs_tests::privilege::layerfs_binary;

use crate::world::*;

#[test]
fn the_names_by_which_it_is_a_mount_helper() {
    let Some(world) = World::new() else { return };
    let binary = layerfs_binary().unwrap();
    let call = |name: &str, line: &str| {
        let link = world.at(name);
        if !link.exists() {
            symlink(&binary, &link).unwrap();
        }
        let mut command = Command::new(&link);
        command.args(line.split_whitespace());
        world.run(command)
    };
    let table = [
        ("fuse-overlayfs", "-o lowerdir=top:base,upperdir=upper,workdir=work merged", "top"),
        ("fuse-overlayfs", "-o lowerdir=top:base merged", "top"),
        ("mount.fuse.layerfs", "source merged -o lowerdir=top:base", "top"),
        ("mount.layerfs", "source merged -n -s -v -o lowerdir=base -o ro -t fuse.layerfs", "covered by top"),
        ("mount.layerfs", "-r source merged -o lowerdir=base", "covered by top"),
    ];
    for (name, line, content) in table {
        call(name, line).succeeded().silent();
        assert_eq!(read(world.at("merged/one")), content, "{name} {line}");
        world.words("umount merged").succeeded();
    }
    // mount(8)'s -f is "fake", libfuse's is "foreground".
    call("mount.layerfs", "source merged -f -o lowerdir=base").succeeded();
    assert!(!world.is_mounted("merged"));
    call("mount.layerfs", "source merged -f -o lowerdir=base,io=warp").failed(1, &["io=warp"]);
    let version = call("fuse-overlayfs", "--version").succeeded().stdout();
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    // The source shows in the mount table.
    call("mount.layerfs", "my-source merged -o lowerdir=base").succeeded();
    assert!(table_has_source("my-source"), "{}", self::table());
    world.words("umount merged").succeeded();
}

fn table_has_source(source: &str) -> bool {
    table()
        .lines()
        .any(|line| line.split(" - ").nth(1).and_then(|rest| rest.split(' ').nth(1)) == Some(source))
}

#[test]
fn through_mount_8() {
    let Some(world) = World::new() else { return };
    if !["/sbin/mount.fuse3", "/usr/sbin/mount.fuse3"].iter().any(|p| Path::new(p).exists()) {
        return skip("mount.fuse3 is not installed");
    }
    // mount(8) drops PATH, and the shell of mount.fuse3 then has the system's own: in this mount namespace the
    // program lies there.
    let bin = world.dir("bin");
    fs::copy(layerfs_binary().unwrap(), bin.join("layerfs")).unwrap();
    rustix::mount::mount_bind(&bin, "/usr/local/bin").unwrap();
    let run = |line: &str| {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        world.run(command)
    };
    let merged = world.at("merged");
    let at = |name: &str| world.at(name).display().to_string();
    let layers = format!("lowerdir={}:{}", at("top"), at("base"));
    let writable = format!("{layers},upperdir={},workdir={}", at("upper"), at("work"));
    let target = merged.display();
    // By mount(8), and as containerd does for its mount type fuse3.layerfs.
    let calls = [
        format!("mount -t fuse.layerfs source {target} -o {writable},noatime"),
        format!("mount.fuse3 source {target} -o {writable},noatime -t layerfs"),
    ];
    for call in calls {
        run(&call).succeeded();
        assert_eq!(read(merged.join("one")), "top");
        let (fs_type, options) = mounted_at(&merged).unwrap();
        assert_eq!(fs_type, "fuse.layerfs");
        assert!(options.contains("noatime") && options.starts_with("rw"), "{options}");
        // A repeated call, as containerd makes it, changes nothing.
        run(&call).succeeded();
        assert_eq!(table().lines().filter(|l| l.split(' ').nth(4) == merged.to_str()).count(), 1);
        let process = pidfd(world.server("merged"));
        run(&format!("umount {target}")).succeeded();
        wait_for_end(&process);
    }
    // The flags of a mount that is there.
    run(&format!("mount -t fuse.layerfs source {target} -o {writable}")).succeeded();
    run(&format!("mount -o remount,ro,noexec {target}")).succeeded();
    let (_, options) = mounted_at(&merged).unwrap();
    assert!(options.starts_with("ro") && options.contains("noexec"), "{options}");
    world.words("umount merged").succeeded();
    // Its errors come through.
    run(&format!("mount -t fuse.layerfs source {target} -o lowerdir={}", at("nowhere")))
        .failed(32, &["nowhere"]);
    rustix::mount::unmount("/usr/local/bin", UnmountFlags::empty()).unwrap();
}

#[test]
fn a_repeated_call_of_a_mount_helper_succeeds() {
    let Some(world) = World::new() else { return };
    let call = ["source", "merged", "-o", "lowerdir=top:base,upperdir=upper,workdir=work"];
    world.layerfs(call).succeeded();
    let server = world.server("merged");
    fs::write(world.at("merged/new"), "kept").unwrap();
    world.layerfs(call).succeeded();
    assert_eq!(world.server("merged"), server, "the same mount");
    assert_eq!(world.list().as_array().unwrap().len(), 1);
    // Other layers are another mount, here one whose upper is in use.
    world
        .layerfs(["source", "merged", "-o", "lowerdir=base,upperdir=upper,workdir=work"])
        .failed(32, &["in use"]);
    world.words("umount merged").succeeded();
}

#[test]
fn remount_changes_flags() {
    let Some(world) = World::new() else { return };
    world.words(&format!("mount -o {} merged", world.writable())).succeeded();
    world.words("source merged -o remount,ro,noexec").succeeded();
    let error = fs::write(world.at("merged/new"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert!(mounted_at(&world.at("merged")).unwrap().1.contains("noexec"));
    world.words("mount -o remount,rw merged").succeeded();
    fs::write(world.at("merged/new"), "").unwrap();
    assert!(!mounted_at(&world.at("merged")).unwrap().1.contains("noexec"));
    world.words("umount merged").succeeded();
    world.words("mount -o lowerdir=base merged").succeeded();
    world.words("mount -o remount,rw merged").failed(32, &["no upper", "hint:"]);
    world.words("umount merged").succeeded();
    world.words("mount -o remount,ro merged").failed(32, &["not a layerfs mount"]);
}
