//! File data through the mount, in every I/O mode: what a descriptor, a map and a second process see while a
//! lower file becomes an upper one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use layerfs_tests::layers::LayerSpec;
use layerfs_tests::model::Model;
use layerfs_tests::mount::{Mount, Stack, under_test};
use layerfs_tests::privilege::{as_user, require_root_and_fuse};
use layerfs_tests::scratch::Scratch;
use layerfs_tests::snapshot::{Look, Snapshot, digest};
use layerfs_tests::sys;
use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

/// Every way that file data can travel.
const IO_MODES: [&str; 3] = ["io=cached", "io=writeback", "io=passthrough"];

/// One lower layer under a writable one, mounted, beside a plain directory with the same tree.
struct World {
    mount: Mount,
    plain: std::path::PathBuf,
    lower_before: Snapshot,
    /// Last, so that it is unmounted last.
    _scratch: Scratch,
}

impl World {
    fn new(options: &str, lower: &str) -> Self {
        Self::in_scratch(Scratch::new(), options, lower)
    }

    fn in_scratch(scratch: Scratch, options: &str, lower: &str) -> Self {
        let layer = LayerSpec::parse(lower);
        let stack = Stack::make(scratch.path(), 1);
        layer.build(&stack.lowers[0]);
        let plain = scratch.dir("plain");
        Model::merge(std::slice::from_ref(&layer)).build(&plain);
        let lower_before = Snapshot::take(&stack.lowers[0], LOWER_LOOK);
        let mount = Mount::new(under_test(options), stack);
        Self { mount, plain, lower_before, _scratch: scratch }
    }

    fn lower(&self) -> &Path {
        &self.mount.stack().lowers[0]
    }

    fn upper(&self) -> &Path {
        self.mount.stack().upper()
    }

    /// Does the same to the mount and to the plain directory; the answers and the trees must agree.
    fn same_as_plain<T: PartialEq + std::fmt::Debug>(&self, what: &str, work: impl Fn(&Path) -> T) -> T {
        let expected = work(&self.plain);
        let seen = work(self.mount.path());
        assert_eq!(seen, expected, "{:?}: {what}: the mount / a plain directory", self.mount.kind());
        let look = Look { nlink: true, ..Look::default() };
        let expected_tree = Snapshot::take(&self.plain, look);
        let what = format!("{:?}: tree after: {what}", self.mount.kind());
        expected_tree.assert_same(&Snapshot::take(self.mount.path(), look), &what);
        seen
    }

    /// The lower layer must be as it was.
    fn assert_lower_untouched(&self) {
        let now = Snapshot::take(self.lower(), LOWER_LOOK);
        self.lower_before.assert_same(&now, "the lower layer before and after");
    }
}

const LOWER_LOOK: Look =
    Look { mtime: true, atime: true, nlink: true, marks: true, ino: true, no_root: false };

fn helper(command: &str, file: &Path, argument: &str) {
    let mut command_line = Command::new(env!("CARGO_BIN_EXE_layerfs-test-helper"));
    let status = command_line.arg(command).arg(file).arg(argument).status();
    assert!(status.expect("start the helper").success(), "{command} {}", file.display());
}

fn read_at(file: &File, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut bytes[filled..], offset + filled as u64).expect("read") {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    bytes
}

#[test]
fn a_reader_that_stays_open_sees_what_another_process_appends() {
    if !require_root_and_fuse() {
        return;
    }
    for mode in IO_MODES {
        let world = World::new(mode, "f f =old- *1250");
        let old = "old-".repeat(1250);
        let reader = File::open(world.mount.join("f")).unwrap();
        assert_eq!(read_at(&reader, 0, 10_000), old.as_bytes());
        let ino = reader.metadata().unwrap().ino();

        helper("append", &world.mount.join("f"), "new");

        let both = format!("{old}new");
        assert_eq!(digest(&read_at(&reader, 0, 10_000)), digest(both.as_bytes()), "{mode}: the open reader");
        assert_eq!(reader.metadata().unwrap().len(), 5003, "{mode}: fstat of the open reader");
        assert_eq!(reader.metadata().unwrap().ino(), ino, "{mode}: inode number over copy-up");
        assert_eq!(fs::read(world.mount.join("f")).unwrap(), both.as_bytes(), "{mode}: a new reader");
        assert_eq!(fs::read(world.upper().join("f")).unwrap(), both.as_bytes(), "{mode}: upper");
        world.assert_lower_untouched();

        // And again, now that both kinds of descriptors exist.
        helper("append", &world.mount.join("f"), "er");
        assert_eq!(read_at(&reader, 5000, 10), b"newer", "{mode}: the open reader, second append");
        world.assert_lower_untouched();
    }
}

