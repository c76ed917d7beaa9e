//! `layerfs index`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use layerfs_unionfs::index::{self, LayerIndex};

use crate::exit::{self, Hinted};
use crate::mountinfo::printable;
use crate::ui;

/// Index a layer that never changes again, for mounts that need not read its directories
///
/// The index is one file beside the directory, used by every later mount of the directory as a lower layer while
/// it is valid. Index only what nobody changes: after a change build it again, or remove it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples
  layerfs index /srv/layers/base
  layerfs index --check /srv/layers/base && echo as indexed

Exit codes
  0  built, or as indexed   1  not built, or --check found the index missing, stale or damaged")]
pub(crate) struct IndexArgs {
    /// Where the index is, if not at DIR.layerfs-index
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Build nothing: compare the index with the whole directory, and print what differs
    #[arg(long)]
    check: bool,
    /// The layer
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(crate) fn index(args: IndexArgs) -> anyhow::Result<ExitCode> {
    let file = args.output.unwrap_or_else(|| index::default_index_path(&args.directory));
    if args.check { check(&args.directory, &file) } else { build(&args.directory, &file) }
}

fn build(directory: &Path, file: &Path) -> anyhow::Result<ExitCode> {
    let summary =
        index::build_index(directory, file).with_context(|| format!("index {directory:?} in {file:?}"))?;
    ui::print(format!(
        "{}: {} entries, {} directories, {} bytes\n",
        printable(&summary.path),
        summary.entries,
        summary.directories,
        summary.bytes
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn check(directory: &Path, file: &Path) -> anyhow::Result<ExitCode> {
    let again = || Hinted {
        message: format!("the index {file:?} does not serve {directory:?}"),
        hint: format!("build it again: layerfs index {}", directory.display()),
    };
    let tree = File::open(directory).with_context(|| format!("open {directory:?}"))?;
    let index = LayerIndex::open(file, &tree).with_context(again)?;
    index.verify().with_context(again)?;
    let differences = index.compare(&tree).with_context(|| format!("compare {directory:?} with {file:?}"))?;
    if differences.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let lines: String = differences.iter().map(|difference| format!("{difference}\n")).collect();
    ui::print(lines)?;
    ui::note(format_args!(
        "{} entries are not as indexed; build it again: layerfs index {}",
        differences.len(),
        directory.display()
    ));
    Ok(ExitCode::from(exit::FAILURE))
}
