//! Archives that are hostile or odd, made here, each with what must come of it. Nothing outside of the tree may change,
//! whatever is unpacked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use layerfs_image::layer::{Limits, Marks, Stack, UnpackError, WithoutIndex, unpack};
use layerfs_image::tar::{Entry, EntryKind, TarWriter};

use EntryKind::{BlockDevice, CharDevice, Directory, Fifo, File, HardLink, Symlink};

/// An archive in the making.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(mut self, entry: &Entry, content: &[u8]) -> Self {
        let mut writer = TarWriter::new(Vec::new());
        writer.header(entry).unwrap();
        if entry.kind == File {
            writer.data(&mut &*content, content.len() as u64).unwrap();
        }
        let bytes = writer.finish().unwrap();
        self.0.extend_from_slice(&bytes[..bytes.len() - 1024]);
        self
    }

    fn entry(self, kind: EntryKind, path: &str) -> Self {
        let mut entry = Entry::new(path, kind);
        entry.mode = 0o755;
        self.add(&entry, b"")
    }

    fn file(self, path: &str, content: &str) -> Self {
        let mut entry = Entry::new(path, File);
        entry.mode = 0o644;
        entry.size = content.len() as u64;
        self.add(&entry, content.as_bytes())
    }

    fn dir(self, path: &str) -> Self {
        self.entry(Directory, path)
    }

    fn link(self, kind: EntryKind, path: &str, target: &str) -> Self {
        let mut entry = Entry::new(path, kind);
        entry.link = target.into();
        entry.mode = 0o777;
        self.add(&entry, b"")
    }

    fn device(self, kind: EntryKind, path: &str, major: u32, minor: u32) -> Self {
        let mut entry = Entry::new(path, kind);
        entry.device = (major, minor);
        entry.mode = 0o600;
        self.add(&entry, b"")
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A PAX header with these records, for the next entry.
    fn pax(self, records: &[u8]) -> Self {
        self.raw(&header(b"PaxHeaders", b'x', records.len() as u64)).raw(&padded(records))
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().div_ceil(512) * 512, 0);
    bytes
}

/// A header written by hand, with a right checksum.
fn header(path: &[u8], type_flag: u8, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    block[..path.len()].copy_from_slice(path);
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000000");
    block[156] = type_flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    summed(block)
}

