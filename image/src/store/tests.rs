//! The store as its users see it: names, sharing, collection, damage, several at once.

mod naming;
mod processes;
mod repair;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::Store;
use crate::archive::{ImportOptions, SaveFormat, Source, import, load, save};
use crate::digest::Digest;
use crate::error::Error;
use crate::layer::WithoutIndex;
use crate::reference::Reference;
use crate::tar::TarWriter;

fn store(dir: &Path) -> Store {
    Store::open(&dir.join("store"), Arc::new(WithoutIndex)).unwrap()
}

fn tar(name: &str) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    writer.file(name, name.as_bytes()).unwrap();
    writer.finish().unwrap()
}

fn add(store: &Store, name: &str, content: &str) -> Digest {
    let session = store.session().unwrap();
    let options = ImportOptions { name: Some(Reference::parse(name).unwrap()), ..ImportOptions::default() };
    import(store, &session, &*tar(content), &options).unwrap()
}

fn content(store: &Store) -> usize {
    ["blobs/sha256", "layers/sha256", "tmp"]
        .iter()
        .flat_map(|at| fs::read_dir(store.root().join(at)).unwrap())
        .filter(|entry| entry.as_ref().unwrap().file_name() != ".lock")
        .count()
}

#[test]
fn images_are_found_by_name_id_and_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let id = add(&store, "one", "1");
    add(&store, "two", "2");
    for name in ["one", "one:latest", "docker.io/library/one", &id.to_string(), &id.hex(), &id.hex()[..12]] {
        assert_eq!(store.find(name).unwrap().id, id, "{name}");
    }
    for name in ["three", "one:2", "ffffffffffff0", "ONE", "", "sha256:"] {
        assert!(matches!(store.find(name), Err(Error::NoSuchImage(_))), "{name}");
    }
}

#[test]
fn a_name_moves_and_its_old_image_stays_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let old = add(&store, "name", "1");
    let new = add(&store, "name", "2");
    assert_eq!(store.find("name").unwrap().id, new);
    let image = store.find(&old.hex()).unwrap();
    assert!(image.named.names.is_empty());
    assert!(store.untag("docker.io/library/name:latest").unwrap());
    assert!(!store.untag("docker.io/library/name:latest").unwrap());
    assert_eq!(store.named().unwrap().len(), 2);
}

#[test]
fn what_no_image_leads_to_is_collected_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let empty = content(&store);
    add(&store, "one", "same");
    add(&store, "two", "same");
    let one = store.find("one").unwrap();
    let diff_id = one.diff_ids()[0];
    store.forget(&one.named.manifest).unwrap();
    store.collect().unwrap();
    assert!(store.layer(&diff_id).is_some(), "a shared layer went");
    assert!(store.check().unwrap().problems.is_empty());
    let hold = store.hold_layer(&diff_id).unwrap();
    store.forget(&store.find("two").unwrap().named.manifest).unwrap();
    store.collect().unwrap();
    assert!(hold.tree.join("same").exists(), "a layer in use went");
    drop(hold);
    store.collect().unwrap();
    assert_eq!(content(&store), empty);
}

#[test]
fn nothing_is_collected_while_somebody_adds() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let session = store.session().unwrap();
    let blob = store.add_blob(&session, b"not referred to yet").unwrap();
    assert!(store.collect().unwrap().postponed);
    assert!(store.blob_size(&blob).is_some());
    drop(session);
    assert_eq!(store.collect().unwrap().blobs, [blob]);
}

#[test]
fn what_a_killed_process_left_is_removed_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let left = store.root().join("tmp/work-dead");
    fs::create_dir_all(left.join("layer/tree")).unwrap();
    let living = store.session().unwrap();
    let _other = store.session().unwrap();
    assert!(!left.exists());
    assert!(living.path().exists());
}

