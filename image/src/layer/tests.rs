//! Unpacking and packing against a real directory.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Mutex;

use super::*;
use crate::tar::{Entry, EntryKind, TarWriter, Xattr};

/// Records what is indexed.
#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<Recorded>>);

type Recorded = (String, ObjectStat, Vec<Xattr>);

struct Part<'a>(&'a Recorder);

impl LayerIndexBuilder for Part<'_> {
    fn insert(&mut self, path: &[&[u8]], object: IndexedObject<'_>) -> Result<(), IndexFailure> {
        let path = String::from_utf8_lossy(&path.join(&b'/')).into_owned();
        self.0.0.lock().unwrap().push((path, *object.stat, object.xattrs.to_vec()));
        Ok(())
    }

    fn finish(self: Box<Self>, _out: &Path) -> Result<(), IndexFailure> {
        Ok(())
    }
}

impl LayerIndexer for &'static Recorder {
    fn begin(&self, _root: IndexedObject<'_>) -> Result<Box<dyn LayerIndexBuilder>, IndexFailure> {
        Ok(Box::new(Part(self)))
    }

    fn build(&self, _tree: &Path, _index: &Path) -> Result<(), IndexFailure> {
        Ok(())
    }

    fn check(&self, _tree: &Path, _index: &Path) -> Result<(), IndexFailure> {
        Ok(())
    }
}

fn file(path: &str, content: &[u8]) -> (Entry, Vec<u8>) {
    let mut entry = Entry::new(path, EntryKind::File);
    entry.mode = 0o644;
    entry.size = content.len() as u64;
    (entry, content.to_vec())
}

fn archive(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    for (entry, content) in entries {
        writer.header(entry).unwrap();
        writer.data(&mut content.as_slice(), content.len() as u64).unwrap();
    }
    writer.finish().unwrap()
}

/// What is recorded for the index is what the disk says afterwards.
#[test]
fn the_index_gets_what_is_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let (mut with_xattr, content) = file("a/x", b"content");
    with_xattr.xattrs = vec![(b"user.foo".to_vec(), b"bar".to_vec())];
    let mut link = Entry::new("b", EntryKind::HardLink);
    link.link = b"a/x".to_vec();
    let tar = archive(&[(with_xattr, content), file("a/y", b"yy"), (link, Vec::new())]);
    let root = fs::File::open(&tree).unwrap();
    let marks = Marks::probe(root.as_fd()).unwrap();
    let mut unpacked = unpack(&*tar, root.into(), marks, Limits::default()).unwrap();
    let recorder: &'static Recorder = Box::leak(Box::default());
    unpacked.finish(&Stack::new(Vec::new()), &recorder, &dir.path().join("index")).unwrap();
    let recorded = recorder.0.lock().unwrap();
    assert_eq!(recorded.iter().map(|r| r.0.as_str()).collect::<Vec<_>>(), ["a", "b", "a/x", "a/y"]);
    for (path, stat, xattrs) in recorded.iter() {
        let on_disk = fs::File::open(tree.join(path)).unwrap();
        assert_eq!(*stat, disk::stat(disk::Target::Open(on_disk.as_fd())).unwrap(), "{path}");
        assert_eq!(*xattrs, disk::all_xattrs(on_disk.as_fd()).unwrap(), "{path}");
    }
    assert!(!recorded[2].2.is_empty(), "no xattr was recorded");
}

/// What comes of an archive that is unpacked on its own.
fn outcome(tar: &[u8], limits: Limits) -> Result<tempfile::TempDir, UnpackError> {
    let dir = tempfile::tempdir().unwrap();
    let root = fs::File::open(dir.path()).unwrap();
    let marks = Marks::probe(root.as_fd()).unwrap();
    let index = dir.path().with_extension("index");
    unpack(tar, root.into(), marks, limits)?.finish(&Stack::new(Vec::new()), &WithoutIndex, &index)?;
    Ok(dir)
}

fn object(kind: EntryKind, path: &str, link: &str) -> (Entry, Vec<u8>) {
    let mut entry = Entry::new(path, kind);
    entry.link = link.into();
    entry.mode = 0o755;
    (entry, Vec::new())
}

