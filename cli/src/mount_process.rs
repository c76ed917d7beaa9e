//! The process behind a mount: forked, told to mount, and left to serve until it is unmounted.
//!
//! Must hold: the child mounts in its final process and before it has threads; the parent returns only when the
//! mount is served or with the child's whole error; a caller that waits for the end of our stderr is not kept
//! waiting by the child, so the child closes everything it inherited before it reports.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, anyhow, bail};
use layerfs_runner::state::ProcessIdentity;
use layerfs_unionfs::config::Config;
use layerfs_unionfs::mount::{self, Mounted, Unmounter};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use serde::{Deserialize, Serialize};

use crate::exit::Hinted;
use crate::logging::LogOptions;
use crate::sys::{self, Fork, LeaveSignals};

/// Name of the process, as `ps -o comm` and `/proc/PID/comm` show it (at most 15 bytes).
pub(crate) const PROCESS_NAME: &str = "layerfs-mount";

/// Longest path that a system call takes, with its final NUL.
const PATH_MAX: usize = 4096;

/// A mount served by another process, a child of this one.
#[derive(Debug)]
pub(crate) struct MountProcess {
    /// The child. It leads a session of its own, so a terminal's signals do not reach it.
    pub(crate) pid: Pid,
}

/// What the child tells its parent, once.
#[derive(Debug, Serialize, Deserialize)]
enum Message {
    /// The mount is made and served.
    Mounted,
    /// It failed: the causes, outermost first.
    Failed { chain: Vec<String>, hint: Option<String> },
}

/// Mounts `config` on `target` in a new process and returns when the mount is served.
///
/// The new process belongs to no terminal and keeps none of this process's descriptors, except what the log
/// goes to. Relative paths are taken from the current directory. Must be called while this process has one
/// thread. Dropping the result leaves the mount alone.
///
/// # Errors
/// Whatever the mount process reports, its whole chain of causes; nothing is mounted then.
pub(crate) fn spawn(config: &Config, target: &Path, log: &LogOptions) -> anyhow::Result<MountProcess> {
    spawn_holding(config, target, log, &[], None)
}

