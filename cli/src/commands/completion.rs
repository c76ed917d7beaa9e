//! `layerfs completion`.

use std::process::ExitCode;

use clap::{Args, Command, CommandFactory};
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
    // The help that clap makes by itself knows nothing of commands that are put together later (see `args::parse`).
    let mut whole = Cli::command().disable_help_subcommand(true);
    whole.build();
    let help = tree("help", &whole).about("Print this message or the help of the given subcommand(s)");
    let mut whole = shown(&whole).subcommand(help);
    clap_complete::generate(args.shell, &mut whole, "layerfs", &mut script);
    ui::print(script)?;
    Ok(ExitCode::SUCCESS)
}

/// `command` without what is hidden below it, which clap would offer.
fn shown(command: &Command) -> Command {
    // A name of a command lives as long as the program; there are some hundred.
    let name: &'static str = command.get_name().to_owned().leak();
    let aliases: Vec<&'static str> =
        command.get_visible_aliases().map(|alias| &*alias.to_owned().leak()).collect();
    Command::new(name)
        .about(command.get_about().cloned().unwrap_or_default())
        .visible_aliases(aliases)
        .version(env!("CARGO_PKG_VERSION"))
        // They are among the arguments already.
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .args(command.get_arguments().cloned())
        .subcommands(command.get_subcommands().filter(|below| !below.is_hide_set()).map(shown))
}

/// A command `name` with the names of what is below `command`.
fn tree(name: &str, command: &Command) -> Command {
    let below = command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help");
    let about = command.get_about().cloned().unwrap_or_default();
    // A name of a command lives as long as the program; there are some hundred.
    let name: &'static str = name.to_owned().leak();
    Command::new(name)
        .about(about)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .subcommands(below.map(|below| tree(below.get_name(), below)))
}