/// Small files are read through the page cache and written past it: what a reader kept must not outlive a write.
#[test]
fn a_small_file_read_and_written_in_turns_is_never_an_old_one() {
    if !require_root_and_fuse() {
        return;
    }
    for mode in IO_MODES {
        let world = World::new(mode, "d d");
        let path = world.mount.join("f");
        fs::write(&path, b"0").unwrap();
        let mut expected = b"0".to_vec();
        for turn in 1..20u8 {
            // Nobody has it open for writing.
            let reader = File::open(&path).unwrap();
            assert_eq!(read_at(&reader, 0, 1000), expected, "{mode}: turn {turn}");
            // Every other time while the reader has it open: by another process, and by a map.
            if turn % 2 == 0 {
                drop(reader);
                helper("append", &path, "x");
                expected.push(b'x');
                let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
                let mut map = sys::map_shared_mut(&file).unwrap();
                (map[0], expected[0]) = (turn, turn);
                drop(map);
            } else {
                helper("append", &path, "y");
                expected.push(b'y');
                assert_eq!(read_at(&reader, 0, 1000), expected, "{mode}: turn {turn}, the same reader");
            }
            assert_eq!(fs::read(&path).unwrap(), expected, "{mode}: turn {turn}, another reader");
            assert_eq!(path.metadata().unwrap().len(), expected.len() as u64, "{mode}: turn {turn}");
        }
        // The times of a file that is new, still open, and written by nobody but a map, once the clock has gone on.
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).open(world.mount.join("new")).unwrap();
        file.set_len(10).unwrap();
        let mut map = sys::map_shared_mut(&file).unwrap();
        let made = file.metadata().unwrap();
        let started = std::time::Instant::now();
        // Written in each turn: the page's first write since it was written out moves the time.
        loop {
            map[0] = map[0].wrapping_add(1);
            map.flush().unwrap();
            let now = file.metadata().unwrap();
            if (now.mtime(), now.mtime_nsec()) > (made.mtime(), made.mtime_nsec()) {
                break;
            }
            assert!(started.elapsed().as_secs() < 10, "{mode}: the time of change stands still");
        }
    }
}

#[test]
fn a_map_made_before_copy_up_sees_later_changes() {
    if !require_root_and_fuse() {
        return;
    }
    for mode in IO_MODES {
        let world = World::new(mode, "f f =old- *1250");
        let reader = File::open(world.mount.join("f")).unwrap();
        let map = sys::map_shared_len(&reader, 8192).unwrap();
        assert_eq!(&map[0..8], b"old-old-");

        helper("append", &world.mount.join("f"), "new");
        assert_eq!(&map[4996..5003], b"old-new", "{mode}: appended bytes in the last page");
        helper("poke", &world.mount.join("f"), "O");
        assert_eq!(map[0], b'O', "{mode}: a byte stored through another map");
        drop(map);
        drop(reader);
        assert_eq!(fs::read(world.upper().join("f")).unwrap()[0], b'O', "{mode}: upper");
        world.assert_lower_untouched();
    }
}

#[test]
fn a_store_through_a_map_of_a_lower_file_goes_to_upper_only() {
    if !require_root_and_fuse() {
        return;
    }
    for mode in IO_MODES {
        let world = World::new(mode, "f f =x *9000");
        let before = fs::metadata(world.mount.join("f")).unwrap();
        helper("poke", &world.mount.join("f"), "y");
        let after = fs::metadata(world.mount.join("f")).unwrap();
        assert!(after.mtime() > before.mtime(), "{mode}: mtime after a store through a map");
        let ctime = |meta: &fs::Metadata| (meta.ctime(), meta.ctime_nsec());
        assert!(ctime(&after) > ctime(&before), "{mode}: ctime after a store through a map");
        assert_eq!(fs::read(world.upper().join("f")).unwrap()[0], b'y', "{mode}: upper");

        // A private map changes nothing.
        let file = File::open(world.mount.join("f")).unwrap();
        let mut private = sys::map_private(&file).unwrap();
        private[1] = b'z';
        drop(private);
        assert_eq!(fs::read(world.mount.join("f")).unwrap()[1], b'x', "{mode}: after a private store");
        world.assert_lower_untouched();
    }
}

