//! `layerfs discard`.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use layerfs_image::layer::{ChangeKind, forget};

use super::super::store::Containers;
use super::rest::stopped;
use super::{Subject, choose, is_chosen, path_in, snapshots};
use crate::exit::Usage;
use crate::ui::{self, prompt};

/// Forget changes of a stopped container: all, or those of some paths
///
/// What the container is on shows again there. Snapshots are not touched.
#[derive(Debug, Args)]
pub(crate) struct DiscardArgs {
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Only these files, and what is in these directories
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
}

pub(crate) fn discard(args: DiscardArgs) -> anyhow::Result<ExitCode> {
    let chosen = args.paths.iter().map(|path| path_in(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let containers = Containers::open()?;
    let rest = stopped(&containers, &args.container, "discard changes of")?;
    let subject = Subject::of(rest.container.clone())?;
    let all = subject.changes()?.0;
    let found = choose(all.clone(), &chosen)?;
    if !args.yes {
        if !prompt::is_possible() {
            bail!(Usage("nobody can be asked here: use --yes to discard the changes without asking".into()));
        }
        let mut text = Vec::new();
        for change in &found {
            text.extend_from_slice(format!("{} ", change.kind.letter()).as_bytes());
            text.extend_from_slice(&change.path);
            text.push(b'\n');
        }
        ui::print(text)?;
        if !matches!(prompt::line("Forget these changes? [y/N] ")?.to_ascii_lowercase().as_str(), "y" | "yes")
        {
            return Ok(ExitCode::FAILURE);
        }
    }
    if chosen.is_empty() || chosen.iter().any(Vec::is_empty) {
        snapshots::replace_upper(&rest.container, None)?;
        super::apply::begin_anew(&rest.container)?;
        return Ok(ExitCode::SUCCESS);
    }
    let moved = moved_from(&subject, &chosen)?;
    let aside = rest.container.directory.join(snapshots::REPLACED);
    for path in &chosen {
        forget(&subject.upper(), path, &aside)
            .with_context(|| format!("forget the changes of {}", String::from_utf8_lossy(path)))?;
    }
    for from in moved {
        let is_gone = all.iter().any(|change| change.path == from && change.kind == ChangeKind::Deleted);
        if is_gone && !is_chosen(&from, &chosen) {
            ui::note(format_args!(
                "what was renamed from {0} is not there any more; discard {0} to have it back",
                String::from_utf8_lossy(&from)
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Where what is renamed among the chosen is below.
fn moved_from(subject: &Subject, chosen: &[Vec<u8>]) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    for path in chosen {
        let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
        if let Some(object) = subject.stack.lookup(&names).context("look at the changes")?
            && let Some(from) = object.renamed_from(&subject.stack).context("look at the changes")?
        {
            found.push(from);
        }
    }
    Ok(found)
}
