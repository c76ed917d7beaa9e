//! `layerfs tag` and `layerfs image untag`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use crate::images;

/// Give an image another name
#[derive(Debug, Args)]
#[command(after_help = "\
Example
  layerfs tag mine:1 localhost:5000/team/mine:1")]
pub(crate) struct TagArgs {
    /// Name or id
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The new names; one that another image has is taken from it
    #[arg(value_name = "NAME[:TAG]", required = true)]
    names: Vec<String>,
}

/// Take names from images; an image without names stays
#[derive(Debug, Args)]
pub(crate) struct UntagArgs {
    /// Name or id of the image
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The names [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

pub(crate) fn tag(args: TagArgs) -> anyhow::Result<ExitCode> {
    let store = images::open_store()?;
    let names = args.names.iter().map(|name| images::parse_tag(name)).collect::<anyhow::Result<Vec<_>>>()?;
    images::with_session(&store, |session| {
        let image = images::find(&store, &args.image)?;
        let size = std::fs::metadata(store.blob_path(&image.named.manifest))?.len();
        let media_type =
            if image.named.media_type.is_empty() { image.media_type() } else { &image.named.media_type };
        store.publish(session, (image.named.manifest, size, media_type), &names, None)?;
        for name in &names {
            crate::events::image("tag", &image.id.to_string(), &name.familiar());
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn untag(args: UntagArgs) -> anyhow::Result<ExitCode> {
    let store = images::open_store()?;
    let image = images::find_whole(&store, &args.image)?;
    let mut names = Vec::new();
    for name in &args.names {
        names.push(images::parse_tag(name)?.to_string());
    }
    if names.is_empty() {
        names.clone_from(&image.named.names);
    }
    for name in &names {
        if !image.named.names.contains(name) {
            bail!("{name}: tag not known of image {}", image.id.short());
        }
        store.untag(name)?;
    }
    Ok(ExitCode::SUCCESS)
}
