//! `layerfs create`: options and image as a container on disk.

mod health;
pub(crate) mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, bail};
use clap::Args;
use layerfs_image::registry::Platform;
use layerfs_image::store::{Image, Store};
use layerfs_runner::monitor::record::Record;
use layerfs_runner::monitor::restart::RestartPolicy;
use layerfs_runner::runtime::time::rfc3339;
use layerfs_volume::NewVolume;

use super::config::{ContainerConfig, NamespaceMode, NetworkMode, Seccomp};
use super::options::CreateOptions;
use super::store::{self, Container, Containers};
use super::{mounts, names, network, volume};
use crate::commands::run::short;
use crate::exit::{Hinted, Usage};
use crate::{events, images, ui};

/// Make a container of an image, without starting it
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct CreateArgs {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    options: CreateOptions,
    /// A root filesystem in place of an image
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// The image, then the command and its arguments in place of the image's
    #[arg(value_name = "IMAGE [COMMAND [ARG...]]", num_args = 0.., trailing_var_arg = true)]
    words: Vec<OsString>,
}

pub(crate) fn create(args: CreateArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open_joining(args.options.namespaces())?;
    let (container, _lock) = make(&containers, &args.options, args.rootfs, args.words, true)?;
    ui::print(format!("{}\n", container.id()))?;
    Ok(ExitCode::SUCCESS)
}

/// Makes it; the lock on it comes along. All but what is run detached counts as attached, as with docker: the first that
/// brings it input is also the last.
pub(super) fn make(
    containers: &Containers,
    options: &CreateOptions,
    rootfs: Option<PathBuf>,
    words: Vec<OsString>,
    attached: bool,
) -> anyhow::Result<(Container, OwnedFd)> {
    let mut words: Vec<String> = words
        .into_iter()
        .map(|word| word.into_string().map_err(|word| Usage(format!("{word:?} is no text")).into()))
        .collect::<anyhow::Result<_>>()?;
    refuse(options)?;
    let mut config = ContainerConfig { id: new_id()?, ..ContainerConfig::default() };
    let image = match rootfs {
        Some(rootfs) => {
            let found = fs::canonicalize(&rootfs).map_err(|error| Hinted {
                message: format!("root filesystem {rootfs:?}: {error}"),
                hint: "give --rootfs an unpacked root filesystem, or / for this machine's own".into(),
            })?;
            config.image_name = found.display().to_string();
            config.rootfs = Some(found);
            None
        }
        None => {
            if words.is_empty() {
                return Err(Usage(
                    "'layerfs run' and 'layerfs create' need an image: layerfs run IMAGE [COMMAND]".into(),
                )
                .into());
            }
            let name = words.remove(0);
            let store = images::open_store()?;
            let image = image_of(&store, &name, &options.pull, options.platform.as_deref(), options.quiet)?;
            config.image = Some(image.id.to_string());
            config.image_name = name;
            Some(image)
        }
    };
    let volumes = fill(&mut config, options, image.as_ref(), words, attached, containers)?;
    let cidfile = options.cidfile.as_deref().map(new_cidfile).transpose()?;
    let made = write_down(containers, config, options.name.as_deref(), &volumes, None);
    match (&made, cidfile) {
        (Ok((container, _)), Some((_, mut file))) => {
            file.write_all(container.id().as_bytes()).context("write --cidfile")?;
        }
        (Err(_), Some((path, _))) => drop(fs::remove_file(path)),
        (_, None) => {}
    }
    made
}

fn new_cidfile(path: &Path) -> anyhow::Result<(PathBuf, fs::File)> {
    let file = fs::File::options().write(true).create_new(true).open(path).map_err(|error| Hinted {
        message: format!("container ID file {}: {error}", path.display()),
        hint: "make sure the other container is not running, and delete the file".into(),
    })?;
    Ok((path.to_owned(), file))
}

/// What cannot be had is refused before anything is made.
fn refuse(options: &CreateOptions) -> anyhow::Result<()> {
    let words = [(
        options.gpus.is_some(),
        "--gpus: devices are given by --device; there is no support for GPUs as such",
    )];
    refuse_user_namespace(options.userns.as_deref().unwrap_or_default())?;
    match words.into_iter().find(|(given, _)| *given) {
        Some((_, words)) => Err(Usage(words.into()).into()),
        None => Ok(()),
    }
}

