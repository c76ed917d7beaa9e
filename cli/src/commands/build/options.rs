//! Options of `build`, and what they mean.

// Help texts put what may be left out in brackets, as usage lines do.
#![allow(rustdoc::broken_intra_doc_links)]

mod cache;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use layerfs_image::reference::Reference;
use layerfs_image::registry::Platform;
use layerfs_image::transfer::PushCompression;

pub(super) use self::cache::{CachePlace, CacheSource, CacheTarget};
use crate::commands::container::options::CreateOptions;
use crate::commands::registry::chosen_compression;
use crate::exit::Usage;
use crate::{images, ui};

/// Build an image from a Dockerfile
///
/// Every step's result is kept and found again as long as nothing that it depends on has changed: the instruction, the
/// layers below, build arguments, and content and attributes of what is copied.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples
  layerfs build -t app:1 .
  layerfs build -t app:1 -f docker/Dockerfile --target test --build-arg VERSION=3 .
  layerfs build --secret id=token,src=token.txt --output type=local,dest=out .
  SOURCE_DATE_EPOCH=1700000000 layerfs build -t app:1 .       the same digest every time
  layerfs build --cache-to localhost:5000/app:cache --cache-from localhost:5000/app:cache .
  tar c . | layerfs build -t app:1 -
  layerfs build - < Dockerfile                                without a context