#[test]
fn damage_is_found_and_mended() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    add(&store, "whole", "1");
    add(&store, "lost", "2");
    let whole = store.find("whole").unwrap();
    let record = store.layer_path(&whole.diff_ids()[0]).join("layer.json");
    fs::write(&record, "{").unwrap();
    let lost = store.find("lost").unwrap();
    let blob = store.blob_path(&lost.diff_ids()[0].0);
    let mut bytes = fs::read(&blob).unwrap();
    bytes[700] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let before: Vec<String> = store.check().unwrap().problems.into_iter().map(|p| p.what).collect();
    assert!(before.iter().any(|what| what.contains("damaged")), "{before:?}");
    assert!(before.iter().any(|what| what.contains("no record")), "{before:?}");
    store.repair(&std::collections::HashSet::new()).unwrap();
    assert_eq!(store.check().unwrap().problems, []);
    assert!(store.find("whole").is_ok(), "unpacked again");
    assert!(store.find("lost").is_ok(), "packed again");
    assert!(store.layer_tree(&whole.diff_ids()[0]).join("1").exists());
}

#[test]
fn a_saved_image_is_loaded_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let id = add(&store, "name", "1");
    let image = store.find("name").unwrap();
    let names = vec![Reference::parse("name").unwrap()];
    for format in [SaveFormat::Docker, SaveFormat::Oci] {
        let archive = save(&store, &[(image.clone(), names.clone())], format, Vec::new()).unwrap();
        assert_eq!(archive, save(&store, &[(image.clone(), names.clone())], format, Vec::new()).unwrap());
        let other = Store::open(&dir.path().join(format!("{format:?}")), Arc::new(WithoutIndex)).unwrap();
        let session = other.session().unwrap();
        fs::write(dir.path().join("a.tar"), archive).unwrap();
        let source = Source::open(&dir.path().join("a.tar"), session.path()).unwrap();
        let loaded = load(&other, &session, &source).unwrap();
        assert_eq!((loaded[0].id, loaded[0].names.as_slice()), (id, &["name:latest".to_owned()][..]));
        assert_eq!(other.find("name").unwrap().manifest_digest, image.manifest_digest);
    }
}

#[test]
fn an_archive_with_a_wrong_layer_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let first = store(dir.path());
    add(&first, "name", "1");
    let image = first.find("name").unwrap();
    let mut archive = save(&first, &[(image, Vec::new())], SaveFormat::Docker, Vec::new()).unwrap();
    // A byte of the only file in the layer: its content is its name.
    let at = archive.windows(513).position(|w| w[0] == b'1' && w[1..].iter().all(|b| *b == 0)).unwrap();
    archive[at] = b'2';
    let other = Store::open(&dir.path().join("other"), Arc::new(WithoutIndex)).unwrap();
    let empty = content(&other);
    let session = other.session().unwrap();
    fs::write(dir.path().join("a.tar"), archive).unwrap();
    let source = Source::open(&dir.path().join("a.tar"), session.path()).unwrap();
    assert!(load(&other, &session, &source).is_err());
    drop(session);
    assert!(other.named().unwrap().is_empty());
    other.collect().unwrap();
    assert_eq!(content(&other), empty);
}

#[test]
fn many_at_once_add_remove_and_collect() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let store = store.clone();
            scope.spawn(move || {
                for round in 0..12 {
                    add(&store, &format!("name{}", worker % 2), &format!("{}", round % 3));
                    if let Ok(image) = store.find("name0") {
                        store.forget(&image.named.manifest).unwrap();
                    }
                    store.collect().unwrap();
                }
            });
        }
    });
    let report = store.check().unwrap();
    assert_eq!(report.problems, []);
}

/// Trees hold set-id files: no other user may reach them, in stores of earlier versions neither.
#[test]
fn regression_other_users_cannot_reach_unpacked_trees() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let layers = store(dir.path()).root().join("layers");
    let mode = || fs::metadata(&layers).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(), 0o700, "a new store");
    fs::set_permissions(&layers, fs::Permissions::from_mode(0o755)).unwrap();
    let store = store(dir.path());
    assert_eq!(mode(), 0o700, "a store of an earlier version");
    // An OCI layout of another program has no such directory.
    fs::remove_dir_all(&layers).unwrap();
    add(&store, "one", "1");
    assert_eq!(mode(), 0o700, "made with the first layer");
}