/// The trap of passthrough: a backing file chosen before copy-up must never serve a write after it.
#[test]
fn opens_before_and_after_copy_up_share_one_content() {
    if !require_root_and_fuse() {
        return;
    }
    for mode in IO_MODES {
        let world = World::new(mode, "f f =lower *3000");
        let path = world.mount.join("f");
        let old_reader = File::open(&path).unwrap();
        assert_eq!(read_at(&old_reader, 0, 5), b"lower");
        let writer = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let new_reader = File::open(&path).unwrap();
        writer.write_all_at(b"UPPER", 0).unwrap();
        for (file, which) in [(&old_reader, "old reader"), (&writer, "writer"), (&new_reader, "new reader")] {
            assert_eq!(read_at(file, 0, 10), b"UPPERlower", "{mode}: {which}");
        }
        let appender = OpenOptions::new().append(true).open(&path).unwrap();
        (&appender).write_all(b"!").unwrap();
        writer.set_len(8).unwrap();
        (&appender).write_all(b"?").unwrap();
        for (file, which) in [(&old_reader, "old reader"), (&writer, "writer"), (&new_reader, "new reader")] {
            assert_eq!(read_at(file, 0, 20), b"UPPERlow?", "{mode}: {which} after truncate and append");
            assert_eq!(file.metadata().unwrap().len(), 9, "{mode}: size by {which}");
        }
        drop((old_reader, writer, new_reader, appender));
        assert_eq!(fs::read(world.upper().join("f")).unwrap(), b"UPPERlow?", "{mode}: upper");
        world.assert_lower_untouched();
    }
}

#[test]
fn opening_a_lower_file_for_writing_and_doing_nothing_leaves_content_and_times() {
    if !require_root_and_fuse() {
        return;
    }
    for mode in IO_MODES {
        let world = World::new(mode, "f f =x *100000 user.a=1");
        let before = fs::metadata(world.mount.join("f")).unwrap();
        drop(OpenOptions::new().write(true).open(world.mount.join("f")).unwrap());
        let after = fs::metadata(world.mount.join("f")).unwrap();
        assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()), "{mode}");
        world.same_as_plain("open for writing", |_| ());
        world.assert_lower_untouched();
    }
}

#[test]
fn set_id_bits_and_capabilities_go_when_linux_takes_them() {
    if !require_root_and_fuse() {
        return;
    }
    const CAPABILITY: &[u8] =
        b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let lower = "f w 6777 1000:1000 =x\nf t 6777 1000:1000 =x\nf c 6777 1000:1000 =x\nf r 6777 1000:1000 =x
        f a 6777 1000:1000 =x\nf cap 777 =x\nf fresh 6777 1000:1000 =x";
    for mode in IO_MODES {
        let world = World::new(mode, lower);
        let mode_of = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        let write = |path: &Path| {
            let file = OpenOptions::new().write(true).open(path).unwrap();
            file.write_all_at(b"y", 0).unwrap();
            // Twice: the kernel may believe that nothing is left to clear.
            file.write_all_at(b"z", 0).unwrap();
        };
        world.same_as_plain("write by the owner", |root| {
            as_user(1000, 1000, || write(&root.join("w")));
            mode_of(&root.join("w"))
        });
        world.same_as_plain("truncate by the owner", |root| {
            as_user(1000, 1000, || sys::truncate(&root.join("t"), 0).unwrap());
            mode_of(&root.join("t"))
        });
        world.same_as_plain("chown by root", |root| {
            std::os::unix::fs::chown(root.join("c"), Some(1001), None).unwrap();
            mode_of(&root.join("c"))
        });
        world.same_as_plain("write by root", |root| {
            write(&root.join("r"));
            mode_of(&root.join("r"))
        });
        world.same_as_plain("chmod back, then write again through an open descriptor", |root| {
            let file = OpenOptions::new().write(true).open(root.join("a")).unwrap();
            as_user(1000, 1000, || {
                file.write_all_at(b"1", 0).unwrap();
                let first = mode_of(&root.join("a"));
                rustix::fs::fchmod(&file, Mode::from_raw_mode(0o6777)).unwrap();
                let second = mode_of(&root.join("a"));
                file.write_all_at(b"2", 0).unwrap();
                (first, second, mode_of(&root.join("a")))
            })
        });
        world.same_as_plain("open with O_TRUNC by another user", |root| {
            as_user(1001, 1001, || {
                drop(OpenOptions::new().write(true).truncate(true).open(root.join("fresh")).unwrap());
            });
            mode_of(&root.join("fresh"))
        });
        world.same_as_plain("capabilities after a write", |root| {
            let path = root.join("cap");
            rustix::fs::lsetxattr(&path, "security.capability", CAPABILITY, XattrFlags::empty()).unwrap();
            write(&path);
            let mut value = [0; 64];
            rustix::fs::lgetxattr(&path, "security.capability", &mut value[..]).map(|_| ()).err()
        });
        world.assert_lower_untouched();
    }
}

