//! Random operations on the engine, without a mount: after each, the merged view is that of a plain directory.
//!
//! `LAYERFS_TEST_CASES` runs more cases than the default. Failures found stay as `regression_*` tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::fmt::Write as _;
use std::path::PathBuf;

use layerfs_tests::engine_world::{EngineWorld, Flavour};
use layerfs_tests::generate::{Case, Marks, cases};
use layerfs_tests::harness::readable;
use layerfs_tests::layers::LayerSpec;
use layerfs_tests::ops::{Op, Renaming, moves_the_root};
use layerfs_tests::scratch::Scratch;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

fn run(flavour: Flavour, default_cases: u32) {
    let scratch = Scratch::memory();
    let count = std::env::var("LAYERFS_TEST_CASES").ok().and_then(|text| text.parse().ok());
    let config = Config {
        cases: count.unwrap_or(default_cases),
        failure_persistence: None,
        max_shrink_iters: 2000,
        max_shrink_time: 30_000,
        ..Config::default()
    };
    let strategy = (cases(Marks::All, 30), any::<bool>());
    let result = TestRunner::new(config).run(&strategy, |(case, remembers)| {
        let home = tempfile::TempDir::with_prefix_in("case-", scratch.path()).unwrap();
        let mut trace = String::new();
        run_case(home.path(), flavour, &case, remembers, &mut trace).map_err(|fault| {
            TestCaseError::fail(readable(&format!(
                "{fault}\n--- {flavour:?}, remembers: {remembers}, the case:\n{trace}"
            )))
        })
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, _)) => panic!("{reason}"),
        Err(TestError::Abort(reason)) => panic!("aborted: {reason}"),
    }
}

fn run_case(
    home: &std::path::Path,
    flavour: Flavour,
    case: &Case,
    remembers: bool,
    trace: &mut String,
) -> Result<(), String> {
    for (number, layer) in case.layers.iter().enumerate() {
        write!(trace, "layer {number}:\n{layer}").unwrap();
    }
    let mut world =
        EngineWorld::new(&home.join("w"), flavour, &LayerSpec::default(), &case.layers, remembers)?;
    for step in &case.steps {
        let step = step.resolve(&world.listing());
        if moves_the_root(&step.op) {
            continue;
        }
        writeln!(trace, "{:?} umask {:03o}", step.op, step.umask).unwrap();
        world.step(&step.op, step.umask)?;
    }
    world.finish()
}

#[test]
fn the_engine_shows_what_a_plain_directory_shows_with_user_marks() {
    run(Flavour::User, 200);
}

#[test]
fn the_engine_shows_what_a_plain_directory_shows_with_trusted_marks() {
    if Flavour::possible().contains(&Flavour::Trusted) {
        run(Flavour::Trusted, 200);
    } else {
        layerfs_tests::privilege::skip("trusted xattrs need root");
    }
}

/// Operations on layers in the form of [`LayerSpec::parse`], in every flavour, with and without memory.
fn replay(layers: &[&str], ops: &[Op<PathBuf>]) {
    let scratch = Scratch::memory();
    let layers: Vec<_> = layers.iter().map(|text| LayerSpec::parse(text)).collect();
    for flavour in Flavour::possible() {
        for remembers in [true, false] {
            let home = tempfile::TempDir::with_prefix_in("case-", scratch.path()).unwrap();
            let run = || {
                let home = home.path().join("w");
                let mut world = EngineWorld::new(&home, *flavour, &LayerSpec::default(), &layers, remembers)?;
                for op in ops {
                    world.step(op, 0o022)?;
                }
                world.finish()
            };
            let result: Result<(), String> = run();
            result.unwrap_or_else(|fault| panic!("{flavour:?}, remembers {remembers}: {fault}"));
        }
    }
}

fn create(at: &str) -> Op<PathBuf> {
    Op::Create { at: at.into(), mode: 0o644, exclusive: false }
}

fn rename(from: &str, to: &str, how: Renaming) -> Op<PathBuf> {
    Op::Rename { from: from.into(), to: to.into(), how }
}

#[test]
fn regression_links_are_counted_after_an_exchange_of_their_directory() {
    let chmod = Op::Chmod { at: "c/a/a".into(), mode: 0o644 };
    let ops = [create("c/b"), create("c/a"), rename("c/a", "c/c", Renaming::Exchange), chmod];
    replay(&["f b\nd c\nd c/c\nh c/c/a b\nf d/a"], &ops);
}

#[test]
fn regression_a_directory_with_an_aufs_opaque_mark_can_be_renamed() {
    let ops = [create("a/c"), rename("b", "a/b/e", Renaming::Plain)];
    replay(&["f a/b/a\noa b", "d a\nd b\nd b/a"], &ops);
}

#[test]
fn regression_links_are_counted_when_one_was_unlinked() {
    replay(&["f c\nh a/a c"], &[Op::Unlink { at: "c".into() }]);
    replay(&["f d/a\nh d/d d/a\nf a/b"], &[rename("a/b", "d/a", Renaming::Plain)]);
}

#[test]
fn regression_other_names_outlive_an_unlinked_one() {
    for (gone, stays) in [("f", "other"), ("other", "f")] {
        let link = || Op::Link { from: "f".into(), to: "other".into(), follow: false };
        let read = || Op::Read { at: stays.into() };
        let write = || Op::Write {
            at: stays.into(),
            offset: 0,
            len: 2,
            fill: b'w',
            append: true,
            truncate: false,
            create: false,
        };
        replay(&["f f =x\nf g =g"], &[link(), Op::Remount, Op::Unlink { at: gone.into() }, read(), write()]);
        replay(
            &["f f =x\nf g =g"],
            &[link(), Op::Remount, rename("g", gone, Renaming::Plain), read(), write(), Op::Remount, read()],
        );
    }
}

#[test]
fn regression_links_in_a_renamed_directory_stay_links() {
    let chmod = Op::Chmod { at: "x".into(), mode: 0o600 };
    let write = Op::Write {
        at: "e/y".into(),
        offset: 0,
        len: 2,
        fill: b'w',
        append: true,
        truncate: false,
        create: false,
    };
    replay(&["f x =1\nd d\nh d/y x"], &[rename("d", "e", Renaming::Plain), chmod, Op::Remount, write]);
}
