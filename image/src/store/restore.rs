//! What a damaged store lost, made anew from what is left: blobs from unpacked layers, index.json from manifests; and
//! files that do not belong in it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::collect::digests_in;
use super::{Barrier, CheckReport, Image, Session, StagedBlob, StepRecord, Store, names};
use crate::config;
use crate::digest::{Algorithm, Digest, DigestWriter};
use crate::error::Error;
use crate::layer::{pack_changes, pack_step};
use crate::media_type;

impl Store {
    /// Packs an unpacked layer whose blob is gone. False when that gives other bytes: the blob was compressed, or an archive
    /// that another program had made.
    pub(super) fn restore_blob(&self, session: &Session, image: &Image, at: usize) -> Result<bool, Error> {
        let (Some(descriptor), Some(below)) = (image.manifest.layers().get(at), image.diff_ids().get(..=at))
        else {
            return Ok(false);
        };
        let digest = config::digest_of(descriptor)?;
        if below.last().is_none_or(|diff_id| diff_id.0 != digest) {
            return Ok(false);
        }
        let stack = self.stack(below)?;
        // A commit has an entry for the root, a step of a build only where it says something.
        for has_root in [true, false] {
            let path = session.path().join(format!("again-{}", digest.hex()));
            let file = File::create(&path).map_err(Error::io("create", &path))?;
            let writer = DigestWriter::with_algorithm(file, digest.algorithm());
            let writer = if has_root { pack_changes(&stack, writer)? } else { pack_step(&stack, writer)? };
            if writer.finish().1 == digest {
                self.publish_layers(session, &[StagedBlob { path, digest }], &[])?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether index.json can be read, or could be made anew. The damaged one is kept beside it.
    pub(super) fn check_index(&self, repair: bool, report: &mut CheckReport) -> Result<bool, Error> {
        let Err(error) = self.read_index() else { return Ok(true) };
        let mut what = error.to_string();
        if let Some(cause) = std::error::Error::source(&error) {
            what.push_str(&format!(": {cause}"));
        }
        if !repair {
            report.add(what, None);
            return Ok(false);
        }
        let lock = self.lock_names()?;
        let path = self.index_path();
        let text = fs::read(&path).unwrap_or_default();
        let mut manifests = descriptors_left(&text);
        manifests.retain(|d| digest_of(d).is_some_and(|digest| self.id_of_manifest(&digest).is_ok()));
        let named = manifests.len();
        let known: HashSet<Digest> = manifests.iter().filter_map(digest_of).collect();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let directory = self.root.join("blobs").join(algorithm.name());
            for (blob, digest) in digests_in(&directory, algorithm)? {
                let size = fs::metadata(&blob).map_or(0, |blob| blob.len());
                if !known.contains(&digest)
                    && size <= config::MAX_DOCUMENT
                    && let Some(media_type) = self.media_type_of_image(&digest)
                {
                    manifests.push(json!({ "mediaType": media_type, "digest": digest, "size": size }));
                }
            }
        }
        if !text.is_empty() {
            let aside = self.root.join("index.json.damaged");
            fs::copy(&path, &aside).map_err(Error::io("keep", &aside))?;
        }
        let nameless = manifests.len() - named;
        let mut index = names::empty_index()?;
        index["manifests"] = Value::Array(manifests);
        self.write_index(&index, Barrier::File, &lock)?;
        let how = format!(
            "made anew: {named} entries were left in it, {nameless} images have no name now; the old one is index.json.damaged"
        );
        report.add(what, Some(&how));
        Ok(true)
    }

    /// `None` for what is no manifest of an image whose config is here.
    fn media_type_of_image(&self, digest: &Digest) -> Option<String> {
        let bytes = self.read_blob(digest).ok()?;
        if bytes.first() != Some(&b'{') {
            return None;
        }
        let manifest = config::parse_manifest(&bytes).ok()?;
        let id = config::digest_of(manifest.config()).ok()?;
        config::Config::parse(&self.read_blob(&id).ok()?).ok()?;
        Some(manifest.media_type().as_ref().map_or(media_type::OCI_MANIFEST.to_owned(), ToString::to_string))
    }

    /// Records of steps that mean nothing, and files that are not named as content is.
    pub(super) fn check_stray(&self, repair: bool, report: &mut CheckReport) -> Result<(), Error> {
        // One that is being written is nobody's fault; with the exclusive lock nobody writes.
        let is_news = |path: &Path| !repair && is_unfinished(path);
        for path in list(&self.root.join("steps"))? {
            if is_news(&path) {
                continue;
            }
            let record =
                fs::read(&path).ok().and_then(|text| serde_json::from_slice::<StepRecord>(&text).ok());
            let is_right = record.is_some_and(|record| self.step_path(&record.key) == path);
            if !is_right {
                let what = format!("{} is no record of a build's step", path.display());
                let mended = repair && is_ours(&path) && fs::remove_file(&path).is_ok();
                report.add(what, mended.then_some("removed; the step is carried out again"));
            }
        }
        for kind in ["blobs", "layers"] {
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                for path in list(&self.root.join(kind).join(algorithm.name()))? {
                    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                    if Digest::from_hex(algorithm, name).is_some() || is_news(&path) {
                        continue;
                    }
                    // What a killed process was writing.
                    let mended = repair && is_unfinished(&path) && fs::remove_file(&path).is_ok();
                    let what = format!("{} does not belong in the store", path.display());
                    let what =
                        if repair && !mended { what + "; remove it if you do not need it" } else { what };
                    report.add(what, mended.then_some("removed"));
                }
            }
        }
        Ok(())
    }
}

/// Named as a record is, or as one is while it is being written.
fn is_ours(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json") || is_unfinished(path)
}

fn is_unfinished(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(".new-"))
}

fn list(directory: &Path) -> Result<Vec<std::path::PathBuf>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", directory)(error)),
    };
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(Error::io("list", directory))?;
    paths.sort();
    Ok(paths)
}

fn digest_of(descriptor: &Value) -> Option<Digest> {
    Digest::parse(descriptor.get("digest")?.as_str()?).ok()
}

/// The descriptors in an index.json that ends early.
fn descriptors_left(text: &[u8]) -> Vec<Value> {
    let mut found = Vec::new();
    let list = b"\"manifests\"";
    let Some(at) = text.windows(list.len()).position(|window| window == list) else { return found };
    let Some(open) = text[at..].iter().position(|byte| *byte == b'[') else { return found };
    let mut rest = &text[at + open + 1..];
    loop {
        let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<Value>();
        let Some(Ok(value)) = values.next() else { return found };
        let end = values.byte_offset();
        found.push(value);
        rest = rest[end..].trim_ascii_start();
        match rest.strip_prefix(b",") {
            Some(after) => rest = after,
            None => return found,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_before_the_damage_are_found() {
        let text = br#"{"schemaVersion":2, "manifests" : [{"digest":"a"} , {"digest":"b"},{"dig"#;
        assert_eq!(descriptors_left(text), [json!({"digest": "a"}), json!({"digest": "b"})]);
        for text in ["", "{", "{\"manifests\":", "{\"manifests\":[", "\u{0}\u{0}"] {
            assert!(descriptors_left(text.as_bytes()).is_empty(), "{text:?}");
        }
    }
}