/// A buffer for O_DIRECT: `len` bytes from an address that is a multiple of 4096.
fn aligned(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    buffer.resize(len + 4096, 0);
    let start = buffer.as_ptr().align_offset(4096);
    &mut buffer[start..start + len]
}

#[test]
fn direct_synchronous_appending_and_truncating_opens() {
    if !require_root_and_fuse() {
        return;
    }
    for mode in IO_MODES {
        let world = World::new(mode, "f d =d *16384\nf s =s *100\nf a =a *5000\nf t =t *100000");
        let open = |path: &Path, flags: OFlags| {
            let flags = i32::try_from(flags.bits()).unwrap();
            OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap()
        };
        world.same_as_plain("O_DIRECT", |root| {
            let file = open(&root.join("d"), OFlags::DIRECT);
            let mut buffer = Vec::new();
            let block = aligned(&mut buffer, 4096);
            file.read_exact_at(block, 4096).unwrap();
            assert_eq!(block, vec![b'd'; 4096]);
            block.fill(b'D');
            file.write_all_at(block, 8192).unwrap();
            file.write_all_at(block, 16384).unwrap();
            // Buffered readers see it at once.
            digest(&fs::read(root.join("d")).unwrap())
        });
        world.same_as_plain("O_SYNC and O_DSYNC", |root| {
            open(&root.join("s"), OFlags::SYNC).write_all_at(b"S", 5).unwrap();
            open(&root.join("s"), OFlags::DSYNC).write_all_at(b"D", 6).unwrap();
            fs::read(root.join("s")).unwrap()
        });
        world.same_as_plain("two appenders, and pwrite of an appender", |root| {
            let append = |path: &Path| OpenOptions::new().append(true).open(path).unwrap();
            let (first, second) = (append(&root.join("a")), append(&root.join("a")));
            for round in 0..20_u8 {
                (&first).write_all(&[round]).unwrap();
                (&second).write_all(&[round, round]).unwrap();
            }
            // Linux appends whatever the offset says.
            first.write_all_at(b"end", 0).unwrap();
            digest(&fs::read(root.join("a")).unwrap())
        });
        world.same_as_plain("O_TRUNC on a lower file with a reader", |root| {
            let reader = File::open(root.join("t")).unwrap();
            let mut writer = OpenOptions::new().write(true).truncate(true).open(root.join("t")).unwrap();
            let empty = (reader.metadata().unwrap().len(), read_at(&reader, 0, 10));
            writer.write_all(b"anew").unwrap();
            (empty, reader.metadata().unwrap().len(), read_at(&reader, 0, 10))
        });
        world.assert_lower_untouched();
    }
}

#[test]
fn holes_are_found_and_kept_over_copy_up() {
    if !require_root_and_fuse() {
        return;
    }
    const MIB: u64 = 1 << 20;
    for mode in IO_MODES {
        let scratch = Scratch::new();
        let stack = Stack::make(scratch.path(), 1);
        let plain = scratch.dir("plain");
        for root in [&stack.lowers[0], &plain] {
            let file = File::create(root.join("sparse")).unwrap();
            file.write_all_at(&vec![b'1'; MIB as usize], 0).unwrap();
            file.write_all_at(&vec![b'2'; MIB as usize], 20 * MIB).unwrap();
            file.set_len(40 * MIB).unwrap();
            file.sync_all().unwrap();
        }
        let mount = Mount::new(under_test(mode), stack);
        let seeks = |root: &Path, flags: OpenOptions| {
            let file = flags.open(root.join("sparse")).unwrap();
            let seek = |from: rustix::fs::SeekFrom| rustix::fs::seek(&file, from);
            use rustix::fs::SeekFrom::{Data, Hole};
            [
                seek(Hole(0)),
                seek(Data(2 * MIB)),
                seek(Hole(20 * MIB)),
                seek(Data(30 * MIB)),
                seek(Hole(30 * MIB)),
                seek(Data(40 * MIB)),
                seek(Hole(40 * MIB)),
                seek(Data(0)),
            ]
        };
        let read_only = || OpenOptions::new().read(true).clone();
        let writable = || OpenOptions::new().read(true).write(true).clone();
        let expected = seeks(&plain, read_only());
        assert_eq!(seeks(mount.path(), read_only()), expected, "{mode}: lower");
        assert_eq!(seeks(mount.path(), writable()), expected, "{mode}: opened for writing");
        // Copied up at the latest by this.
        let writer = OpenOptions::new().write(true).open(mount.join("sparse")).unwrap();
        writer.write_all_at(b"1", 0).unwrap();
        drop(writer);
        assert_eq!(seeks(mount.path(), read_only()), expected, "{mode}: after copy-up");
        let upper = fs::metadata(mount.stack().upper().join("sparse")).unwrap();
        assert_eq!(upper.len(), 40 * MIB);
        assert!(
            upper.blocks() * 512 < 3 * MIB,
            "{mode}: {} blocks in upper: holes were filled",
            upper.blocks()
        );
    }
}

