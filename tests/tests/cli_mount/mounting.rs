//! Mounting in both forms, in the background and in the foreground, and leaving again.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

use layerfs_tests::mount::{FsKind, Mount, Stack};
use layerfs_tests::privilege::{layerfs_binary, require_root_and_fuse};
use layerfs_tests::scratch::Scratch;

use crate::world::*;

#[test]
fn plain_directories_by_option_text() {
    let Some(world) = World::new() else { return };
    world.words(&format!("mount -o {} merged", world.writable())).succeeded().silent();
    assert_eq!(mounted_at(&world.at("merged")).unwrap().0, "fuse.layerfs");
    assert_eq!(read(world.at("merged/one")), "top");
    assert_eq!(read(world.at("merged/two")), "base");
    fs::write(world.at("merged/three"), "new").unwrap();
    assert_eq!(read(world.at("upper/three")), "new");
    world.words("umount merged").succeeded().silent();
    assert!(!world.is_mounted("merged"));
    // The process has released all: the same upper can be mounted at once.
    world.words(&format!("mount -o {} merged", world.writable())).succeeded().silent();
    assert_eq!(read(world.at("merged/three")), "new");
    world.words("umount merged").succeeded();
}

#[test]
fn plain_directories_by_options_of_their_own() {
    let Some(world) = World::new() else { return };
    world
        .words("mount --lower top --lower base --upper upper --work work -o noatime -o nodev merged")
        .succeeded();
    assert_eq!(read(world.at("merged/one")), "top");
    let (_, options) = mounted_at(&world.at("merged")).unwrap();
    assert!(options.contains("noatime") && options.contains("nodev"), "{options}");
    world.words("umount merged").succeeded();
}

