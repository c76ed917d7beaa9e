//! `RUN`: what a step's process is told, and what becomes of what it did.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, PoisonError};

use anyhow::{Context, anyhow, bail};
use layerfs_build::config::RunAction;
use layerfs_build::context::{Found, Match, SourceTree};
use layerfs_build::copy::{add_to_key, place_mountpoints, select};
use layerfs_build::instruction::{CopySpec, MountKind, RunMount, RunNetwork};
use layerfs_build::key::KeyBuilder;
use layerfs_build::parse::Node;
use layerfs_image::digest::Digest;
use layerfs_image::store::StagedStep;
use rustix::process::Pid;

use super::executor::{Built, Executor, Layer, SourceOf};
use super::options::SecretSource;
use super::step::{Description, Lower, SecretFile, Union};
use super::{cache_mount, copy, input};
use crate::commands::container::config::{MountSpec, NetworkMode};
use crate::commands::container::step::{self as container, StepEnd};
use crate::exit::Hinted;

/// Longest secret.
const MAX_SECRET: u64 = 500 << 10;
/// Build arguments that change nothing that a step makes.
const UNCOUNTED: [&str; 10] = layerfs_build::config::PREDEFINED;

/// A program whose key is known.
pub(super) struct PreparedRun {
    pub(super) key: Digest,
    action: RunAction,
    mounts: Vec<Mount>,
}

/// A mount with what it shows.
struct Mount {
    wanted: RunMount,
    from: Option<From>,
}

/// Something of a context, a stage or an image.
struct From {
    tree: Arc<SourceTree>,
    /// Names from its root.
    found: Option<Match>,
    place: Place,
}

enum Place {
    Layers(Vec<Layer>),
    Directory(PathBuf),
    /// What an ignore file filters is copied.
    Filtered,
}

/// Finds out what the step depends on.
pub(super) fn prepare(
    executor: &Executor<'_>,
    stage: usize,
    action: &RunAction,
    node: &Node,
    built: &Built,
) -> anyhow::Result<PreparedRun> {
    // Before the cache is asked: what is refused does not depend on what was built here.
    let request = executor.request;
    permit((action.network, request.allow_host_network), (action.insecure, request.allow_insecure))?;
    let mut key = KeyBuilder::new("run");
    key.add("parent", built.chain().map(|chain| chain.0.to_string()).unwrap_or_default());
    key.add("time", executor.request.timestamp.map(|time| time.to_string()).unwrap_or_default());
    key.add_all("args", &action.args);
    let counted = action.env.iter().filter(|entry| {
        let name = entry.split('=').next().unwrap_or_default();
        !UNCOUNTED.contains(&name) || built.state.arguments.iter().any(|(other, _)| other == name)
    });
    key.add_all("env", counted);
    key.add("workdir", &action.workdir);
    key.add("user", &action.user);
    key.add("script", action.script.as_ref().map(|(_, text)| text.as_str()).unwrap_or_default());
    key.add("network", format!("{:?} {:?}", action.network, executor.request.options.network));
    key.add("insecure", action.insecure.to_string());
    key.add_all("hosts", &executor.request.options.add_host);
    let mut mounts = Vec::new();
    for wanted in &action.mounts {
        // Where caches, secrets and agents are, not what is in them.
        key.add("mount", format!("{wanted:?}"));
        let from = match &wanted.kind {
            MountKind::Bind { from, source, .. } => {
                Some(source_of(executor, stage, from.as_deref(), source, node)?)
            }
            MountKind::Cache { from: Some(from), source, .. } => {
                Some(source_of(executor, stage, Some(from), source, node)?)
            }
            _ => None,
        };
        if let Some(from) = from.as_ref().filter(|_| matches!(wanted.kind, MountKind::Bind { .. })) {
            let source = source_text(&wanted.kind);
            let _in_place = executor.in_place.read().unwrap_or_else(PoisonError::into_inner);
            let selection = select(&from.tree, &source, &CopySpec::default(), &executor.hashes)?;
            add_to_key(&mut key, &selection);
        }
        mounts.push(Mount { wanted: wanted.clone(), from });
    }
    Ok(PreparedRun { key: key.finish(), action: action.clone(), mounts })
}

fn source_text(kind: &MountKind) -> String {
    match kind {
        MountKind::Bind { source, .. } | MountKind::Cache { source, .. } => source.clone(),
        _ => String::new(),
    }
}

