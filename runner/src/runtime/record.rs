//! What is written down of a container.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{OnFile, RuntimeError, SPECIFICATION};
use crate::state::{ProcessIdentity, Status};

/// `state.json` of a container's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub id: String,
    /// Where it was in its life when this was written; the program may have ended since.
    pub status: Status,
    /// The directory of its document.
    pub bundle: PathBuf,
    /// The directory that is its root.
    pub rootfs: PathBuf,
    /// Of the document.
    pub annotations: BTreeMap<String, String>,
    /// When it was made (RFC 3339).
    pub created: String,
    /// Who made it.
    pub owner: u32,
    /// Its first process.
    pub process: Option<ProcessIdentity>,
    /// In which run of the kernel: numbers of processes mean nothing in another.
    pub boot: String,
    /// Directories of its cgroup.
    pub cgroup: Vec<PathBuf>,
    /// Directories above those, that were made for it.
    pub cgroup_parents: Vec<PathBuf>,
    /// Its first process is process 1 of a pid namespace of its own, with which all others end.
    pub own_pid_namespace: bool,
    /// The document has hooks that run later.
    pub late_hooks: bool,
    /// Who is asked by its system call filter: socket, and what is passed on.
    pub seccomp_listener: Option<(PathBuf, Option<String>)>,
}

impl Record {
    /// Name in a container's directory.
    pub(super) const FILE: &'static str = "state.json";

    /// Replaces the record in `directory`. A reader sees the old one or the new one. It need not survive a power cut,
    /// which no container does.
    pub(super) fn save(&self, directory: &Path) -> Result<(), RuntimeError> {
        let temporary = directory.join(".state.json.new");
        let text = serde_json::to_vec(self).map_err(io::Error::from).on("write", &temporary)?;
        fs::write(&temporary, text).on("write", &temporary)?;
        fs::rename(&temporary, directory.join(Self::FILE)).on("write", &temporary)
    }

    /// `None` when there is no record yet.
    pub(super) fn load(directory: &Path) -> Result<Option<Self>, RuntimeError> {
        let path = directory.join(Self::FILE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.on("read", &path)?,
        };
        serde_json::from_slice(&text).map_err(io::Error::from).on("read", &path).map(Some)
    }

    /// The specification's state.
    pub(super) fn state(&self, status: &str, pid: Option<i32>) -> serde_json::Value {
        let mut state = json!({
            "ociVersion": SPECIFICATION,
            "id": self.id,
            "status": status,
            "bundle": self.bundle,
        });
        if let Some(state) = state.as_object_mut() {
            if let Some(pid) = pid {
                state.insert("pid".into(), pid.into());
            }
            if !self.annotations.is_empty() {
                state.insert("annotations".into(), json!(self.annotations));
            }
        }
        state
    }
}

/// This run of the kernel.
pub(super) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
