//! How often and how long to try again.

use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, SystemTime};

/// Patience with a registry that fails for a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How many times in a row a request may fail before the user is told. Progress resets the count.
    pub attempts: u32,
    /// Wait before the second attempt; it doubles with each further one.
    pub base: Duration,
    /// Longest wait between two attempts.
    pub max: Duration,
    /// Longest wait that a registry may ask for; if it asks for more, the user is told at once.
    pub max_asked: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 6,
            base: Duration::from_millis(400),
            max: Duration::from_secs(20),
            max_asked: Duration::from_secs(120),
        }
    }
}

impl RetryPolicy {
    /// No second attempt.
    pub fn never() -> Self {
        Self { attempts: 1, ..Self::default() }
    }

    /// The wait after failure number `failures` (from 1), with jitter so that many clients do not come back
    /// together; `None` when it was the last.
    pub(super) fn wait(&self, failures: u32, asked: Option<Duration>) -> Option<Duration> {
        if failures >= self.attempts || asked.is_some_and(|asked| asked > self.max_asked) {
            return None;
        }
        let doubled = self.base.saturating_mul(1 << (failures - 1).min(16)).min(self.max);
        // Between half of it and all of it.
        let jittered = doubled.mul_f64(0.5 + 0.5 * random());
        Some(asked.map_or(jittered, |asked| asked + jittered))
    }
}

/// From 0 to 1. Spread is all that is wanted of it.
fn random() -> f64 {
    let bits = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// Value of a `Retry-After` header: seconds or a date (RFC 9110, 10.2.3).
pub(super) fn retry_after(value: &str) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let policy = RetryPolicy {
            attempts: 4,
            base: Duration::from_secs(1),
            max: Duration::from_secs(3),
            ..RetryPolicy::default()
        };
        for (failures, least, most) in [(1, 0.5, 1.0), (2, 1.0, 2.0), (3, 1.5, 3.0)] {
            let wait = policy.wait(failures, None).unwrap().as_secs_f64();
            assert!((least..=most).contains(&wait), "{failures}: {wait}");
        }
        assert_eq!(policy.wait(4, None), None);
        let asked = Duration::from_secs(7);
        assert!(policy.wait(1, Some(asked)).unwrap() >= asked);
        assert_eq!(policy.wait(1, Some(Duration::from_secs(121))), None);
        assert_eq!(RetryPolicy::never().wait(1, None), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after(" 12 "), Some(Duration::from_secs(12)));
        assert_eq!(retry_after("Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(retry_after("soon"), None);
        assert_eq!(retry_after("-1"), None);
    }
}
