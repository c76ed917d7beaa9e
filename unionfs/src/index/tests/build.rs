//! Building: from a tree and entry by entry.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use rustix::fs::OFlags;

use super::*;
use crate::index::walk::{Visitor, walk};
use crate::index::{IndexBuilder, IndexError, ObjectMetadata};

#[test]
fn the_summary_counts() {
    let scratch = Scratch::new();
    fill(&scratch.tree(), false);
    let summary = build_index(&scratch.tree(), &scratch.place()).unwrap();
    let index = scratch.open().unwrap();
    assert_eq!(summary.path, scratch.place());
    assert_eq!(summary.entries, index.entry_count());
    assert_eq!(summary.directories, 6);
    assert_eq!(summary.extra_links, 3);
    assert_eq!(summary.bytes, fs::metadata(scratch.place()).unwrap().len());
    assert_eq!(summary.bytes, index.file_len());
}

#[test]
fn building_again_replaces_what_readers_keep() {
    let scratch = Scratch::new();
    fs::write(scratch.tree().join("old"), b"").unwrap();
    let old = scratch.build();
    fs::write(scratch.tree().join("new"), b"").unwrap();
    let new = scratch.build();
    assert_eq!(old.lookup(old.root(), b"new").unwrap(), None);
    assert!(new.lookup(new.root(), b"new").unwrap().is_some());
    old.verify().unwrap();
}

#[test]
fn a_place_within_the_tree_is_refused() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.tree().join("sub")).unwrap();
    symlink(scratch.tree().join("sub"), scratch.dir.path().join("way")).unwrap();
    for place in ["tree/index", "tree/sub/index", "way/index", "tree/sub/../index"] {
        let built = build_index(&scratch.tree(), &scratch.dir.path().join(place));
        assert!(matches!(built, Err(IndexError::WithinTree { .. })), "{place}: {built:?}");
    }
    assert!(default_index_path(Path::new("/")).starts_with("/"));
}

#[test]
fn default_place_is_beside_the_real_tree() {
    let scratch = Scratch::new();
    let beside = scratch.dir.path().canonicalize().unwrap().join("tree.layerfs-index");
    symlink("tree", scratch.dir.path().join("alias")).unwrap();
    for way in ["tree", "tree/", "tree/.", "alias", "tree/../alias"] {
        assert_eq!(default_index_path(&scratch.dir.path().join(way)), beside, "{way}");
    }
    assert_eq!(default_index_path(Path::new("absent/x")), Path::new("absent/x.layerfs-index"));
}

#[test]
fn a_failed_build_leaves_nothing_and_keeps_the_old_index() {
    let scratch = Scratch::new();
    fs::write(scratch.tree().join("file"), b"").unwrap();
    let built = build_index(&scratch.tree(), &scratch.dir.path().join("absent/index"));
    assert!(matches!(built, Err(IndexError::File { source: rustix::io::Errno::NOENT, .. })), "{built:?}");
    let missing = build_index(&scratch.dir.path().join("absent"), &scratch.place());
    assert!(matches!(missing, Err(IndexError::Tree { .. })), "{missing:?}");
    // A directory in the place cannot be replaced by a file: the last step fails.
    fs::create_dir_all(scratch.place().join("full")).unwrap();
    let built = build_index(&scratch.tree(), &scratch.place());
    assert!(matches!(built, Err(IndexError::File { .. })), "{built:?}");
    assert_eq!(scratch.leftovers(), [] as [PathBuf; 0]);
}

/// What is done to the tree when an object of the given name is shown.
type Act = fn(&Path, &[u8]);

/// Writes to the tree while it is walked.
struct Meddler<'a> {
    tree: &'a Path,
    act: Act,
}

impl Visitor for Meddler<'_> {
    type Directory = ();

    fn object(&mut self, (): (), name: &[u8], object: &ObjectMetadata) -> Result<Option<()>, IndexError> {
        (self.act)(self.tree, name);
        Ok(object.stat.is_dir().then_some(()))
    }

    fn listed(&mut self, (): ()) -> Result<(), IndexError> {
        Ok(())
    }
}

