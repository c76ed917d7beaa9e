//! `layerfs image prune`.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::list::Filters;
use crate::images::{self, containers, human};
use crate::ui;

/// Remove images without a name, and with --all those that no container uses
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Remove all images that no container uses
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Remove only some: until=TIME, label=NAME[=VALUE], label!=NAME, dangling=BOOL
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

pub(crate) fn prune(args: PruneArgs) -> anyhow::Result<ExitCode> {
    let store = images::open_store()?;
    let filters = Filters::parse(&args.filter, &store)?;
    let all = args.all || filters.dangling() == Some(false);
    if !args.force && !confirmed(all)? {
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = String::new();
    for image in store.images()?.0 {
        let dangling = image.named.names.is_empty();
        let admitted = (dangling || all) && filters_admit(&filters, &image, all);
        if !admitted || containers::user_of(&image.id)?.is_some() {
            continue;
        }
        for name in image.familiar_names().iter().chain(&image.familiar_digests()) {
            out.push_str(&format!("untagged: {name}\n"));
        }
        store.forget(&image.named.manifest)?;
        out.push_str(&format!("deleted: {}\n", image.id));
    }
    let collected = store.collect().context("remove what no image needs")?;
    for layer in &collected.layers {
        out.push_str(&format!("deleted: {layer}\n"));
    }
    if !out.is_empty() {
        out = format!("Deleted Images:\n{out}\n");
    }
    if collected.postponed {
        ui::note("the store is in use: what is not needed any more is removed by the next prune or rmi");
    }
    ui::print(format!("{out}Total reclaimed space: {}\n", human::size(collected.bytes)))?;
    Ok(ExitCode::SUCCESS)
}

/// `dangling=false` widens what is removed, it does not narrow it.
fn filters_admit(filters: &Filters, image: &layerfs_image::store::Image, all: bool) -> bool {
    filters.admit(image) || all && filters.dangling() == Some(false) && image.named.names.is_empty()
}

fn confirmed(all: bool) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(crate::exit::Usage("nobody to ask: use --force to remove without asking".into()).into());
    }
    let what = if all {
        "all images without at least one container associated to them"
    } else {
        "all dangling images"
    };
    ui::ask(&format!("WARNING! This will remove {what}.\nAre you sure you want to continue? [y/N] "));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