#[test]
fn fallocate_and_copy_file_range_work_on_lower_files() {
    if !require_root_and_fuse() {
        return;
    }
    for mode in IO_MODES {
        let world =
            World::new(mode, "f p =p *20000\nf z =z *20000\nf g =g *10\nf from =from *5000\nf to =to *100");
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path).unwrap();
        world
            .same_as_plain("punch a hole", |root| {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(open(&root.join("p")), flags, 4000, 9000)
            })
            .unwrap();
        world
            .same_as_plain("zero a range past the end", |root| {
                rustix::fs::fallocate(open(&root.join("z")), FallocateFlags::ZERO_RANGE, 19_000, 5000)
            })
            .unwrap();
        world
            .same_as_plain("grow", |root| {
                rustix::fs::fallocate(open(&root.join("g")), FallocateFlags::empty(), 0, 100_000)
            })
            .unwrap();
        world
            .same_as_plain("copy_file_range from lower to lower", |root| {
                let (from, to) = (File::open(root.join("from")).unwrap(), open(&root.join("to")));
                let (mut read_at, mut write_at, mut done) = (100, 50, 0);
                while done < 10_000 {
                    match rustix::fs::copy_file_range(
                        &from,
                        Some(&mut read_at),
                        &to,
                        Some(&mut write_at),
                        10_000 - done,
                    )? {
                        0 => break,
                        count => done += count,
                    }
                }
                Ok::<_, Errno>(done)
            })
            .unwrap();
        world.assert_lower_untouched();
    }
}

#[test]
fn locks_hold_between_processes_and_over_copy_up() {
    use std::io::BufRead;
    use std::process::Stdio;
    if !require_root_and_fuse() {
        return;
    }
    let world = World::new("", "f f =x\nf g =x");
    let start = |command: &str, file: &Path| {
        let mut command_line = Command::new(env!("CARGO_BIN_EXE_layerfs-test-helper"));
        command_line.arg(command).arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command_line.spawn().unwrap();
        let stdout = std::io::BufReader::new(child.stdout.take().unwrap());
        (child, stdout)
    };
    let answer = |stdout: &mut std::io::BufReader<std::process::ChildStdout>| {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        line.trim().to_owned()
    };
    let finish = |mut child: std::process::Child| {
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    };
    // flock on a file that is still lower (opened read-only): held against a second one, also after copy-up.
    let (holder, mut said) = start("flock", &world.mount.join("f"));
    assert_eq!(answer(&mut said), "locked");
    helper("append", &world.mount.join("f"), "more");
    let (second, mut second_said) = start("flock", &world.mount.join("f"));
    assert_eq!(answer(&mut second_said), "busy", "flock after copy-up");
    finish(second);
    finish(holder);
    let (third, mut third_said) = start("flock", &world.mount.join("f"));
    assert_eq!(answer(&mut third_said), "locked", "flock after the holder has gone");
    finish(third);
    // POSIX locks; one that waits gets it when the holder ends.
    let (holder, mut said) = start("posix-lock", &world.mount.join("g"));
    assert_eq!(answer(&mut said), "locked");
    let (second, mut second_said) = start("posix-lock", &world.mount.join("g"));
    assert_eq!(answer(&mut second_said), "busy");
    finish(second);
    let (waiter, mut waiter_said) = start("posix-lock-wait", &world.mount.join("g"));
    finish(holder);
    assert_eq!(answer(&mut waiter_said), "locked", "a waiting POSIX lock");
    finish(waiter);
}

