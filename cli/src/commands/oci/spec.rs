//! `spec`: a document to begin with.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use layerfs_runner::config::default_spec::template;

/// Write a config.json to begin with
#[derive(Debug, Args)]
pub(crate) struct SpecArgs {
    /// The directory to write it to
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// For an ordinary user: a user namespace with the caller as root
    #[arg(long)]
    rootless: bool,
}

pub(super) fn spec(args: SpecArgs) -> anyhow::Result<ExitCode> {
    let path = args.bundle.join("config.json");
    let ids =
        args.rootless.then(|| (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
    let mut text = serde_json::to_vec_pretty(&template(ids))?;
    text.push(b'\n');
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(|| format!("make {} (an existing one is not overwritten)", path.display()))?;
    file.write_all(&text).with_context(|| format!("write {}", path.display()))?;
    Ok(ExitCode::SUCCESS)
}
