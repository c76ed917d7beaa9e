//! Verifying a store: every digest, index and reference; and mending it.

use std::collections::HashSet;
use std::fs;
use std::io;

use super::collect::{Reached, digests_in, is_free};
use super::{NamedImage, Session, Store};
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
    pub(super) fn add(&mut self, what: String, mended: Option<&str>) {
        self.problems.push(Problem { what, mended: mended.map(str::to_owned) });
    }
}

/// Ids of images that must stay, since containers are on them; with it, what is damaged is mended.
type Used<'a> = Option<&'a HashSet<Digest>>;

/// A layer that is not as it should be, or not there.
struct Damaged {
    diff_id: DiffId,
    /// Where the report tells of it.
    problem: usize,
}

/// A blob that is gone whose layer is there, unpacked and whole.
struct Unpacked {
    named: NamedImage,
    at: usize,
    problem: usize,
}

impl Store {
    /// Looks at everything, and changes nothing.
    ///
    /// # Errors
    /// When the store itself cannot be read.
    pub fn check(&self) -> Result<CheckReport, Error> {
        self.check_all(None)
    }

    /// Looks at everything. What is damaged is made anew from what is right, or removed; an image that cannot be made whole is
    /// taken out of the index, to be pulled or loaded again, unless it is `used` (by its id): somebody's container is on
    /// what is left of it. Waits for others to be done.
    ///
    /// # Errors
    /// When the store itself cannot be read or changed.
    pub fn repair(&self, used: &HashSet<Digest>) -> Result<CheckReport, Error> {
        self.check_all(Some(used))
    }

