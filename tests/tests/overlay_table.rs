//! Each operation of the engine on each kind of place: lower, upper, merged, copied up, whited out, opaque.
//!
//! No mount and, with marks in the `user.` namespace, no privilege is needed. Every cell of the table runs in a
//! fresh world; the answer, the whole tree, the tree after opening the layers again, the lowers and `work` are
//! checked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::path::PathBuf;

use layerfs_tests::engine_world::{EngineWorld, Flavour};
use layerfs_tests::harness::readable;
use layerfs_tests::layers::LayerSpec;
use layerfs_tests::ops::{Allocation, Op, Renaming, Special, When, XattrHow};
use layerfs_tests::scratch::Scratch;

/// What the upper holds at the beginning: what earlier sessions left there.
const UPPER: &str = "
f up-file =upper *300 640 user.a=1
d up-dir
f up-dir/f =x
d up-empty
l up-link up-file
p up-fifo
h up-hard up-file
d merged
f merged/up =1
w merged/gone
o opaque
f opaque/new =n
w whiteout
f over-dir =file-over-a-directory
d over-file
";

/// The top lower layer.
const LOWER: &str = "
f file =lower *5000 644 user.a=1
f big =b *70000
f linked =linked *100
h linked-too linked
d dir 755
f dir/a =a
d dir/sub
f dir/sub/deep =deep
d empty
l link file
p fifo
f whiteout =gone
d merged
f merged/low =2
f merged/gone =3
d opaque
f opaque/old =o
d over-dir
f over-dir/hidden
f over-file =hidden
f deleted-below =again
";

/// The layer below that.
const BOTTOM: &str = "
d dir
f dir/bottom =b
d merged
f merged/bottom =4
d whited
f whited/x
d deleted-below
f deleted-below/x
";

/// Places to work on: one of each kind.
const PLACES: &[&str] = &[
    "file",
    "big",
    "linked",
    "dir",
    "dir/a",
    "dir/bottom",
    "dir/sub",
    "dir/sub/deep",
    "empty",
    "link",
    "fifo",
    "up-file",
    "up-hard",
    "up-dir",
    "up-empty",
    "up-link",
    "up-fifo",
    "merged",
    "merged/up",
    "merged/low",
    "merged/gone",
    "opaque",
    "opaque/new",
    "opaque/old",
    "whiteout",
    "over-dir",
    "over-file",
    "deleted-below",
    "absent",
    "file/below-a-file",
    "absent/below-nothing",
];

/// Runs every list of operations in a world of its own and tells about all that fail.
fn run_table(rows: &[Vec<Op<PathBuf>>]) {
    let scratch = Scratch::memory();
    let upper = LayerSpec::parse(UPPER);
    let lowers = [LayerSpec::parse(LOWER), LayerSpec::parse(BOTTOM)];
    let mut faults = Vec::new();
    let mut ran = 0;
    for flavour in Flavour::possible() {
        for (number, row) in rows.iter().enumerate() {
            // Both ways in turn; `LAYERFS_TEST_CASES` runs each row both ways.
            let turn = number % 2 == 0;
            for remembers in [turn, !turn].into_iter().take(if thorough() { 2 } else { 1 }) {
                let home = tempfile::TempDir::with_prefix_in("world-", scratch.path()).unwrap();
                let result = run_row(&home.path().join("w"), *flavour, &upper, &lowers, row, remembers);
                match result {
                    Ok(applicable) => ran += usize::from(applicable),
                    Err(fault) => {
                        faults.push(format!("{flavour:?}, remembers {remembers}: {row:?}:\n{fault}"))
                    }
                }
            }
        }
    }
    assert!(ran > 0, "no operation was applicable");
    let count = faults.len();
    faults.truncate(12);
    assert!(faults.is_empty(), "{count} cells failed:\n{}", readable(&faults.join("\n\n")));
}

