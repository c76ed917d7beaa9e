//! The mount at its limits: very large directories, a full disk, few descriptors, an upper in use.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use layerfs_tests::harness::left_in_work;
use layerfs_tests::layers::LayerSpec;
use layerfs_tests::mount::{FsKind, Mount, Stack, under_test};
use layerfs_tests::privilege::require_root_and_fuse;
use layerfs_tests::scratch::Scratch;
use layerfs_tests::snapshot::{Look, Snapshot};
use rustix::fs::{CWD, Dir, Mode, OFlags, openat};

const MIB: usize = 1 << 20;

fn open_dir(path: &Path) -> Dir {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Dir::new(openat(CWD, path, flags, Mode::empty()).unwrap()).unwrap()
}

/// Reads on to the end: names with the position after each.
fn read_on(dir: &mut Dir) -> Vec<(String, i64)> {
    let mut entries = Vec::new();
    while let Some(entry) = dir.read() {
        let entry = entry.unwrap();
        entries.push((entry.file_name().to_str().unwrap().to_owned(), entry.offset()));
    }
    entries
}

#[test]
fn a_directory_of_100_000_entries_can_be_read_sought_and_changed() {
    if !require_root_and_fuse() {
        return;
    }
    const LOWER: usize = 100_000;
    let scratch = Scratch::new();
    let stack = Stack::make(scratch.path(), 2);
    // Merged from two layers, so that the listing has to be put together.
    for number in 0..LOWER {
        let layer = &stack.lowers[number % 2];
        if number < 2 {
            fs::create_dir(layer.join("big")).unwrap();
        }
        File::create(layer.join(format!("big/entry-{number:06}"))).unwrap();
    }
    let mount = Mount::new(under_test(""), stack);
    let big = mount.join("big");

    let mut dir = open_dir(&big);
    let entries = read_on(&mut dir);
    let names: BTreeSet<_> = entries.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(entries.len(), LOWER + 2, "each name once, with . and ..");
    assert_eq!(names.len(), LOWER + 2);

    // Back to positions told earlier: the same rest follows.
    for at in [0, 1, 17, 4_095, 50_000, LOWER - 1] {
        dir.seek(entries[at].1).unwrap();
        let next = dir.read().unwrap().unwrap();
        assert_eq!(next.file_name().to_str().unwrap(), entries[at + 1].0, "after position {at}");
    }
    let from = 90_000;
    dir.seek(entries[from].1).unwrap();
    let rest: Vec<_> = read_on(&mut dir).into_iter().map(|(name, _)| name).collect();
    let expected: Vec<_> = entries[from + 1..].iter().map(|(name, _)| name.clone()).collect();
    assert!(rest == expected, "the rest from position {from}");

    // Changed while it is read: what was there all the time comes exactly once.
    let mut dir = open_dir(&big);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..10 {
        let entry = dir.read().unwrap().unwrap();
        *seen.entry(entry.file_name().to_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    let removed: Vec<_> = (0..500).map(|n| format!("entry-{:06}", n * 200)).collect();
    for name in &removed {
        fs::remove_file(big.join(name)).unwrap();
    }
    for number in 0..500 {
        File::create(big.join(format!("new-{number}"))).unwrap();
    }
    for (name, _) in read_on(&mut dir) {
        *seen.entry(name).or_insert(0) += 1;
    }
    for (name, _) in &entries {
        if !removed.contains(name) {
            assert_eq!(seen.get(name), Some(&1), "{name} while the directory changes");
        }
    }
    assert!(seen.values().all(|count| *count == 1), "no name twice");
    // From the beginning again: exactly what is there now.
    dir.rewind();
    let now: BTreeSet<_> = read_on(&mut dir).into_iter().map(|(name, _)| name).collect();
    assert_eq!(now.len(), LOWER + 2 - 500 + 500);
    assert!(now.contains("new-499") && !now.contains(&removed[0]));
}

#[test]
fn a_full_disk_in_the_middle_of_copy_up_loses_nothing() {
    if !require_root_and_fuse() {
        return;
    }
    let roomy = Scratch::new();
    let small = Scratch::ext4(96 * MIB as u64, "");
    let mut stack = Stack::make(roomy.path(), 1);
    stack.upper = Some((small.dir("upper"), small.dir("work")));
    let content: Vec<u8> = (0..40 * MIB).map(|n| (n / 4096) as u8).collect();
    fs::create_dir(stack.lowers[0].join("d")).unwrap();
    fs::write(stack.lowers[0].join("d/big"), &content).unwrap();
    fs::write(stack.lowers[0].join("small"), b"small").unwrap();
    let look = Look { mtime: true, marks: true, ..Look::default() };
    let lower_before = Snapshot::take(&stack.lowers[0], look);
    let mount = Mount::new(under_test(""), stack);
    // Room for half of the file.
    let filler = small.path().join("filler");
    let mut file = File::create(&filler).unwrap();
    let free = || {
        let stat = rustix::fs::statvfs(small.path()).unwrap();
        (stat.f_bavail * stat.f_frsize) as usize
    };
    while free() > 20 * MIB {
        file.write_all(&vec![1; MIB]).unwrap();
        file.sync_all().unwrap();
    }
    let free_before = free();
    let view = || Snapshot::take(mount.path(), Look { mtime: true, nlink: true, ..Look::default() });
    let before = view();

    for round in 0..3 {
        // By the first write at the latest; a filesystem may copy at open.
        let mut open = OpenOptions::new();
        let append = open.append(true).open(mount.join("d/big")).and_then(|mut file| {
            file.write_all(b"tail")?;
            file.sync_all()
        });
        let error = append.expect_err("no space for the copy");
        assert_eq!(
            error.raw_os_error(),
            Some(rustix::io::Errno::NOSPC.raw_os_error()),
            "round {round}: {error}"
        );
        before.assert_same(&view(), "the tree after the failed copy-up");
    }
    assert_eq!(left_in_work(mount.stack().work()), Vec::<std::path::PathBuf>::new(), "work after ENOSPC");
    assert!(!mount.stack().upper().join("d/big").exists(), "no half-made copy in upper");
    small_sync(small.path());
    assert!(free() + MIB > free_before, "space of the failed copies: {} of {free_before}", free());

    // Metadata-only changes and removals need next to nothing.
    fs::set_permissions(mount.join("d/big"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::remove_file(mount.join("small")).unwrap();

    drop(file);
    fs::remove_file(&filler).unwrap();
    let mut retry = OpenOptions::new().append(true).open(mount.join("d/big")).unwrap();
    retry.write_all(b"tail").unwrap();
    drop(retry);
    let now = fs::read(mount.join("d/big")).unwrap();
    assert!(
        now[..content.len()] == content[..] && &now[content.len()..] == b"tail",
        "content after the retry"
    );
    assert_eq!(fs::metadata(mount.join("d/big")).unwrap().mode() & 0o777, 0o600);
    lower_before.assert_same(&Snapshot::take(&mount.stack().lowers[0], look), "lower before and after");
    drop(mount);
}

fn small_sync(path: &Path) {
    rustix::fs::syncfs(File::open(path).unwrap()).unwrap();
}

/// Also for files that are upper already: a write that finds no space is an error and nothing else.
#[test]
fn a_write_to_a_full_disk_is_reported() {
    if !require_root_and_fuse() {
        return;
    }
    for mode in ["io=cached", "io=passthrough"] {
        let small = Scratch::ext4(32 * MIB as u64, "");
        let stack = Stack::make(small.path(), 1);
        fs::write(stack.lowers[0].join("kept"), b"kept").unwrap();
        let mount = Mount::new(under_test(mode), stack);
        let mut file = File::create(mount.join("f")).unwrap();
        let block = vec![7; MIB];
        let error = (0..64).find_map(|_| file.write_all(&block).and_then(|()| file.sync_data()).err());
        let error = error.expect("64 MiB cannot fit");
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()), "{mode}: {error}");
        drop(file);
        fs::remove_file(mount.join("f")).unwrap();
        fs::write(mount.join("kept"), b"changed").unwrap();
        assert_eq!(fs::read(mount.join("kept")).unwrap(), b"changed", "{mode}");
    }
}

#[test]
fn an_upper_in_use_is_refused_until_it_is_free() {
    if !require_root_and_fuse() {
        return;
    }
    let scratch = Scratch::new();
    let stack = Stack::make(scratch.path(), 1);
    let mut mount = Mount::new(under_test(""), stack.clone());
    let mut second = stack.clone();
    second.merged = scratch.dir("second");
    let words = Mount::try_new(under_test(""), second.clone()).expect_err("the upper is in use");
    if let FsKind::Layerfs(_) = mount.kind() {
        assert!(words.contains("upper"), "the message names the upper: {words}");
        assert!(
            words.contains("use") || words.contains("busy") || words.contains("lock"),
            "and why: {words}"
        );
    }
    fs::write(mount.join("f"), b"the first one goes on").unwrap();
    // The same work directory under another upper is just as bad.
    let mut same_work = second.clone();
    same_work.upper = Some((scratch.dir("other-upper"), stack.work().to_path_buf()));
    Mount::try_new(under_test(""), same_work).expect_err("the workdir is in use");
    mount.down();
    let second = Mount::new(under_test(""), second);
    assert_eq!(fs::read(second.join("f")).unwrap(), b"the first one goes on");
}

#[test]
fn few_descriptors_are_enough_for_many_files() {
    if !require_root_and_fuse() {
        return;
    }
    const FILES: usize = 5_000;
    let scratch = Scratch::new();
    let stack = Stack::make(scratch.path(), 2);
    for number in 0..FILES {
        let path = stack.lowers[number % 2].join(format!("d{}/f{number}", number % 50));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("content {number}")).unwrap();
    }
    let path_of = |number: usize| format!("d{}/f{number}", number % 50);
    let mut mount = Mount::with_descriptor_limit(under_test(""), stack, 256).unwrap();
    // Every node stays known to the kernel, and to the process.
    for number in 0..FILES {
        let path = mount.join(path_of(number));
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("content {number}"), "{}", path.display());
    }
    for number in (0..FILES).step_by(3) {
        let path = mount.join(path_of(number));
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"+").unwrap();
    }
    for number in (0..FILES).step_by(5) {
        fs::remove_file(mount.join(path_of(number))).unwrap();
    }
    for number in (1..FILES).step_by(5) {
        fs::rename(mount.join(path_of(number)), mount.join(format!("renamed-{number}"))).unwrap();
    }
    let check = |mount: &Mount| {
        for number in 0..FILES {
            let path = if number % 5 == 1 { format!("renamed-{number}") } else { path_of(number) };
            let expected = match number {
                _ if number % 5 == 0 => None,
                _ if number % 3 == 0 => Some(format!("content {number}+")),
                _ => Some(format!("content {number}")),
            };
            assert_eq!(fs::read_to_string(mount.join(&path)).ok(), expected, "{path}");
        }
    };
    check(&mount);
    mount.remount();
    check(&mount);
}

