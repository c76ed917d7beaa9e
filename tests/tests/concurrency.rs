//! Many threads and processes at once: no error that a plain directory would not give, no deadlock, no lost
//! change, and nobody waits for somebody else's copy-up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use layerfs_tests::generate::step;
use layerfs_tests::harness::{left_in_work, say};
use layerfs_tests::layers::LayerSpec;
use layerfs_tests::model::Model;
use layerfs_tests::mount::{FsKind, Mount, Stack, under_test};
use layerfs_tests::ops::{Kept, Op, Step, Target, listing, moves_the_root};
use layerfs_tests::privilege::require_root_and_fuse;
use layerfs_tests::scratch::Scratch;
use layerfs_tests::snapshot::{Look, Snapshot};
use layerfs_tests::sys;
use layerfs_tests::watchdog::bounded;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

/// Far more than any of these tests needs; a deadlock takes longer.
const LIMIT: Duration = Duration::from_secs(120);

const LAYER_LOOK: Look =
    Look { mtime: true, atime: true, nlink: true, marks: true, ino: true, no_root: false };

/// Runs `work` once per thread, all starting together; the results in order.
fn in_parallel<T: Send>(
    mount: &Mount,
    threads: usize,
    what: &str,
    work: impl Fn(usize) -> T + Sync,
) -> Vec<T> {
    let server = mount.server();
    bounded(
        LIMIT,
        what,
        || Mount::abort(server),
        || {
            let barrier = Barrier::new(threads);
            std::thread::scope(|scope| {
                let workers: Vec<_> = (0..threads)
                    .map(|number| {
                        let (barrier, work) = (&barrier, &work);
                        scope.spawn(move || {
                            // The file mode creation mask and the working directory become this thread's own.
                            sys::unshare_thread(UnshareFlags::FS).expect("unshare");
                            barrier.wait();
                            work(number)
                        })
                    })
                    .collect();
                workers
                    .into_iter()
                    .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                    .collect()
            })
        },
    )
}

/// What must hold after every test: the same tree after a remount, lowers as they were, `work` empty.
fn assert_sound(mount: &mut Mount, lowers_before: &[Snapshot]) {
    let look = Look { mtime: true, nlink: true, ino: true, ..Look::default() };
    let before = Snapshot::take(mount.path(), look);
    mount.remount();
    before.assert_same(&Snapshot::take(mount.path(), look), "the tree before and after a remount");
    mount.down();
    for (path, before) in mount.stack().lowers.iter().zip(lowers_before) {
        before.assert_same(&Snapshot::take(path, LAYER_LOOK), "a lower layer before and after");
    }
    assert_eq!(left_in_work(mount.stack().work()), Vec::<PathBuf>::new(), "left in work");
}

fn lower_snapshots(stack: &Stack) -> Vec<Snapshot> {
    stack.lowers.iter().map(|path| Snapshot::take(path, LAYER_LOOK)).collect()
}

/// Random steps, the same in every run.
fn random_steps(runner: &mut TestRunner, count: usize) -> Vec<Step<Target>> {
    (0..count)
        .map(|_| step().new_tree(runner).expect("generate a step").current())
        .filter(|step| step.op != Op::Remount)
        .collect()
}

