//! Random operations on random layer stacks: the mount must answer as a plain directory does.
//!
//! The number of cases is small by default; `LAYERFS_TEST_CASES=1000` runs longer. Each failure found stays
//! as a named `regression_*` test. What may differ is listed in [`DEPARTURES`], with its reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::path::PathBuf;

use layerfs_tests::generate::{Case, Marks, cases, op_on_zero_devices, step};
use layerfs_tests::harness::{Departure, Harness, TreeDeparture};
use layerfs_tests::layers::LayerSpec;
use layerfs_tests::mount::FsKind;
use layerfs_tests::ops::{Op, Renaming, Special, Step, Who};
use layerfs_tests::privilege::{has_fuse_overlayfs, require_root, require_root_and_fuse};
use layerfs_tests::scratch::Scratch;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use rustix::io::Errno;

fn kernel(kind: &FsKind) -> bool {
    matches!(kind, FsKind::KernelOverlay(_))
}

/// Accepted differences from a plain ext4 directory.
const DEPARTURES: &[Departure] = &[
    Departure {
        of: kernel,
        when: |seen| {
            matches!(&seen.step.op, Op::RemoveXattr { name, .. } if name.starts_with("system.posix_acl"))
                && *seen.outcome == Err(Errno::NODATA)
        },
        diverges: false,
        reason: "kernel overlayfs: removing an ACL that is not there is ENODATA, other filesystems say yes",
    },
    Departure {
        of: kernel,
        when: |seen| {
            matches!(seen.step.op, Op::Rename { .. } | Op::Link { .. }) && *seen.outcome == Err(Errno::XDEV)
        },
        diverges: true,
        reason: "kernel overlayfs: a redirect of more than redirect_max=256 bytes is EXDEV",
    },
    Departure {
        of: kernel,
        when: |seen| {
            matches!(seen.step.op, Op::Rename { .. } | Op::Rmdir { .. })
                && *seen.outcome == Err(Errno::NOTEMPTY)
                && seen.expected.is_ok()
        },
        diverges: true,
        reason: "kernel overlayfs: a directory that holds nothing but a lower xattr whiteout counts as not empty",
    },
    Departure {
        of: kernel,
        when: |seen| {
            matches!(
                seen.step.op,
                Op::Mknod { kind: Special::CharZero, .. } | Op::Rename { how: Renaming::Whiteout, .. }
            )
        },
        diverges: true,
        reason: "kernel overlayfs keeps character device 0:0 for itself",
    },
];

/// Accepted differences of trees.
const TREE_DEPARTURES: &[TreeDeparture] = &[
    TreeDeparture {
        of: |kind| matches!(kind, FsKind::FuseOverlayfs(_)),
        when: |line, _| line.contains("looked up directly: File name too long"),
        reason: "fuse-overlayfs: a name that is too long is ENOENT",
    },
    TreeDeparture {
        of: |kind| matches!(kind, FsKind::Layerfs(_)),
        when: |line, _| keeps_set_group_id_without_group_execute(line),
        reason: "the FUSE protocol (FUSE_HANDLE_KILLPRIV_V2) has a write or truncate clear the set-group-ID bit \
                 only where the group may execute; since Linux 6.2 other filesystems also clear it for callers \
                 outside of the group",
    },
];

/// True for a line that says that the plain directory's file lost the set-group-ID bit (and perhaps more),
/// and the subject's did not, and its group may not execute.
fn keeps_set_group_id_without_group_execute(line: &str) -> bool {
    let Some((_, modes)) = line.split_once(": mode: ") else { return false };
    let modes: Vec<_> = modes.split(" / ").map(|mode| u32::from_str_radix(mode, 8)).collect();
    matches!(modes[..], [Ok(plain), Ok(seen)] if seen == plain | 0o2000 && seen & 0o010 == 0)
}

