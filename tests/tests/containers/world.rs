//! A store with an image of a static busybox.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use layerfs_tests::privilege::{layerfs_binary, require_fuse, require_root, skip};
use layerfs_tests::scratch::Scratch;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

/// Nothing here takes this long, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module's text.
pub(crate) struct World {
    scratch: Scratch,
    store: PathBuf,
    host: Option<Host>,
    /// Who runs the commands, if not root.
    user: Option<u32>,
}

/// Nobody of this id is in a file or a group of the machine.
const ORDINARY_USER: u32 = 54321;

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A process in a network namespace of its own; it ends when its input does, and that when this is dropped.
#[derive(Debug)]
struct Host(std::process::Child);

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().ok();
    }
}

impl World {
    /// As [`new`](Self::new), with a network of the machine's own kind: a namespace in which commands run, and where
    /// `bridge` is the default network.
    pub(crate) fn with_networks() -> Option<Self> {
        Self::new()?.in_namespace()
    }

    fn in_namespace(mut self) -> Option<Self> {
        let child = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up; echo ready; read x"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut host = Host(child);
        let mut said = [0; 6];
        let heard = std::io::Read::read_exact(host.0.stdout.as_mut().unwrap(), &mut said);
        if heard.is_err() {
            skip("no network namespace can be made here");
            return None;
        }
        self.host = Some(host);
        Some(self)
    }

