//! `kill` and `delete`.

use std::fs;
use std::io;

use super::record;
use super::start::run_late;
use super::view::View;
use super::{OnFile, OnSystem, Runtime, RuntimeError};
use crate::cgroup::Cgroup;
use crate::state::Status;
use crate::sys;

impl Runtime {
    /// Sends a signal to the program, or with `all` to every process of the container, also when its program has ended.
    /// Signal 0 only asks whether there is somebody to send one to.
    ///
    /// # Errors
    /// When the program has ended.
    pub fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), RuntimeError> {
        let view = self.load(id)?;
        if view.status() == Status::Creating {
            return Err(view.refused("kill", ""));
        }
        let ended = view.status() == Status::Stopped;
        let cgroup = view.cgroup();
        // Without a pid namespace of its own, the others do not end with the first.
        let everything = all || (signal == libc::SIGKILL && !view.record().own_pid_namespace);
        if everything && !cgroup.directories().is_empty() {
            // After a reboot the directories are another's, if they are there.
            let is_ours = view.record().boot == record::boot();
            if ended && (!is_ours || cgroup.processes().is_empty()) {
                return if all { Ok(()) } else { Err(not_running(id)) };
            }
            match signal {
                libc::SIGKILL => cgroup.kill()?,
                signal => cgroup.signal(signal).when("send the signal to all processes")?,
            }
            return Ok(());
        }
        if ended && all {
            return Ok(());
        }
        let (_, pidfd) = match view.process("kill") {
            Err(RuntimeError::Status { .. }) => return Err(not_running(id)),
            result => result?,
        };
        match sys::signal::send(&pidfd, signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Err(not_running(id)),
            result => result.when("send the signal")?,
        }
        if signal == libc::SIGKILL && view.is_paused() {
            // A frozen process dies at once in the unified hierarchy only.
            cgroup.thaw()?;
        }
        Ok(())
    }

    /// Removes a container: what is left of its processes, its cgroup, its directory.
    ///
    /// # Errors
    /// When its program runs and `force` is not set; when something cannot be removed.
    pub fn delete(&self, id: &str, force: bool) -> Result<(), RuntimeError> {
        let locked = match self.lock(id) {
            Err(RuntimeError::Missing { .. }) if force => return Ok(()),
            result => result?,
        };
        let view = View::load(&locked.directory, id)?;
        let may = match view.status() {
            Status::Stopped | Status::Created => true,
            Status::Running | Status::Creating => force,
        };
        if !may {
            return Err(view.refused("delete", "; kill it first, or use --force"));
        }
        let record = view.record().clone();
        let mut cgroup = Cgroup::from_directories(record.cgroup.clone());
        cgroup.set_parents(record.cgroup_parents.clone());
        if view.status() != Status::Stopped {
            cgroup.kill()?;
        }
        if let Some(process) = record.process
            && view.status() != Status::Stopped
        {
            process.kill().when("kill the container's first process")?;
        }
        cgroup.remove()?;
        run_late(&locked, &record, 0, "poststop", |hooks| &hooks.poststop);
        match fs::remove_dir_all(&locked.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.on("remove", &locked.directory),
        }
    }

    /// Stops every process of a container.
    ///
    /// # Errors
    /// When its program does not run.
    pub fn pause(&self, id: &str) -> Result<(), RuntimeError> {
        let view = self.load(id)?;
        if view.is_paused() {
            return Err(view.refused("pause", ""));
        }
        view.require_process("pause")?;
        Ok(view.cgroup().freeze()?)
    }

    /// Changes limits.
    ///
    /// # Errors
    /// When its program does not run, or the field that cannot be set.
    pub fn update(
        &self,
        id: &str,
        resources: &oci_spec::runtime::LinuxResources,
    ) -> Result<(), RuntimeError> {
        let view = self.load(id)?;
        view.require_process("update")?;
        Ok(view.cgroup().set_limits(resources)?)
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// When it is not paused.
    pub fn resume(&self, id: &str) -> Result<(), RuntimeError> {
        let view = self.load(id)?;
        if !view.is_paused() {
            return Err(view.refused("resume", ""));
        }
        Ok(view.cgroup().thaw()?)
    }
}

fn not_running(id: &str) -> RuntimeError {
    RuntimeError::NotRunning { id: id.to_owned() }
}