    fn check_all(&self, used: Used<'_>) -> Result<CheckReport, Error> {
        let repair = used.is_some();
        let mut report = CheckReport::default();
        let unpacked = {
            let exclusive = repair.then(|| self.lock_exclusive()).transpose()?;
            let shared = exclusive.is_none().then(|| self.lock_shared()).transpose()?;
            self.check_stray(repair, &mut report)?;
            self.check_blobs(repair, &mut report)?;
            if !self.check_index(repair, &mut report)? {
                return Ok(report);
            }
            let unpacked = self.check_images(used, &mut report)?;
            drop((exclusive, shared));
            unpacked
        };
        let damaged = self.check_layers(&mut report)?;
        if repair {
            {
                let session = self.session()?;
                self.rebuild(&session, &damaged, &mut report)?;
                self.pack_again(&session, unpacked, &mut report);
            }
            if let Err(error) = self.collect() {
                report.add(format!("what no image needs cannot be removed: {error}"), None);
            }
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

    /// Answers with the layers that are unpacked and whole, and have lost their blob.
    fn check_images(&self, used: Used<'_>, report: &mut CheckReport) -> Result<Vec<Unpacked>, Error> {
        let mut unpacked = Vec::new();
        let mut broken: Vec<(NamedImage, Option<Digest>, String)> = Vec::new();
        let mut known = HashSet::new();
        for named in self.named()? {
            report.images += 1;
            let id = self.id_of_manifest(&named.manifest).ok();
            known.extend(id);
            let image = match self.image(named.clone()) {
                Ok(image) => image,
                Err(error) => {
                    broken.push((named, id, error.to_string()));
                    continue;
                }
            };
            let (mut whole, mut lost) = (Vec::new(), None);
            for (at, (descriptor, diff_id)) in
                image.manifest.layers().iter().zip(image.diff_ids()).enumerate()
            {
                let digest = config::digest_of(descriptor)?;
                if self.blob_size(&digest) == Some(descriptor.size()) {
                    continue;
                }
                match self.layer(diff_id) {
                    Some(layer) if layer.packed_size.is_some() => {}
                    Some(layer) if layer.diff_id == *diff_id && self.is_as_unpacked(diff_id) => {
                        whole.push((at, digest));
                    }
                    _ => lost = Some(format!("layer {digest} is missing or has another length")),
                }
            }
            if let Some(why) = lost {
                broken.push((named, id, why));
                continue;
            }
            for (at, digest) in whole {
                let what = format!("image {} lacks the blob of a layer, {digest}", shown(&named));
                report.add(what, None);
                unpacked.push(Unpacked { named: named.clone(), at, problem: report.problems.len() - 1 });
            }
        }
        for (named, id, why) in broken {
            let what = format!("image {} is not whole: {why}", shown(&named));
            let Some(used) = used else {
                report.add(what, None);
                continue;
            };
            // One whose manifest is damaged may be any of those that are used and not to be seen.
            let may_be_used = match id {
                Some(id) => used.contains(&id),
                None => !used.is_subset(&known),
            };
            if may_be_used {
                let remedy = "a container is on it, and it stays; pull or load it again";
                report.add(format!("{what}; {remedy}"), None);
            } else {
                self.forget(&named.manifest)?;
                report.add(what, Some("taken out of the index; pull or load it again"));
            }
        }
        Ok(unpacked)
    }

    /// Whether the layer's tree is as its index says.
    fn is_as_unpacked(&self, diff_id: &DiffId) -> bool {
        let path = self.layer_path(diff_id);
        self.indexer.check(&path.join("tree"), &path.join("tree.layerfs-index")).is_ok()
    }

    /// The layers that have to be unpacked again.
    fn check_layers(&self, report: &mut CheckReport) -> Result<Vec<Damaged>, Error> {
        let _lock = self.lock_shared()?;
        let reached = self.reached().unwrap_or_else(|_| Reached::default());
        let mut damaged: Vec<Damaged> = Vec::new();
        let mut add = |report: &mut CheckReport, diff_id: DiffId, what: String| {
            report.add(what, None);
            damaged.push(Damaged { diff_id, problem: report.problems.len() - 1 });
        };
        let directory = self.root.join("layers/sha256");
        let mut found = HashSet::new();
        for (path, digest) in digests_in(&directory, Algorithm::Sha256)? {
            report.layers += 1;
            let diff_id = DiffId(digest);
            found.insert(diff_id);
            let (tree, index) = (path.join("tree"), path.join("tree.layerfs-index"));
            if self.layer(&diff_id).is_none_or(|layer| layer.diff_id != diff_id) {
                add(report, diff_id, format!("layer {diff_id} has no record of itself"));
                continue;
            }
            if let Err(error) = self.indexer.check(&tree, &index) {
                add(report, diff_id, format!("layer {diff_id} is not as it was unpacked: {error}"));
            }
        }
        for diff_id in reached.layers.difference(&found) {
            add(report, *diff_id, format!("layer {diff_id} is not unpacked"));
        }
        Ok(damaged)
    }

    /// Unpacks layers again. One that cannot be is put back: a damaged tree is better than none.
    fn rebuild(&self, session: &Session, damaged: &[Damaged], report: &mut CheckReport) -> Result<(), Error> {
        let aside = |diff_id: &DiffId| session.path().join(format!("damaged-{}", diff_id.0.hex()));
        let mut moved = Vec::new();
        for Damaged { diff_id, problem: at } in damaged {
            let path = self.layer_path(diff_id);
            let problem = &mut report.problems[*at];
            if self.layer(diff_id).is_some_and(|layer| layer.packed_size.is_some()) {
                // There is no other copy: the index alone is made anew.
                let (tree, index) = (path.join("tree"), path.join("tree.layerfs-index"));
                match self.indexer.build(&tree, &index) {
                    Ok(()) => problem.mended = Some("its index was made anew".into()),
                    Err(error) => problem.what.push_str(&format!("; its index cannot be made anew: {error}")),
                }
                continue;
            }
            if path.exists() && !is_free(&path) {
                problem.what.push_str("; it is in use: stop what uses it, and repair again");
                continue;
            }
            // Out of sight in one step; it goes with the session.
            match fs::rename(&path, aside(diff_id)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("move aside", &path)(error));
                }
                _ => moved.push((*diff_id, *at)),
            }
        }
        let mut needed = HashSet::new();
        let mut failures = Vec::new();
        let mut has_unknown_layers = false;
        for named in self.named()? {
            let Ok(image) = self.image(named) else {
                has_unknown_layers = true;
                continue;
            };
            needed.extend(image.diff_ids().to_vec());
            if let Err(error) = self.ensure_layers(session, &image) {
                failures.push((image.diff_ids().to_vec(), error.to_string()));
            }
        }
        needed.extend(self.kept_by_steps()?.into_iter().map(|(layer, _)| layer));
        for (diff_id, at) in moved {
            let problem = &mut report.problems[at];
            let path = self.layer_path(&diff_id);
            let was_there = aside(&diff_id).exists();
            if path.exists() {
                let how = if was_there { "unpacked again" } else { "unpacked from its blob" };
                problem.mended = Some(how.into());
            } else if !needed.contains(&diff_id) && !has_unknown_layers {
                problem.mended = Some("removed: no image needs it".into());
            } else {
                if was_there {
                    fs::rename(aside(&diff_id), &path).map_err(Error::io("put back", &path))?;
                }
                let why = failures.iter().find(|(layers, _)| layers.contains(&diff_id));
                let why = why.map_or("no blob of it is known", |(_, why)| why);
                problem.what.push_str(&format!("; it cannot be unpacked again: {why}"));
            }
        }
        Ok(())
    }

    /// Makes lost blobs anew from the unpacked layers, where that gives the same bytes.
    fn pack_again(&self, session: &Session, unpacked: Vec<Unpacked>, report: &mut CheckReport) {
        for Unpacked { named, at, problem } in unpacked {
            let made = self.image(named).and_then(|image| self.restore_blob(session, &image, at));
            let problem = &mut report.problems[problem];
            match made {
                Ok(true) => problem.mended = Some("packed anew from the unpacked layer".into()),
                Ok(false) => problem.what.push_str(
                    "; it runs from its unpacked layers; before a push or save, pull or load it again",
                ),
                Err(error) => problem.what.push_str(&format!("; it cannot be packed anew: {error}")),
            }
        }
    }
}

fn shown(named: &NamedImage) -> String {
    named.names.first().cloned().unwrap_or_else(|| named.manifest.to_string())
}
