//! Layer trees from a compact description.
//!
//! A [`LayerSpec`] says what a layer holds, marks included; [`LayerSpec::build`] makes it on disk. Entries are
//! made in order, so a parent stands before its children (missing parents are made 0755 root). Times are
//! fixed by default, so that two trees built from one description are equal in them too.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// How a layer says that a name of lower layers is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhiteoutForm {
    /// Character device 0:0.
    Device,
    /// Empty regular file with xattr `overlay.whiteout`, the parent marked `opaque=x`.
    Xattr,
    /// As `Xattr`, in the `user.` namespace whoever builds.
    UserXattr,
    /// `.wh.NAME`.
    Aufs,
}

/// How a layer says that a directory hides what lower layers have in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpaqueForm {
    /// `trusted.overlay.opaque=y`
    Trusted,
    /// `user.overlay.opaque=y`
    User,
    /// `user.fuseoverlayfs.opaque=y`
    FuseOverlayfs,
    /// An entry `.wh..wh..opq`.
    Aufs,
}

/// What kind of object an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory, opaque or not.
    Dir(Option<OpaqueForm>),
    /// A regular file with this content.
    File(Vec<u8>),
    /// A symbolic link.
    Symlink(OsString),
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    Char(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// Another name for an earlier entry of the same layer.
    Link(PathBuf),
    /// A whiteout.
    Whiteout(WhiteoutForm),
}

/// Owner, mode, time and xattrs of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits with set-id and sticky bits; `None` is 0755 for directories, 0644 else.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification and access time: seconds, nanoseconds.
    pub time: (i64, i64),
    /// Name and value.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// 2020-09-13, any fixed moment.
pub const DEFAULT_TIME: (i64, i64) = (1_600_000_000, 123_456_789);

impl Default for Meta {
    fn default() -> Self {
        Self { mode: None, uid: 0, gid: 0, time: DEFAULT_TIME, xattrs: Vec::new() }
    }
}

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the layer's root; never empty, no `.` or `..`.
    pub path: PathBuf,
    /// What it is.
    pub node: Node,
    /// Its metadata; of no effect on links and whiteouts.
    pub meta: Meta,
}

/// The description of one layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerSpec {
    /// In the order of making.
    pub entries: Vec<Entry>,
}

impl LayerSpec {
    /// Reads a description, one entry per line; `#` begins a comment line. Fields are separated by blanks:
    ///
    /// ```text
    /// d  PATH [ATTR...]            directory          w  PATH   whiteout, device form
    /// f  PATH [=CONTENT] [ATTR...] file               wx PATH   whiteout, xattr form
    /// l  PATH TARGET [ATTR...]     symlink            wa PATH   whiteout, .wh. form
    /// h  PATH EARLIER              hard link          wu PATH   whiteout, user xattr
    ///                                                 o  PATH   opaque directory, trusted xattr
    /// p  PATH [ATTR...]            fifo               ou PATH   opaque, user xattr
    /// s  PATH [ATTR...]            socket             of PATH   opaque, fuse-overlayfs's xattr
    /// c  PATH MAJOR:MINOR          character device   oa PATH   opaque, .wh..wh..opq
    /// b  PATH MAJOR:MINOR          block device
    /// ```
    /// ATTR is a mode in octal, `uid:gid`, `time=SECONDS.NANOSECONDS`, `NAME=VALUE` (an xattr, the name has a
    /// dot), or `*COUNT` (the content that many times).
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self { entries: lines.map(parse_line).collect() }
    }

    /// The same layer with marks in the `user.` namespace; for a caller without privileges also with owners,
    /// modes, xattrs and device nodes that it may make.
    #[must_use]
    pub fn for_user(&self) -> Self {
        let root = rustix::process::geteuid().is_root();
        let entries = self.entries.iter().cloned().map(|mut entry| {
            entry.node = match entry.node {
                Node::Dir(Some(OpaqueForm::Trusted)) => Node::Dir(Some(OpaqueForm::User)),
                Node::Whiteout(WhiteoutForm::Xattr) => Node::Whiteout(WhiteoutForm::UserXattr),
                Node::Char(..) | Node::Block(..) if !root => Node::Fifo,
                other => other,
            };
            if !root {
                entry.meta.uid = rustix::process::geteuid().as_raw();
                entry.meta.gid = rustix::process::getegid().as_raw();
                let usable = if matches!(entry.node, Node::Dir(_)) { 0o700 } else { 0o600 };
                entry.meta.mode = entry.meta.mode.map(|mode| mode & 0o1777 | usable);
                entry.meta.xattrs.retain(|(name, _)| name.starts_with("user."));
            }
            entry
        });
        Self { entries: entries.collect() }
    }

    /// Makes the layer below `root`, which exists and is empty.
    pub fn build(&self, root: &Path) {
        for entry in &self.entries {
            make_parents(root, &entry.path);
            let path = root.join(&entry.path);
            make_node(root, &path, &entry.node);
            if !matches!(entry.node, Node::Link(_) | Node::Whiteout(_)) {
                set_meta(&path, &entry.node, &entry.meta);
            }
        }
        // Making children changed the times of directories.
        for entry in self.entries.iter().rev() {
            if matches!(entry.node, Node::Dir(_)) {
                set_time(&root.join(&entry.path), entry.meta.time);
            }
        }
        set_time(root, DEFAULT_TIME);
    }
}

