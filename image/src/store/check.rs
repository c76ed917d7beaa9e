//! Verifying a store: every digest, index and reference; and mending it.

use std::fs;
use std::io;

use super::Store;
use super::collect::{Reached, digests_in, is_free};
use crate::config;
use crate::digest::{Algorithm, DiffId, Digest, VerifyingReader};
use crate::error::Error;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What, in words.
    pub what: String,
    /// What was done about it; `None` when only looking, or when nothing can be.
    pub mended: Option<String>,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Images that were looked at.
    pub images: usize,
    /// Blobs that were read and hashed.
    pub blobs: usize,
    /// Layers whose index was compared with the tree.
    pub layers: usize,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

impl CheckReport {
    fn add(&mut self, what: String, mended: Option<&str>) {
        self.problems.push(Problem { what, mended: mended.map(str::to_owned) });
    }
}

impl Store {
    /// Looks at everything. With `repair`, what is damaged is made anew from what is right, or removed; an image that
    /// cannot be made whole is taken out of the index, to be pulled or loaded again. Waits for others to be done.
    ///
    /// # Errors
    /// When the store itself cannot be read or changed.
    pub fn check(&self, repair: bool) -> Result<CheckReport, Error> {
        let mut report = CheckReport::default();
        {
            let exclusive = repair.then(|| self.lock_exclusive()).transpose()?;
            let shared = exclusive.is_none().then(|| self.lock_shared()).transpose()?;
            self.check_blobs(repair, &mut report)?;
            self.check_images(repair, &mut report)?;
            drop((exclusive, shared));
        }
        let rebuild = self.check_layers(repair, &mut report)?;
        if repair {
            self.rebuild(&rebuild, &mut report)?;
            self.collect()?;
        }
        Ok(report)
    }

    fn check_blobs(&self, repair: bool, report: &mut CheckReport) -> Result<(), Error> {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let directory = self.root.join("blobs").join(algorithm.name());
            for (path, digest) in digests_in(&directory, algorithm)? {
                report.blobs += 1;
                let verified = fs::File::open(&path).and_then(|file| {
                    io::copy(&mut VerifyingReader::new(file, digest, None), &mut io::sink())
                });
                let Err(error) = verified else { continue };
                let what = format!("blob {digest} is damaged: {error}");
                if repair {
                    fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                }
                report.add(what, repair.then_some("removed"));
            }
        }
        Ok(())
    }

    fn check_images(&self, repair: bool, report: &mut CheckReport) -> Result<(), Error> {
        for named in self.named()? {
            report.images += 1;
            let shown = match named.names.first() {
                Some(name) => name.clone(),
                None => named.manifest.to_string(),
            };
            let manifest = named.manifest;
            let lacking = match self.image(named) {
                Err(error) => Some(error.to_string()),
                Ok(image) => {
                    let mut lacking = None;
                    for (descriptor, diff_id) in image.manifest.layers().iter().zip(image.diff_ids()) {
                        let digest = config::digest_of(descriptor)?;
                        let size = self.blob_size(&digest);
                        let packed = self.layer(diff_id).is_some_and(|layer| layer.packed_size.is_some());
                        if size != Some(descriptor.size()) && !packed {
                            lacking = Some(format!("layer {digest} is missing or has another length"));
                        }
                    }
                    lacking
                }
            };
            let Some(why) = lacking else { continue };
            if repair {
                self.forget(&manifest)?;
            }
            report.add(
                format!("image {shown} is not whole: {why}"),
                repair.then_some("taken out of the index; pull or load it again"),
            );
        }
        Ok(())
    }

    /// The layers that have to be unpacked again.
    fn check_layers(&self, repair: bool, report: &mut CheckReport) -> Result<Vec<DiffId>, Error> {
        let _lock = self.lock_shared()?;
        let reached = self.reached().unwrap_or_else(|_| Reached::default());
        let mut rebuild = Vec::new();
        let directory = self.root.join("layers/sha256");
        for (path, digest) in digests_in(&directory, Algorithm::Sha256)? {
            report.layers += 1;
            let diff_id = DiffId(digest);
            let (tree, index) = (path.join("tree"), path.join("tree.layerfs-index"));
            if self.layer(&diff_id).is_none_or(|layer| layer.diff_id != diff_id) {
                report.add(format!("layer {diff_id} has no record of itself"), repair.then_some("removed"));
                rebuild.push(diff_id);
                continue;
            }
            let Err(error) = self.indexer.check(&tree, &index) else { continue };
            let what = format!("layer {diff_id} is not as it was unpacked: {error}");
            rebuild.push(diff_id);
            let can = reached.layers.contains(&diff_id);
            let mended = if can { "unpacked again" } else { "removed: no image needs it" };
            report.add(what, repair.then_some(mended));
        }
        for diff_id in &reached.layers {
            if self.layer(diff_id).is_none() && !rebuild.contains(diff_id) {
                report.add(
                    format!("layer {diff_id} is not unpacked"),
                    repair.then_some("unpacked from its blob"),
                );
            }
        }
        Ok(rebuild)
    }

    fn rebuild(&self, damaged: &[DiffId], report: &mut CheckReport) -> Result<(), Error> {
        let session = self.session()?;
        for diff_id in damaged {
            let path = self.layer_path(diff_id);
            if self.layer(diff_id).is_some_and(|layer| layer.packed_size.is_some()) {
                // There is no other copy: the index alone is made anew.
                let (tree, index) = (path.join("tree"), path.join("tree.layerfs-index"));
                self.indexer.build(&tree, &index).map_err(|source| Error::Index { path: tree, source })?;
                continue;
            }
            if !is_free(&path) {
                let what = format!("layer {diff_id} is in use: stop what uses it, and repair again");
                report.add(what, None);
                continue;
            }
            // Out of sight in one step; it goes with the session.
            let old = session.path().join(format!("damaged-{}", diff_id.0.hex()));
            match fs::rename(&path, &old) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("move aside", &path)(error));
                }
                _ => {}
            }
        }
        for named in self.named()? {
            let Ok(image) = self.image(named) else { continue };
            if let Err(error) = self.ensure_layers(&session, &image) {
                report.add(format!("image {}: {error}", Digest::short(&image.id)), None);
            }
        }
        Ok(())
    }
}
