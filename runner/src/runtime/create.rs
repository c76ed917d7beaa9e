//! `create`: from a bundle to a container in which only the program is missing.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use oci_spec::runtime::Spec;

use super::record::{self, Record};
use super::{DOCUMENT, Locked, OnFile, OnSystem, Runtime, RuntimeError, socket, time};
use crate::cgroup::{Cgroup, CgroupError, Hierarchies, Plan};
use crate::config::{CgroupPath, Choice, Config, document};
use crate::namespaces::Namespaces;
use crate::process::{Container, Outliving, Stdio};
use crate::state::{ProcessIdentity, Status};
use crate::{hooks, sys};

/// What to make.
#[derive(Debug, Default)]
pub struct CreateRequest {
    /// Its name.
    pub id: String,
    /// The directory of its document.
    pub bundle: PathBuf,
    /// What the document does not say.
    pub choice: Choice,
    /// A socket that is sent the master of the terminal.
    pub console_socket: Option<PathBuf>,
    /// A file that gets the number of the first process.
    pub pid_file: Option<PathBuf>,
    /// It stays in the caller's cgroup, without limits.
    pub without_cgroup: bool,
    /// The terminal stays with the caller.
    pub keeps_terminal: bool,
    /// Standard streams; the runtime's own where nothing else is said.
    pub stdio: Stdio,
}

impl Runtime {
    /// Makes a container. It outlives this process, whose child its first process is.
    ///
    /// # Errors
    /// What is wrong with the document, or what failed. Nothing is left then.
    pub fn create(&self, request: CreateRequest) -> Result<Container, RuntimeError> {
        let (text, spec) = document::read(&request.bundle)?;
        let bundle = fs::canonicalize(&request.bundle).on("find", &request.bundle)?;
        let mut config = Config::from_spec(&spec, &bundle)?;
        config.choice = request.choice.clone();
        take_socket_activation(&mut config)?;
        check_terminal(&config, &request)?;
        check_descriptors(config.choice.preserve_fds)?;
        if !config.root.is_dir() {
            let problem = format!("{} is not a directory", config.root.display());
            return Err(crate::config::ConfigError::new("root.path", problem).into());
        }
        let cgroup = config
            .cgroup
            .get_or_insert_with(|| CgroupPath::Relative(format!("layerfs-{}", request.id).into()));
        let hierarchies = Hierarchies::discover()?;
        let plan = match request.without_cgroup {
            true => Plan::default(),
            false => Plan::new(&hierarchies, cgroup),
        };
        // Else its cgroup would be named, which is in use because the container is.
        if self.directory(&request.id)?.exists() {
            return Err(RuntimeError::Exists { id: request.id });
        }
        check_unused(&plan)?;

        let locked = self.claim(&request.id)?;
        let mut record = record_of(&request.id, &bundle, &spec, &config, &plan);
        let made = make(&locked, &request, &text, &config, (&hierarchies, &plan), &mut record);
        if made.is_err() {
            undo(&locked, &config, &record);
        }
        made
    }
}

fn make(
    locked: &Locked,
    request: &CreateRequest,
    text: &[u8],
    config: &Config,
    (hierarchies, plan): (&Hierarchies, &Plan),
    record: &mut Record,
) -> Result<Container, RuntimeError> {
    let directory = &locked.directory;
    record.save(directory)?;
    fs::write(directory.join(DOCUMENT), text).on("write", &directory.join(DOCUMENT))?;
    let listener = socket::listen(directory).on("listen in", directory)?;
    let before = record.clone();
    let state = |pid: rustix::process::Pid| {
        before.state("creating", Some(pid.as_raw_nonzero().get())).to_string().into_bytes()
    };
    let mut write_down = |container: &mut Container| -> std::io::Result<()> {
        let pid = container.pid();
        let identity = ProcessIdentity::of(pid).map_err(|error| {
            std::io::Error::other(format!("look at the container's first process: {error}"))
        })?;
        record.process = Some(identity);
        record.status = Status::Created;
        // An ordinary user may make few of those planned, or none.
        record.cgroup = container.cgroup_directories().to_vec();
        if !request.keeps_terminal
            && let (Some(socket), Some(terminal)) = (&request.console_socket, container.take_terminal())
        {
            socket::send_descriptor(socket, b"/dev/ptmx", terminal.as_fd()).map_err(|error| {
                let to = socket.display();
                std::io::Error::other(format!("send the terminal to --console-socket {to}: {error}"))
            })?;
        }
        if let Some(path) = &request.pid_file {
            write_pid_file(path, pid).map_err(std::io::Error::other)?;
        }
        record.save(directory).map_err(std::io::Error::other)
    };
    let outliving = Outliving { listener: listener.as_fd(), record: &mut write_down };
    let stdio = request.stdio.try_clone().when("duplicate the standard streams")?;
    Ok(Container::create_with(config, stdio, hierarchies, Some(plan), &state, Some(outliving))?)
}

