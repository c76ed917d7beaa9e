//! Directories, commands and what to expect of them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags};

use layerfs_tests::privilege::{ALL_PRIVILEGES, layerfs_binary, require_root_and_fuse};
use layerfs_tests::scratch::Scratch;
use layerfs_tests::watchdog::bounded;

/// No command here takes this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Directories to mount, and a promise that nothing stays mounted there.
pub(crate) struct World {
    pub(crate) scratch: Scratch,
}

impl World {
    /// `None`, with words on stderr, where nothing can be mounted.
    pub(crate) fn new() -> Option<Self> {
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

    pub(crate) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.scratch.path().join(path)
    }

    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        self.scratch.dir(name)
    }

    /// Runs the binary under test in the scratch directory, to the end of its output.
    pub(crate) fn layerfs<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Outcome {
        let mut command = Command::new(layerfs_binary().expect("the binary is there"));
        command.args(arguments);
        self.run(command)
    }

    pub(crate) fn words(&self, line: &str) -> Outcome {
        self.layerfs(line.split_whitespace())
    }

    pub(crate) fn run(&self, mut command: Command) -> Outcome {
        command.current_dir(self.scratch.path()).stdin(Stdio::null());
        command.env_remove("LAYERFS_LOG").env_remove("LAYERFS_LOG_FILE");
        // Images are looked for in a store of the test's own, never in the machine's.
        command.env("LAYERFS_ROOT", self.scratch.path().join("store"));
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
    pub(crate) fn writable(&self) -> &'static str {
        "lowerdir=top:base,upperdir=upper,workdir=work"
    }

    pub(crate) fn is_mounted(&self, name: &str) -> bool {
        mounted_at(&self.at(name)).is_some()
    }

    /// What the mount says of itself.
    pub(crate) fn report(&self, name: &str) -> serde_json::Value {
        self.row(&self.list(), name)["report"].clone()
    }

    /// The row of a list that is about this mountpoint.
    pub(crate) fn row(&self, list: &serde_json::Value, name: &str) -> serde_json::Value {
        let target = self.at(name);
        let row = list.as_array().unwrap().iter().find(|row| row["target"] == *target.to_str().unwrap());
        row.unwrap_or_else(|| panic!("{target:?} is not in {list}")).clone()
    }

    /// `mount --list --format json`, of this world: the namespace began as a copy of the machine's, which may have
    /// mounts of its own.
    pub(crate) fn list(&self) -> serde_json::Value {
        self.own_rows(&self.words("mount --list --format json").succeeded())
    }

    /// The rows of a list that are about this world.
    pub(crate) fn own_rows(&self, outcome: &Outcome) -> serde_json::Value {
        let mut list: serde_json::Value = serde_json::from_str(&outcome.stdout()).unwrap();
        let home = self.scratch.path().to_str().unwrap();
        list.as_array_mut().unwrap().retain(|row| row["target"].as_str().unwrap().starts_with(home));
        list
    }

    pub(crate) fn server(&self, name: &str) -> Pid {
        Pid::from_raw(self.report(name)["pid"].as_i64().unwrap().try_into().unwrap()).unwrap()
    }

    pub(crate) fn detach_all(&self) {
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

pub(crate) struct Outcome(pub(crate) Output);

impl Outcome {
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert!(self.0.status.success(), "{}: {}", self.0.status, self.stderr());
        self
    }

    /// Failed with this exit code, and with all these words on stderr.
    #[track_caller]
    pub(crate) fn failed(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.0.status.code(), Some(code), "{}", self.stderr());
        for word in words {
            assert!(self.stderr().contains(word), "{word:?} is not in: {}", self.stderr());
        }
        self
    }

    /// Nothing to tell.
    #[track_caller]
    pub(crate) fn silent(self) -> Self {
        assert_eq!((self.stdout(), self.stderr()), (String::new(), String::new()));
        self
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }
}

/// The binary, for tests that need nothing else.
pub(crate) fn binary_or_skip() -> Option<PathBuf> {
    let binary = layerfs_binary();
    if binary.is_none() {
        skip("the layerfs binary is not built (cargo build -p layerfs-cli)");
    }
    binary
}

/// Tells that a test does nothing here; fails it where that was promised not to happen.
pub(crate) fn skip(reason: &str) {
    assert!(
        std::env::var_os(ALL_PRIVILEGES).is_none_or(|v| v != "1"),
        "{ALL_PRIVILEGES}=1 is set, but {reason}"
    );
    eprintln!("SKIPPED {}: {reason}", std::thread::current().name().unwrap_or("?"));
}

pub(crate) fn table() -> String {
    String::from_utf8_lossy(&fs::read("/proc/thread-self/mountinfo").unwrap()).into_owned()
}

/// Type and options of the last mount at this path.
pub(crate) fn mounted_at(target: &Path) -> Option<(String, String)> {
    let table = table();
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == target.to_str())?;
    let kind = line.split(" - ").nth(1)?.split(' ').next()?;
    Some((kind.to_owned(), line.split(' ').nth(5)?.to_owned()))
}

/// Mountpoints strictly beneath `path`, the last one mounted first.
pub(crate) fn mounts_beneath(path: &Path) -> Vec<PathBuf> {
    let unescape = |text: &str| PathBuf::from(text.replace("\\040", " ").replace("\\134", "\\"));
    let mut targets: Vec<PathBuf> =
        table().lines().filter_map(|line| line.split(' ').nth(4).map(unescape)).collect();
    targets.retain(|target| target != path && target.starts_with(path));
    targets.reverse();
    targets
}

/// Waits for the end of a process that is no child of ours.
#[track_caller]
pub(crate) fn wait_for_end(process: &rustix::fd::OwnedFd) {
    let limit = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ended, 1, "the mount process did not end");
}

pub(crate) fn pidfd(pid: Pid) -> rustix::fd::OwnedFd {
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap()
}

pub(crate) fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}
