//! Restart policies, and how long to wait before the next start.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Wait before the first restart.
const FIRST: Duration = Duration::from_millis(100);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(60);
/// A program that ran so long has started well: the next wait is the first again.
const WELL: Duration = Duration::from_secs(10);

/// When a program that has ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// When it failed, at most so many times; 0 is without end.
    OnFailure(u32),
    /// Always, also after the machine has started.
    Always,
    /// Always, but not after the machine has started where somebody had stopped it.
    UnlessStopped,
}

/// The wait before the next start.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BackOff(Duration);

impl BackOff {
    /// After a program that ran for `ran`.
    pub(super) fn next(&mut self, ran: Duration) -> Duration {
        self.0 = match ran >= WELL || self.0.is_zero() {
            true => FIRST,
            false => (self.0 * 2).min(LONGEST),
        };
        self.0
    }
}

impl RestartPolicy {
    /// Whether to start again after an end with `code`, having done so `restarts` times.
    #[must_use]
    pub fn applies(self, code: u8, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(max) => code != 0 && (max == 0 || restarts < max),
            Self::Always | Self::UnlessStopped => true,
        }
    }

    /// Reads `no`, `on-failure[:N]`, `always` or `unless-stopped`.
    ///
    /// # Errors
    /// In docker's words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, count) = match text.split_once(':') {
            Some((name, count)) => (name, Some(count)),
            None => (text, None),
        };
        let number = count.map(str::parse::<u32>).transpose();
        match (name, number) {
            (_, Err(_)) => Err("maximum retry count must be an integer".into()),
            ("" | "no", Ok(None | Some(0))) => Ok(Self::No),
            ("on-failure", Ok(count)) => Ok(Self::OnFailure(count.unwrap_or(0))),
            ("always", Ok(None | Some(0))) => Ok(Self::Always),
            ("unless-stopped", Ok(None | Some(0))) => Ok(Self::UnlessStopped),
            ("no" | "always" | "unless-stopped", Ok(Some(_))) => {
                Err(format!("maximum retry count cannot be used with restart policy '{name}'"))
            }
            _ => Err(format!(
                "invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or \
                 'unless-stopped'"
            )),
        }
    }

    /// Its name, without the count.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure(_) => "on-failure",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_dockers() {
        assert_eq!(RestartPolicy::parse("on-failure:3"), Ok(RestartPolicy::OnFailure(3)));
        assert_eq!(RestartPolicy::parse("no"), Ok(RestartPolicy::No));
        assert_eq!(RestartPolicy::parse("always"), Ok(RestartPolicy::Always));
        for wrong in ["sometimes", "always:2", "on-failure:x", "on-failure:-1"] {
            assert!(RestartPolicy::parse(wrong).is_err(), "{wrong}");
        }
        assert!(!RestartPolicy::OnFailure(2).applies(0, 0));
        assert!(RestartPolicy::OnFailure(2).applies(1, 1));
        assert!(!RestartPolicy::OnFailure(2).applies(1, 2));
        assert!(RestartPolicy::OnFailure(0).applies(1, 1000));
        assert!(RestartPolicy::UnlessStopped.applies(0, 7));
    }

    #[test]
    fn the_wait_doubles_to_a_minute_and_begins_anew() {
        let mut wait = BackOff::default();
        let mut milliseconds = || wait.next(Duration::from_secs(9)).as_millis();
        let first: Vec<_> = (0..12).map(|_| milliseconds()).collect();
        assert_eq!(first[..5], [100, 200, 400, 800, 1600]);
        assert_eq!(first[10..], [60_000, 60_000]);
        assert_eq!(wait.next(Duration::from_secs(10)).as_millis(), 100);
    }
}