fn summed(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn changed(mut block: [u8; 512], at: usize, bytes: &[u8]) -> [u8; 512] {
    block[at..at + bytes.len()].copy_from_slice(bytes);
    summed(block)
}

fn record(key: &str, value: &str) -> Vec<u8> {
    let body = format!(" {key}={value}\n");
    let mut len = body.len() + 1;
    while len != body.len() + len.to_string().len() {
        len = body.len() + len.to_string().len();
    }
    format!("{len}{body}").into_bytes()
}

/// What must come of an archive.
enum Expect {
    /// Refused, with these words among the reasons.
    Refused(&'static str),
    /// Unpacked, and the tree is as the function wants it.
    Tree(fn(&Path)),
}

use Expect::{Refused, Tree};

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
        || path
            .parent()
            .unwrap()
            .join(format!(".wh.{}", path.file_name().unwrap().to_str().unwrap()))
            .exists()
}

fn is_opaque(path: &Path) -> bool {
    ["trusted.overlay.opaque", "user.overlay.opaque"]
        .iter()
        .any(|name| rustix::fs::getxattr(path, *name, &mut [0_u8; 8][..]).is_ok())
}

fn is_empty(path: &Path) -> bool {
    fs::read_dir(path).unwrap().next().is_none()
}

fn new() -> Archive {
    Archive::default()
}

const DEEP: &str = "d/";

fn corpus() -> Vec<(&'static str, Vec<u8>, Expect)> {
    let outside = "../outside/planted";
    let long_name = "n".repeat(256);
    vec![
        // Names that lead out.
        ("absolute name", new().file("/etc/passwd", "x").end(), Refused("absolute")),
        ("absolute directory", new().dir("/tmp").end(), Refused("absolute")),
        ("name upwards", new().file(outside, "x").end(), Refused("upwards")),
        (
            "name upwards in the middle",
            new().dir("a").file("a/../../outside/x", "x").end(),
            Refused("upwards"),
        ),
        ("name upwards that stays inside", new().dir("a").file("a/../b", "x").end(), Refused("upwards")),
        ("only upwards", new().dir("..").end(), Refused("upwards")),
        (
            "name upwards in PAX",
            new().pax(&record("path", outside)).file("fine", "x").end(),
            Refused("upwards"),
        ),
        (
            "absolute name in PAX",
            new().pax(&record("path", "/etc/x")).file("fine", "x").end(),
            Refused("absolute"),
        ),
        (
            "name upwards in a GNU long name",
            new()
                .raw(&header(b"././@LongLink", b'L', 19))
                .raw(&padded(b"../outside/planted\0"))
                .file("f", "x")
                .end(),
            Refused("upwards"),
        ),
        (
            "root as a directory of old",
            new().raw(&header(b"./", b'0', 0)).end(),
            Tree(|t| assert!(is_empty(t))),
        ),
        ("root as a symlink", new().link(Symlink, ".", "/etc").end(), Refused("root of a layer")),
        ("root as a fifo", new().entry(Fifo, ".").end(), Refused("root of a layer")),
        ("root as a directory", new().dir("./").end(), Tree(|t| assert!(is_empty(t)))),
        ("NUL in a PAX name", new().pax(b"12 path=a\0b\n").file("f", "x").end(), Refused("NUL")),
        (
            "NUL in a PAX target",
            new().pax(b"16 linkpath=a\0b\n").link(Symlink, "l", "x").end(),
            Refused("NUL"),
        ),
        ("part of a name too long", new().file(&long_name, "x").end(), Refused("255 bytes")),
        ("name too long", new().file(&DEEP.repeat(2100), "x").end(), Refused("limit")),
        (
            "deep name",
            new().file(&format!("{}f", DEEP.repeat(2000)), "x").end(),
            Tree(|t| assert!(t.join("d/d/d").is_dir())),
        ),
        (
            "bytes that are no text",
            new().raw(&header(b"\xff\xfe", b'0', 0)).end(),
            Tree(|t| assert!(!is_empty(t))),
        ),
        (
            "slashes and dots",
            new().file(".//a/.//b", "x").end(),
            Tree(|t| assert_eq!(read(&t.join("a/b")), "x")),
        ),
        ("empty name", new().raw(&header(b"", b'0', 0)).end(), Refused("root of a layer")),
        // Links that lead out.
        (
            "through a symlink upwards",
            new().link(Symlink, "l", "../outside").file("l/planted", "x").end(),
            Tree(|t| assert_eq!(read(&t.join("outside/planted")), "x")),
        ),
        (
            "through an absolute symlink",
            new().link(Symlink, "l", "/outside").file("l/planted", "x").end(),
            Tree(|t| assert_eq!(read(&t.join("outside/planted")), "x")),
        ),
        (
            "through a chain of symlinks",
            new().link(Symlink, "a", "b/..").link(Symlink, "b", "../../..").file("a/a/planted", "x").end(),
            Tree(|t| assert_eq!(read(&t.join("planted")), "x")),
        ),
        (
            "symlinks in a circle",
            new().link(Symlink, "a", "b").link(Symlink, "b", "a").file("a/x", "x").end(),
            Refused("too many"),
        ),
        ("symlink to itself", new().link(Symlink, "a", "a").file("a/x", "x").end(), Refused("too many")),
        (
            "file over a symlink that leads out",
            new().link(Symlink, "l", "../outside/victim").file("l", "x").end(),
            Tree(|t| assert_eq!(read(&t.join("l")), "x")),
        ),
        (
            "directory over a symlink that leads out",
            new().link(Symlink, "l", "../outside").dir("l").file("l/f", "x").end(),
            Tree(|t| assert!(t.join("l").symlink_metadata().unwrap().is_dir())),
        ),
        ("symlink without target", new().link(Symlink, "l", "").end(), Refused("without target")),
        (
            "symlink that leads out is kept as it is",
            new().link(Symlink, "l", "../../../etc/passwd").end(),
            Tree(|t| assert_eq!(fs::read_link(t.join("l")).unwrap().to_str(), Some("../../../etc/passwd"))),
        ),
        ("hard link upwards", new().link(HardLink, "h", "../outside/victim").end(), Refused("leads out")),
        (
            "hard link to an absolute name",
            new().link(HardLink, "h", "/etc/passwd").end(),
            Refused("neither in this layer nor below"),
        ),
        (
            "hard link through a symlink that leads out",
            new().link(Symlink, "l", "../outside").link(HardLink, "h", "l/victim").end(),
            Refused("neither in this layer nor below"),
        ),
        (
            "hard link to a symlink that leads out, then a file over it",
            new().link(Symlink, "l", "../outside/victim").link(HardLink, "h", "l").file("h", "x").end(),
            Tree(|t| assert_eq!(read(&t.join("h")), "x")),
        ),
        (
            "hard link to a directory",
            new().dir("d").link(HardLink, "h", "d").end(),
            Refused("hard link to a directory"),
        ),
        ("hard link to the root", new().link(HardLink, "h", ".").end(), Refused("hard link to the root")),
        (
            "hard link to nothing",
            new().link(HardLink, "h", "missing").end(),
            Refused("neither in this layer"),
        ),
        (
            "hard link to itself",
            new().file("f", "x").link(HardLink, "f", "f").end(),
            Tree(|t| assert_eq!(read(&t.join("f")), "x")),
        ),
        (
            "hard link to a whiteout",
            new().file(".wh.f", "").link(HardLink, "h", "f").end(),
            Refused("removes"),
        ),
        (
            "hard links",
            new().file("f", "x").link(HardLink, "g", "./f").link(HardLink, "h", "/g").end(),
            Tree(|t| assert_eq!(fs::metadata(t.join("f")).unwrap().nlink(), 3)),
        ),
        // Whiteouts.
        (
            "whiteout of the directory itself",
            new().file(".wh.", "").end(),
            Refused("whiteout of the directory"),
        ),
        ("whiteout of dot", new().file(".wh..", "").end(), Refused("whiteout of the directory")),
        ("whiteout of dot dot", new().file("a/.wh...", "").end(), Refused("whiteout of the directory")),
        ("whiteout upwards", new().file("../.wh.outside", "").end(), Refused("upwards")),
        ("whiteout", new().file(".wh.gone", "").end(), Tree(|t| assert!(is_whiteout(&t.join("gone"))))),
        (
            "whiteout as a hard link",
            new().link(HardLink, ".wh.gone", "anything").end(),
            Tree(|t| assert!(is_whiteout(&t.join("gone")))),
        ),
        (
            "whiteout as a directory",
            new().dir(".wh.gone").end(),
            Tree(|t| assert!(is_whiteout(&t.join("gone")))),
        ),
        (
            "whiteout of a sibling, after",
            new().file("f", "x").file(".wh.f", "").end(),
            Tree(|t| assert_eq!(read(&t.join("f")), "x")),
        ),
        (
            "whiteout of a sibling, before",
            new().file(".wh.f", "").file("f", "x").end(),
            Tree(|t| assert_eq!(read(&t.join("f")), "x")),
        ),
        (
            "whiteout of a directory that is made anew",
            new().file(".wh.d", "").dir("d").end(),
            Tree(|t| assert!(is_opaque(&t.join("d")))),
        ),
        (
            "whiteout of a directory that was made anew",
            new().dir("d").file(".wh.d", "").end(),
            Tree(|t| assert!(is_opaque(&t.join("d")))),
        ),
        (
            "name beneath a whiteout",
            new().file(".wh.d", "").file("d/f", "x").end(),
            Tree(|t| assert!(is_opaque(&t.join("d")) && t.join("d/f").exists())),
        ),
        (
            "opaque, last",
            new().file("d/f", "x").file("d/.wh..wh..opq", "").end(),
            Tree(|t| assert!(is_opaque(&t.join("d")) && t.join("d/f").exists())),
        ),
        (
            "opaque root",
            new().file(".wh..wh..opq", "").file("f", "x").end(),
            Tree(|t| assert!(is_opaque(t) && t.join("f").exists())),
        ),
        (
            "whiteout beneath a file",
            new().file("f", "x").file("f/.wh.gone", "").end(),
            Tree(|t| assert_eq!(read(&t.join("f")), "x")),
        ),
        (
            "AUFS' own files",
            new().dir(".wh..wh.plnk").file(".wh..wh.aufs", "").end(),
            Tree(|t| assert!(is_empty(t))),
        ),
        (
            "whiteout twice",
            new().file(".wh.f", "").file(".wh.f", "").end(),
            Tree(|t| assert!(is_whiteout(&t.join("f")))),
        ),
        // Conflicts.
        ("beneath a file", new().file("f", "x").file("f/g", "x").end(), Refused("no directory")),
        ("beneath a fifo", new().entry(Fifo, "p").file("p/g", "x").end(), Refused("no directory")),
        (
            "the last of several wins",
            new().file("f", "1").file("f", "2").end(),
            Tree(|t| assert_eq!(read(&t.join("f")), "2")),
        ),
        (
            "file over a full directory",
            new().file("d/e/f", "1").file("d", "2").end(),
            Tree(|t| assert_eq!(read(&t.join("d")), "2")),
        ),
        (
            "directory over a file",
            new().file("d", "1").dir("d").end(),
            Tree(|t| assert!(t.join("d").is_dir())),
        ),
        (
            "directory over a directory keeps its content",
            new().file("d/f", "1").dir("d").end(),
            Tree(|t| assert!(t.join("d/f").exists())),
        ),
        (
            "missing parents",
            new().file("a/b/c", "x").end(),
            Tree(|t| assert_eq!(fs::metadata(t.join("a/b")).unwrap().mode() & 0o7777, 0o755)),
        ),
        // Devices.
        ("device 0:0", new().device(CharDevice, "d", 0, 0).end(), Refused("whiteout")),
        (
            "device numbers that do not exist",
            new().device(BlockDevice, "d", 1 << 12, 0).end(),
            Refused("device number"),
        ),
        (
            "flood of devices",
            (0..40).fold(new(), |archive, n| archive.device(CharDevice, &format!("d{n}"), 1, 3)).end(),
            Refused("devices"),
        ),
        // Bombs.
        (
            "too many entries",
            (0..2600).fold(new(), |archive, n| archive.file(&format!("f{n}"), "")).end(),
            Refused("entries"),
        ),
        ("too many bytes", new().file("f", &"x".repeat(70_000)).end(), Refused("bytes of data")),
        (
            "size beyond the archive",
            new().raw(&header(b"f", b'0', 60_000)).raw(&[0; 512]).end(),
            Refused("middle of a file"),
        ),
        (
            "size beyond all limits",
            new().raw(&header(b"f", b'0', 0o77_777_777_777)).end(),
            Refused("bytes of data"),
        ),
        (
            "PAX size beyond the archive",
            new().pax(&record("size", "50000")).raw(&header(b"f", b'0', 0)).end(),
            Refused("middle of a file"),
        ),
        ("PAX header of 8 GiB", new().raw(&header(b"x", b'x', 0o77_777_777_777)).end(), Refused("limit")),
        ("long name of 8 GiB", new().raw(&header(b"x", b'L', 0o77_777_777_777)).end(), Refused("limit")),
        (
            "huge sparse file without data",
            new()
                .pax(
                    &[
                        record("GNU.sparse.major", "1"),
                        record("GNU.sparse.minor", "0"),
                        record("GNU.sparse.realsize", "1000000000000"),
                        record("GNU.sparse.name", "s"),
                    ]
                    .concat(),
                )
                .raw(&header(b"s", b'0', 512))
                .raw(&padded(b"0\n"))
                .end(),
            Tree(|t| assert_eq!(fs::metadata(t.join("s")).unwrap().len(), 1_000_000_000_000)),
        ),
        (
            "sparse file of more than any disk has",
            new()
                .pax(&[record("GNU.sparse.map", "0,1"), record("GNU.sparse.size", "17592186044417")].concat())
                .raw(&header(b"s", b'0', 1))
                .raw(&padded(b"x"))
                .end(),
            Refused("larger than 16 TiB"),
        ),
        (
            "sparse map that overlaps",
            new()
                .pax(&[record("GNU.sparse.map", "0,10,5,10"), record("GNU.sparse.size", "100")].concat())
                .raw(&header(b"s", b'0', 20))
                .raw(&padded(&[1; 20]))
                .end(),
            Refused("overlap"),
        ),
        (
            "sparse map beyond the end",
            new()
                .pax(&[record("GNU.sparse.map", "90,20"), record("GNU.sparse.size", "100")].concat())
                .raw(&header(b"s", b'0', 20))
                .raw(&padded(&[1; 20]))
                .end(),
            Refused("beyond the file's end"),
        ),
        (
            "sparse map beyond 64 bits",
            new()
                .pax(
                    &[record("GNU.sparse.map", "18446744073709551615,20"), record("GNU.sparse.size", "100")]
                        .concat(),
                )
                .raw(&header(b"s", b'0', 20))
                .raw(&padded(&[1; 20]))
                .end(),
            Refused("64 bits"),
        ),
        (
            "sparse map of another length than the data",
            new()
                .pax(&[record("GNU.sparse.map", "0,10"), record("GNU.sparse.size", "100")].concat())
                .raw(&header(b"s", b'0', 20))
                .raw(&padded(&[1; 20]))
                .end(),
            Refused("does not fit"),
        ),
        (
            "sparse map of an odd length",
            new()
                .pax(&record("GNU.sparse.map", "0,10,5"))
                .raw(&header(b"s", b'0', 10))
                .raw(&padded(&[1; 10]))
                .end(),
            Refused("odd number"),
        ),
        (
            "sparse map of many pieces",
            new()
                .pax(&[record("GNU.sparse.major", "1"), record("GNU.sparse.minor", "0")].concat())
                .raw(&header(b"s", b'0', 512))
                .raw(&padded(b"99999999999\n"))
                .end(),
            Refused("limit"),
        ),
        (
            "sparse file",
            new()
                .pax(&[record("GNU.sparse.map", "4,2"), record("GNU.sparse.size", "8")].concat())
                .raw(&header(b"s", b'0', 2))
                .raw(&padded(b"xy"))
                .end(),
            Tree(|t| assert_eq!(fs::read(t.join("s")).unwrap(), b"\0\0\0\0xy\0\0")),
        ),
        // Damage.
        ("no archive", b"this is no tar archive".repeat(100), Refused("no tar header")),
        (
            "wrong checksum",
            new()
                .raw(&{
                    let mut h = header(b"f", b'0', 0);
                    h[0] = b'g';
                    h
                })
                .end(),
            Refused("no tar header"),
        ),
        ("half a header", new().raw(&header(b"f", b'0', 0)[..300]).0, Refused("middle of a header")),
        ("PAX header for nothing", new().pax(&record("path", "x")).end(), Refused("none follows")),
        ("PAX record without length", new().pax(b"path=x\n").file("f", "").end(), Refused("PAX")),
        ("PAX record with a wrong length", new().pax(b"99 path=x\n").file("f", "").end(), Refused("PAX")),
        (
            "negative size",
            new().raw(&changed(header(b"f", b'0', 0), 124, &[0xff; 12])).end(),
            Refused("negative size"),
        ),
        (
            "size that is no number",
            new().raw(&changed(header(b"f", b'0', 0), 124, b"what        ")).end(),
            Refused("no number"),
        ),
        (
            "owner beyond 32 bits",
            new().pax(&record("uid", "99999999999")).file("f", "").end(),
            Refused("32 bits"),
        ),
        (
            "owner below zero",
            new().raw(&changed(header(b"f", b'0', 0), 108, &[0xff; 8])).end(),
            Refused("32 bits"),
        ),
        ("unknown type", new().raw(&header(b"f", b'Z', 0)).end(), Refused("type")),
        ("part of several volumes", new().raw(&header(b"f", b'M', 0)).end(), Refused("type")),
        ("empty", Vec::new(), Tree(|t| assert!(is_empty(t)))),
        ("only the end", new().end(), Tree(|t| assert!(is_empty(t)))),
        ("without its end", new().file("f", "x").0, Tree(|t| assert!(t.join("f").exists()))),
        (
            "something after the end",
            new().file("f", "x").raw(&[0; 1024]).raw(b"what is this").0,
            Tree(|t| assert!(t.join("f").exists())),
        ),
        (
            "version 7",
            new()
                .raw(&{
                    let mut h = header(b"d/", 0, 0);
                    h[257..265].fill(0);
                    summed(h)
                })
                .end(),
            Tree(|t| assert!(t.join("d").is_dir())),
        ),
        (
            "label of a volume",
            new().raw(&header(b"label", b'V', 0)).file("f", "").end(),
            Tree(|t| assert!(t.join("f").exists() && !t.join("label").exists())),
        ),
        // Marks that would be read as ours.
        (
            "xattrs that are marks",
            new()
                .pax(
                    &[
                        record("SCHILY.xattr.trusted.overlay.redirect", "/etc"),
                        record("SCHILY.xattr.trusted.overlay.opaque", "y"),
                    ]
                    .concat(),
                )
                .dir("d")
                .end(),
            Tree(|t| assert!(!is_opaque(&t.join("d")))),
        ),
        (
            "owner and type in an xattr",
            new()
                .pax(&record("SCHILY.xattr.user.containers.override_stat", "0:0:4755:char-0-0"))
                .file("f", "x")
                .end(),
            Tree(|t| {
                assert!(
                    rustix::fs::getxattr(t.join("f"), "user.containers.override_stat", &mut [0_u8; 64][..])
                        .is_err()
                )
            }),
        ),
        (
            "xattr without a name",
            new().pax(&record("SCHILY.xattr.", "x")).file("f", "").end(),
            Refused("extended attribute"),
        ),
        (
            "directory that nobody may enter",
            new().raw(&changed(header(b"d/", b'5', 0), 100, b"0000000")).file("d/f", "x").end(),
            Tree(|t| assert_eq!(fs::metadata(t.join("d")).unwrap().mode() & 0o777, 0)),
        ),
    ]
}

fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    words
}

