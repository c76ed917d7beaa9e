//! The command `layerfs`: joins the union filesystem and the runner, and is the only part that prints.
//!
//! Decides which of its faces is wanted (the command, or a mount helper by name or by form), calls it, and turns
//! its result into an exit code. One thread until a command needs more: mounts fork.

mod args;
mod commands;
mod events;
mod exit;
mod helper;
mod images;
mod logging;
mod moment;
mod mount_process;
mod mountinfo;
mod mounts;
mod sys;
mod ui;

use std::ffi::OsString;
use std::process::ExitCode;

use args::{Cli, Command};
use commands::container;

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    // As docker has it.
    if let [_, word] = arguments.as_mut_slice()
        && *word == "-v"
    {
        *word = "--version".into();
    }
    if let Some(face) = helper::Face::of(&arguments) {
        return finish(helper::mount(face, &arguments), exit::MOUNT);
    }
    if let Some(code) = commands::oci::standalone(&arguments) {
        return code;
    }
    let own_failure = match arguments.get(1) {
        Some(command) if command == "run" || command == "create" || command == "exec" => exit::RUN,
        Some(command) if command == "oci" => commands::oci::own_failure(&arguments[1..]),
        _ => exit::USAGE,
    };
    let cli: Cli = match args::parse(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, on stdout and with success. A closed pipe is quiet.
            error.print().ok();
            return if error.use_stderr() { ExitCode::from(own_failure) } else { ExitCode::SUCCESS };
        }
    };
    match cli.command {
        Command::Mount(args) => finish(commands::mount::mount(args), exit::MOUNT),
        Command::Umount(args) => finish(commands::umount::umount(args), exit::MOUNT),
        Command::Index(args) => finish(commands::index::index(args), exit::FAILURE),
        Command::Run(args) => finish(commands::run::run(*args), exit::RUN),
        Command::Container(args) => finish(container::container(args), exit::FAILURE),
        Command::Create(args) => finish(container::create::create(*args), exit::FAILURE),
        Command::Start(args) => finish(container::start::start(args), exit::FAILURE),
        Command::Stop(args) => finish(container::stop::stop(args), exit::FAILURE),
        Command::Kill(args) => finish(container::stop::kill(args), exit::FAILURE),
        Command::Restart(args) => finish(container::stop::restart(args), exit::FAILURE),
        Command::Pause(args) => finish(container::pause::pause(args), exit::FAILURE),
        Command::Unpause(args) => finish(container::pause::unpause(args), exit::FAILURE),
        Command::Rm(args) => finish(container::remove::remove(args), exit::FAILURE),
        Command::Rename(args) => finish(container::rename::rename(args), exit::FAILURE),
        Command::Wait(args) => finish(container::wait::wait(args), exit::FAILURE),
        Command::Exec(args) => finish(container::exec::exec(args), exit::FAILURE),
        Command::Attach(args) => finish(container::attach::attach(args), exit::FAILURE),
        Command::Logs(args) => finish(container::logs::logs(args), exit::FAILURE),
        Command::Ps(args) => finish(container::list::list(args), exit::FAILURE),
        Command::Top(args) => finish(container::top::top(args), exit::FAILURE),
        Command::Stats(args) => finish(container::stats::stats(args), exit::FAILURE),
        Command::Port(args) => finish(container::port::port(args), exit::FAILURE),
        Command::Cp(args) => finish(container::copy::copy(args), exit::FAILURE),
        Command::Events(args) => finish(commands::events::events(args), exit::FAILURE),
        Command::Update(args) => finish(container::update::update(args), exit::FAILURE),
        Command::Monitor(args) => finish(container::monitor::monitor(args), exit::FAILURE),
        Command::Oci(args) => commands::oci::oci(*args),
        Command::Build(args) => finish(commands::build::build(*args), exit::FAILURE),
        Command::Builder(args) => finish(commands::builder::builder(args), exit::FAILURE),
        Command::Commit(args) => finish(commands::image::commit::commit(args), exit::FAILURE),
        Command::Apply(args) => finish(commands::container::layer::apply::apply(args), exit::FAILURE),
        Command::Discard(args) => finish(commands::container::layer::discard::discard(args), exit::FAILURE),
        Command::Snapshot(args) => {
            finish(commands::container::layer::snapshot::snapshot(args), exit::FAILURE)
        }
        Command::Rollback(args) => {
            finish(commands::container::layer::rollback::rollback(args), exit::FAILURE)
        }
        Command::Fork(args) => finish(commands::container::layer::fork::fork(args), exit::FAILURE),
        Command::Diff(args) => finish(commands::container::layer::diff::diff(args), exit::FAILURE),
        Command::Export(args) => finish(commands::image::commit::export(args), exit::FAILURE),
        Command::Images(args) => finish(commands::image::list::images(args), exit::FAILURE),
        Command::Image(args) => finish(commands::image::image(args), exit::FAILURE),
        Command::History(args) => finish(commands::image::history::history(args), exit::FAILURE),
        Command::Inspect(args) => finish(container::inspect::inspect(args), exit::FAILURE),
        Command::Tag(args) => finish(commands::image::tag::tag(args), exit::FAILURE),
        Command::Rmi(args) => finish(commands::image::remove::rmi(args), exit::FAILURE),
        Command::Pull(args) => finish(commands::registry::pull(args), exit::FAILURE),
        Command::Push(args) => finish(commands::registry::push(args), exit::FAILURE),
        Command::Login(args) => finish(commands::registry::login(args), exit::FAILURE),
        Command::Logout(args) => finish(commands::registry::logout(args), exit::FAILURE),
        Command::Search(args) => finish(commands::registry::search(args), exit::FAILURE),
        Command::Load(args) => finish(commands::image::load::load(args), exit::FAILURE),
        Command::Save(args) => finish(commands::image::save::save(args), exit::FAILURE),
        Command::Import(args) => finish(commands::image::load::import(args), exit::FAILURE),
        Command::Manifest(args) => finish(commands::image::manifest::manifest(args), exit::FAILURE),
        Command::Store(args) => finish(commands::image::store::store(args), exit::FAILURE),
        Command::Network(args) => finish(commands::network::network(args), exit::FAILURE),
        Command::Volume(args) => finish(commands::volume::volume(args), exit::FAILURE),
        Command::System(args) => finish(commands::image::system::system(args), exit::FAILURE),
        Command::Info(args) => finish(commands::image::system::info(args), exit::FAILURE),
        Command::Completion(args) => finish(commands::completion::completion(args), exit::FAILURE),
        Command::Man(args) => finish(commands::man::man(args), exit::FAILURE),
        Command::Version(args) => finish(commands::version::version(args), exit::FAILURE),
    }
}

fn finish(result: anyhow::Result<ExitCode>, failure: u8) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            ui::error(&error);
            ExitCode::from(exit::code_of(&error, failure))
        }
    }
}
