//! The process dies at any moment: the upper must mount again, with every completed operation in it and
//! nothing half-made.
//!
//! The moment is random by nature; `LAYERFS_TEST_CASES` sets how many crashes are tried.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use layerfs_tests::generate::{Case, Marks, cases};
use layerfs_tests::harness::{left_in_work, readable};
use layerfs_tests::layers::LayerSpec;
use layerfs_tests::model::Model;
use layerfs_tests::mount::{FsKind, Mount, Stack};
use layerfs_tests::ops::{Kept, Op, Renaming, Step, Target, listing, moves_the_root};
use layerfs_tests::privilege::{require_fuse, require_root};
use layerfs_tests::scratch::Scratch;
use layerfs_tests::snapshot::{Look, Snapshot};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use rustix::process::{Pid, Signal, kill_process};

const LAYER_LOOK: Look =
    Look { mtime: true, atime: false, nlink: true, marks: true, ino: true, no_root: false };

fn crash_count(default: u32) -> u32 {
    std::env::var("LAYERFS_TEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Kills a process after a time, unless the work is done before.
struct Killer {
    fired: AtomicBool,
}

impl Killer {
    /// Runs `work`, with the process killed `after` its beginning. True if the kill came before its end.
    fn run(pid: Pid, after: Duration, work: impl FnOnce(&Self)) -> bool {
        let killer = Self { fired: AtomicBool::new(false) };
        let (done, wait) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let fired = &killer.fired;
            scope.spawn(move || {
                // The flag first: an operation that ends while it is down has certainly been answered.
                if wait.recv_timeout(after) == Err(RecvTimeoutError::Timeout) {
                    fired.store(true, Ordering::SeqCst);
                    kill_process(pid, Signal::KILL).expect("kill the server");
                }
            });
            work(&killer);
            drop(done);
        });
        killer.fired.into_inner()
    }

    fn has_fired(&self) -> bool {
        self.fired.load(Ordering::SeqCst)
    }
}

/// Steps that are one system call that changes something: after a crash in the middle the tree is that before
/// or that after it.
fn is_atomic(op: &Op<PathBuf>) -> bool {
    match op {
        Op::Write { truncate, create, .. } => !truncate && !create,
        Op::CopyRange { len, .. } => *len <= 4096,
        Op::Rename { how, .. } => *how != Renaming::Whiteout,
        // Descriptors die with the process.
        Op::Keep { .. } | Op::KeptRead { .. } | Op::KeptWrite { .. } | Op::KeptStat { .. } => false,
        Op::KeptTruncate { .. } | Op::KeptChmod { .. } | Op::KeptSetXattr { .. } | Op::KeptList { .. } => {
            false
        }
        Op::KeptCreate { .. } | Op::KeptSync { .. } | Op::Close { .. } | Op::Remount => false,
        _ => true,
    }
}

/// A tree without what is set in a second step after the first became visible: set-id bits are cleared by the
/// kernel with a request of their own.
fn without_set_id_bits(mut tree: Snapshot) -> Snapshot {
    for record in tree.records.values_mut() {
        record.mode &= 0o1777;
    }
    tree
}

#[test]
fn killed_at_any_moment_the_upper_holds_every_completed_operation() {
    if !require_fuse() || !require_root() {
        return;
    }
    let scratch = Scratch::new();
    let mut runner = TestRunner::default();
    let strategy = (
        cases(Marks::Kernel, 1),
        proptest::collection::vec(layerfs_tests::generate::step(), 300),
        0..60_000_u64,
    )
        .prop_map(|(case, steps, micros)| (Case { steps, ..case }, micros));
    let mut crashed = 0;
    for number in 0..crash_count(20) {
        let (case, micros) = strategy.new_tree(&mut runner).expect("generate a case").current();
        let home = scratch.dir(&format!("crash{number}"));
        crashed += u32::from(crash_once(&home, &case, Duration::from_micros(micros)));
    }
    assert!(crashed > 0, "no case was long enough to be killed");
}