fn run_row(
    home: &std::path::Path,
    flavour: Flavour,
    upper: &LayerSpec,
    lowers: &[LayerSpec],
    row: &[Op<PathBuf>],
    remembers: bool,
) -> Result<bool, String> {
    let hidden = ["gone", "old", "hidden", "x"];
    let mut world = EngineWorld::new(home, flavour, upper, lowers, remembers)?.probing(&hidden);
    let mut applicable = false;
    for op in row {
        applicable |= world.step(op, 0o022)?;
    }
    world.finish()?;
    Ok(applicable)
}

/// Whether to run everything there is.
fn thorough() -> bool {
    std::env::var_os("LAYERFS_TEST_CASES").is_some()
}

/// One row per place.
fn at_each_place(op: impl Fn(PathBuf) -> Vec<Op<PathBuf>>) -> Vec<Vec<Op<PathBuf>>> {
    PLACES.iter().map(|place| op(PathBuf::from(place))).collect()
}

#[test]
fn objects_are_made_everywhere() {
    let mut rows = at_each_place(|at| vec![Op::Create { at, mode: 0o640, exclusive: true }]);
    rows.extend(at_each_place(|at| vec![Op::Create { at, mode: 0o640, exclusive: false }]));
    rows.extend(at_each_place(|at| vec![Op::Mkdir { at, mode: 0o750 }]));
    rows.extend(at_each_place(|at| vec![Op::Symlink { at, text: "somewhere".into() }]));
    rows.extend(at_each_place(|at| vec![Op::Mknod { at, kind: Special::Fifo, mode: 0o600 }]));
    rows.extend(at_each_place(|at| vec![Op::Mknod { at, kind: Special::CharZero, mode: 0o600 }]));
    // In each directory, and in a directory that takes the place of something removed.
    rows.extend(at_each_place(|at| vec![Op::Create { at: at.join("child"), mode: 0o644, exclusive: true }]));
    rows.extend(at_each_place(|at| vec![Op::Mkdir { at: at.join("a"), mode: 0o755 }]));
    run_table(&rows);
}

#[test]
fn objects_are_removed_everywhere() {
    let mut rows = at_each_place(|at| vec![Op::Unlink { at }]);
    rows.extend(at_each_place(|at| vec![Op::Rmdir { at }]));
    // Removed and made again: nothing of what lay below may come back.
    rows.extend(at_each_place(|at| vec![Op::Unlink { at: at.clone() }, Op::Mkdir { at, mode: 0o755 }]));
    rows.extend(at_each_place(|at| {
        vec![
            Op::Unlink { at: at.clone() },
            Op::Create { at: at.clone(), mode: 0o644, exclusive: true },
            Op::Unlink { at },
        ]
    }));
    let empty_first = |dir: &str, names: &[&str]| {
        let at = PathBuf::from(dir);
        let mut row: Vec<_> = names.iter().map(|name| Op::Unlink { at: at.join(name) }).collect();
        row.push(Op::Rmdir { at: at.clone() });
        row.push(Op::Mkdir { at: at.clone(), mode: 0o700 });
        row.push(Op::Readdir { at: at.clone() });
        row.push(Op::Create { at: at.join("new"), mode: 0o644, exclusive: true });
        row
    };
    rows.push(empty_first("merged", &["up", "low", "bottom"]));
    rows.push(empty_first("opaque", &["new"]));
    rows.push(empty_first("up-dir", &["f"]));
    rows.push(empty_first("dir/sub", &["deep"]));
    rows.push(empty_first("empty", &[]));
    run_table(&rows);
}

#[test]
fn objects_are_renamed_from_everywhere_to_everywhere() {
    let mut rows = Vec::new();
    for how in [Renaming::Plain, Renaming::NoReplace, Renaming::Exchange, Renaming::Whiteout] {
        for (row, from) in PLACES.iter().enumerate() {
            for (column, to) in PLACES.iter().enumerate() {
                // Each place with a third of the others, another third for each way of renaming.
                if !thorough() && !(row + column + how as usize).is_multiple_of(3) {
                    continue;
                }
                let (from, to) = (PathBuf::from(from), PathBuf::from(to));
                // What replaces and exchanges is tested in all pairs; the others need one target of each kind.
                let few = ["absent", "whiteout", "file", "up-file", "dir", "merged/new", "up-empty"];
                if matches!(how, Renaming::NoReplace | Renaming::Whiteout)
                    && !few.iter().any(|t| to.as_os_str() == *t)
                {
                    continue;
                }
                rows.push(vec![Op::Rename { from, to, how }]);
            }
        }
    }
    run_table(&rows);
}

