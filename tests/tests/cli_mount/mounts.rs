//! Listing and unmounting what is there, and the commands that mount nothing.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;

use layerfs_tests::scratch::Scratch;

use crate::world::*;

#[test]
fn the_list_shows_what_is_mounted() {
    let Some(world) = World::new() else { return };
    assert_eq!(world.list(), serde_json::json!([]));
    world.dir("ro");
    world.words(&format!("mount -o {},fsname=mine merged", world.writable())).succeeded();
    world.words("mount -o lowerdir=base ro").succeeded();
    let list = world.list();
    let rows = list.as_array().unwrap();
    assert_eq!(rows.len(), 2, "{list}");
    for (row, name, lowers) in [(&rows[0], "merged", vec!["top", "base"]), (&rows[1], "ro", vec!["base"])] {
        assert_eq!(row["target"], *world.at(name).to_str().unwrap());
        assert_eq!(row["state"], "ok");
        let lowers: Vec<PathBuf> = lowers.iter().map(|l| world.at(l)).collect();
        assert_eq!(row["report"]["lowers"], serde_json::json!(lowers));
        assert!(row["report"]["io"].is_string() && row["report"]["pid"].is_number(), "{row}");
    }
    assert_eq!(rows[0]["source"], "mine");
    assert_eq!(rows[0]["report"]["upper"], *world.at("upper").to_str().unwrap());
    assert!(rows[1]["report"]["upper"].is_null());
    let text = world.words("mount --list").succeeded().stdout();
    let home = world.scratch.path().to_str().unwrap();
    let lines: Vec<&str> =
        text.lines().enumerate().filter(|(n, l)| *n == 0 || l.starts_with(home)).map(|(_, l)| l).collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("TARGET") && lines[0].contains("UPPER"), "{text}");
    let pid = world.server("merged").as_raw_nonzero().to_string();
    assert!(lines[1].split_whitespace().any(|w| w == pid), "{text}");
    world.words("umount merged ro").succeeded();
}

#[test]
fn a_dead_mount_is_listed_and_removed() {
    let Some(world) = World::new() else { return };
    world.words("mount -o lowerdir=base merged").succeeded();
    let server = world.server("merged");
    let process = pidfd(server);
    rustix::process::kill_process(server, Signal::KILL).unwrap();
    wait_for_end(&process);
    let outcome = world.words("mount --list --format json").succeeded();
    let row = world.row(&world.own_rows(&outcome), "merged");
    assert_eq!(row["state"], "dead", "{row}");
    assert!(outcome.stderr().contains("layerfs umount"), "{}", outcome.stderr());
    world.words("umount merged").succeeded();
    assert!(!world.is_mounted("merged"));
}

#[test]
fn umount_refuses_what_is_not_its_own() {
    let Some(world) = World::new() else { return };
    world.words("umount base").failed(32, &["base", "not a layerfs mount"]);
    let tmp = world.dir("tmp");
    rustix::mount::mount("tmpfs", &tmp, "tmpfs", MountFlags::empty(), None).unwrap();
    world.words("umount tmp").failed(32, &["tmp", "tmpfs", "not a layerfs mount"]);
    assert!(world.is_mounted("tmp"));
    rustix::mount::unmount(&tmp, UnmountFlags::empty()).unwrap();

    world.words("mount -o lowerdir=base merged").succeeded();
    rustix::mount::mount("tmpfs", world.at("merged"), "tmpfs", MountFlags::empty(), None).unwrap();
    world.words("umount merged").failed(32, &["covered", "tmpfs", "hint:"]);
    rustix::mount::unmount(world.at("merged"), UnmountFlags::empty()).unwrap();
    // Some of several.
    world.words("umount merged base").failed(64, &["base"]);
    assert!(!world.is_mounted("merged"));
}

#[test]
fn umount_of_a_busy_mount() {
    let Some(world) = World::new() else { return };
    world.words("mount -o lowerdir=base merged").succeeded();
    let process = pidfd(world.server("merged"));
    let user = File::open(world.at("merged/two")).unwrap();
    world.words("umount merged").failed(32, &["busy", "hint:", "--lazy"]);
    assert!(world.is_mounted("merged"));
    world.words("umount --lazy merged").succeeded();
    assert!(!world.is_mounted("merged"));
    drop(user);
    wait_for_end(&process);
    // A symlink to the mountpoint will do.
    world.words("mount -o lowerdir=base merged").succeeded();
    symlink("merged", world.at("link")).unwrap();
    world.words("umount link").succeeded();
    assert!(!world.is_mounted("merged"));
}

#[test]
fn a_closed_pipe_is_quiet() {
    let Some(binary) = binary_or_skip() else { return };
    for line in ["man", "--help", "completion bash", "help mount"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(&binary);
        command.args(line.split_whitespace()).stdout(writer).stderr(Stdio::piped());
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{line}");
        assert!(output.status.success(), "{line}: {}", output.status);
    }
}

#[test]
fn manual_pages_and_completions() {
    let Some(binary) = binary_or_skip() else { return };
    let scratch = Scratch::plain();
    let run = |arguments: &[&OsStr]| -> String {
        let output = Command::new(&binary).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let words = |line: &str| -> Vec<OsString> { line.split(' ').map(OsString::from).collect() };
    let call = |line: &str| run(&words(line).iter().map(OsString::as_os_str).collect::<Vec<_>>());
    assert!(call("man").contains(".TH layerfs"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(call(&format!("completion {shell}")).contains("umount"), "{shell}");
    }
    // What bash is offered behind `layerfs help container`.
    let bash = call("completion bash");
    let offered = bash.split("layerfs__subcmd__help__subcmd__container)").nth(1).unwrap_or_default();
    let offered = offered.lines().find(|line| line.contains("opts=")).unwrap_or_default();
    assert!(offered.contains("start") && offered.contains("prune"), "{offered:?}");
    let pages = scratch.path().join("man/man1");
    run(&[OsStr::new("man"), pages.as_os_str()]);
    for page in ["layerfs.1", "layerfs-mount.1", "layerfs-umount.1", "layerfs-index.1", "layerfs-run.1"] {
        assert!(read(pages.join(page)).contains(".TH"), "{page}");
    }
    assert_eq!(call("version"), call("--version"));
}

#[test]
fn an_index_is_built_and_checked() {
    let Some(world) = World::new() else { return };
    world.words("index --check base").failed(1, &["hint:", "layerfs index base"]);
    let built = world.words("index base").succeeded();
    assert!(built.stdout().contains("3 entries"), "{}", built.stdout());
    world.words("index --check base").succeeded().silent();
    world.words("mount -o lowerdir=top:base merged").succeeded();
    assert_eq!(read(world.at("merged/two")), "base");
    world.words("umount merged").succeeded();
    fs::write(world.at("base/two"), "changed behind it").unwrap();
    let stale = world.words("index --check base").failed(1, &["layerfs index base"]);
    assert!(stale.stdout().contains("two"), "{}", stale.stdout());
    world.words("index nowhere").failed(1, &["nowhere"]);
}
