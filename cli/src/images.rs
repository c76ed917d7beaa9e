//! What the commands for images share: opening the store, tables and templates, sizes and times for people.

pub(crate) mod containers;
pub(crate) mod human;
mod indexer;
pub(crate) mod listing;
pub(crate) mod template;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use layerfs_image::store::{CheckReport, Image, Store};
use layerfs_image::{Error, reference::Reference};

use crate::commands::run::store_root;
use crate::exit::Hinted;

/// Where images are kept.
pub(crate) fn images_root() -> anyhow::Result<PathBuf> {
    Ok(store_root()?.join("images"))
}

/// Opens the image store. An ordinary user becomes root of a user namespace first, so that files can have owners;
/// where that cannot be, owners are kept beside the files.
pub(crate) fn open_store() -> anyhow::Result<Store> {
    let root = images_root()?;
    if !rustix::process::geteuid().is_root()
        && let Err(error) = layerfs_runner::host::enter_user_namespace()
    {
        tracing::info!(error = error.words(), "no user namespace: owners are kept in xattrs");
    }
    Store::open(&root, Arc::new(indexer::Indexer)).map_err(|error| match error {
        error @ Error::Io { .. } => anyhow::Error::new(error).context(Hinted {
            message: format!("open the image store in {}", root.display()),
            hint: "set LAYERFS_ROOT to a directory that you may write to".into(),
        }),
        error => error.into(),
    })
}

/// The image that `name` means, with docker's words where there is none.
pub(crate) fn find(store: &Store, name: &str) -> anyhow::Result<Image> {
    store.find(name).map_err(explained)
}

/// As [`find`], with all names that the image has.
pub(crate) fn find_whole(store: &Store, name: &str) -> anyhow::Result<Image> {
    store.find_whole(name).map_err(explained)
}

/// With what helps where the store is damaged.
fn explained(error: Error) -> anyhow::Error {
    let is_damage = matches!(error, Error::Read { .. } | Error::Json { .. } | Error::MissingBlob(_));
    if !is_damage {
        return error.into();
    }
    anyhow::Error::new(error).context(Hinted {
        message: "the image store is damaged".into(),
        hint: "see what is wrong: layerfs store check; mend what can be: layerfs store check --repair".into(),
    })
}

/// Reads a name.
pub(crate) fn parse_name(name: &str) -> anyhow::Result<Reference> {
    Ok(Reference::parse(name)?)
}

/// A name for an image, which has no digest.
pub(crate) fn parse_tag(name: &str) -> anyhow::Result<Reference> {
    let reference = parse_name(name)?;
    if reference.digest().is_some() {
        return Err(crate::exit::Usage(format!(
            "{name:?}: a name with a digest cannot be given to an image"
        ))
        .into());
    }
    Ok(reference)
}

/// Runs `work` with a session of the store.
pub(crate) fn with_session<T>(
    store: &Store,
    work: impl FnOnce(&layerfs_image::store::Session) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let session = store.session().context("begin work in the image store")?;
    work(&session)
}

/// Verifies the store, and with `repair` mends it. Images that containers are on stay.
pub(crate) fn check_store(store: &Store, repair: bool) -> anyhow::Result<CheckReport> {
    let report = if repair { store.repair(&containers::images_in_use()?) } else { store.check() };
    report.context("check the image store")
}