    /// As [`new`](Self::new), of a user without rights and without subordinate ids.
    pub(crate) fn of_ordinary_user() -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        use std::os::unix::process::CommandExt;
        if !require_root() || !require_fuse() {
            return None;
        }
        if fs::metadata("/dev/fuse").is_ok_and(|device| device.mode() & 0o006 != 0o006) {
            skip("/dev/fuse is not open to ordinary users");
            return None;
        }
        let mut probe = Command::new(layerfs_binary().unwrap());
        if let Err(error) = probe.arg("version").stdout(Stdio::null()).uid(ORDINARY_USER).status() {
            skip(&format!("an ordinary user cannot execute the layerfs binary: {error}"));
            return None;
        }
        let mut probe = Command::new("unshare");
        if !probe.args(["--user", "true"]).uid(ORDINARY_USER).status().is_ok_and(|status| status.success()) {
            skip("an ordinary user can make no user namespace here");
            return None;
        }
        Self::make(Some(ORDINARY_USER), None)
    }

    /// As [`with_networks`](Self::with_networks), with a store on a filesystem in memory of so many bytes.
    pub(crate) fn on_small_disk(bytes: u32) -> Option<Self> {
        Self::make(None, Some(bytes))?.in_namespace()
    }

    /// `None` where the machine does not allow it, which has been said.
    pub(crate) fn new() -> Option<Self> {
        Self::make(None, None)
    }

    fn make(user: Option<u32>, disk: Option<u32>) -> Option<Self> {
        if !require_root() || !require_fuse() {
            return None;
        }
        let path = ["/bin/busybox", "/usr/bin/busybox"].iter().map(Path::new).find(|path| path.is_file());
        let is_static = |path: &Path| {
            let bytes = fs::read(path).unwrap();
            !bytes[..bytes.len().min(4096)].windows(8).any(|window| window == b"ld-linux")
        };
        let Some(busybox) = path.filter(|path| is_static(path)) else {
            skip("no static busybox is installed (Debian package busybox-static)");
            return None;
        };
        let scratch = Scratch::plain();
        let rootfs = scratch.dir("rootfs");
        for directory in ["bin", "etc", "data", "root", "srv/volume"] {
            fs::create_dir_all(rootfs.join(directory)).unwrap();
        }
        fs::copy(busybox, rootfs.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "cat", "echo", "env", "hostname", "id", "kill", "ls", "mkdir", "pwd", "rm", "seq", "sleep",
            "stty", "test", "chmod", "ln", "mv", "cp", "printf", "chown", "mkfifo", "touch", "true", "false",
            "tty", "wc", "yes", "head", "grep", "[",
        ] {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        fs::write(rootfs.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nme:x:1000:100::/home/me:/bin/sh\n")
            .unwrap();
        fs::write(rootfs.join("etc/group"), "root:x:0:\nusers:x:100:\naudio:x:29:me\n").unwrap();
        fs::write(rootfs.join("srv/volume/file"), "from the image").unwrap();
        fs::write(rootfs.join("srv/plain"), "plain\n").unwrap();
        fs::create_dir_all(rootfs.join("srv/d/e")).unwrap();
        fs::write(rootfs.join("srv/d/e/f"), "in a directory\n").unwrap();
        let world = Self { store: scratch.dir("store"), scratch, host: None, user };
        if let Some(bytes) = disk {
            let size = std::ffi::CString::new(format!("size={bytes}")).unwrap();
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("disk", &world.store, "tmpfs", flags, Some(size.as_c_str())).unwrap();
        }
        if user.is_some() {
            std::os::unix::fs::chown(&world.store, user, user).unwrap();
        }
        let archive = world.scratch.path().join("rootfs.tar");
        let status =
            Command::new("tar").arg("-C").arg(&rootfs).arg("-cf").arg(&archive).arg(".").status().unwrap();
        assert!(status.success());
        world.ok(&[
            "import",
            "-c",
            "CMD [\"echo\", \"from the image\"]",
            "-c",
            "ENV COLOUR=red PATH=/bin",
            "-c",
            "STOPSIGNAL SIGUSR1",
            "-c",
            "VOLUME /srv/volume",
            "-c",
            "LABEL kind=test",
            "-c",
            "WORKDIR /data",
            archive.to_str().unwrap(),
            "box",
        ]);
        Some(world)
    }

    pub(crate) fn path(&self) -> &Path {
        self.scratch.path()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let binary = layerfs_binary().unwrap();
        let mut command = match &self.host {
            None => {
                let mut command = Command::new(binary);
                // Every world has a root of its own, and many at once would want the same addresses.
                command.env("LAYERFS_NETWORK", "none");
                command
            }
            Some(host) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/proc/{}/ns/net", host.0.id())).arg(binary);
                command
            }
        };
        if let Some(user) = self.user {
            use std::os::unix::process::CommandExt;
            command.uid(user).gid(user);
        }
        command
            .args(arguments)
            .env("LAYERFS_ROOT", &self.store)
            .env("FROM_HERE", "from here")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn layerfs(&self, arguments: &[&str]) -> Output {
        self.with_input(arguments, "")
    }

    pub(crate) fn with_input(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.command(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The command may end without reading it.
        child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
        let output = child.wait_with_output().unwrap();
        use std::os::unix::process::ExitStatusExt;
        Output {
            code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap()),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// What a command that succeeds prints, without the last end of line.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.layerfs(arguments);
        assert_eq!(output.code, 0, "{arguments:?}: {output:?}");
        output.stdout.trim_end_matches('\n').to_owned()
    }

    pub(crate) fn inspect(&self, name: &str, template: &str) -> String {
        self.ok(&["inspect", "-f", template, name])
    }

    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        self.store.join("containers").join(self.inspect(name, "{{.Id}}"))
    }

    pub(crate) fn state(&self, name: &str) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.directory(name).join("state.json")).unwrap()).unwrap()
    }

    /// Waits until the container is as `template` and `wanted` say, at each change of its directory.
    pub(crate) fn wait_until(&self, name: &str, template: &str, wanted: &str) {
        use rustix::fs::inotify;
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
        let flags = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CREATE | inotify::WatchFlags::MODIFY;
        inotify::add_watch(&watch, self.directory(name), flags).unwrap();
        let end = Instant::now() + PATIENCE;
        loop {
            let now = self.inspect(name, template);
            if now == wanted {
                return;
            }
            assert!(Instant::now() < end, "{name}: {template} is {now}, not {wanted}");
            readable(&watch, end.min(Instant::now() + Duration::from_secs(1)));
            rustix::io::read(&watch, &mut [0_u8; 4096]).ok();
        }
    }

    /// Starts a command on a terminal.
    pub(crate) fn on_terminal(&self, arguments: &[&str], terminal: &Terminal) -> Running {
        let mut command = self.command(arguments);
        let slave = || Stdio::from(terminal.slave.try_clone().unwrap());
        let child = command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
        Running { child, output: Some(terminal.master.try_clone().unwrap()), seen: Vec::new() }
    }

    /// Starts a command whose output is read as it comes.
    pub(crate) fn running(&self, arguments: &[&str]) -> Running {
        let mut child = self.command(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let output = child.stdout.take().map(OwnedFd::from);
        Running { child, output, seen: Vec::new() }
    }

    pub(crate) fn containers(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.store.join("containers")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    }

    /// Processes that mention this store: monitors and whatever else of it is left.
    pub(crate) fn processes(&self) -> Vec<String> {
        let store = self.store.as_os_str().as_encoded_bytes();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if entry.file_name().to_string_lossy().parse::<u32>().is_ok()
                && line.windows(store.len()).any(|window| window == store)
            {
                found.push(format!(
                    "{:?}: {}",
                    entry.file_name(),
                    String::from_utf8_lossy(&line).replace('\0', " ")
                ));
            }
        }
        found
    }
}

