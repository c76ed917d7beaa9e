//! A step of setting a container up that failed: what was being done, to which object, and why.
//!
//! Steps run in the container's first process, whose errors reach the parent as words and an errno (see
//! [`crate::channel`]); finer types would not survive the way.

use std::io;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct StepError {
    doing: String,
    #[source]
    source: io::Error,
}

impl StepError {
    /// A step that failed without a system call's error: `doing` says what, `why` says why.
    pub(crate) fn refused(doing: impl Into<String>, why: impl Into<String>) -> Self {
        Self { doing: doing.into(), source: io::Error::other(why.into()) }
    }

    /// The number of the system call's error, if it was one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// What was being done and why it failed, in one line.
    #[must_use]
    pub fn words(&self) -> String {
        format!("{}: {}", self.doing, self.source)
    }
}

/// Names the step on its error.
pub(crate) trait Doing<T> {
    /// `what` is an infinitive with the object: `mount "proc" on "/proc"`.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, StepError> {
        self.map_err(|error| StepError { doing: what(), source: error.into() })
    }
}
