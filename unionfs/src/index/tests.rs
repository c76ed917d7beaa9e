//! Tests of the layer index, and the trees that they are made on.

mod build;
mod damage;
mod faithful;
mod model;
mod stale;

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, Timespec, Timestamps};
use tempfile::TempDir;

use super::{EntryId, LayerIndex, build_index, default_index_path};
use crate::sys::xattr::{self, Target};

/// A scratch directory with a tree in it and room for its index beside the tree.
struct Scratch {
    dir: TempDir,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tree")).unwrap();
        Self { dir }
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    fn place(&self) -> PathBuf {
        default_index_path(&self.tree())
    }

    fn build(&self) -> LayerIndex {
        build_index(&self.tree(), &self.place()).unwrap();
        self.open().unwrap()
    }

    fn open(&self) -> Result<LayerIndex, super::IndexError> {
        LayerIndex::open(&self.place(), File::open(self.tree()).unwrap())
    }

    /// Names beside the tree and its index: what a failed build left behind.
    fn leftovers(&self) -> Vec<PathBuf> {
        let names = fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().path());
        names.filter(|p| *p != self.tree() && *p != self.place()).collect()
    }
}

/// True when the test may make devices and `trusted.` xattrs. Without the privilege it says so, and fails where all
/// privileges were promised.
fn privileged(test: &str) -> bool {
    let probe = tempfile::tempdir().unwrap();
    let dir = File::open(probe.path()).unwrap();
    let may = xattr::set(Target::Fd(dir.as_fd()), c"trusted.probe", b"", 0).is_ok()
        && rustix::fs::mknodat(&dir, "device", FileType::BlockDevice, Mode::RUSR, rustix::fs::makedev(7, 99))
            .is_ok();
    if !may {
        eprintln!("SKIPPED in {test}: needs CAP_SYS_ADMIN and CAP_MKNOD in the initial user namespace");
        assert!(
            std::env::var_os("LAYERFS_TEST_ALL_PRIVILEGES").is_none_or(|v| v != "1"),
            "privilege missing"
        );
    }
    may
}

fn set_xattr(path: &Path, name: &CStr, value: &[u8]) {
    let parent = File::open(path.parent().unwrap()).unwrap();
    let file = CString::new(path.file_name().unwrap().as_bytes()).unwrap();
    xattr::set(Target::Name(parent.as_fd(), &file), name, value, 0).unwrap();
}

