//! index.json: which names mean which manifests.
//!
//! Each descriptor has at most one name (`org.opencontainers.image.ref.name`, the full name, by which
//! skopeo and others find it). An image with several names has several descriptors; one without any has one. Descriptors
//! that other programs put there are kept as they are.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Map, Value, json};

use super::lock::NamesLock;
use super::{Barrier, Session, Store};
use crate::digest::Digest;
use crate::error::Error;
use crate::media_type;
use crate::reference::Reference;

/// Annotation with the name.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation with the digests that registries know the image by: `REPOSITORY@DIGEST`, separated by commas.
const REPO_DIGESTS: &str = "org.layerfs.image.repo-digests";
/// Annotation with the time of tagging, RFC 3339.
const TAGGED: &str = "org.layerfs.image.tagged";

/// An image as index.json has it: one manifest, all its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedImage {
    /// Digest of the manifest (or of a list of manifests that another program put here).
    pub manifest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Full names, sorted.
    pub names: Vec<String>,
    /// `REPOSITORY@DIGEST`, sorted.
    pub repo_digests: Vec<String>,
    /// When it was last given a name, RFC 3339.
    pub tagged: Option<String>,
}

pub(super) fn empty_index() -> Result<Value, Error> {
    Ok(json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [] }))
}

fn annotation<'a>(descriptor: &'a Value, name: &str) -> Option<&'a str> {
    descriptor.get("annotations")?.get(name)?.as_str()
}

/// A descriptor's name, in full: other programs write short ones.
fn full_name(descriptor: &Value) -> Option<String> {
    let name = annotation(descriptor, REF_NAME)?;
    Some(full(name))
}

fn full(name: &str) -> String {
    Reference::parse(name).map_or_else(|_| name.to_owned(), |reference| reference.to_string())
}

fn digest_of(descriptor: &Value) -> Option<Digest> {
    Digest::parse(descriptor.get("digest")?.as_str()?).ok()
}

fn set_annotation(descriptor: &mut Value, name: &str, value: Option<String>) {
    let Some(object) = descriptor.as_object_mut() else { return };
    let annotations = object.entry("annotations").or_insert_with(|| Value::Object(Map::new()));
    let Some(annotations) = annotations.as_object_mut() else { return };
    match value {
        Some(value) => annotations.insert(name.to_owned(), Value::String(value)),
        None => annotations.remove(name),
    };
    if annotations.is_empty() {
        object.remove("annotations");
    }
}

impl Store {
    pub(super) fn read_index(&self) -> Result<Value, Error> {
        let path = self.index_path();
        let text = fs::read(&path).map_err(Error::io("read", &path))?;
        let index: Value = serde_json::from_slice(&text).map_err(Error::json(path.display().to_string()))?;
        if !index.get("manifests").is_some_and(Value::is_array) {
            return Err(Error::document(path.display().to_string(), "it has no list of manifests"));
        }
        Ok(index)
    }

    pub(super) fn write_index(
        &self,
        index: &Value,
        barrier: Barrier,
        _lock: &NamesLock,
    ) -> Result<(), Error> {
        let text = serde_json::to_vec(index).map_err(Error::json("index.json"))?;
        self.write_file(&self.index_path(), &text, barrier)
    }

