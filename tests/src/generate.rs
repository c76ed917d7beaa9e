//! Random layer stacks and operations.
//!
//! Raw choices are generated and made sense of afterwards, so that every shrunk case is valid too: an entry
//! whose parent is no directory is left out, an index is taken modulo what exists.

use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;

use crate::layers::{Entry, LayerSpec, Meta, Node, OpaqueForm, WhiteoutForm, aufs_whiteout};
use crate::model::Model;
use crate::ops::{
    Allocation, NAMES, Op, Opening, Renaming, SLOTS, Special, Step, Target, When, Who, XattrHow, name,
};

/// Which marks the layers may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    /// Those that the kernel reads as well.
    Kernel,
    /// All forms, those of AUFS and fuse-overlayfs included.
    All,
}

/// A random case.
#[derive(Debug, Clone)]
pub struct Case {
    /// Top first; at least one.
    pub layers: Vec<LayerSpec>,
    /// What is done to the merged view.
    pub steps: Vec<Step<Target>>,
}

/// Cases over up to three layers with up to `steps` operations.
pub fn cases(marks: Marks, steps: usize) -> BoxedStrategy<Case> {
    (vec(layer(marks), 1..=3), vec(step(), 1..=steps))
        .prop_map(move |(mut layers, steps)| {
            if marks == Marks::Kernel {
                drop_stray_whiteouts(&mut layers);
            }
            Case { layers, steps }
        })
        .boxed()
}

/// Takes out whiteouts in directories that cover nothing: kernel overlayfs reads such a directory directly and
/// lists them, as names that then do not exist.
fn drop_stray_whiteouts(layers: &mut [LayerSpec]) {
    for number in (0..layers.len()).rev() {
        let below = Model::merge(&layers[number + 1..]).as_layer();
        let layer = &layers[number];
        let opaque = |dir: &Path| {
            layer.entries.iter().any(|e| dir.starts_with(&e.path) && matches!(e.node, Node::Dir(Some(_))))
        };
        let covers = |dir: &Path| {
            dir == Path::new("") && number + 1 < layers.len()
                || below.entries.iter().any(|e| e.path == dir && matches!(e.node, Node::Dir(_)))
                    && !opaque(dir)
        };
        let kept = layer
            .entries
            .iter()
            .filter(|e| !matches!(e.node, Node::Whiteout(_)) || e.path.parent().is_some_and(covers));
        layers[number] = LayerSpec { entries: kept.cloned().collect() };
    }
}

/// An entry before it is made sense of.
#[derive(Debug, Clone)]
struct Raw {
    /// Indexes of names from the root down.
    path: Vec<u8>,
    kind: RawKind,
    meta: Meta,
}

#[derive(Debug, Clone)]
enum RawKind {
    Dir(Option<OpaqueForm>),
    Leaf(Node),
    /// A hard link to some earlier leaf.
    Link(u8),
    Whiteout(WhiteoutForm),
}

/// A random layer.
pub fn layer(marks: Marks) -> BoxedStrategy<LayerSpec> {
    vec(raw_entry(marks), 0..14).prop_map(make_sense).boxed()
}

fn raw_entry(marks: Marks) -> impl Strategy<Value = Raw> {
    let opaque = match marks {
        Marks::Kernel => prop_oneof![4 => Just(None), 1 => Just(Some(OpaqueForm::Trusted))].boxed(),
        Marks::All => prop_oneof![
            4 => Just(None),
            1 => Just(Some(OpaqueForm::Trusted)),
            1 => Just(Some(OpaqueForm::FuseOverlayfs)),
            1 => Just(Some(OpaqueForm::Aufs)),
        ]
        .boxed(),
    };
    let whiteout = match marks {
        Marks::Kernel => prop_oneof![Just(WhiteoutForm::Device), Just(WhiteoutForm::Xattr)].boxed(),
        Marks::All => {
            prop_oneof![Just(WhiteoutForm::Device), Just(WhiteoutForm::Xattr), Just(WhiteoutForm::Aufs)]
                .boxed()
        }
    };
    let kind = prop_oneof![
        8 => opaque.prop_map(RawKind::Dir),
        8 => content().prop_map(|content| RawKind::Leaf(Node::File(content))),
        2 => link_text().prop_map(|text| RawKind::Leaf(Node::Symlink(text.into()))),
        1 => Just(RawKind::Leaf(Node::Fifo)),
        1 => Just(RawKind::Leaf(Node::Char(1, 3))),
        2 => any::<u8>().prop_map(RawKind::Link),
        3 => whiteout.prop_map(RawKind::Whiteout),
    ];
    (vec(layer_name(), 1..=3), kind, meta()).prop_map(|(path, kind, meta)| Raw { path, kind, meta })
}