fn set_times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) {
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time(atime), last_modification: time(mtime) };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A tree with every kind of object and every oddity that needs no privilege; with `all`, the others too.
fn fill(tree: &Path, all: bool) {
    let bytes = |name: &[u8]| tree.join(std::ffi::OsStr::from_bytes(name));
    fs::write(tree.join("plain"), b"contents").unwrap();
    fs::write(tree.join("empty"), b"").unwrap();
    File::create(tree.join("sparse")).unwrap().set_len(5 << 32).unwrap();
    fs::set_permissions(tree.join("plain"), PermissionsExt::from_mode(0o4751)).unwrap();
    fs::write(bytes(b"not\xffutf8\n\x01"), b"").unwrap();
    fs::write(bytes(&[b'n'; 255]), b"").unwrap();
    fs::write(tree.join(".wh.gone"), b"").unwrap();
    fs::create_dir(tree.join("dir")).unwrap();
    fs::set_permissions(tree.join("dir"), PermissionsExt::from_mode(0o3771)).unwrap();
    fs::create_dir(tree.join("dir/emptydir")).unwrap();
    fs::write(tree.join("dir/.wh..wh..opq"), b"").unwrap();
    fs::create_dir_all(tree.join("a/b/c")).unwrap();
    fs::write(tree.join("a/b/c/plain"), b"deeper").unwrap();
    for number in 0..100 {
        fs::write(tree.join(format!("dir/many{number}")), vec![0; number]).unwrap();
    }
    symlink("plain", tree.join("link")).unwrap();
    symlink("/nowhere/".repeat(100), tree.join("longlink")).unwrap();
    symlink(std::ffi::OsStr::from_bytes(b"\xfe\xff"), tree.join("dir/bytelink")).unwrap();
    symlink("a", tree.join("dirlink")).unwrap();
    fs::hard_link(tree.join("plain"), tree.join("dir/second")).unwrap();
    fs::hard_link(tree.join("plain"), tree.join("a/b/third")).unwrap();
    fs::hard_link(tree.join("link"), tree.join("a/samelink")).unwrap();
    let fifo = rustix::fs::mknodat(rustix::fs::CWD, tree.join("fifo"), FileType::Fifo, Mode::RUSR, 0);
    fifo.unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, tree.join("socket"), FileType::Socket, Mode::RUSR, 0).unwrap();
    let whiteout = tree.join("dir/whiteout");
    rustix::fs::mknodat(rustix::fs::CWD, whiteout, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    set_xattr(&tree.join("plain"), c"user.binary", b"\0\xff\n");
    set_xattr(&tree.join("plain"), c"user.empty", b"");
    set_xattr(&tree.join("dir"), c"user.overlay.opaque", b"y");
    set_xattr(&tree.join("a"), c"user.overlay.opaque", b"y");
    set_xattr(&tree.join("a/b/c/plain"), c"user.long", &[7; 600]);
    set_times(&tree.join("empty"), (-86_400, 999_999_999), (-1, 1));
    set_times(&tree.join("link"), (1, 2), (3, 4));
    set_times(&tree.join("sparse"), (5_000_000_000, 5), (6_000_000_000, 6));
    if all {
        let device = |name, file_type, (major, minor)| {
            let dev = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(rustix::fs::CWD, tree.join(name), file_type, Mode::RUSR, dev).unwrap();
        };
        device("block", FileType::BlockDevice, (8, 70_000));
        device("char", FileType::CharacterDevice, (500, 5));
        std::os::unix::fs::lchown(tree.join("link"), Some(70_000), Some(4_000_000_000)).unwrap();
        set_xattr(&tree.join("link"), c"trusted.onlink", b"value");
        set_xattr(&tree.join("fifo"), c"trusted.overlay.origin", b"o");
        set_xattr(&tree.join("char"), c"security.custom", b"s");
        let acl = [
            2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 5, 0, 255, 255, 255, 255, 0x20, 0, 5, 0, 255,
            255, 255, 255,
        ];
        set_xattr(&tree.join("dir"), c"system.posix_acl_default", &acl);
    }
}

/// Number, name, mode, inode number and device numbers of a child.
type Listed = (EntryId, Vec<u8>, u32, u64, u32, u32);

/// Everything that an index answers about one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answers {
    path: Vec<u8>,
    name: Vec<u8>,
    parent: EntryId,
    stat: super::IndexedStat,
    symlink: Option<Vec<u8>>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    children: Option<Vec<Listed>>,
    found_by_lookup: bool,
    hard_links: Vec<EntryId>,
}

fn answers(index: &LayerIndex, number: u32) -> Result<Answers, super::IndexError> {
    let id = EntryId(number);
    let entry = index.entry(id)?;
    let children = if entry.stat.is_dir() {
        let children = index
            .children(id)?
            .map(|child| child.map(|c| (c.id, c.name.to_vec(), c.mode, c.ino, c.rdev_major, c.rdev_minor)));
        Some(children.collect::<Result<_, _>>()?)
    } else {
        None
    };
    Ok(Answers {
        path: index.path(id)?,
        name: entry.name.to_vec(),
        parent: index.parent(id)?,
        stat: entry.stat,
        symlink: entry.symlink.map(<[u8]>::to_vec),
        xattrs: entry.xattrs()?.map(|(n, v)| (n.to_vec(), v.to_vec())).collect(),
        children,
        found_by_lookup: index.lookup(entry.parent, entry.name)? == Some(id),
        hard_links: index.hard_links(id)?,
    })
}

fn all_answers(index: &LayerIndex) -> Vec<Answers> {
    (0..index.entry_count()).map(|n| answers(index, n).unwrap()).collect()
}