The context is a directory, `-` for a tar archive or a Dockerfile on standard input, or the http(s) URL of either.
What .dockerignore (or DOCKERFILE.dockerignore) names is not in it. docs/build.md has the language.")]
pub(crate) struct BuildArgs {
    /// Name for the image; repeat for more
    #[arg(short, long, value_name = "NAME[:TAG]")]
    tag: Vec<String>,
    /// The Dockerfile, `-` for standard input [default: CONTEXT/Dockerfile, else CONTEXT/Containerfile]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Value of a build argument; without a value that of the environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,
    /// A further context for FROM and --from: a directory, or docker-image://NAME
    #[arg(long, value_name = "NAME=CONTEXT")]
    build_context: Vec<String>,
    /// Build up to this stage, by name or number
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Carry every step out again
    #[arg(long)]
    no_cache: bool,
    /// Carry the steps of these stages out again
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    no_cache_filter: Vec<String>,
    /// Ask the registry for newer base images
    #[arg(long)]
    pull: bool,
    /// Label of the image
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// A secret for RUN --mount=type=secret: id=ID[,src=FILE|env=VARIABLE]
    #[arg(long, value_name = "SECRET")]
    secret: Vec<String>,
    /// An SSH agent for RUN --mount=type=ssh: default or ID[=SOCKET], or one with keys from files: ID=KEY[,KEY]
    #[arg(long, value_name = "AGENT")]
    ssh: Vec<String>,
    /// A further line of /etc/hosts for steps: NAME:ADDRESS
    #[arg(long, value_name = "HOST")]
    add_host: Vec<String>,
    /// Network of steps: none, host, or one of `layerfs network` [default: that of `run`]
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// Platform of the image, if not this machine's; several make one image for all of them
    #[arg(long, value_name = "OS/ARCH[/VARIANT][,...]")]
    platform: Option<String>,
    /// How it is told what happens
    #[arg(long, value_enum, value_name = "HOW", default_value_t = ProgressArg::Auto)]
    progress: ProgressArg,
    /// Print the image's id and nothing else
    #[arg(short, long)]
    quiet: bool,
    /// Write the image's id to FILE
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Write what was built elsewhere than to the store: DIRECTORY, or type=local|tar|oci|docker,dest=PATH (- for stdout),
    /// or type=registry[,name=NAME][,compression=gzip|zstd|uncompressed][,compression-level=NUMBER]; repeat for more
    #[arg(short, long, value_name = "OUTPUT")]
    output: Vec<String>,
    /// Push what was built, under the names of -t: --output type=registry
    #[arg(long, conflicts_with = "output")]
    push: bool,
    /// One layer for all that is new
    #[arg(long)]
    squash: bool,
    /// Take steps from here too: NAME at a registry, or type=registry,ref=NAME or type=local,src=DIRECTORY
    #[arg(long, value_name = "CACHE")]
    cache_from: Vec<String>,
    /// Keep steps here too: type=local,dest=DIRECTORY, type=inline (in the image itself), NAME at a registry, or
    /// type=registry,ref=NAME[,mode=min|max][,compression=gzip|zstd|uncompressed][,ignore-error=true]
    #[arg(long, value_name = "CACHE")]
    cache_to: Vec<String>,
    /// Write digests and names to FILE, as JSON
    #[arg(long, value_name = "FILE")]
    metadata_file: Option<PathBuf>,
    /// Time of the image and latest time of its files, in seconds since 1970 [default: SOURCE_DATE_EPOCH]
    #[arg(long, value_name = "SECONDS")]
    timestamp: Option<i64>,
    /// Allow steps what --security=insecure and --network=host ask for
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    allow: Vec<String>,
    /// Most memory of a step: a number with b, k, m or g
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// Most memory and swap of a step; -1 without limit
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Weight of a step among others
    #[arg(short, long, value_name = "NUMBER")]
    cpu_shares: Option<u64>,
    /// Microseconds of a period
    #[arg(long, value_name = "NUMBER")]
    cpu_period: Option<u64>,
    /// Microseconds of CPU time in a period
    #[arg(long, value_name = "NUMBER")]
    cpu_quota: Option<i64>,
    /// CPUs that may be used
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes that may be used
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,
    /// Limit of processes: NAME=SOFT[:HARD]
    #[arg(long, value_name = "LIMIT")]
    ulimit: Vec<String>,
    /// Cgroup above that of a step
    #[arg(long, value_name = "PATH")]
    cgroup_parent: Option<String>,
    /// Only say what is unwise in the Dockerfile; exit code 1 when there is something
    #[arg(long)]
    check: bool,
    /// What to do: build, or check, which is --check
    #[arg(long, value_name = "WHAT", default_value = "build", hide = true)]
    call: String,
    /// Accepted for docker's sake: no attestations are made
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, value_name = "WHAT")]
    provenance: Option<Option<String>>,
    /// Accepted for docker's sake: no attestations are made
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, value_name = "WHAT")]
    sbom: Option<Option<String>>,
    /// Accepted for docker's sake: no attestations are made
    #[arg(long, hide = true, value_name = "WHAT")]
    attest: Vec<String>,
    /// Accepted for docker's sake: there is one builder
    #[arg(long, hide = true, value_name = "NAME")]
    builder: Option<String>,
    /// Accepted for docker's sake: nothing intermediate is left
    #[arg(long, hide = true)]
    force_rm: bool,
    /// Accepted for docker's sake: images are always loaded into the store
    #[arg(long, hide = true)]
    load: bool,
    /// Accepted for docker's sake: nothing intermediate is left
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    rm: Option<bool>,
    /// Accepted for docker's sake: a context is not sent anywhere
    #[arg(long, hide = true)]
    compress: bool,
    /// Accepted for docker's sake: images are not signed
    #[arg(long, hide = true)]
    disable_content_trust: bool,
    /// The context
    #[arg(value_name = "CONTEXT")]
    context: Option<String>,
}

/// `--progress`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ProgressArg {
    /// tty on a terminal, else plain
    Auto,
    /// Every line of every step
    Plain,
    /// Steps with the last lines of those that run
    Tty,
    /// JSON, a line for each event
    Rawjson,
    /// Nothing
    Quiet,
}

/// Where a context is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ContextSource {
    Directory(PathBuf),
    Stdin,
    Url(String),
    Image(String),
}

