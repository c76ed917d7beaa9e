//! Bundles and an OCI runtime to try them on: this project's, or the one that `RUNTIME` names (a program with runc's command
//! line), so that a test is first proved on another.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::privilege::{layerfs_binary, require_root, skip};
use crate::scratch::Scratch;

const APPLETS: [&str; 35] = [
    "sh", "cat", "chroot", "cut", "date", "dd", "echo", "env", "false", "grep", "hostname", "id", "ionice",
    "ip", "kill", "ls", "mkdir", "mknod", "mount", "nice", "ps", "pwd", "readlink", "rm", "sleep", "stat",
    "stty", "tail", "touch", "true", "tty", "umount", "uname", "wc", "wget",
];

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A root filesystem with busybox, and the containers made of it. Dropping it removes them.
#[derive(Debug)]
pub struct Bundles {
    scratch: Scratch,
    rootfs: PathBuf,
    state: PathBuf,
    program: PathBuf,
    is_other: bool,
    ids: std::cell::RefCell<Vec<String>>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Output {
    /// Its exit status.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Bundles {
    /// `None` where the machine does not allow it, which has been said.
    #[must_use]
    pub fn new() -> Option<Self> {
        if !require_root() {
            return None;
        }
        let Some(busybox) =
            ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).is_file())
        else {
            skip("no busybox is installed (Debian package busybox-static)");
            return None;
        };
        let other = std::env::var_os("RUNTIME").filter(|name| !name.is_empty());
        let is_other = other.is_some();
        let Some(program) = other.map(PathBuf::from).or_else(layerfs_binary) else {
            skip("the layerfs binary is not built (cargo build -p layerfs-cli)");
            return None;
        };
        let scratch = Scratch::plain();
        let rootfs = scratch.dir("rootfs");
        for directory in ["bin", "etc", "dev", "proc", "sys", "data", "tmp"] {
            fs::create_dir_all(rootfs.join(directory)).unwrap();
        }
        fs::copy(busybox, rootfs.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        fs::write(rootfs.join("data/file"), "data\n").unwrap();
        let state = scratch.dir("state");
        Some(Self { scratch, rootfs, state, program, is_other, ids: Default::default() })
    }

    /// Like [`Self::new`], for tests of what this project's runtime alone promises.
    #[must_use]
    pub fn own() -> Option<Self> {
        Self::new().filter(|bundles| !bundles.is_other)
    }

    /// The directory of this test.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// The root filesystem of all bundles.
    #[must_use]
    pub fn rootfs(&self) -> &Path {
        &self.rootfs
    }

    /// Where the runtime keeps containers.
    #[must_use]
    pub fn state_directory(&self) -> &Path {
        &self.state
    }

    /// A name that no other test uses; its container is removed at the end.
    #[must_use]
    pub fn id(&self) -> String {
        let id = format!("lt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        self.ids.borrow_mut().push(id.clone());
        id
    }

    /// A bundle whose document runs `script` and was changed by `edit`.
    pub fn bundle(&self, id: &str, script: &str, edit: impl FnOnce(&mut Value)) -> PathBuf {
        let mut spec = document(&self.rootfs, id);
        spec["process"]["args"] = json!(["sh", "-c", script]);
        edit(&mut spec);
        let bundle = self.scratch.dir(&format!("bundle-{id}"));
        fs::write(bundle.join("config.json"), serde_json::to_vec_pretty(&spec).unwrap()).unwrap();
        bundle
    }

    /// The runtime's command line with `arguments`.
    #[must_use]
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(&self.program);
        if !self.is_other {
            command.arg0("layerfs-runtime");
        }
        command.arg("--root").arg(&self.state).args(arguments).stdin(Stdio::null());
        command
    }

    /// `outer`, with the program and arguments of `inner`, a command of [`Self::command`], added to its own: for programs that
    /// run another one in other circumstances.
    #[must_use]
    pub fn within(&self, mut outer: Command, inner: Command) -> Command {
        // Its first argument says what it is; a program that is run by name needs a file of that name.
        let program = self.scratch.path().join("layerfs-runtime");
        if !self.is_other && !program.exists() {
            symlink(&self.program, &program).unwrap();
        }
        outer.arg(if self.is_other { self.program.as_path() } else { &program }).args(inner.get_args());
        outer
    }

    /// Runs the runtime. What a container's program prints goes to a file, so that nobody waits for its end.
    pub fn call<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Output {
        let out = self.scratch.path().join(format!("out-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let err = out.with_extension("err");
        let status = self
            .command(arguments)
            .stdout(fs::File::create(&out).unwrap())
            .stderr(fs::File::create(&err).unwrap())
            .status()
            .unwrap();
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        Output { code: status.code().unwrap_or(-1), stdout: read(&out), stderr: read(&err) }
    }

    /// Runs `script` in a container to its end.
    pub fn run(&self, script: &str, edit: impl FnOnce(&mut Value)) -> Output {
        let id = self.id();
        let bundle = self.bundle(&id, script, edit);
        self.call(&["run", "--bundle", bundle.to_str().unwrap(), &id])
    }

    /// As [`Self::run`]; what it printed when it ended well.
    pub fn run_well(&self, script: &str, edit: impl FnOnce(&mut Value)) -> String {
        let output = self.run(script, edit);
        assert_eq!(output.code, 0, "{output:?}");
        output.stdout
    }

    /// Creates and starts a container; its name and the number of its first process.
    pub fn start(&self, script: &str, edit: impl FnOnce(&mut Value)) -> (String, i32) {
        let id = self.id();
        let bundle = self.bundle(&id, script, edit);
        self.well(&["create", "--bundle", bundle.to_str().unwrap(), &id]);
        self.well(&["start", &id]);
        let pid = self.state(&id)["pid"].as_i64().unwrap();
        (id, i32::try_from(pid).unwrap())
    }

    /// A command that must succeed; what it printed.
    pub fn well(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        assert_eq!(output.code, 0, "{arguments:?}: {output:?}");
        output.stdout
    }

    /// The state of a container.
    #[must_use]
    pub fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.well(&["state", id])).unwrap()
    }

    /// Directories of the machine's cgroups that have `id` in their name.
    #[must_use]
    pub fn cgroups(&self, id: &str) -> Vec<PathBuf> {
        let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else { return Vec::new() };
        let tops = hierarchies.map(|entry| entry.unwrap().path()).chain([PathBuf::from("/sys/fs/cgroup")]);
        tops.map(|top| top.join(id)).filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Bundles {
    fn drop(&mut self) {
        for id in self.ids.take() {
            self.call(&["delete", "--force", &id]);
            if !std::thread::panicking() {
                assert_eq!(self.cgroups(&id), Vec::<PathBuf>::new(), "cgroups of {id} are left");
            }
        }
        if !std::thread::panicking() {
            let left: Vec<_> =
                fs::read_dir(&self.state).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert_eq!(left, Vec::<PathBuf>::new(), "state is left");
        }
    }
}

/// A document that every runtime takes.
#[must_use]
pub fn document(rootfs: &Path, id: &str) -> Value {
    let all = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_KILL",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_MKNOD"
    ]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/bin", "HOME=/"],
            "cwd": "/",
            "capabilities": {"bounding": all, "effective": all, "permitted": all},
        },
        "root": {"path": rootfs},
        "hostname": "inside",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "cgroupsPath": format!("/{id}"),
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