fn parse_line(line: &str) -> Entry {
    let mut words = line.split_whitespace();
    let kind = words.next().unwrap_or_default();
    let path = PathBuf::from(words.next().unwrap_or_else(|| panic!("no path in {line:?}")));
    let mut word = || words.next().unwrap_or_else(|| panic!("a word is missing in {line:?}")).to_owned();
    let mut node = match kind {
        "d" => Node::Dir(None),
        "o" => Node::Dir(Some(OpaqueForm::Trusted)),
        "ou" => Node::Dir(Some(OpaqueForm::User)),
        "of" => Node::Dir(Some(OpaqueForm::FuseOverlayfs)),
        "oa" => Node::Dir(Some(OpaqueForm::Aufs)),
        "f" => Node::File(Vec::new()),
        "l" => Node::Symlink(word().into()),
        "h" => Node::Link(word().into()),
        "p" => Node::Fifo,
        "s" => Node::Socket,
        "c" | "b" => {
            let numbers = word();
            let (major, minor) = numbers.split_once(':').unwrap_or_else(|| panic!("MAJOR:MINOR in {line:?}"));
            let (major, minor) = (major.parse().unwrap(), minor.parse().unwrap());
            if kind == "c" { Node::Char(major, minor) } else { Node::Block(major, minor) }
        }
        "w" => Node::Whiteout(WhiteoutForm::Device),
        "wx" => Node::Whiteout(WhiteoutForm::Xattr),
        "wu" => Node::Whiteout(WhiteoutForm::UserXattr),
        "wa" => Node::Whiteout(WhiteoutForm::Aufs),
        other => panic!("unknown kind {other:?} in {line:?}"),
    };
    let mut meta = Meta::default();
    for word in words {
        if let Some(content) = word.strip_prefix('=') {
            node = Node::File(content.as_bytes().to_vec());
        } else if let Some(count) = word.strip_prefix('*') {
            let Node::File(content) = &mut node else { panic!("content of no file in {line:?}") };
            *content = content.repeat(count.parse().unwrap());
        } else if let Some(time) = word.strip_prefix("time=") {
            let (seconds, nanos) = time.split_once('.').unwrap_or((time, "0"));
            meta.time = (seconds.parse().unwrap(), nanos.parse().unwrap());
        } else if let Some((name, value)) = word.split_once('=') {
            meta.xattrs.push((name.to_owned(), value.as_bytes().to_vec()));
        } else if let Some((uid, gid)) = word.split_once(':') {
            meta.uid = uid.parse().unwrap();
            meta.gid = gid.parse().unwrap();
        } else {
            meta.mode = Some(u32::from_str_radix(word, 8).unwrap_or_else(|_| panic!("{word:?} in {line:?}")));
        }
    }
    Entry { path, node, meta }
}