#[test]
fn open_files_beyond_the_servers_limit_fail_cleanly() {
    if !require_root_and_fuse() {
        return;
    }
    let scratch = Scratch::new();
    let stack = Stack::make(scratch.path(), 1);
    LayerSpec::parse("f f =x").build(&stack.lowers[0]);
    let mount = Mount::with_descriptor_limit(under_test(""), stack, 128).unwrap();
    // Each open for writing of another file may take a descriptor of the server for as long as it is open.
    let mut open = Vec::new();
    let mut error = None;
    for number in 0..400 {
        match File::create(mount.join(format!("new-{number}"))) {
            Ok(file) => open.push((number, file)),
            Err(e) => {
                error = Some(e);
                break;
            }
        }
    }
    if let Some(e) = error {
        let expected = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(|e| Some(e.raw_os_error()));
        assert!(expected.contains(&e.raw_os_error()), "{e}");
    }
    assert!(open.len() >= 30, "only {} files could be open at once", open.len());
    // Those that are open work, and the mount does.
    for (number, file) in &open {
        file.write_all_at(b"data", 0).unwrap_or_else(|e| panic!("write to open file {number}: {e}"));
    }
    drop(open);
    assert_eq!(fs::read(mount.join("f")).unwrap(), b"x");
    fs::write(mount.join("f"), b"y").unwrap();
}