#[test]
fn threads_in_directories_of_their_own_get_the_answers_of_a_plain_directory() {
    if !require_root_and_fuse() {
        return;
    }
    const THREADS: usize = 8;
    let scratch = Scratch::new();
    let stack = Stack::make(scratch.path(), 2);
    let mut layers = [String::new(), String::new()];
    for thread in 0..THREADS {
        // Half of the directories are lower or merged ones.
        layers[0] += &format!("d t{thread} 777\n");
        if thread % 2 == 0 {
            layers[0] += &format!("f t{thread}/a =top *5000\nd t{thread}/b\nf t{thread}/b/c\n");
            layers[1] +=
                &format!("d t{thread}\nd t{thread}/b 777\nf t{thread}/b/a =x *70000\nf t{thread}/c =c\n");
        }
    }
    let layers: Vec<_> = layers.iter().map(|text| LayerSpec::parse(text)).collect();
    for (layer, path) in layers.iter().zip(&stack.lowers) {
        layer.build(path);
    }
    let plain = scratch.dir("plain");
    Model::merge(&layers).build(&plain);
    let lowers_before = lower_snapshots(&stack);
    let mut mount = Mount::new(under_test(""), stack);
    let mut runner = TestRunner::deterministic();
    let steps: Vec<_> = (0..THREADS).map(|_| random_steps(&mut runner, 300)).collect();
    let faults = in_parallel(&mount, THREADS, "operations on disjoint names", |thread| {
        let name = format!("t{thread}");
        let (reference, subject) = (plain.join(&name), mount.join(&name));
        let (mut reference_kept, mut subject_kept) = (Kept::default(), Kept::default());
        for step in &steps[thread] {
            let tree = Snapshot::take(&reference, Look::default());
            let step = step.resolve(&listing(&tree));
            if moves_the_root(&step.op) {
                continue;
            }
            let expected = step.apply(&reference, &mut reference_kept);
            let seen = step.apply(&subject, &mut subject_kept);
            if expected != seen && !known_to_differ(mount.kind(), &step) {
                return Some(format!(
                    "thread {thread}: {:?}: {}, plain {}",
                    step.op,
                    say(&seen),
                    say(&expected)
                ));
            }
        }
        None
    });
    let faults: Vec<_> = faults.into_iter().flatten().collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let look = Look { nlink: true, ..Look::default() };
    Snapshot::take(&plain, look).assert_same(&Snapshot::take(mount.path(), look), "plain directory / mount");
    assert_sound(&mut mount, &lowers_before);
}

/// What `differential.rs` lists about kernel overlayfs, on which this suite can be run too.
fn known_to_differ(kind: &FsKind, step: &Step<PathBuf>) -> bool {
    matches!(kind, FsKind::KernelOverlay(_))
        && matches!(step.op, Op::RemoveXattr { .. } | Op::KeptStat { .. } | Op::KeptRead { .. })
}

#[test]
fn threads_on_the_same_names_get_only_errors_of_races() {
    if !require_root_and_fuse() {
        return;
    }
    const THREADS: usize = 8;
    const ROUNDS: usize = 400;
    // What a plain directory answers when somebody else was faster.
    let usual = [Errno::NOENT, Errno::EXIST, Errno::NOTEMPTY, Errno::ISDIR, Errno::NOTDIR, Errno::INVAL];
    let scratch = Scratch::new();
    let stack = Stack::make(scratch.path(), 2);
    let layers = [
        LayerSpec::parse("d a\nf a/x =top\nf b =b *5000\nd c\nf c/y =y\nd d\nf e =e"),
        LayerSpec::parse("d a\nf a/y =under *70000\nd c\nf c/x =x\nd d\nf d/x =1\nf d/y =2"),
    ];
    for (layer, path) in layers.iter().zip(&stack.lowers) {
        layer.build(path);
    }
    let lowers_before = lower_snapshots(&stack);
    let mut mount = Mount::new(under_test(""), stack);
    let names = ["a", "b", "c", "d", "e", "a/x", "a/y", "c/x", "c/y", "d/x", "d/y", "a/d", "d/a"];
    let faults = in_parallel(&mount, THREADS, "operations on shared names", |thread| {
        let mut faults = Vec::new();
        let mut random = 0x9E37_79B9_u32.wrapping_mul(thread as u32 + 1);
        let mut next = |below: usize| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) as usize % below
        };
        for _ in 0..ROUNDS {
            let (one, two) = (mount.join(names[next(names.len())]), mount.join(names[next(names.len())]));
            let (what, result) = match next(9) {
                0 => ("create", File::create(&one).map(drop)),
                1 => ("mkdir", fs::create_dir(&one)),
                2 => ("unlink", fs::remove_file(&one)),
                3 => ("rmdir", fs::remove_dir(&one)),
                4 => ("rename", fs::rename(&one, &two)),
                5 => ("link", fs::hard_link(&one, &two)),
                6 => ("stat", fs::symlink_metadata(&one).map(drop)),
                7 => (
                    "readdir",
                    fs::read_dir(&one).and_then(|mut entries| entries.try_for_each(|e| e.map(drop))),
                ),
                _ => ("append", append(&one, b"+")),
            };
            if let Err(e) = result {
                let errno = Errno::from_io_error(&e);
                // A hard link to a directory is EPERM, as is unlink of one on some filesystems.
                let accepted =
                    errno.is_some_and(|e| usual.contains(&e) || what == "link" && e == Errno::PERM);
                if !accepted {
                    faults.push(format!("{what} {} {}: {e}", one.display(), two.display()));
                }
            }
        }
        faults
    });
    let faults: Vec<_> = faults.into_iter().flatten().collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // Every link is counted, by every name.
    let tree = Snapshot::take(mount.path(), Look { nlink: true, ..Look::default() });
    assert!(tree.faults.is_empty(), "{}", tree.faults.join("\n"));
    for (path, record) in tree.records.iter().filter(|(_, r)| r.kind != 'd') {
        let names = tree.records.values().filter(|r| r.kind != 'd' && r.same_as == record.same_as).count();
        assert_eq!(record.nlink, Some(names as u64), "links of {}", path.display());
    }
    assert_sound(&mut mount, &lowers_before);
}

