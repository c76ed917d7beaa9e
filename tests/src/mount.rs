//! A mounted union, unmounted and joined when dropped.
//!
//! The same stack can be mounted as a plain directory (the reference), kernel overlayfs, fuse-overlayfs or
//! layerfs. Filesystem processes run in the foreground as children; readiness is an event (the mount table
//! changed, or the child ended), never a guess.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::privilege::layerfs_binary;
use crate::sys::die_with_parent;

/// No mount and no unmount takes this long, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which filesystem shows the stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FsKind {
    /// A plain directory: `merged` itself, filled by the caller.
    Dir,
    /// The kernel's overlayfs with these further options.
    KernelOverlay(String),
    /// fuse-overlayfs, if installed.
    FuseOverlayfs(String),
    /// The filesystem under test with these further options (may be empty).
    Layerfs(String),
}

impl FsKind {
    /// Kernel overlayfs with every feature that layerfs has.
    #[must_use]
    pub fn full_kernel_overlay() -> Self {
        Self::KernelOverlay("redirect_dir=on,metacopy=on,index=on,xino=on".into())
    }

    /// Kernel overlayfs as a reader of uppers that something else wrote: follows redirects and metacopy.
    #[must_use]
    pub fn reading_kernel_overlay() -> Self {
        Self::KernelOverlay("redirect_dir=on,metacopy=on,index=off,xino=on".into())
    }

    /// layerfs with its defaults.
    #[must_use]
    pub fn layerfs() -> Self {
        Self::Layerfs(String::new())
    }
}

/// The filesystem that tests not about a comparison run on: layerfs with these options, unless
/// `LAYERFS_TEST_KIND` is `kernel` or `fuse-overlayfs` (to prove a new test there first).
#[must_use]
pub fn under_test(options: &str) -> FsKind {
    match std::env::var("LAYERFS_TEST_KIND").as_deref() {
        Ok("kernel") => FsKind::full_kernel_overlay(),
        Ok("fuse-overlayfs") => FsKind::FuseOverlayfs(String::new()),
        _ => FsKind::Layerfs(options.to_owned()),
    }
}

/// The directories of a union.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// Top first.
    pub lowers: Vec<PathBuf>,
    /// `upperdir` and `workdir`; `None` mounts read-only.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Where it is mounted.
    pub merged: PathBuf,
}

impl Stack {
    /// Directories named `lower0`..., `upper`, `work`, `merged` below `home`, all made here.
    pub fn make(home: &Path, lowers: usize) -> Self {
        let dir = |name: String| {
            let path = home.join(name);
            fs::create_dir_all(&path).expect("make a directory of the stack");
            path
        };
        Self {
            lowers: (0..lowers).map(|n| dir(format!("lower{n}"))).collect(),
            upper: Some((dir("upper".into()), dir("work".into()))),
            merged: dir("merged".into()),
        }
    }

    /// The same tree, read-only, with what was the upper as the topmost lower, at another mountpoint.
    #[must_use]
    pub fn read_only(&self, merged: PathBuf) -> Self {
        fs::create_dir_all(&merged).expect("make the mountpoint");
        let mut lowers = self.lowers.clone();
        if let Some((upper, _)) = &self.upper {
            lowers.insert(0, upper.clone());
        }
        Self { lowers, upper: None, merged }
    }

    /// Where changes are kept.
    #[must_use]
    pub fn upper(&self) -> &Path {
        &self.upper.as_ref().expect("a writable stack").0
    }

    /// Its scratch directory.
    #[must_use]
    pub fn work(&self) -> &Path {
        &self.upper.as_ref().expect("a writable stack").1
    }

    /// The option text that names the layers.
    #[must_use]
    pub fn options(&self) -> String {
        let lowers: Vec<_> = self.lowers.iter().map(|path| path.display().to_string()).collect();
        let mut text = format!("lowerdir={}", lowers.join(":"));
        if let Some((upper, work)) = &self.upper {
            text += &format!(",upperdir={},workdir={}", upper.display(), work.display());
        }
        text
    }
}

/// A union that is mounted as long as this lives.
#[derive(Debug)]
pub struct Mount {
    kind: FsKind,
    stack: Stack,
    state: State,
    nofile: Option<u64>,
}

#[derive(Debug)]
enum State {
    Down,
    /// In the kernel, or nothing to unmount.
    Up,
    Served(Server),
}

/// The process that serves a FUSE mount.
#[derive(Debug)]
struct Server {
    child: Child,
    /// Its standard error, kept in a file so that it can never block.
    log: PathBuf,
}

impl Mount {
    /// Mounts; the test fails with the filesystem's own words if that does not work.
    #[must_use]
    pub fn new(kind: FsKind, stack: Stack) -> Self {
        let words = format!("mount {kind:?}");
        Self::try_new(kind, stack).unwrap_or_else(|e| panic!("{words}: {e}"))
    }

