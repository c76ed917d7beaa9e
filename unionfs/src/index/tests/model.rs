//! Random sequences of insertions and removals, compared with a map of paths.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rustix::fs::FileType;

use super::*;
use crate::index::{IndexBuilder, IndexedStat, ObjectMetadata};

#[derive(Debug, Clone)]
enum Operation {
    Insert { parent: usize, name: Vec<u8>, object: ObjectMetadata },
    Remove { victim: usize },
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("not in a name", |b| !matches!(b, 0 | b'/'));
    // Few short names, so that some meet; and long ones, across blocks.
    let any_name = prop_oneof![
        4 => prop::collection::vec(prop::sample::select(b"abc".to_vec()), 1..3),
        2 => prop::collection::vec(byte, 1..256),
    ];
    any_name.prop_filter("dots", |n| n != b"." && n != b"..")
}

fn object() -> impl Strategy<Value = ObjectMetadata> {
    let types = [
        FileType::Directory,
        FileType::Directory,
        FileType::RegularFile,
        FileType::Symlink,
        FileType::CharacterDevice,
        FileType::BlockDevice,
        FileType::Fifo,
        FileType::Socket,
    ];
    let time = || (any::<i64>(), 0..1_000_000_000_u32);
    let xattrs = prop::collection::btree_map(
        prop::collection::vec(any::<u8>(), 1..20),
        prop::collection::vec(any::<u8>(), 0..3000),
        0..3,
    );
    let ids = (any::<u32>(), any::<u32>(), any::<(u32, u32)>(), any::<u32>());
    let sizes = (any::<u64>(), any::<u64>());
    (
        prop::sample::select(types.to_vec()),
        0..0o10000_u32,
        ids,
        sizes,
        (time(), time(), time()),
        xattrs,
        name(),
    )
        .prop_map(
            |(
                file_type,
                mode,
                (uid, gid, rdev, blksize),
                (size, blocks),
                (atime, mtime, ctime),
                xattrs,
                target,
            )| {
                let device = matches!(file_type, FileType::CharacterDevice | FileType::BlockDevice);
                let (rdev_major, rdev_minor) = if device { rdev } else { (0, 0) };
                let mode = file_type.as_raw_mode() | mode;
                let nlink = 1;
                let stat = IndexedStat {
                    mode,
                    uid,
                    gid,
                    rdev_major,
                    rdev_minor,
                    size,
                    blocks,
                    blksize,
                    nlink,
                    ino: 0,
                    atime,
                    mtime,
                    ctime,
                };
                let symlink = (file_type == FileType::Symlink).then_some(target);
                ObjectMetadata { stat, birth: None, symlink, xattrs: xattrs.into_iter().collect() }
            },
        )
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        8 => (any::<usize>(), name(), object())
            .prop_map(|(parent, name, object)| Operation::Insert { parent, name, object }),
        1 => any::<usize>().prop_map(|victim| Operation::Remove { victim }),
    ]
}

type Tree = BTreeMap<Vec<Vec<u8>>, ObjectMetadata>;

fn pick(
    tree: &Tree,
    number: usize,
    wanted: impl Fn(&Vec<Vec<u8>>, &ObjectMetadata) -> bool,
) -> Option<&Vec<Vec<u8>>> {
    let candidates: Vec<_> = tree.iter().filter(|(p, o)| wanted(p, o)).map(|(p, _)| p).collect();
    candidates.get(number % candidates.len().max(1)).copied()
}

fn slices(path: &[Vec<u8>]) -> Vec<&[u8]> {
    path.iter().map(Vec::as_slice).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_index_answers_as_the_map_does(operations in prop::collection::vec(operation(), 1..120)) {
        let scratch = Scratch::new();
        let root = ObjectMetadata::read(File::open(scratch.tree()).unwrap(), c"").unwrap();
        let mut builder = IndexBuilder::new(&root).unwrap();
        let mut tree = Tree::from([(vec![], root)]);
        for (number, operation) in operations.into_iter().enumerate() {
            match operation {
                Operation::Insert { parent, name, mut object } => {
                    object.stat.ino = 1_000_000 + number as u64;
                    let mut path = pick(&tree, parent, |_, o| o.stat.is_dir()).unwrap().clone();
                    path.push(name);
                    builder.insert(&slices(&path), &object).unwrap();
                    let keeps_children = object.stat.is_dir() && tree.get(&path).is_some_and(|o| o.stat.is_dir());
                    tree.retain(|p, _| keeps_children || !p.starts_with(&path));
                    tree.insert(path, object);
                }
                Operation::Remove { victim } => {
                    if let Some(path) = pick(&tree, victim, |p, _| !p.is_empty()).cloned() {
                        prop_assert!(builder.remove(&slices(&path)));
                        tree.retain(|p, _| !p.starts_with(&path));
                    }
                }
            }
        }
        builder.finish(&scratch.place()).unwrap();
        let index = scratch.open().unwrap();
        index.verify().unwrap();
        prop_assert_eq!(index.entry_count() as usize, tree.len());
        for (path, object) in &tree {
            let id = path.iter().fold(index.root(), |at, name| index.lookup(at, name).unwrap().unwrap());
            let found = answers(&index, id.get()).unwrap();
            prop_assert_eq!(&found.path, &path.join(&b'/'));
            prop_assert_eq!(&found.stat, &object.stat);
            prop_assert_eq!(&found.symlink, &object.symlink);
            prop_assert_eq!(&found.xattrs, &object.xattrs);
            prop_assert_eq!(found.hard_links, vec![id]);
            let children = tree.keys().filter(|p| p.len() == path.len() + 1 && p.starts_with(path));
            let listed = found.children.unwrap_or_default();
            prop_assert!(listed.iter().map(|c| &c.1).eq(children.map(|p| &p[path.len()])));
        }
    }
}