fn source_of(
    executor: &Executor<'_>,
    stage: usize,
    from: Option<&str>,
    source: &str,
    node: &Node,
) -> anyhow::Result<From> {
    let (tree, place) = match from {
        None => {
            let tree = executor.input.context()?.clone();
            let directory = executor.input.directory.clone().context("a context without a directory")?;
            let place =
                if executor.input.is_filtered { Place::Filtered } else { Place::Directory(directory) };
            (tree, place)
        }
        Some(name) => match executor.source(name, stage, node)? {
            SourceOf::Layers(built) => {
                let tree = Arc::new(SourceTree::layers(executor.stack(&built.layers)?, format!("{name:?}")));
                (tree, Place::Layers(built.layers.clone()))
            }
            SourceOf::Directory(tree, path) => {
                let is_filtered = tree.has_ignored();
                (tree, if is_filtered { Place::Filtered } else { Place::Directory(path) })
            }
        },
    };
    let found = tree.find(source).with_context(|| format!("look for {source:?}"))?.into_iter().next();
    if found.is_none() {
        bail!(Hinted {
            message: format!(
                "mount: {source:?} is not in {}",
                from.map_or_else(|| "the build context".into(), |name| format!("{name:?}"))
            ),
            hint: "source= is taken from the root of the context, stage or image".into(),
        });
    }
    Ok(From { tree, found, place })
}

/// What a step needs while it runs.
#[derive(Default)]
struct Setup {
    mounts: Vec<MountSpec>,
    /// What the mounts go on: a path, and whether it is a directory.
    targets: Vec<(String, bool)>,
    unions: Vec<Union>,
    secrets: Vec<SecretFile>,
    env: Vec<String>,
    /// Kept until it has ended.
    locks: Vec<OwnedFd>,
}

impl Setup {
    fn bind(&mut self, source: PathBuf, target: &str, is_directory: bool, read_only: bool) {
        let options = vec!["rbind".to_owned(), "rprivate".to_owned()];
        self.mounts.push(MountSpec::Bind { source, target: target.to_owned(), read_only, options });
        self.targets.push((target.to_owned(), is_directory));
    }
}

/// Runs the program in a container on a mount of the layers below, and makes a layer of what it changed.
pub(super) fn execute(
    executor: &Executor<'_>,
    prepared: PreparedRun,
    built: &Built,
    number: usize,
) -> anyhow::Result<StagedStep> {
    let _in_place = executor.in_place.read().unwrap_or_else(PoisonError::into_inner);
    if built.layers.is_empty() {
        bail!(Hinted {
            message: "there is nothing to run: the stage has no files yet".into(),
            hint: "begin FROM an image, or COPY a program first".into(),
        });
    }
    let action = &prepared.action;
    let directory = executor.step_directory()?;
    let layer = directory.join("layer");
    for name in ["layer", "layer/tree", "work", "merged"] {
        let path = directory.join(name);
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
    }
    let trees = executor.trees(&built.layers);
    if let Some(top) = trees.first() {
        take_attributes(top, &layer.join("tree"))
            .context("give the root directory the attributes of the image's")?;
    }
    let mut setup = Setup::default();
    for (at, mount) in prepared.mounts.iter().enumerate() {
        set_up(executor, mount, at, &directory, &mut setup)?;
    }
    if let Some((name, content)) = &action.script {
        let path = directory.join("pipes");
        fs::create_dir(&path).context("make a directory for the script")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        fs::write(path.join(name), content).context("write the script")?;
        fs::set_permissions(path.join(name), fs::Permissions::from_mode(0o755))?;
        setup.bind(path, "/dev/pipes", true, true);
    }
    let mut config = executor.base_config()?;
    config.id = new_id();
    config.name = format!("build-{}", config.id.get(..12).unwrap_or_default());
    config.hostname = "build".into();
    config.entrypoint.clone_from(&action.args);
    config.cmd.clear();
    config.env.clone_from(&action.env);
    config.env.extend(setup.env.iter().cloned());
    config.workdir.clone_from(&action.workdir);
    config.user.clone_from(&action.user);
    config.mounts.clone_from(&setup.mounts);
    match action.network {
        RunNetwork::Default => {}
        RunNetwork::None => config.network = NetworkMode::None,
        RunNetwork::Host => config.network = NetworkMode::Host,
    }
    if config.network == NetworkMode::Host || config.network == NetworkMode::None {
        config.networking = Default::default();
    }
    config.privileged = action.insecure;
    let mut lowers = Vec::new();
    let mountpoints = directory.join("mountpoints");
    if make_mountpoints(executor, built, &setup, &mountpoints)? {
        lowers.push(Lower { tree: mountpoints, index: None });
    }
    lowers.extend(lowers_of(executor, &built.layers));
    let state = executor.root.join("steps").join(&config.id);
    let lock = container::make_directory(&state, &config)?;
    let description = Description {
        parent: i32::try_from(std::process::id()).unwrap_or(0),
        directory: state.clone(),
        lowers,
        upper: layer.join("tree"),
        work: directory.join("work"),
        merged: directory.join("merged"),
        config,
        unions: std::mem::take(&mut setup.unions),
        secrets: std::mem::take(&mut setup.secrets),
        secrets_directory: directory.join("secrets"),
        result: directory.join("result.json"),
    };
    let end = spawn(executor, &description, number);
    let cleaned = container::finish(&state, lock);
    drop(setup);
    let end = end?;
    cleaned.context("clean up after the step")?;
    let shown = action.args.join(" ");
    match end {
        StepEnd::Exited(0) => {}
        StepEnd::Exited(code) => {
            bail!("process {shown:?} did not complete successfully: exit code: {code}")
        }
        StepEnd::Failed { not_found, words } => {
            let hint = match not_found {
                true => {
                    "the stage has no such program; a shell form needs its shell (/bin/sh, or that of SHELL)"
                }
                false => "it is no program for this machine, or not executable",
            };
            bail!(Hinted {
                message: format!("process {shown:?} could not be run: {words}"),
                hint: hint.into()
            });
        }
    }
    executor
        .store
        .stage_upper(&layer, &trees, built.chain(), executor.request.timestamp)
        .context("make a layer of what the step changed")
}