/// Names in layers: as in operations, without the one that is too long to exist.
fn layer_name() -> impl Strategy<Value = u8> {
    prop_oneof![12 => 0..5_u8, 1 => 5..NAMES - 1]
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let len = prop_oneof![4 => 0..40_usize, 2 => Just(4096), 1 => 4000..9000_usize, 1 => Just(70_000)];
    (any::<u8>(), len).prop_map(|(fill, len)| vec![fill; len])
}

fn link_text() -> impl Strategy<Value = String> {
    // Relative and without `..`: what they lead to depends on the tree alone, not on where it lies.
    prop_oneof![Just("a"), Just("b"), Just("a/b"), Just("c/d"), Just("nowhere"), Just("e/a/b")]
        .prop_map(str::to_owned)
}

fn mode() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => Just(0o644),
        3 => Just(0o755),
        1 => Just(0o777),
        1 => Just(0o1777),
        1 => Just(0o2775),
        1 => Just(0o4755),
        1 => Just(0o2745),
        1 => Just(0o600),
        1 => Just(0o6777),
        1 => Just(0o000),
        1 => 0..0o10000_u32,
    ]
}

fn id() -> impl Strategy<Value = u32> {
    prop_oneof![3 => Just(0), 3 => Just(1000), 1 => Just(1001), 1 => Just(100_000)]
}

fn meta() -> impl Strategy<Value = Meta> {
    let time = prop_oneof![
        4 => Just(crate::layers::DEFAULT_TIME),
        1 => Just((-5, 250_000_000)),
        1 => Just((4_500_000_000, 999_999_999)),
    ];
    let xattrs = prop_oneof![
        4 => Just(Vec::new()),
        1 => Just(vec![("user.a".to_owned(), b"1".to_vec())]),
        1 => Just(vec![("trusted.t".to_owned(), b"2".to_vec())]),
    ];
    (mode(), id(), id(), time, xattrs).prop_map(|(mode, uid, gid, time, xattrs)| Meta {
        mode: Some(mode),
        uid,
        gid,
        time,
        xattrs,
    })
}

/// Keeps the entries that can be made one after the other.
fn make_sense(raw: Vec<Raw>) -> LayerSpec {
    let mut entries: Vec<Entry> = Vec::new();
    for Raw { path, kind, mut meta } in raw {
        let path: PathBuf = path.into_iter().map(name).collect();
        let exists = |path: &Path| entries.iter().find(|entry| entry.path == path);
        if exists(&path).is_some() {
            continue;
        }
        let mut parents = path.ancestors().skip(1).filter(|parent| *parent != Path::new(""));
        if parents.any(|parent| exists(parent).is_some_and(|entry| !matches!(entry.node, Node::Dir(_)))) {
            continue;
        }
        // A directory that an earlier, deeper entry implied is described only once, as implied.
        if entries.iter().any(|entry| entry.path.starts_with(&path)) {
            continue;
        }
        let opaque_parent =
            path.parent().and_then(exists).is_some_and(|entry| matches!(entry.node, Node::Dir(Some(_))));
        let node = match kind {
            RawKind::Dir(opaque) => Node::Dir(opaque),
            RawKind::Leaf(node) => node,
            RawKind::Whiteout(WhiteoutForm::Xattr) if opaque_parent => {
                // The parent's mark says either that it is opaque or that it holds xattr whiteouts.
                Node::Whiteout(WhiteoutForm::Device)
            }
            RawKind::Whiteout(WhiteoutForm::Aufs)
                if aufs_whiteout(&path).file_name().is_some_and(|name| name.len() > 255) =>
            {
                Node::Whiteout(WhiteoutForm::Device)
            }
            RawKind::Whiteout(form) => Node::Whiteout(form),
            RawKind::Link(index) => {
                let leaves: Vec<_> = entries
                    .iter()
                    .filter(|e| !matches!(e.node, Node::Dir(_) | Node::Link(_) | Node::Whiteout(_)))
                    .collect();
                if leaves.is_empty() {
                    continue;
                }
                Node::Link(leaves[usize::from(index) % leaves.len()].path.clone())
            }
        };
        if !matches!(node, Node::Dir(_) | Node::File(_)) {
            // User xattrs exist on files and directories only.
            meta.xattrs.retain(|(name, _)| !name.starts_with("user."));
        }
        entries.push(Entry { path, node, meta });
    }
    LayerSpec { entries }
}

fn target() -> BoxedStrategy<Target> {
    let names = || prop_oneof![16 => 0..5_u8, 1 => 5..NAMES];
    prop_oneof![
        8 => any::<u16>().prop_map(Target::Existing),
        6 => (any::<u16>(), names()).prop_map(|(dir, name)| Target::Name(dir, name)),
        1 => (any::<u16>(), names()).prop_map(|(parent, name)| Target::Below(parent, name)),
    ]
    .boxed()
}

