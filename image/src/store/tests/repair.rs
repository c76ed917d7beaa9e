//! Each kind of damage is found, said, and mended as far as the store has what is needed.

use std::collections::HashSet;
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
    let report = if repair { store.repair(&HashSet::new()) } else { store.check() };
    let problems = report.unwrap().problems;
    let lines = problems.into_iter().map(|p| format!("{} -> {}", p.what, p.mended.unwrap_or_default()));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn every_kind_of_damage_is_mended_and_said() {
    type Damage = fn(&Store);
    let cases: [(&str, Damage, &str, bool); 10] = [
        ("bit flip in a layer", |store| flip(store, &layer_of(store).0), "packed anew", true),
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
            "packed anew",
            true,
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
    assert!(said.contains("is in use") && !said.contains("unpacked again"), "{said}");
    assert!(hold.tree.join("one").exists(), "its tree went");
    drop(hold);
    store.repair(&std::collections::HashSet::new()).unwrap();
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

/// An archive that this program would not have made: its layer cannot be packed to the same bytes.
fn add_foreign(store: &Store, name: &str) {
    let mut archive = tar(name);
    archive.extend([0; 10240]);
    let session = store.session().unwrap();
    let name = Some(crate::reference::Reference::parse(name).unwrap());
    let options = crate::archive::ImportOptions { name, ..Default::default() };
    crate::archive::import(store, &session, &*archive, &options).unwrap();
}

/// A container ran on it, and its blob was damaged: the image went, and the whole unpacked layer with it.
#[test]
fn regression_repair_keeps_an_image_whose_layers_are_unpacked_and_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = indexed(dir.path());
    add_foreign(&store, "one");
    flip(&store, &layer_of(&store).0);
    let said = words(&store, true);
    assert!(said.contains("is damaged") && said.contains("pull or load it again"), "{said}");
    assert!(store.layer_tree(&layer_of(&store)).join("one").exists(), "its layer went");
    let left = words(&store, false);
    assert!(left.contains("lacks the blob of a layer"), "{left}");
    add_foreign(&store, "one");
    assert_eq!(words(&store, false), "", "it was had again");
}

/// Whatever is damaged: what a container is on is the only copy that there is.
#[test]
fn regression_repair_forgets_no_image_that_a_container_is_on() {
    type Damage = fn(&Store);
    let cases: [(&str, Damage); 4] = [
        ("layer and tree", |store| {
            let layer = layer_of(store);
            fs::write(store.layer_path(&layer).join("tree.layerfs-index"), "x").unwrap();
            flip(store, &layer.0);
        }),
        ("layer and record", |store| {
            let layer = layer_of(store);
            fs::write(store.layer_path(&layer).join("layer.json"), "{").unwrap();
            fs::remove_file(store.blob_path(&layer.0)).unwrap();
        }),
        ("config", |store| flip(store, &store.find("one").unwrap().id)),
        ("manifest", |store| flip(store, &store.find("one").unwrap().manifest_digest)),
    ];
    for (what, damage) in cases {
        for is_used in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let store = indexed(dir.path());
            add(&store, "one", "one");
            add(&store, "two", "two");
            let image = store.find("one").unwrap();
            let tree = store.layer_tree(&layer_of(&store));
            let names = vec![crate::reference::Reference::parse("one").unwrap()];
            let saved = save(&store, &[(image.clone(), names)], SaveFormat::Oci, Vec::new()).unwrap();
            fs::write(dir.path().join("saved.tar"), saved).unwrap();
            damage(&store);
            let used: HashSet<Digest> = [image.id].into_iter().filter(|_| is_used).collect();
            let report = store.repair(&used).unwrap();
            let is_named = store.named().unwrap().iter().any(|named| named.manifest == image.manifest_digest);
            assert_eq!((is_named, tree.join("one").exists()), (is_used, is_used), "{what}: {report:?}");
            assert_eq!(report.problems.iter().any(|p| p.mended.is_none()), is_used, "{what}: {report:?}");
            assert!(store.find("two").is_ok(), "{what}");
            // Nor is it removed later, by whoever removes another.
            store.forget(&store.find("two").unwrap().manifest_digest).unwrap();
            let collected = store.collect();
            assert_eq!(tree.join("one").exists(), is_used, "{what}: {collected:?}");
            // It can be had again.
            {
                let session = store.session().unwrap();
                let source = Source::open(&dir.path().join("saved.tar"), session.path()).unwrap();
                load(&store, &session, &source).unwrap();
            }
            store.repair(&used).unwrap();
            assert_eq!(words(&store, false), "", "{what}");
            assert_eq!(fs::read_to_string(tree.join("one")).unwrap(), "one", "{what}");
        }
    }
}

#[test]
fn regression_a_damaged_list_of_images_is_made_anew() {
    for cut in [0, 1, 2] {
        let dir = tempfile::tempdir().unwrap();
        let store = indexed(dir.path());
        let one = add(&store, "one", "one");
        let two = add(&store, "two", "two");
        let path = store.root().join("index.json");
        let text = fs::read(&path).unwrap();
        match cut {
            0 => fs::write(&path, &text[..text.len() - 20]).unwrap(),
            1 => fs::write(&path, "").unwrap(),
            _ => fs::remove_file(&path).unwrap(),
        }
        let said = words(&store, false);
        assert!(said.contains("index.json") && !said.contains("stray"), "{said}");
        let said = words(&store, true);
        assert!(said.contains("made anew"), "{said}");
        assert_eq!(words(&store, false), "");
        assert_eq!(store.find("one").is_ok(), cut == 0, "the first was whole");
        for id in [one, two] {
            let image = store.find(&id.to_string()).unwrap();
            assert!(store.layer(&image.diff_ids()[0]).is_some());
        }
        assert_eq!(store.root().join("index.json.damaged").exists(), cut == 0);
    }
}

#[test]
fn regression_what_does_not_belong_in_the_store_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = indexed(dir.path());
    add(&store, "one", "one");
    let steps = store.root().join("steps");
    fs::create_dir(&steps).unwrap();
    fs::write(steps.join(format!("{}.json", "a".repeat(64))), "{").unwrap();
    fs::write(store.root().join("blobs/sha256/.new-left"), "").unwrap();
    fs::create_dir(store.root().join("layers/sha256/stray")).unwrap();
    let said = words(&store, false);
    assert!(said.contains("no record of a build's step") && said.contains("layers/sha256/stray"), "{said}");
    let said = words(&store, true);
    assert!(said.contains(".new-left"), "{said}");
    // Somebody's own is left to them.
    let left = words(&store, false);
    assert!(left.contains("stray does not belong") && left.lines().count() == 1, "{left}");
}

/// Whoever uses it next unpacks it again.
#[test]
fn regression_a_layer_that_lost_its_tree_is_unpacked_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = indexed(dir.path());
    add(&store, "one", "one");
    let layer = layer_of(&store);
    fs::remove_dir_all(store.layer_tree(&layer)).unwrap();
    assert!(store.hold_layer(&layer).is_err());
    let session = store.session().unwrap();
    store.ensure_layers(&session, &store.find("one").unwrap()).unwrap();
    assert!(store.hold_layer(&layer).unwrap().tree.join("one").exists());
    drop(session);
    assert_eq!(words(&store, false), "");
}