/// What a Dockerfile asks for beyond a container of its own is for the caller to allow: the text may be somebody else's.
fn permit(
    (network, host_allowed): (RunNetwork, bool),
    (insecure, insecure_allowed): (bool, bool),
) -> Result<(), Hinted> {
    let refused = |flag: &str, hint: &str| {
        Err(Hinted { message: format!("the step asks for {flag}"), hint: hint.into() })
    };
    if network == RunNetwork::Host && !host_allowed {
        return refused("--network=host", "allow it with --allow network.host");
    }
    if insecure && !insecure_allowed {
        return refused("--security=insecure", "allow it with --allow security.insecure");
    }
    Ok(())
}

fn new_id() -> String {
    let mut bytes = [0_u8; 32];
    let read = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    match read {
        Ok(()) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        Err(_) => Digest::of(format!("{} {:?}", std::process::id(), std::time::Instant::now())).hex(),
    }
}

fn take_attributes(from: &Path, to: &Path) -> std::io::Result<()> {
    let root = fs::metadata(from)?;
    // An owner that does not exist in a user namespace cannot be given.
    chown(to, Some(root.uid()), Some(root.gid())).ok();
    fs::set_permissions(to, root.permissions())
}

/// The topmost first, each once: see `Image::mounted_layers`.
fn lowers_of(executor: &Executor<'_>, layers: &[Layer]) -> Vec<Lower> {
    let mut seen = Vec::new();
    let mut lowers = Vec::new();
    for layer in layers.iter().rev() {
        if !seen.contains(&layer.diff_id) {
            seen.push(layer.diff_id);
            let directory = executor.directory_of(layer);
            lowers.push(Lower {
                tree: directory.join("tree"),
                index: Some(directory.join("tree.layerfs-index")),
            });
        }
    }
    lowers
}

/// A lower with what the mounts of the container go on, where the image has it not: nothing of it comes into the layer.
fn make_mountpoints(
    executor: &Executor<'_>,
    built: &Built,
    setup: &Setup,
    directory: &Path,
) -> anyhow::Result<bool> {
    let mut targets: Vec<(String, bool)> =
        ["/dev", "/proc", "/sys"].map(|path| (path.to_owned(), true)).into();
    targets.extend(["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"].map(|path| (path.to_owned(), false)));
    targets.extend(setup.targets.iter().filter(|(path, _)| !path.starts_with("/dev/")).cloned());
    let stack = executor.stack(&built.layers)?;
    let (count, tar) = place_mountpoints(&targets, &stack, Vec::new())?;
    if count == 0 {
        return Ok(false);
    }
    input::unpack_into(directory, tar.as_slice()).context("make what mounts go on")?;
    if let Some(top) = executor.trees(&built.layers).first() {
        take_attributes(top, directory)?;
    }
    Ok(true)
}