fn make_parents(root: &Path, path: &Path) {
    let mut so_far = root.to_path_buf();
    let Some(parent) = path.parent() else { return };
    for part in parent.components() {
        so_far.push(part);
        if so_far.symlink_metadata().is_err() {
            fs::create_dir(&so_far).unwrap_or_else(|e| panic!("make {}: {e}", so_far.display()));
            set_meta(&so_far, &Node::Dir(None), &Meta::default());
        }
    }
}

/// `.wh.NAME` beside `path`.
#[must_use]
pub fn aufs_whiteout(path: &Path) -> PathBuf {
    let mut name = OsString::from(".wh.");
    name.push(path.file_name().unwrap_or(OsStr::new("")));
    path.with_file_name(name)
}

fn make_node(root: &Path, path: &Path, node: &Node) {
    let made = match node {
        Node::Dir(_) if path.is_dir() => Ok(()),
        Node::Dir(_) => fs::create_dir(path),
        Node::File(content) => fs::write(path, content),
        Node::Symlink(target) => symlink(target, path),
        Node::Fifo => mknod(path, FileType::Fifo, 0, 0),
        Node::Socket => mknod(path, FileType::Socket, 0, 0),
        Node::Char(major, minor) => mknod(path, FileType::CharacterDevice, *major, *minor),
        Node::Block(major, minor) => mknod(path, FileType::BlockDevice, *major, *minor),
        Node::Link(target) => fs::hard_link(root.join(target), path),
        Node::Whiteout(WhiteoutForm::Device) => mknod(path, FileType::CharacterDevice, 0, 0),
        Node::Whiteout(WhiteoutForm::Aufs) => fs::write(aufs_whiteout(path), b""),
        Node::Whiteout(form @ (WhiteoutForm::Xattr | WhiteoutForm::UserXattr)) => fs::write(path, b"")
            .and_then(|()| {
                let trusted = *form == WhiteoutForm::Xattr && rustix::process::geteuid().is_root();
                let prefix = if trusted { "trusted" } else { "user" };
                set_mark(path, prefix, "whiteout", b"y")?;
                set_mark(path.parent().unwrap_or(root), prefix, "opaque", b"x")
            }),
    };
    made.unwrap_or_else(|e| panic!("make {} as {node:?}: {e}", path.display()));
}

fn set_mark(path: &Path, prefix: &str, mark: &str, value: &[u8]) -> std::io::Result<()> {
    rustix::fs::lsetxattr(path, format!("{prefix}.overlay.{mark}"), value, XattrFlags::empty())?;
    Ok(())
}

fn mknod(path: &Path, kind: FileType, major: u32, minor: u32) -> std::io::Result<()> {
    let device = rustix::fs::makedev(major, minor);
    Ok(rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device)?)
}

