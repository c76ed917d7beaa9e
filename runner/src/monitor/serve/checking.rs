//! Health checks in the loop.

use std::time::{Instant, SystemTime};

use super::super::health::{Health, HealthRecord, HealthResult, Probe};
use super::super::program::{self, Program, Wish};
use super::super::worker::{Body, Happening, Report, Worker};
use super::{Monitor, Phase};
use crate::runtime::time::rfc3339;

impl<B: Body> Monitor<B> {
    /// The program runs: its health is open, and the first check comes after a pause.
    pub(super) fn begin_checking(&mut self) {
        self.probe = None;
        self.record.health = self.settings.health.map(|_| HealthRecord::default());
        self.plan_check();
    }

    /// The program has ended: nothing is checked any more. What was found stays.
    pub(super) fn end_checking(&mut self) {
        self.check_at = None;
        self.probe = None;
    }

    fn plan_check(&mut self) {
        let pause = match (&self.settings.health, &self.record.health) {
            (Some(check), Some(record)) => record.pause(check, self.started_at.elapsed()),
            _ => return,
        };
        self.check_at = Some(Instant::now() + pause);
    }

    /// What is due of checks: the next one, or the end of one that takes too long.
    pub(super) fn look_at_checks(&mut self, now: Instant) {
        if self.check_at.is_some_and(|at| at <= now) {
            self.check_at = None;
            self.check();
        }
        let Some(probe) = &mut self.probe else { return };
        if probe.kill_at.is_some_and(|at| at <= now) {
            probe.kill_at = None;
            let key = probe.key;
            let process = self.program(key).and_then(|program| program.process).and_then(program::open);
            if let Err(error) = program::signal(process.as_ref(), libc::SIGKILL) {
                tracing::debug!(%error, "kill a health check");
            }
        }
    }

    /// The moment of [`Self::look_at_checks`].
    pub(super) fn next_check(&self) -> Option<Instant> {
        self.check_at.into_iter().chain(self.probe.as_ref().and_then(|probe| probe.kill_at)).min()
    }

    fn check(&mut self) {
        let Some(check) = self.settings.health else { return };
        if self.phase != Phase::Running || self.main.process.is_none() {
            return;
        }
        let key = self.new_key();
        let start = rfc3339(SystemTime::now());
        let wish = Wish { terminal: false, stdin: false, output: true };
        let made = Program::prepare(wish).and_then(|(program, stdio)| {
            let body = &mut self.body;
            let worker = Worker::start(|| match body.probe(stdio) {
                Ok(executed) => (Report::Executed(executed), Vec::new()),
                Err(undone) => (Report::Failed(undone), Vec::new()),
            })?;
            Ok((program, worker))
        });
        self.probe = Some(Probe::new(key, start, Instant::now() + check.timeout));
        match made {
            Ok((program, worker)) => {
                self.execs.push((key, program));
                self.workers.push((key, worker));
            }
            Err(error) => self.checked(-1, Some(&error.to_string())),
        }
    }

    /// Whether this is the key of the check under way.
    pub(super) fn is_probe(&self, key: u32) -> bool {
        self.probe.as_ref().is_some_and(|probe| probe.key == key)
    }

    /// A check has ended, with `words` where it could not be executed.
    pub(super) fn checked(&mut self, code: i32, words: Option<&str>) {
        let (Some(probe), Some(check)) = (self.probe.take(), self.settings.health) else { return };
        let (exit_code, output) = match (words, probe.kill_at) {
            (Some(words), _) => (-1, words.to_owned()),
            (None, Some(_)) => (code, probe.output()),
            (None, None) => (-1, format!("Health check exceeded timeout ({:?})", check.timeout)),
        };
        let result = HealthResult { start: probe.start, end: rfc3339(SystemTime::now()), exit_code, output };
        let age = self.started_at.elapsed();
        let Some(record) = &mut self.record.health else { return };
        let changed = record.add(&check, age, result);
        let now: Health = record.status;
        self.save();
        if changed {
            self.body.happened(&Happening::Health(now));
        }
        self.plan_check();
    }
}