fn set_up(
    executor: &Executor<'_>,
    mount: &Mount,
    at: usize,
    directory: &Path,
    setup: &mut Setup,
) -> anyhow::Result<()> {
    let target = mount.wanted.target.as_str();
    match &mount.wanted.kind {
        MountKind::Bind { writable, source, .. } => {
            let from = mount.from.as_ref().context("a mount without a source")?;
            let path = shown_at(executor, from, source, *writable, at, directory, setup)?;
            let is_directory = from.found.as_ref().is_none_or(|found| found.found.directory().is_some());
            setup.bind(path, target, is_directory, !writable);
        }
        MountKind::Cache { id, sharing, mode, uid, gid, read_only, source, .. } => {
            let root = executor.root.join("cache");
            let cache = cache_mount::take(&root, id, *sharing, (*mode, *uid, *gid))?;
            if let (true, Some(from)) = (cache.is_new, &mount.from) {
                let spec = CopySpec::default();
                let selection = select(&from.tree, source, &spec, &executor.hashes)?;
                let filled = cache.data.with_extension("filled");
                copy::into_directory(&selection, &filled)?;
                take_attributes(&cache.data, &filled)?;
                fs::remove_dir(&cache.data)
                    .and_then(|()| fs::rename(&filled, &cache.data))
                    .with_context(|| format!("fill cache {id:?}"))?;
            }
            setup.bind(cache.data, target, true, *read_only);
            setup.locks.push(cache.lock);
        }
        MountKind::Tmpfs { size } => {
            let mut options = vec!["mode=1777".to_owned()];
            if *size > 0 {
                options.push(format!("size={size}"));
            }
            setup.mounts.push(MountSpec::Tmpfs { target: target.to_owned(), options });
            setup.targets.push((target.to_owned(), true));
        }
        MountKind::Secret { id, required, mode, uid, gid, variable, as_file } => {
            let Some(content) = secret(executor, id)? else {
                if *required {
                    bail!(Hinted {
                        message: format!("secret {id:?} is required and not given"),
                        hint: format!(
                            "give it with --secret id={id},src=FILE or --secret id={id},env=VARIABLE"
                        ),
                    });
                }
                return Ok(());
            };
            if let Some(variable) = variable {
                let text = String::from_utf8(content.clone());
                let text = text.map_err(|_| anyhow!("secret {id:?} is no text: it cannot be a variable"))?;
                setup.env.push(format!("{variable}={text}"));
            }
            if *as_file {
                let name = format!("secret-{at}");
                setup.bind(directory.join("secrets").join(&name), target, false, true);
                setup.secrets.push(SecretFile { name, content, mode: *mode, uid: *uid, gid: *gid });
            }
        }
        MountKind::Ssh { id, required, .. } => match executor.agents.socket(id) {
            Some(socket) => {
                let target = if target.is_empty() {
                    format!("/run/buildkit/ssh_agent.{at}")
                } else {
                    target.to_owned()
                };
                setup.bind(socket.to_owned(), &target, false, false);
                setup.env.push(format!("SSH_AUTH_SOCK={target}"));
            }
            None if *required => {
                bail!(Hinted {
                    message: format!("ssh agent {id:?} is required and not given"),
                    hint: format!("give it with --ssh {id}"),
                });
            }
            None => {}
        },
    }
    Ok(())
}

