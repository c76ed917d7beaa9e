//! `exec`: another program in a container that runs.

use std::os::fd::AsFd;
use std::path::PathBuf;

use oci_spec::runtime::{Capability, Process as SpecProcess, Spec};

use super::create::{check_descriptors, write_pid_file};
use super::{DOCUMENT, OnFile, Runtime, RuntimeError, socket};
use crate::config::{Config, ConfigError, Process, document};
use crate::process::{Container, Execution, Stdio, execute};
use crate::state::Status;

/// What to execute.
#[derive(Debug, Default)]
pub struct ExecRequest {
    /// The container.
    pub id: String,
    /// The whole description of the process; what follows changes it.
    pub process: Option<PathBuf>,
    /// The program and its arguments, when there is no description.
    pub args: Vec<String>,
    /// Working directory.
    pub cwd: Option<PathBuf>,
    /// `NAME=VALUE`, besides those of the container's own program.
    pub env: Vec<String>,
    /// Who it runs as.
    pub user: Option<ExecUser>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capabilities besides those of the container's own program.
    pub capabilities: Vec<Capability>,
    /// A terminal of its own.
    pub terminal: bool,
    /// Exec gives no privileges.
    pub no_new_privileges: bool,
    /// AppArmor profile.
    pub apparmor: Option<String>,
    /// SELinux label.
    pub label: Option<String>,
    /// Also in a paused container, where it waits.
    pub ignore_paused: bool,
    /// So many descriptors from 3 on are handed on.
    pub preserve_fds: u32,
    /// A socket that is sent the master of the terminal.
    pub console_socket: Option<PathBuf>,
    /// A file that gets the number of the process.
    pub pid_file: Option<PathBuf>,
    /// The terminal stays with the caller.
    pub keeps_terminal: bool,
    /// A cgroup below the container's own.
    pub cgroup: Option<PathBuf>,
    /// Standard streams.
    pub stdio: Stdio,
}

/// `UID[:GID]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecUser {
    /// User.
    pub uid: u32,
    /// Group, the container's own program's when nothing is said.
    pub gid: Option<u32>,
}

impl Runtime {
    /// Executes a program; returns when it has begun. It dies with the value unless that is released.
    ///
    /// # Errors
    /// When the container does not run, or the program cannot be executed.
    pub fn exec(&self, request: ExecRequest) -> Result<Container, RuntimeError> {
        let view = self.load(&request.id)?;
        if !matches!(view.status(), Status::Running | Status::Created) {
            return Err(view.refused("exec in", ""));
        }
        if view.is_paused() && !request.ignore_paused {
            return Err(view.refused("exec in", "; resume it first, or use --ignore-paused"));
        }
        check_descriptors(request.preserve_fds)?;
        let spec: Spec = document::read_as(&view.directory().join(DOCUMENT))?;
        let process = Process::from_spec(&describe(&request, &spec)?)?;
        match (process.terminal.is_some(), request.console_socket.is_some()) {
            (true, false) if !request.keeps_terminal => {
                return Err(RuntimeError::Request(
                    "a terminal without --console-socket needs the foreground".into(),
                ));
            }
            (false, true) => {
                return Err(RuntimeError::Request(
                    "--console-socket is given, but no terminal is wanted".into(),
                ));
            }
            _ => {}
        }
        let mut config = Config::from_spec(&spec, &view.record().bundle)?;
        config.hooks = Default::default();
        let mut cgroup = view.cgroup();
        if let Some(below) = &request.cgroup {
            let below = below.strip_prefix("/").unwrap_or(below);
            if below.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
                return Err(RuntimeError::Request(format!(
                    "--cgroup {} leads out of the container's",
                    below.display()
                )));
            }
            let directories: Vec<_> = cgroup
                .directories()
                .iter()
                .map(|directory| directory.join(below))
                .filter(|directory| directory.is_dir())
                .collect();
            if directories.is_empty() {
                return Err(RuntimeError::Request(format!(
                    "--cgroup {}: there is no such cgroup",
                    below.display()
                )));
            }
            cgroup = crate::cgroup::Cgroup::borrowed(&directories);
        }
        let (pid, pidfd) = view.process("exec in")?;
        let execution = Execution {
            process: &process,
            seccomp: config.seccomp.as_ref(),
            target: (pid, pidfd.as_fd()),
            cgroup: &cgroup,
            preserve_fds: request.preserve_fds,
            memory_policy: config.memory_policy.as_ref(),
            no_new_keyring: true,
        };
        let mut executed = execute(&execution, request.stdio, &config)?;
        if !request.keeps_terminal
            && let (Some(path), Some(terminal)) = (&request.console_socket, executed.take_terminal())
        {
            socket::send_descriptor(path, b"/dev/ptmx", terminal.as_fd())
                .on("send the terminal to --console-socket", path)?;
        }
        if let Some(path) = &request.pid_file {
            write_pid_file(path, executed.pid())?;
        }
        executed.start()?;
        Ok(executed)
    }
}

/// The description of the process: the one given, or the container's own program's with what was asked.
fn describe(request: &ExecRequest, spec: &Spec) -> Result<SpecProcess, RuntimeError> {
    let missing = || ConfigError::new("process", "is missing in the container's document");
    let mut process = match &request.process {
        Some(path) => document::read_as(path)?,
        None => {
            let mut process = spec.process().clone().ok_or_else(missing)?;
            process.set_args(Some(request.args.clone())).set_terminal(Some(false)).set_console_size(None);
            process
        }
    };
    if let Some(cwd) = &request.cwd {
        process.set_cwd(cwd.clone());
    }
    if !request.env.is_empty() {
        let mut env = process.env().clone().unwrap_or_default();
        env.extend(request.env.iter().cloned());
        process.set_env(Some(env));
    }
    if let Some(user) = request.user {
        let mut new = process.user().clone();
        new.set_uid(user.uid);
        if let Some(gid) = user.gid {
            new.set_gid(gid);
        }
        process.set_user(new);
    }
    if !request.groups.is_empty() {
        let mut user = process.user().clone();
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        groups.extend(&request.groups);
        user.set_additional_gids(Some(groups));
        process.set_user(user);
    }
    if !request.capabilities.is_empty() {
        let mut sets = process.capabilities().clone().unwrap_or_default();
        let more = |set: &Option<std::collections::HashSet<Capability>>| {
            let mut set = set.clone().unwrap_or_default();
            set.extend(request.capabilities.iter().copied());
            Some(set)
        };
        let (bounding, effective, permitted) =
            (more(sets.bounding()), more(sets.effective()), more(sets.permitted()));
        sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
        process.set_capabilities(Some(sets));
    }
    if request.terminal {
        process.set_terminal(Some(true));
    }
    if request.no_new_privileges {
        process.set_no_new_privileges(Some(true));
    }
    if request.apparmor.is_some() {
        process.set_apparmor_profile(request.apparmor.clone());
    }
    if request.label.is_some() {
        process.set_selinux_label(request.label.clone());
    }
    Ok(process)
}
