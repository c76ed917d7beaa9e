//! `layerfs run`: through a monitor ([`super::container`]), or in the foreground on a root filesystem.
//!
//! The latter joins the union filesystem, served by a child of this process, and the runner. Everything set up is undone in
//! reverse order on every way out, by guards; what a killed run leaves is found by the next one. The mounts are
//! made in a mount namespace of this process's own, so that the machine's mount table never changes.

mod options;
mod remove;
mod root;
mod store;
mod user;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use layerfs_runner::attach::{Outcome, Signals, Streams, attach};
use layerfs_runner::config::Config;
use layerfs_runner::config::default_spec::{DefaultSpec, default_spec};
use layerfs_runner::state::{ProcessIdentity, Status};
use layerfs_runner::{Container, CreateError, FailureKind, host, terminal};

use self::options::Request;
pub(crate) use self::remove::remove_tree;
use self::root::ContainerRoot;
use self::store::{ContainerDirectory, Store};
pub(crate) use self::store::{ROOT_VARIABLE, default_root as store_root, set_root, short};
pub(crate) use self::user::Identity;
use super::container;
use super::container::options::CreateOptions;
use crate::exit::{self, Hinted};
use crate::logging::LogArgs;
use crate::ui;

/// Exit code when the command exists and cannot be executed, as docker and shells have it.
const NOT_EXECUTABLE: u8 = 126;
/// Exit code when there is no such command.
const NOT_FOUND: u8 = 127;

/// Run a command in a new container of an image, or on a root filesystem
///
/// The command sees the image, or DIR, as its own root filesystem, may change and remove anything in it, and image and
/// DIR stay as they are: changes go to a layer of the container. It has processes, network, host name and mounts of its
/// own.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER_HELP, disable_help_flag = true, override_usage = "\
layerfs run [OPTIONS] IMAGE [COMMAND [ARG...]]
       layerfs run [OPTIONS] --rootfs DIR [--] COMMAND [ARG...]")]
pub(crate) struct RunArgs {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Run it in the background and print the container's id
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave a terminal [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", hide_default_value = true)]
    detach_keys: String,
    /// Pass signals on
    #[arg(long, value_name = "true|false", default_value_t = true, default_missing_value = "true", num_args = 0..=1,
          require_equals = true, action = clap::ArgAction::Set, hide_default_value = true)]
    sig_proxy: bool,
    /// A root filesystem in place of an image
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    #[command(flatten)]
    options: CreateOptions,
    #[command(flatten)]
    log: LogArgs,
    /// The image, unless --rootfs is given; then the command and its arguments
    #[arg(value_name = "IMAGE [COMMAND [ARG...]]", num_args = 0.., trailing_var_arg = true, help_heading = None)]
    words: Vec<OsString>,
}

/// What a foreground run on a root filesystem is asked for.
#[derive(Debug)]
struct ForegroundArgs {
    rootfs: PathBuf,
    options: CreateOptions,
    log: LogArgs,
    command: Vec<OsString>,
}

const AFTER_HELP: &str = "\
Examples
  A shell in a container of an image, removed at its end:
    layerfs run --rm -it debian:13 bash
  A service in the background:
    layerfs run -d --name web --restart unless-stopped --network host nginx
  A shell in a copy of this machine; nothing it does stays:
    layerfs run --rootfs / --rm -it -- bash
  A command in an unpacked root filesystem, with its changes kept:
    layerfs run --rootfs /srv/debian -e LANG=C.UTF-8 -w /src -- make

Environment
  LAYERFS_ROOT    where containers are kept [/var/lib/layerfs; for other users than root
                  $XDG_DATA_HOME/layerfs or ~/.local/share/layerfs]
  LAYERFS_NETWORK the network of a container for which --network names none [bridge; for other
                  users than root pasta or slirp4netns, where one is installed]

Exit codes
  that of the command; 128+N when signal N ended it; 125 own failure; 126 the command cannot be
  executed; 127 there is no such command";

/// True when a run on a root filesystem asks for nothing that needs a monitor: it stays in the foreground alone, and what
/// it is given are the caller's own streams.
fn is_plain(options: &CreateOptions) -> bool {
    let rest = CreateOptions {
        rm: false,
        interactive: false,
        tty: false,
        env: Vec::new(),
        workdir: None,
        hostname: None,
        user: None,
        read_only: false,
        security_opt: Vec::new(),
        ..options.clone()
    };
    rest == CreateOptions { pull: "missing".into(), restart: "no".into(), ..CreateOptions::default() }
}

