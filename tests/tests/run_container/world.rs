//! A store, a root filesystem, and runs on them; checks at the end that nothing is left.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use layerfs_tests::privilege::{layerfs_binary, require_fuse, require_root, skip};
use layerfs_tests::scratch::Scratch;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

/// Nothing here takes this long, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module's text.
pub(crate) struct World {
    mounts: String,
    scratch: Scratch,
    rootfs: PathBuf,
    store: PathBuf,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl World {
    /// `None` where the machine does not allow it, which has been said.
    pub(crate) fn new() -> Option<Self> {
        if !require_root() || !require_fuse() {
            return None;
        }
        let Some(busybox) = static_busybox() else {
            skip("no static busybox is installed (Debian package busybox-static)");
            return None;
        };
        let scratch = Scratch::plain();
        let mounts = mount_table();
        let rootfs = scratch.dir("rootfs");
        for directory in ["bin", "etc", "data", "srv/deep", "mnt"] {
            fs::create_dir_all(rootfs.join(directory)).unwrap();
        }
        fs::copy(busybox, rootfs.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        let passwd = "root:x:0:0::/root:/bin/sh\nme:x:1000:100::/home/me:/bin/sh\n";
        fs::write(rootfs.join("etc/passwd"), passwd).unwrap();
        fs::write(rootfs.join("etc/group"), "root:x:0:\nusers:x:100:\naudio:x:29:me\n").unwrap();
        for n in 0..20 {
            fs::write(rootfs.join(format!("data/f{n}")), format!("file {n}")).unwrap();
        }
        fs::hard_link(rootfs.join("data/f1"), rootfs.join("srv/deep/link")).unwrap();
        let store = scratch.path().join("store");
        Some(Self { mounts, scratch, rootfs, store })
    }

    pub(crate) fn path(&self) -> &Path {
        self.scratch.path()
    }

    pub(crate) fn rootfs(&self) -> &Path {
        &self.rootfs
    }

    pub(crate) fn store(&self) -> &Path {
        &self.store
    }

    /// Directories of containers.
    pub(crate) fn containers(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.store.join("containers")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    }

    /// What is known of the only container.
    pub(crate) fn state(&self) -> serde_json::Value {
        let containers = self.containers();
        let [container] = &containers[..] else { panic!("not one container: {containers:?}") };
        serde_json::from_slice(&fs::read(container.join("state.json")).unwrap()).unwrap()
    }

    fn command(&self, rootfs: &Path, remove: bool, arguments: &[&str]) -> Command {
        let mut command = Command::new(layerfs_binary().unwrap());
        command.args(["run", "--rootfs"]).arg(rootfs);
        if remove {
            command.arg("--rm");
        }
        command
            .args(arguments)
            .env("LAYERFS_ROOT", &self.store)
            .env("FROM_HERE", "from here")
            .stdin(Stdio::null());
        command
    }

    /// Runs on the test's root filesystem, with `--rm`.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        finish(self.command(&self.rootfs, true, arguments), "")
    }

    pub(crate) fn run_with_input(&self, arguments: &[&str], input: &str) -> Output {
        finish(self.command(&self.rootfs, true, arguments), input)
    }

    pub(crate) fn run_keeping(&self, arguments: &[&str]) -> Output {
        finish(self.command(&self.rootfs, false, arguments), "")
    }

    pub(crate) fn run_on(&self, rootfs: &str, arguments: &[&str]) -> Output {
        finish(self.command(Path::new(rootfs), true, arguments), "")
    }

    /// Starts a run whose output is read as it comes.
    pub(crate) fn start(&self, arguments: &[&str], stdin: Stdio) -> Running {
        let mut command = self.command(&self.rootfs, true, arguments);
        let mut child = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let output: OwnedFd = child.stdout.take().unwrap().into();
        Running { child, output, input: None, seen: Vec::new() }
    }

    /// Starts a run on a terminal.
    pub(crate) fn start_on(&self, arguments: &[&str], terminal: &Terminal) -> Running {
        let mut command = self.command(&self.rootfs, true, arguments);
        let slave = || Stdio::from(terminal.slave.try_clone().unwrap());
        let child = command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
        let master = || terminal.master.try_clone().unwrap();
        Running { child, output: master(), input: Some(master()), seen: Vec::new() }
    }

    /// Runs as a user who is in no file and no group, with a `/dev/fuse` that such users may open. `None` where
    /// the binary or user namespaces are out of such a user's reach, which has been said.
    pub(crate) fn run_as_ordinary_user(&self, arguments: &[&str]) -> Option<Output> {
        use std::os::unix::process::CommandExt;
        const USER: u32 = 54321;
        let devices = self.scratch.dir("devices");
        let tmpfs = self.mount_tmpfs(&devices);
        let fuse = devices.join("fuse");
        let number = rustix::fs::makedev(10, 229);
        let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::from_raw_mode(0o666));
        rustix::fs::mknodat(rustix::fs::CWD, &fuse, kind, mode, number).unwrap();
        rustix::fs::chmodat(rustix::fs::CWD, &fuse, mode, rustix::fs::AtFlags::empty()).unwrap();
        rustix::mount::mount_bind(&fuse, "/dev/fuse").unwrap();
        let bound = Tmpfs(Path::new("/dev/fuse"));
        let store = self.scratch.dir("store-of-a-user");
        std::os::unix::fs::chown(&store, Some(USER), Some(USER)).unwrap();
        let as_user = |mut command: Command| {
            command.uid(USER).gid(USER).env_remove("LAYERFS_ROOT").env("XDG_DATA_HOME", &store);
            finish_maybe(command, "")
        };
        let mut version = Command::new(layerfs_binary().unwrap());
        version.arg("version");
        let output = match as_user(version) {
            Ok(_)
                if fs::read_to_string("/proc/sys/user/max_user_namespaces")
                    .is_ok_and(|max| max.trim() == "0") =>
            {
                skip("user namespaces are switched off (/proc/sys/user/max_user_namespaces)");
                None
            }
            Ok(_) => Some(as_user(self.command(&self.rootfs, true, arguments)).unwrap()),
            Err(error) => {
                skip(&format!("an ordinary user cannot execute the layerfs binary: {error}"));
                None
            }
        };
        let left = fs::read_dir(store.join("layerfs/containers")).map(|entries| entries.count()).unwrap_or(1);
        assert_eq!(left, 1, "more than the lock is left in the user's store");
        drop((bound, tmpfs));
        output
    }

