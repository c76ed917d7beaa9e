//! Writing changes of an upper down to the directory it is on.
//!
//! [`plan()`] says what would be done, and where the directory is not any more what the changes were made to; [`run()`] does
//! it. All that is new is first made beside its place, under names that begin with [`TEMPORARY`], and synced; then a
//! journal says what goes where; then each object takes its place by one rename. A journal that a killed run has left is
//! carried out to its end by [`resume`], or, where nothing has been put in its place yet, what was prepared is removed.
//!
//! Must hold: no symlink is followed and nothing outside the directory is reached (`openat2`, `RESOLVE_BENEATH`); what is
//! not named by the plan stays; metadata of a file changes in place and moves no data.

pub(super) mod compare;
mod journal;
mod perform;
pub(super) mod plan;
pub(super) mod root;
pub(super) mod stage;

use std::path::{Path, PathBuf};

use rustix::io::Errno;
use thiserror::Error;

use super::merged::Stack;

pub use plan::{Action, Conflict, Plan, Step, plan};

/// Begins the names of what is being made, and of what is being removed.
pub const TEMPORARY: &str = ".layerfs-apply-";

/// Why changes were not applied.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// An object of the directory, or of the upper.
    #[error("{operation} {path}")]
    Object {
        /// What was attempted.
        operation: &'static str,
        /// From the root, with a slash in front.
        path: String,
        /// What came of it.
        source: Errno,
    },
    /// The journal.
    #[error("write down what is to be done in {path:?}")]
    Journal {
        /// Where.
        path: PathBuf,
        /// What came of it.
        source: std::io::Error,
    },
    /// A journal that makes no sense.
    #[error("the journal {path:?} cannot be read: {words}")]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        words: String,
    },
}

impl ApplyError {
    fn object(operation: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Self {
        move |source| Self::Object { operation, path: String::from_utf8_lossy(path).into_owned(), source }
    }

    fn is_not_permitted(&self) -> bool {
        matches!(self, Self::Object { source: Errno::PERM | Errno::ACCESS, .. })
    }
}

/// Carries `plan` out on the directory `root`, the only layer below `stack`'s topmost. `journal` is where the journal is
/// kept meanwhile; `tag` tells this work from others' in the names of temporaries. The journal stays until [`finished`]: the
/// caller may have more to do, and a killed one does it after [`resume`].
///
/// # Errors
/// Until all is prepared nothing has changed in `root`. What cannot be done after that (something is mounted there, or the
/// caller may not) is left as it was, all else is done, and the first error told. No journal is left.
pub fn run(stack: &Stack, plan: &Plan, root: &Path, journal: &Path, tag: &str) -> Result<(), ApplyError> {
    let root = root::Root::open(root)?;
    let staged = stage::stage(stack, plan, &root, journal, tag)?;
    perform::perform(stack, &staged, &root).or_else(|error| {
        journal::remove(journal)?;
        Err(error)
    })
}

/// Carries out what a killed [`run`] has left to do, or takes back what it had prepared. `None` when there was nothing;
/// else whether all changes of the upper are applied by that. Then [`finished`] is to be called.
///
/// # Errors
/// As [`run`].
pub fn resume(stack: &Stack, root: &Path, journal: &Path) -> Result<Option<bool>, ApplyError> {
    let Some(found) = journal::load(journal)? else { return Ok(None) };
    let root = root::Root::open(root)?;
    let done = match found.complete {
        true => perform::perform(stack, &found, &root),
        false => perform::take_back(&found, &root),
    };
    done.or_else(|error| {
        journal::remove(journal)?;
        Err(error)
    })?;
    Ok(Some(found.complete && found.whole))
}

/// Forgets what was done.
///
/// # Errors
/// When the journal cannot be removed.
pub fn finished(journal: &Path) -> Result<(), ApplyError> {
    journal::remove(journal)
}