/// Where the source of a bind mount is on this machine, once the step's process has mounted its unions.
fn shown_at(
    executor: &Executor<'_>,
    from: &From,
    source: &str,
    writable: bool,
    at: usize,
    directory: &Path,
    setup: &mut Setup,
) -> anyhow::Result<PathBuf> {
    let mountpoint = directory.join(format!("bind-{at}"));
    let found = from.found.as_ref().context("a source")?;
    if let Place::Filtered = from.place {
        let selection = select(&from.tree, source, &CopySpec::default(), &executor.hashes)?;
        copy::into_directory(&selection, &mountpoint)?;
        let name = found
            .path
            .last()
            .filter(|_| !matches!(found.found, Found::Root(_)) && found.found.directory().is_none());
        return Ok(name.map_or_else(|| mountpoint.clone(), |name| mountpoint.join(name)));
    }
    fs::create_dir(&mountpoint).with_context(|| format!("make {}", mountpoint.display()))?;
    let lowers = match &from.place {
        Place::Layers(layers) => lowers_of(executor, layers),
        Place::Directory(path) => vec![Lower { tree: path.clone(), index: None }],
        Place::Filtered => Vec::new(),
    };
    let mut upper = None;
    if writable {
        // What is written is thrown away with it.
        let (own, work) = (directory.join(format!("upper-{at}")), directory.join(format!("work-{at}")));
        for path in [&own, &work] {
            fs::create_dir(path).with_context(|| format!("make {}", path.display()))?;
        }
        if let Some(lower) = lowers.first() {
            take_attributes(&lower.tree, &own)?;
        }
        upper = Some((own, work));
    }
    setup.unions.push(Union { lowers, upper, target: mountpoint.clone() });
    Ok(found.path.iter().fold(mountpoint, |path, name| path.join(name)))
}

fn secret(executor: &Executor<'_>, id: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let Some(source) = executor.request.secrets.get(id) else { return Ok(None) };
    match source {
        SecretSource::Variable(name) => match std::env::var_os(name) {
            Some(value) => Ok(Some(std::os::unix::ffi::OsStringExt::into_vec(value))),
            None => bail!("secret {id:?}: the variable {name} is not set"),
        },
        SecretSource::File(path) => {
            let words = || format!("secret {id:?}: read {}", path.display());
            let mut content = Vec::new();
            fs::File::open(path)
                .with_context(words)?
                .take(MAX_SECRET + 1)
                .read_to_end(&mut content)
                .with_context(words)?;
            if content.len() as u64 > MAX_SECRET {
                bail!("secret {id:?}: {} has more than {MAX_SECRET} bytes", path.display());
            }
            Ok(Some(content))
        }
    }
}

/// Starts the step's process, tells it all, and hears what the program writes until both have ended.
fn spawn(executor: &Executor<'_>, description: &Description, number: usize) -> anyhow::Result<StepEnd> {
    executor.check_stopped()?;
    let (mut reader, writer) = std::io::pipe().context("make a pipe")?;
    let root = crate::commands::run::store_root()?;
    let mut environment: BTreeMap<&str, PathBuf> = BTreeMap::new();
    environment.insert("LAYERFS_ROOT", root);
    let mut child = Command::new("/proc/self/exe")
        .args(["builder", "step"])
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(writer.try_clone().context("make a pipe")?)
        .stderr(writer)
        .spawn()
        .context("start the step's process")?;
    let pid = Pid::from_child(&child);
    executor.watch(pid);
    let told = match child.stdin.take() {
        Some(mut stdin) => serde_json::to_vec(description)
            .map_err(std::io::Error::from)
            .and_then(|text| stdin.write_all(&text)),
        None => Ok(()),
    };
    let mut buffer = vec![0; 32 * 1024];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => executor.progress.output(number, &buffer[..len]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::warn!(%error, "read a step's output");
                break;
            }
        }
    }
    executor.unwatch(pid);
    let status = child.wait().context("wait for the step's process")?;
    let text = fs::read(&description.result);
    match text.ok().and_then(|text| serde_json::from_slice::<Result<StepEnd, String>>(&text).ok()) {
        Some(Ok(end)) => Ok(end),
        Some(Err(words)) => Err(anyhow!("{words}")),
        None => match told {
            Err(error) => Err(error).context("tell the step's process what to do"),
            Ok(()) => bail!("the step's process ended ({status}) before it told how its program did"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_the_hosts_network_is_for_the_caller_to_allow() {
        let words = |network, insecure| permit(network, insecure).err().map(|refused| refused.message);
        for network in [RunNetwork::Default, RunNetwork::None] {
            assert_eq!(words((network, false), (false, false)), None);
        }
        let host = words((RunNetwork::Host, false), (false, true));
        assert_eq!(host.as_deref(), Some("the step asks for --network=host"));
        assert_eq!(words((RunNetwork::Host, true), (false, false)), None);
        let insecure = words((RunNetwork::Host, true), (true, false));
        assert_eq!(insecure.as_deref(), Some("the step asks for --security=insecure"));
    }
}
