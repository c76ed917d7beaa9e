//! `layerfs man`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_mangen::Man;

use crate::args::Cli;
use crate::ui;

/// Print the manual page, or write one for each command
#[derive(Debug, Args)]
#[command(after_help = "Examples\n  layerfs man | man -l -\n  layerfs man /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Write layerfs.1, layerfs-mount.1 and so on into DIR, which is created when missing
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

pub(crate) fn man(args: ManArgs) -> anyhow::Result<ExitCode> {
    match args.directory {
        None => {
            ui::print(page(Cli::command())?)?;
        }
        Some(directory) => write_pages(Cli::command(), &directory)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn write_pages(command: clap::Command, directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("create {directory:?}"))?;
    // Pages of the help command would say the same once more.
    clap_mangen::generate_to(command.disable_help_subcommand(true), directory)
        .with_context(|| format!("write manual pages into {directory:?}"))
}

fn page(command: clap::Command) -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command).render(&mut page).context("render the manual page")?;
    Ok(page)
}
