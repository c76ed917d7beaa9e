//! Each kind of damage is found, said, and mended as far as the store has what is needed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::{add, tar};
use crate::archive::{SaveFormat, Source, load, save};
use crate::compression::Compression;
use crate::digest::Digest;
use crate::layer::{IndexFailure, IndexedObject, LayerIndexBuilder, LayerIndexer};
use crate::store::{LayerInput, Store};

/// An index of paths and sizes.
#[derive(Debug)]
struct Sizes;

struct Listing(Vec<String>);

impl LayerIndexBuilder for Listing {
    fn insert(&mut self, path: &[&[u8]], object: IndexedObject<'_>) -> Result<(), IndexFailure> {
        let path = String::from_utf8_lossy(&path.join(&b'/')).into_owned();
        self.0.push(format!("{path} {}", object.stat.size));
        Ok(())
    }

    fn finish(mut self: Box<Self>, out: &Path) -> Result<(), IndexFailure> {
        self.0.sort();
        Ok(fs::write(out, self.0.join("\n"))?)
    }
}

fn listing(tree: &Path) -> Result<String, IndexFailure> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(tree)? {
        let entry = entry?;
        lines.push(format!("{} {}", entry.file_name().to_string_lossy(), entry.metadata()?.size()));
    }
    lines.sort();
    Ok(lines.join("\n"))
}

impl LayerIndexer for Sizes {
    fn begin(&self, _root: IndexedObject<'_>) -> Result<Box<dyn LayerIndexBuilder>, IndexFailure> {
        Ok(Box::new(Listing(Vec::new())))
    }

    fn build(&self, tree: &Path, index: &Path) -> Result<(), IndexFailure> {
        Ok(fs::write(index, listing(tree)?)?)
    }

    fn check(&self, tree: &Path, index: &Path) -> Result<(), IndexFailure> {
        if fs::read_to_string(index)? == listing(tree)? { Ok(()) } else { Err("it differs".into()) }
    }
}

fn indexed(dir: &Path) -> Store {
    Store::open(&dir.join("store"), Arc::new(Sizes)).unwrap()
}

