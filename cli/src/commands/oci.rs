//! `layerfs oci`, and the whole program under the name `layerfs-runtime`: an OCI runtime with runc's command line.
//!
//! A file per command. Failures go to stderr and, where `--log` names a file, there too, as engines expect.

mod create;
mod delete;
mod events;
mod exec;
mod features;
mod kill;
mod list;
mod pause;
mod ps;
mod run;
mod spec;
mod start;
mod state;
mod update;
mod warnings;

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Args, Parser, Subcommand, ValueEnum};
use layerfs_runner::runtime::{Runtime, RuntimeError, time};
use layerfs_runner::{CreateError, FailureKind, host};

use crate::logging::LogOptions;
use crate::ui;

/// Failure of a command that changes or shows a container.
const FAILURE: u8 = 1;
/// Failure of the runtime itself where the code is otherwise the program's.
const OWN_FAILURE: u8 = 125;
/// The program cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// There is no such program.
const NOT_FOUND: u8 = 127;

/// As engines read it: the version, then the specification's.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\nspec: 1.2.0");
/// The name under which the program is an OCI runtime.
pub(crate) const NAME: &str = "layerfs-runtime";

/// OCI runtime: containers from bundles, with runc's command line
///
/// The same as the program under the name layerfs-runtime. A bundle is a directory with config.json (see `spec`) and a
/// root filesystem.
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true, after_long_help = AFTER_HELP)]
pub(crate) struct OciArgs {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples
  mkdir -p bundle/rootfs; layerfs oci spec --bundle bundle
  layerfs oci run --bundle bundle mine
  podman --runtime /usr/bin/layerfs-runtime run ...      (a link to layerfs of that name)

Exit codes
  run, exec: the program's own, 128+N when signal N ended it; 125 own failure, 126 the program
  cannot be executed, 127 there is no such program. Others: 0, or 1 for a failure.";

#[derive(Debug, Args)]
struct Global {
    /// Where containers are kept [default: /run/layerfs-runtime; for other users than root
    /// $XDG_RUNTIME_DIR/layerfs-runtime]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Append failures and warnings to FILE too
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// How to write to that file
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Log what is decided
    #[arg(long)]
    debug: bool,
    /// Have systemd make cgroups (not supported)
    #[arg(long)]
    systemd_cgroup: bool,
    /// Who makes cgroups: cgroupfs; disabled makes none
    #[arg(long, value_name = "MANAGER")]
    cgroup_manager: Option<String>,
    /// Taken for compatibility; whether root is lacking is seen
    #[arg(long, value_name = "true|false|auto")]
    rootless: Option<String>,
    /// Taken for compatibility
    #[arg(long, value_name = "PATH", hide = true)]
    criu: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Lines of text.
    Text,
    /// One JSON object per line.
    Json,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    Create(create::CreateArgs),
    Start(start::StartArgs),
    State(state::StateArgs),
    Kill(kill::KillArgs),
    Delete(delete::DeleteArgs),
    Run(run::RunArgs),
    Exec(exec::ExecArgs),
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    Ps(ps::PsArgs),
    Pause(pause::PauseArgs),
    Resume(pause::ResumeArgs),
    Update(update::UpdateArgs),
    Events(events::EventsArgs),
    Spec(spec::SpecArgs),
    Features(features::FeaturesArgs),
}

#[derive(Debug, Parser)]
#[command(name = NAME, version = VERSION, disable_help_subcommand = false, max_term_width = 100)]
struct Standalone {
    #[command(flatten)]
    oci: OciArgs,
}

/// The program under its second name; `None` under another.
pub(crate) fn standalone(arguments: &[OsString]) -> Option<ExitCode> {
    let name = std::path::Path::new(arguments.first()?).file_name()?;
    if name != NAME {
        return None;
    }
    if matches!(command_word(arguments), Some("create" | "run" | "exec")) {
        // Before anything that takes time, for it is done again. Where it fails, the command itself says so.
        protect().ok();
    }
    let arguments: Vec<_> = arguments
        .iter()
        .map(|word| match word.to_str() {
            // As runc has it.
            Some("-v") => OsString::from("--version"),
            _ => word.clone(),
        })
        .collect();
    let parsed: Result<Standalone, _> = crate::args::parse(&arguments);
    Some(match parsed {
        Ok(standalone) => oci(standalone.oci),
        Err(error) => {
            error.print().ok();
            match error.use_stderr() {
                true => ExitCode::from(own_failure(&arguments)),
                false => ExitCode::SUCCESS,
            }
        }
    })
}

/// The exit code of a command line that is wrong, of this program or of `layerfs oci`.
pub(crate) fn own_failure(arguments: &[OsString]) -> u8 {
    match command_word(arguments) {
        Some("run" | "exec") => OWN_FAILURE,
        _ => FAILURE,
    }
}

/// The command among the arguments, after the global options.
fn command_word(arguments: &[OsString]) -> Option<&str> {
    let mut words = arguments.iter().skip(1).map(|word| word.to_str());
    while let Some(Some(word)) = words.next() {
        match word {
            "--root" | "--log" | "--log-format" | "--cgroup-manager" | "--rootless" | "--criu" => {
                words.next()?;
            }
            option if option.starts_with('-') => {}
            command => return Some(command),
        }
    }
    None
}

/// What commands work with.
struct Context {
    runtime: Runtime,
    without_cgroup: bool,
}

pub(crate) fn oci(args: OciArgs) -> ExitCode {
    let OciArgs { global, command } = args;
    let own_failure = match &command {
        Command::Run(_) | Command::Exec(_) => OWN_FAILURE,
        _ => FAILURE,
    };
    let result = run_command(&global, command);
    match result {
        Ok(code) => code,
        Err(error) => {
            let words = ui::chain(&error);
            ui::error(&error);
            log(&global, "error", &words);
            ExitCode::from(code_of(&error).unwrap_or(own_failure))
        }
    }
}

fn run_command(global: &Global, command: Command) -> anyhow::Result<ExitCode> {
    start_log(global)?;
    let manager = global.cgroup_manager.as_deref();
    if global.systemd_cgroup || manager == Some("systemd") {
        anyhow::bail!(crate::exit::Hinted {
            message: "cgroups made by systemd are not supported".into(),
            hint: "set the engine's cgroup manager to cgroupfs".into(),
        });
    }
    if !matches!(manager, None | Some("cgroupfs" | "disabled")) {
        anyhow::bail!("--cgroup-manager {:?}: it is cgroupfs or disabled", manager.unwrap_or_default());
    }
    let context =
        Context { runtime: Runtime::new(root(global)), without_cgroup: manager == Some("disabled") };
    match command {
        Command::Create(args) => create::create(args, &context),
        Command::Start(args) => start::start(args, &context),
        Command::State(args) => state::state(args, &context),
        Command::Kill(args) => kill::kill(args, &context),
        Command::Delete(args) => delete::delete(args, &context),
        Command::Run(args) => run::run(args, &context),
        Command::Exec(args) => exec::exec(args, &context),
        Command::List(args) => list::list(args, &context),
        Command::Ps(args) => ps::ps(args, &context),
        Command::Pause(args) => pause::pause(args, &context),
        Command::Resume(args) => pause::resume(args, &context),
        Command::Update(args) => update::update(args, &context),
        Command::Events(args) => events::events(args, &context),
        Command::Spec(args) => spec::spec(args),
        Command::Features(args) => features::features(args),
    }
}

/// Starts the program again from a file that no container can overwrite; see [`host::protect_executable`].
fn protect() -> anyhow::Result<()> {
    Ok(host::protect_executable(&[])?)
}

fn root(global: &Global) -> PathBuf {
    if let Some(root) = &global.root {
        return root.clone();
    }
    let user_directory = std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty());
    match user_directory {
        Some(directory) if !rustix::process::geteuid().is_root() || !is_machine_root() => {
            PathBuf::from(directory).join(NAME)
        }
        _ => PathBuf::from("/run").join(NAME),
    }
}

