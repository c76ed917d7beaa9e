//! Whatever bytes a file is made of, the answer is right or an error.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use super::*;
use crate::index::format::{self, BLOCK_LEN, HEADER_LEN, Header};
use crate::index::{IndexBuilder, IndexError, ObjectMetadata};

/// A tree that has one of everything, in few bytes: every byte of its index is tried.
fn small() -> (Scratch, Vec<Answers>) {
    let scratch = Scratch::new();
    let tree = scratch.tree();
    fs::create_dir_all(tree.join("d/e")).unwrap();
    fs::write(tree.join("d/file"), b"x").unwrap();
    fs::hard_link(tree.join("d/file"), tree.join("another")).unwrap();
    fs::hard_link(tree.join("d/file"), tree.join("d/third")).unwrap();
    symlink("target", tree.join("link")).unwrap();
    let whiteout = tree.join("d/gone");
    rustix::fs::mknodat(rustix::fs::CWD, whiteout, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    set_xattr(&tree.join("d"), c"user.overlay.opaque", b"y");
    set_xattr(&tree.join("another"), c"user.two", b"2");
    let right = all_answers(&scratch.build());
    (scratch, right)
}

/// Every answer of the file at `scratch` is as in `right` or an error, and the damage is found.
fn expect_error_or_right(scratch: &Scratch, right: &[Answers], what: &str) {
    let Ok(index) = LayerIndex::open_unchecked(&scratch.place()) else { return };
    assert_eq!(index.entry_count() as usize, right.len(), "{what}");
    for (number, right) in right.iter().enumerate() {
        if let Ok(found) = answers(&index, number as u32) {
            assert_eq!(found, *right, "{what}");
        }
    }
    assert!(matches!(index.verify(), Err(IndexError::Damaged { .. })), "{what} not found by verify");
}

#[test]
fn every_changed_byte_is_found() {
    let (scratch, right) = small();
    let good = fs::read(scratch.place()).unwrap();
    let file = OpenOptions::new().write(true).open(scratch.place()).unwrap();
    for (at, byte) in good.iter().enumerate() {
        for change in [0x01, 0x80, 0xff] {
            file.write_all_at(&[byte ^ change], at as u64).unwrap();
            expect_error_or_right(&scratch, &right, &format!("byte {at} changed by {change:#x}"));
        }
        file.write_all_at(&[*byte], at as u64).unwrap();
    }
    assert_eq!(all_answers(&scratch.open().unwrap()), right);
}

#[test]
fn every_shortened_or_lengthened_file_is_refused() {
    let (scratch, _) = small();
    let good = fs::read(scratch.place()).unwrap();
    for len in 0..good.len() {
        fs::write(scratch.place(), &good[..len]).unwrap();
        let opened = LayerIndex::open_unchecked(&scratch.place());
        assert!(
            matches!(opened, Err(IndexError::NotAnIndex | IndexError::Damaged { .. })),
            "cut to {len} bytes"
        );
    }
    for more in [1, 4, BLOCK_LEN] {
        fs::write(scratch.place(), [&good[..], &vec![0; more]].concat()).unwrap();
        let opened = LayerIndex::open_unchecked(&scratch.place());
        assert!(matches!(opened, Err(IndexError::Damaged { .. })), "{more} bytes more");
    }
}

#[test]
fn zeroed_and_swapped_blocks_are_found() {
    let scratch = Scratch::new();
    fill(&scratch.tree(), false);
    let right = all_answers(&scratch.build());
    let good = fs::read(scratch.place()).unwrap();
    let header = Header::decode(&good, good.len() as u64).unwrap();
    let blocks = header.block_count() as usize - 1;
    assert!(blocks >= 2, "the tree is too small");
    let range = |block: usize| HEADER_LEN + block * BLOCK_LEN..HEADER_LEN + (block + 1) * BLOCK_LEN;
    for block in 0..blocks {
        let mut bad = good.clone();
        bad[range(block)].fill(0);
        fs::write(scratch.place(), &bad).unwrap();
        expect_error_or_right(&scratch, &right, &format!("block {block} zeroed"));
        let other = (block + 1) % blocks;
        bad[range(block)].copy_from_slice(&good[range(other)]);
        bad[range(other)].copy_from_slice(&good[range(block)]);
        fs::write(scratch.place(), &bad).unwrap();
        expect_error_or_right(&scratch, &right, &format!("blocks {block} and {other} swapped"));
    }
}

/// Bytes that are wrong behind right checksums, as a faulty or hostile builder makes them: the answers may be
/// anything, but they must come, without a panic and without an endless chain.
#[test]
fn nonsense_with_right_checksums_is_survived() {
    let (scratch, right) = small();
    let good = fs::read(scratch.place()).unwrap();
    let header = Header::decode(&good, good.len() as u64).unwrap();
    let sections = HEADER_LEN..header.checksums_at as usize;
    // A linear congruential generator (Knuth's MMIX): the same sequence every time.
    let mut state: u64 = 1;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let (mut errors, mut differing) = (0, 0);
    let mut bytes = Vec::new();
    // Every byte by itself, then several at random places.
    for round in 0..12_000 {
        bytes.clone_from(&good);
        for change in 0..=round % 3 {
            let at = if change == 0 {
                sections.start + round % sections.len()
            } else {
                sections.start + random(sections.len())
            };
            bytes[at] = [0, 1, 2, 250, 251, 252, 253, 255, random(256) as u8][random(9)];
        }
        for block in 0..header.block_count() as usize {
            let start = HEADER_LEN + block * BLOCK_LEN;
            let end = (start + BLOCK_LEN).min(sections.end);
            let sum = format::checksum(&bytes[start..end]).to_le_bytes();
            bytes[sections.end + block * 4..][..4].copy_from_slice(&sum);
        }
        fs::write(scratch.place(), &bytes).unwrap();
        let index = LayerIndex::open_unchecked(&scratch.place()).unwrap();
        for (number, right) in right.iter().enumerate() {
            match answers(&index, number as u32) {
                Ok(found) => differing += usize::from(found != *right),
                Err(_) => errors += 1,
            }
        }
        // Its outcome is open; that it ends is not.
        drop(index.verify());
    }
    assert!(errors > 1000 && differing > 1000, "nothing was put to the test: {errors} {differing}");
}

#[test]
fn entries_that_are_not_there_are_errors() {
    let (scratch, right) = small();
    let index = scratch.open().unwrap();
    for number in [right.len() as u32, right.len() as u32 + 1, u32::MAX - 1, u32::MAX] {
        let id = EntryId(number);
        assert!(matches!(index.entry(id), Err(IndexError::NoSuchEntry(_))));
        assert!(matches!(index.lookup(id, b"x"), Err(IndexError::NoSuchEntry(_))));
        assert!(matches!(index.children(id), Err(IndexError::NoSuchEntry(_))));
        assert!(matches!(index.path(id), Err(IndexError::NoSuchEntry(_))));
        assert!(matches!(index.hard_links(id), Err(IndexError::NoSuchEntry(_))));
    }
}

#[test]
fn opening_reads_the_same_few_blocks_of_any_index() {
    let scratch = Scratch::new();
    let root = ObjectMetadata::read(fs::File::open(scratch.tree()).unwrap(), c"").unwrap();
    let mut touched = Vec::new();
    for entries in [10_u32, 100_000] {
        let mut builder = IndexBuilder::new(&root).unwrap();
        let mut object = root.clone();
        object.stat.mode = 0o100_644;
        for number in 0..entries {
            object.stat.ino = u64::from(number) + 100;
            builder.insert(&[format!("name{number}").as_bytes()], &object).unwrap();
        }
        builder.finish(&scratch.place()).unwrap();
        let index = scratch.open().unwrap();
        assert_eq!(index.entry_count(), entries + 1);
        touched.push(index.verified_blocks());
        index.verify().unwrap();
        assert_eq!(index.verified_blocks(), index.block_count());
    }
    assert!(touched[1] <= 3, "{touched:?}");
}