/// Directories keep their extended attributes in memory until the end.
#[test]
fn regression_bytes_of_xattrs_are_bounded() {
    let with_xattr = |path: &str| {
        let mut directory = object(EntryKind::Directory, path, "");
        directory.0.xattrs = vec![(b"user.x".to_vec(), vec![b'y'; 94])];
        directory
    };
    let tar = archive(&[with_xattr("a"), with_xattr("b")]);
    assert!(outcome(&tar, Limits { xattr_bytes: 200, ..Limits::default() }).is_ok());
    let error = outcome(&tar, Limits { xattr_bytes: 199, ..Limits::default() }).unwrap_err();
    assert!(matches!(error, UnpackError::Limit { what: "bytes of extended attributes", .. }), "{error}");
}

/// Each name is short, and leads on from where a symlink ends.
#[test]
fn regression_trees_deeper_than_paths_are_refused() {
    let deep = "d/".repeat(1000);
    let deeper = |levels: usize| {
        archive(&[
            object(EntryKind::Directory, &deep, ""),
            object(EntryKind::Symlink, "l", &deep),
            object(EntryKind::Directory, &format!("l/{}", "d/".repeat(levels)), ""),
        ])
    };
    remove_tree(outcome(&deeper(1048), Limits::default()).unwrap().path()).unwrap();
    let error = outcome(&deeper(1049), Limits::default()).unwrap_err();
    assert!(error.to_string().contains("2048 levels"), "{error}");
}

/// One entry can ask for two thousand directories.
#[test]
fn regression_missing_parents_count_as_entries() {
    let tar = archive(&[file("a/b/c", b""), file("a/b/d", b"")]);
    assert!(outcome(&tar, Limits { entries: 4, ..Limits::default() }).is_ok());
    let error = outcome(&tar, Limits { entries: 3, ..Limits::default() }).unwrap_err();
    assert!(matches!(error, UnpackError::Limit { what: "entries", limit: 3 }), "{error}");
}

