//! Containers by name, on disk: what an OCI runtime's command line works on.
//!
//! One directory per container below a root directory: the record (`state.json`, replaced by rename), a copy of the
//! document, and a socket on which the first process waits for the order to start. Whoever changes a container holds
//! the lock on its directory; the kernel frees it however that process ends. What is about to be made is written down
//! before it is made, so that a runtime killed at any moment leaves nothing that [`Runtime::delete`] does not find.

mod create;
mod delete;
mod execute;
mod features;
mod identifier;
mod record;
mod signal;
mod socket;
mod start;
pub mod time;
mod view;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

pub use self::create::CreateRequest;
pub use self::execute::{ExecRequest, ExecUser};
pub use self::features::features;
pub use self::identifier::check as check_id;
pub use self::record::Record;
pub use self::signal::parse as parse_signal;
pub use self::view::View;
use crate::CreateError;
use crate::cgroup::CgroupError;
use crate::config::{ConfigError, DocumentError};
use crate::state::Status;

/// Version of the specification that is implemented.
pub const SPECIFICATION: &str = "1.2.0";

/// The copy of the document in a container's directory.
const DOCUMENT: &str = "config.json";

/// Why a container could not be worked on.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The name cannot be one.
    #[error("container id {id:?}: {problem}")]
    Id {
        /// As given.
        id: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// There is one of this name.
    #[error("container with given ID already exists: {id:?}")]
    Exists {
        /// Its name.
        id: String,
    },
    /// There is none of this name.
    #[error("container {id:?} does not exist")]
    Missing {
        /// The name.
        id: String,
    },
    /// It is not in a state for this.
    #[error("container {id:?} is {status}: cannot {operation} it{hint}")]
    Status {
        /// Its name.
        id: String,
        /// Its state.
        status: &'static str,
        /// What was attempted.
        operation: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// Its program has ended, so that there is nothing to send a signal to. Engines know it by its first words.
    #[error("container not running: {id:?} is stopped")]
    NotRunning {
        /// Its name.
        id: String,
    },
    /// A request that contradicts itself.
    #[error("{0}")]
    Request(String),
    /// The document cannot be read.
    #[error("{0}")]
    Document(#[from] DocumentError),
    /// The document, or the description of a process, asks for what makes no sense or cannot be had.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The container could not be made or started.
    #[error("{0}")]
    Create(#[from] CreateError),
    /// Its cgroup could not be used.
    #[error("{0}")]
    Cgroup(#[from] CgroupError),
    /// A file of the runtime's own.
    #[error("{doing} {}: {source}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A system call on a process or socket.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

trait OnFile<T> {
    fn on(self, doing: &'static str, path: &Path) -> Result<T, RuntimeError>;
}

impl<T, E: Into<io::Error>> OnFile<T> for Result<T, E> {
    fn on(self, doing: &'static str, path: &Path) -> Result<T, RuntimeError> {
        self.map_err(|error| RuntimeError::File { doing, path: path.to_owned(), source: error.into() })
    }
}

trait OnSystem<T> {
    fn when(self, doing: &'static str) -> Result<T, RuntimeError>;
}

impl<T, E: Into<io::Error>> OnSystem<T> for Result<T, E> {
    fn when(self, doing: &'static str) -> Result<T, RuntimeError> {
        self.map_err(|error| RuntimeError::System { doing, source: error.into() })
    }
}

/// All containers below one directory.
#[derive(Debug, Clone)]
pub struct Runtime {
    root: PathBuf,
}

/// A container's directory, locked for change.
#[derive(Debug)]
pub(crate) struct Locked {
    directory: PathBuf,
    _lock: File,
}

impl Runtime {
    /// `root` is made when the first container is.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn directory(&self, id: &str) -> Result<PathBuf, RuntimeError> {
        identifier::check(id)?;
        Ok(self.root.join(id))
    }

    /// The record of a container, without its lock: a reader sees one version of it or the next.
    ///
    /// # Errors
    /// When there is none.
    pub fn load(&self, id: &str) -> Result<View, RuntimeError> {
        let directory = self.directory(id)?;
        View::load(&directory, id)
    }

    /// All containers, by name. Those that are gone by the time they are looked at are left out.
    ///
    /// # Errors
    /// When the root directory cannot be read.
    pub fn list(&self) -> Result<Vec<View>, RuntimeError> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            result => result.on("read", &self.root)?,
        };
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names
            .iter()
            .filter(|name| identifier::check(name).is_ok())
            .filter_map(|name| self.load(name).ok())
            .collect())
    }

    /// Makes the directory of a new container, locked.
    fn claim(&self, id: &str) -> Result<Locked, RuntimeError> {
        let directory = self.directory(id)?;
        let mut builder = DirBuilder::new();
        builder.mode(0o711);
        match fs::metadata(&self.root) {
            Ok(_) => {}
            Err(_) => builder.recursive(true).create(&self.root).on("make", &self.root)?,
        }
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(RuntimeError::Exists { id: id.to_owned() });
            }
            result => result.on("make", &directory)?,
        }
        // Somebody may have taken it for a leftover and removed it before the lock was there.
        lock(directory)?.ok_or_else(|| RuntimeError::Exists { id: id.to_owned() })
    }

    /// Waits until nobody else changes the container.
    fn lock(&self, id: &str) -> Result<Locked, RuntimeError> {
        let directory = self.directory(id)?;
        lock(directory)?.ok_or_else(|| RuntimeError::Missing { id: id.to_owned() })
    }
}

/// `None` when the directory is not, or no longer, there.
fn lock(directory: PathBuf) -> Result<Option<Locked>, RuntimeError> {
    let lock = match File::open(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.on("open", &directory)?,
    };
    rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, FlockOperation::LockExclusive))
        .on("lock", &directory)?;
    let ours = lock.metadata().on("look at", &directory)?;
    match fs::metadata(&directory) {
        Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
            Ok(Some(Locked { directory, _lock: lock }))
        }
        _ => Ok(None),
    }
}

/// In the specification's words.
pub(crate) fn word_of(status: Status, frozen: bool) -> &'static str {
    match status {
        _ if frozen => "paused",
        Status::Creating => "creating",
        Status::Created => "created",
        Status::Running => "running",
        Status::Stopped => "stopped",
    }
}
