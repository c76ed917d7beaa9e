//! What clients ask for.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::super::peer::Role;
use super::super::program::{self, Program, Wish};
use super::super::protocol::{Event, Packet, Request, Streams, VERSION, letter};
use super::super::worker::{Body, Executed, Happening, Report, Undone, Worker};
use super::{MAIN, Monitor, Phase, STARTER, Stopping};
use crate::cgroup::Cgroup;
use crate::config::TerminalSize;

impl<B: Body> Monitor<B> {
    pub(super) fn serve_peer(&mut self, key: u32, flags: PollFlags) {
        if flags.contains(PollFlags::OUT)
            && let Some(peer) = self.peer(key)
        {
            peer.flush();
        }
        if !flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            return;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let incoming = self.peer(key).and_then(|peer| peer.receive(&mut buffer));
        if let Some(incoming) = incoming {
            let bytes = buffer.get(..incoming.length).unwrap_or_default();
            match bytes.split_first() {
                Some((b'{', _)) => self.take_document(key, bytes, incoming.descriptors),
                Some((first, rest)) => self.take_data(key, *first, rest),
                None => {}
            }
        }
        self.buffer = buffer;
        let left = match self.peer(key) {
            Some(peer) if peer.is_done() => Some(peer.role),
            _ => None,
        };
        if let Some(role) = left {
            self.has_left(key, role);
        }
    }

    fn peer(&mut self, key: u32) -> Option<&mut super::super::peer::Peer> {
        self.peers.iter_mut().find(|peer| peer.key == key)
    }

    /// A client hung up without a word.
    fn has_left(&mut self, key: u32, role: Role) {
        if let Role::Attached { program, streams, owns_input } = role
            && owns_input
            && streams.stdin
            && let Some(program) = self.program(program)
        {
            program.end_input();
        }
        if key == STARTER && self.phase == Phase::Idle {
            // Who wanted the container has been killed before saying so.
            self.conclude();
        }
    }

    fn take_data(&mut self, key: u32, first: u8, rest: &[u8]) {
        let Some(Role::Attached { program: of, streams, owns_input }) = self.peer(key).map(|peer| peer.role)
        else {
            return;
        };
        match (first, rest) {
            (letter::INPUT, bytes) if streams.stdin => {
                if let Some(program) = self.program(of) {
                    program.take_input(bytes);
                }
            }
            (letter::INPUT_END, _) if streams.stdin && owns_input => {
                if let Some(program) = self.program(of) {
                    program.end_input();
                }
            }
            (letter::SIZE, &[r1, r2, c1, c2]) => {
                let size = TerminalSize {
                    rows: u16::from_be_bytes([r1, r2]),
                    columns: u16::from_be_bytes([c1, c2]),
                };
                if let Some(program) = self.program(of) {
                    program.resize(size);
                }
                if of == MAIN && self.settings.terminal {
                    self.body.happened(&Happening::Resized(size));
                }
            }
            (letter::SIGNAL, &[number]) => {
                let process = match of {
                    MAIN => self.main_process.as_ref().and_then(|process| process.try_clone().ok()),
                    _ => self.program(of).and_then(|program| program.process).and_then(program::open),
                };
                if let Err(error) = program::signal(process.as_ref(), i32::from(number)) {
                    tracing::debug!(%error, number, "pass a signal on");
                }
            }
            (letter::DETACH, _) => {
                let name = self.program(of).map(|program| program.name.clone());
                self.body.happened(&match name {
                    Some(name) if of != MAIN => Happening::ExecDetached(name),
                    _ => Happening::Detached,
                });
                if let Some(peer) = self.peer(key) {
                    // Its leaving says nothing more.
                    peer.role = Role::New;
                    peer.gone();
                }
            }
            // A newer client's; it would have asked for its version.
            _ => {}
        }
    }

    fn take_document(&mut self, key: u32, text: &[u8], descriptors: Vec<OwnedFd>) {
        let refuse = |words: String| Event::Refused { words };
        let answer = match serde_json::from_slice::<Packet>(text) {
            Err(error) => Some(refuse(format!("the monitor does not understand: {error}"))),
            Ok(packet) if packet.version != VERSION => {
                Some(refuse(format!("the monitor speaks version {VERSION}, not {}", packet.version)))
            }
            Ok(packet) => self.take_request(key, packet.request, descriptors),
        };
        if let Some(answer) = answer
            && let Some(peer) = self.peer(key)
        {
            peer.tell(&answer);
            peer.leave();
        }
    }