/// One crash; false when all steps were done before it.
fn crash_once(home: &Path, case: &Case, after: Duration) -> bool {
    let stack = Stack::make(home, case.layers.len());
    for (layer, path) in case.layers.iter().zip(&stack.lowers) {
        layer.build(path);
    }
    let plain = home.join("plain");
    fs::create_dir(&plain).unwrap();
    let model = Model::merge(&case.layers);
    model.build(&plain);
    let lowers_before: Vec<_> = stack.lowers.iter().map(|path| Snapshot::take(path, LAYER_LOOK)).collect();
    // Write-through: what an operation has written is in the upper's filesystem when it returns.
    let mut mount = Mount::new(FsKind::Layerfs("io=cached".into()), stack.clone());
    let take = |root: &Path| without_set_id_bits(Snapshot::take(root, Look::default()));
    let mut allowed = vec![take(&plain)];
    let mut trace = Vec::new();
    let killed = Killer::run(mount.server().expect("a server"), after, |killer| {
        let (mut plain_kept, mut mount_kept) = (Kept::default(), Kept::default());
        for step in &case.steps {
            let before = Snapshot::take(&plain, Look::default());
            let step: Step<PathBuf> = Step::<Target>::resolve(step, &listing(&before));
            if !is_atomic(&step.op) || moves_the_root(&step.op) {
                continue;
            }
            trace.push(format!("{step:?}"));
            let seen = step.apply(mount.path(), &mut mount_kept);
            let cut = killer.has_fired();
            let expected = step.apply(&plain, &mut plain_kept);
            allowed = if cut { vec![without_set_id_bits(before), take(&plain)] } else { vec![take(&plain)] };
            if cut {
                break;
            }
            assert_eq!(seen.is_ok(), expected.is_ok(), "{step:?}: {seen:?}, plain {expected:?}");
        }
    });
    mount.kill();
    let context = || {
        let layers: Vec<_> =
            case.layers.iter().enumerate().map(|(n, layer)| format!("layer {n}:\n{layer}")).collect();
        readable(&format!("{}{}", layers.concat(), trace.join("\n")))
    };
    for (path, before) in stack.lowers.iter().zip(&lowers_before) {
        before.assert_same(&Snapshot::take(path, LAYER_LOOK), "a lower layer before and after the crash");
    }
    // The kernel first, reading only: what the crash left must be sane by itself.
    let look_at = |mount: &Mount, who: &str| {
        let seen = take(mount.path());
        if !allowed.contains(&seen) {
            let last = allowed.last().expect("at least one tree");
            panic!(
                "{who} after a crash during the last of these steps (expected after it / seen):\n  {}\n{}",
                last.differences(&seen).join("\n  "),
                context()
            );
        }
        seen
    };
    let reader = Mount::new(FsKind::reading_kernel_overlay(), stack.read_only(home.join("reader")));
    let by_kernel = look_at(&reader, "kernel overlayfs");
    drop(reader);
    mount.up().unwrap_or_else(|e| panic!("mount after the crash: {e}\n{}", context()));
    let by_layerfs = look_at(&mount, "layerfs");
    by_kernel.assert_same(&by_layerfs, "the crashed upper, by kernel overlayfs and by layerfs");
    // What the crash left in `work` went at mount; it is still usable.
    fs::write(mount.join("after-the-crash"), b"x").unwrap();
    mount.down();
    assert_eq!(left_in_work(stack.work()), Vec::<PathBuf>::new(), "left in work");
    killed
}

#[test]
fn killed_during_the_copy_up_of_a_large_file_leaves_the_old_or_the_new() {
    if !require_fuse() || !require_root() {
        return;
    }
    const SIZE: usize = 192 << 20;
    let scratch = Scratch::new();
    let mut runner = TestRunner::default();
    let mut interrupted = 0;
    let content: Vec<u8> = (0..SIZE).map(|n| (n / 4096) as u8 ^ (n >> 20) as u8).collect();
    for number in 0..crash_count(6).min(200) {
        let home = scratch.dir(&format!("crash{number}"));
        let stack = Stack::make(&home, 1);
        fs::write(stack.lowers[0].join("big"), &content).unwrap();
        LayerSpec::parse("d d").build(&stack.lowers[0]);
        let lower_before = Snapshot::take(&stack.lowers[0], LAYER_LOOK);
        let mut mount = Mount::new(FsKind::Layerfs("io=cached".into()), stack.clone());
        let micros = (0..250_000_u64).new_tree(&mut runner).unwrap().current();
        let path = mount.join("big");
        let mut completed = false;
        Killer::run(mount.server().unwrap(), Duration::from_micros(micros), |killer| {
            // The first byte, as it was: the copy is needed, and stays equal to the original.
            let opened = OpenOptions::new().write(true).open(&path);
            completed =
                opened.and_then(|file| file.write_all_at(&content[..1], 0)).is_ok() && !killer.has_fired();
        });
        mount.kill();
        interrupted += u32::from(!completed);
        let in_upper = stack.upper().join("big");
        if in_upper.symlink_metadata().is_ok() {
            assert!(fs::read(&in_upper).unwrap() == content, "a half-made copy is visible in upper");
        } else {
            assert!(!completed, "the completed copy-up is not in upper");
        }
        mount.up().unwrap_or_else(|e| panic!("mount after the crash: {e}"));
        assert_eq!(left_over(&stack), Vec::<PathBuf>::new(), "left in work at the next mount");
        assert!(fs::read(&path).unwrap() == content, "content after the crash");
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&content[..1], 0).unwrap();
        drop(file);
        assert!(fs::read(&path).unwrap() == content, "content after a second copy-up");
        mount.down();
        lower_before.assert_same(&Snapshot::take(&stack.lowers[0], LAYER_LOOK), "lower before and after");
        fs::remove_dir_all(&home).unwrap();
    }
    eprintln!("{interrupted} copy-ups were interrupted");
}

