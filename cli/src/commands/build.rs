//! `layerfs build`: images from Dockerfiles. The language and what copying takes is `layerfs-build`'s; here are options,
//! the execution of steps, what is printed and where the result goes.

pub(crate) mod cache_mount;
mod copy;
mod executor;
mod input;
mod options;
mod output;
mod progress;
mod remote;
mod run;
mod ssh;
pub(crate) mod step;

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use layerfs_build::error;
use layerfs_runner::attach::Signals;

pub(crate) use self::options::BuildArgs;
use crate::exit::{self, Hinted};
use crate::{images, ui};

/// Where builds keep what is no image: relative to the store's root.
pub(crate) const DIRECTORY: &str = "build";

/// An error that is shown with its place in the Dockerfile, in many lines.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Shown(String);

/// A message that has its place, and a hint where there is one.
fn shown(message: String, hint: Option<String>) -> anyhow::Error {
    let error = anyhow::Error::from(Shown(message.clone()));
    match hint {
        // The same words are told once.
        Some(hint) => error.context(Hinted { message, hint }),
        None => error,
    }
}

/// An error of the language with its lines.
pub(super) fn explained(error: &layerfs_build::LanguageError, file: &str, text: &str) -> anyhow::Error {
    shown(error.shown(file, text), error.hint.clone())
}

/// A failed step with the lines of its instruction.
pub(super) fn at_step(cause: &anyhow::Error, file: &str, text: &str, lines: (usize, usize)) -> anyhow::Error {
    let message = error::shown(file, text, lines, None, &ui::chain(cause));
    shown(message, cause.downcast_ref::<Hinted>().map(|hinted| hinted.hint.clone()))
}

/// Makes the directory that builds keep their things in, and closes one that an earlier version left open under the
/// caller's umask: who can write into it chooses what the cache gives.
fn make_private(root: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root)?;
    let mode = std::fs::metadata(root)?.permissions().mode();
    if mode & 0o077 != 0 {
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

pub(crate) fn build(args: BuildArgs) -> anyhow::Result<ExitCode> {
    let request = options::Request::new(args)?;
    let store = images::open_store()?;
    let root = crate::commands::run::store_root()?.join(DIRECTORY);
    make_private(&root).with_context(|| format!("make {}", root.display()))?;
    super::container::step::sweep(&root.join("steps"))?;
    let session = store.session().context("begin work in the image store")?;
    let input = input::Input::open(&request, &session)?;
    // Not before: a signal ends the reading of a pipe or a download, whoever holds it up. Before there are threads.
    let signals = Signals::take().context("take signals over")?;
    // Before anything is shown: a key may have a passphrase, which is asked for at the terminal.
    let agents = ssh::Agents::start(&request.ssh)?;
    let progress = progress::Progress::new(request.progress);
    if request.only_check {
        if !executor::check(&request, &input, &progress)? {
            return Ok(ExitCode::from(exit::FAILURE));
        }
        ui::line("Check complete, no warnings found.");
        return Ok(ExitCode::SUCCESS);
    }
    let mut built = Vec::new();
    for platform in &request.platforms {
        let request = request.for_platform(platform);
        built.push(executor::execute(
            &request, &input, &store, &session, &progress, &signals, &root, &agents,
        )?);
    }
    remote::export(&request.cache_to, &built, &store, &session, &progress)?;
    output::deliver(&request, &store, &session, built, &progress)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_the_directory_of_builds_is_the_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("build");
        let mode = || std::fs::metadata(&root).unwrap().permissions().mode() & 0o777;
        make_private(&root).unwrap();
        assert_eq!(mode(), 0o700);
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o777)).unwrap();
        make_private(&root).unwrap();
        assert_eq!(mode(), 0o700);
    }
}