fn run(tar: &[u8], tree: &Path, index: &Path) -> Result<(), UnpackError> {
    let root = fs::File::open(tree).unwrap();
    let marks = Marks::probe(root.as_fd()).unwrap();
    let limits = Limits { entries: 2500, bytes: 65_536, devices: 32, ..Limits::default() };
    let mut unpacked = unpack(tar, root.into(), marks, limits)?;
    unpacked.finish(&Stack::new(Vec::new()), &WithoutIndex, index)
}

#[test]
fn every_archive_is_unpacked_or_refused_as_it_should_be() {
    let corpus = corpus();
    assert!(corpus.len() >= 60, "the corpus has shrunk to {}", corpus.len());
    let mut wrong = Vec::new();
    for (name, tar, expect) in corpus {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir(&tree).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("victim"), "untouched").unwrap();
        let result = run(&tar, &tree, &dir.path().join("index"));
        match (result, expect) {
            (Ok(()), Refused(reason)) => wrong.push(format!("{name}: unpacked, not refused ({reason})")),
            (Err(error), Refused(reason)) if words(&error).contains(reason) => {}
            (Err(error), Refused(reason)) => wrong.push(format!("{name}: {} (not: {reason})", words(&error))),
            (Err(error), Tree(_)) => wrong.push(format!("{name}: refused: {}", words(&error))),
            (Ok(()), Tree(check)) => {
                if std::panic::catch_unwind(|| check(&tree)).is_err() {
                    wrong.push(format!("{name}: the tree is not as it should be"));
                }
            }
        }
        let around: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        let only =
            fs::read_dir(&outside).unwrap().count() == 1 && read(&outside.join("victim")) == "untouched";
        if !only || fs::metadata(outside.join("victim")).unwrap().nlink() != 1 || around.len() > 2 {
            wrong.push(format!("{name}: something outside has changed: {around:?}"));
        }
        layerfs_image::layer::remove_tree(&tree).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whatever is done to a good archive, unpacking ends, and writes nothing outside.
#[test]
fn damaged_archives_end_in_an_error_or_a_tree() {
    let good = new()
        .dir("d")
        .pax(&record("SCHILY.xattr.user.x", "y"))
        .file("d/f", "content")
        .link(Symlink, "l", "d")
        .link(HardLink, "h", "d/f")
        .file("d/.wh.gone", "")
        .end();
    let mut state: u64 = 0x2545_f491_4f6c_dd1d;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    for _ in 0..150 {
        let mut tar = good.clone();
        for _ in 0..=random(4) {
            let at = random(tar.len());
            // Within one header, with its checksum made right again, so that the change is looked at.
            let block = at / 512 * 512;
            tar[at] = u8::try_from(random(256)).unwrap();
            let fixed = summed(tar[block..block + 512].try_into().unwrap());
            if random(2) == 0 {
                tar[block..block + 512].copy_from_slice(&fixed);
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        drop(run(&tar, &tree, &dir.path().join("index")));
        let around = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(around, 1, "something was written outside");
        layerfs_image::layer::remove_tree(&tree).unwrap();
    }
}