#[test]
fn renamed_directories_are_whole_and_can_be_changed() {
    let rename = |from: &str, to: &str| Op::Rename { from: from.into(), to: to.into(), how: Renaming::Plain };
    let mut rows = Vec::new();
    for (dir, inside) in
        [("dir", "a"), ("merged", "low"), ("up-dir", "f"), ("opaque", "new"), ("dir/sub", "deep")]
    {
        let moved = |name: &str| PathBuf::from("up-empty/moved").join(name);
        rows.push(vec![
            rename(dir, "up-empty/moved"),
            Op::Read { at: moved(inside) },
            Op::Write {
                at: moved(inside),
                offset: 1,
                len: 1,
                fill: b'!',
                append: false,
                truncate: false,
                create: false,
            },
            Op::Create { at: moved("fresh"), mode: 0o644, exclusive: true },
            Op::Unlink { at: moved(inside) },
            Op::Remount,
            rename("up-empty/moved", "back"),
            Op::Mkdir { at: dir.into(), mode: 0o711 },
            Op::Readdir { at: dir.into() },
            Op::Remount,
            rename("back", dir),
            Op::Unlink { at: PathBuf::from(dir).join("fresh") },
        ]);
        // Twice, with another directory at its old place, and a parent renamed too.
        rows.push(vec![
            rename(dir, "one"),
            rename("one", "empty/two"),
            rename("empty", "three"),
            Op::Mkdir { at: "empty".into(), mode: 0o755 },
            rename("three/two", "empty/four"),
            Op::Chmod { at: PathBuf::from("empty/four").join(inside), mode: 0o600 },
        ]);
    }
    run_table(&rows);
}

#[test]
fn hard_links_are_made_from_everywhere() {
    let mut rows = Vec::new();
    for from in PLACES {
        for to in ["absent", "whiteout", "file", "dir/new", "merged/gone", "opaque/old", "up-dir/new"] {
            let link = Op::Link { from: from.into(), to: to.into(), follow: false };
            let write = |at: &str| Op::Write {
                at: at.into(),
                offset: 0,
                len: 3,
                fill: b'W',
                append: true,
                truncate: false,
                create: false,
            };
            rows.push(vec![link, write(to), Op::Remount, Op::Unlink { at: from.into() }, write(to)]);
        }
    }
    // Links that lie in a lower layer.
    for (first, second) in [("linked", "linked-too"), ("linked-too", "linked"), ("up-file", "up-hard")] {
        let (first, second) = (PathBuf::from(first), PathBuf::from(second));
        rows.push(vec![
            Op::Chmod { at: first.clone(), mode: 0o600 },
            Op::Stat { at: second.clone(), follow: false },
            Op::Remount,
            Op::Unlink { at: first.clone() },
            Op::Stat { at: second.clone(), follow: false },
        ]);
        rows.push(vec![
            Op::Rename { from: first, to: "up-dir/moved".into(), how: Renaming::Plain },
            Op::Write {
                at: second,
                offset: 0,
                len: 5,
                fill: b'!',
                append: false,
                truncate: true,
                create: false,
            },
            Op::Read { at: "up-dir/moved".into() },
        ]);
    }
    run_table(&rows);
}

