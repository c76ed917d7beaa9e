//! Images: what a name or an id leads to, read whole.

use oci_spec::image::{ImageManifest, Os};
use serde_json::Value;

use super::{NamedImage, Session, Store};
use crate::config::{self, Config};
use crate::digest::{Algorithm, ChainId, DiffId, Digest};
use crate::error::Error;
use crate::media_type;
use crate::reference::Reference;

/// An image of the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// How index.json has it: the manifest that was asked for, with its names. Where [`Store::images`] and
    /// [`Store::find_whole`] give the image, with the names of all its manifests.
    pub named: NamedImage,
    /// Manifests of index.json that are this image (have its config), the one in `named` first. There are several where it was
    /// pushed, so that its layers were compressed, and pulled again.
    pub manifests: Vec<Digest>,
    /// Its id: the digest of its config.
    pub id: Digest,
    /// Digest of the manifest for this platform.
    pub manifest_digest: Digest,
    /// The manifest's bytes.
    pub manifest_bytes: Vec<u8>,
    /// The manifest.
    pub manifest: ImageManifest,
    /// The config's bytes.
    pub config_bytes: Vec<u8>,
    /// The config.
    pub config: Config,
}

impl Image {
    /// Adds the names of another manifest that is this image.
    fn add(&mut self, other: &NamedImage) {
        self.manifests.push(other.manifest);
        let named = &mut self.named;
        named.names.extend_from_slice(&other.names);
        named.repo_digests.extend_from_slice(&other.repo_digests);
        for list in [&mut named.names, &mut named.repo_digests] {
            list.sort_unstable();
            list.dedup();
        }
        named.tagged = named.tagged.take().max(other.tagged.clone());
    }

    /// Its layers, the lowest first.
    pub fn diff_ids(&self) -> &[DiffId] {
        &self.config.rootfs.diff_ids
    }

    /// Its layers for a mount, the topmost first, each once: below itself a layer shows nothing that it does not show
    /// above. (Steps that change nothing all have the same layer.)
    pub fn mounted_layers(&self) -> Vec<DiffId> {
        let mut layers: Vec<DiffId> = Vec::with_capacity(self.diff_ids().len());
        for diff_id in self.diff_ids().iter().rev() {
            if !layers.contains(diff_id) {
                layers.push(*diff_id);
            }
        }
        layers
    }

    /// The chain-id of all its layers; `None` without layers.
    pub fn chain_id(&self) -> Option<ChainId> {
        ChainId::chain(self.diff_ids()).last().copied()
    }

    /// Media type of its manifest.
    pub fn media_type(&self) -> &str {
        match self.manifest.media_type() {
            Some(media_type) => media_type.as_ref(),
            None if self.named.manifest == self.manifest_digest && !self.named.media_type.is_empty() => {
                &self.named.media_type
            }
            None => media_type::OCI_MANIFEST,
        }
    }

    /// When it was made, in seconds since 1970.
    pub fn created(&self) -> i64 {
        let created = self.config.created.as_deref().and_then(crate::time::parse);
        created.map_or(0, |(seconds, _)| seconds)
    }

    /// Its names as people write them.
    pub fn familiar_names(&self) -> Vec<String> {
        self.named.names.iter().map(|name| familiar(name)).collect()
    }

    /// What registries know it by, as people write it.
    pub fn familiar_digests(&self) -> Vec<String> {
        self.named.repo_digests.iter().map(|name| familiar(name)).collect()
    }
}

fn familiar(name: &str) -> String {
    Reference::parse(name).map_or_else(|_| name.to_owned(), |reference| reference.familiar())
}

impl Store {
    /// All images, each once, in the order of index.json. Those that cannot be read are left out, and told.
    ///
    /// # Errors
    /// When index.json cannot be read.
    pub fn images(&self) -> Result<(Vec<Image>, Vec<String>), Error> {
        let (mut images, mut warnings) = (Vec::<Image>::new(), Vec::new());
        let mut all = self.named()?;
        // A manifest that has a name speaks for its image.
        all.sort_by_key(|named| named.names.is_empty());
        for named in all {
            let manifest = named.manifest;
            match self.image(named) {
                Ok(image) => match images.iter_mut().find(|known| known.id == image.id) {
                    Some(known) => known.add(&image.named),
                    None => images.push(image),
                },
                Err(error) => warnings.push(format!("image {manifest}: {}", words(&error))),
            }
        }
        Ok((images, warnings))
    }

