//! Trees as values: taken from disk, compared, and their differences told to a person.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use rustix::io::Errno;

/// What a snapshot looks at besides type, content, link target, mode, owner, xattrs and link structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Look {
    /// Modification times.
    pub mtime: bool,
    /// Access times, of objects that can be read without changing them (all but symlinks).
    pub atime: bool,
    /// Link counts of non-directories.
    pub nlink: bool,
    /// Show overlay's own xattrs (`trusted.overlay.*`, `user.overlay.*`): for layers, not merged views.
    pub marks: bool,
    /// Inode numbers.
    pub ino: bool,
    /// Keep the root's own metadata out.
    pub no_root: bool,
}

/// One object. Fields that were not looked at are `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// `d`, `f`, `l`, `c`, `b`, `p` or `s`.
    pub kind: char,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device numbers.
    pub rdev: Option<(u32, u32)>,
    /// Content of files, target of symlinks, as a short text that differs when they differ.
    pub content: String,
    /// Names and values.
    pub xattrs: BTreeMap<String, String>,
    /// The first path, in order, of the same object.
    pub same_as: PathBuf,
    /// Link count.
    pub nlink: Option<u64>,
    /// Seconds, nanoseconds.
    pub mtime: Option<(i64, i64)>,
    /// Seconds, nanoseconds.
    pub atime: Option<(i64, i64)>,
    /// Inode number.
    pub ino: Option<u64>,
}

/// A tree: the empty path is the root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// By path relative to the root.
    pub records: BTreeMap<PathBuf, Record>,
    /// What did not hold while the tree was walked (listing and stat disagree, a listed name that is not
    /// there): never empty without a fault of the filesystem.
    pub faults: Vec<String>,
}

impl Snapshot {
    /// Walks `root`. Reading changes no times (`O_NOATIME`) where the caller may ask for that.
    #[must_use]
    pub fn take(root: &Path, look: Look) -> Self {
        let mut walk = Walk { root, look, first: BTreeMap::new(), snapshot: Self::default(), device: None };
        if let Err(e) = walk.visit(PathBuf::new(), None) {
            walk.snapshot.faults.push(format!("the root: {e}"));
        }
        if look.no_root {
            walk.snapshot.records.remove(Path::new(""));
        }
        walk.snapshot
    }

    /// Differences, one line each; empty when the trees are equal and neither walk found a fault.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines: Vec<_> = self.faults.iter().map(|f| format!("first: {f}")).collect();
        lines.extend(other.faults.iter().map(|f| format!("second: {f}")));
        for (path, record) in &self.records {
            match other.records.get(path) {
                None => lines.push(format!("{}: only in the first ({})", path.display(), record.kind)),
                Some(there) => differ(path, record, there, &mut lines),
            }
        }
        for (path, record) in &other.records {
            if !self.records.contains_key(path) {
                lines.push(format!("{}: only in the second ({})", path.display(), record.kind));
            }
        }
        lines
    }

    /// Fails with the differences, if there are any.
    #[track_caller]
    pub fn assert_same(&self, other: &Self, what: &str) {
        let differences = self.differences(other);
        assert!(differences.is_empty(), "{what}:\n  {}", differences.join("\n  "));
    }
}

fn differ(path: &Path, a: &Record, b: &Record, lines: &mut Vec<String>) {
    let mut field = |name: &str, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| {
        let (a, b) = (format!("{a:?}"), format!("{b:?}"));
        if a != b {
            lines.push(format!("{}: {name}: {a} / {b}", path.display()));
        }
    };
    field("type", &a.kind, &b.kind);
    field("mode", &format_args!("{:04o}", a.mode), &format_args!("{:04o}", b.mode));
    field("owner", &(a.uid, a.gid), &(b.uid, b.gid));
    field("device", &a.rdev, &b.rdev);
    field("content", &a.content, &b.content);
    field("xattrs", &a.xattrs, &b.xattrs);
    field("link of", &a.same_as, &b.same_as);
    field("nlink", &a.nlink, &b.nlink);
    field("mtime", &a.mtime, &b.mtime);
    field("atime", &a.atime, &b.atime);
    field("ino", &a.ino, &b.ino);
}

struct Walk<'a> {
    root: &'a Path,
    look: Look,
    /// (device, inode) to the first path seen.
    first: BTreeMap<(u64, u64), PathBuf>,
    snapshot: Snapshot,
    device: Option<u64>,
}

