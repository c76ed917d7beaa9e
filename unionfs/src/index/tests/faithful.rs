//! The index says what the directory says.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::*;
use crate::index::{DifferenceKind, IndexError};

#[test]
fn is_send_and_sync() {
    fn check<T: Send + Sync>() {}
    check::<LayerIndex>();
}

#[test]
fn every_object_is_as_on_disk() {
    let scratch = Scratch::new();
    let all = privileged("every_object_is_as_on_disk");
    fill(&scratch.tree(), all);
    let index = scratch.build();
    index.verify().unwrap();
    let seen = expect_same(&index, index.root(), &scratch.tree());
    assert_eq!(seen, index.entry_count());
    assert!(seen > 120, "the tree is not what it should be");
    assert_eq!(index.compare(File::open(scratch.tree()).unwrap()).unwrap(), []);
    assert_eq!(scratch.leftovers(), [] as [PathBuf; 0]);
}

/// Compares an entry and all below it with the tree as the standard library shows it; returns how many there are.
fn expect_same(index: &LayerIndex, id: EntryId, path: &Path) -> u32 {
    let entry = index.entry(id).unwrap();
    let on_disk = fs::symlink_metadata(path).unwrap();
    let stat = entry.stat;
    let time = |(sec, nsec): (i64, u32)| (sec, i64::from(nsec));
    assert_eq!(
        (stat.mode, stat.uid, stat.gid, stat.size, stat.ino, u64::from(stat.nlink), u64::from(stat.blksize)),
        (
            on_disk.mode(),
            on_disk.uid(),
            on_disk.gid(),
            on_disk.size(),
            on_disk.ino(),
            on_disk.nlink(),
            on_disk.blksize()
        ),
        "{path:?}"
    );
    assert_eq!(stat.blocks, on_disk.blocks(), "{path:?}");
    assert_eq!(time(stat.mtime), (on_disk.mtime(), on_disk.mtime_nsec()), "{path:?}");
    assert_eq!(time(stat.ctime), (on_disk.ctime(), on_disk.ctime_nsec()), "{path:?}");
    if on_disk.is_file() {
        assert_eq!(time(stat.atime), (on_disk.atime(), on_disk.atime_nsec()), "{path:?}");
    }
    let is_device = on_disk.file_type().is_char_device() || on_disk.file_type().is_block_device();
    let dev = if is_device { on_disk.rdev() } else { 0 };
    assert_eq!(
        (stat.rdev_major, stat.rdev_minor),
        (rustix::fs::major(dev), rustix::fs::minor(dev)),
        "{path:?}"
    );
    let target = on_disk.is_symlink().then(|| fs::read_link(path).unwrap());
    assert_eq!(entry.symlink, target.as_deref().map(|t| t.as_os_str().as_bytes()), "{path:?}");
    expect_same_xattrs(&entry, path);
    expect_same_links(index, id, on_disk.ino());
    if !on_disk.is_dir() {
        assert!(matches!(index.children(id), Err(IndexError::NotADirectory(_))));
        assert!(matches!(index.lookup(id, b"x"), Err(IndexError::NotADirectory(_))));
        return 1;
    }
    let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    let children: Vec<_> = index.children(id).unwrap().map(Result::unwrap).collect();
    assert_eq!(
        children.iter().map(|c| c.name).collect::<Vec<_>>(),
        names.iter().map(|n| n.as_bytes()).collect::<Vec<_>>()
    );
    assert_eq!(index.children(id).unwrap().len(), names.len());
    assert_eq!(index.children(id).unwrap().nth(1).map(Result::unwrap), children.get(1).copied());
    assert!(index.children(id).unwrap().nth(names.len()).is_none());
    for absent in [&b""[..], b".", b"..", b"absent", b"zzzz", b"\xff\xff\xff", b"plai", b"plainn"] {
        assert_eq!(index.lookup(id, absent).unwrap(), None);
    }
    let below: u32 = children
        .iter()
        .map(|child| {
            let entry = index.entry(child.id).unwrap();
            assert_eq!(index.lookup(id, child.name).unwrap(), Some(child.id));
            assert_eq!((entry.name, entry.parent, index.parent(child.id).unwrap()), (child.name, id, id));
            assert_eq!((entry.stat.mode, entry.stat.ino), (child.mode, child.ino));
            assert_eq!((entry.stat.rdev_major, entry.stat.rdev_minor), (child.rdev_major, child.rdev_minor));
            let child_path = path.join(std::ffi::OsStr::from_bytes(child.name));
            assert!(child_path.as_os_str().as_bytes().ends_with(&index.path(child.id).unwrap()));
            expect_same(index, child.id, &child_path)
        })
        .sum();
    below + 1
}