/// Docker knows `host`, podman others besides.
fn refuse_user_namespace(mode: &str) -> anyhow::Result<()> {
    let kind = mode.split([':', '=']).next().unwrap_or_default();
    match kind {
        _ if matches!(mode, "" | "host") => Ok(()),
        "auto" | "keep-id" | "nomap" | "private" | "ns" | "container" => Err(Hinted {
            message: format!(
                "--userns={mode}: a container has the user namespace of who runs it, and none of its own"
            ),
            hint: "run layerfs as an ordinary user: its containers are in a user namespace, with the ids of \
                   /etc/subuid and /etc/subgid"
                .into(),
        }
        .into()),
        _ => Err(Usage(format!("--userns: invalid USER mode: {mode:?}; there is host")).into()),
    }
}

pub(crate) fn image_of(
    store: &Store,
    name: &str,
    pull: &str,
    platform: Option<&str>,
    quiet: bool,
) -> anyhow::Result<Image> {
    let platform = platform.map(platform_of).transpose()?;
    let fits = |image: &Image| {
        let config = &image.config;
        let own =
            Platform::new(&config.os, &config.architecture, config.variant.as_deref().unwrap_or_default());
        platform.as_ref().is_none_or(|platform: &Platform| platform.runs(&own))
    };
    let pulled = |is_asked_for: bool| -> anyhow::Result<Image> {
        if !is_asked_for && !quiet {
            ui::note(format_args!("Unable to find image '{name}' locally"));
        }
        crate::commands::registry::pull_for_run(store, name, platform.as_ref(), quiet)?;
        images::find(store, name)
    };
    match pull {
        "always" => pulled(true),
        "missing" => match images::find(store, name) {
            Err(error)
                if error
                    .downcast_ref::<layerfs_image::Error>()
                    .is_some_and(|error| matches!(error, layerfs_image::Error::NoSuchImage(_))) =>
            {
                pulled(false)
            }
            // The one that is here is for another platform than the one that is asked for.
            Ok(image) if !fits(&image) => pulled(false),
            result => result,
        },
        "never" => match images::find(store, name)? {
            image if fits(&image) => Ok(image),
            _ => bail!(Hinted {
                message: format!("image {name} is for another platform than the one that --platform names"),
                hint: "leave out --pull never, or --platform".into(),
            }),
        },
        other => Err(Usage(format!("--pull {other:?}: it is missing, always or never")).into()),
    }
}

