//! `layerfs diff`.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use layerfs_image::layer::{Change, write_patch};
use serde_json::json;

use super::{Subject, choose, path_in};
use crate::images::listing;
use crate::ui;

/// Show what a container changed: A for added, C for changed, D for deleted
///
/// What was made only to mount something on (/etc/hosts, volumes, ...) is left out. The patch is git's form of the unified
/// diff, for `patch -p1` and `git apply`; lines that begin with # tell what such a patch cannot say: owners, xattrs,
/// directories, devices, and which files are binary.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct DiffArgs {
    /// `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT", conflicts_with = "patch")]
    format: Option<String>,
    /// Show how files differ, as a patch
    #[arg(short, long)]
    patch: bool,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Only these files, and what is in these directories
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
}

const AFTER_HELP: &str = "\
Examples
  What did it change, and how?
    layerfs diff agent
    layerfs diff --patch agent /etc /srv/app/config.toml
  The same changes in another tree:
    layerfs diff --patch agent /srv/app | (cd /somewhere/else && patch -p1)";

pub(crate) fn diff(args: DiffArgs) -> anyhow::Result<ExitCode> {
    let chosen = args.paths.iter().map(|path| path_in(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let subject = Subject::open(&args.container)?;
    if args.patch {
        subject.flush()?;
    }
    let found = choose(subject.changes()?.0, &chosen)?;
    if args.patch {
        return patch(&subject, &found);
    }
    if let Some(format) = &args.format {
        let rows: Vec<_> = found
            .iter()
            .map(|change| {
                let path = String::from_utf8_lossy(&change.path).into_owned();
                json!({ "Type": change.kind.letter().to_string(), "Path": path, "Kind": change.kind.number() })
            })
            .collect();
        listing::print(&rows, &[("CHANGE TYPE", "Type"), ("PATH", "Path")], &[], Some(format))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = Vec::new();
    for change in found {
        out.extend_from_slice(format!("{} ", change.kind.letter()).as_bytes());
        out.extend_from_slice(&ui::visible::path(&change.path));
        out.push(b'\n');
    }
    ui::print(out)?;
    Ok(ExitCode::SUCCESS)
}

fn patch(subject: &Subject, found: &[Change]) -> anyhow::Result<ExitCode> {
    let mut out = io::BufWriter::new(ui::Output);
    for change in found {
        match write_patch(&subject.stack, change, &mut out) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            Err(error) => {
                let path = String::from_utf8_lossy(&change.path).into_owned();
                return Err(error).with_context(|| format!("show the change of {path}"));
            }
        }
    }
    match out.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("write the patch"),
        _ => Ok(ExitCode::SUCCESS),
    }
}
