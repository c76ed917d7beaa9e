//! The commands that speak to registries: pull, push, login, logout, search.

mod progress;

use std::io::Read;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use layerfs_image::reference::{DEFAULT_REGISTRY, Reference};
use layerfs_image::registry::{
    Client, ClientOptions, Credentials, KeptIn, MAX_SEARCH_LIMIT, Platform, RegistryError, SearchFilter,
};
use layerfs_image::transfer::{self, Progress, PushCompression, Silent};

use self::progress::Bars;
use crate::exit::{Hinted, Usage};
use crate::images::{self, listing};
use crate::ui::{self, prompt};

/// How registries are reached; the same for all commands.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Registry")]
pub(crate) struct RegistryArgs {
    /// A mirror of Docker Hub, asked first; repeat for more (others: registries.conf)
    #[arg(long, value_name = "URL")]
    registry_mirror: Vec<String>,
    /// A registry that may speak plain http or have a certificate that nothing proves; loopback may anyway
    #[arg(long, value_name = "HOST[:PORT]|NETWORK")]
    insecure_registry: Vec<String>,
}

impl RegistryArgs {
    /// As if `host` had been given with `--insecure-registry`.
    pub(crate) fn add_insecure(&mut self, host: &str) {
        self.insecure_registry.push(host.to_owned());
    }

    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let options = ClientOptions {
            mirrors: self.registry_mirror.clone(),
            insecure: self.insecure_registry.clone(),
            ..ClientOptions::default()
        };
        Client::new(options).map_err(hinted)
    }
}

/// With the hint that the error knows.
pub(crate) fn hinted(error: RegistryError) -> anyhow::Error {
    match error.hint() {
        Some(hint) => {
            let message = error.to_string();
            anyhow::Error::new(error).context(Hinted { message, hint })
        }
        None => error.into(),
    }
}

pub(crate) fn explained(error: layerfs_image::Error) -> anyhow::Error {
    match error {
        layerfs_image::Error::Registry(error) => hinted(*error),
        error => error.into(),
    }
}

/// Get an image from a registry
///
/// Its layers are downloaded, verified and unpacked in one pass, several at once. What is here already is not downloaded
/// again, also after a pull that was interrupted.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples
  layerfs pull debian:13
  layerfs pull quay.io/team/tool@sha256:...          exactly this one
  layerfs pull --platform linux/arm64 debian:13
  layerfs pull -a localhost:5000/tool                all tags
  layerfs pull -q debian:13                          only the name, for scripts")]
pub(crate) struct PullArgs {
    /// Pull all tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Platform of the image, if not this machine's
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    /// Say nothing but the name
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    /// The images
    #[arg(value_name = "NAME[:TAG|@DIGEST]", required = true, help_heading = None)]
    names: Vec<String>,
}