/// Where the result goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Output {
    Store,
    Local(PathBuf),
    Tar(PathBuf),
    Archive {
        oci: bool,
        path: PathBuf,
    },
    /// Nowhere: only the steps count.
    CacheOnly,
    Registry(PushCompression),
}

impl Output {
    fn is_stdout(&self) -> bool {
        matches!(self, Self::Tar(path) | Self::Archive { path, .. } if path.as_os_str() == "-")
    }
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SecretSource {
    File(PathBuf),
    Variable(String),
}

/// Who signs for `RUN --mount=type=ssh`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SshSource {
    /// An agent that runs.
    Socket(PathBuf),
    /// An agent of the build's own, with these keys.
    Keys(Vec<PathBuf>),
}

/// What was asked for, in values that make sense.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) tags: Vec<Reference>,
    pub(super) file: Option<PathBuf>,
    pub(super) context: ContextSource,
    pub(super) contexts: BTreeMap<String, ContextSource>,
    pub(super) arguments: BTreeMap<String, String>,
    pub(super) target: Option<String>,
    pub(super) no_cache: bool,
    pub(super) no_cache_filter: BTreeSet<String>,
    pub(super) pull: bool,
    pub(super) labels: Vec<(String, String)>,
    pub(super) secrets: BTreeMap<String, SecretSource>,
    pub(super) ssh: BTreeMap<String, SshSource>,
    pub(super) platform: Platform,
    /// All that are built for, one after the other.
    pub(super) platforms: Vec<Platform>,
    pub(super) has_platform: bool,
    pub(super) progress: ProgressArg,
    pub(super) iidfile: Option<PathBuf>,
    /// One at least.
    pub(super) outputs: Vec<Output>,
    pub(super) squash: bool,
    pub(super) cache_from: Vec<CacheSource>,
    pub(super) cache_to: Vec<CacheTarget>,
    pub(super) metadata_file: Option<PathBuf>,
    pub(super) timestamp: Option<i64>,
    pub(super) allow_insecure: bool,
    /// Steps may ask for the host's network.
    pub(super) allow_host_network: bool,
    /// Only tell what is unwise.
    pub(super) only_check: bool,
    /// As `run` would have them: network, hosts, limits.
    pub(super) options: CreateOptions,
}

fn wrong(words: impl Into<String>) -> anyhow::Error {
    Usage(words.into()).into()
}

/// `key=value,key=value`
fn fields(option: &str, text: &str) -> anyhow::Result<Vec<(String, String)>> {
    text.split(',')
        .map(|field| match field.split_once('=') {
            Some((name, value)) => Ok((name.trim().to_lowercase(), value.to_owned())),
            None => Err(wrong(format!("{option} {text:?}: {field:?} is not of the form NAME=VALUE"))),
        })
        .collect()
}

impl Request {
    /// Whether the image is to stay in the store, and not only on the way to somewhere else.
    pub(super) fn keeps_image(&self) -> bool {
        self.outputs.iter().any(|output| matches!(output, Output::Store | Output::Registry(_)))
    }

    /// The same for one of several platforms.
    pub(super) fn for_platform(&self, platform: &Platform) -> Self {
        Self { platform: platform.clone(), ..self.clone() }
    }

