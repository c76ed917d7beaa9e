//! Work in a process of its own: what needs memory or may block is not done by the monitor itself.
//!
//! The worker ends when it has reported. What it has made, the container's first process among it, becomes the monitor's
//! child then.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::protocol::{self, DESCRIPTORS_MAX};
use crate::channel::FailureKind;
use crate::process::Stdio;
use crate::state::ProcessIdentity;
use crate::sys;
use crate::sys::process::Forked;

/// Longest report.
const REPORT_MAX: usize = 16 * 1024;
/// Longest text of a failure in it.
const WORDS_MAX: usize = 4096;

/// What a container is made of, and how.
pub trait Body {
    /// Makes the root filesystem and the container, and runs its program with `stdio`, or with a terminal whose master
    /// comes back. Called in a process of its own, which ends right after; its children stay.
    ///
    /// # Errors
    /// Why not. Nothing is left then but what [`Self::clean_up`] removes.
    fn start(&mut self, stdio: Stdio) -> Result<Made, Undone>;

    /// Executes another program in the container, as `description` says. Called in a process of its own.
    ///
    /// # Errors
    /// Why not.
    fn exec(&mut self, description: OwnedFd, stdio: Stdio) -> Result<(Executed, Option<OwnedFd>), Undone>;

    /// Executes the program that tells whether the container is healthy, as [`Self::exec`] does. Only called where the
    /// settings have a [`HealthCheck`](super::health::HealthCheck).
    ///
    /// # Errors
    /// Why not.
    fn probe(&mut self, stdio: Stdio) -> Result<Executed, Undone>;

    /// Something has happened to the container, and is written down. Called in the monitor itself.
    fn happened(&mut self, what: &Happening);

    /// The program has ended: takes away what a next start makes anew; `last`: everything but the container's
    /// directory; `remove`: that too. Called in the monitor itself when it is the last.
    ///
    /// # Errors
    /// What is left.
    fn clean_up(&mut self, started: Option<&Started>, last: bool, remove: bool) -> Result<(), String>;
}

/// A container that was made.
#[derive(Debug)]
pub struct Made {
    /// What is written down of it.
    pub started: Started,
    /// The master of its terminal.
    pub terminal: Option<OwnedFd>,
    /// What the monitor keeps open as long as the program runs.
    pub kept: Vec<OwnedFd>,
}

/// What happens to a container in its monitor's sight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// Its program runs.
    Started,
    /// Its program has ended; how, as a shell reports it.
    Died(u8),
    /// The kernel killed in it for lack of memory.
    OutOfMemory,
    /// Its health is another now.
    Health(super::health::Health),
    /// A client of its program has left by the keys for that.
    Detached,
    /// Its terminal has another size.
    Resized(crate::config::TerminalSize),
    /// A client of the executed program of this name has left by the keys for that.
    ExecDetached(String),
    /// The executed program of this name has ended; how, as a shell reports it.
    ExecDied(String, u8),
}

/// A program that was executed in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executed {
    /// The program.
    pub process: ProcessIdentity,
    /// What it is called in what happens to it.
    pub name: String,
}

/// A program that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The program.
    pub process: ProcessIdentity,
    /// The process behind the root filesystem.
    pub mount: Option<ProcessIdentity>,
    /// Directories of its cgroup.
    pub cgroup: Vec<PathBuf>,
}

/// What was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undone {
    /// What kind of failure.
    pub kind: FailureKind,
    /// Why.
    pub words: String,
}

impl Undone {
    /// A failure that is not about the program.
    #[must_use]
    pub fn setup(words: impl Into<String>) -> Self {
        Self { kind: FailureKind::Setup, words: words.into() }
    }
}

/// What a worker reports.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    Started {
        started: Started,
        /// The first descriptor is the master of a terminal.
        terminal: bool,
        /// So many descriptors come in all.
        descriptors: usize,
    },
    Executed(Executed),
    Failed(Undone),
}

/// A worker at work.
#[derive(Debug)]
pub(super) struct Worker {
    pid: Pid,
    socket: OwnedFd,
}

impl Worker {
    /// Forks it. The closure runs there.
    pub(super) fn start(work: impl FnOnce() -> (Report, Vec<OwnedFd>)) -> io::Result<Self> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        match sys::process::fork_into(0)? {
            Forked::Child => {
                drop(ours);
                let (report, descriptors) =
                    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
                        (Report::Failed(Undone::setup("a fault of layerfs itself")), Vec::new())
                    });
                let text = text_of(report);
                let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
                let mut batches = descriptors.chunks(DESCRIPTORS_MAX);
                let first = batches.next().unwrap_or_default();
                // Without a monitor there is nobody to tell; the container's processes see its end themselves.
                let mut sent = protocol::send(&theirs, [&text, &[]], first, SendFlags::empty());
                for batch in batches {
                    sent =
                        sent.and_then(|()| protocol::send(&theirs, [b"+", &[]], batch, SendFlags::empty()));
                }
                sent.ok();
                sys::process::exit_now(0)
            }
            Forked::Parent { pid, .. } => Ok(Self { pid, socket: ours }),
        }
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Its report, once the socket is readable.
    pub(super) fn report(&self) -> (Report, Vec<OwnedFd>) {
        let mut buffer = vec![0_u8; REPORT_MAX];
        let failed = |words: &str| (Report::Failed(Undone::setup(words)), Vec::new());
        let killed = "the process that was making the container was killed";
        let incoming = match protocol::receive(&self.socket, &mut buffer, RecvFlags::empty()) {
            Ok(incoming) if incoming.length > 0 => incoming,
            _ => return failed(killed),
        };
        let report = match serde_json::from_slice(buffer.get(..incoming.length).unwrap_or_default()) {
            Ok(report) => report,
            Err(error) => return failed(&format!("the process that made the container said: {error}")),
        };
        let mut descriptors = incoming.descriptors;
        if let Report::Started { descriptors: all, .. } = &report {
            while descriptors.len() < *all {
                match protocol::receive(&self.socket, &mut buffer, RecvFlags::empty()) {
                    Ok(more) if !more.descriptors.is_empty() => descriptors.extend(more.descriptors),
                    // Killed between two packets, or this process may have no more files open.
                    _ => return failed(killed),
                }
            }
        }
        (report, descriptors)
    }
}

impl AsFd for Worker {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn text_of(mut report: Report) -> Vec<u8> {
    if let Report::Failed(undone) = &mut report
        && undone.words.len() > WORDS_MAX
    {
        let cut = (0..=WORDS_MAX).rev().find(|at| undone.words.is_char_boundary(*at)).unwrap_or(0);
        undone.words.truncate(cut);
    }
    match serde_json::to_vec(&report) {
        Ok(text) if text.len() <= REPORT_MAX => text,
        _ => br#"{"Failed":{"kind":"Setup","words":"the container's cgroup has too many directories"}}"#
            .to_vec(),
    }
}
