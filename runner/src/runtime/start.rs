//! `start`, and what comes with it: hooks, and the listener of the system call filter.

use std::os::fd::{AsFd, OwnedFd};

use serde_json::json;

use super::record::Record;
use super::view::View;
use super::{DOCUMENT, Locked, OnFile, Runtime, RuntimeError, SPECIFICATION, socket};
use crate::config::{Hooks, document};
use crate::hooks;
use crate::process::start_over;
use crate::state::Status;

impl Runtime {
    /// Has a created container run its program; returns when it has begun.
    ///
    /// # Errors
    /// When it is not in that state, or its program cannot be executed: then it is stopped.
    pub fn start(&self, id: &str) -> Result<(), RuntimeError> {
        let locked = self.lock(id)?;
        let view = View::load(&locked.directory, id)?;
        if view.status() != Status::Created {
            return Err(view.refused("start", ""));
        }
        let mut record = view.record().clone();
        begin(&locked, &record, view.pid())?;
        record.status = Status::Running;
        record.save(&locked.directory)?;
        run_late(&locked, &record, view.pid(), "poststart", |hooks| &hooks.poststart);
        Ok(())
    }

    /// As [`Self::start`], of a container that the caller has just created and that nobody else knows. That it runs is not
    /// written down: whoever wants to know finds that its first process does not wait any more.
    ///
    /// # Errors
    /// When its program cannot be executed.
    pub fn start_new(&self, id: &str) -> Result<(), RuntimeError> {
        let locked = self.lock(id)?;
        let missing = || RuntimeError::Missing { id: id.to_owned() };
        let record = Record::load(&locked.directory)?.ok_or_else(missing)?;
        let pid = record.process.ok_or_else(missing)?.pid;
        begin(&locked, &record, pid)?;
        run_late(&locked, &record, pid, "poststart", |hooks| &hooks.poststart);
        Ok(())
    }
}

/// Tells the first process, and hands the listener of its filter over.
fn begin(locked: &Locked, record: &Record, pid: i32) -> Result<(), RuntimeError> {
    let socket = socket::connect(&locked.directory).on("reach the first process in", &locked.directory)?;
    let state = record.state("created", Some(pid)).to_string();
    match start_over(socket, state.as_bytes())? {
        Some(listener) => hand_listener_over(record, pid, &listener),
        None => Ok(()),
    }
}

/// Sends the listener, with the state of the process (specification, "The Container Process State").
fn hand_listener_over(record: &Record, pid: i32, listener: &OwnedFd) -> Result<(), RuntimeError> {
    let Some((path, metadata)) = &record.seccomp_listener else { return Ok(()) };
    let mut state = json!({
        "ociVersion": SPECIFICATION,
        "fds": ["seccompFd"],
        "pid": pid,
        "state": record.state("running", Some(pid)),
    });
    if let (Some(metadata), Some(object)) = (metadata, state.as_object_mut()) {
        object.insert("metadata".into(), json!(metadata));
    }
    socket::send_descriptor(path, state.to_string().as_bytes(), listener.as_fd())
        .on("send the listener to", path)
}

/// Runs hooks after which there is no way back: what fails is only told (specification, "Lifecycle").
pub(super) fn run_late(
    locked: &Locked,
    record: &Record,
    pid: i32,
    name: &'static str,
    which: fn(&Hooks) -> &Vec<crate::config::Hook>,
) {
    if !record.late_hooks {
        return;
    }
    let found = document::read_as(&locked.directory.join(DOCUMENT))
        .map_err(RuntimeError::from)
        .and_then(|spec| Ok(Hooks::from_spec(&spec)?));
    let status = if name == "poststart" { "running" } else { "stopped" };
    let state = record.state(status, (pid > 0).then_some(pid)).to_string();
    match found {
        Ok(found) => {
            hooks::run_each(name, which(&found), state.as_bytes());
        }
        Err(error) => tracing::warn!(%error, "hooks are not run"),
    }
}