    /// As [`find`](Self::find), with all names of the image: for whoever lists or removes them.
    ///
    /// # Errors
    /// As `find`.
    pub fn find_whole(&self, name: &str) -> Result<Image, Error> {
        let mut image = self.find(name)?;
        for named in self.named()? {
            if named.manifest != image.named.manifest
                && self.id_of_manifest(&named.manifest).is_ok_and(|id| id == image.id)
            {
                image.add(&named);
            }
        }
        Ok(image)
    }

    /// Id of the image with this manifest, or list of manifests.
    ///
    /// # Errors
    /// When a document is missing, damaged, or makes no sense.
    pub(super) fn id_of_manifest(&self, manifest: &Digest) -> Result<Digest, Error> {
        config::digest_of(self.manifest_for_here(manifest)?.2.config())
    }

    /// Of a manifest or a list of them, the one for this machine: its digest, its bytes, and what they say.
    fn manifest_for_here(&self, manifest: &Digest) -> Result<(Digest, Vec<u8>, ImageManifest), Error> {
        let mut digest = *manifest;
        let mut bytes = self.read_blob(&digest)?;
        // Another program may have put a list of manifests here.
        if let Some(chosen) = choose_from_index(&bytes)? {
            digest = chosen;
            bytes = self.read_blob(&digest)?;
        }
        let manifest = config::parse_manifest(&bytes)?;
        Ok((digest, bytes, manifest))
    }

    /// Reads an image.
    ///
    /// # Errors
    /// When a document is missing, damaged, or makes no sense.
    pub fn image(&self, named: NamedImage) -> Result<Image, Error> {
        let (manifest_digest, bytes, manifest) = self.manifest_for_here(&named.manifest)?;
        let id = config::digest_of(manifest.config())?;
        let config_bytes = self.read_blob(&id)?;
        let config = Config::parse(&config_bytes)?;
        check_layers(&manifest, &config)?;
        let manifests = vec![named.manifest];
        Ok(Image {
            named,
            manifests,
            id,
            manifest_digest,
            manifest_bytes: bytes,
            manifest,
            config_bytes,
            config,
        })
    }

    /// The images of a list of manifests, each with its platform's entry there, as far as they are here. `None` for what is no list.
    ///
    /// # Errors
    /// When a document is missing, damaged, or makes no sense.
    pub fn listed(&self, named: &NamedImage) -> Result<Option<Vec<(Value, Image)>>, Error> {
        if !media_type::is_index(&named.media_type) {
            return Ok(None);
        }
        let bytes = self.read_blob(&named.manifest)?;
        let list: Value = serde_json::from_slice(&bytes).map_err(Error::json("the list of manifests"))?;
        let mut images = Vec::new();
        for entry in list["manifests"].as_array().into_iter().flatten() {
            let manifest = entry["digest"].as_str().and_then(|digest| Digest::parse(digest).ok());
            let media_type = entry["mediaType"].as_str().unwrap_or_default();
            let Some(manifest) = manifest.filter(|digest| self.blob_size(digest).is_some()) else { continue };
            // Signatures and the like are there for whoever reads them.
            if media_type::is_manifest(media_type) && entry["platform"]["os"] != "unknown" {
                let named = NamedImage { manifest, media_type: media_type.to_owned(), ..named.clone() };
                images.push((entry.clone(), self.image(named)?));
            }
        }
        Ok(Some(images))
    }

    /// The image that `name` means: a name, `NAME@DIGEST`, an id, or the beginning of one that no other image has.
    ///
    /// # Errors
    /// `NoSuchImage`, `Ambiguous`; those of reading it.
    pub fn find(&self, name: &str) -> Result<Image, Error> {
        let all = self.named()?;
        if let Ok(reference) = Reference::parse(name) {
            let full = reference.to_string();
            let found = match reference.digest() {
                None => all.iter().find(|image| image.names.contains(&full)),
                Some(digest) => {
                    let repo_digest = reference.with_digest(*digest).to_string();
                    let tagged =
                        reference.tag().map(|_| full.split('@').next().unwrap_or_default().to_owned());
                    all.iter().find(|image| {
                        image.repo_digests.contains(&repo_digest)
                            && tagged.as_ref().is_none_or(|tag| image.names.contains(tag))
                            || image.manifest == *digest
                                && image.names.iter().any(|name| {
                                    Reference::parse(name).is_ok_and(|n| n.name() == reference.name())
                                })
                    })
                }
            };
            if let Some(named) = found {
                return self.image(named.clone());
            }
        }
        self.find_by_id(name, all)
    }