    /// The answer that ends it, if it is due.
    fn take_request(&mut self, key: u32, request: Request, descriptors: Vec<OwnedFd>) -> Option<Event> {
        let refuse = |words: &str| Some(Event::Refused { words: words.to_owned() });
        match request {
            Request::Start { streams } => {
                if key != STARTER || self.phase != Phase::Idle {
                    return refuse("the container is started already");
                }
                if let Some(streams) = streams {
                    self.attach(key, MAIN, streams, self.settings.stdin_once);
                }
                self.passed = descriptors;
                self.begin();
                None
            }
            Request::Attach { streams } => {
                self.attach(key, MAIN, streams, self.settings.stdin_once);
                None
            }
            Request::Exec { streams, terminal } => {
                if self.phase != Phase::Running || self.main.process.is_none() {
                    return refuse("the container is not running");
                }
                let Some(description) = descriptors.into_iter().next() else {
                    return refuse("no program is described");
                };
                self.execute(key, description, streams, terminal)
            }
            Request::Wait { each } => {
                if let Some(peer) = self.peer(key) {
                    peer.role = Role::Waiting { each };
                }
                None
            }
            Request::Stop { signal, timeout, remove } => {
                if remove {
                    self.settings.remove = true;
                }
                if let Some(peer) = self.peer(key) {
                    peer.role = Role::Waiting { each: false };
                }
                self.is_unwanted = true;
                self.record.stopped_by_user = true;
                match self.phase {
                    Phase::Running => self.ask_to_stop(signal, timeout),
                    Phase::Pausing { .. } | Phase::Idle => self.conclude(),
                    Phase::Starting | Phase::Over => {}
                }
                None
            }
            Request::Signal { signal } => {
                if self.phase != Phase::Running {
                    return refuse("the container is not running");
                }
                if signal == libc::SIGKILL || signal == self.settings.stop_signal {
                    self.is_unwanted = true;
                    self.record.stopped_by_user = true;
                }
                let sent = match signal {
                    libc::SIGKILL => {
                        self.kill();
                        Ok(())
                    }
                    signal => program::signal(self.main_process.as_ref(), signal),
                };
                Some(match sent {
                    Ok(()) => Event::Done,
                    Err(error) => Event::Refused { words: format!("send signal {signal}: {error}") },
                })
            }
            Request::Policy { restart } => {
                self.settings.restart = restart;
                Some(Event::Done)
            }
        }
    }

    fn attach(&mut self, key: u32, program: u32, streams: Streams, owns_input: bool) {
        if let Some(peer) = self.peer(key) {
            peer.role = Role::Attached { program, streams, owns_input };
        }
    }

    /// The signal that asks to stop, and the moment when patience ends.
    pub(super) fn ask_to_stop(&mut self, signal: Option<i32>, timeout: Option<i64>) {
        if self.phase != Phase::Running {
            return;
        }
        let signal = signal.unwrap_or(self.settings.stop_signal);
        if let Err(error) = program::signal(self.main_process.as_ref(), signal) {
            tracing::warn!(%error, signal, "ask the container to stop");
        }
        let seconds = timeout.unwrap_or(self.settings.stop_timeout);
        let kill_at =
            u64::try_from(seconds).ok().map(|seconds| Instant::now() + Duration::from_secs(seconds));
        if kill_at.is_some_and(|at| at <= Instant::now()) {
            self.stopping = Some(Stopping { kill_at: None });
            return self.kill();
        }
        self.stopping = Some(Stopping { kill_at });
    }

    pub(super) fn kill(&mut self) {
        if let Err(error) = program::signal(self.main_process.as_ref(), libc::SIGKILL) {
            tracing::warn!(%error, "kill the container");
        }
        if let Some(started) = &self.started {
            let cgroup = Cgroup::borrowed(&started.cgroup);
            // Without a pid namespace of its own the others do not end with the first.
            if let Err(error) = cgroup.kill() {
                tracing::debug!(%error, "kill the container's cgroup");
            }
            if cgroup.is_frozen()
                && let Err(error) = cgroup.thaw()
            {
                tracing::debug!(%error, "thaw the container's cgroup");
            }
        }
    }

    fn execute(
        &mut self,
        key: u32,
        description: OwnedFd,
        streams: Option<Streams>,
        terminal: bool,
    ) -> Option<Event> {
        let wish =
            Wish { terminal, stdin: streams.is_some_and(|streams| streams.stdin), output: streams.is_some() };
        let made = Program::prepare(wish).and_then(|(program, stdio)| {
            let body = &mut self.body;
            let worker = Worker::start(|| match body.exec(description, stdio) {
                Ok((executed, terminal)) => (Report::Executed(executed), terminal.into_iter().collect()),
                Err(undone) => (Report::Failed(undone), Vec::new()),
            })?;
            Ok((program, worker))
        });
        match made {
            Ok((program, worker)) => {
                // The client's key is the program's too: it is the only one that is with it.
                self.execs.push((key, program));
                self.workers.push((key, worker));
                self.attach(key, key, streams.unwrap_or_default(), true);
                None
            }
            Err(error) => Some(Event::Refused { words: format!("execute in the container: {error}") }),
        }
    }

    pub(super) fn has_executed(&mut self, key: u32, executed: Executed, terminal: Option<OwnedFd>) {
        let Executed { process, name } = executed;
        if let Some(program) = self.program(key) {
            program.name = name;
            if let Err(error) = program.runs(process, terminal) {
                tracing::warn!(%error, "use the terminal of a program");
            }
        }
        if let Some(peer) = self.peer(key) {
            peer.tell(&Event::Started { pid: process.pid });
            if matches!(peer.role, Role::Attached { streams, .. } if streams == Streams::default()) {
                peer.leave();
            }
        }
    }

    pub(super) fn could_not_execute(&mut self, key: u32, undone: Undone) {
        self.execs.retain(|(own, _)| *own != key);
        if self.is_probe(key) {
            return self.checked(-1, Some(&undone.words));
        }
        if let Some(peer) = self.peer(key) {
            peer.tell(&Event::Failed { kind: undone.kind, words: undone.words });
            peer.leave();
        }
    }
}
