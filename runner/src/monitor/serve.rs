//! The monitor's loop.

mod checking;
mod ending;
mod requests;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::WaitOptions;

use super::health::{HealthCheck, Probe};
use super::log::{Log, Rotation};
use super::peer::{Peer, Role};
use super::program::{self, Output, Program, Wish};
use super::protocol::{self, DATA_MAX, Event};
use super::record::{Record, Status};
use super::restart::{BackOff, RestartPolicy};
use super::spawn::Inherited;
use super::worker::{Body, Happening, Made, Report, Started, Undone, Worker};
use crate::cgroup::{Cgroup, OomWatch};
use crate::process::ExitStatus;
use crate::runtime::time::rfc3339;
use crate::state::ProcessIdentity;
use crate::sys::signal::SignalFd;
use crate::{channel::FailureKind, sys};

/// Name of its socket in the container's directory.
pub(super) const SOCKET: &str = "monitor.sock";
/// The container's own program.
const MAIN: u32 = 0;
/// The client that has made the monitor.
const STARTER: u32 = 0;

/// What a monitor is told of its container.
#[derive(Debug)]
pub struct Settings {
    /// The container's directory.
    pub directory: PathBuf,
    /// What is written down of it.
    pub record: Record,
    /// Its log; `None` keeps none.
    pub log: Option<(PathBuf, Rotation)>,
    /// When it is started again.
    pub restart: RestartPolicy,
    /// It has a terminal.
    pub terminal: bool,
    /// Its program has an input.
    pub stdin: bool,
    /// The end of the first client's input is the end of the program's.
    pub stdin_once: bool,
    /// The signal that asks it to stop.
    pub stop_signal: i32,
    /// Seconds until it is killed then; negative: never.
    pub stop_timeout: i64,
    /// It is removed when it has ended.
    pub remove: bool,
    /// When its health is checked; `None`: never.
    pub health: Option<HealthCheck>,
}

/// Where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nobody has said start.
    Idle,
    /// A worker makes it.
    Starting,
    /// The program runs.
    Running,
    /// It will be started again.
    Pausing {
        /// When.
        until: Instant,
    },
    /// It has ended for good.
    Over,
}

/// A request to end, under way.
#[derive(Debug, Clone, Copy)]
struct Stopping {
    /// When it is killed.
    kill_at: Option<Instant>,
}

struct Monitor<B> {
    settings: Settings,
    body: B,
    phase: Phase,
    record: Record,
    log: Option<Log>,
    signals: SignalFd,
    listener: OwnedFd,
    peers: Vec<Peer>,
    next_key: u32,
    main: Program,
    main_process: Option<OwnedFd>,
    started: Option<Started>,
    /// Open as long as the program runs.
    kept: Vec<OwnedFd>,
    /// The standard streams of the program, where they are somebody else's: input, output, errors.
    passed: Vec<OwnedFd>,
    started_at: Instant,
    /// When its health is checked next.
    check_at: Option<Instant>,
    probe: Option<Probe>,
    execs: Vec<(u32, Program)>,
    workers: Vec<(u32, Worker)>,
    /// Processes that ended while a worker was making the container: the one behind the mount may be among them.
    ended_early: Vec<i32>,
    oom: Option<OomWatch>,
    back_off: BackOff,
    stopping: Option<Stopping>,
    /// Somebody wants it to end: no policy applies.
    is_unwanted: bool,
    /// Why it could not be started.
    failed: Option<Undone>,
    lock: Option<OwnedFd>,
    buffer: Vec<u8>,
}

/// What became ready.
#[derive(Debug, Clone, Copy)]
enum Ready {
    Signals,
    Listener,
    Oom,
    Worker(u32),
    Peer(u32, PollFlags),
    Output(u32, usize),
    Input(u32),
}

/// Is the monitor of one container until that has ended.
///
/// # Errors
/// When it cannot begin; nothing has been started then.
pub fn serve<B: Body>(settings: Settings, body: B, inherited: Inherited) -> io::Result<()> {
    let mut monitor = Monitor::new(settings, body, inherited)?;
    while monitor.phase != Phase::Over {
        monitor.turn()?;
    }
    monitor.say_goodbye();
    Ok(())
}