/// Beside, and renamed: whoever waits for it sees it whole.
pub(super) fn write_pid_file(path: &Path, pid: rustix::process::Pid) -> Result<(), RuntimeError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.new"));
    let doing = "write --pid-file";
    let mut file = fs::File::create(&temporary).on(doing, path)?;
    let written = write!(file, "{}", pid.as_raw_nonzero()).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        fs::remove_file(&temporary).ok();
    }
    written.on(doing, path)
}

fn undo(locked: &Locked, config: &Config, record: &Record) {
    // The first process and its cgroup went with the value that stood for them.
    let state = record.state("stopped", None).to_string();
    hooks::run_each("poststop", &config.hooks.poststop, state.as_bytes());
    let mut cgroup = Cgroup::from_directories(record.cgroup.clone());
    cgroup.set_parents(record.cgroup_parents.clone());
    if let Err(error) = cgroup.remove() {
        tracing::warn!(%error, "a cgroup is left");
    }
    if let Err(error) = fs::remove_dir_all(&locked.directory) {
        tracing::warn!(%error, directory = %locked.directory.display(), "a container's directory is left");
    }
}

fn record_of(id: &str, bundle: &Path, spec: &Spec, config: &Config, plan: &Plan) -> Record {
    let hooks = &config.hooks;
    Record {
        id: id.to_owned(),
        status: Status::Creating,
        bundle: bundle.to_owned(),
        rootfs: config.root.clone(),
        annotations: spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
        created: time::rfc3339(SystemTime::now()),
        owner: rustix::process::getuid().as_raw(),
        process: None,
        boot: record::boot(),
        cgroup: plan.directories(),
        cgroup_parents: plan.parents().to_vec(),
        own_pid_namespace: config.namespaces.contains(Namespaces::PID),
        late_hooks: !(hooks.poststart.is_empty() && hooks.poststop.is_empty()),
        seccomp_listener: config
            .seccomp
            .as_ref()
            .and_then(|filter| filter.listener())
            .map(|listener| (listener.path.clone(), listener.metadata.clone())),
    }
}

/// Before it is written down that the directories are this container's.
fn check_unused(plan: &Plan) -> Result<(), RuntimeError> {
    for path in plan.directories() {
        if fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|text| !text.trim().is_empty()) {
            return Err(CgroupError::InUse { path }.into());
        }
    }
    Ok(())
}

fn check_terminal(config: &Config, request: &CreateRequest) -> Result<(), RuntimeError> {
    let wrong = |words: &str| Err(RuntimeError::Request(words.to_owned()));
    match (config.process.terminal.is_some(), request.console_socket.is_some()) {
        (true, false) if !request.keeps_terminal => {
            wrong("process.terminal is true: give a --console-socket that takes the terminal")
        }
        (false, true) => wrong("--console-socket is given, but process.terminal is false"),
        _ => Ok(()),
    }
}

/// What a caller wants handed on must be there, or the program would find other files under these numbers.
pub(super) fn check_descriptors(count: u32) -> Result<(), RuntimeError> {
    for number in 3..3_u32.saturating_add(count) {
        if !i32::try_from(number).is_ok_and(sys::process::is_open) {
            return Err(RuntimeError::Request(format!(
                "--preserve-fds {count}: descriptor {number} is not open"
            )));
        }
    }
    Ok(())
}

/// Sockets that a service manager has opened are handed on with what says so (`sd_listen_fds(3)`).
fn take_socket_activation(config: &mut Config) -> Result<(), RuntimeError> {
    let Ok(count) = std::env::var("LISTEN_FDS") else { return Ok(()) };
    let Ok(count) = count.parse::<u32>() else { return Ok(()) };
    if count == 0 {
        return Ok(());
    }
    config.choice.preserve_fds = config.choice.preserve_fds.max(count);
    config.process.env.retain(|entry| !entry.as_bytes().starts_with(b"LISTEN_"));
    for entry in [format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()] {
        let entry = std::ffi::CString::new(entry).map_err(std::io::Error::from).when("say LISTEN_FDS")?;
        config.process.env.push(entry);
    }
    Ok(())
}
