//! `layerfs mount`, `umount` and the mount-helper forms, as users and other programs call them.
//!
//! Each test has a mount namespace and a scratch disk of its own. What a command prints and its exit code are
//! part of what is tested: engines parse the one, scripts act on the other.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, PidfdFlags, Signal};

use layerfs_tests::mount::{FsKind, Mount, Stack};
use layerfs_tests::privilege::{ALL_PRIVILEGES, layerfs_binary, require_root_and_fuse};
use layerfs_tests::scratch::Scratch;
use layerfs_tests::watchdog::bounded;

/// No command here takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Directories to mount, and a promise that nothing stays mounted there.
struct World {
    scratch: Scratch,
}

impl World {
    /// `None`, with words on stderr, where nothing can be mounted.
    fn new() -> Option<Self> {
        if !require_root_and_fuse() {
            return None;
        }
        let world = Self { scratch: Scratch::new() };
        for (layer, name) in [("top", "one"), ("base", "two")] {
            fs::write(world.dir(layer).join(name), layer).unwrap();
        }
        fs::write(world.at("base/one"), "covered by top").unwrap();
        for name in ["upper", "work", "merged"] {
            world.dir(name);
        }
        Some(world)
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.scratch.path().join(path)
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.scratch.dir(name)
    }

    /// Runs the binary under test in the scratch directory, to the end of its output.
    fn layerfs<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Outcome {
        let mut command = Command::new(layerfs_binary().expect("the binary is there"));
        command.args(arguments);
        self.run(command)
    }

    fn words(&self, line: &str) -> Outcome {
        self.layerfs(line.split_whitespace())
    }

    fn run(&self, mut command: Command) -> Outcome {
        command.current_dir(self.scratch.path()).stdin(Stdio::null());
        command.env_remove("LAYERFS_LOG").env_remove("LAYERFS_LOG_FILE");
        // A background process that held our pipes would keep `output` waiting for ever.
        let what = format!("{command:?}");
        Outcome(bounded(
            PATIENCE,
            &what,
            || self.detach_all(),
            || command.output().expect("start the command"),
        ))
    }

    /// The options of the writable stack used by most tests.
    fn writable(&self) -> &'static str {
        "lowerdir=top:base,upperdir=upper,workdir=work"
    }

    fn is_mounted(&self, name: &str) -> bool {
        mounted_at(&self.at(name)).is_some()
    }

    /// What the mount says of itself.
    fn report(&self, name: &str) -> serde_json::Value {
        let target = self.at(name);
        let list = self.list();
        let row = list.as_array().unwrap().iter().find(|row| row["target"] == *target.to_str().unwrap());
        row.unwrap_or_else(|| panic!("{target:?} is not in {list}"))["report"].clone()
    }

    fn list(&self) -> serde_json::Value {
        serde_json::from_str(&self.words("mount --list --format json").succeeded().stdout()).unwrap()
    }

    fn server(&self, name: &str) -> Pid {
        Pid::from_raw(self.report(name)["pid"].as_i64().unwrap().try_into().unwrap()).unwrap()
    }

    fn detach_all(&self) {
        for target in mounts_beneath(self.scratch.path()) {
            // It may have gone with the mount it stood on.
            rustix::mount::unmount(&target, UnmountFlags::DETACH).ok();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let left = mounts_beneath(self.scratch.path());
        self.detach_all();
        if !std::thread::panicking() {
            assert_eq!(left, Vec::<PathBuf>::new(), "mounts were left behind");
        }
    }
}

struct Outcome(Output);

impl Outcome {
    #[track_caller]
    fn succeeded(self) -> Self {
        assert!(self.0.status.success(), "{}: {}", self.0.status, self.stderr());
        self
    }

    /// Failed with this exit code, and with all these words on stderr.
    #[track_caller]
    fn failed(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.0.status.code(), Some(code), "{}", self.stderr());
        for word in words {
            assert!(self.stderr().contains(word), "{word:?} is not in: {}", self.stderr());
        }
        self
    }

    /// Nothing to tell.
    #[track_caller]
    fn silent(self) -> Self {
        assert_eq!((self.stdout(), self.stderr()), (String::new(), String::new()));
        self
    }

    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }
}

