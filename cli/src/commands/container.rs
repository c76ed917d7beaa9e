//! Containers through their whole life, with docker's words: a file per command.
//!
//! A container is a directory of the store ([`store`]): what was asked for ([`config`]), where it is in its life, its log
//! and its writable layer. While it runs, a monitor (`layerfs-runner`'s `monitor`) looks after it; what that does with a
//! container is in [`body`] and [`spec`].

pub(crate) mod attach;
mod body;
pub(crate) mod boot;
pub(crate) mod check;
pub(crate) mod config;
pub(crate) mod copy;
pub(crate) mod create;
mod etc;
pub(crate) mod exec;
pub(crate) mod inspect;
pub(crate) mod kept;
pub(crate) mod layer;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod monitor;
mod mounts;
mod names;
pub(crate) mod network;
pub(crate) mod options;
mod parts;
pub(crate) mod pause;
pub(crate) mod port;
mod ports_column;
pub(crate) mod prune;
pub(crate) mod remove;
pub(crate) mod rename;
pub(crate) mod run;
mod session;
mod spec;
pub(crate) mod start;
pub(crate) mod stats;
pub(crate) mod step;
pub(crate) mod stop;
pub(crate) mod store;
pub(crate) mod top;
pub(crate) mod update;
mod volume;
pub(crate) mod wait;

use std::process::ExitCode;

use clap::{Args, Subcommand};

pub(crate) use create::values as create_values;

use crate::ui;

/// Manage containers
#[derive(Debug, Args)]
pub(crate) struct ContainerArgs {
    #[command(subcommand)]
    command: Box<ContainerCommand>,
}

/// The commands for containers; the most used ones are top-level commands too.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum ContainerCommand {
    Apply(layer::apply::ApplyArgs),
    Attach(attach::AttachArgs),
    Commit(super::image::commit::CommitArgs),
    #[command(name = "cp")]
    Copy(copy::CopyArgs),
    Create(create::CreateArgs),
    Diff(layer::diff::DiffArgs),
    Discard(layer::discard::DiscardArgs),
    Exec(exec::ExecArgs),
    Export(super::image::commit::ExportArgs),
    Fork(layer::fork::ForkArgs),
    Inspect(inspect::ContainerInspectArgs),
    Kill(stop::KillArgs),
    Logs(logs::LogsArgs),
    #[command(name = "ls", visible_aliases = ["list", "ps"])]
    List(list::ListArgs),
    Pause(pause::PauseArgs),
    Port(port::PortArgs),
    Prune(prune::PruneArgs),
    Rename(rename::RenameArgs),
    Restart(stop::RestartArgs),
    #[command(name = "rm", visible_alias = "remove")]
    Remove(remove::RemoveArgs),
    Rollback(layer::rollback::RollbackArgs),
    Run(super::run::RunArgs),
    Snapshot(layer::snapshot::SnapshotArgs),
    Start(start::StartArgs),
    Stats(stats::StatsArgs),
    Stop(stop::StopArgs),
    Top(top::TopArgs),
    Unpause(pause::UnpauseArgs),
    Update(update::UpdateArgs),
    Wait(wait::WaitArgs),
}

pub(crate) fn container(args: ContainerArgs) -> anyhow::Result<ExitCode> {
    match *args.command {
        ContainerCommand::Apply(args) => layer::apply::apply(args),
        ContainerCommand::Discard(args) => layer::discard::discard(args),
        ContainerCommand::Attach(args) => attach::attach(args),
        ContainerCommand::Commit(args) => super::image::commit::commit(args),
        ContainerCommand::Copy(args) => copy::copy(args),
        ContainerCommand::Create(args) => create::create(args),
        ContainerCommand::Diff(args) => layer::diff::diff(args),
        ContainerCommand::Exec(args) => exec::exec(args),
        ContainerCommand::Export(args) => super::image::commit::export(args),
        ContainerCommand::Fork(args) => layer::fork::fork(args),
        ContainerCommand::Rollback(args) => layer::rollback::rollback(args),
        ContainerCommand::Snapshot(args) => layer::snapshot::snapshot(args),
        ContainerCommand::Inspect(args) => inspect::container_inspect(args),
        ContainerCommand::Kill(args) => stop::kill(args),
        ContainerCommand::Logs(args) => logs::logs(args),
        ContainerCommand::List(args) => list::list(args),
        ContainerCommand::Pause(args) => pause::pause(args),
        ContainerCommand::Port(args) => port::port(args),
        ContainerCommand::Prune(args) => prune::prune(args),
        ContainerCommand::Rename(args) => rename::rename(args),
        ContainerCommand::Restart(args) => stop::restart(args),
        ContainerCommand::Remove(args) => remove::remove(args),
        ContainerCommand::Run(args) => super::run::run(args),
        ContainerCommand::Start(args) => start::start(args),
        ContainerCommand::Stats(args) => stats::stats(args),
        ContainerCommand::Stop(args) => stop::stop(args),
        ContainerCommand::Top(args) => top::top(args),
        ContainerCommand::Unpause(args) => pause::unpause(args),
        ContainerCommand::Update(args) => update::update(args),
        ContainerCommand::Wait(args) => wait::wait(args),
    }
}

/// Does `work` for each of `names`, prints what it gives if that is not empty, and goes on after a failure, which is told.
fn each(
    names: &[String],
    mut work: impl FnMut(&String) -> anyhow::Result<String>,
) -> anyhow::Result<ExitCode> {
    let mut failed = false;
    for name in names {
        match work(name) {
            Ok(text) if text.is_empty() => {}
            Ok(text) => drop(ui::print(format!("{text}\n"))?),
            Err(error) => {
                failed = true;
                ui::error(&error);
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