#[test]
fn attributes_are_changed_everywhere() {
    let mut rows = at_each_place(|at| vec![Op::Chmod { at, mode: 0o700 }]);
    rows.extend(at_each_place(|at| vec![Op::Chown { at, uid: Some(7), gid: Some(8), follow: false }]));
    for (access, modification) in [
        (When::At(1, 1), When::At(2, 999_999_999)),
        (When::Omit, When::At(-2, 500)),
        (When::At(5_000_000_000, 0), When::Omit),
        (When::Now, When::Now),
    ] {
        rows.extend(at_each_place(|at| vec![Op::Utimens { at, access, modification, follow: false }]));
    }
    // A change of attributes, then of data: the copy without data gets it.
    rows.extend(at_each_place(|at| {
        vec![
            Op::Chmod { at: at.clone(), mode: 0o755 },
            Op::Remount,
            Op::Read { at: at.clone() },
            Op::Write {
                at: at.clone(),
                offset: 10,
                len: 10,
                fill: b'+',
                append: false,
                truncate: false,
                create: false,
            },
            Op::Read { at },
        ]
    }));
    run_table(&rows);
}

#[test]
fn data_is_changed_everywhere() {
    let write = |at: PathBuf, append, truncate| Op::Write {
        at,
        offset: 3,
        len: 10,
        fill: b'w',
        append,
        truncate,
        create: false,
    };
    let mut rows = at_each_place(|at| vec![write(at.clone(), false, false), Op::Read { at }]);
    rows.extend(at_each_place(|at| vec![write(at.clone(), true, false), Op::Read { at }]));
    rows.extend(at_each_place(|at| vec![write(at.clone(), false, true), Op::Read { at }]));
    for size in [0, 1, 4096, 100_000] {
        rows.extend(at_each_place(|at| vec![Op::Truncate { at: at.clone(), size }, Op::Read { at }]));
    }
    for how in [
        Allocation::Plain,
        Allocation::KeepSize,
        Allocation::Punch,
        Allocation::Zero,
        Allocation::ZeroKeepSize,
    ] {
        rows.extend(at_each_place(|at| vec![Op::Fallocate { at, how, offset: 100, len: 8000 }]));
    }
    for to in ["file", "up-file", "big", "dir/a"] {
        rows.extend(at_each_place(|from| {
            vec![Op::CopyRange { from, to: to.into(), from_offset: 10, to_offset: 20, len: 4000 }]
        }));
    }
    run_table(&rows);
}

#[test]
fn xattrs_are_changed_everywhere() {
    let set = |at: &PathBuf, name: &str, value: &[u8], how| Op::SetXattr {
        at: at.clone(),
        name: name.into(),
        value: value.to_vec(),
        how,
    };
    let mut rows = Vec::new();
    for name in ["user.a", "user.b", "trusted.t"] {
        for how in [XattrHow::Any, XattrHow::Create, XattrHow::Replace] {
            rows.extend(at_each_place(|at| {
                vec![set(&at, name, b"value", how), Op::GetXattr { at, name: name.into() }]
            }));
        }
        rows.extend(at_each_place(|at| vec![Op::RemoveXattr { at, name: name.into() }]));
        rows.extend(at_each_place(|at| vec![Op::GetXattr { at, name: name.into() }]));
    }
    // Names of the overlay's own marks are the user's on a merged view, too, and mean nothing to the mount.
    for name in ["trusted.overlay.opaque", "trusted.overlay.whiteout", "trusted.overlay.redirect"] {
        for place in ["file", "dir", "up-file", "merged"] {
            let at = PathBuf::from(place);
            rows.push(vec![
                set(&at, name, b"y", XattrHow::Any),
                Op::GetXattr { at: at.clone(), name: name.into() },
                Op::Remount,
                Op::GetXattr { at: at.clone(), name: name.into() },
                Op::RemoveXattr { at, name: name.into() },
            ]);
        }
    }
    run_table(&rows);
}

#[test]
fn reading_changes_nothing() {
    let rows = at_each_place(|at| {
        vec![
            Op::Stat { at: at.clone(), follow: false },
            Op::Readdir { at: at.clone() },
            Op::Readlink { at: at.clone() },
            Op::Read { at },
        ]
    });
    run_table(&rows);
}