/// How many cases to run: `LAYERFS_TEST_CASES`, else `default`.
fn case_count(default: u32) -> u32 {
    std::env::var("LAYERFS_TEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn harness(scratch: &Scratch, kinds: Vec<FsKind>, kernel_reads: bool) -> Harness<'_> {
    let (departures, tree_departures) = (DEPARTURES, TREE_DEPARTURES);
    Harness { home: scratch.path(), kinds, departures, tree_departures, kernel_reads }
}

fn run_random(
    count: u32,
    cases: impl Strategy<Value = (FsKind, Case)>,
    with_kernel: bool,
    kernel_reads: bool,
) {
    let scratch = Scratch::new();
    let config = Config {
        cases: case_count(count),
        failure_persistence: None,
        max_shrink_iters: 400,
        max_shrink_time: 30_000,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&cases, |(kind, case)| {
        let mut kinds = vec![kind];
        if with_kernel {
            kinds.push(FsKind::full_kernel_overlay());
        }
        harness(&scratch, kinds, kernel_reads).run(&case.layers, &case.steps).map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => {}
        // The case itself is in the reason, resolved and readable.
        Err(TestError::Fail(reason, _)) => panic!("{reason}"),
        Err(TestError::Abort(reason)) => panic!("aborted: {reason}"),
    }
}

/// Option texts that layerfs must behave the same under.
fn layerfs_options() -> impl Strategy<Value = FsKind> {
    prop_oneof![
        4 => Just(""),
        2 => Just("io=cached"),
        2 => Just("io=writeback"),
        2 => Just("io=passthrough"),
        1 => Just("metacopy=off"),
        1 => Just("threads=1"),
        1 => Just("volatile"),
    ]
    .prop_map(|options| FsKind::Layerfs(options.to_owned()))
}

fn default_layerfs() -> impl Strategy<Value = FsKind> {
    Just(FsKind::layerfs())
}

#[test]
fn kernel_overlay_answers_as_the_model() {
    if !require_root() {
        return;
    }
    let kind = Just(FsKind::full_kernel_overlay());
    run_random(30, (kind, cases(Marks::Kernel, 25)), false, false);
}

#[test]
fn layerfs_answers_as_a_plain_directory_and_kernel_overlay() {
    if !require_root_and_fuse() {
        return;
    }
    run_random(60, (layerfs_options(), cases(Marks::Kernel, 25)), true, true);
}

#[test]
fn layerfs_reads_every_form_of_mark() {
    if !require_root_and_fuse() {
        return;
    }
    run_random(60, (layerfs_options(), cases(Marks::All, 25)), false, false);
}

#[test]
fn layerfs_keeps_a_users_zero_device_apart_from_whiteouts() {
    if !require_root_and_fuse() {
        return;
    }
    let zero = op_on_zero_devices().prop_map(|op| Step { who: Who::Root, umask: 0o022, op });
    let steps = proptest::collection::vec(prop_oneof![1 => zero, 3 => step()], 1..20);
    let cases = (cases(Marks::Kernel, 1), steps).prop_map(|(case, steps)| Case { steps, ..case });
    run_random(25, (default_layerfs(), cases), false, false);
}

#[test]
fn layerfs_without_redirects_refuses_only_renames_of_lower_directories() {
    if !require_root_and_fuse() {
        return;
    }
    let kind = Just(FsKind::Layerfs("redirect_dir=off,metacopy=off".into()));
    run_random(25, (kind, cases(Marks::Kernel, 25)), false, true);
}

/// Steps by root with the usual mask on layers in the form of [`LayerSpec::parse`].
fn replay(options: &str, layers: &[&str], ops: Vec<Op<PathBuf>>) {
    if !require_root_and_fuse() {
        return;
    }
    let scratch = Scratch::new();
    let layers: Vec<_> = layers.iter().map(|text| LayerSpec::parse(text)).collect();
    let steps: Vec<_> = ops.into_iter().map(|op| Step { who: Who::Root, umask: 0o022, op }).collect();
    let kinds = vec![FsKind::Layerfs(options.into())];
    let result = harness(&scratch, kinds, false).run_paths(&layers, &steps);
    result.unwrap_or_else(|fault| panic!("{fault}"));
}

#[test]
fn regression_an_acl_that_is_not_there_can_be_removed() {
    let remove = |at: &str, name: &str| Op::RemoveXattr { at: at.into(), name: name.into() };
    let ops = vec![remove("f", "system.posix_acl_access"), remove("d", "system.posix_acl_default")];
    replay("", &["f f\nd d"], ops);
}

#[test]
fn regression_a_zero_device_gets_the_group_of_its_directory() {
    let at = PathBuf::from("d/zero");
    replay("", &["d d 2775 0:1000"], vec![Op::Mknod { at, kind: Special::CharZero, mode: 0o640 }]);
}

#[test]
fn regression_a_mount_with_writeback_keeps_modification_times_over_remount() {
    let write = |at: &str| Op::Write {
        at: at.into(),
        offset: 0,
        len: 1,
        fill: b'x',
        append: false,
        truncate: true,
        create: true,
    };
    for _ in 0..3 {
        let truncate = Op::Truncate { at: "c".into(), size: 0 };
        replay("io=writeback", &["f b =lower\nf c =lower"], vec![write("a"), write("b"), truncate]);
    }
}

#[test]
fn regression_links_are_counted_after_one_was_unlinked_and_a_remount() {
    let layers = ["f b\nh a b\nh c b"];
    let unlink = Op::Unlink { at: "a".into() };
    let stat = || Op::Stat { at: "b".into(), follow: false };
    let chmod = Op::Chmod { at: "c".into(), mode: 0o600 };
    replay("", &layers, vec![unlink, stat(), Op::Remount, stat(), chmod, stat(), Op::Remount, stat()]);
}

#[test]
fn regression_other_names_outlive_an_unlinked_one() {
    let link = |to: &str| Op::Link { from: "f".into(), to: to.into(), follow: false };
    let rename = Op::Rename { from: "g".into(), to: "two".into(), how: Renaming::Plain };
    let ops = vec![link("one"), link("two"), Op::Remount, Op::Unlink { at: "f".into() }, rename];
    replay("", &["f f =x\nf g =y"], ops);
}

#[test]
fn fuse_overlayfs_can_be_driven_by_the_same_steps() {
    if !require_root() || !has_fuse_overlayfs() {
        return;
    }
    // It departs from a plain directory in too many ways to be compared step by step; what it is here for is
    // to show that the harness mounts it, and that the builders' trees are read by it as the model says.
    let scratch = Scratch::new();
    let layers = [
        LayerSpec::parse("d a\nw a/gone\noa b\nf b/new =1"),
        LayerSpec::parse("f a/gone\nf a/here =2\nf b/old"),
    ];
    let kinds = vec![FsKind::FuseOverlayfs(String::new())];
    let harness = harness(&scratch, kinds, false);
    harness.run_paths(&layers, &[]).unwrap_or_else(|fault| panic!("{fault}"));
}