/// As [`spawn`]; the new process keeps the descriptors `held` open, with the locks on them, as long as it lives, and writes
/// who it is to the file `announce` before it mounts: should this process be killed, it is found by that.
///
/// # Errors
/// As [`spawn`].
pub(crate) fn spawn_holding(
    config: &Config,
    target: &Path,
    log: &LogOptions,
    held: &[BorrowedFd<'_>],
    announce: Option<&Path>,
) -> anyhow::Result<MountProcess> {
    begin(config, target, log, held, announce, None)?.wait()
}

/// As [`spawn_holding`], without waiting.
///
/// # Errors
/// When the process could not be made.
pub(crate) fn begin_holding(
    config: &Config,
    target: &Path,
    log: &LogOptions,
    held: &[BorrowedFd<'_>],
    announce: &Path,
) -> anyhow::Result<Pending> {
    begin(config, target, log, held, Some(announce), None)
}

/// As [`spawn`]; the new process unmounts and leaves when this one ends, however that happens.
///
/// # Errors
/// As [`spawn`].
pub(crate) fn spawn_bound(config: &Config, target: &Path, log: &LogOptions) -> anyhow::Result<MountProcess> {
    begin(config, target, log, &[], None, Some(rustix::process::getpid()))?.wait()
}

/// A mount that is being made by its process.
#[derive(Debug)]
pub(crate) struct Pending {
    pid: Pid,
    report: OwnedFd,
}

impl Pending {
    /// Of a process that another one has made.
    pub(crate) fn of(pid: Pid, report: OwnedFd) -> Self {
        Self { pid, report }
    }

    /// Its process, and the descriptor on which that reports.
    pub(crate) fn into_parts(self) -> (Pid, OwnedFd) {
        (self.pid, self.report)
    }

    /// Waits until the mount answers.
    ///
    /// # Errors
    /// Whatever the mount process reports, its whole chain of causes; nothing is mounted then.
    pub(crate) fn wait(self) -> anyhow::Result<MountProcess> {
        let mut text = Vec::new();
        File::from(self.report).read_to_end(&mut text).context("hear from the mount process")?;
        let process = MountProcess { pid: self.pid };
        match serde_json::from_slice(&text) {
            Ok(Message::Mounted) => Ok(process),
            Ok(Message::Failed { chain, hint }) => {
                process.wait().ok();
                Err(rebuilt(chain, hint))
            }
            Err(_) => Err(anyhow!("the mount process {} before the mount was made", process.ending())),
        }
    }

    /// Waits until it has mounted or failed; how, somebody else has heard or will not hear.
    pub(crate) fn settle(self) {
        let mut rest = Vec::new();
        if let Err(error) = File::from(self.report).read_to_end(&mut rest) {
            tracing::debug!(%error, "hear from the mount process");
        }
    }
}

fn begin(
    config: &Config,
    target: &Path,
    log: &LogOptions,
    held: &[BorrowedFd<'_>],
    announce: Option<&Path>,
    bound_to: Option<Pid>,
) -> anyhow::Result<Pending> {
    let config = absolute_config(config)?;
    let target = absolute_target(target)?;
    let log = LogOptions { file: log.file.as_deref().map(absolute).transpose()?, ..log.clone() };
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .context("make a pipe to the mount process")?;
    let child = match sys::fork().context("start the mount process")? {
        Fork::Child => {
            drop(reader);
            if let Some(parent) = bound_to {
                // One that ended before this call sends nothing.
                let is_bound = rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).is_ok();
                if !is_bound || rustix::process::getppid() != Some(parent) {
                    std::process::exit(i32::from(crate::exit::MOUNT));
                }
            }
            // Whoever called this must never be returned to, whatever happens.
            let serve = || in_child(&config, &target, &log, File::from(writer), held, announce);
            let code = std::panic::catch_unwind(AssertUnwindSafe(serve));
            std::process::exit(code.unwrap_or_else(|_| i32::from(crate::exit::MOUNT)));
        }
        Fork::Parent(pid) => pid,
    };
    Ok(Pending { pid: child, report: reader })
}

/// Mounts `config` on `target` and serves it in this process until it is unmounted.
///
/// # Errors
/// When the mount cannot be made, or serving it failed.
pub(crate) fn serve_here(config: &Config, target: &Path, log: &LogOptions) -> anyhow::Result<()> {
    let config = absolute_config(config)?;
    let target = absolute_target(target)?;
    log.start()?;
    let signals = LeaveSignals::new(true);
    let mounted = prepare_and_mount(&config, &target, &signals)?;
    serve(mounted, target, signals, || ())
}

impl MountProcess {
    /// Unmounts and waits until the mount process has released the layers and left.
    ///
    /// # Errors
    /// When the process cannot be signalled or waited for, or did not leave cleanly.
    pub(crate) fn unmount_and_wait(self) -> anyhow::Result<()> {
        match rustix::process::kill_process(self.pid, Signal::TERM) {
            // It left by itself (unmounted by somebody else); its status tells how.
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno).context("ask the mount process to unmount"),
        }
        let status = self.wait().context("wait for the mount process")?;
        match status.exit_status() {
            Some(0) => Ok(()),
            _ => bail!("the mount process {}; see its log", ended(status)),
        }
    }

    fn wait(&self) -> rustix::io::Result<WaitStatus> {
        loop {
            match rustix::process::waitpid(Some(self.pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => return Ok(status),
                Ok(None) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    fn ending(&self) -> String {
        match self.wait() {
            Ok(status) => ended(status),
            // Another process's child.
            Err(Errno::CHILD) => "ended".to_owned(),
            Err(errno) => format!("was lost ({errno})"),
        }
    }
}

fn ended(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// All of the child's life; the result is its exit status.
fn in_child(
    config: &Config,
    target: &Path,
    log: &LogOptions,
    mut parent: File,
    held: &[BorrowedFd<'_>],
    announce: Option<&Path>,
) -> i32 {
    let mut inherited = sys::open_descriptors(parent.as_fd());
    inherited.retain(|fd| !held.iter().any(|kept| kept.as_raw_fd() == *fd));
    let signals = LeaveSignals::new(false);
    let mounted = detach(&signals)
        .and_then(|()| log.start())
        .and_then(|()| announce.map_or(Ok(()), write_down))
        .and_then(|()| prepare_and_mount(config, target, &signals))
        // From here on nothing of the caller is held: its directory, its streams, its descriptors.
        .and_then(|mounted| leave_caller().map(|()| mounted));
    let mounted = match mounted {
        Ok(mounted) => mounted,
        Err(error) => {
            tell(&mut parent, &failure(&error));
            return i32::from(crate::exit::MOUNT);
        }
    };
    sys::close_all(&inherited);
    let mut parent = Some(parent);
    let ready = || {
        if let Some(mut parent) = parent.take() {
            tell(&mut parent, &Message::Mounted);
        }
        // This process stays: what reading a command line has taken is not needed again.
        layerfs_runner::host::give_memory_back();
    };
    match serve(mounted, target.to_owned(), signals, ready) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(target = %target.display(), "{error:#}");
            if let Some(mut parent) = parent {
                tell(&mut parent, &failure(&error));
            }
            i32::from(crate::exit::MOUNT)
        }
    }
}

fn write_down(announce: &Path) -> anyhow::Result<()> {
    let own = ProcessIdentity::of(rustix::process::getpid()).context("look at the mount process")?;
    let text = serde_json::to_vec(&own)?;
    std::fs::write(announce, text).with_context(|| format!("write {}", announce.display()))
}

/// A session of its own: no terminal, no signals from one.
fn detach(signals: &LeaveSignals) -> anyhow::Result<()> {
    rustix::process::setsid().context("leave the terminal's session")?;
    signals.block().context("block signals")
}

fn leave_caller() -> anyhow::Result<()> {
    rustix::process::chdir("/").context("change to /")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("open /dev/null")?;
    rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stdout(&null))
        .and_then(|()| rustix::stdio::dup2_stderr(&null))
        .context("close the standard streams")
}

/// Settles what belongs to the process as a whole, then mounts.
fn prepare_and_mount(config: &Config, target: &Path, signals: &LeaveSignals) -> anyhow::Result<Mounted> {
    // A signal that comes while mounting is kept until there is something to unmount.
    signals.block().context("block signals")?;
    // The name is for people who look at processes, and for `umount`; without it all works.
    rustix::thread::set_name(c"layerfs-mount").ok();
    // Requests carry the caller's umask where it counts.
    rustix::process::umask(rustix::fs::Mode::empty());
    Ok(mount::mount(config, target)?)
}

fn serve(
    mounted: Mounted,
    target: PathBuf,
    signals: LeaveSignals,
    ready: impl FnOnce(),
) -> anyhow::Result<()> {
    if tracing::enabled!(tracing::Level::INFO) {
        tracing::info!(target = %target.display(), chosen = ?mounted.report(), "mounted");
    }
    let unmounter = mounted.unmounter();
    // Held while unmounting: a helper program may be at it, and is not to outlive this process.
    let unmounting = Arc::new(Mutex::new(()));
    let (thread_target, thread_unmounting) = (target.clone(), unmounting.clone());
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || unmount_on_signal(&unmounter, &thread_target, signals, &thread_unmounting))
        .context("start the thread that waits for signals")?;
    let served = mounted.serve(ready).with_context(|| format!("serve {target:?}"));
    // A poisoned lock is as good: the thread is gone.
    drop(unmounting.lock());
    served
}

/// Ends with the process. A busy mount vanishes from the tree now, and its process leaves with its last user.
fn unmount_on_signal(unmounter: &Unmounter, target: &Path, signals: LeaveSignals, unmounting: &Mutex<()>) {
    loop {
        match signals.wait() {
            Ok(signal) => tracing::info!(signal, target = %target.display(), "asked to unmount"),
            Err(error) => {
                tracing::error!(%error, "signals are no longer heard; use `layerfs umount`");
                return;
            }
        }
        let held = unmounting.lock();
        if let Err(error) = unmounter.unmount() {
            tracing::error!(%error, target = %target.display(), "unmount on a signal");
        }
        drop(held);
    }
}

fn tell(parent: &mut File, message: &Message) {
    let sent =
        serde_json::to_vec(message).map_err(std::io::Error::from).and_then(|text| parent.write_all(&text));
    if let Err(error) = sent {
        // The parent is gone; the mount is no less wanted for that.
        tracing::warn!(%error, "the process that asked for the mount is gone");
    }
}

fn failure(error: &anyhow::Error) -> Message {
    let hint = error.downcast_ref::<Hinted>().map(|h| h.hint.clone());
    Message::Failed { chain: error.chain().map(ToString::to_string).collect(), hint }
}

/// The child's error as one of this process: the same words in the same order.
fn rebuilt(mut chain: Vec<String>, hint: Option<String>) -> anyhow::Error {
    let innermost = chain.pop().unwrap_or_else(|| "the mount failed without a reason".to_owned());
    let mut causes = chain.into_iter().rev().peekable();
    let Some(hint) = hint else {
        return causes.fold(anyhow!(innermost), |error, message| error.context(message));
    };
    if causes.peek().is_none() {
        return anyhow::Error::new(Hinted { message: innermost, hint });
    }
    let mut error = anyhow!(innermost);
    while let Some(message) = causes.next() {
        // The hint hangs on the outermost message.
        error = if causes.peek().is_some() {
            error.context(message)
        } else {
            error.context(Hinted { message, hint: hint.clone() })
        };
    }
    error
}

/// The description with every path absolute, so that it holds in another directory. A path that would become
/// too long for a system call stays as it is: layers are opened before the directory is left.
fn absolute_config(config: &Config) -> anyhow::Result<Config> {
    let mut config = config.clone();
    for lower in &mut config.lowers {
        lower.path = absolute(&lower.path)?;
        lower.index = lower.index.as_deref().map(absolute).transpose()?;
    }
    if let Some(upper) = &mut config.upper {
        upper.upper = absolute(&upper.upper)?;
        upper.work = absolute(&upper.work)?;
    }
    Ok(config)
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    let absolute = std::path::absolute(path).with_context(|| format!("path {path:?}"))?;
    Ok(if absolute.as_os_str().len() < PATH_MAX { absolute } else { path.to_owned() })
}

/// The mountpoint under the name the mount table will have for it.
fn absolute_target(target: &Path) -> anyhow::Result<PathBuf> {
    crate::mountinfo::table_path(target).with_context(|| format!("mountpoint {target:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_crosses_the_pipe_whole() {
        let error = anyhow!("no such file").context("open layer \"/x\"").context("mount");
        let Message::Failed { chain, hint } = failure(&error) else { panic!("a failure") };
        assert_eq!(format!("{:#}", rebuilt(chain, hint)), "mount: open layer \"/x\": no such file");
    }

    #[test]
    fn a_hint_crosses_the_pipe() {
        let hinted = || Hinted { message: "open /dev/fuse".into(), hint: "modprobe fuse".into() };
        for error in [anyhow!("denied").context(hinted()), anyhow::Error::new(hinted())] {
            let words = format!("{error:#}");
            let Message::Failed { chain, hint } = failure(&error) else { panic!("a failure") };
            let rebuilt = rebuilt(chain, hint);
            assert_eq!(rebuilt.downcast_ref::<Hinted>().unwrap().hint, "modprobe fuse");
            assert_eq!(format!("{rebuilt:#}"), words);
        }
    }
}