impl<B: Body> Monitor<B> {
    fn new(settings: Settings, body: B, inherited: Inherited) -> io::Result<Self> {
        rustix::thread::set_name(c"layerfs-monitor").ok();
        sys::process::become_subreaper()?;
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGPIPE] {
            sys::signal::ignore(signal, true);
        }
        let signals = [libc::SIGCHLD, libc::SIGTERM];
        sys::signal::block(&signals)?;
        let signals = SignalFd::new(&signals)?;
        let listener = listen(&settings.directory)?;
        let log = match &settings.log {
            Some((path, rotation)) => Some(Log::open(path, *rotation)?),
            None => None,
        };
        let mut record = settings.record.clone();
        if record.take_over()? {
            record.save(&settings.directory)?;
        }
        Ok(Self {
            settings,
            body,
            phase: Phase::Idle,
            record,
            log,
            signals,
            listener,
            peers: vec![Peer::new(STARTER, inherited.connection)],
            next_key: STARTER + 1,
            main: Program::default(),
            main_process: None,
            started: None,
            kept: Vec::new(),
            passed: Vec::new(),
            started_at: Instant::now(),
            check_at: None,
            probe: None,
            execs: Vec::new(),
            workers: Vec::new(),
            ended_early: Vec::new(),
            oom: None,
            back_off: BackOff::default(),
            stopping: None,
            is_unwanted: false,
            failed: None,
            lock: Some(inherited.lock),
            buffer: vec![0; protocol::PACKET_MAX],
        })
    }

    /// Waits for something, and does it.
    fn turn(&mut self) -> io::Result<()> {
        for ready in self.wait()? {
            match ready {
                Ready::Worker(key) => self.hear_worker(key),
                Ready::Signals => self.take_signals()?,
                Ready::Listener => self.accept(),
                Ready::Oom => {
                    if self.oom.as_mut().is_some_and(OomWatch::happened) {
                        self.record.oom_killed = true;
                        self.save();
                        self.body.happened(&Happening::OutOfMemory);
                    }
                }
                Ready::Peer(key, flags) => self.serve_peer(key, flags),
                Ready::Output(key, index) => {
                    self.relay(key, index);
                }
                Ready::Input(key) => {
                    if let Some(program) = self.program(key) {
                        program.write_input();
                    }
                }
            }
        }
        self.peers.retain(|peer| !peer.is_done());
        self.look_at_the_clock();
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<Ready>> {
        // Workers first: what one has made must be known before its end is.
        let mut wanted: Vec<(Ready, PollFd<'_>)> = Vec::with_capacity(8 + self.peers.len());
        for (key, worker) in &self.workers {
            wanted.push((Ready::Worker(*key), PollFd::new(worker, PollFlags::IN)));
        }
        wanted.push((Ready::Signals, PollFd::new(&self.signals, PollFlags::IN)));
        wanted.push((Ready::Listener, PollFd::new(&self.listener, PollFlags::IN)));
        if let Some(oom) = &self.oom {
            wanted.push((Ready::Oom, PollFd::new(oom, PollFlags::IN)));
        }
        for (key, program) in self.programs() {
            // What it says is not passed on before it is written down that it runs: who hears it may ask.
            let is_known =
                if key == MAIN { !matches!(self.phase, Phase::Starting) } else { program.process.is_some() };
            if is_known && !self.peers.iter().any(|peer| peer.holds_up(key)) {
                for (index, fd) in program.outputs_wanted() {
                    wanted.push((Ready::Output(key, index), fd));
                }
            }
            if let Some(fd) = program.input_wanted() {
                wanted.push((Ready::Input(key), fd));
            }
        }
        for peer in &self.peers {
            let may_send = match peer.role {
                Role::Attached { program, .. } => {
                    !self.programs().any(|(key, program_of)| key == program && program_of.is_full())
                }
                Role::New | Role::Waiting { .. } => true,
            };
            let events = peer.events(may_send);
            wanted.push((Ready::Peer(peer.key, PollFlags::empty()), PollFd::new(peer, events)));
        }
        let timeout = self.next_deadline().map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        let (tokens, mut fds): (Vec<Ready>, Vec<PollFd<'_>>) = wanted.into_iter().unzip();
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = tokens.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready
            .map(|(token, fd)| match token {
                Ready::Peer(key, _) => Ready::Peer(key, fd.revents()),
                token => token,
            })
            .collect())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let again = match self.phase {
            Phase::Pausing { until } => Some(until),
            Phase::Idle | Phase::Starting | Phase::Running | Phase::Over => None,
        };
        let kill = self.stopping.and_then(|stopping| stopping.kill_at);
        again.into_iter().chain(kill).chain(self.next_check()).min()
    }

    fn look_at_the_clock(&mut self) {
        let now = Instant::now();
        if let Phase::Pausing { until } = self.phase
            && until <= now
        {
            self.record.restart_count += 1;
            self.begin();
        }
        if let Some(Stopping { kill_at: Some(at) }) = self.stopping
            && at <= now
        {
            self.stopping = Some(Stopping { kill_at: None });
            self.kill();
        }
        self.look_at_checks(now);
    }

    fn programs(&self) -> impl Iterator<Item = (u32, &Program)> {
        std::iter::once((MAIN, &self.main)).chain(self.execs.iter().map(|(key, program)| (*key, program)))
    }

    fn program(&mut self, key: u32) -> Option<&mut Program> {
        if key == MAIN {
            return Some(&mut self.main);
        }
        self.execs.iter_mut().find(|(own, _)| *own == key).map(|(_, program)| program)
    }

    fn new_key(&mut self) -> u32 {
        let key = self.next_key;
        self.next_key = self.next_key.wrapping_add(1).max(1);
        key
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(&self.listener, flags) {
            Ok(socket) => {
                let key = self.new_key();
                self.peers.push(Peer::new(key, socket));
            }
            Err(error) => tracing::debug!(%error, "accept a client"),
        }
    }

    /// Has a worker make the container and run its program.
    fn begin(&mut self) {
        let wish = Wish { terminal: self.settings.terminal, stdin: self.settings.stdin, output: true };
        let prepared = match &self.passed[..] {
            [stdin, stdout, stderr] => Program::with(stdin, stdout, stderr),
            _ => Program::prepare(wish),
        };
        let result = prepared.and_then(|(program, stdio)| {
            self.main = program;
            let body = &mut self.body;
            Worker::start(|| match body.start(stdio) {
                Ok(Made { started, terminal, kept }) => {
                    let has_terminal = terminal.is_some();
                    let descriptors: Vec<OwnedFd> = terminal.into_iter().chain(kept).collect();
                    let count = descriptors.len();
                    (Report::Started { started, terminal: has_terminal, descriptors: count }, descriptors)
                }
                Err(undone) => (Report::Failed(undone), Vec::new()),
            })
        });
        match result {
            Ok(worker) => {
                self.phase = Phase::Starting;
                self.workers.push((MAIN, worker));
            }
            Err(error) => self.could_not_start(Undone::setup(format!("make the container: {error}"))),
        }
    }

    fn hear_worker(&mut self, key: u32) {
        let Some(at) = self.workers.iter().position(|(own, _)| *own == key) else { return };
        let (_, worker) = self.workers.swap_remove(at);
        let (report, mut descriptors) = worker.report();
        // It ends right after its report; what it has made is this process's child then. What it has not made is about to
        // be taken away, and nobody else may be at it.
        if matches!(report, Report::Failed(_)) {
            let options = WaitOptions::empty();
            rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(worker.pid()), options)).ok();
        }
        match (key, report) {
            (MAIN, Report::Started { started, terminal, .. }) => {
                let terminal = (terminal && !descriptors.is_empty()).then(|| descriptors.remove(0));
                self.kept = descriptors;
                self.has_started(started, terminal);
            }
            (MAIN, Report::Failed(undone)) => self.could_not_start(undone),
            (_, Report::Executed(executed)) => self.has_executed(key, executed, descriptors.pop()),
            (_, Report::Failed(undone)) => self.could_not_execute(key, undone),
            (_, Report::Started { .. }) => {}
        }
    }

    fn has_started(&mut self, started: Started, terminal: Option<OwnedFd>) {
        if let Err(error) = self.main.runs(started.process, terminal) {
            tracing::warn!(%error, "use the container's terminal");
        }
        self.main_process = program::open(started.process);
        let has_no_root = started.mount.is_some_and(|mount| self.ended_early.contains(&mount.pid));
        self.ended_early.clear();
        self.oom = Cgroup::borrowed(&started.cgroup).watch_oom().ok().flatten();
        self.started_at = Instant::now();
        self.phase = Phase::Running;
        let record = &mut self.record;
        record.status = Status::Running;
        record.process = Some(started.process);
        record.mount = started.mount;
        record.cgroup.clone_from(&started.cgroup);
        record.started_at = rfc3339(SystemTime::now());
        record.error.clear();
        record.oom_killed = false;
        record.stopped_by_user = false;
        let pid = started.process.pid;
        self.started = Some(started);
        self.begin_checking();
        self.save();
        self.body.happened(&Happening::Started);
        self.tell_starter(&Event::Started { pid });
        crate::host::give_memory_back();
        if has_no_root {
            self.mount_ended();
        }
        if self.is_unwanted {
            self.ask_to_stop(None, None);
        }
    }

    /// Whoever has started it is told when it has been taken away.
    fn could_not_start(&mut self, undone: Undone) {
        let code = code_of(undone.kind);
        let never = self.record.started_at.is_empty();
        self.record.status = if never { Status::Created } else { Status::Exited };
        self.record.exit_code = code;
        self.record.error.clone_from(&undone.words);
        self.failed = Some(undone);
        self.conclude();
    }

    /// Says it to whoever has started the container, if it is still there and stays for streams or leaves now.
    fn tell_starter(&mut self, event: &Event) {
        if let Some(peer) = self.peers.iter_mut().find(|peer| peer.key == STARTER) {
            peer.tell(event);
            if peer.role == Role::New {
                peer.leave();
            }
        }
    }

    /// Copies some output to the log and to clients; false when there is none now.
    fn relay(&mut self, key: u32, index: usize) -> bool {
        let mut buffer = std::mem::take(&mut self.buffer);
        let end = DATA_MAX.min(buffer.len());
        let output = match (self.program(key), buffer.get_mut(..end)) {
            (Some(program), Some(space)) => program.read_output(index, space),
            _ => Output::End,
        };
        if let Output::Bytes(length) = output {
            let bytes = buffer.get(..length).unwrap_or_default();
            if key == MAIN
                && let Some(log) = &mut self.log
                && let Err(error) = log.take(Program::stream(index), bytes)
            {
                tracing::warn!(%error, "write the container's log");
            }
            if self.is_probe(key)
                && let Some(probe) = &mut self.probe
            {
                probe.take_output(bytes);
            }
            let letter = if index == 0 { protocol::letter::OUTPUT } else { protocol::letter::ERROR };
            for peer in &mut self.peers {
                if let Role::Attached { program, streams, .. } = peer.role
                    && program == key
                    && (if index == 0 { streams.stdout } else { streams.stderr })
                {
                    peer.output(letter, bytes);
                }
            }
        }
        self.buffer = buffer;
        matches!(output, Output::Bytes(_))
    }

    fn take_signals(&mut self) -> io::Result<()> {
        let mut children = false;
        while let Some(signal) = self.signals.next()? {
            match signal {
                libc::SIGCHLD => children = true,
                // The machine shuts down: the container is asked to stop, and is wanted at the next start.
                _ => {
                    self.is_unwanted = true;
                    self.ask_to_stop(None, None);
                }
            }
        }
        if children {
            self.hear_workers();
            self.reap();
        }
        Ok(())
    }

    /// Hears what workers have said by now. The end of a program comes after the report of the worker that has run it, but
    /// poll(2) looks at one after the other: it may have missed the report and seen the end.
    fn hear_workers(&mut self) {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let has_reported = |worker: &Worker| {
            let mut wanted = [PollFd::new(worker, PollFlags::IN)];
            rustix::event::poll(&mut wanted, Some(&at_once)).is_ok_and(|ready| ready > 0)
        };
        let ready = self.workers.iter().filter(|(_, worker)| has_reported(worker)).map(|(key, _)| *key);
        for key in ready.collect::<Vec<_>>() {
            self.hear_worker(key);
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            let status = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => ExitStatus::Exited(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
                (None, Some(signal)) => ExitStatus::Signaled(signal),
                (None, None) => continue,
            };
            let is = |process: Option<ProcessIdentity>| process.is_some_and(|process| process.pid == pid);
            if is(self.main.process) {
                self.main_ended(status);
            } else if let Some(at) = self.execs.iter().position(|(_, program)| is(program.process)) {
                self.exec_ended(at, status);
            } else if is(self.started.as_ref().and_then(|started| started.mount)) {
                self.mount_ended();
            } else if self.phase == Phase::Starting {
                self.ended_early.push(pid);
            }
        }
    }

    fn save(&self) {
        if let Err(error) = self.record.save(&self.settings.directory) {
            tracing::error!(%error, directory = %self.settings.directory.display(), "write the state");
        }
    }
}

/// The exit code of a container whose program did not run, as docker has it.
fn code_of(kind: FailureKind) -> u8 {
    match kind {
        FailureKind::Setup => 128,
        FailureKind::NotFound => 127,
        FailureKind::NotExecutable => 126,
    }
}

fn listen(directory: &std::path::Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(directory.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let handle = std::fs::File::open(directory)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // Who may connect, the owner alone: the name gets the mode that the socket has, less the umask.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    rustix::net::bind(&socket, &super::connection::address(handle.as_fd())?)?;
    rustix::net::listen(&socket, 64)?;
    Ok(socket)
}