    pub(super) fn new(args: BuildArgs) -> anyhow::Result<Self> {
        let tags = args.tag.iter().map(|name| images::parse_tag(name).map(Reference::or_latest));
        let mut tags = tags.collect::<anyhow::Result<Vec<_>>>()?;
        let Some(context) = args.context.as_deref() else {
            return Err(wrong("'layerfs build' needs a context: a directory (often .), - or a URL"));
        };
        let context = context_source(context)?;
        if context == ContextSource::Stdin && args.file.as_deref() == Some("-".as_ref()) {
            return Err(wrong("the Dockerfile and the context cannot both come from standard input"));
        }
        let contexts =
            args.build_context.iter().map(|text| named_context(text)).collect::<anyhow::Result<_>>()?;
        let mut arguments = BTreeMap::new();
        for text in &args.build_arg {
            match text.split_once('=') {
                Some(("", _)) => return Err(wrong(format!("--build-arg {text:?}: it has no name"))),
                Some((name, value)) => drop(arguments.insert(name.to_owned(), value.to_owned())),
                None => {
                    if let Ok(value) = std::env::var(text) {
                        arguments.insert(text.clone(), value);
                    }
                }
            }
        }
        let label = |text: &String| match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (text.clone(), String::new()),
        };
        let platforms = platforms(args.platform.as_deref())?;
        let epoch = match arguments
            .get("SOURCE_DATE_EPOCH")
            .cloned()
            .or_else(|| std::env::var("SOURCE_DATE_EPOCH").ok())
        {
            Some(text) if !text.is_empty() => {
                Some(text.parse::<i64>().ok().filter(|time| *time >= 0).ok_or_else(|| {
                    wrong(format!("SOURCE_DATE_EPOCH {text:?}: seconds since 1970, a number"))
                })?)
            }
            _ => None,
        };
        for what in &args.allow {
            if !matches!(what.as_str(), "security.insecure" | "network.host") {
                return Err(wrong(format!("--allow {what:?}: there are security.insecure and network.host")));
            }
        }
        let mut outputs = Vec::new();
        for text in &args.output {
            let (output, names) = parse_output(text)?;
            outputs.push(output);
            for name in names {
                if !tags.contains(&name) {
                    tags.push(name);
                }
            }
        }
        if outputs.is_empty() {
            outputs.push(if args.push {
                Output::Registry(PushCompression::default())
            } else {
                Output::Store
            });
        }
        if args.squash && outputs.iter().all(|output| *output == Output::CacheOnly) {
            return Err(wrong("--squash without an image makes no sense"));
        }
        if outputs.iter().filter(|output| output.is_stdout()).count() > 1 {
            return Err(wrong("several --output cannot all be written to standard output"));
        }
        for output in &outputs {
            check_platforms(&platforms, output)?;
        }
        let only_check = match args.call.as_str() {
            "build" => args.check,
            "check" | "lint" => true,
            other => return Err(wrong(format!("--call {other:?}: there are build and check"))),
        };
        let attestations = [&args.provenance, &args.sbom].into_iter().flatten();
        let mut wanted = attestations.map(|value| value.as_deref().unwrap_or("true"));
        if wanted.any(|value| !matches!(value, "false" | "0"))
            || args.attest.iter().any(|text| !text.contains("disabled=true"))
        {
            ui::warn("--provenance, --sbom, --attest: no attestations are made");
        }
        let is_pushed = outputs.iter().any(|output| matches!(output, Output::Registry(_)));
        if is_pushed && tags.is_empty() {
            return Err(wrong("an image that is pushed needs a name: add -t"));
        }
        Ok(Self {
            outputs,
            context,
            contexts,
            file: args.file,
            target: args.target.filter(|target| !target.is_empty()),
            no_cache: args.no_cache,
            no_cache_filter: args.no_cache_filter.into_iter().map(|stage| stage.to_lowercase()).collect(),
            pull: args.pull,
            labels: args.label.iter().map(label).collect(),
            secrets: args.secret.iter().map(|text| secret(text)).collect::<anyhow::Result<_>>()?,
            ssh: args.ssh.iter().map(|text| agent(text)).collect::<anyhow::Result<_>>()?,
            has_platform: args.platform.is_some(),
            platform: platforms.first().cloned().unwrap_or_else(Platform::host),
            platforms,
            progress: if args.quiet { ProgressArg::Quiet } else { args.progress },
            iidfile: args.iidfile,
            squash: args.squash,
            cache_from: cache::sources(&args.cache_from)?,
            cache_to: cache::targets(&args.cache_to, &arguments)?,
            metadata_file: args.metadata_file,
            timestamp: args.timestamp.or(epoch),
            only_check,
            // Who gives the host's network to all steps gives it to those that ask for it.
            allow_host_network: args.network.as_deref() == Some("host")
                || args.allow.iter().any(|what| what == "network.host"),
            allow_insecure: args.allow.iter().any(|what| what == "security.insecure"),
            options: CreateOptions {
                network: args.network.into_iter().collect(),
                add_host: args.add_host,
                memory: args.memory,
                memory_swap: args.memory_swap,
                cpu_shares: args.cpu_shares,
                cpu_period: args.cpu_period,
                cpu_quota: args.cpu_quota,
                cpuset_cpus: args.cpuset_cpus,
                cpuset_mems: args.cpuset_mems,
                shm_size: args.shm_size,
                ulimit: args.ulimit,
                cgroup_parent: args.cgroup_parent,
                pull: "missing".into(),
                restart: "no".into(),
                ..CreateOptions::default()
            },
            tags,
            arguments,
        })
    }
}