/// A name to be made: mostly one in a directory.
fn new_name() -> impl Strategy<Value = Target> {
    prop_oneof![
        12 => (any::<u16>(), 0..5_u8).prop_map(|(dir, name)| Target::Name(dir, name)),
        2 => target(),
    ]
}

fn when() -> impl Strategy<Value = When> {
    prop_oneof![
        2 => Just(When::Now),
        2 => Just(When::Omit),
        2 => (0..2_000_000_000_i64, 0..1_000_000_000_i64).prop_map(|(s, n)| When::At(s, n)),
        1 => (-1_000_000_000..0_i64, 0..1_000_000_000_i64).prop_map(|(s, n)| When::At(s, n)),
        1 => (2_200_000_000..10_000_000_000_i64, 0..1_000_000_000_i64).prop_map(|(s, n)| When::At(s, n)),
    ]
}

/// An access control list in the kernel's binary form: owner, a user, group, mask, others.
fn acl(user: u32, bits: [u16; 5]) -> Vec<u8> {
    const NO_ID: u32 = u32::MAX;
    let entries =
        [(0x01, NO_ID), (0x02, user), (0x04, NO_ID), (0x10, NO_ID), (0x20, NO_ID)].into_iter().zip(bits);
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for ((tag, id), bits) in entries {
        let tag: u16 = tag;
        bytes.extend(tag.to_le_bytes());
        bytes.extend((bits & 7).to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn xattr() -> impl Strategy<Value = (String, Vec<u8>)> {
    let small = || vec(any::<u8>(), 0..20);
    let bits = || proptest::array::uniform5(0..8_u16);
    prop_oneof![
        3 => small().prop_map(|value| ("user.a".to_owned(), value)),
        2 => small().prop_map(|value| ("user.b".to_owned(), value)),
        2 => small().prop_map(|value| ("trusted.t".to_owned(), value)),
        1 => Just(("user.b".to_owned(), vec![b'v'; 2000])),
        2 => bits().prop_map(|bits| ("system.posix_acl_access".to_owned(), acl(1000, bits))),
        2 => bits().prop_map(|bits| ("system.posix_acl_default".to_owned(), acl(1001, bits))),
        // cap_net_raw, permitted, version 2
        1 => Just((
            "security.capability".to_owned(),
            b"\x00\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00".to_vec(),
        )),
    ]
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(0), 2 => 0..50_u64, 2 => 0..10_000_u64, 1 => Just(4096), 1 => 60_000..200_000_u64]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![3 => 0..40_u32, 2 => Just(4096), 1 => 0..20_000_u32]
}

/// A random operation with its circumstances.
pub fn step() -> BoxedStrategy<Step<Target>> {
    let who = prop_oneof![
        7 => Just(Who::Root),
        3 => Just(Who::User(1000, 1000)),
        1 => Just(Who::User(1001, 1000)),
    ];
    let umask = prop_oneof![6 => Just(0o022), 1 => Just(0), 1 => Just(0o077)];
    (who, umask, op()).prop_map(|(who, umask, op)| Step { who, umask, op }).boxed()
}

fn op() -> BoxedStrategy<Op<Target>> {
    prop_oneof![
        10 => op_on_data(),
        12 => op_on_names(),
        10 => op_on_metadata(),
        6 => op_on_kept(),
        1 => Just(Op::Remount),
    ]
    .boxed()
}

fn op_on_data() -> BoxedStrategy<Op<Target>> {
    let allocation = prop_oneof![
        Just(Allocation::Plain),
        Just(Allocation::KeepSize),
        Just(Allocation::Punch),
        Just(Allocation::Zero),
        Just(Allocation::ZeroKeepSize),
    ];
    prop_oneof![
        3 => (new_name(), mode(), any::<bool>())
            .prop_map(|(at, mode, exclusive)| Op::Create { at, mode, exclusive }),
        4 => (target(), offset(), length(), any::<u8>(), any::<[bool; 3]>()).prop_map(
            |(at, offset, len, fill, [append, truncate, create])| Op::Write {
                at, offset, len, fill, append, truncate, create
            }
        ),
        2 => target().prop_map(|at| Op::Read { at }),
        2 => (target(), offset()).prop_map(|(at, size)| Op::Truncate { at, size }),
        2 => (target(), allocation, offset(), 0..20_000_u64)
            .prop_map(|(at, how, offset, len)| Op::Fallocate { at, how, offset, len }),
        2 => (target(), target(), offset(), offset(), length()).prop_map(
            |(from, to, from_offset, to_offset, len)| Op::CopyRange { from, to, from_offset, to_offset, len }
        ),
    ]
    .boxed()
}

fn op_on_names() -> BoxedStrategy<Op<Target>> {
    let renaming = prop_oneof![
        10 => Just(Renaming::Plain),
        3 => Just(Renaming::NoReplace),
        4 => Just(Renaming::Exchange),
    ];
    let special = prop_oneof![
        3 => Just(Special::Fifo),
        2 => Just(Special::Socket),
        2 => Just(Special::Regular),
        2 => Just(Special::CharNull),
        1 => Just(Special::Block),
    ];
    prop_oneof![
        3 => (new_name(), mode()).prop_map(|(at, mode)| Op::Mkdir { at, mode }),
        2 => target().prop_map(|at| Op::Rmdir { at }),
        4 => target().prop_map(|at| Op::Unlink { at }),
        1 => (new_name(), link_text()).prop_map(|(at, text)| Op::Symlink { at, text }),
        3 => (target(), new_name(), any::<bool>()).prop_map(|(from, to, follow)| Op::Link { from, to, follow }),
        6 => (target(), target(), renaming.clone()).prop_map(|(from, to, how)| Op::Rename { from, to, how }),
        4 => (target(), new_name(), renaming).prop_map(|(from, to, how)| Op::Rename { from, to, how }),
        2 => (new_name(), special, mode()).prop_map(|(at, kind, mode)| Op::Mknod { at, kind, mode }),
        2 => target().prop_map(|at| Op::Readdir { at }),
    ]
    .boxed()
}

/// Operations that concern character device 0:0, which overlays use for themselves.
pub fn op_on_zero_devices() -> impl Strategy<Value = Op<Target>> {
    prop_oneof![
        (new_name(), mode()).prop_map(|(at, mode)| Op::Mknod { at, kind: Special::CharZero, mode }),
        (target(), target()).prop_map(|(from, to)| Op::Rename { from, to, how: Renaming::Whiteout }),
    ]
}

fn op_on_metadata() -> BoxedStrategy<Op<Target>> {
    let ids = || proptest::option::of(id());
    let how =
        prop_oneof![4 => Just(XattrHow::Any), 1 => Just(XattrHow::Create), 1 => Just(XattrHow::Replace)];
    prop_oneof![
        4 => (target(), mode()).prop_map(|(at, mode)| Op::Chmod { at, mode }),
        3 => (target(), ids(), ids(), any::<bool>())
            .prop_map(|(at, uid, gid, follow)| {
                // Neither owner nor group: the kernel keeps that from a FUSE server, set-id bits and all.
                let uid = if gid.is_none() { uid.or(Some(0)) } else { uid };
                Op::Chown { at, uid, gid, follow }
            }),
        3 => (target(), when(), when(), any::<bool>()).prop_map(|(at, access, modification, follow)| {
            Op::Utimens { at, access, modification, follow }
        }),
        3 => (target(), xattr(), how).prop_map(|(at, (name, value), how)| Op::SetXattr { at, name, value, how }),
        1 => (target(), xattr()).prop_map(|(at, (name, _))| Op::RemoveXattr { at, name }),
        1 => (target(), xattr()).prop_map(|(at, (name, _))| Op::GetXattr { at, name }),
        1 => target().prop_map(|at| Op::Readlink { at }),
        2 => (target(), any::<bool>()).prop_map(|(at, follow)| Op::Stat { at, follow }),
        1 => (target(), 0..8_u8).prop_map(|(at, mode)| Op::Access { at, mode }),
    ]
    .boxed()
}

fn op_on_kept() -> BoxedStrategy<Op<Target>> {
    let slot = || 0..SLOTS as u8;
    let opening = prop_oneof![
        4 => Just(Opening::Read),
        1 => Just(Opening::Write),
        1 => Just(Opening::Append),
        2 => Just(Opening::ReadWrite),
        2 => Just(Opening::Directory),
    ];
    prop_oneof![
        8 => (slot(), target(), opening).prop_map(|(slot, at, how)| Op::Keep { slot, at, how }),
        3 => (slot(), offset(), length()).prop_map(|(slot, offset, len)| Op::KeptRead { slot, offset, len }),
        3 => (slot(), offset(), length(), any::<u8>())
            .prop_map(|(slot, offset, len, fill)| Op::KeptWrite { slot, offset, len, fill }),
        3 => slot().prop_map(|slot| Op::KeptStat { slot }),
        1 => (slot(), offset()).prop_map(|(slot, size)| Op::KeptTruncate { slot, size }),
        1 => (slot(), mode()).prop_map(|(slot, mode)| Op::KeptChmod { slot, mode }),
        1 => (slot(), xattr()).prop_map(|(slot, (name, value))| Op::KeptSetXattr { slot, name, value }),
        1 => slot().prop_map(|slot| Op::KeptList { slot }),
        1 => (slot(), 0..5_u8).prop_map(|(slot, name)| Op::KeptCreate { slot, name }),
        1 => slot().prop_map(|slot| Op::KeptSync { slot }),
        1 => slot().prop_map(|slot| Op::Close { slot }),
    ]
    .boxed()
}