pub(super) fn fill(
    config: &mut ContainerConfig,
    options: &CreateOptions,
    image: Option<&Image>,
    words: Vec<String>,
    attached: bool,
    containers: &Containers,
) -> anyhow::Result<Vec<NewVolume>> {
    let text = |key: &str| image.and_then(|image| image.config.run_text(key)).unwrap_or_default().to_owned();
    let list = |key: &str| image.map(|image| image.config.run_list(key)).unwrap_or_default();
    config.created = rfc3339(SystemTime::now());
    // A new entrypoint leaves nothing of the image's command; a new command leaves the entrypoint.
    let (entrypoint, cmd) = match &options.entrypoint {
        Some(entrypoint) if entrypoint.is_empty() => (Vec::new(), Vec::new()),
        Some(entrypoint) => (vec![entrypoint.clone()], Vec::new()),
        None => (list("Entrypoint"), list("Cmd")),
    };
    config.entrypoint = entrypoint;
    config.cmd = if words.is_empty() { cmd } else { words };
    if config.args().first().is_none_or(String::is_empty) {
        bail!("no command specified");
    }
    config.env = values::environment(list("Env"), options)?;
    config.workdir = match &options.workdir {
        Some(path) if !path.is_absolute() => {
            bail!(Usage(format!(
                "the working directory '{}' is invalid, it needs to be an absolute path",
                path.display()
            )))
        }
        Some(path) => path.display().to_string(),
        None => text("WorkingDir"),
    };
    config.user = options.user.clone().unwrap_or_else(|| text("User"));
    config.groups.clone_from(&options.group_add);
    config.network = network::mode(options, containers)?;
    config.hostname = match (&options.hostname, options.uts.as_deref(), &config.network) {
        (Some(_), Some("host"), _) => bail!(Usage("conflicting options: hostname and the UTS mode".into())),
        (Some(_), _, NetworkMode::Container(_)) => {
            bail!(Usage("conflicting options: hostname and the network mode".into()))
        }
        (Some(name), _, _) => values::hostname(name)?,
        (None, _, NetworkMode::Container(id)) => containers.find(id)?.config.hostname,
        (None, Some("host"), _) | (None, _, NetworkMode::Host) => {
            rustix::system::uname().nodename().to_string_lossy().into_owned()
        }
        (None, ..) => short(&config.id).to_owned(),
    };
    config.domainname = options.domainname.clone().unwrap_or_default();
    if let Some(image) = image {
        config.labels = image.config.labels().into_iter().collect();
    }
    config.labels.extend(values::labels(options)?);
    (config.tty, config.stdin) = (options.tty, options.interactive);
    (config.attached, config.stdin_once) = (attached, attached && options.interactive);
    config.stop_signal = options.stop_signal.clone().unwrap_or_else(|| text("StopSignal"));
    if !config.stop_signal.is_empty() {
        layerfs_runner::runtime::parse_signal(&config.stop_signal)
            .map_err(|_| Usage(format!("Invalid signal: {}", config.stop_signal)))?;
    }
    config.stop_timeout = options.stop_timeout;
    config.restart = RestartPolicy::parse(&options.restart).map_err(Usage)?;
    config.remove = options.rm;
    if config.remove && config.restart != RestartPolicy::No {
        bail!(Usage("conflicting options: cannot specify both --restart and --rm".into()));
    }
    config.log_driver = options.log_driver.clone().unwrap_or_else(|| "json-file".into());
    config.log_options = values::log_options(&config.log_driver, &options.log_opt)?;
    if config.passes_streams() && options.tty {
        bail!(Usage("the 'passthrough' log driver cannot be used with a terminal (-t)".into()));
    }
    config.exposed = values::exposed(image, &options.expose)?;
    config.networking = network::spec(options, config)?;
    config.read_only = options.read_only;
    config.privileged = options.privileged;
    config.cap_add = values::capabilities(&options.cap_add)?;
    config.cap_drop = values::capabilities(&options.cap_drop)?;
    security(config, &options.security_opt)?;
    config.resources = values::resources(options)?;
    config.ulimits = options.ulimit.iter().map(|text| values::ulimit(text)).collect::<Result<_, _>>()?;
    config.shm_size = options.shm_size.as_deref().map(values::bytes).transpose()?.unwrap_or(0).unsigned_abs();
    config.devices = options.device.iter().map(|text| values::device(text)).collect::<Result<_, _>>()?;
    config.device_rules =
        options.device_cgroup_rule.iter().map(|text| values::device_rule(text)).collect::<Result<_, _>>()?;
    config.sysctls = values::pairs("--sysctl", &options.sysctl)?;
    config.annotations = values::pairs("--annotation", &options.annotation)?;
    config.init = options.init;
    let is_host = |name: &str, mode: &Option<String>, own: &[&str]| match mode.as_deref() {
        Some("host") => Ok(true),
        None => Ok(false),
        Some(mode) if own.contains(&mode) => Ok(false),
        Some(other) => Err(Usage(format!("--{name} {other:?} is not supported; there is host"))),
    };
    config.pid = namespace_mode("pid", options.pid.as_deref(), &[""], containers)?;
    config.ipc = namespace_mode("ipc", options.ipc.as_deref(), &["", "private", "shareable"], containers)?;
    config.uts_host = is_host("uts", &options.uts, &[""])?;
    config.cgroup_host = is_host("cgroupns", &options.cgroupns, &["", "private"])?;
    config.cgroup_parent = options.cgroup_parent.clone().unwrap_or_default();
    config.oom_score_adj = options.oom_score_adj;
    if let Some(bogus) = options.dns.iter().find(|text| text.parse::<std::net::IpAddr>().is_err()) {
        bail!(Usage(format!("invalid argument \"{bogus}\" for \"--dns\": {bogus} is not an ip address")));
    }
    config.dns.clone_from(&options.dns);
    config.dns_search.clone_from(&options.dns_search);
    config.dns_options.clone_from(&options.dns_option);
    for host in &options.add_host {
        match host.split_once([':', '=']).map(|(name, address)| (name, without_brackets(address))) {
            Some((name, address))
                if !name.is_empty()
                    && (address.parse::<std::net::IpAddr>().is_ok()
                        || address == "host-gateway" && matches!(config.network, NetworkMode::Named(_))) =>
            {
                config.hosts.push(format!("{name}:{address}"));
            }
            _ => bail!(Usage(format!("bad format for add-host: \"{host}\""))),
        }
    }
    config.health = health::of(options, image)?;
    let volumes = image.and_then(|image| image.config.config.get("Volumes")?.as_object());
    let targets: Vec<String> = volumes.into_iter().flat_map(|volumes| volumes.keys().cloned()).collect();
    let mounts = mounts::resolve(options, &targets, containers)?;
    config.mounts = mounts.all;
    Ok(mounts.volumes)
}

fn namespace_mode(
    option: &str,
    mode: Option<&str>,
    own: &[&str],
    containers: &Containers,
) -> anyhow::Result<NamespaceMode> {
    Ok(match mode {
        None => NamespaceMode::Own,
        Some("host") => NamespaceMode::Host,
        Some(mode) if own.contains(&mode) => NamespaceMode::Own,
        Some(mode) => match mode.strip_prefix("container:") {
            Some(name) => NamespaceMode::Container(containers.find(name)?.config.id),
            None => {
                bail!(Usage(format!("--{option} {mode:?} is not known; there are host and container:NAME")))
            }
        },
    })
}