    /// Makes the machine look as one whose cgroups are all in the unified hierarchy, for the calling thread.
    pub(crate) fn unify_cgroups(&mut self) {
        rustix::mount::unmount("/sys/fs/cgroup", rustix::mount::UnmountFlags::DETACH).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", "/sys/fs/cgroup", "cgroup2", flags, None).unwrap();
        self.mounts = mount_table();
    }

    pub(crate) fn mount_tmpfs<'a>(&self, target: &'a Path) -> Tmpfs<'a> {
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", target, "tmpfs", flags, None).unwrap();
        Tmpfs(target)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What a run killed by the failing test has left goes while its store still says what it is.
            finish(self.command(&self.rootfs, true, &["--", "true"]), "");
            return;
        }
        assert_eq!(self.containers(), Vec::<PathBuf>::new(), "containers are left");
        // Mounts may go meanwhile: removing a mountpoint takes it out of every namespace.
        let new: Vec<String> = mount_table()
            .lines()
            .filter(|line| !self.mounts.lines().any(|before| before == *line))
            .map(str::to_owned)
            .collect();
        assert_eq!(new, Vec::<String>::new(), "mounts are left");
    }
}

/// A mounted tmpfs, unmounted when dropped.
pub(crate) struct Tmpfs<'a>(&'a Path);

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

const APPLETS: [&str; 34] = [
    "sh", "cat", "chmod", "chroot", "cut", "echo", "env", "grep", "head", "hostname", "id", "ls", "mkdir",
    "mknod", "mount", "mv", "nice", "ping", "ps", "pwd", "readlink", "rm", "sleep", "sort", "stty", "tail",
    "test", "touch", "true", "tty", "umount", "unshare", "wc", "[",
];

/// Busybox that needs no libraries.
fn static_busybox() -> Option<PathBuf> {
    let path = ["/bin/busybox", "/usr/bin/busybox"].iter().map(PathBuf::from).find(|path| path.is_file())?;
    let image = fs::read(&path).ok()?;
    // A dynamic program names its interpreter in its first page.
    let head = &image[..image.len().min(4096)];
    (!head.windows(8).any(|window| window == b"ld-linux")).then_some(path)
}

/// The calling thread's mounts, which no other test changes.
fn mount_table() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
}

fn finish(command: Command, input: &str) -> Output {
    finish_maybe(command, input).unwrap()
}