/// Regular files in `work` while a mount uses it: temporaries of an earlier process have no business there.
fn left_over(stack: &Stack) -> Vec<PathBuf> {
    let mut left = left_in_work(stack.work());
    left.retain(|path| stack.work().join(path).metadata().is_ok_and(|meta| meta.len() > 4096));
    left
}

#[test]
fn a_killed_volatile_mount_is_refused_the_next_time() {
    if !require_fuse() || !require_root() {
        return;
    }
    let scratch = Scratch::new();
    let stack = Stack::make(scratch.path(), 1);
    LayerSpec::parse("f f =x").build(&stack.lowers[0]);
    let marker = stack.work().join("work/incompat/volatile");
    let mut mount = Mount::new(FsKind::Layerfs("volatile".into()), stack.clone());
    fs::write(mount.join("f"), b"1").unwrap();
    File::open(mount.join("f")).unwrap().sync_all().unwrap();
    assert!(marker.exists(), "the marker is there while the mount is");

    // Cleanly unmounted, it mounts again, volatile or not.
    mount.remount();
    mount.down();
    assert!(!marker.exists(), "the marker is gone after a clean unmount");
    let plain = Mount::new(FsKind::layerfs(), stack.clone());
    assert_eq!(fs::read(plain.join("f")).unwrap(), b"1");
    drop(plain);

    mount.up().unwrap();
    fs::write(mount.join("f"), b"2").unwrap();
    mount.kill();
    assert!(marker.exists(), "the marker is there after a crash");
    for options in ["", "volatile"] {
        let words = Mount::try_new(FsKind::Layerfs(options.into()), stack.clone())
            .expect_err("an upper of a crashed volatile mount is refused");
        assert!(words.contains("volatile"), "the message says why ({options:?}): {words}");
    }
    // Kernel overlayfs refuses it as well: the marker is the kernel's own.
    Mount::try_new(FsKind::reading_kernel_overlay(), stack.clone()).expect_err("refused by the kernel too");
    // Its owner may decide that the content is good enough, by taking the marker away.
    fs::remove_dir_all(stack.work().join("work/incompat")).unwrap();
    let mount = Mount::new(FsKind::layerfs(), stack);
    assert_eq!(fs::read(mount.join("f")).unwrap(), b"2");
}

#[test]
fn a_terminated_server_unmounts_cleanly() {
    if !require_fuse() || !require_root() {
        return;
    }
    let scratch = Scratch::new();
    let stack = Stack::make(scratch.path(), 1);
    LayerSpec::parse("f f =x").build(&stack.lowers[0]);
    for options in ["io=writeback", "io=cached", "volatile"] {
        let mut mount = Mount::new(FsKind::Layerfs(options.into()), stack.clone());
        fs::write(mount.join("f"), options).unwrap();
        kill_process(mount.server().unwrap(), Signal::TERM).unwrap();
        let status = mount.wait_for_end();
        assert!(status.success(), "{options}: {status}");
        assert_eq!(fs::read_dir(&stack.merged).unwrap().count(), 0, "{options}: nothing is mounted any more");
        assert_eq!(
            fs::read(stack.upper().join("f")).unwrap(),
            options.as_bytes(),
            "what was written is in upper"
        );
        assert_eq!(left_in_work(stack.work()), Vec::<PathBuf>::new(), "{options}: left in work");
    }
}