#[test]
fn without_an_upper_it_is_read_only() {
    let Some(world) = World::new() else { return };
    world.words("mount -o lowerdir=top:base merged").succeeded().silent();
    assert_eq!(read(world.at("merged/two")), "base");
    let error = fs::write(world.at("merged/three"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    world.words("umount merged").succeeded();
}

#[test]
fn a_mountpoint_may_cover_its_layers() {
    let Some(world) = World::new() else { return };
    // The mountpoint is a layer.
    world.words("mount -o lowerdir=top:base base").succeeded();
    assert_eq!(read(world.at("base/one")), "top");
    assert_eq!(read(world.at("base/two")), "base");
    world.words("umount base").succeeded();
    // The mountpoint holds the layers.
    let home = world.dir("home");
    for name in ["l", "u", "w"] {
        fs::create_dir(home.join(name)).unwrap();
    }
    fs::write(home.join("l/file"), "lower").unwrap();
    world.words("mount -o lowerdir=home/l,upperdir=home/u,workdir=home/w home").succeeded();
    assert_eq!(read(home.join("file")), "lower");
    fs::write(home.join("file"), "changed").unwrap();
    fs::write(home.join("new"), "new").unwrap();
    world.words("umount home").succeeded();
    assert_eq!(read(home.join("l/file")), "lower");
    assert_eq!((read(home.join("u/file")), read(home.join("u/new"))), ("changed".into(), "new".into()));
}

#[test]
fn names_are_bytes() {
    let Some(world) = World::new() else { return };
    let name = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    let (lower, target) = (name(b"l\xff\xfe"), name(b"m\xe9"));
    for directory in [&lower, &target] {
        fs::create_dir(world.at(directory)).unwrap();
    }
    fs::write(world.at(&lower).join("file"), "bytes").unwrap();
    let mut options = name(b"lowerdir=");
    options.push(&lower);
    world.layerfs([OsStr::new("mount"), OsStr::new("-o"), &options, &target]).succeeded().silent();
    assert_eq!(read(world.at(&target).join("file")), "bytes");
    // JSON is text: the list shows such names with replacement characters, but shows them.
    let list = world.list();
    assert_eq!((list.as_array().unwrap().len(), &list[0]["state"]), (1, &"ok".into()), "{list}");
    world.layerfs([OsStr::new("umount"), &target]).succeeded().silent();
    assert_eq!(world.list(), serde_json::json!([]));
}

#[test]
fn hundreds_of_relative_layers() {
    let Some(world) = World::new() else { return };
    let names: Vec<String> = (0..500).map(|n| format!("l/{n:03}")).collect();
    for (n, name) in names.iter().enumerate() {
        let layer = world.dir(name);
        fs::write(layer.join(format!("only{n}")), name).unwrap();
        fs::write(layer.join("all"), name).unwrap();
    }
    // As engines call it, with the storage as the current directory.
    world.layerfs(["-o", &format!("lowerdir={}", names.join(":")), "merged"]).succeeded().silent();
    assert_eq!(read(world.at("merged/all")), "l/000");
    assert_eq!(read(world.at("merged/only499")), "l/499");
    assert_eq!(fs::read_dir(world.at("merged")).unwrap().count(), 501);
    assert_eq!(world.report("merged")["lowers"].as_array().unwrap().len(), 500);
    world.words("umount merged").succeeded();
    world
        .layerfs(["-o", &format!("lowerdir={}:base", names.join(":")), "merged"])
        .failed(1, &["501 lower layers", "500"]);
}

#[test]
fn escapes_in_paths() {
    let Some(world) = World::new() else { return };
    for (n, name) in ["a:b", "c,d", r"e\f", "g h"].iter().enumerate() {
        fs::write(world.dir(name).join(format!("f{n}")), name).unwrap();
    }
    let target = world.dir(r"m, \:");
    let options = r"lowerdir=a\:b:c\,d:e\\f,upperdir=g h,workdir=work,noatime";
    world
        .layerfs([OsStr::new("mount"), OsStr::new("-o"), OsStr::new(options), target.as_os_str()])
        .succeeded();
    for (n, name) in ["a:b", "c,d", r"e\f", "g h"].iter().enumerate() {
        assert_eq!(read(target.join(format!("f{n}"))), *name);
    }
    let listed = world.list();
    assert_eq!(listed[0]["target"], *target.to_str().unwrap());
    world.layerfs([OsStr::new("umount"), target.as_os_str()]).succeeded();
    assert!(mounts_beneath(world.scratch.path()).is_empty());
    // The same as options of their own need no escapes.
    world
        .layerfs(["mount", "--lower", "a:b", "--lower", "c,d", "--upper", "g h", "--work", "work", "merged"])
        .succeeded();
    assert_eq!(read(world.at("merged/f1")), "c,d");
    world.words("umount merged").succeeded();
}

#[test]
fn the_background_process_keeps_nothing_of_its_caller() {
    let Some(world) = World::new() else { return };
    let binary = layerfs_binary().unwrap();
    // A descriptor that nobody marked close-on-exec: its reader must see the end all the same. The pipes of
    // `output` prove it for the standard streams.
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 7>&1; exec \"$0\" mount -o lowerdir=top:base merged"]).arg(&binary);
    world.run(shell).succeeded();
    let server = world.server("merged");
    let proc = PathBuf::from(format!("/proc/{}", server.as_raw_nonzero()));
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));
    for stream in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(fs::read_link(proc.join(stream)).unwrap(), Path::new("/dev/null"), "{stream}");
    }
    for entry in fs::read_dir(proc.join("fd")).unwrap() {
        // Descriptors come and go; those of the caller would stay.
        let kind = fs::metadata(entry.unwrap().path()).map(|m| m.file_type());
        assert!(!kind.is_ok_and(|k| k.is_fifo()), "a pipe is still open");
    }
    assert_eq!(rustix::process::getsid(Some(server)).unwrap(), server, "a session of its own");
    world.words("umount merged").succeeded();
}

#[test]
fn the_foreground_process_stays_and_leaves_on_sigterm() {
    if !require_root_and_fuse() {
        return;
    }
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let scratch = Scratch::new();
        let stack = Stack::make(scratch.path(), 1);
        fs::write(stack.lowers[0].join("file"), "x").unwrap();
        let merged = stack.merged.clone();
        let mut mount = Mount::new(FsKind::layerfs(), stack);
        fs::write(merged.join("new"), "data").unwrap();
        rustix::process::kill_process(mount.server().unwrap(), signal).unwrap();
        let status = mount.wait_for_end();
        assert!(status.success(), "{signal:?}: {status}");
        assert!(mounted_at(&merged).is_none(), "{signal:?}");
        assert_eq!(read(scratch.path().join("upper/new")), "data");
    }
}

#[test]
fn sigterm_unmounts_in_the_background() {
    let Some(world) = World::new() else { return };
    world.words(&format!("mount -o {},volatile merged", world.writable())).succeeded();
    fs::write(world.at("merged/new"), "data").unwrap();
    let server = world.server("merged");
    let process = pidfd(server);
    rustix::process::kill_process(server, Signal::TERM).unwrap();
    wait_for_end(&process);
    assert!(!world.is_mounted("merged"));
    // Cleanly: a volatile upper is not refused.
    world.words(&format!("mount -o {} merged", world.writable())).succeeded();
    assert_eq!(read(world.at("merged/new")), "data");
    world.words("umount merged").succeeded();
}

