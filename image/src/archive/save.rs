//! Saving: an archive that docker (old and new), podman, buildah and skopeo load.
//!
//! The docker-archive is written in the form that docker has from 25 on: an OCI layout with `manifest.json` beside
//! it. Layers are the blobs of the store as they are. The bytes of the archive depend on the images and their names
//! alone.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Read, Write};

use serde_json::{Value, json};

use crate::config;
use crate::digest::{Digest, DigestWriter};
use crate::error::Error;
use crate::layer::pack_changes;
use crate::media_type;
use crate::reference::Reference;
use crate::store::{Image, Store};
use crate::tar::{Entry, EntryKind, TarWriter};

/// Which archive is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveFormat {
    /// docker's, an OCI layout too.
    Docker,
    /// An OCI layout alone.
    Oci,
}

const BUFFER: usize = 256 * 1024;

enum Content<'a> {
    Bytes(&'a [u8]),
    /// Of which image, which of its layers, and its size.
    Layer(&'a Image, usize, u64),
}

/// Writes `images`, each with the names that are to be saved with it.
///
/// # Errors
/// When a blob is missing or damaged; those of writing.
pub fn save<W: Write>(
    store: &Store,
    images: &[(Image, Vec<Reference>)],
    format: SaveFormat,
    out: W,
) -> Result<W, Error> {
    let mut images: Vec<&(Image, Vec<Reference>)> = images.iter().collect();
    images.sort_by_key(|(image, _)| image.id);
    let mut writer = TarWriter::new(BufWriter::with_capacity(BUFFER, out));
    let mut blobs: BTreeMap<Digest, Content<'_>> = BTreeMap::new();
    for (image, _) in images.iter().copied() {
        for (at, layer) in image.manifest.layers().iter().enumerate() {
            blobs.insert(config::digest_of(layer)?, Content::Layer(image, at, layer.size()));
        }
        blobs.insert(image.manifest_digest, Content::Bytes(&image.manifest_bytes));
        blobs.insert(image.id, Content::Bytes(&image.config_bytes));
    }
    directory(&mut writer, "blobs/")?;
    let mut last = "";
    for (digest, content) in &blobs {
        let algorithm = digest.algorithm().name();
        if algorithm != last {
            directory(&mut writer, &format!("blobs/{algorithm}/"))?;
            last = algorithm;
        }
        match content {
            Content::Bytes(bytes) => writer.file(&blob_path(digest), bytes).map_err(failed)?,
            Content::Layer(image, at, size) => {
                let mut entry = Entry::new(blob_path(digest), EntryKind::File);
                entry.mode = 0o644;
                entry.size = *size;
                writer.header(&entry).map_err(failed)?;
                copy_layer(store, image, *at, writer.out())?;
                writer.pad(*size).map_err(failed)?;
            }
        }
    }
    let (mut index, mut manifest) = (Vec::new(), Vec::new());
    for (image, names) in images.iter().copied() {
        index.extend(index_entries(image, names));
        let layers = image.manifest.layers().iter().map(config::digest_of).collect::<Result<Vec<_>, _>>()?;
        manifest.push(json!({
            "Config": blob_path(&image.id),
            "RepoTags": names.iter().map(Reference::familiar).collect::<Vec<_>>(),
            "Layers": layers.iter().map(blob_path).collect::<Vec<_>>(),
        }));
    }
    let index = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": index });
    document(&mut writer, "index.json", &index)?;
    if format == SaveFormat::Docker {
        document(&mut writer, "manifest.json", &Value::Array(manifest))?;
    }
    document(&mut writer, "oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }))?;
    let out = writer.finish().map_err(failed)?;
    out.into_inner().map_err(|error| failed(error.into_error()))
}

fn index_entries(image: &Image, names: &[Reference]) -> Vec<Value> {
    let descriptor = json!({
        "mediaType": image.media_type(),
        "digest": image.manifest_digest,
        "size": image.manifest_bytes.len(),
        "platform": { "architecture": image.config.architecture, "os": image.config.os },
    });
    if names.is_empty() {
        return vec![descriptor];
    }
    let named = |name: &Reference| {
        let mut descriptor = descriptor.clone();
        descriptor["annotations"] = json!({
            "io.containerd.image.name": name.to_string(),
            "org.opencontainers.image.ref.name": name.to_string(),
        });
        descriptor
    };
    names.iter().map(named).collect()
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

fn failed(source: io::Error) -> Error {
    Error::Write { what: "the archive", source }
}

fn directory<W: Write>(writer: &mut TarWriter<W>, path: &str) -> Result<(), Error> {
    let mut entry = Entry::new(path, EntryKind::Directory);
    entry.mode = 0o755;
    writer.header(&entry).map_err(failed)
}

fn document<W: Write>(writer: &mut TarWriter<W>, path: &str, value: &Value) -> Result<(), Error> {
    let text = serde_json::to_vec(value).map_err(Error::json(path))?;
    writer.file(path, &text).map_err(failed)
}

/// Writes the bytes of an image's layer: its blob, or where the store has none the tree packed anew. Either is checked
/// against its digest while it is written.
///
/// # Errors
/// `WrongDigest` when they are not what they should be: what was written then is of no use.
pub fn copy_layer<W: Write>(store: &Store, image: &Image, at: usize, out: W) -> Result<W, Error> {
    let descriptor = image.manifest.layers().get(at);
    let descriptor = descriptor.ok_or_else(|| Error::document("the image", "too few layers"))?;
    let digest = config::digest_of(descriptor)?;
    let mut writer = DigestWriter::with_algorithm(out, digest.algorithm());
    if store.blob_size(&digest).is_some() {
        let mut blob = store.open_blob(&digest)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let len = blob.read(&mut buffer).map_err(Error::read(format!("blob {digest}")))?;
            if len == 0 {
                break;
            }
            writer.write_all(&buffer[..len]).map_err(failed)?;
        }
    } else {
        let diff_ids = image.diff_ids().get(..=at).unwrap_or_default();
        if diff_ids
            .last()
            .and_then(|diff_id| store.layer(diff_id))
            .is_none_or(|layer| layer.packed_size.is_none())
        {
            return Err(Error::MissingBlob(digest));
        }
        writer = pack_changes(&store.stack(diff_ids)?, writer)?;
    }
    let (out, found, size) = writer.finish();
    if found != digest || size != descriptor.size() {
        return Err(Error::wrong_digest(format!("layer {digest}"), digest, found));
    }
    Ok(out)
}
