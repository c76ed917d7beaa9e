//! An index is opened for its own tree, as it was, or not at all.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::index::IndexError;
use crate::index::format::{Header, VERSION};
use crate::index::view::View;

fn expect_stale(scratch: &Scratch) {
    match scratch.open() {
        Err(IndexError::Stale { .. }) => {}
        other => panic!("expected Stale, found {other:?}"),
    }
}

fn indexed() -> Scratch {
    let scratch = Scratch::new();
    fill(&scratch.tree(), false);
    scratch.build();
    scratch
}

#[test]
fn a_changed_root_is_stale() {
    let scratch = indexed();
    fs::write(scratch.tree().join("more"), b"").unwrap();
    expect_stale(&scratch);
    let scratch = indexed();
    fs::set_permissions(scratch.tree(), PermissionsExt::from_mode(0o700)).unwrap();
    expect_stale(&scratch);
    let scratch = indexed();
    set_xattr(&scratch.tree(), c"user.overlay.opaque", b"y");
    expect_stale(&scratch);
}

#[test]
fn a_renamed_tree_keeps_its_index() {
    let scratch = indexed();
    set_xattr(&scratch.tree(), c"user.mark", b"kept");
    scratch.build();
    let (elsewhere, index) =
        (scratch.dir.path().join("elsewhere"), scratch.dir.path().join("elsewhere.layerfs-index"));
    fs::rename(scratch.tree(), &elsewhere).unwrap();
    fs::rename(scratch.place(), &index).unwrap();
    assert_eq!(default_index_path(&elsewhere), index);
    let opened = LayerIndex::open(&index, File::open(&elsewhere).unwrap()).unwrap();
    assert_eq!(opened.compare(File::open(&elsewhere).unwrap()).unwrap(), []);
}

#[test]
fn another_tree_is_stale() {
    let (one, other) = (indexed(), indexed());
    fs::copy(other.place(), one.place()).unwrap();
    expect_stale(&one);
}

#[test]
fn a_copy_with_the_same_times_is_stale() {
    let scratch = indexed();
    let old = scratch.dir.path().join("old");
    fs::rename(scratch.tree(), &old).unwrap();
    fs::create_dir(scratch.tree()).unwrap();
    let was = fs::symlink_metadata(&old).unwrap();
    use std::os::unix::fs::MetadataExt;
    fs::set_permissions(scratch.tree(), was.permissions()).unwrap();
    set_times(&scratch.tree(), (was.atime(), was.atime_nsec()), (was.mtime(), was.mtime_nsec()));
    expect_stale(&scratch);
}

#[test]
fn what_is_no_index_is_refused() {
    let scratch = Scratch::new();
    assert!(matches!(scratch.open(), Err(IndexError::File { source: rustix::io::Errno::NOENT, .. })));
    for contents in [&b""[..], b"short", &[0; 9000], b"a text that is longer than the magic"] {
        fs::write(scratch.place(), contents).unwrap();
        assert!(matches!(scratch.open(), Err(IndexError::NotAnIndex)));
    }
    fs::remove_file(scratch.place()).unwrap();
    // Nobody will ever write to this fifo: waiting for that would hang the mount.
    rustix::fs::mknodat(rustix::fs::CWD, scratch.place(), FileType::Fifo, Mode::RUSR, 0).unwrap();
    assert!(matches!(scratch.open(), Err(IndexError::NotAnIndex)));
    fs::remove_file(scratch.place()).unwrap();
    fs::create_dir(scratch.place()).unwrap();
    assert!(matches!(scratch.open(), Err(IndexError::NotAnIndex)));
}

#[test]
fn another_version_is_refused_by_number() {
    let scratch = indexed();
    let mut bytes = fs::read(scratch.place()).unwrap();
    bytes[8..12].copy_from_slice(&(VERSION + 1).to_le_bytes());
    fs::write(scratch.place(), bytes).unwrap();
    match scratch.open() {
        Err(IndexError::Version { found, supported }) => {
            assert_eq!((found, supported), (VERSION + 1, VERSION))
        }
        other => panic!("{other:?}"),
    }
}

fn with_header(scratch: &Scratch, change: impl FnOnce(&mut Header)) {
    let mut bytes = fs::read(scratch.place()).unwrap();
    let mut header = Header::decode(&bytes, bytes.len() as u64).unwrap();
    change(&mut header);
    let encoded = header.encode().unwrap();
    bytes[..encoded.len()].copy_from_slice(&encoded);
    fs::write(scratch.place(), bytes).unwrap();
}

#[test]
fn another_view_of_ids_is_refused() {
    let scratch = indexed();
    with_header(&scratch, |header| header.id_maps ^= 1);
    assert!(matches!(scratch.open(), Err(IndexError::Foreign { .. })));
}

#[test]
fn who_sees_trusted_xattrs_refuses_an_index_without() {
    let scratch = indexed();
    let sees = View::current().unwrap().trusted_xattrs;
    assert_eq!(sees, privileged("who_sees_trusted_xattrs_refuses_an_index_without"));
    with_header(&scratch, |header| header.trusted_xattrs = false);
    assert_eq!(matches!(scratch.open(), Err(IndexError::Foreign { .. })), sees);
    with_header(&scratch, |header| header.trusted_xattrs = true);
    scratch.open().unwrap();
}