/// What is wrong, and what was done about it.
fn words(store: &Store, repair: bool) -> String {
    let problems = store.check(repair).unwrap().problems;
    let lines = problems.into_iter().map(|p| format!("{} -> {}", p.what, p.mended.unwrap_or_default()));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn every_kind_of_damage_is_mended_and_said() {
    type Damage = fn(&Store);
    let cases: [(&str, Damage, &str, bool); 10] = [
        ("bit flip in a layer", |store| flip(store, &layer_of(store).0), "is damaged", false),
        ("bit flip in a config", |store| flip(store, &store.find("one").unwrap().id), "is damaged", false),
        (
            "bit flip in a manifest",
            |store| flip(store, &store.find("one").unwrap().manifest_digest),
            "is damaged",
            false,
        ),
        (
            "missing layer",
            |store| fs::remove_file(store.blob_path(&layer_of(store).0)).unwrap(),
            "is missing",
            false,
        ),
        (
            "missing config, a name that leads nowhere",
            |store| fs::remove_file(store.blob_path(&store.find("one").unwrap().id)).unwrap(),
            "is not whole",
            false,
        ),
        (
            "damaged index",
            |store| fs::write(store.layer_path(&layer_of(store)).join("tree.layerfs-index"), "x").unwrap(),
            "unpacked again",
            true,
        ),
        (
            "no index",
            |store| fs::remove_file(store.layer_path(&layer_of(store)).join("tree.layerfs-index")).unwrap(),
            "unpacked again",
            true,
        ),
        (
            "file of a tree changed",
            |store| fs::write(store.layer_tree(&layer_of(store)).join("one"), "other").unwrap(),
            "unpacked again",
            true,
        ),
        (
            "layer without record",
            |store| fs::remove_file(store.layer_path(&layer_of(store)).join("layer.json")).unwrap(),
            "no record",
            true,
        ),
        (
            "no unpacked layer",
            |store| fs::remove_dir_all(store.layer_path(&layer_of(store))).unwrap(),
            "unpacked from its blob",
            true,
        ),
    ];
    for (what, damage, said, stays) in cases {
        let dir = tempfile::tempdir().unwrap();
        let store = indexed(dir.path());
        add(&store, "one", "one");
        add(&store, "two", "two");
        assert_eq!(words(&store, true), "", "{what}");
        damage(&store);
        let before = words(&store, false);
        assert!(!before.is_empty(), "{what}: not found");
        let report = words(&store, true);
        assert!(report.contains(said), "{what}: {report}");
        assert_eq!(words(&store, false), "", "{what}: after the repair");
        assert_eq!(store.find("one").is_ok(), stays, "{what}");
        assert!(store.find("two").is_ok(), "{what}: another image went");
        if stays {
            let tree = store.layer_tree(&layer_of(&store));
            assert_eq!(fs::read_to_string(tree.join("one")).unwrap(), "one", "{what}");
        }
        // It can be had again.
        add(&store, "one", "one");
        assert_eq!(words(&store, false), "", "{what}: after it was added again");
    }
}

fn layer_of(store: &Store) -> crate::digest::DiffId {
    store.find("one").unwrap().diff_ids()[0]
}

fn flip(store: &Store, blob: &Digest) {
    let path = store.blob_path(blob);
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// A mount of a damaged layer would lose its tree.
#[test]
fn regression_a_layer_in_use_is_not_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let store = indexed(dir.path());
    add(&store, "one", "one");
    let hold = store.hold_layer(&layer_of(&store)).unwrap();
    fs::write(store.layer_path(&layer_of(&store)).join("tree.layerfs-index"), "x").unwrap();
    let said = words(&store, true);
    assert!(said.contains("is in use"), "{said}");
    assert!(hold.tree.join("one").exists(), "its tree went");
    drop(hold);
    store.check(true).unwrap();
    assert_eq!(words(&store, false), "");
}

/// The image's config names the layer that is there, its manifest a blob of something else.
#[test]
fn regression_a_blob_must_be_the_layer_that_the_config_names() {
    let dir = tempfile::tempdir().unwrap();
    let other = Store::open(&dir.path().join("other"), Arc::new(Sizes)).unwrap();
    add(&other, "one", "one");
    let image = other.find("one").unwrap();
    let saved = save(&other, &[(image.clone(), Vec::new())], SaveFormat::Oci, Vec::new()).unwrap();
    fs::create_dir(dir.path().join("layout")).unwrap();
    let mut layout = std::process::Command::new("tar");
    fs::write(dir.path().join("saved.tar"), saved).unwrap();
    layout.arg("xf").arg(dir.path().join("saved.tar")).arg("-C").arg(dir.path().join("layout"));
    assert!(layout.status().unwrap().success());
    // Another layer, compressed, takes the place of the right one in the manifest.
    let blobs = dir.path().join("layout/blobs/sha256");
    let compressors = crate::compression::Compressors::new();
    let mut encoder = compressors.gzip(Vec::new(), 4);
    encoder.write_all(&tar("bad")).unwrap();
    let bad = encoder.finish().unwrap();
    let bad_digest = Digest::of(&bad);
    fs::write(blobs.join(bad_digest.hex()), &bad).unwrap();
    let text = String::from_utf8(image.manifest_bytes.clone()).unwrap();
    let layer = &image.manifest.layers()[0];
    let text = text
        .replace(&layer.digest().to_string(), &bad_digest.to_string())
        .replace(&format!("\"size\":{}", layer.size()), &format!("\"size\":{}", bad.len()));
    let manifest = Digest::of(text.as_bytes());
    fs::write(blobs.join(manifest.hex()), &text).unwrap();
    let index = fs::read_to_string(dir.path().join("layout/index.json")).unwrap();
    let index = index
        .replace(&image.manifest_digest.to_string(), &manifest.to_string())
        .replace(&format!("\"size\":{}", image.manifest_bytes.len()), &format!("\"size\":{}", text.len()));
    fs::write(dir.path().join("layout/index.json"), index).unwrap();
    let store = indexed(dir.path());
    // The layer is known, and the wrong blob is among the blobs.
    add(&store, "one", "one");
    let session = store.session().unwrap();
    let input = LayerInput { reader: &*bad, blob: None, diff_id: None, keep_blob: true };
    let mut known = store.ingest_layer(&session, input).unwrap();
    assert_eq!(known.compression, Compression::Gzip);
    store.finish_layer(&session, &mut known, &[]).unwrap();
    let source = Source::open(&dir.path().join("layout"), session.path()).unwrap();
    let error = load(&store, &session, &source).unwrap_err().to_string();
    assert!(error.contains("another layer's blob"), "{error}");
    // A right blob is read once and known then.
    store.prove_expansion(&known.diff_id, &bad_digest, bad.len() as u64).unwrap();
    fs::write(store.blob_path(&bad_digest), "damaged").unwrap();
    store.prove_expansion(&known.diff_id, &bad_digest, bad.len() as u64).unwrap();
}