/// Root of a user namespace is an ordinary user of the machine.
fn is_machine_root() -> bool {
    host::is_initial_user_namespace().unwrap_or(true)
}

/// An exit code that says more than failure.
fn code_of(error: &anyhow::Error) -> Option<u8> {
    let kind = error.chain().find_map(|cause| match cause.downcast_ref::<RuntimeError>() {
        Some(RuntimeError::Create(create)) => Some(create.kind()),
        _ => cause.downcast_ref::<CreateError>().map(CreateError::kind),
    })?;
    match kind {
        FailureKind::Setup => None,
        FailureKind::NotFound => Some(NOT_FOUND),
        FailureKind::NotExecutable => Some(NOT_EXECUTABLE),
    }
}

/// Only where somebody asked: a log costs time at every start.
fn start_log(global: &Global) -> anyhow::Result<()> {
    let mut options = LogOptions::from_env();
    if global.debug {
        "debug".clone_into(&mut options.filter);
    } else if std::env::var_os("LAYERFS_LOG").is_none() {
        // A warning is for whoever called, and costs nothing until there is one.
        let (log_file, format) = (global.log.clone(), global.log_format);
        warnings::tell(move |words| {
            ui::warn(format_args!("{words}"));
            log_to(log_file.as_deref(), format, "warning", words);
        });
        return Ok(());
    }
    if global.debug && global.log.is_some() && global.log_format == LogFormat::Text {
        options.file.clone_from(&global.log);
    }
    options.start()
}

/// One line for the engine. A log that cannot be written must not hide the failure itself.
fn log(global: &Global, level: &str, words: &str) {
    log_to(global.log.as_deref(), global.log_format, level, words);
}

fn log_to(path: Option<&Path>, format: LogFormat, level: &str, words: &str) {
    let Some(path) = path else { return };
    let now = time::rfc3339(SystemTime::now());
    let line = match format {
        LogFormat::Json => serde_json::json!({"level": level, "msg": words, "time": now}).to_string(),
        LogFormat::Text => format!("time={now:?} level={level} msg={words:?}"),
    };
    let written = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    if let Err(error) = written {
        ui::warn(format_args!("write to the log {}: {error}", path.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn regression_a_wrong_command_line_of_run_and_exec_is_an_own_failure() {
        for (line, code) in [
            ("layerfs-runtime exec -u nobody c id", OWN_FAILURE),
            ("layerfs-runtime --root /r run", OWN_FAILURE),
            ("layerfs-runtime --root /exec kill", FAILURE),
        ] {
            assert_eq!(own_failure(&words(line)), code, "{line}");
        }
    }

    #[test]
    fn the_command_is_found_behind_global_options() {
        for (line, command) in [
            ("layerfs-runtime create --bundle b id", Some("create")),
            ("layerfs-runtime --root /r --log=/l --log-format json --debug exec -t id sh", Some("exec")),
            ("layerfs-runtime --systemd-cgroup start id", Some("start")),
            ("layerfs-runtime --root", None),
            ("layerfs-runtime", None),
        ] {
            assert_eq!(command_word(&words(line)), command, "{line}");
        }
    }
}