/// `--platform`, each once; this machine's when nothing was said.
fn platforms(text: Option<&str>) -> anyhow::Result<Vec<Platform>> {
    let Some(text) = text else { return Ok(vec![Platform::host()]) };
    let mut platforms = Vec::new();
    for one in text.split(',') {
        let platform: Platform = one
            .trim()
            .parse()
            .map_err(|error: layerfs_image::registry::platform::PlatformError| wrong(error.to_string()))?;
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    Ok(platforms)
}

/// What several platforms can be delivered as.
fn check_platforms(platforms: &[Platform], output: &Output) -> anyhow::Result<()> {
    if platforms.len() < 2 {
        return Ok(());
    }
    let host = Platform::host();
    let has_host = platforms.iter().any(|one| one.os == host.os && one.architecture == host.architecture);
    match output {
        Output::Store if !has_host => Err(wrong(format!(
            "an image of this store has to have something for this machine: add {host} to --platform, or --push it"
        ))),
        Output::Archive { .. } | Output::Tar(_) => Err(wrong(
            "an archive holds one platform: build them one at a time, or --push them, or use type=local",
        )),
        _ => Ok(()),
    }
}

fn context_source(text: &str) -> anyhow::Result<ContextSource> {
    let is_git = text.starts_with("git@")
        || text.starts_with("git://")
        || text.starts_with("ssh://")
        || text.starts_with("github.com/")
        || text.starts_with("http") && text.split('#').next().is_some_and(|url| url.ends_with(".git"));
    if is_git {
        return Err(wrong(format!(
            "{text}: git repositories are not fetched; clone it, and name the directory"
        )));
    }
    Ok(match text {
        "-" => ContextSource::Stdin,
        text if text.starts_with("http://") || text.starts_with("https://") => {
            ContextSource::Url(text.to_owned())
        }
        "" => return Err(wrong("the context is empty: name a directory")),
        text => ContextSource::Directory(text.into()),
    })
}

fn named_context(text: &str) -> anyhow::Result<(String, ContextSource)> {
    let Some((name, value)) =
        text.split_once('=').filter(|(name, value)| !name.is_empty() && !value.is_empty())
    else {
        return Err(wrong(format!(
            "--build-context {text:?}: write NAME=DIRECTORY or NAME=docker-image://IMAGE"
        )));
    };
    let source =
        match value.strip_prefix("docker-image://").or_else(|| value.strip_prefix("container-image://")) {
            Some(image) => ContextSource::Image(image.to_owned()),
            None if value.contains("://") || value == "-" => {
                return Err(wrong(format!(
                    "--build-context {text:?}: only directories and docker-image:// are contexts with names"
                )));
            }
            None => context_source(value)?,
        };
    Ok((name.to_owned(), source))
}

fn secret(text: &str) -> anyhow::Result<(String, SecretSource)> {
    let (mut id, mut source, mut kind) = (None, None, String::new());
    for (name, value) in fields("--secret", text)? {
        match name.as_str() {
            "id" => id = Some(value),
            "src" | "source" => source = Some(SecretSource::File(value.into())),
            "env" => source = Some(SecretSource::Variable(value)),
            "type" if matches!(value.as_str(), "file" | "env") => kind = value,
            _ => {
                return Err(wrong(format!(
                    "--secret {text:?}: {name}={value} is not known; there are id, src, env and type"
                )));
            }
        }
    }
    let id = id
        .filter(|id| !id.is_empty())
        .ok_or_else(|| wrong(format!("--secret {text:?}: id=ID is missing")))?;
    let source = match (source, kind.as_str()) {
        (Some(SecretSource::File(path)), "env") => {
            SecretSource::Variable(path.to_string_lossy().into_owned())
        }
        (Some(source), _) => source,
        (None, "") if std::env::var_os(&id).is_some() => SecretSource::Variable(id.clone()),
        (None, "env") => SecretSource::Variable(id.clone()),
        (None, _) => SecretSource::File(id.clone().into()),
    };
    Ok((id, source))
}

fn agent(text: &str) -> anyhow::Result<(String, SshSource)> {
    use std::os::unix::fs::FileTypeExt;
    let (id, paths) = match text.split_once('=') {
        Some((id, paths)) => (id, paths.split(',').map(PathBuf::from).collect()),
        None => (text, Vec::new()),
    };
    let id = if id.is_empty() { "default".to_owned() } else { id.to_owned() };
    let is_socket = |path: &PathBuf| {
        std::fs::metadata(path).map(|metadata| metadata.file_type().is_socket()).map_err(|error| {
            wrong(format!("--ssh {text}: {}: {error}; name the socket of an agent, or a key", path.display()))
        })
    };
    match paths.as_slice() {
        [] => {
            let Some(path) = std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from) else {
                return Err(wrong(format!("--ssh {text}: no agent is known: SSH_AUTH_SOCK is not set")));
            };
            match is_socket(&path)? {
                true => Ok((id, SshSource::Socket(path))),
                false => Err(wrong(format!(
                    "--ssh {text}: SSH_AUTH_SOCK names {}, which is not the socket of an agent",
                    path.display()
                ))),
            }
        }
        [path] if is_socket(path)? => Ok((id, SshSource::Socket(path.clone()))),
        keys => {
            for key in keys {
                if is_socket(key)? {
                    return Err(wrong(format!("--ssh {text}: one agent, or several keys; not both")));
                }
            }
            Ok((id, SshSource::Keys(paths)))
        }
    }
}