#[test]
fn sigterm_takes_a_busy_mount_out_of_the_tree() {
    let Some(world) = World::new() else { return };
    world.words("mount -o lowerdir=top:base merged").succeeded();
    let mut user = File::open(world.at("merged/two")).unwrap();
    let server = world.server("merged");
    let process = pidfd(server);
    let table = File::open("/proc/thread-self/mountinfo").unwrap();
    rustix::process::kill_process(server, Signal::TERM).unwrap();
    while world.is_mounted("merged") {
        let limit = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let changed = poll(&mut [PollFd::new(&table, PollFlags::PRI)], Some(&limit)).unwrap();
        assert_eq!(changed, 1, "still mounted");
    }
    // Its last user is served to the end.
    let mut text = String::new();
    user.read_to_string(&mut text).unwrap();
    assert_eq!(text, "base");
    drop(user);
    wait_for_end(&process);
}

#[test]
fn an_ordinary_user_mounts_and_unmounts() {
    let Some(world) = World::new() else { return };
    let fusermount = fs::metadata("/usr/bin/fusermount3");
    if !fusermount.is_ok_and(|m| m.uid() == 0 && m.mode() & 0o4000 != 0) {
        return skip("fusermount3 is not set-id root");
    }
    // In this mount namespace the device is for everybody, as udev has it.
    let device = world.at("fuse");
    let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::from_raw_mode(0o666));
    rustix::fs::mknodat(rustix::fs::CWD, &device, kind, mode, rustix::fs::makedev(10, 229)).unwrap();
    rustix::fs::chmod(&device, mode).unwrap();
    rustix::mount::mount_bind(&device, "/dev/fuse").unwrap();
    // The binary may lie where only root gets.
    let binary = world.at("layerfs");
    fs::copy(layerfs_binary().unwrap(), &binary).unwrap();
    for name in ["top", "base", "upper", "work", "merged"] {
        std::os::unix::fs::chown(world.at(name), Some(1000), Some(1000)).unwrap();
    }
    let user = |line: &str| {
        let mut command = Command::new(&binary);
        command.args(line.split_whitespace()).uid(1000).gid(1000);
        world.run(command)
    };
    user(&format!("mount -o {} merged", world.writable())).succeeded();
    let as_user = |program: &str, file: &str| {
        let mut command = Command::new(program);
        command.arg(world.at(file)).uid(1000).gid(1000);
        world.run(command)
    };
    assert_eq!(as_user("cat", "merged/one").succeeded().stdout(), "top");
    as_user("mkdir", "merged/new").succeeded();
    assert_eq!(fs::metadata(world.at("upper/new")).unwrap().uid(), 1000);
    let row = |outcome: Outcome| world.row(&world.own_rows(&outcome.succeeded()), "merged");
    let seen = row(user("mount --list --format json"));
    assert_eq!(seen["state"], "ok", "{seen}");
    user("umount merged").succeeded().silent();
    assert!(!world.is_mounted("merged"));
    // A signal unmounts too.
    user("mount -o lowerdir=base merged").succeeded();
    let seen = row(user("mount --list --format json"));
    let server = Pid::from_raw(seen["report"]["pid"].as_i64().unwrap().try_into().unwrap()).unwrap();
    let process = pidfd(server);
    rustix::process::kill_process(server, Signal::TERM).unwrap();
    wait_for_end(&process);
    assert!(!world.is_mounted("merged"));
    rustix::mount::unmount("/dev/fuse", UnmountFlags::empty()).unwrap();
}

#[test]
fn the_log_goes_to_a_file() {
    let Some(world) = World::new() else { return };
    world.words("mount -o lowerdir=base --log log --log-level debug merged").succeeded().silent();
    // Relative to where the command was given.
    assert_eq!(fs::metadata(world.at("log")).unwrap().mode() & 0o137, 0, "not for everybody");
    let process = pidfd(world.server("merged"));
    let server = world.server("merged");
    rustix::process::kill_process(server, Signal::TERM).unwrap();
    wait_for_end(&process);
    let log = read(world.at("log"));
    assert!(log.contains("asked to unmount"), "{log}");
    world.words("mount -o lowerdir=base --log nowhere/log merged").failed(32, &["nowhere/log"]);
    assert!(!world.is_mounted("merged"));
}
