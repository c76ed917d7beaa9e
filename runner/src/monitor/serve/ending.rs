//! The ends of programs, and the container's own.

use std::time::{Instant, SystemTime};

use rustix::event::{PollFd, PollFlags};

use super::super::peer::Role;
use super::super::protocol::Event;
use super::super::record::Status;
use super::super::worker::{Body, Happening};
use super::{MAIN, Monitor, Phase, SOCKET, STARTER};
use crate::cgroup::Cgroup;
use crate::process::ExitStatus;
use crate::runtime::time::rfc3339;

impl<B: Body> Monitor<B> {
    /// All writers are gone with the program's namespace; what they wrote is still under way.
    fn drain(&mut self, key: u32) {
        if let Some(program) = self.program(key) {
            program.has_ended();
        }
        for index in [0, 1] {
            while self.relay(key, index) {}
        }
    }

    pub(super) fn main_ended(&mut self, status: ExitStatus) {
        self.drain(MAIN);
        // Its pages are gone before the other's end is told of: which of the two is heard of first is chance.
        if self.started.as_ref().and_then(|started| started.mount).is_some_and(|mount| mount.is_leaving()) {
            self.root_is_lost();
        }
        let ran = self.started_at.elapsed();
        self.main.process = None;
        self.main_process = None;
        let code = status.code();
        let cgroup = self.started.as_ref().map(|started| Cgroup::borrowed(&started.cgroup));
        // The event may still be under way.
        if status == ExitStatus::Signaled(libc::SIGKILL)
            && cgroup.is_some_and(|cgroup| cgroup.oom_kills() > 0)
        {
            self.record.oom_killed = true;
        }
        self.oom = None;
        self.stopping = None;
        self.end_checking();
        self.kept.clear();
        if let Some(log) = &mut self.log
            && let Err(error) = log.finish()
        {
            tracing::warn!(%error, "write the container's log");
        }
        self.record.exit_code = code;
        self.record.finished_at = rfc3339(SystemTime::now());
        self.record.process = None;
        self.body.happened(&Happening::Died(code));
        let again = !self.is_unwanted && self.settings.restart.applies(code, self.record.restart_count);
        if !again {
            return self.conclude();
        }
        self.record.status = Status::Restarting;
        self.save();
        // Who has waited for an end, and looks then, finds it written down.
        for peer in &mut self.peers {
            if peer.role == (Role::Waiting { each: true }) {
                peer.tell(&Event::Exited { code });
                peer.leave();
            }
        }
        // Whoever was with it, was with this run of it.
        self.dismiss(code);
        if let Err(words) = self.body.clean_up(self.started.as_ref(), false, false) {
            tracing::warn!(words, "clean up before the next start");
        }
        self.record.cgroup.clear();
        self.phase = Phase::Pausing { until: Instant::now() + self.back_off.next(ran) };
    }

    /// Tells those with the program that it has ended.
    fn dismiss(&mut self, code: u8) {
        for peer in &mut self.peers {
            if matches!(peer.role, Role::Attached { program: MAIN, .. }) {
                peer.tell(&Event::Exited { code });
                peer.leave();
            }
        }
    }

    pub(super) fn exec_ended(&mut self, at: usize, status: ExitStatus) {
        let Some((key, _)) = self.execs.get(at) else { return };
        let key = *key;
        self.drain(key);
        let at = self.execs.iter().position(|(own, _)| *own == key);
        if let Some((_, program)) = at.map(|at| self.execs.remove(at)) {
            self.body.happened(&Happening::ExecDied(program.name, status.code()));
        }
        if self.is_probe(key) {
            return self.checked(i32::from(status.code()), None);
        }
        for peer in self.peers.iter_mut().filter(|peer| peer.key == key) {
            peer.tell(&Event::Exited { code: status.code() });
            peer.leave();
        }
    }

    /// Without it every access of the program to its root fails.
    pub(super) fn mount_ended(&mut self) {
        if let Some(started) = &mut self.started {
            started.mount = None;
        }
        self.record.mount = None;
        self.root_is_lost();
        self.kill();
    }

    fn root_is_lost(&mut self) {
        self.record.error = "the process behind the root filesystem has ended".into();
        self.is_unwanted = true;
    }

    /// The container has ended for good.
    pub(super) fn conclude(&mut self) {
        let code = self.record.exit_code;
        if matches!(self.record.status, Status::Running | Status::Restarting) {
            self.record.status = Status::Exited;
        }
        let remove = self.settings.remove;
        if remove {
            self.record.status = Status::Removing;
        }
        self.record.process = None;
        self.save();
        if !remove {
            // The rest is of no concern to them.
            self.tell_the_end(code);
        }
        let cleaned = self.body.clean_up(self.started.as_ref(), true, remove);
        self.reap_quietly();
        for (key, program) in std::mem::take(&mut self.execs) {
            let code = ExitStatus::Signaled(libc::SIGKILL).code();
            self.body.happened(&Happening::ExecDied(program.name, code));
            for peer in self.peers.iter_mut().filter(|peer| peer.key == key) {
                peer.tell(&Event::Exited { code });
                peer.leave();
            }
        }
        self.phase = Phase::Over;
        match cleaned {
            Ok(()) if remove => {}
            result => {
                if let Err(words) = result {
                    tracing::warn!(words, "clean up after the container");
                    // The first error is why it ended.
                    if !self.record.error.is_empty() {
                        self.record.error.push_str("; ");
                    }
                    self.record.error.push_str(&words);
                    if remove {
                        self.record.status = Status::Dead;
                    }
                }
                (self.record.mount, self.record.monitor) = (None, None);
                self.record.cgroup.clear();
                std::fs::remove_file(self.settings.directory.join(SOCKET)).ok();
                self.save();
            }
        }
        // From here on others may change the container.
        self.lock = None;
        self.tell_the_end(code);
    }

    fn tell_the_end(&mut self, code: u8) {
        for peer in &mut self.peers {
            let is_here = matches!(peer.role, Role::Attached { program: MAIN, .. } | Role::Waiting { .. });
            match self.failed.as_ref().filter(|_| peer.key == STARTER) {
                Some(undone) => peer.tell(&Event::Failed { kind: undone.kind, words: undone.words.clone() }),
                None if is_here => peer.tell(&Event::Exited { code }),
                None => continue,
            }
            peer.leave();
        }
    }

    /// What is left of programs that were executed in it.
    fn reap_quietly(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            let found = self
                .execs
                .iter()
                .position(|(_, program)| program.process.is_some_and(|process| process.pid == pid));
            if let Some(at) = found {
                let code = status.exit_status().map(|code| u8::try_from(code & 0xff).unwrap_or(u8::MAX));
                let status = code.map_or_else(
                    || ExitStatus::Signaled(status.terminating_signal().unwrap_or(libc::SIGKILL)),
                    ExitStatus::Exited,
                );
                self.exec_ended(at, status);
            }
        }
    }

    /// Stays until every client has what is still to be said to it.
    pub(super) fn say_goodbye(&mut self) {
        for peer in &mut self.peers {
            peer.leave();
        }
        loop {
            self.peers.retain(|peer| !peer.is_done());
            if self.peers.is_empty() {
                return;
            }
            let mut wanted: Vec<_> =
                self.peers.iter().map(|peer| PollFd::new(peer, PollFlags::OUT)).collect();
            match rustix::event::poll(&mut wanted, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
            for peer in &mut self.peers {
                peer.flush();
            }
        }
    }
}
