//! Importing: the archive of a root filesystem becomes an image of one layer.

use std::io::Read;

use serde_json::{Value, json};

use crate::config::{self, Config, History, RootFs};
use crate::digest::Digest;
use crate::error::Error;
use crate::media_type;
use crate::reference::Reference;
use crate::store::{LayerInput, Session, Store};

/// What is said about the image.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Its name.
    pub name: Option<Reference>,
    /// Words about it.
    pub message: Option<String>,
    /// Instructions of a Dockerfile that change the config.
    pub changes: Vec<String>,
    /// Where the archive came from, for the history.
    pub from: String,
    /// Platform, if not this machine's: `OS/ARCHITECTURE[/VARIANT]`.
    pub platform: Option<String>,
}

/// Makes an image of the archive that `reader` gives, compressed or not. Answers with its id.
///
/// # Errors
/// When the archive is refused or a change is not understood; those of the disk.
pub fn import<R: Read>(
    store: &Store,
    session: &Session,
    reader: R,
    options: &ImportOptions,
) -> Result<Digest, Error> {
    let mut config = Config {
        created: Some(crate::time::now()),
        architecture: oci_spec::image::Arch::default().to_string(),
        os: "linux".into(),
        config: json!({}),
        rootfs: RootFs { kind: "layers".into(), diff_ids: Vec::new() },
        ..Config::default()
    };
    if let Some(platform) = &options.platform {
        let mut parts = platform.split('/');
        config.os = parts.next().unwrap_or_default().to_owned();
        config.architecture = parts.next().map_or(config.architecture, str::to_owned);
        config.variant = parts.next().map(str::to_owned);
    }
    for change in &options.changes {
        crate::changes::apply(&mut config.config, change)?;
    }
    let input = LayerInput { reader, blob: None, diff_id: None, keep_blob: true };
    let mut layer = store.ingest_layer(session, input)?;
    store.finish_layer(session, &mut layer, &[])?;
    config.rootfs.diff_ids.push(layer.diff_id);
    config.history.push(History {
        created: config.created.clone(),
        comment: Some(options.message.clone().unwrap_or_else(|| format!("Imported from {}", options.from))),
        ..History::default()
    });
    let media_type = layer.compression.layer_media_type().unwrap_or(media_type::OCI_LAYER);
    publish(store, session, &config, &[(layer.blob, layer.size, media_type)], options.name.as_ref())
}

/// Stores config and manifest, and gives the image its name. Answers with its id.
pub(crate) fn publish(
    store: &Store,
    session: &Session,
    config: &Config,
    layers: &[(Digest, u64, &str)],
    name: Option<&Reference>,
) -> Result<Digest, Error> {
    let mut value = serde_json::to_value(config).map_err(Error::json("the new config"))?;
    if let Some(object) = value.as_object_mut() {
        object.retain(|_, value| *value != Value::Null);
    }
    let text = serde_json::to_vec(&value).map_err(Error::json("the new config"))?;
    let id = store.add_blob(session, &text)?;
    let manifest = config::new_manifest((id, text.len() as u64), layers)?;
    let digest = store.add_blob(session, &manifest)?;
    let names: Vec<Reference> = name.into_iter().cloned().collect();
    store.publish(session, (digest, manifest.len() as u64, media_type::OCI_MANIFEST), &names, None)?;
    Ok(id)
}
