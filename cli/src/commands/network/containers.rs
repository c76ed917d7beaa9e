//! Containers as networks see them: who runs, and where.

use std::fs;

use anyhow::{Context, bail};
use layerfs_network::Namespace;
use layerfs_runner::state::ProcessIdentity;
use rustix::process::Pid;
use serde_json::Value;

use crate::commands::run::store_root;
use crate::exit::Hinted;

/// A container.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) id: String,
    pub(super) name: String,
    /// Its program, while that runs.
    process: Option<ProcessIdentity>,
    monitor: Option<ProcessIdentity>,
}

impl Found {
    /// The network namespace of its program.
    pub(super) fn namespace(&self) -> anyhow::Result<Namespace<'static>> {
        let running = self.process.filter(|process| process.is_alive());
        let pid = running.and_then(|process| Pid::from_raw(process.pid));
        pid.map(Namespace::Process).with_context(|| Hinted {
            message: format!("container {} is not running", self.name),
            hint: "start it first; a container's networks at its start are those of its --network".into(),
        })
    }
}

fn read(id: &str) -> anyhow::Result<Option<Found>> {
    let directory = store_root()?.join("containers").join(id);
    let document = |name: &str| -> Option<Value> {
        // What cannot be read is not there: it may be made, or removed, just now.
        serde_json::from_slice(&fs::read(directory.join(name)).ok()?).ok()
    };
    let Some(state) = document("state.json") else { return Ok(None) };
    let config = document("config.json").unwrap_or_default();
    let name = config["name"].as_str().or_else(|| state["name"].as_str()).unwrap_or(id).to_owned();
    let process = |key: &str| serde_json::from_value(state[key].clone()).ok();
    let (process, monitor) = (process("process"), process("monitor"));
    Ok(Some(Found { id: id.to_owned(), name, process, monitor }))
}

/// Whether a container, by its id, runs, or is being started or ended: its monitor lives. One that is being started has
/// its addresses before its program is written down.
pub(super) fn runs(id: &str) -> bool {
    let found = read(id).ok().flatten();
    found.is_some_and(|found| {
        [found.process, found.monitor].into_iter().flatten().any(ProcessIdentity::is_alive)
    })
}

/// The container with this name, id, or beginning of an id.
pub(super) fn find(wanted: &str) -> anyhow::Result<Found> {
    let directory = store_root()?.join("containers");
    let mut begins = Vec::new();
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>().context("list the containers")?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).context("list the containers"),
    };
    for entry in entries {
        let Ok(id) = entry.file_name().into_string() else { continue };
        let Some(found) = read(&id)? else { continue };
        if found.name == wanted || id == wanted {
            return Ok(found);
        }
        if !wanted.is_empty() && id.starts_with(wanted) {
            begins.push(found);
        }
    }
    match begins.len() {
        1 => begins.pop().context("one container"),
        0 => bail!("No such container: {wanted}"),
        _ => bail!("container id {wanted:?} is ambiguous"),
    }
}
