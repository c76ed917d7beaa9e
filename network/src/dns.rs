//! The name server of a network: a process of its own that listens on the bridge's address, answers for the names of
//! containers, and asks the host's resolvers for everything else.
//!
//! It is started by the first attachment and leaves by itself when the last container has gone. What it knows is
//! `leases.json`, which it reads again when that is replaced. It holds `ID.dns` locked as long as it lives.

mod answer;
mod message;
mod names;
mod serve;
mod upstream;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

pub use serve::serve;

use crate::document::Network;
use crate::error::{Error, Result};
use crate::store::{Networks, open_lock};

/// What the started process says when it answers.
pub const READY: &str = "ready\n";

/// The lock of a network's name server.
pub(crate) fn lock_path(directory: &Path, network: &str) -> PathBuf {
    directory.join(format!("{network}.dns"))
}

impl Networks {
    /// Starts the name server of a network unless it runs. To be called with the lock held: a server leaves only with
    /// that lock, so one that is seen stays.
    pub(crate) fn start_responder(&self, network: &Network) -> Result<()> {
        let Some((program, arguments)) =
            self.options.responder.as_ref().and_then(|words| words.split_first())
        else {
            return Ok(());
        };
        let path = lock_path(self.directory(), &network.id);
        let lock = open_lock(&path)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => drop(lock),
            Err(Errno::WOULDBLOCK) => return Ok(()),
            Err(error) => return Err(Error::io("lock", &path)(error)),
        }
        let failed = |why: String| Error::Responder { network: network.name.clone(), why };
        let mut child = Command::new(program)
            .args(arguments)
            .arg(self.directory())
            .arg(&network.id)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let mut said = String::new();
        let mut complaint = String::new();
        let read = |from: Option<&mut dyn Read>, into: &mut String| match from {
            // It closes both when it answers, or when it ends.
            Some(from) => from.take(4096).read_to_string(into).map(drop),
            None => Ok(()),
        };
        let heard = read(child.stdout.as_mut().map(|out| out as &mut dyn Read), &mut said)
            .and_then(|()| read(child.stderr.as_mut().map(|out| out as &mut dyn Read), &mut complaint));
        // The started process leaves its server behind and ends.
        let status = child.wait();
        match (heard, status) {
            (Ok(()), Ok(_)) if said == READY => Ok(()),
            (Err(error), _) | (_, Err(error)) => Err(failed(error.to_string())),
            (Ok(()), Ok(status)) => Err(failed(if complaint.is_empty() {
                status.to_string()
            } else {
                complaint.trim().to_owned()
            })),
        }
    }
}

#[cfg(test)]
pub(crate) use upstream::{read_message as tests_read, write_message as tests_write};