/// Where it goes, and names that it has there beside those of `-t`.
fn parse_output(text: &str) -> anyhow::Result<(Output, Vec<Reference>)> {
    if text == "-" {
        return Ok((Output::Tar("-".into()), Vec::new()));
    }
    if !text.contains('=') {
        return Ok((Output::Local(text.into()), Vec::new()));
    }
    let (mut kind, mut dest, mut push) = (String::new(), None, false);
    let (mut names, mut compression, mut level) = (Vec::new(), None, None);
    for (name, value) in fields("--output", text)? {
        let bad = |words: &str| wrong(format!("--output {text:?}: {name} is {words}, not {value:?}"));
        match name.as_str() {
            "type" => kind = value,
            "dest" | "destination" => dest = Some(PathBuf::from(value)),
            "push" => push = value.parse().map_err(|_| bad("true or false"))?,
            "name" => names.push(images::parse_tag(&value).map(Reference::or_latest)?),
            "compression" if matches!(value.as_str(), "gzip" | "zstd" | "uncompressed") => {
                compression = Some(value);
            }
            "compression" => return Err(bad("gzip, zstd or uncompressed")),
            "compression-level" => level = Some(value.parse::<u8>().map_err(|_| bad("a number"))?),
            // Manifests are OCI's always.
            "oci-mediatypes" if value == "true" => {}
            _ => {
                return Err(wrong(format!(
                    "--output {text:?}: {name} is not known; there are type, dest, push, name, compression and \
                     compression-level"
                )));
            }
        }
    }
    let pushed = kind == "registry" || kind == "image" && push;
    if !pushed && (compression.is_some() || level.is_some()) {
        return Err(wrong(format!(
            "--output {text:?}: layers are compressed only where they are pushed; an archive is compressed by \
             'layerfs save --compress'"
        )));
    }
    if !names.is_empty() && !matches!(kind.as_str(), "image" | "registry" | "docker" | "oci") {
        return Err(wrong(format!("--output {text:?}: what goes to {kind:?} has no name")));
    }
    let needs = || dest.clone().ok_or_else(|| wrong(format!("--output {text:?}: dest=PATH is missing")));
    let output = match kind.as_str() {
        "local" => Output::Local(needs()?),
        "tar" => Output::Tar(dest.unwrap_or_else(|| "-".into())),
        "oci" => Output::Archive { oci: true, path: dest.unwrap_or_else(|| "-".into()) },
        "docker" if dest.is_none() => Output::Store,
        "docker" => Output::Archive { oci: false, path: needs()? },
        "image" | "registry" if pushed => {
            Output::Registry(chosen_compression(compression.as_deref().unwrap_or("gzip"), level)?)
        }
        "image" => Output::Store,
        "cacheonly" => Output::CacheOnly,
        other => {
            return Err(wrong(format!(
                "--output type={other}: there are local, tar, oci, docker, image, registry and cacheonly"
            )));
        }
    };
    Ok((output, names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_their_meaning() {
        let output = |text: &str| parse_output(text).unwrap().0;
        assert_eq!(output("out"), Output::Local("out".into()));
        assert_eq!(output("type=tar,dest=x"), Output::Tar("x".into()));
        assert_eq!(output("type=docker"), Output::Store);
        assert_eq!(output("type=image,push=false"), Output::Store);
        let (pushed, names) = parse_output("type=image,name=h.example/a:1,push=true").unwrap();
        assert_eq!(pushed, Output::Registry(PushCompression::default()));
        assert_eq!(names[0].to_string(), "h.example/a:1");
        let chosen = output("type=registry,compression=zstd,compression-level=7");
        assert_eq!(chosen, Output::Registry(PushCompression::Zstd(7)));
        for text in [
            "type=local",
            "type=x",
            "what=1",
            "dest=x",
            "type=image,push=perhaps",
            "type=registry,compression=lzma",
            "type=registry,compression=gzip,compression-level=10",
            "type=oci,dest=x,compression=gzip",
            "type=tar,name=a",
        ] {
            assert!(parse_output(text).is_err(), "{text}");
        }
        assert_eq!(secret("id=a,src=b").unwrap(), ("a".into(), SecretSource::File("b".into())));
        assert_eq!(secret("id=a,env=B").unwrap().1, SecretSource::Variable("B".into()));
        assert_eq!(platforms(Some("linux/amd64,linux/arm64,linux/x86_64")).unwrap().len(), 2);
        assert!(platforms(Some("linux/amd64,,")).is_err());
        assert!(secret("src=b").is_err() && secret("id").is_err() && secret("id=a,x=y").is_err());
        assert_eq!(context_source("http://h/x.tar").unwrap(), ContextSource::Url("http://h/x.tar".into()));
        for text in ["git@h:x", "https://h/x.git#main", "git://h/x", ""] {
            assert!(context_source(text).is_err(), "{text}");
        }
        assert_eq!(named_context("a=docker-image://b").unwrap().1, ContextSource::Image("b".into()));
        assert!(named_context("a").is_err() && named_context("a=oci-layout://x").is_err());
    }
}