    fn find_by_id(&self, name: &str, all: Vec<NamedImage>) -> Result<Image, Error> {
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        let is_hex = !prefix.is_empty() && prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hex {
            return Err(Error::NoSuchImage(shown(name)));
        }
        let mut found: Vec<(Digest, NamedImage)> = Vec::new();
        let mut unreadable = None;
        for named in all {
            match self.id_of_manifest(&named.manifest) {
                Ok(id) if !id.hex().starts_with(prefix) => {}
                Ok(id) => match found.iter_mut().find(|(known, _)| *known == id) {
                    // A manifest that has a name speaks for its image.
                    Some((_, known)) if known.names.is_empty() => *known = named,
                    Some(_) => {}
                    None => found.push((id, named)),
                },
                Err(error) => unreadable = Some(error),
            }
        }
        match found.len() {
            0 => match unreadable {
                // It may be the one.
                Some(error) if Digest::from_hex(Algorithm::Sha256, prefix).is_some() => Err(error),
                _ => Err(Error::NoSuchImage(shown(name))),
            },
            1 => self.image(found.swap_remove(0).1),
            _ => Err(Error::Ambiguous {
                prefix: name.to_owned(),
                candidates: found.iter().map(|(id, _)| id.short()).collect(),
            }),
        }
    }

    /// Sees to it that all layers of an image are unpacked, from their blobs where they are not.
    ///
    /// # Errors
    /// When a blob is missing or damaged.
    pub fn ensure_layers(&self, session: &Session, image: &Image) -> Result<(), Error> {
        let diff_ids = image.diff_ids();
        let chain = ChainId::chain(diff_ids);
        for (at, (diff_id, descriptor)) in diff_ids.iter().zip(image.manifest.layers()).enumerate() {
            let below = at.checked_sub(1).map(|at| chain[at]);
            let digest = config::digest_of(descriptor)?;
            if self.usable_layer(diff_id, below).is_some() {
                if self.blob_size(&digest).is_some() {
                    self.prove_expansion(diff_id, &digest, descriptor.size())?;
                }
                continue;
            }
            let input = super::LayerInput {
                reader: self.open_blob(&digest)?,
                blob: Some((digest, descriptor.size())),
                diff_id: Some(*diff_id),
                keep_blob: false,
            };
            let mut layer = self.ingest_layer(session, input)?;
            self.finish_layer(session, &mut layer, &diff_ids[..at])?;
        }
        Ok(())
    }

    /// Bytes of file data in all layers of an image, as far as they are unpacked.
    pub fn unpacked_size(&self, image: &Image) -> u64 {
        image.diff_ids().iter().filter_map(|diff_id| self.layer(diff_id)).map(|layer| layer.size).sum()
    }
}

fn shown(name: &str) -> String {
    Reference::parse(name).map_or_else(|_| name.to_owned(), |reference| reference.familiar())
}

fn check_layers(manifest: &ImageManifest, config: &Config) -> Result<(), Error> {
    let (layers, diff_ids) = (manifest.layers().len(), config.rootfs.diff_ids.len());
    if layers != diff_ids {
        return Err(Error::document(
            "the image",
            format!("its manifest has {layers} layers and its config {diff_ids}; is it an image at all?"),
        ));
    }
    Ok(())
}

/// Of a list of manifests the one for this machine; `None` when `bytes` is no list.
///
/// # Errors
/// When it is one and none fits.
pub(crate) fn choose_from_index(bytes: &[u8]) -> Result<Option<Digest>, Error> {
    let what = "the image's manifest";
    let value: Value = serde_json::from_slice(bytes).map_err(Error::json(what))?;
    let Some(manifests) = value.get("manifests").and_then(Value::as_array) else { return Ok(None) };
    if value.get("config").is_some() || value.get("layers").is_some() {
        return Err(Error::document(what, "it is a manifest and a list of manifests"));
    }
    let architecture = oci_spec::image::Arch::default().to_string();
    let os = Os::default().to_string();
    let digest = |entry: &Value| entry["digest"].as_str().and_then(|digest| Digest::parse(digest).ok());
    let fits = |entry: &&Value| {
        let platform = &entry["platform"];
        platform["os"] == os.as_str() && platform["architecture"] == architecture.as_str()
    };
    let chosen = manifests.iter().find(fits).or_else(|| manifests.first().filter(|_| manifests.len() == 1));
    match chosen.and_then(digest) {
        Some(digest) => Ok(Some(digest)),
        None => Err(Error::document(what, format!("it has nothing for {os}/{architecture}"))),
    }
}

fn words(error: &Error) -> String {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    words
}