fn append(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    OpenOptions::new().append(true).open(path)?.write_all(bytes)
}

#[test]
fn several_writers_of_one_lower_file_make_one_copy() {
    if !require_root_and_fuse() {
        return;
    }
    const THREADS: usize = 8;
    const BLOCK: usize = 4096;
    const SIZE: usize = 64 << 20;
    for mode in ["io=cached", "io=writeback", "io=passthrough"] {
        let scratch = Scratch::new();
        let stack = Stack::make(scratch.path(), 1);
        let mut content = vec![b'l'; SIZE];
        fs::write(stack.lowers[0].join("f"), &content).unwrap();
        fs::hard_link(stack.lowers[0].join("f"), stack.lowers[0].join("g")).unwrap();
        let lowers_before = lower_snapshots(&stack);
        let mut mount = Mount::new(under_test(mode), stack);
        let numbers = in_parallel(&mount, THREADS, "copy-up of one file by several writers", |thread| {
            let name = if thread % 2 == 0 { "f" } else { "g" };
            let file = OpenOptions::new().write(true).open(mount.join(name)).unwrap();
            file.write_all_at(&vec![b'0' + thread as u8; BLOCK], (thread * 3 * BLOCK) as u64).unwrap();
            file.metadata().unwrap().ino()
        });
        assert!(numbers.iter().all(|ino| *ino == numbers[0]), "{mode}: one inode number: {numbers:?}");
        for thread in 0..THREADS {
            content[thread * 3 * BLOCK..][..BLOCK].fill(b'0' + thread as u8);
        }
        assert!(fs::read(mount.join("f")).unwrap() == content, "{mode}: content by the first name");
        assert!(fs::read(mount.join("g")).unwrap() == content, "{mode}: content by the second name");
        assert_sound(&mut mount, &lowers_before);
    }
}

#[test]
fn appends_of_several_processes_all_arrive() {
    if !require_root_and_fuse() {
        return;
    }
    const PROCESSES: usize = 16;
    let scratch = Scratch::new();
    let stack = Stack::make(scratch.path(), 1);
    LayerSpec::parse("f log =lower *3").build(&stack.lowers[0]);
    let lowers_before = lower_snapshots(&stack);
    let mut mount = Mount::new(under_test(""), stack);
    let path = mount.join("log");
    let mut children: Vec<_> = (0..PROCESSES)
        .map(|number| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_layerfs-test-helper"));
            command.args(["append".as_ref(), path.as_os_str(), format!("<{number}>").as_ref()]);
            command.spawn().unwrap()
        })
        .collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("lowerlowerlower<"), "{text}");
    for number in 0..PROCESSES {
        assert_eq!(text.matches(&format!("<{number}>")).count(), 1, "{number} in {text}");
    }
    assert_eq!(text.len(), 15 + (0..PROCESSES).map(|n| format!("<{n}>").len()).sum::<usize>(), "{text}");
    assert_sound(&mut mount, &lowers_before);
}