impl Walk<'_> {
    fn visit(&mut self, path: PathBuf, listed: Option<(u64, FileType)>) -> io::Result<()> {
        let full = self.root.join(&path);
        let stat = statat(CWD, &full, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if let Some((ino, listed_kind)) = listed {
            if ino != stat.st_ino {
                self.snapshot.faults.push(format!(
                    "{}: inode {ino} in the listing, {} by stat",
                    path.display(),
                    stat.st_ino
                ));
            }
            if listed_kind != kind && listed_kind != FileType::Unknown {
                self.snapshot
                    .faults
                    .push(format!("{}: {listed_kind:?} in the listing, {kind:?} by stat", path.display()));
            }
        }
        if *self.device.get_or_insert(stat.st_dev) != stat.st_dev && kind == FileType::Directory {
            self.snapshot.faults.push(format!("{}: a directory on another device", path.display()));
        }
        let record = self.record(&path, &full, &stat, kind)?;
        self.snapshot.records.insert(path.clone(), record);
        if kind == FileType::Directory {
            let mut entries = list(&full)?;
            // The first path of an object must not depend on the order of the directory.
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            for (name, ino, kind) in entries {
                let child = path.join(&name);
                if self.snapshot.records.contains_key(&child) {
                    self.snapshot.faults.push(format!("{}: listed twice", child.display()));
                } else if let Err(e) = self.visit(child.clone(), Some((ino, kind))) {
                    self.snapshot.faults.push(format!("{}: listed, but: {e}", child.display()));
                }
            }
        }
        Ok(())
    }

    fn record(&mut self, path: &Path, full: &Path, stat: &Stat, kind: FileType) -> io::Result<Record> {
        let look = self.look;
        let same_as = if kind == FileType::Directory {
            path.to_path_buf()
        } else {
            self.first.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.to_path_buf()).clone()
        };
        let device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        Ok(Record {
            kind: letter(kind),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: device.then(|| (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))),
            content: content(full, kind, stat.st_size as u64)?,
            xattrs: xattrs(full, look.marks)?,
            same_as,
            nlink: (look.nlink && kind != FileType::Directory).then_some(stat.st_nlink),
            mtime: look.mtime.then_some((stat.st_mtime, stat.st_mtime_nsec as i64)),
            atime: (look.atime && kind != FileType::Symlink)
                .then_some((stat.st_atime, stat.st_atime_nsec as i64)),
            ino: look.ino.then_some(stat.st_ino),
        })
    }
}

fn letter(kind: FileType) -> char {
    match kind {
        FileType::Directory => 'd',
        FileType::RegularFile => 'f',
        FileType::Symlink => 'l',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        FileType::Unknown => '?',
    }
}

/// Opens for reading without changing the access time, where allowed.
fn open_quietly(path: &Path, flags: OFlags) -> rustix::io::Result<rustix::fd::OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match openat(CWD, path, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => openat(CWD, path, flags, Mode::empty()),
        other => other,
    }
}

/// Name, inode number and type of every entry but `.` and `..`, in the order of the directory.
pub fn list(path: &Path) -> io::Result<Vec<(OsString, u64, FileType)>> {
    let mut entries = Vec::new();
    for entry in Dir::new(open_quietly(path, OFlags::DIRECTORY)?)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            entries.push((std::ffi::OsStr::from_bytes(name).to_os_string(), entry.ino(), entry.file_type()));
        }
    }
    Ok(entries)
}

/// Content as text: short ones whole, long ones by length, sum and beginning.
fn content(path: &Path, kind: FileType, size: u64) -> io::Result<String> {
    let bytes = match kind {
        FileType::RegularFile => {
            let mut bytes = Vec::new();
            let mut file = std::fs::File::from(open_quietly(path, OFlags::empty())?);
            io::Read::read_to_end(&mut file, &mut bytes)?;
            if bytes.len() as u64 != size {
                return Ok(format!("size {size} by stat, {} bytes read", bytes.len()));
            }
            bytes
        }
        FileType::Symlink => readlinkat(CWD, path, Vec::new())?.into_bytes(),
        _ => return Ok(String::new()),
    };
    Ok(digest(&bytes))
}

/// A short text that differs when the bytes differ (up to collisions of a 64-bit sum).
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    if bytes.len() <= 48 {
        return bytes.escape_ascii().to_string();
    }
    // FNV-1a: enough to tell accidental differences.
    let sum = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    let mut text = String::new();
    write!(text, "{} bytes, sum {sum:016x}, ", bytes.len()).expect("write to a string");
    write!(text, "{}...{}", bytes[..16].escape_ascii(), bytes[bytes.len() - 8..].escape_ascii())
        .expect("write to a string");
    text
}

/// Extended attributes with values as text. Marks of overlays are left out unless asked for.
pub fn xattrs(path: &Path, marks: bool) -> io::Result<BTreeMap<String, String>> {
    let mut names = Vec::with_capacity(64 << 10);
    match rustix::fs::llistxattr(path, rustix::buffer::spare_capacity(&mut names)) {
        Ok(_) => {}
        Err(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        Err(e) => return Err(e.into()),
    }
    let mut found = BTreeMap::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let text = String::from_utf8_lossy(name).into_owned();
        let own = text.starts_with("trusted.overlay.") || text.starts_with("user.overlay.");
        if own && !marks {
            continue;
        }
        let mut value = Vec::with_capacity(64 << 10);
        let value = match rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)) {
            Ok(_) => digest(&value),
            Err(e) => format!("listed, but: {e}"),
        };
        found.insert(text, value);
    }
    Ok(found)
}