/// Ends what killed foreground runs have left: those that were to be kept are at their end then, the others gone.
pub(crate) fn settle_killed() -> anyhow::Result<()> {
    match Store::open(store_root()?)?.sweep().into_iter().next() {
        None => Ok(()),
        Some(warning) => bail!(warning),
    }
}

pub(crate) fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let RunArgs { help: _, detach, detach_keys, sig_proxy, rootfs, options, log, words } = args;
    match rootfs {
        Some(rootfs) if !detach && is_plain(&options) => {
            foreground(ForegroundArgs { rootfs, options, log, command: words })
        }
        rootfs => container::run::run(container::run::Run {
            options,
            rootfs,
            words,
            detach,
            detach_keys,
            sig_proxy,
        }),
    }
}

fn foreground(args: ForegroundArgs) -> anyhow::Result<ExitCode> {
    let (options, command) = (args.options.clone(), args.command.clone());
    let request = Request::new(args)?;
    let store_root = store::default_root()?;
    enter_own_namespaces(&store_root)?;
    let signals = Signals::take().context("take signals over")?;
    let store = Store::open(store_root)?;
    for warning in store.sweep() {
        ui::warn(warning);
    }
    let mut directory = store.create(&request.rootfs, request.remove)?;
    let id = directory.id().to_owned();
    let result = run_in(&mut directory, &request, &store, &signals);
    // What a command has done stays even if something failed after it; what never ran left nothing to keep.
    let kept = (!request.remove && directory.has_run()).then(|| directory.path().to_owned());
    match &kept {
        Some(_) => directory.keep()?,
        None => directory.remove().context("remove the container")?,
    }
    if let Some(path) = kept {
        let name = container::kept::adopt(&path, &options, &command).unwrap_or_else(|error| {
            ui::warn(format_args!("container {}: {}", store::short(&id), ui::chain(&error)));
            store::short(&id).to_owned()
        });
        ui::note(format_args!(
            "container {name}: its changes are in {}; see them with: layerfs diff {name}; remove them with: layerfs rm \
             {name}",
            path.join(store::UPPER).display(),
        ));
    }
    match result? {
        Ending::Code(code) => Ok(ExitCode::from(code)),
        Ending::Interrupted(signal) => {
            Ok(ExitCode::from(128_u8.saturating_add(u8::try_from(signal).unwrap_or(0))))
        }
    }
}

/// How it ended without a failure of our own.
enum Ending {
    /// The code to exit with.
    Code(u8),
    /// Asked to stop before the command began.
    Interrupted(i32),
}

/// A user namespace for those who are not root, a mount namespace, and a program file that a container cannot
/// overwrite. Starts the program again; the second time it goes through.
fn enter_own_namespaces(store_root: &std::path::Path) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        host::enter_user_namespace()
            .map_err(|error| Hinted {
                message: error.words(),
                hint: "run as root, or allow user namespaces for ordinary users".into(),
            })
            .context("become root of a user namespace")?;
    }
    host::enter_private_mounts().map_err(|error| Hinted {
        message: error.words(),
        hint: "this needs root (CAP_SYS_ADMIN) and Linux 5.12 or later".into(),
    })?;
    // In the user namespace this process will look like root, whose store is elsewhere.
    host::protect_executable(&[(store::ROOT_VARIABLE, store_root.as_os_str())])?;
    Ok(())
}

fn run_in(
    directory: &mut ContainerDirectory,
    request: &Request,
    store: &Store,
    signals: &Signals,
) -> anyhow::Result<Ending> {
    let root = ContainerRoot::mount(directory, request, store)?;
    let outcome = run_on(directory, request, &root, signals);
    // The command is gone with its processes: nobody uses the mount any more.
    let unmounted = root.unmount();
    // The first failure is the one that explains the other.
    let ending = outcome?;
    unmounted.map(|()| ending)
}