#[test]
fn parents_are_copied_up_once_by_many() {
    if !require_root_and_fuse() {
        return;
    }
    const THREADS: usize = 8;
    let scratch = Scratch::new();
    let stack = Stack::make(scratch.path(), 1);
    LayerSpec::parse("d p 750 5:6 user.mark=1\nd p/q 751\nd p/q/r\nd p/q/r/s 2775 0:7\nf p/q/r/s/f =x")
        .build(&stack.lowers[0]);
    let lowers_before = lower_snapshots(&stack);
    let mut mount = Mount::new(under_test(""), stack);
    let before = Snapshot::take(mount.path(), Look::default());
    for round in 0..5 {
        let results = in_parallel(&mount, THREADS, "creating below the same lower directories", |thread| {
            fs::write(mount.join(format!("p/q/r/s/new-{round}-{thread}")), format!("{thread}"))
        });
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }
    let mut after = Snapshot::take(mount.path(), Look::default());
    let new: Vec<_> =
        after.records.keys().filter(|p| p.to_string_lossy().contains("new-")).cloned().collect();
    assert_eq!(new.len(), 5 * THREADS);
    for path in new {
        assert_eq!(
            after.records[&path].gid,
            7,
            "{}: group by the directory's set-group-id bit",
            path.display()
        );
        after.records.remove(&path);
    }
    before.assert_same(&after, "directories before and after their copy-up");
    assert_sound(&mut mount, &lowers_before);
}

#[test]
fn nobody_waits_for_the_copy_up_of_another_file() {
    if !require_root_and_fuse() {
        return;
    }
    const SIZE: usize = 512 << 20;
    let scratch = Scratch::new();
    let stack = Stack::make(scratch.path(), 1);
    let lower = &stack.lowers[0];
    fs::create_dir(lower.join("d")).unwrap();
    for number in 0..50 {
        fs::write(lower.join(format!("d/{number}")), b"x").unwrap();
    }
    fs::write(lower.join("big"), vec![b'b'; SIZE]).unwrap();
    rustix::fs::syncfs(File::open(lower).unwrap()).unwrap();
    let mount = Mount::new(under_test("threads=2"), stack);
    let finished = AtomicBool::new(false);
    let started = Barrier::new(2);
    let results = in_parallel(&mount, 2, "stat during a copy-up", |thread| {
        if thread == 0 {
            started.wait();
            let begin = Instant::now();
            append(&mount.join("big"), b"tail").unwrap();
            finished.store(true, Ordering::Release);
            return (begin.elapsed(), 0);
        }
        started.wait();
        let (mut worst, mut count) = (Duration::ZERO, 0);
        while !finished.load(Ordering::Acquire) {
            let begin = Instant::now();
            // A lookup that no cache of the kernel can answer, a stat, a listing and a read.
            assert!(fs::metadata(mount.join(format!("d/absent-{count}"))).is_err());
            assert_eq!(fs::read(mount.join(format!("d/{}", count % 50))).unwrap(), b"x");
            assert_eq!(fs::read_dir(mount.join("d")).unwrap().count(), 50);
            worst = worst.max(begin.elapsed());
            count += 1;
        }
        (worst, count)
    });
    let ((copy_up, _), (worst, count)) = (results[0], results[1]);
    eprintln!("copy-up of 512 MiB: {copy_up:?}; {count} rounds beside it, the slowest {worst:?}");
    assert_eq!(fs::metadata(mount.join("big")).unwrap().len(), SIZE as u64 + 4);
    // The bound is gross on purpose: another test's disk traffic must not fail this one. What it excludes is
    // waiting for the whole copy.
    assert!(
        worst < Duration::from_millis(250).max(copy_up / 3),
        "slowest round {worst:?} of a {copy_up:?} copy-up"
    );
}
