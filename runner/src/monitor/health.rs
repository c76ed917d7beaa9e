//! Health checks: a program that is executed in the container again and again, and what its exit codes come to.
//!
//! States, counting and defaults are docker's (its reference of `HEALTHCHECK`).

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Results that are kept.
const RESULTS: usize = 5;
/// Bytes of a check's output that are kept.
const OUTPUT_MAX: usize = 4096;

/// When a container is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// From the end of one check to the next.
    pub interval: Duration,
    /// How long a check may take; then it is killed and has failed.
    pub timeout: Duration,
    /// Failures so soon after the start do not count, until a check has succeeded.
    pub start_period: Duration,
    /// In place of `interval` during `start_period`.
    pub start_interval: Duration,
    /// So many failures in a row make it unhealthy.
    pub retries: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(30),
            start_period: Duration::ZERO,
            start_interval: Duration::from_secs(5),
            retries: 3,
        }
    }
}

/// What is known of a container's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Nothing yet.
    #[default]
    Starting,
    /// The last check that counted succeeded.
    Healthy,
    /// Too many checks in a row have failed.
    Unhealthy,
}

impl Health {
    /// The word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthResult {
    /// When it began (RFC 3339).
    pub start: String,
    /// When it ended (RFC 3339).
    pub end: String,
    /// 0: healthy; -1: it took too long or could not be executed.
    pub exit_code: i32,
    /// What it wrote, its beginning.
    pub output: String,
}

/// What the checks since a start have found: docker's `State.Health`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthRecord {
    /// What they come to.
    pub status: Health,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The last of them, the oldest first.
    pub log: Vec<HealthResult>,
}

impl HealthRecord {
    /// Adds a result that came `age` after the start. True when the state is another now.
    pub(super) fn add(&mut self, check: &HealthCheck, age: Duration, result: HealthResult) -> bool {
        let before = self.status;
        if result.exit_code == 0 {
            self.failing_streak = 0;
            self.status = Health::Healthy;
        } else if self.status != Health::Starting || age > check.start_period {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= check.retries.max(1) {
                self.status = Health::Unhealthy;
            }
        }
        self.log.push(result);
        let extra = self.log.len().saturating_sub(RESULTS);
        self.log.drain(..extra);
        self.status != before
    }

    /// How long to wait until the next check.
    pub(super) fn pause(&self, check: &HealthCheck, age: Duration) -> Duration {
        match self.status {
            Health::Starting if age < check.start_period => check.start_interval.min(check.interval),
            _ => check.interval,
        }
    }
}

/// A check that is under way.
#[derive(Debug)]
pub(super) struct Probe {
    /// Its key among the programs.
    pub(super) key: u32,
    /// RFC 3339.
    pub(super) start: String,
    /// When it is killed; `None` when it has been.
    pub(super) kill_at: Option<Instant>,
    output: Vec<u8>,
}

impl Probe {
    pub(super) fn new(key: u32, start: String, kill_at: Instant) -> Self {
        Self { key, start, kill_at: Some(kill_at), output: Vec::new() }
    }

    pub(super) fn take_output(&mut self, bytes: &[u8]) {
        let left = OUTPUT_MAX.saturating_sub(self.output.len());
        self.output.extend_from_slice(bytes.get(..left.min(bytes.len())).unwrap_or_default());
    }

    pub(super) fn output(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(exit_code: i32) -> HealthResult {
        HealthResult { start: String::new(), end: String::new(), exit_code, output: String::new() }
    }

    #[test]
    fn states_are_dockers() {
        let check =
            HealthCheck { start_period: Duration::from_secs(10), retries: 2, ..HealthCheck::default() };
        let mut record = HealthRecord::default();
        let (early, late) = (Duration::from_secs(3), Duration::from_secs(20));
        // Failures in the beginning do not count.
        assert!(!record.add(&check, early, result(1)));
        assert_eq!((record.status, record.failing_streak), (Health::Starting, 0));
        assert_eq!(record.pause(&check, early), check.start_interval);
        assert_eq!(record.pause(&check, late), check.interval);
        assert!(!record.add(&check, late, result(1)));
        assert_eq!((record.status, record.failing_streak), (Health::Starting, 1));
        assert!(record.add(&check, late, result(1)));
        assert_eq!(record.status, Health::Unhealthy);
        assert!(record.add(&check, late, result(0)));
        assert_eq!((record.status, record.failing_streak), (Health::Healthy, 0));
        // Once it was healthy, the beginning is over.
        let mut record = HealthRecord::default();
        assert!(record.add(&check, early, result(0)));
        assert!(!record.add(&check, early, result(1)) && record.add(&check, early, result(1)));
        for _ in 0..10 {
            record.add(&check, late, result(3));
        }
        assert_eq!(record.log.len(), RESULTS);
    }

    #[test]
    fn output_is_bounded() {
        let mut probe = Probe::new(1, String::new(), Instant::now());
        probe.take_output(&[b'x'; OUTPUT_MAX - 1]);
        probe.take_output(b"yz");
        assert_eq!(probe.output().len(), OUTPUT_MAX);
        assert!(probe.output().ends_with("xy"));
    }
}
