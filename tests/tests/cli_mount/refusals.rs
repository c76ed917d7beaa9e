//! What is refused, in which words and with which exit code.

use std::fs;

use rustix::mount::{MountFlags, UnmountFlags};

use crate::world::*;

#[test]
fn bad_options_are_refused_before_anything_is_mounted() {
    let Some(world) = World::new() else { return };
    let table: &[(&str, &[&str])] = &[
        ("mount merged", &["no mountpoint is named", "lowerdir="]),
        ("mount -o upperdir=upper,workdir=work merged", &["no lower layer is named"]),
        (
            "mount -o lowerdir=base,upperdir=upper merged",
            &["upperdir=\"upper\" without workdir", "add workdir="],
        ),
        ("mount -o lowerdir=base,workdir=work merged", &["workdir=\"work\" without upperdir"]),
        ("mount -o lowerdir=base,upperdir=upper,workdir=upper/w merged", &["overlap"]),
        ("mount -o lowerdir=base:base merged", &["\"base\" is named twice"]),
        ("mount -o lowerdir=base::top merged", &["data-only"]),
        ("mount -o lowerdir=base,io=warp merged", &["option `io=warp`", "passthrough"]),
        ("mount -o lowerdir=base,uidmapping=0:1 merged", &["uidmapping=0:1", "triples"]),
        ("mount -o lowerdir=base,userxattr,metacopy=on merged", &["userxattr", "metacopy=on", "contradict"]),
        ("mount -o lowerdir=base,verity=require merged", &["verity=require", "not supported"]),
        ("mount --lower top -o lowerdir=base merged", &["--lower", "lowerdir="]),
        ("mount -o lowerdir=base", &["no mountpoint"]),
        ("mount --frobnicate", &["--frobnicate"]),
        ("mount --list merged", &["--list"]),
        ("frobnicate", &["frobnicate"]),
        ("-o lowerdir=base,io=warp merged", &["option `io=warp`"]),
        ("src merged extra -o lowerdir=base", &["extra"]),
        ("-o lowerdir=base -N 1 merged", &["nsenter"]),
        ("umount", &["MERGED"]),
    ];
    for (line, words) in table {
        let outcome = world.words(line).failed(1, words);
        assert_eq!(outcome.stdout(), "", "{line}");
        assert!(!world.is_mounted("merged"), "{line}");
    }
    assert_eq!(fs::read_dir(world.at("work")).unwrap().count(), 0, "nothing was touched");
}

#[test]
fn an_image_that_is_not_there_is_named() {
    let Some(world) = World::new() else { return };
    let outcome = world.words("mount some/image:tag merged").failed(32, &["No such image", "some/image:tag"]);
    assert_eq!(outcome.stdout(), "");
    assert!(!world.is_mounted("merged"));
}

#[test]
fn unknown_words_are_told_and_the_mount_is_made() {
    let Some(world) = World::new() else { return };
    let outcome = world.words("mount -o lowerdir=base,frobnicate,shiny=1 merged").succeeded();
    assert_eq!(outcome.stdout(), "");
    for word in ["frobnicate", "shiny=1"] {
        assert_eq!(outcome.stderr().matches(word).count(), 1, "{}", outcome.stderr());
    }
    world.words("umount merged").succeeded();
}

#[test]
fn missing_directories_are_named() {
    let Some(world) = World::new() else { return };
    fs::write(world.at("file"), "").unwrap();
    let table = [
        ("lowerdir=base:nowhere", "merged", "nowhere"),
        ("lowerdir=base:file", "merged", "file"),
        ("lowerdir=base,upperdir=nowhere,workdir=work", "merged", "nowhere"),
        ("lowerdir=base,upperdir=upper,workdir=nowhere", "merged", "nowhere"),
        ("lowerdir=base", "nowhere", "nowhere"),
        ("lowerdir=base", "file", "file"),
    ];
    for (options, target, name) in table {
        // Whole and in both forms: in the background the error crosses from one process to another.
        for form in ["mount", "mount -f"] {
            let outcome = world.words(&format!("{form} -o {options} {target}")).failed(32, &[name]);
            let path = world.at(name);
            assert!(outcome.stderr().contains(path.to_str().unwrap()), "{options}: {}", outcome.stderr());
        }
        assert!(mounts_beneath(world.scratch.path()).is_empty(), "{options}");
    }
}

#[test]
fn work_on_another_filesystem_is_refused() {
    let Some(world) = World::new() else { return };
    for name in ["a", "b"] {
        let target = world.dir(name);
        rustix::mount::mount("tmpfs", &target, "tmpfs", MountFlags::empty(), None).unwrap();
        fs::create_dir(target.join("d")).unwrap();
    }
    world
        .words("mount -o lowerdir=base,upperdir=a/d,workdir=b/d merged")
        .failed(32, &["a/d", "b/d", "filesystem"]);
    assert!(!world.is_mounted("merged"));
    for name in ["a", "b"] {
        rustix::mount::unmount(world.at(name), UnmountFlags::empty()).unwrap();
    }
}

#[test]
fn a_busy_upper_is_refused() {
    let Some(world) = World::new() else { return };
    world.words(&format!("mount -o {} merged", world.writable())).succeeded();
    fs::write(world.at("merged/mine"), "kept").unwrap();
    world.dir("merged2");
    let upper = world.at("upper");
    world
        .words(&format!("mount -o {} merged2", world.writable()))
        .failed(32, &[upper.to_str().unwrap(), "in use"]);
    assert!(!world.is_mounted("merged2"));
    world.dir("upper2");
    world
        .words("mount -o lowerdir=base,upperdir=upper2,workdir=work merged2")
        .failed(32, &[world.at("work").to_str().unwrap(), "in use"]);
    assert_eq!(read(world.at("merged/mine")), "kept");
    world.words("umount merged").succeeded();
    world.words(&format!("mount -o {} merged2", world.writable())).succeeded();
    assert_eq!(read(world.at("merged2/mine")), "kept");
    world.words("umount merged2").succeeded();
}