/// `OS/ARCHITECTURE[/VARIANT]`, or an architecture alone.
fn platform_of(text: &str) -> anyhow::Result<Platform> {
    text.parse::<Platform>().map_err(|error| Usage(format!("--platform: {error}")).into())
}

fn security(config: &mut ContainerConfig, options: &[String]) -> anyhow::Result<()> {
    for option in options {
        let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (name, value) {
            ("no-new-privileges", "" | "true") => config.no_new_privileges = true,
            ("no-new-privileges", "false") => config.no_new_privileges = false,
            ("seccomp", "unconfined") => config.seccomp = Seccomp::Unconfined,
            ("seccomp", "builtin" | "default") => config.seccomp = Seccomp::Default,
            ("seccomp", file) => {
                let text = fs::read_to_string(file)
                    .with_context(|| format!("opening seccomp profile ({file}) failed"))?;
                config.seccomp = Seccomp::Profile(text);
            }
            ("systempaths", "unconfined") => config.is_unmasked = true,
            ("apparmor", "unconfined") | ("label", "disable") => {}
            _ => bail!(Usage(format!(
                "--security-opt {option:?} is not known; there are no-new-privileges, seccomp=FILE|unconfined and \
                 systempaths=unconfined"
            ))),
        }
    }
    Ok(())
}

/// Directory, config, state, name; in this order, so that what a killed command leaves is no container yet, or one. What
/// is in the directory `prepared`, under the names it has in a container's, becomes the container's.
pub(super) fn write_down(
    containers: &Containers,
    mut config: ContainerConfig,
    name: Option<&str>,
    volumes: &[NewVolume],
    prepared: Option<&Path>,
) -> anyhow::Result<(Container, OwnedFd)> {
    let directory = containers.path(&config.id);
    let words = || format!("make container directory {}", directory.display());
    let store_lock = containers.lock()?;
    match name {
        Some(name) => {
            let name = name.strip_prefix('/').unwrap_or(name);
            containers.take_name(name, &config.id)?;
            config.name = name.to_owned();
        }
        None => config.name = names::take(containers, &config.id)?,
    }
    let make = || -> anyhow::Result<OwnedFd> {
        fs::DirBuilder::new().mode(0o700).create(&directory).with_context(words)?;
        let lock = store::try_lock_file(&store::lock_path(&directory))?.context("lock a new container")?;
        for entry in prepared.map(fs::read_dir).transpose().with_context(words)?.into_iter().flatten() {
            let entry = entry.with_context(words)?;
            fs::rename(entry.path(), directory.join(entry.file_name())).with_context(words)?;
        }
        for name in ["upper", "work", "merged"] {
            if name == "upper" && directory.join(name).exists() {
                continue;
            }
            fs::DirBuilder::new().mode(0o755).create(directory.join(name)).with_context(words)?;
        }
        let mut record = Record::new(&config.id);
        record.image.clone_from(&config.image);
        record.rootfs.clone_from(&config.rootfs);
        record.args = config.args();
        record.save(&directory).with_context(words)?;
        // Before the volumes: who removes volumes asks the configs whether somebody has them.
        store::save_config(&directory, &config)?;
        volume::create(volumes)?;
        Ok(lock)
    };
    let made = make();
    if made.is_err() {
        containers.free_name(&config.name, &config.id);
        if let Err(error) = store::remove_files(&directory) {
            tracing::warn!(error = format!("{error:#}"), "a container's directory is left");
        }
    }
    drop(store_lock);
    let lock = made?;
    events::container("create", &config, &[]);
    let mut record = Record::new(&config.id);
    record.image.clone_from(&config.image);
    record.rootfs.clone_from(&config.rootfs);
    record.args = config.args();
    Ok((Container { directory, config, record }, lock))
}

/// The root directory of the mount is the upper's: it looks like the one it stands for.
pub(super) fn take_attributes(from: &Path, upper: &Path) -> std::io::Result<()> {
    let root = fs::metadata(from)?;
    // An owner that does not exist in a user namespace cannot be given.
    std::os::unix::fs::chown(upper, Some(root.uid()), Some(root.gid())).ok();
    fs::set_permissions(upper, root.permissions())
}

/// 64 hexadecimal digits.
pub(super) fn new_id() -> anyhow::Result<String> {
    let mut bytes = [0_u8; 32];
    fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("make an id")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Sorted pairs; kept here for what is common to options of the form `NAME=VALUE`.
type Pairs = BTreeMap<String, String>;

/// An address of IPv6 may stand in them.
fn without_brackets(address: &str) -> &str {
    address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address)
}