pub(crate) fn pull(args: PullArgs) -> anyhow::Result<ExitCode> {
    let platform = match &args.platform {
        Some(text) => text.parse::<Platform>().map_err(|error| Usage(error.to_string()))?,
        None => Platform::host(),
    };
    let client = args.registry.client()?;
    let mut wanted = Vec::new();
    for name in &args.names {
        let reference = Reference::parse_without_tag(name)?;
        if !args.all_tags {
            if reference.tag().is_none() && reference.digest().is_none() && !args.quiet {
                ui::print("Using default tag: latest\n")?;
            }
            wanted.push(reference.or_latest());
            continue;
        }
        if reference.tag().is_some() || reference.digest().is_some() {
            return Err(Usage("tag can't be used with --all-tags/-a".into()).into());
        }
        for tag in client.repository(&reference).and_then(|repository| repository.tags()).map_err(hinted)? {
            wanted.push(reference.with_tag(&tag)?);
        }
    }
    let store = images::open_store()?;
    images::with_session(&store, |session| {
        for reference in &wanted {
            if !args.quiet {
                let what = reference.tag().map_or_else(|| reference.name(), str::to_owned);
                ui::print(format!("{what}: Pulling from {}\n", reference.repository()))?;
            }
            let bars = Bars::new(args.quiet, "Downloading");
            let progress: &dyn Progress = if args.quiet { &Silent } else { &bars };
            let pulled = transfer::pull(&store, session, &client, reference, &platform, progress)
                .map_err(explained)?;
            bars.finish();
            for warning in pulled.warnings.iter().take(10) {
                ui::warn(warning);
            }
            if args.platform.is_some() {
                warn_of_platform(&store, reference, &pulled.id, &platform)?;
            }
            if !args.quiet {
                let state = match pulled.up_to_date {
                    true => "Image is up to date for",
                    false => "Downloaded newer image for",
                };
                let name = reference.familiar();
                ui::print(format!("Digest: {}\nStatus: {state} {name}\n", pulled.digest))?;
            }
            crate::events::image("pull", &reference.familiar(), &reference.familiar());
            ui::print(format!("{reference}\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Gets an image for a container, which says nothing on standard output.
pub(crate) fn pull_for_run(
    store: &layerfs_image::store::Store,
    name: &str,
    platform: Option<&Platform>,
    quiet: bool,
) -> anyhow::Result<()> {
    let reference = Reference::parse_without_tag(name)?.or_latest();
    let client = RegistryArgs::default().client()?;
    images::with_session(store, |session| {
        let bars = Bars::new(false, "Downloading");
        // Where there is no terminal the bars are lines among the results of the command.
        let progress: &dyn Progress = if ui::width().is_some() && !quiet { &bars } else { &Silent };
        let host = Platform::host();
        let pulled = transfer::pull(store, session, &client, &reference, platform.unwrap_or(&host), progress)
            .map_err(explained)?;
        bars.finish();
        crate::events::image("pull", &reference.familiar(), &reference.familiar());
        for warning in pulled.warnings.iter().take(10) {
            ui::warn(warning);
        }
        match platform {
            Some(platform) => warn_of_platform(store, &reference, &pulled.id, platform),
            None => Ok(()),
        }
    })
}

/// What is no list of images is had whatever its platform is. docker's words.
fn warn_of_platform(
    store: &layerfs_image::store::Store,
    reference: &Reference,
    id: &layerfs_image::digest::Digest,
    wanted: &Platform,
) -> anyhow::Result<()> {
    let config = images::find(store, &id.to_string())?.config;
    let found =
        Platform::new(&config.os, &config.architecture, config.variant.as_deref().unwrap_or_default());
    if !wanted.runs(&found) {
        let reference = reference.familiar();
        ui::warn(format_args!(
            "image with reference {reference} was found but its platform ({found}) does not match the specified platform \
             ({wanted})"
        ));
    }
    Ok(())
}

/// Put an image into a registry
///
/// Layers that the registry has are not sent, and those that other repositories of it have are taken over from there.
/// Layers that were made or loaded here without compression are compressed; others go as they came.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples
  layerfs push example.com/team/tool:1
  layerfs push -a example.com/team/tool              all tags
  layerfs push mine:1 example.com/team/tool:1        under another name
  layerfs push --compression-format none mine:1      with the very manifest of the store")]
pub(crate) struct PushArgs {
    /// Push all tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Say nothing but the digest
    #[arg(short, long)]
    quiet: bool,
    /// How layers are compressed that are not
    #[arg(long, value_enum, default_value_t = PushFormat::Gzip, value_name = "FORMAT")]
    compression_format: PushFormat,
    /// How hard it tries: 1 to 9 with gzip [default: 2], 1 to 19 with zstd [default: 3]
    #[arg(long, value_name = "LEVEL")]
    compression_level: Option<u8>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// The image: its name is where it goes
    #[arg(value_name = "NAME[:TAG]", help_heading = None)]
    name: String,
    /// Another name for it at the registry
    #[arg(value_name = "DESTINATION", conflicts_with = "all_tags", help_heading = None)]
    destination: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PushFormat {
    Gzip,
    Zstd,
    /// As they are
    None,
}

impl PushArgs {
    fn compression(&self) -> Result<PushCompression, Usage> {
        let format = match self.compression_format {
            PushFormat::Gzip => "gzip",
            PushFormat::Zstd => "zstd",
            PushFormat::None => "uncompressed",
        };
        chosen_compression(format, self.compression_level)
    }
}

/// `gzip` or `zstd` with a level, or `uncompressed`.
pub(crate) fn chosen_compression(format: &str, level: Option<u8>) -> Result<PushCompression, Usage> {
    let within = |most: u8| match level {
        Some(level) if !(1..=most).contains(&level) => {
            Err(Usage(format!("compression level {level}: from 1 to {most} with {format}")))
        }
        level => Ok(level),
    };
    Ok(match format {
        "uncompressed" => PushCompression::None,
        "zstd" => PushCompression::Zstd(within(19)?.unwrap_or(3).into()),
        _ => within(9)?.map_or_else(PushCompression::default, |level| PushCompression::Gzip(level.into())),
    })
}

pub(crate) fn push(args: PushArgs) -> anyhow::Result<ExitCode> {
    let compression = args.compression()?;
    let client = args.registry.client()?;
    let store = images::open_store()?;
    let mut wanted: Vec<(String, Reference)> = Vec::new();
    if args.all_tags {
        let repository = Reference::parse_without_tag(&args.name)?;
        if repository.tag().is_some() || repository.digest().is_some() {
            return Err(Usage("tag can't be used with --all-tags/-a".into()).into());
        }
        for image in store.named()? {
            for name in &image.names {
                let reference = Reference::parse(name)?;
                if reference.name() == repository.name() {
                    wanted.push((name.clone(), reference));
                }
            }
        }
        if wanted.is_empty() {
            bail!("An image does not exist locally with the tag: {}", repository.familiar_name());
        }
    } else {
        let destination = args.destination.as_deref().unwrap_or(&args.name);
        let destination = destination.strip_prefix("docker://").unwrap_or(destination);
        let reference = images::parse_tag(destination).context("where the image goes")?;
        if Reference::parse_without_tag(destination)?.tag().is_none() && !args.quiet {
            ui::print("Using default tag: latest\n")?;
        }
        wanted.push((args.name.clone(), reference));
    }
    images::with_session(&store, |session| {
        for (name, reference) in &wanted {
            let image = images::find(&store, name)?;
            if !args.quiet {
                ui::print(format!("The push refers to repository [{}]\n", reference.name()))?;
            }
            let bars = Bars::new(args.quiet, "Pushing");
            let progress: &dyn Progress = if args.quiet { &Silent } else { &bars };
            let (digest, size) =
                transfer::push(&store, session, &client, &image, reference, compression, progress)
                    .map_err(explained)?;
            bars.finish();
            crate::events::image("push", &reference.familiar(), &reference.familiar());
            if args.quiet {
                ui::print(format!("{reference}\n"))?;
            } else {
                let tag = reference.tag().unwrap_or_default();
                ui::print(format!("{tag}: digest: {digest} size: {size}\n"))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Log in to a registry
///
/// What was proved is kept for docker, podman and this program: in a credential helper where docker's config.json
/// names one, else in that file.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples
  layerfs login                                      Docker Hub; asks for name and password
  layerfs login -u me --password-stdin quay.io < password-file")]
pub(crate) struct LoginArgs {
    /// User name
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// Password; others can read it in the list of processes: rather use --password-stdin
    #[arg(short, long, value_name = "PASSWORD", conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    /// The registry, if not Docker Hub
    #[arg(value_name = "SERVER", default_value = DEFAULT_REGISTRY, help_heading = None)]
    server: String,
}

/// A server as people write it: without scheme and path.
fn server(text: &str) -> &str {
    let text = text.split_once("://").map_or(text, |(_, rest)| rest);
    match text.split('/').next().unwrap_or(text) {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        host => host,
    }
}

pub(crate) fn login(args: LoginArgs) -> anyhow::Result<ExitCode> {
    let client = args.registry.client()?;
    let server = server(&args.server);
    if args.username.is_none() && args.password.is_none() && login_as_before(&client, server)? {
        return Ok(ExitCode::SUCCESS);
    }
    let username = match args.username {
        Some(username) => username,
        None => {
            let known = client.credential_store().username(server);
            let shown = known.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
            let typed = ask(&format!("Username{shown}: "), true)?;
            if typed.is_empty() { known.unwrap_or_default() } else { typed }
        }
    };
    if username.is_empty() {
        return Err(Usage("a user name is needed".into()).into());
    }
    let password = match args.password {
        Some(password) => {
            ui::warn("a password on the command line can be read by others; use --password-stdin");
            password
        }
        None if args.password_stdin => {
            let mut text = String::new();
            std::io::stdin().take(1 << 20).read_to_string(&mut text).context("read the password")?;
            text.trim_end_matches(['\n', '\r']).to_owned()
        }
        None => ask("Password: ", false)?,
    };
    if password.is_empty() {
        return Err(Usage("a password is needed".into()).into());
    }
    let done = client.login(server, &Credentials::password(username, password)).map_err(hinted)?;
    if let KeptIn::File(path) = &done.kept {
        ui::warn(format_args!(
            "the password is kept unencrypted in {path:?}; a credential helper would encrypt it"
        ));
    }
    if !done.checked {
        ui::note("the registry asked for no password: it was kept unproved");
    }
    ui::print("Login Succeeded\n")?;
    Ok(ExitCode::SUCCESS)
}

/// Asks at the terminal.
fn ask(question: &str, echo: bool) -> anyhow::Result<String> {
    if !prompt::is_possible() {
        bail!(Hinted {
            message: "cannot ask for user and password: standard input is no terminal".into(),
            hint: "use --username and --password-stdin".into(),
        });
    }
    let answer = if echo { prompt::line(question) } else { prompt::secret(question) };
    answer.context("read the answer")
}

/// Tries what is kept from before. False when there is nothing, or the registry no longer takes it.
fn login_as_before(client: &Client, server: &str) -> anyhow::Result<bool> {
    let known = client.credential_store().find(server, "").context("look for kept credentials")?;
    let Some(known) = known else { return Ok(false) };
    ui::note(format_args!("trying the credentials that are kept for {server}"));
    match client.login(server, &known) {
        Ok(_) => {
            ui::print("Login Succeeded\n")?;
            Ok(true)
        }
        Err(error) if error.is_denied() => {
            ui::note("they are not taken any more");
            Ok(false)
        }
        Err(error) => Err(hinted(error)),
    }
}

/// Forget the credentials for a registry
#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// The registry, if not Docker Hub
    #[arg(value_name = "SERVER", default_value = DEFAULT_REGISTRY)]
    server: String,
}

pub(crate) fn logout(args: LogoutArgs) -> anyhow::Result<ExitCode> {
    let server = server(&args.server);
    let client = RegistryArgs::default().client()?;
    let text = match client.logout(server).map_err(hinted)? {
        true => format!("Removing login credentials for {server}\n"),
        false => format!("Not logged in to {server}\n"),
    };
    ui::print(text)?;
    Ok(ExitCode::SUCCESS)
}

/// Search Docker Hub, or the registry that TERM begins with
///
/// A registry without an index of its own is searched by the names in its catalogue.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples
  layerfs search --filter is-official=true nginx
  layerfs search localhost:5000/tool")]
pub(crate) struct SearchArgs {
    /// At most so many results, 1 to 100
    #[arg(long, value_name = "NUMBER", default_value_t = 25, value_parser = limit)]
    limit: usize,
    /// Show only some: stars=NUMBER, is-official=BOOL, is-automated=BOOL
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not shorten descriptions
    #[arg(long)]
    no_trunc: bool,
    /// `table`, `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// What to look for: WORD or REGISTRY/WORD
    #[arg(value_name = "TERM", help_heading = None)]
    term: String,
}

fn limit(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=MAX_SEARCH_LIMIT).contains(number));
    number.ok_or_else(|| format!("a limit is a number from 1 to {MAX_SEARCH_LIMIT}"))
}

pub(crate) fn search(args: SearchArgs) -> anyhow::Result<ExitCode> {
    let mut filter = SearchFilter::default();
    for text in &args.filter {
        let bad =
            || Usage(format!("filter {text:?}: write stars=NUMBER, is-official=BOOL or is-automated=BOOL"));
        match text.split_once('=').ok_or_else(bad)? {
            ("stars", number) => filter.stars = number.parse().map_err(|_| bad())?,
            ("is-official", value) => filter.is_official = Some(value.parse().map_err(|_| bad())?),
            ("is-automated", value) => filter.is_automated = Some(value.parse().map_err(|_| bad())?),
            _ => return Err(bad().into()),
        }
    }
    let client = args.registry.client()?;
    let found = client.search(&args.term, args.limit, &filter).map_err(hinted)?;
    let mut rows = Vec::new();
    for result in found {
        let mut row = serde_json::to_value(&result)?;
        if !args.no_trunc && result.description.chars().count() > 45 {
            let short: String = result.description.chars().take(44).collect();
            row["Description"] = format!("{short}…").into();
        }
        row["IsOfficial"] = if result.is_official { "[OK]" } else { "" }.into();
        row["IsAutomated"] = if result.is_automated { "[OK]" } else { "" }.into();
        rows.push(row);
    }
    let columns = [
        ("NAME", "Name"),
        ("DESCRIPTION", "Description"),
        ("STARS", "StarCount"),
        ("OFFICIAL", "IsOfficial"),
    ];
    listing::print(&rows, &columns, &[("AUTOMATED", "IsAutomated")], args.format.as_deref())?;
    Ok(ExitCode::SUCCESS)
}
