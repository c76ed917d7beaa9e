//! Committing: what a container changed becomes a layer, and with its image's layers an image.
//!
//! The layer's tree is a copy of the upper as it is, marks included: a metadata-only copy stays one, and its data is not
//! stored twice. The layer's digest is that of its whole tar, for which such data is read from the layers below.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::archive::publish;
use crate::config::{self, Config, History, RootFs};
use crate::digest::{ChainId, DiffId, Digest, DigestWriter};
use crate::error::Error;
use crate::layer::{Layer, Stack, TreeCopy, pack_changes};
use crate::media_type;
use crate::reference::Reference;
use crate::store::{Image, LayerRecord, Session, Store};

/// What is said about the new image.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// Its name.
    pub name: Option<Reference>,
    /// Who made it.
    pub author: Option<String>,
    /// Words about it.
    pub message: Option<String>,
    /// Instructions of a Dockerfile that change the config.
    pub changes: Vec<String>,
    /// What the container ran, for the history.
    pub command: Option<String>,
    /// Paths in the upper, with a slash in front, that are not the container's doing: empty files and directories that
    /// something was mounted on.
    pub omitted: BTreeSet<Vec<u8>>,
}

/// What the container is on.
#[derive(Debug, Clone)]
pub enum Base<'a> {
    /// An image of the store.
    Image(&'a Image),
    /// A root filesystem, which becomes the image's first layer.
    Directory(&'a Path),
}

/// Makes an image of what is in `upper` over `base`. The container should be at rest. Answers with the image's id.
///
/// # Errors
/// When the upper has a name that no layer can have, or changes while it is read; those of the disk.
pub fn commit(
    store: &Store,
    session: &Session,
    upper: &Path,
    base: &Base<'_>,
    options: &CommitOptions,
) -> Result<Digest, Error> {
    let now = crate::time::now();
    let (mut config, mut layers) = match base {
        Base::Image(image) => from_image(store, session, image)?,
        Base::Directory(_) => (
            Config {
                architecture: oci_spec::image::Arch::default().to_string(),
                os: "linux".into(),
                config: serde_json::json!({}),
                rootfs: RootFs { kind: "layers".into(), diff_ids: Vec::new() },
                ..Config::default()
            },
            Vec::new(),
        ),
    };
    for change in &options.changes {
        crate::changes::apply(&mut config.config, change)?;
    }
    let (diff_id, size) = match base {
        Base::Image(_) => changed_layer(store, session, upper, &config.rootfs.diff_ids, &options.omitted)?,
        Base::Directory(lower) => whole_layer(store, session, upper, lower)?,
    };
    config.rootfs.diff_ids.push(diff_id);
    layers.push((diff_id.0, size, media_type::OCI_LAYER.to_owned()));
    config.created = Some(now.clone());
    if let Some(author) = &options.author {
        config.author = Some(author.clone());
    }
    config.history.push(History {
        created: Some(now),
        created_by: options.command.clone(),
        author: options.author.clone(),
        comment: options.message.clone(),
        empty_layer: false,
    });
    let layers: Vec<(Digest, u64, &str)> =
        layers.iter().map(|(digest, size, media_type)| (*digest, *size, media_type.as_str())).collect();
    publish(store, session, &config, &layers, options.name.as_ref())
}

type Layers = Vec<(Digest, u64, String)>;

fn from_image(store: &Store, session: &Session, image: &Image) -> Result<(Config, Layers), Error> {
    store.ensure_layers(session, image)?;
    let layers = image.manifest.layers().iter().map(|layer| {
        // A manifest of ours names layers in OCI's words.
        let media_type = match layer.media_type().as_ref() {
            media_type::DOCKER_LAYER_GZIP => media_type::OCI_LAYER_GZIP,
            media_type::DOCKER_LAYER => media_type::OCI_LAYER,
            other => other,
        };
        Ok((config::digest_of(layer)?, layer.size(), media_type.to_owned()))
    });
    let layers = layers.collect::<Result<Layers, Error>>()?;
    Ok((image.config.clone(), layers))
}

/// The upper as a layer over `below`.
fn changed_layer(
    store: &Store,
    session: &Session,
    upper: &Path,
    below: &[DiffId],
    omitted: &BTreeSet<Vec<u8>>,
) -> Result<(DiffId, u64), Error> {
    let directory = session_directory(session)?;
    let tree = directory.join("tree");
    // Sockets are processes': no archive has them.
    let copier = TreeCopy { omitted: omitted.clone(), without_sockets: true };
    let copier = copier.copy(upper, &tree)?;
    let mut layers = vec![Layer::open(&tree).map_err(Error::io("open", &tree))?];
    for diff_id in below.iter().rev() {
        let path = store.layer_tree(diff_id);
        layers.push(Layer::open(&path).map_err(Error::io("open", &path))?);
    }
    let stack = Stack::new(layers);
    let blob = directory.join("blob");
    let (digest, size) = if copier.refers_below {
        // Its data is on this machine already: the tar is made where it is needed.
        let (_, digest, size) = pack_changes(&stack, DigestWriter::new(io::sink()))?.finish();
        (digest, size)
    } else {
        let file = File::create(&blob).map_err(Error::io("create", &blob))?;
        let (_, digest, size) = pack_changes(&stack, DigestWriter::new(file))?.finish();
        (digest, size)
    };
    let record = LayerRecord {
        diff_id: DiffId(digest),
        size: copier.bytes,
        entries: copier.entries,
        overrides: false,
        only_on: ChainId::chain(below).last().copied().filter(|_| copier.refers_below),
        packed_size: Some(size).filter(|_| copier.refers_below),
    };
    store.place_committed(session, &directory, &record)?;
    Ok((DiffId(digest), size))
}

/// All that upper and lower show together.
fn whole_layer(store: &Store, session: &Session, upper: &Path, lower: &Path) -> Result<(DiffId, u64), Error> {
    let stack = Stack::open(&[upper, lower]).map_err(Error::io("open", lower))?;
    let (mut reader, writer) = io::pipe().map_err(Error::io("make a pipe for", lower))?;
    std::thread::scope(|scope| {
        let packing = scope.spawn(move || crate::layer::pack_merged(&stack, writer, true).map(|_| ()));
        let input =
            crate::store::LayerInput { reader: &mut reader, blob: None, diff_id: None, keep_blob: true };
        let ingested = store.ingest_layer(session, input);
        if ingested.is_err() {
            // Nobody reads any more: the packer's next write fails.
            drop(reader);
        }
        match packing.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(ingested.err().unwrap_or(error.into())),
            Err(_) => return Err(Error::document("commit", "packing the tree ended early")),
        }
        let mut layer = ingested?;
        store.finish_layer(session, &mut layer, &[])?;
        Ok((layer.diff_id, layer.size))
    })
}

fn session_directory(session: &Session) -> Result<PathBuf, Error> {
    tempfile::Builder::new()
        .prefix("commit-")
        .tempdir_in(session.path())
        .map(tempfile::TempDir::keep)
        .map_err(Error::io("make a directory in", session.path()))
}
