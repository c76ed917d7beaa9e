//! The command line as a whole.

mod switch;

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands;

/// Union filesystem over FUSE, and containers on it
///
/// `layerfs mount` shows a stack of directories as one tree: read-only layers under one writable layer that
/// receives every change. `layerfs run` runs a command in such a tree.
#[derive(Debug, Parser)]
#[command(
    name = "layerfs",
    version,
    propagate_version = true,
    disable_help_subcommand = false,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_long_help = AFTER_HELP
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "\
Called as a mount helper
  layerfs [SOURCE] TARGET -o OPTIONS   as mount.fuse3, containerd and podman call it
  mount -t fuse.layerfs SOURCE TARGET -o lowerdir=LOWER,upperdir=UPPER,workdir=WORK
  A link to this program that is named fuse-overlayfs, mount.fuse.layerfs or mount.layerfs
  is always a mount helper.

Environment
  LAYERFS_ROOT       where images, containers, networks and volumes are [/var/lib/layerfs, of an
                     ordinary user ~/.local/share/layerfs]
  LAYERFS_NETWORK    network of containers that are made without --network
  LAYERFS_LOG        how much to log: error, warn, info, debug, trace, or filters
  LAYERFS_LOG_FILE   where to log to

Exit codes
  0   success
  1   the command line or an option is wrong, or a command that does not mount failed
  32  a mount or unmount failed
  64  umount: some targets were unmounted, others not
  Those of run are the command's own; 125 is a failure of layerfs itself, 126 a command that
  cannot be executed, 127 one that was not found, 128+N one that was killed by signal N.";

/// The commands.
#[derive(Debug, Subcommand)]
#[command(defer = true)] // see `parse`
pub(crate) enum Command {
    Mount(commands::mount::MountArgs),
    #[command(visible_alias = "unmount")]
    Umount(commands::umount::UmountArgs),
    Index(commands::index::IndexArgs),
    Run(Box<commands::run::RunArgs>),
    Container(commands::container::ContainerArgs),
    Create(Box<commands::container::create::CreateArgs>),
    Start(commands::container::start::StartArgs),
    Stop(commands::container::stop::StopArgs),
    Kill(commands::container::stop::KillArgs),
    Restart(commands::container::stop::RestartArgs),
    Pause(commands::container::pause::PauseArgs),
    Unpause(commands::container::pause::UnpauseArgs),
    Rm(commands::container::remove::RemoveArgs),
    Rename(commands::container::rename::RenameArgs),
    Wait(commands::container::wait::WaitArgs),
    Exec(commands::container::exec::ExecArgs),
    Attach(commands::container::attach::AttachArgs),
    Logs(commands::container::logs::LogsArgs),
    Ps(commands::container::list::ListArgs),
    Top(commands::container::top::TopArgs),
    Stats(commands::container::stats::StatsArgs),
    Port(commands::container::port::PortArgs),
    Cp(commands::container::copy::CopyArgs),
    Events(commands::events::EventsArgs),
    Update(commands::container::update::UpdateArgs),
    Monitor(commands::container::monitor::MonitorArgs),
    Oci(Box<commands::oci::OciArgs>),
    Build(Box<commands::build::BuildArgs>),
    Builder(commands::builder::BuilderArgs),
    Commit(commands::image::commit::CommitArgs),
    Diff(commands::container::layer::diff::DiffArgs),
    Apply(commands::container::layer::apply::ApplyArgs),
    Discard(commands::container::layer::discard::DiscardArgs),
    Snapshot(commands::container::layer::snapshot::SnapshotArgs),
    Rollback(commands::container::layer::rollback::RollbackArgs),
    Fork(commands::container::layer::fork::ForkArgs),
    Export(commands::image::commit::ExportArgs),
    Images(commands::image::list::ImagesArgs),
    Image(commands::image::ImageArgs),
    History(commands::image::history::HistoryArgs),
    Inspect(commands::container::inspect::InspectArgs),
    Tag(commands::image::tag::TagArgs),
    Rmi(commands::image::remove::RmiArgs),
    Pull(commands::registry::PullArgs),
    Push(commands::registry::PushArgs),
    Login(commands::registry::LoginArgs),
    Logout(commands::registry::LogoutArgs),
    Search(commands::registry::SearchArgs),
    Load(commands::image::load::LoadArgs),
    Save(commands::image::save::SaveArgs),
    Import(commands::image::load::ImportArgs),
    Manifest(commands::image::manifest::ManifestArgs),
    Store(commands::image::store::StoreArgs),
    Network(commands::network::NetworkArgs),
    Volume(commands::volume::VolumeArgs),
    System(commands::image::system::SystemArgs),
    Info(commands::image::system::InfoArgs),
    Completion(commands::completion::CompletionArgs),
    Man(commands::man::ManArgs),
    Version(commands::version::VersionArgs),
}

/// Reads a command line. The options of a command are put together only when it is the one that is called (`defer`):
/// those of all commands would take longer than many of them need to run. What describes several commands, a help
/// text, is made of the whole. As with docker, the last of an option that takes one value counts, and a switch may
/// have a value (`--rm=false`).
///
/// # Errors
/// What is to be printed instead: what is wrong, help, or the version.
pub(crate) fn parse<C: CommandFactory + FromArgMatches>(arguments: &[OsString]) -> Result<C, clap::Error> {
    let mut arguments = arguments.to_vec();
    let read = |command: clap::Command, arguments: &[OsString]| {
        let command = command.args_override_self(true);
        command.try_get_matches_from(arguments).and_then(|matches| C::from_arg_matches(&matches))
    };
    loop {
        match read(C::command(), &arguments) {
            Err(error) if matches!(error.kind(), ErrorKind::TooManyValues | ErrorKind::UnknownArgument) => {
                let whole = C::command();
                if !switch::resolve(&mut arguments, &error, whole, |some| read(C::command(), some))? {
                    return Err(error);
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                ) =>
            {
                let mut whole = C::command();
                whole.build();
                return read(whole, &arguments);
            }
            result => return result,
        }
    }
}