/// What is mounted on a store goes with this, if anything is; its directory is removed after that.
struct Disk<'a>(&'a Path);

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH).ok();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _disk = Disk(&self.store);
        let ids = self.layerfs(&["ps", "-aq", "--no-trunc"]).stdout;
        let mut arguments = vec!["rm", "-f"];
        arguments.extend(ids.lines());
        let removed = (arguments.len() > 2).then(|| self.layerfs(&arguments));
        if std::thread::panicking() {
            return;
        }
        assert!(removed.as_ref().is_none_or(|output| output.code == 0), "{removed:?}");
        assert_eq!(self.containers(), Vec::<PathBuf>::new(), "containers are left");
        let names: Vec<_> = fs::read_dir(self.store.join("names")).unwrap().collect();
        assert!(names.is_empty(), "names are left: {names:?}");
        // Monitors end right after they have told that they do.
        let end = Instant::now() + PATIENCE;
        while !self.processes().is_empty() {
            assert!(Instant::now() < end, "processes are left: {:?}", self.processes());
            std::thread::yield_now();
        }
    }
}

/// A command that has not ended.
pub(crate) struct Running {
    child: Child,
    /// None when it is not read any more.
    output: Option<OwnedFd>,
    seen: Vec<u8>,
}

impl Running {
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn window_changed(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::WINCH).unwrap();
    }

    pub(crate) fn type_in(&mut self, keys: &[u8]) {
        fs::File::from(self.output().try_clone().unwrap()).write_all(keys).unwrap();
    }

    /// Reads until `text` has come; what is before it is passed over.
    pub(crate) fn wait_for(&mut self, text: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.windows(text.len()).position(|window| window == text.as_bytes()) {
                self.seen.drain(..at + text.len());
                return;
            }
            // What cannot be part of it any more is not looked at again.
            self.seen.drain(..self.seen.len().saturating_sub(text.len()));
            assert!(
                readable(self.output(), end),
                "waiting for {text:?}, got {:?}",
                String::from_utf8_lossy(&self.seen)
            );
            let mut buffer = [0_u8; 4096];
            let length = fs::File::from(self.output().try_clone().unwrap()).read(&mut buffer).unwrap_or(0);
            assert!(
                length > 0,
                "waiting for {text:?}, the end came after {:?}",
                String::from_utf8_lossy(&self.seen)
            );
            self.seen.extend_from_slice(&buffer[..length]);
        }
    }

    fn output(&self) -> &OwnedFd {
        self.output.as_ref().expect("its output was closed")
    }

    /// Reads its output no more.
    pub(crate) fn close(&mut self) {
        self.output = None;
    }

    /// Waits for the end.
    pub(crate) fn code(&mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap_or(-1)
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

fn readable(fd: impl AsFd, end: Instant) -> bool {
    let left = end.saturating_duration_since(Instant::now());
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
    let fd = fd.as_fd();
    let mut wanted = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut wanted, Some(&timeout))).unwrap() > 0
}

/// A terminal, as a user has one.
pub(crate) struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
}

impl Terminal {
    pub(crate) fn new() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        let terminal = Self { master, slave };
        terminal.resize(24, 80);
        terminal
    }

    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.master, size).unwrap();
    }
}