fn expect_same_xattrs(entry: &super::super::Entry<'_>, path: &Path) {
    let parent = File::open(path.parent().unwrap()).unwrap();
    let name = CString::new(path.file_name().unwrap().as_bytes()).unwrap();
    let target = Target::Name(parent.as_fd(), &name);
    let mut on_disk: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for name in xattr::list_vec(target).unwrap() {
        let value = xattr::get_vec(target, &CString::new(name.clone()).unwrap()).unwrap().unwrap();
        assert_eq!(entry.xattr(&name).unwrap(), Some(value.as_slice()), "{path:?}");
        on_disk.push((name, value));
    }
    on_disk.sort();
    let indexed: Vec<_> = entry.xattrs().unwrap().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
    assert_eq!(indexed, on_disk, "{path:?}");
    assert_eq!(entry.has_xattrs(), !on_disk.is_empty());
    assert_eq!(entry.xattr(b"user.absent").unwrap(), None);
}

fn expect_same_links(index: &LayerIndex, id: EntryId, ino: u64) {
    let same: Vec<EntryId> = (0..index.entry_count())
        .map(EntryId)
        .filter(|other| index.entry(*other).unwrap().stat.ino == ino)
        .collect();
    assert_eq!(index.hard_links(id).unwrap(), same);
}

#[test]
fn compare_names_every_change() {
    let scratch = Scratch::new();
    let tree = scratch.tree();
    fill(&tree, false);
    let index = scratch.build();
    fs::remove_file(tree.join("dir/many7")).unwrap();
    fs::remove_dir_all(tree.join("a/b")).unwrap();
    fs::create_dir_all(tree.join("new/below")).unwrap();
    fs::write(tree.join("dir/many9"), b"other length").unwrap();
    set_xattr(&tree.join("empty"), c"user.added", b"1");
    fs::remove_file(tree.join("longlink")).unwrap();
    symlink("elsewhere", tree.join("longlink")).unwrap();
    fs::remove_file(tree.join("fifo")).unwrap();
    fs::create_dir(tree.join("fifo")).unwrap();
    let found = index.compare(File::open(&tree).unwrap()).unwrap();
    let kind = |path: &str| {
        let of_path: Vec<_> = found.iter().filter(|d| d.path == Path::new(path)).collect();
        assert_eq!(of_path.len(), 1, "{path}: {found:?}");
        of_path[0].kind.clone()
    };
    let changed = |path: &str, what: &str| match kind(path) {
        DifferenceKind::Changed(all) => assert!(all.contains(&what), "{path}: {all:?} lacks {what}"),
        other => panic!("{path}: {other:?}"),
    };
    assert_eq!(kind("dir/many7"), DifferenceKind::OnlyInIndex);
    assert_eq!(kind("a/b"), DifferenceKind::OnlyInIndex);
    assert_eq!(kind("new"), DifferenceKind::OnlyInTree);
    changed("dir/many9", "size");
    changed("empty", "xattrs");
    changed("longlink", "target");
    changed("fifo", "type");
    changed("plain", "links");
    changed("", "mtime");
    for quiet in ["new/below", "a/b/c", "dir/many8", "dir/emptydir"] {
        assert!(found.iter().all(|d| d.path != Path::new(quiet)), "{quiet}: {found:?}");
    }
}

#[test]
fn same_object_sees_changes_and_ignores_reading() {
    let scratch = Scratch::new();
    let file = scratch.tree().join("file");
    fs::write(&file, b"contents").unwrap();
    let index = scratch.build();
    let id = index.lookup(index.root(), b"file").unwrap().unwrap();
    let same = || {
        let parent = File::open(scratch.tree()).unwrap();
        let st = super::super::metadata::stat_at(parent.as_fd(), c"file").unwrap();
        index.entry(id).unwrap().stat.same_object(&st)
    };
    assert!(same());
    assert_eq!(fs::read(&file).unwrap(), b"contents");
    assert!(same());
    let mtime = fs::symlink_metadata(&file).unwrap();
    fs::write(&file, b"CONTENTS").unwrap();
    set_times(&file, (0, 0), (mtime.mtime(), mtime.mtime_nsec()));
    assert!(!same(), "the ctime tells");
}