/// A directory of such a name would hide what is below, or make its parent opaque.
#[test]
fn regression_names_through_whiteouts_are_refused() {
    for entries in [
        vec![file("a/.wh.b/c", b"")],
        vec![file(".wh.b/c", b"")],
        vec![file("d/.wh..wh..opq/c", b"")],
        vec![file(".wh..wh..opq/c", b"")],
        vec![file("a/.wh.b/.wh.c", b"")],
        vec![object(EntryKind::Symlink, "l", "a/.wh.b"), file("l/c", b"")],
        vec![object(EntryKind::Symlink, "l", "d/.wh..wh..opq/.."), file("l/c", b"")],
    ] {
        let error = outcome(&archive(&entries), Limits::default()).unwrap_err();
        assert!(error.to_string().contains("whiteout"), "{:?}: {error}", entries.last().map(|e| &e.0.path));
    }
    // What AUFS kept for itself has no place in the tree.
    let dir = outcome(&archive(&[file(".wh..wh.plnk/1.2", b"")]), Limits::default()).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Names that are read as marks are escaped; those of the other form show through a mount as they are on disk, the
/// kernel's too, and must be there as the archive has them.
#[test]
fn regression_marks_of_the_other_form_are_not_escaped() {
    for (trusted, name, stored) in [
        (true, "trusted.overlay.opaque", "trusted.overlay.overlay.opaque"),
        (true, "user.overlay.opaque", "user.overlay.opaque"),
        (true, "user.overlay.overlay.x", "user.overlay.overlay.x"),
        (false, "user.overlay.opaque", "user.overlay.overlay.opaque"),
        (false, "user.overlay.overlay.x", "user.overlay.overlay.overlay.x"),
        (false, "user.overlayx", "user.overlayx"),
    ] {
        let marks = Marks { trusted, devices: true, overrides: false };
        assert_eq!(marks.stored(name.as_bytes()).unwrap().to_str(), Ok(stored), "{name}, trusted: {trusted}");
    }
    // And they show as the archive has them.
    let mut directory = object(EntryKind::Directory, "d", "");
    directory.0.xattrs = vec![(b"user.overlay.redirect".to_vec(), b"/x".to_vec())];
    let dir = outcome(&archive(&[directory.clone()]), Limits::default()).unwrap();
    let stack = Stack::open(&[dir.path()]).unwrap();
    let shown = stack.lookup(&[b"d"]).unwrap().unwrap().describe(&stack).unwrap();
    assert_eq!(shown.xattrs, directory.0.xattrs);
}

/// Unpacks `tar` over the layer in `below`.
fn over(tar: &[u8], below: &Path, limits: Limits) -> Result<tempfile::TempDir, UnpackError> {
    let dir = tempfile::tempdir().unwrap();
    let root = fs::File::open(dir.path()).unwrap();
    let marks = Marks::probe(root.as_fd()).unwrap();
    let index = dir.path().with_extension("index");
    let stack = Stack::open(&[below]).unwrap();
    unpack(tar, root.into(), marks, limits)?.finish(&stack, &WithoutIndex, &index)?;
    Ok(dir)
}

/// A lower file is copied once, with its holes, whatever the names are by which the layer's links reach it.
#[test]
fn regression_links_to_one_lower_file_are_one_copy_with_holes() {
    use std::os::unix::fs::MetadataExt;
    let below = tempfile::tempdir().unwrap();
    fs::create_dir(below.path().join("usr")).unwrap();
    let lower = fs::File::create(below.path().join("usr/f")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&lower, b"data", 8 << 20).unwrap();
    lower.set_len(64 << 20).unwrap();
    fs::hard_link(below.path().join("usr/f"), below.path().join("g")).unwrap();
    std::os::unix::fs::symlink("usr", below.path().join("lib")).unwrap();
    let tar = archive(&[
        object(EntryKind::Symlink, "own", "/lib"),
        object(EntryKind::HardLink, "a", "usr/f"),
        object(EntryKind::HardLink, "b", "g"),
        object(EntryKind::HardLink, "c", "lib/f"),
        object(EntryKind::HardLink, "d/e", "own/f"),
        object(EntryKind::HardLink, "f", "a"),
    ]);
    let limits = Limits { bytes: 1 << 20, ..Limits::default() };
    let dir = over(&tar, below.path(), limits).unwrap();
    let first = fs::metadata(dir.path().join("a")).unwrap();
    assert_eq!((first.nlink(), first.len()), (5, 64 << 20));
    assert!(first.blocks() * 512 < 1 << 20, "{} blocks", first.blocks());
    for name in ["b", "c", "d/e", "f"] {
        assert_eq!(fs::metadata(dir.path().join(name)).unwrap().ino(), first.ino(), "{name}");
    }
    assert_eq!(&fs::read(dir.path().join("a")).unwrap()[8 << 20..][..5], b"data\0");
    let error = over(&tar, below.path(), Limits { bytes: 4095, ..Limits::default() }).unwrap_err();
    assert!(matches!(error, UnpackError::Limit { what: "bytes of data", .. }), "{error}");
}

/// Neither a whiteout nor the file that stands for one is a file of the layers below; what this layer hides is none
/// either.
#[test]
fn regression_links_to_marks_and_hidden_files_are_refused() {
    let below = tempfile::tempdir().unwrap();
    fs::write(below.path().join(".wh.gone"), "").unwrap();
    fs::create_dir(below.path().join("d")).unwrap();
    fs::write(below.path().join("d/f"), "").unwrap();
    let hidden = [file("d/.wh..wh..opq", b""), object(EntryKind::HardLink, "l", "d/f")];
    let replaced = [file("d", b""), object(EntryKind::HardLink, "l", "d/f")];
    for entries in [
        &[object(EntryKind::HardLink, "l", ".wh.gone")][..],
        &[object(EntryKind::HardLink, "l", "gone")],
        &[object(EntryKind::HardLink, "l", "d/f/x")],
        &hidden,
        &replaced,
    ] {
        let error = over(&archive(entries), below.path(), Limits::default()).unwrap_err();
        assert!(error.to_string().contains("hard link"), "{error}");
    }
    let link = archive(&[object(EntryKind::HardLink, "l", "d")]);
    let error = over(&link, below.path(), Limits::default()).unwrap_err();
    assert!(error.to_string().contains("hard link to a directory"), "{error}");
}
