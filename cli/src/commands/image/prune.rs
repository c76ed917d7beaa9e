//! `layerfs image prune`.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use layerfs_image::store::Store;

use super::list::Filters;
use crate::images::{self, containers, human};
use crate::ui;

/// Remove images without a name, and with --all those that no container uses
///
/// Layers go with the last image that has them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples
  layerfs image prune                                images without a name
  layerfs image prune -af --filter until=240h        all unused ones that are older than ten days
  layerfs image prune -a --filter label!=keep        all unused ones without this label")]
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
    let what = match all {
        true => "all images without at least one container associated to them",
        false => "all dangling images",
    };
    if !args.force && !ui::prompt::confirm(&format!("WARNING! This will remove {what}.\n"))? {
        return Ok(ExitCode::SUCCESS);
    }
    remove_unused(&store, all, &args.filter)?.tell()?;
    Ok(ExitCode::SUCCESS)
}

/// What a prune removed.
#[derive(Debug)]
pub(super) struct Pruned {
    lines: String,
    bytes: u64,
    postponed: bool,
}

impl Pruned {
    /// In docker's words, with the space at the end.
    pub(super) fn tell(&self) -> anyhow::Result<()> {
        self.tell_what()?;
        ui::print(format!("Total reclaimed space: {}\n", human::size(self.bytes)))?;
        Ok(())
    }

    /// What was removed; answers with the bytes that are free now.
    pub(super) fn tell_what(&self) -> anyhow::Result<u64> {
        if self.postponed {
            ui::note("the store is in use: what is not needed any more is removed by the next prune or rmi");
        }
        let list = match self.lines.as_str() {
            "" => String::new(),
            lines => format!("Deleted Images:\n{lines}\n"),
        };
        ui::print(list)?;
        Ok(self.bytes)
    }
}

/// Removes images that no container uses and that the filters admit: those without a name, or with `all` any.
pub(super) fn remove_unused(store: &Store, all: bool, filters: &[String]) -> anyhow::Result<Pruned> {
    let filters = Filters::parse(filters, store)?;
    let all = all || filters.dangling() == Some(false);
    let mut lines = String::new();
    for image in store.images()?.0 {
        let dangling = image.named.names.is_empty();
        let admitted = (dangling || all) && filters_admit(&filters, &image, all);
        if !admitted || containers::user_of(&image.id)?.is_some() {
            continue;
        }
        for name in image.familiar_names().iter().chain(&image.familiar_digests()) {
            lines.push_str(&format!("untagged: {name}\n"));
            crate::events::image("untag", &image.id.to_string(), name);
        }
        store.forget_all(&image.manifests)?;
        crate::events::image("delete", &image.id.to_string(), &image.id.to_string());
        lines.push_str(&format!("deleted: {}\n", image.id));
    }
    store.forget_superseded()?;
    let collected = store.collect().context("remove what no image needs")?;
    for layer in &collected.layers {
        lines.push_str(&format!("deleted: {layer}\n"));
    }
    crate::events::prune("image", collected.bytes);
    Ok(Pruned { lines, bytes: collected.bytes, postponed: collected.postponed })
}

/// `dangling=false` widens what is removed, it does not narrow it.
fn filters_admit(filters: &Filters, image: &layerfs_image::store::Image, all: bool) -> bool {
    filters.admit(image) || all && filters.dangling() == Some(false) && image.named.names.is_empty()
}
