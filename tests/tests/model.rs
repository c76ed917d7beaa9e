//! Random operations on the engine, without a mount: after each, the merged view is that of a plain directory.
//!
//! `LAYERFS_TEST_CASES` runs more cases than the default. Failures found stay as `regression_*` tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::fmt::Write as _;

use layerfs_tests::engine_world::{EngineWorld, Flavour};
use layerfs_tests::generate::{Case, Marks, cases};
use layerfs_tests::harness::readable;
use layerfs_tests::layers::LayerSpec;
use layerfs_tests::ops::moves_the_root;
use layerfs_tests::scratch::Scratch;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

fn run(flavour: Flavour, default_cases: u32) {
    let scratch = Scratch::plain();
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
            TestCaseError::fail(format!(
                "{fault}\n--- {flavour:?}, remembers: {remembers}, the case:\n{trace}"
            ))
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