fn set_meta(path: &Path, node: &Node, meta: &Meta) {
    let context = |e| panic!("set metadata of {}: {e}", path.display());
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(path, Some(meta.uid), Some(meta.gid)).unwrap_or_else(context);
    }
    if let Node::Dir(Some(form)) = node {
        match form {
            OpaqueForm::Aufs => fs::write(path.join(".wh..wh..opq"), b""),
            OpaqueForm::Trusted => {
                rustix::fs::lsetxattr(path, "trusted.overlay.opaque", b"y", XattrFlags::empty())
                    .map_err(Into::into)
            }
            OpaqueForm::User => rustix::fs::lsetxattr(path, "user.overlay.opaque", b"y", XattrFlags::empty())
                .map_err(Into::into),
            OpaqueForm::FuseOverlayfs => {
                rustix::fs::lsetxattr(path, "user.fuseoverlayfs.opaque", b"y", XattrFlags::empty())
                    .map_err(Into::into)
            }
        }
        .unwrap_or_else(context);
    }
    for (name, value) in &meta.xattrs {
        rustix::fs::lsetxattr(path, name.as_str(), value, XattrFlags::empty())
            .unwrap_or_else(|e| panic!("set xattr {name} of {}: {e}", path.display()));
    }
    if !matches!(node, Node::Symlink(_)) {
        let default = if matches!(node, Node::Dir(_)) { 0o755 } else { 0o644 };
        let mode = Mode::from_raw_mode(meta.mode.unwrap_or(default));
        rustix::fs::chmodat(CWD, path, mode, AtFlags::empty())
            .unwrap_or_else(|e| panic!("chmod {}: {e}", path.display()));
    }
    set_time(path, meta.time);
}

fn set_time(path: &Path, (seconds, nanos): (i64, i64)) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .unwrap_or_else(|e| panic!("set times of {}: {e}", path.display()));
}

/// A name of 255 bytes, the longest there is.
#[must_use]
pub fn longest_name() -> OsString {
    OsString::from_vec(vec![b'n'; 255])
}

/// A name that is not UTF-8.
#[must_use]
pub fn binary_name() -> OsString {
    OsStr::from_bytes(b"\xff\xfe\x01 b").to_os_string()
}

/// The text that [`LayerSpec::parse`] reads (bytes that are not printable stand escaped).
impl std::fmt::Display for LayerSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for Entry { path, node, meta } in &self.entries {
            let path = path.as_os_str().as_bytes().escape_ascii();
            match node {
                Node::Dir(None) => write!(f, "d {path}")?,
                Node::Dir(Some(OpaqueForm::Trusted)) => write!(f, "o {path}")?,
                Node::Dir(Some(OpaqueForm::User)) => write!(f, "ou {path}")?,
                Node::Dir(Some(OpaqueForm::FuseOverlayfs)) => write!(f, "of {path}")?,
                Node::Dir(Some(OpaqueForm::Aufs)) => write!(f, "oa {path}")?,
                Node::File(content) => match content.first() {
                    None => write!(f, "f {path}")?,
                    Some(byte) => {
                        write!(f, "f {path} ={} *{}", [*byte].escape_ascii(), content.len())?;
                    }
                },
                Node::Symlink(target) => write!(f, "l {path} {}", target.as_bytes().escape_ascii())?,
                Node::Fifo => write!(f, "p {path}")?,
                Node::Socket => write!(f, "s {path}")?,
                Node::Char(major, minor) => write!(f, "c {path} {major}:{minor}")?,
                Node::Block(major, minor) => write!(f, "b {path} {major}:{minor}")?,
                Node::Link(target) => write!(f, "h {path} {}", target.as_os_str().as_bytes().escape_ascii())?,
                Node::Whiteout(WhiteoutForm::Device) => write!(f, "w {path}")?,
                Node::Whiteout(WhiteoutForm::Xattr) => write!(f, "wx {path}")?,
                Node::Whiteout(WhiteoutForm::UserXattr) => write!(f, "wu {path}")?,
                Node::Whiteout(WhiteoutForm::Aufs) => write!(f, "wa {path}")?,
            }
            if !matches!(node, Node::Link(_) | Node::Whiteout(_)) {
                if let Some(mode) = meta.mode {
                    write!(f, " {mode:o}")?;
                }
                write!(f, " {}:{}", meta.uid, meta.gid)?;
                if meta.time != DEFAULT_TIME {
                    write!(f, " time={}.{}", meta.time.0, meta.time.1)?;
                }
                for (name, value) in &meta.xattrs {
                    write!(f, " {name}={}", value.escape_ascii())?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