#[test]
fn an_unlinked_open_file_stays_whole() {
    if !require_root_and_fuse() {
        return;
    }
    for mode in IO_MODES {
        let world = World::new(mode, "f lower =l *9000\nf up =u *9000\nf read =r *9000\nd d\nf d/x");
        let nlink = |file: &File| file.metadata().unwrap().nlink();
        world.same_as_plain("everything by descriptor", |root| {
            let mut answers = Vec::new();
            for name in ["lower", "up", "fresh"] {
                let path = root.join(name);
                if name == "up" {
                    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"+").unwrap();
                }
                let file = OpenOptions::new()
                    .create(true)
                    .truncate(false)
                    .read(true)
                    .write(true)
                    .open(&path)
                    .unwrap();
                fs::remove_file(&path).unwrap();
                file.write_all_at(b"after", 10).unwrap();
                answers.push(format!("{name}: {:?}", read_at(&file, 8, 9)));
                file.set_len(12).unwrap();
                let meta = file.metadata().unwrap();
                answers.push(format!("{} {} {:o}", meta.len(), nlink(&file), meta.mode()));
                rustix::fs::fchmod(&file, Mode::from_raw_mode(0o600)).unwrap();
                rustix::fs::fsetxattr(&file, "user.k", b"v", XattrFlags::empty()).unwrap();
                let mut value = [0; 8];
                answers.push(format!("{:?}", rustix::fs::fgetxattr(&file, "user.k", &mut value[..])));
                rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 8192).unwrap();
                answers.push(format!("{:?}", rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))));
                let map = sys::map_shared(&file).unwrap();
                answers.push(format!("{:?}", &map[10..12]));
                file.sync_all().unwrap();
                answers.push(format!("{:o} {}", file.metadata().unwrap().mode(), path.exists()));
            }
            answers
        });
        world.same_as_plain("a lower file opened read-only, unlinked, its name taken again", |root| {
            let file = File::open(root.join("read")).unwrap();
            fs::remove_file(root.join("read")).unwrap();
            fs::write(root.join("read"), b"another").unwrap();
            (digest(&read_at(&file, 0, 10_000)), nlink(&file), fs::read(root.join("read")).unwrap())
        });
        world.same_as_plain("a removed directory", |root| {
            let dir = File::open(root.join("d")).unwrap();
            fs::remove_file(root.join("d/x")).unwrap();
            fs::remove_dir(root.join("d")).unwrap();
            let create = rustix::fs::openat(&dir, "new", OFlags::CREATE | OFlags::RDWR, Mode::RWXU);
            let stat = dir.metadata().unwrap();
            (create.err(), stat.is_dir(), rustix::fs::statat(&dir, "x", AtFlags::empty()).err())
        });
        world.assert_lower_untouched();
    }
}

#[test]
fn reading_does_not_touch_the_access_times_of_lowers() {
    if !require_root_and_fuse() {
        return;
    }
    // Without relatime's once-a-day rule every read would show.
    let scratch = Scratch::ext4(1 << 30, "strictatime");
    let world = World::in_scratch(scratch, "", "d d\nf d/f =x *100000\nf f =y");
    for name in ["d/f", "f"] {
        let mut all = Vec::new();
        File::open(world.mount.join(name)).unwrap().read_to_end(&mut all).unwrap();
        assert!(!all.is_empty());
    }
    assert_eq!(fs::read_dir(world.mount.join("d")).unwrap().count(), 1);
    fs::write(world.mount.join("f"), b"copied up").unwrap();
    std::os::unix::fs::chown(world.mount.join("d/f"), Some(5), None).unwrap();
    world.assert_lower_untouched();
}

#[test]
fn seeking_in_a_file_by_its_own_position_survives_copy_up() {
    if !require_root_and_fuse() {
        return;
    }
    for mode in IO_MODES {
        let world = World::new(mode, "f f =0123456789 *10");
        let mut reader = File::open(world.mount.join("f")).unwrap();
        let mut ten = [0; 10];
        reader.read_exact(&mut ten).unwrap();
        helper("append", &world.mount.join("f"), "tail");
        assert_eq!(reader.stream_position().unwrap(), 10);
        reader.seek(SeekFrom::End(-4)).unwrap();
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "tail", "{mode}");
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
        let again = rustix::fs::openat(CWD, path.as_str(), OFlags::RDONLY, Mode::empty()).unwrap();
        assert_eq!(read_at(&File::from(again), 100, 9), b"tail", "{mode}: reopened by /proc");
    }
}