fn run_on(
    directory: &mut ContainerDirectory,
    request: &Request,
    root: &ContainerRoot,
    signals: &Signals,
) -> anyhow::Result<Ending> {
    let identity = Identity::resolve(request.user.as_deref(), root.merged())?;
    check_exists(&identity)?;
    let config = config_of(directory, request, root, &identity)?;
    if let Some(signal) = signals.interrupted()? {
        return Ok(Ending::Interrupted(signal));
    }
    let (streams, stdio) = match config.process.terminal {
        Some(_) => (Streams::terminal(request.interactive), layerfs_runner::Stdio::default()),
        None => Streams::plain(request.interactive, identity.uid, identity.gid)
            .context("prepare the standard streams")?,
    };
    let created = Container::create(&config, stdio).and_then(|mut container| {
        directory.note_created(&container);
        container.start()?;
        Ok(container)
    });
    let mut container = match created {
        Ok(container) => container,
        Err(error) => return command_failure(error),
    };
    directory.note(Status::Running);
    let mount_process = root.watch()?;
    let outcome = attach(&mut container, streams, signals, &[std::os::fd::AsFd::as_fd(&mount_process)])
        .context("stay with the container")?;
    let Outcome { status, forced, watched } = outcome;
    container.delete().context("remove the container's cgroup")?;
    directory.note_exit(status.code());
    if watched.is_some() {
        let last_words = directory.last_words_of_mount();
        bail!("the filesystem's process ended while the container was running{last_words}");
    }
    if forced {
        ui::note("the command ignored the request to stop and was killed");
    }
    Ok(Ending::Code(status.code()))
}

/// A command that cannot be run is the user's mistake, with an exit code of its own.
fn command_failure(error: CreateError) -> anyhow::Result<Ending> {
    let code = match error.kind() {
        FailureKind::Setup => return Err(anyhow!(error)),
        FailureKind::NotFound => NOT_FOUND,
        FailureKind::NotExecutable => NOT_EXECUTABLE,
    };
    ui::error(&anyhow!(error));
    Ok(Ending::Code(code))
}

fn config_of(
    directory: &ContainerDirectory,
    request: &Request,
    root: &ContainerRoot,
    identity: &Identity,
) -> anyhow::Result<Config> {
    let short = store::short(directory.id());
    let hostname = request.hostname.clone().unwrap_or_else(|| short.to_owned());
    let size =
        terminal::size_of(rustix::stdio::stdout()).or_else(|| terminal::size_of(rustix::stdio::stdin()));
    let spec = default_spec(&DefaultSpec {
        root: root.merged().to_owned(),
        root_read_only: request.read_only,
        hostname: Some(hostname.clone()),
        terminal: request.tty.then(|| size.unwrap_or_default()),
        is_root: identity.uid == 0,
        no_new_privileges: request.no_new_privileges,
        cgroup_name: Some(format!("layerfs-{}", directory.id())),
        in_user_namespace: !host::is_initial_user_namespace()
            .context("read the ids of this user namespace")?,
        without_tty_group: !host::has_group(TTY_GROUP).context("read the groups of this user namespace")?,
    });
    let mut config = Config::from_spec(&spec, directory.path())?;
    config.process.args = request.command.clone();
    config.process.env = request.environment(&hostname, &identity.home);
    config.process.cwd = request.workdir.clone().unwrap_or_else(|| PathBuf::from("/"));
    config.process.user = identity.user();
    Ok(config)
}

/// In a user namespace few users may exist.
fn check_exists(identity: &Identity) -> anyhow::Result<()> {
    let exists = host::has_user(identity.uid)
        .and_then(|user| Ok(user && host::has_group(identity.gid)?))
        .context("read the ids of this user namespace")?;
    if !exists {
        bail!(Hinted {
            message: format!("user {}:{} does not exist in this user namespace", identity.uid, identity.gid),
            hint: "have a range of ids in /etc/subuid and /etc/subgid, with newuidmap installed (Debian: \
                   uidmap); or run as root"
                .into(),
        });
    }
    Ok(())
}

/// Owner of terminals in every distribution, and in docker's /dev/pts.
const TTY_GROUP: u32 = 5;

/// A process that cannot be confused with a later one, for the container's state.
fn identity_of(pid: rustix::process::Pid) -> Option<ProcessIdentity> {
    ProcessIdentity::of(pid).inspect_err(|error| tracing::debug!(%error, ?pid, "identify a process")).ok()
}

/// Own failures of this command have docker's code.
const _: () = assert!(exit::RUN == 125);