    /// Mounts; the error holds the filesystem's own words.
    pub fn try_new(kind: FsKind, stack: Stack) -> Result<Self, String> {
        let mut mount = Self { kind, stack, state: State::Down, nofile: None };
        mount.up()?;
        Ok(mount)
    }

    /// Mounts with the server limited to this many descriptors (FUSE kinds).
    pub fn with_descriptor_limit(kind: FsKind, stack: Stack, limit: u64) -> Result<Self, String> {
        let mut mount = Self { kind, stack, state: State::Down, nofile: Some(limit) };
        mount.up()?;
        Ok(mount)
    }

    /// The root of the merged view.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.stack.merged
    }

    /// A path in the merged view.
    #[must_use]
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.stack.merged.join(path)
    }

    /// The directories behind it.
    #[must_use]
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// Which filesystem it is.
    #[must_use]
    pub fn kind(&self) -> &FsKind {
        &self.kind
    }

    /// Process id of the FUSE server, for signals.
    #[must_use]
    pub fn server(&self) -> Option<Pid> {
        match &self.state {
            State::Served(server) => Some(pid_of(&server.child)),
            _ => None,
        }
    }

    /// Unmounts and joins. Everything in the mount must be closed.
    pub fn down(&mut self) {
        if let Err(e) = self.try_down() {
            panic!("unmount {:?}: {e}", self.kind);
        }
    }

    /// Mounts the stack again, possibly another one, after [`Self::down`] or [`Self::kill`].
    pub fn up_with(&mut self, stack: Stack) {
        self.stack = stack;
        self.up().unwrap_or_else(|e| panic!("mount {:?} again: {e}", self.kind));
    }

    /// Unmounts and mounts again.
    pub fn remount(&mut self) {
        self.down();
        self.up().unwrap_or_else(|e| panic!("mount {:?} again: {e}", self.kind));
    }

    /// Mounts again after [`Self::down`] or [`Self::kill`]; the error holds the filesystem's own words.
    pub fn up(&mut self) -> Result<(), String> {
        assert!(matches!(self.state, State::Down), "already mounted");
        self.state = match &self.kind {
            FsKind::Dir => State::Up,
            FsKind::KernelOverlay(options) => {
                self.mount_in_kernel(options)?;
                State::Up
            }
            FsKind::FuseOverlayfs(options) => {
                let mut command = Command::new("fuse-overlayfs");
                command.arg("-f").arg("-o").arg(join_options(&self.stack, options)).arg(&self.stack.merged);
                State::Served(self.serve(command)?)
            }
            FsKind::Layerfs(options) => {
                let binary = layerfs_binary().ok_or("the layerfs binary is not built")?;
                let mut command = Command::new(binary);
                command
                    .args(["mount", "-f", "-o"])
                    .arg(join_options(&self.stack, options))
                    .arg(&self.stack.merged);
                State::Served(self.serve(command)?)
            }
        };
        Ok(())
    }

    /// Kills the server as a crash would (it may be dead already), and takes the dead mount away.
    pub fn kill(&mut self) {
        let State::Served(server) = &mut self.state else { panic!("{:?} has no server to kill", self.kind) };
        server.child.kill().expect("kill the server");
        server.child.wait().expect("wait for the killed server");
        detach(&self.stack.merged);
        self.state = State::Down;
    }

    /// Waits until the server has ended by itself.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let State::Served(server) = &mut self.state else { panic!("{:?} has no server", self.kind) };
        let status = server.wait().expect("wait for the server");
        self.state = State::Down;
        status
    }

    /// What the server wrote to its standard error so far.
    #[must_use]
    pub fn log(&self) -> String {
        match &self.state {
            State::Served(server) => server.words(),
            _ => String::new(),
        }
    }

    /// Takes the mount and its server away, whatever they are doing: for a watchdog.
    pub fn abort(pid: Option<Pid>) {
        if let Some(pid) = pid {
            // It may have ended already.
            if let Err(e) = kill_process(pid, Signal::KILL) {
                assert_eq!(e, rustix::io::Errno::SRCH, "kill the server");
            }
        }
    }

    fn mount_in_kernel(&self, options: &str) -> Result<(), String> {
        let data = join_options(&self.stack, options);
        let data = std::ffi::CString::new(data).map_err(|e| e.to_string())?;
        mount("overlay", &self.stack.merged, "overlay", MountFlags::empty(), Some(data.as_c_str()))
            .map_err(|e| format!("mount -t overlay -o {}: {e}", data.to_string_lossy()))
    }

    fn serve(&self, mut command: Command) -> Result<Server, String> {
        let log = self.stack.merged.with_extension("log");
        let stderr = File::create(&log).map_err(|e| format!("make {}: {e}", log.display()))?;
        if let Some(limit) = self.nofile {
            let mut limited = Command::new("prlimit");
            limited
                .arg(format!("--nofile={limit}:{limit}"))
                .arg(command.get_program())
                .args(command.get_args());
            command = limited;
        }
        let before = device_of(&self.stack.merged)?;
        let table = openat(CWD, "/proc/thread-self/mountinfo", OFlags::RDONLY, Mode::empty())
            .map_err(|e| format!("open the mount table: {e}"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let child = die_with_parent(&mut command).spawn().map_err(|e| format!("start {command:?}: {e}"))?;
        let mut server = Server { child, log };
        let started = Instant::now();
        loop {
            // Reading the whole table arms the next event.
            let mut text = String::new();
            std::io::Read::read_to_string(
                &mut File::open("/proc/thread-self/mountinfo").map_err(|e| e.to_string())?,
                &mut text,
            )
            .map_err(|e| e.to_string())?;
            // The first request is answered once the server serves; until then stat waits inside.
            if is_mounted(&text, &self.stack.merged) && device_of(&self.stack.merged)? != before {
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait().map_err(|e| e.to_string())? {
                return Err(format!("{status}: {}", server.words()));
            }
            if started.elapsed() > PATIENCE {
                server.stop();
                return Err(format!("not mounted after {PATIENCE:?}: {}", server.words()));
            }
            let ended = server.pidfd()?;
            let mut events =
                [PollFd::new(&table, PollFlags::PRI | PollFlags::ERR), PollFd::new(&ended, PollFlags::IN)];
            let limit = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
            poll(&mut events, Some(&limit)).map_err(|e| format!("wait for the mount: {e}"))?;
        }
    }

    fn try_down(&mut self) -> Result<(), String> {
        match std::mem::replace(&mut self.state, State::Down) {
            State::Down => Ok(()),
            State::Up if self.kind == FsKind::Dir => Ok(()),
            State::Up => unmount_patiently(&self.stack.merged).map_err(|e| e.to_string()),
            State::Served(mut server) => {
                if let Err(e) = unmount_patiently(&self.stack.merged) {
                    detach(&self.stack.merged);
                    server.stop();
                    return Err(format!("{e}; the server wrote: {}", server.words()));
                }
                let status = server.wait()?;
                if status.success() { Ok(()) } else { Err(format!("{status}: {}", server.words())) }
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(e) = self.try_down() {
            detach(&self.stack.merged);
            if !std::thread::panicking() {
                panic!("unmount {:?}: {e}", self.kind);
            }
        }
    }
}

impl Server {
    fn pidfd(&self) -> Result<OwnedFd, String> {
        pidfd_open(pid_of(&self.child), PidfdFlags::empty()).map_err(|e| format!("pidfd of the server: {e}"))
    }

    /// Waits for the end of the process, no longer than [`PATIENCE`].
    fn wait(&mut self) -> Result<ExitStatus, String> {
        let ended = self.pidfd()?;
        let limit = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let mut events = [PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN)];
        if poll(&mut events, Some(&limit)).map_err(|e| e.to_string())? == 0 {
            self.stop();
            return Err(format!("the server did not end within {PATIENCE:?}: {}", self.words()));
        }
        self.child.wait().map_err(|e| e.to_string())
    }

    fn stop(&mut self) {
        let killed = self.child.kill();
        let ended = self.child.wait();
        assert!(killed.is_ok() && ended.is_ok(), "stop the server: {killed:?}, {ended:?}");
    }

    fn words(&self) -> String {
        fs::read(&self.log).map_or_else(|e| e.to_string(), |text| String::from_utf8_lossy(&text).into_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn join_options(stack: &Stack, more: &str) -> String {
    if more.is_empty() { stack.options() } else { format!("{},{more}", stack.options()) }
}

fn device_of(path: &Path) -> Result<u64, String> {
    fs::metadata(path).map(|m| m.dev()).map_err(|e| format!("stat {}: {e}", path.display()))
}

fn is_mounted(table: &str, path: &Path) -> bool {
    table.lines().any(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == path))
}

/// Unmounts; a mount that is busy is tried again for a while.
///
/// Between fork and exec a child of one test holds copies of the descriptors of all others of the same
/// process, and their mounts are busy. The kernel tells nobody when that ends.
pub(crate) fn unmount_patiently(path: &Path) -> rustix::io::Result<()> {
    let started = Instant::now();
    loop {
        match unmount(path, UnmountFlags::empty()) {
            Err(rustix::io::Errno::BUSY) if started.elapsed() < Duration::from_secs(5) => {
                std::thread::yield_now()
            }
            other => return other,
        }
    }
}

/// Takes away a mount that may be dead or in use. Nothing mounted there is fine.
fn detach(path: &Path) {
    match unmount(path, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(e) => eprintln!("detach {}: {e}", path.display()),
    }
}