#[test]
fn a_tree_that_changes_meanwhile_is_refused() {
    let grow: Act = |tree, name| {
        if name == b"f" {
            fs::write(tree.join("d/e/g"), b"").unwrap();
        }
    };
    let chmod: Act = |tree, name| {
        if name == b"f" {
            fs::set_permissions(tree.join("d/e"), PermissionsExt::from_mode(0o700)).unwrap();
        }
    };
    let rename: Act = |tree, name| {
        if name == b"e" {
            fs::rename(tree.join("d/e"), tree.join("x")).unwrap();
        }
    };
    let remove: Act = |tree, name| {
        if name == b"e" {
            fs::remove_dir_all(tree.join("d/e")).unwrap();
        }
    };
    let grow_before_listing: Act = |tree, name| {
        if name == b"d" {
            fs::write(tree.join("d/late"), b"").unwrap();
        }
    };
    let cases = [(grow, "d/e"), (chmod, "d/e"), (rename, "d"), (remove, "d"), (grow_before_listing, "d")];
    for (number, (act, changed)) in cases.into_iter().enumerate() {
        let scratch = Scratch::new();
        let tree = scratch.tree();
        fs::create_dir_all(tree.join("d/e")).unwrap();
        fs::write(tree.join("d/e/f"), b"").unwrap();
        let root = File::open(&tree).unwrap();
        let stat = ObjectMetadata::read(&root, c"").unwrap().stat;
        match walk(root.as_fd(), (), &stat, &mut Meddler { tree: &tree, act }) {
            Err(IndexError::Changed { path }) => assert_eq!(path, Path::new(changed), "case {number}"),
            other => panic!("case {number}: {other:?}"),
        }
    }
}

/// Deeper than descriptors are kept for, and than a path can be long, with something on the way back of each level.
#[test]
fn a_deep_tree_is_walked_without_paths() {
    const DEPTH: usize = 200;
    let scratch = Scratch::new();
    let name = "n".repeat(60);
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at: OwnedFd = File::open(scratch.tree()).unwrap().into();
    for _ in 0..DEPTH {
        for dir in [name.as_str(), "a", "z"] {
            rustix::fs::mkdirat(&at, dir, Mode::RWXU).unwrap();
        }
        rustix::fs::mkdirat(&at, "z/below", Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, name.as_str(), flags, Mode::empty()).unwrap();
    }
    let index = scratch.build();
    assert_eq!(index.entry_count() as usize, 1 + DEPTH * 4);
    let mut id = index.root();
    for _ in 0..DEPTH {
        let z = index.lookup(id, b"z").unwrap().unwrap();
        assert!(index.lookup(z, b"below").unwrap().is_some());
        id = index.lookup(id, name.as_bytes()).unwrap().unwrap();
    }
    assert_eq!(index.path(id).unwrap(), vec![name.as_bytes(); DEPTH].join(&b'/'));
    assert_eq!(index.compare(File::open(scratch.tree()).unwrap()).unwrap(), []);
    index.verify().unwrap();
}

/// Runs one of the `inside_` tests in a mount namespace of its own, after `setup` (a shell script; `$1` is the
/// scratch directory).
fn in_mount_namespace(test: &str, scratch: &Scratch, setup: &str) {
    let script =
        format!("set -e; {setup}; exec \"$0\" --exact --ignored --nocapture index::tests::build::{test}");
    let status = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .arg(scratch.dir.path())
        .env("LAYERFS_TEST_TREE", scratch.tree())
        .status()
        .unwrap();
    assert!(status.success(), "{test}: {status}");
}

#[test]
fn another_filesystem_or_mount_is_refused_by_name() {
    if !privileged("another_filesystem_or_mount_is_refused_by_name") {
        return;
    }
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.tree().join("dir/mountpoint")).unwrap();
    in_mount_namespace("inside_crossing", &scratch, "mount -t tmpfs none \"$1/tree/dir/mountpoint\"");
    in_mount_namespace("inside_crossing", &scratch, "mount --bind \"$1\" \"$1/tree/dir/mountpoint\"");
    fs::remove_dir(scratch.tree().join("dir/mountpoint")).unwrap();
    fs::write(scratch.tree().join("dir/mountpoint"), b"").unwrap();
    in_mount_namespace(
        "inside_crossing",
        &scratch,
        "mount --bind \"$1/tree/dir/mountpoint\" \"$1/tree/dir/mountpoint\"",
    );
    assert!(!scratch.place().exists());
}

#[test]
#[ignore = "run by another_filesystem_or_mount_is_refused_by_name"]
fn inside_crossing() {
    let tree = PathBuf::from(std::env::var_os("LAYERFS_TEST_TREE").unwrap());
    match build_index(&tree, &default_index_path(&tree)) {
        Err(IndexError::CrossesFilesystem { path }) => assert_eq!(path, Path::new("dir/mountpoint")),
        other => panic!("{other:?}"),
    }
}