/// An error when the program cannot be executed.
fn finish_maybe(mut command: Command, input: &str) -> std::io::Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // The command may end without reading it.
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    let output = child.wait_with_output()?;
    Ok(Output {
        code: code_of(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn code_of(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
}

/// A run that has not ended.
pub(crate) struct Running {
    child: Child,
    output: OwnedFd,
    input: Option<OwnedFd>,
    seen: Vec<u8>,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn type_in(&mut self, keys: &str) {
        let mut input = fs::File::from(self.input.as_ref().unwrap().try_clone().unwrap());
        input.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads until `text` has come; what is before it is passed over.
    pub(crate) fn wait_for(&mut self, text: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let found = self.seen.windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = found {
                self.seen.drain(..at + text.len());
                return;
            }
            let seen = || String::from_utf8_lossy(&self.seen);
            assert!(readable(&self.output, end), "waiting for {text:?}, got {:?}", seen());
            let mut buffer = [0_u8; 4096];
            let mut file = fs::File::from(self.output.try_clone().unwrap());
            let length = file.read(&mut buffer).unwrap_or(0);
            assert!(length > 0, "waiting for {text:?}, the end came after {:?}", seen());
            self.seen.extend_from_slice(&buffer[..length]);
        }
    }

    /// Waits for the end; the exit code, or 128 plus the signal.
    pub(crate) fn wait(&mut self) -> i32 {
        let pidfd = rustix::process::pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        let end = Instant::now() + PATIENCE;
        // A terminal must be read, or its writers wait for ever.
        while !readable_now(&pidfd) {
            assert!(Instant::now() < end, "the run does not end");
            let mut wanted = [PollFd::new(&pidfd, PollFlags::IN), PollFd::new(&self.output, PollFlags::IN)];
            rustix::event::poll(&mut wanted, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
            if wanted[1].revents().contains(PollFlags::IN) {
                let mut buffer = [0_u8; 4096];
                rustix::io::read(&self.output, &mut buffer).ok();
            } else if !wanted[1].revents().is_empty() {
                break;
            }
        }
        code_of(self.child.wait().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

fn readable_now(fd: impl AsFd) -> bool {
    readable(fd, Instant::now())
}

fn readable(fd: impl AsFd, end: Instant) -> bool {
    let left = end.saturating_duration_since(Instant::now());
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
    let fd = fd.as_fd();
    let mut wanted = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut wanted, Some(&timeout))).unwrap() > 0
}

/// A process that is not a child of the test.
pub(crate) struct Watch(OwnedFd);

impl Watch {
    pub(crate) fn new(pid: i64) -> Self {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        Self(rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap())
    }

    pub(crate) fn kill(&self) {
        rustix::process::pidfd_send_signal(&self.0, Signal::KILL).unwrap();
    }

    pub(crate) fn wait_for_end(&self) {
        assert!(readable(&self.0, Instant::now() + PATIENCE), "the process does not end");
    }
}

/// A terminal, as a user has one.
pub(crate) struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
}

impl Terminal {
    pub(crate) fn new(rows: u16, columns: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        let terminal = Self { master, slave };
        terminal.resize(rows, columns);
        terminal
    }

    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.master, size).unwrap();
    }

    /// How it treats keys and output.
    pub(crate) fn modes(&self) -> (u32, u32, u32) {
        let modes = rustix::termios::tcgetattr(&self.slave).unwrap();
        (modes.input_modes.bits(), modes.output_modes.bits(), modes.local_modes.bits())
    }
}

/// Everything of a tree that must not change: contents, attributes, inode numbers, times of change.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut left = vec![root.to_path_buf()];
    while let Some(path) = left.pop() {
        let stat = path.symlink_metadata().unwrap();
        let content = match () {
            () if stat.is_file() => format!(
                "{:x?}",
                fs::read(&path)
                    .unwrap()
                    .iter()
                    .fold(0_u64, |hash, byte| { hash.wrapping_mul(31).wrapping_add(u64::from(*byte)) })
            ),
            () if stat.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
            () => String::new(),
        };
        if stat.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let facts = format!(
            "{:o} {}:{} {} {} {}.{} {}.{} {content}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.ino(),
            stat.nlink(),
            stat.mtime(),
            stat.mtime_nsec(),
            stat.ctime(),
            stat.ctime_nsec()
        );
        all.insert(path.strip_prefix(root).unwrap().to_path_buf(), facts);
    }
    all
}