fn table() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
}

/// Type and options of the last mount at this path.
fn mounted_at(target: &Path) -> Option<(String, String)> {
    let table = table();
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == target.to_str())?;
    let kind = line.split(" - ").nth(1)?.split(' ').next()?;
    Some((kind.to_owned(), line.split(' ').nth(5)?.to_owned()))
}

/// Mountpoints strictly beneath `path`, the last one mounted first.
fn mounts_beneath(path: &Path) -> Vec<PathBuf> {
    let unescape = |text: &str| PathBuf::from(text.replace("\\040", " ").replace("\\134", "\\"));
    let mut targets: Vec<PathBuf> =
        table().lines().filter_map(|line| line.split(' ').nth(4).map(unescape)).collect();
    targets.retain(|target| target != path && target.starts_with(path));
    targets.reverse();
    targets
}

/// Waits for the end of a process that is no child of ours.
#[track_caller]
fn wait_for_end(process: &rustix::fd::OwnedFd) {
    let limit = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ended, 1, "the mount process did not end");
}

fn pidfd(pid: Pid) -> rustix::fd::OwnedFd {
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap()
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

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
fn bad_options_are_refused_before_anything_is_mounted() {
    let Some(world) = World::new() else { return };
    let table: &[(&str, &[&str])] = &[
        ("mount merged", &["no lower layer is named"]),
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
        ("mount some/image:tag merged", &["some/image:tag", "no image store"]),
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
fn the_list_shows_what_is_mounted() {
    let Some(world) = World::new() else { return };
    assert_eq!(world.words("mount --list").succeeded().silent().stdout(), "");
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
    let lines: Vec<&str> = text.lines().collect();
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
    let list: serde_json::Value = serde_json::from_str(&outcome.stdout()).unwrap();
    assert_eq!(list[0]["state"], "dead", "{list}");
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
        assert!(std::env::var_os(ALL_PRIVILEGES).is_none_or(|v| v != "1"), "mount.fuse3 is not installed");
        eprintln!("SKIPPED through_mount_8: mount.fuse3 is not installed");
        return;
    }
    // mount(8) drops PATH, and the shell of mount.fuse3 then has the system's own: in this mount namespace the
    // program lies there.
    let bin = world.dir("bin");
    fs::copy(layerfs_binary().unwrap(), bin.join("layerfs")).unwrap();
    rustix::mount::mount_bind(&bin, "/usr/local/bin").unwrap();
    let mount = |line: &str| {
        let mut command = Command::new("mount");
        command.args(line.split_whitespace());
        world.run(command)
    };
    let merged = world.at("merged");
    let at = |name: &str| world.at(name).display().to_string();
    let layers = format!("lowerdir={}:{}", at("top"), at("base"));
    for kind in ["fuse.layerfs", "fuse3.layerfs"] {
        mount(&format!(
            "-t {kind} source merged -o {layers},upperdir={},workdir={},noatime",
            at("upper"),
            at("work")
        ))
        .succeeded();
        assert_eq!(read(merged.join("one")), "top");
        let (fs_type, options) = mounted_at(&merged).unwrap();
        assert_eq!(fs_type, "fuse.layerfs");
        assert!(options.contains("noatime") && options.starts_with("rw"), "{options}");
        // A repeated call, as containerd makes it, changes nothing.
        mount(&format!(
            "-t {kind} source merged -o {layers},upperdir={},workdir={}",
            at("upper"),
            at("work")
        ))
        .succeeded();
        assert_eq!(table().lines().filter(|l| l.split(' ').nth(4) == merged.to_str()).count(), 1);
        let mut umount = Command::new("umount");
        umount.arg(&merged);
        let process = pidfd(world.server("merged"));
        world.run(umount).succeeded();
        wait_for_end(&process);
    }
    // Its errors come through.
    mount(&format!("-t fuse.layerfs source merged -o lowerdir={}", at("nowhere"))).failed(32, &["nowhere"]);
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

#[test]
fn a_closed_pipe_is_quiet() {
    let Some(binary) = layerfs_binary() else { return };
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
    let Some(binary) = layerfs_binary() else { return };
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