    /// Changes the descriptors under the lock. Written only when something changed.
    pub(super) fn change_index<T>(
        &self,
        change: impl FnOnce(&mut Vec<Value>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.change_index_after(Barrier::File, change)
    }

    /// As [`change_index`](Self::change_index), with what must be on disk before.
    fn change_index_after<T>(
        &self,
        barrier: Barrier,
        change: impl FnOnce(&mut Vec<Value>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let lock = self.lock_names()?;
        let mut index = self.read_index()?;
        let before = index.clone();
        let manifests = index.get_mut("manifests").and_then(Value::as_array_mut);
        let result = change(manifests.ok_or_else(|| Error::document("index.json", "no list of manifests"))?)?;
        if index != before {
            self.write_index(&index, barrier, &lock)?;
        }
        Ok(result)
    }

    /// All images with their names, in the order of index.json.
    ///
    /// # Errors
    /// When index.json cannot be read.
    pub fn named(&self) -> Result<Vec<NamedImage>, Error> {
        let index = self.read_index()?;
        let mut images: Vec<NamedImage> = Vec::new();
        for descriptor in index["manifests"].as_array().into_iter().flatten() {
            let Some(manifest) = digest_of(descriptor) else { continue };
            let known = images.iter().position(|image| image.manifest == manifest);
            let at = known.unwrap_or_else(|| {
                images.push(NamedImage {
                    manifest,
                    media_type: descriptor["mediaType"].as_str().unwrap_or_default().to_owned(),
                    names: Vec::new(),
                    repo_digests: Vec::new(),
                    tagged: None,
                });
                images.len() - 1
            });
            let image = &mut images[at];
            image.names.extend(full_name(descriptor));
            let digests = annotation(descriptor, REPO_DIGESTS).unwrap_or_default();
            image.repo_digests.extend(digests.split(',').filter(|d| !d.is_empty()).map(str::to_owned));
            image.tagged = image.tagged.take().max(annotation(descriptor, TAGGED).map(str::to_owned));
        }
        for image in &mut images {
            image.names.sort_unstable();
            image.names.dedup();
            image.repo_digests.sort_unstable();
            image.repo_digests.dedup();
        }
        Ok(images)
    }

    /// Publishes an image whose manifest and all it leads to are in the store: from now on `names` mean it. Without
    /// names it is kept under its id.
    ///
    /// # Errors
    /// When index.json cannot be replaced.
    pub fn publish(
        &self,
        session: &Session,
        (manifest, size, media_type): (Digest, u64, &str),
        names: &[Reference],
        repo_digest: Option<&str>,
    ) -> Result<(), Error> {
        let unsynced = session.unsynced.load(std::sync::atomic::Ordering::Relaxed);
        let barrier = if unsynced { Barrier::Filesystem } else { Barrier::File };
        self.change_index_after(barrier, |descriptors| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            take_names(descriptors, &names, Some(&manifest));
            let mut repo_digests: BTreeSet<String> = repo_digest.iter().map(|d| (*d).to_owned()).collect();
            for known in descriptors.iter().filter(|d| digest_of(d) == Some(manifest)) {
                let digests = annotation(known, REPO_DIGESTS).unwrap_or_default();
                repo_digests.extend(digests.split(',').filter(|d| !d.is_empty()).map(str::to_owned));
            }
            let has = |descriptors: &[Value], name: &String| {
                descriptors
                    .iter()
                    .any(|d| digest_of(d) == Some(manifest) && full_name(d).as_ref() == Some(name))
            };
            let new = json!({ "mediaType": media_type, "digest": manifest, "size": size });
            for name in &names {
                if !has(descriptors, name) {
                    let mut descriptor = new.clone();
                    set_annotation(&mut descriptor, REF_NAME, Some(name.clone()));
                    set_annotation(&mut descriptor, TAGGED, Some(crate::time::now()));
                    descriptors.push(descriptor);
                }
            }
            let of_this = |d: &&Value| digest_of(d) == Some(manifest);
            match descriptors.iter().filter(of_this).count() {
                0 => descriptors.push(new),
                // A name replaces the nameless entry.
                _ if descriptors.iter().filter(of_this).any(|d| annotation(d, REF_NAME).is_some()) => {
                    descriptors
                        .retain(|d| digest_of(d) != Some(manifest) || annotation(d, REF_NAME).is_some())
                }
                _ => {}
            }
            let joined = repo_digests.into_iter().collect::<Vec<_>>().join(",");
            for descriptor in descriptors.iter_mut().filter(|d| digest_of(d) == Some(manifest)) {
                set_annotation(
                    descriptor,
                    REPO_DIGESTS,
                    Some(joined.clone()).filter(|text| !text.is_empty()),
                );
            }
            self.drop_superseded(descriptors, Some(&manifest));
            Ok(())
        })
    }

    /// Takes a name away. An image that loses its last name stays without one; false when nothing has the name.
    ///
    /// # Errors
    /// When index.json cannot be replaced.
    pub fn untag(&self, name: &str) -> Result<bool, Error> {
        self.change_index(|descriptors| {
            let name = full(name);
            let has = descriptors.iter().any(|d| full_name(d).as_ref() == Some(&name));
            take_names(descriptors, &[name], None);
            self.drop_superseded(descriptors, None);
            Ok(has)
        })
    }

    /// Takes all names and digests from an image with these manifests, and keeps it under its id, by the first of them: something
    /// is on it still. Its content stays.
    ///
    /// # Errors
    /// When index.json cannot be replaced.
    pub fn untag_all(&self, manifests: &[Digest]) -> Result<(), Error> {
        self.change_index(|descriptors| {
            let mut kept = false;
            descriptors.retain_mut(|descriptor| {
                let Some(at) = digest_of(descriptor).and_then(|d| manifests.iter().position(|m| *m == d))
                else {
                    return true;
                };
                let keep = at == 0 && !kept;
                kept |= keep;
                for name in [REF_NAME, REPO_DIGESTS, TAGGED] {
                    set_annotation(descriptor, name, None);
                }
                keep
            });
            Ok(())
        })
    }

    /// Takes out manifests without a name whose image has another one: such are left when an image that was pushed is pulled,
    /// and takes its name along to the registry's manifest. (Their config, and so the layers, are the same.)
    ///
    /// # Errors
    /// When index.json cannot be replaced.
    pub fn forget_superseded(&self) -> Result<(), Error> {
        self.change_index(|descriptors| {
            self.drop_superseded(descriptors, None);
            Ok(())
        })
    }

    /// With a `keeper` only those that are its image.
    fn drop_superseded(&self, descriptors: &mut Vec<Value>, keeper: Option<&Digest>) {
        let is_bare = |d: &Value| {
            annotation(d, REF_NAME).is_none()
                && annotation(d, REPO_DIGESTS).is_none()
                && digest_of(d).as_ref() != keeper
        };
        if !descriptors.iter().any(is_bare) {
            return;
        }
        if let Some(keeper) = keeper {
            let Ok(id) = self.id_of_manifest(keeper) else { return };
            descriptors.retain(|d| !is_bare(d) || self.id_of_descriptor(d) != Some(id));
            return;
        }
        let mut ids: Vec<Option<Digest>> = descriptors.iter().map(|d| self.id_of_descriptor(d)).collect();
        let mut at = 0;
        while at < descriptors.len() {
            let others = ids.iter().filter(|id| id.is_some() && **id == ids[at]).count();
            if others > 1 && is_bare(&descriptors[at]) {
                descriptors.remove(at);
                ids.remove(at);
            } else {
                at += 1;
            }
        }
    }

    /// `None` when its manifest cannot be read: then nothing is concluded.
    fn id_of_descriptor(&self, descriptor: &Value) -> Option<Digest> {
        self.id_of_manifest(&digest_of(descriptor)?).ok()
    }

    /// Takes an image with all its names out of the index. Its content stays until it is collected.
    ///
    /// # Errors
    /// When index.json cannot be replaced.
    pub fn forget(&self, manifest: &Digest) -> Result<(), Error> {
        self.forget_all(std::slice::from_ref(manifest))
    }

    /// As [`forget`](Self::forget), for all manifests of an image at once.
    ///
    /// # Errors
    /// When index.json cannot be replaced.
    pub fn forget_all(&self, manifests: &[Digest]) -> Result<(), Error> {
        self.change_index(|descriptors| {
            descriptors.retain(|d| digest_of(d).is_none_or(|digest| !manifests.contains(&digest)));
            Ok(())
        })
    }

    /// Takes away what a registry is said to know the image by.
    ///
    /// # Errors
    /// When index.json cannot be replaced.
    pub fn forget_repo_digest(&self, manifests: &[Digest], repo_digest: &str) -> Result<(), Error> {
        self.change_index(|descriptors| {
            let of_it = |d: &&mut Value| digest_of(d).is_some_and(|digest| manifests.contains(&digest));
            for descriptor in descriptors.iter_mut().filter(of_it) {
                let digests = annotation(descriptor, REPO_DIGESTS).unwrap_or_default();
                let left: Vec<&str> =
                    digests.split(',').filter(|d| *d != repo_digest && !d.is_empty()).collect();
                let left = left.join(",");
                set_annotation(descriptor, REPO_DIGESTS, Some(left).filter(|text| !text.is_empty()));
            }
            Ok(())
        })
    }
}

/// Takes names from whatever has them, except from `keeper`.
fn take_names(descriptors: &mut Vec<Value>, names: &[String], keeper: Option<&Digest>) {
    let mut at = 0;
    while at < descriptors.len() {
        let digest = digest_of(&descriptors[at]);
        let taken = full_name(&descriptors[at]).is_some_and(|name| names.contains(&name));
        if !taken || digest.as_ref() == keeper && keeper.is_some() {
            at += 1;
            continue;
        }
        let others = descriptors.iter().filter(|d| digest_of(d) == digest).count();
        if others > 1 {
            descriptors.remove(at);
        } else {
            set_annotation(&mut descriptors[at], REF_NAME, None);
            at += 1;
        }
    }
}
