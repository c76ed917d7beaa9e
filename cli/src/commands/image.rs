//! `layerfs image`, and the commands for images that have a name of their own.

pub(crate) mod commit;
pub(crate) mod history;
pub(crate) mod inspect;
pub(crate) mod list;
pub(crate) mod load;
pub(crate) mod manifest;
pub(crate) mod prune;
pub(crate) mod remove;
pub(crate) mod save;
pub(crate) mod store;
pub(crate) mod system;
pub(crate) mod tag;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Manage images
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum ImageCommand {
    #[command(name = "ls", visible_alias = "list")]
    List(list::ImagesArgs),
    #[command(name = "rm", visible_alias = "remove")]
    Remove(remove::RmiArgs),
    Prune(prune::PruneArgs),
    Inspect(inspect::ImageInspectArgs),
    Build(Box<super::build::BuildArgs>),
    History(history::HistoryArgs),
    Tag(tag::TagArgs),
    Untag(tag::UntagArgs),
    Pull(super::registry::PullArgs),
    Push(super::registry::PushArgs),
    Load(load::LoadArgs),
    Save(save::SaveArgs),
    Import(load::ImportArgs),
    Exists(inspect::ExistsArgs),
}

pub(crate) fn image(args: ImageArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        ImageCommand::List(args) => list::images(args),
        ImageCommand::Remove(args) => remove::rmi(args),
        ImageCommand::Prune(args) => prune::prune(args),
        ImageCommand::Inspect(args) => inspect::image_inspect(args),
        ImageCommand::Build(args) => super::build::build(*args),
        ImageCommand::History(args) => history::history(args),
        ImageCommand::Tag(args) => tag::tag(args),
        ImageCommand::Untag(args) => tag::untag(args),
        ImageCommand::Pull(args) => super::registry::pull(args),
        ImageCommand::Push(args) => super::registry::push(args),
        ImageCommand::Load(args) => load::load(args),
        ImageCommand::Save(args) => save::save(args),
        ImageCommand::Import(args) => load::import(args),
        ImageCommand::Exists(args) => inspect::exists(args),
    }
}
