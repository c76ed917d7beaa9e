//! `layerfs completion`.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;
use crate::ui;

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(after_help = "Example\n  layerfs completion bash > /etc/bash_completion.d/layerfs")]
pub(crate) struct CompletionArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(crate) fn completion(args: CompletionArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "layerfs", &mut script);
    ui::print(script)?;
    Ok(ExitCode::SUCCESS)
}