fn read(scratch: &Scratch, path: &str) -> ObjectMetadata {
    let path = scratch.tree().join(path);
    let dir = File::open(path.parent().unwrap()).unwrap();
    ObjectMetadata::read(dir, &CString::new(path.file_name().unwrap().as_bytes()).unwrap()).unwrap()
}

/// As an unpacker does it: metadata as of when the object was made, directories again at the end.
#[test]
fn entry_by_entry_equals_the_walk() {
    let scratch = Scratch::new();
    let tree = scratch.tree();
    let root = |scratch: &Scratch| ObjectMetadata::read(File::open(scratch.tree()).unwrap(), c"").unwrap();
    let mut builder = IndexBuilder::new(&root(&scratch)).unwrap();
    fs::create_dir(tree.join("d")).unwrap();
    builder.insert(&[b"d"], &read(&scratch, "d")).unwrap();
    fs::write(tree.join("d/file"), b"1").unwrap();
    builder.insert(&[b"d", b"file"], &read(&scratch, "d/file")).unwrap();
    fs::hard_link(tree.join("d/file"), tree.join("link")).unwrap();
    builder.insert(&[b"link"], &read(&scratch, "link")).unwrap();
    // A directory that becomes a file, with what was in it.
    fs::create_dir_all(tree.join("x/y/z")).unwrap();
    for path in ["x", "x/y", "x/y/z"] {
        let names: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
        builder.insert(&names, &read(&scratch, path)).unwrap();
    }
    fs::remove_dir_all(tree.join("x/y")).unwrap();
    symlink("target", tree.join("x/y")).unwrap();
    builder.insert(&[b"x", b"y"], &read(&scratch, "x/y")).unwrap();
    fs::write(tree.join("gone"), b"").unwrap();
    builder.insert(&[b"gone"], &read(&scratch, "gone")).unwrap();
    fs::remove_file(tree.join("gone")).unwrap();
    assert!(builder.remove(&[b"gone"]));
    assert!(!builder.remove(&[b"gone"]) && !builder.remove(&[b"x", b"y", b"z"]) && !builder.remove(&[]));
    set_xattr(&tree.join("d"), c"user.late", b"1");
    builder.insert(&[b"d"], &read(&scratch, "d")).unwrap();
    builder.insert(&[b"x"], &read(&scratch, "x")).unwrap();
    builder.insert(&[], &root(&scratch)).unwrap();
    builder.finish(&scratch.place()).unwrap();
    let one_by_one = scratch.open().unwrap();
    one_by_one.verify().unwrap();
    assert_eq!(one_by_one.compare(File::open(&tree).unwrap()).unwrap(), []);
    // Reading a symlink sets its atime, and nothing can prevent that.
    let without_atime = |index: &LayerIndex| {
        let mut all = all_answers(index);
        all.iter_mut().for_each(|a| a.stat.atime = (0, 0));
        all
    };
    assert_eq!(without_atime(&one_by_one), without_atime(&scratch.build()));
}

#[test]
fn paths_that_lead_nowhere_are_refused() {
    let scratch = Scratch::new();
    fs::write(scratch.tree().join("file"), b"").unwrap();
    symlink("x", scratch.tree().join("link")).unwrap();
    let (file, link) = (read(&scratch, "file"), read(&scratch, "link"));
    let root = ObjectMetadata::read(File::open(scratch.tree()).unwrap(), c"").unwrap();
    let mut builder = IndexBuilder::new(&root).unwrap();
    builder.insert(&[b"file"], &file).unwrap();
    let untargeted = ObjectMetadata { symlink: None, ..link };
    let mut typeless = file.clone();
    typeless.stat.mode = 0o644;
    let cases: [(&[&[u8]], &ObjectMetadata); 9] = [
        (&[b"absent", b"x"], &file),
        (&[b"file", b"x"], &file),
        (&[b""], &file),
        (&[b".."], &file),
        (&[b"a/b"], &file),
        (&[b"a\0"], &file),
        (&[b"link"], &untargeted),
        (&[b"typeless"], &typeless),
        (&[], &file),
    ];
    for (path, metadata) in cases {
        let inserted = builder.insert(path, metadata);
        assert!(matches!(inserted, Err(IndexError::BadPath { .. })), "{path:?}: {inserted:?}");
    }
    assert!(IndexBuilder::new(&file).is_err());
}
