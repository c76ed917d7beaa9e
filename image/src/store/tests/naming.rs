//! One image by several manifests, and names that other programs wrote.

use std::fs;

use serde_json::Value;

use super::{add, store};
use crate::digest::Digest;
use crate::error::Error;
use crate::media_type;
use crate::reference::Reference;
use crate::store::Store;

/// As after a push, which compresses the layers, and a pull: another manifest with the same config.
fn second_manifest(store: &Store, of: &str, name: &str, repo_digest: Option<&str>) -> Digest {
    let image = store.find(of).unwrap();
    let mut manifest: Value = serde_json::from_slice(&image.manifest_bytes).unwrap();
    manifest["annotations"] = serde_json::json!({ "from": name });
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let session = store.session().unwrap();
    let digest = store.add_blob(&session, &bytes).unwrap();
    let descriptor = (digest, bytes.len() as u64, media_type::OCI_MANIFEST);
    store.publish(&session, descriptor, &[Reference::parse(name).unwrap()], repo_digest).unwrap();
    digest
}

#[test]
fn regression_an_image_with_two_manifests_is_one_image() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let id = add(&store, "bb:1", "1");
    let first = store.find("bb:1").unwrap().named.manifest;
    let second = second_manifest(&store, "bb:1", "r.example/s:1", None);
    let (images, warnings) = store.images().unwrap();
    assert_eq!((images.len(), warnings.len()), (1, 0));
    let both = ["docker.io/library/bb:1", "r.example/s:1"];
    for image in [images[0].clone(), store.find_whole(&id.to_string()).unwrap()] {
        assert_eq!(image.named.names, both);
        assert_eq!(image.manifests, [first, second]);
    }
    assert_eq!(store.find_whole("r.example/s:1").unwrap().named.names, both);
    // Each name still has its own manifest.
    assert_eq!(store.find("r.example/s:1").unwrap().manifest_digest, second);
    // The manifest that loses its name is not left behind as an image without one.
    assert!(store.untag("bb:1").unwrap());
    assert_eq!(store.named().unwrap().len(), 1);
    assert_eq!(store.find(&id.to_string()).unwrap().manifest_digest, second);
    // The last one is.
    assert!(store.untag("r.example/s:1").unwrap());
    assert!(store.find(&id.to_string()).unwrap().named.names.is_empty());
}

#[test]
fn regression_a_pull_that_takes_the_name_leaves_no_second_image() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let id = add(&store, "r.example/s:1", "1");
    let other = add(&store, "two", "2");
    let second = second_manifest(&store, "r.example/s:1", "r.example/s:1", Some("r.example/s@sha256:1"));
    assert_eq!(store.named().unwrap().len(), 2);
    assert_eq!(store.find(&id.to_string()).unwrap().manifest_digest, second);
    // Without its names, for a container that is on it, it is one image still.
    store.untag_all(&store.find_whole("r.example/s:1").unwrap().manifests).unwrap();
    let image = store.find(&id.to_string()).unwrap();
    assert!(image.named.names.is_empty() && image.named.repo_digests.is_empty());
    assert_eq!(store.find("two").unwrap().id, other);
    store.collect().unwrap();
    assert!(store.layer(&image.diff_ids()[0]).is_some());
}

/// `skopeo copy ... oci:STORE:short`
#[test]
fn regression_a_short_name_that_another_program_wrote_means_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let id = add(&store, "one", "1");
    let path = store.root().join("index.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("docker.io/library/one:latest", "short")).unwrap();
    for name in ["short", "short:latest", "docker.io/library/short"] {
        assert_eq!(store.find(name).unwrap().id, id, "{name}");
    }
    assert_eq!(store.named().unwrap()[0].names, ["docker.io/library/short:latest"]);
    // It is taken as any other.
    add(&store, "short", "2");
    assert_ne!(store.find("short").unwrap().id, id);
    assert_eq!(store.named().unwrap().iter().filter(|named| named.names.is_empty()).count(), 1);
    assert!(store.untag("short").unwrap());
    assert!(store.find("short").is_err());
}

#[test]
fn regression_an_image_whose_config_is_damaged_is_not_called_missing() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let id = add(&store, "one", "1");
    fs::write(store.blob_path(&id), "damaged").unwrap();
    for name in ["one".to_owned(), id.to_string(), id.hex()[..12].to_owned()] {
        let error = store.find(&name).unwrap_err();
        assert!(matches!(error, Error::Read { .. }), "{name}: {error}");
        assert!(error.to_string().contains(&id.to_string()), "{error}");
    }
}
