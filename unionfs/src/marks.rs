//! The marks that overlay filesystems leave in layers: bytes and their meaning, no I/O.
//!
//! Sources: the kernel's `Documentation/filesystems/overlayfs.rst`, the OCI image specification (layer
//! whiteouts), containers/storage (`override_stat`).

use std::ffi::{CStr, CString};

/// Prefix of a whiteout file in the AUFS and OCI form.
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Entry that makes its directory opaque in the AUFS and OCI form.
pub const OPAQUE_ENTRY: &[u8] = b".wh..wh..opq";
/// fuse-overlayfs' own opaque mark.
pub const FUSE_OVERLAYFS_OPAQUE: &CStr = c"user.fuseoverlayfs.opaque";
/// Ownership, mode and type that the backing cannot store; the first that exists counts.
pub const OVERRIDE_STAT: [&CStr; 3] = [
    c"user.containers.override_stat",
    c"user.fuseoverlayfs.override_stat",
    c"security.fuseoverlayfs.override_stat",
];

/// How a directory entry's name reads as a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameMark<'a> {
    /// An ordinary name.
    None,
    /// `.wh..wh..opq`: the directory is opaque.
    Opaque,
    /// `.wh.NAME`: a whiteout of NAME.
    Whiteout(&'a [u8]),
}

impl<'a> NameMark<'a> {
    /// Reads a name. `.wh.` alone hides nothing and is an ordinary name; the opaque entry is matched before the
    /// prefix is stripped.
    pub fn of(name: &'a [u8]) -> Self {
        if name == OPAQUE_ENTRY {
            return Self::Opaque;
        }
        match name.strip_prefix(WHITEOUT_PREFIX) {
            Some(b"" | b"." | b"..") | None => Self::None,
            Some(hidden) => Self::Whiteout(hidden),
        }
    }
}

/// The names of our marks in one xattr namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkNames {
    /// `trusted.overlay.` or `user.overlay.`
    pub prefix: &'static str,
    /// `y`: opaque; `x`: may hold xattr whiteouts.
    pub opaque: CString,
    /// Where a renamed directory, or a metadata-only copy's data, is in the layers below.
    pub redirect: CString,
    /// This regular file has no data of its own.
    pub metacopy: CString,
    /// The directory may hold copied-up entries.
    pub impure: CString,
    /// This empty regular file is a whiteout.
    pub whiteout: CString,
    /// Ours, on a directory: names that begin with `.wh.` are ordinary names in it.
    pub plain_names: CString,
    /// Ours: the inode number that the object had in the mount when it was copied up (8 bytes, little endian).
    pub ino: CString,
}

impl MarkNames {
    /// `trusted.overlay.*`
    pub fn trusted() -> Self {
        Self::with("trusted.overlay.")
    }

    /// `user.overlay.*`
    pub fn user() -> Self {
        Self::with("user.overlay.")
    }

    /// These are `trusted.overlay.*`.
    pub fn is_trusted(&self) -> bool {
        self.prefix.starts_with("trusted.")
    }

    fn with(prefix: &'static str) -> Self {
        let name = |n: &str| CString::new(format!("{prefix}{n}")).unwrap_or_default();
        Self {
            prefix,
            opaque: name("opaque"),
            redirect: name("redirect"),
            metacopy: name("metacopy"),
            impure: name("impure"),
            whiteout: name("whiteout"),
            plain_names: name("layerfs.names"),
            ino: name("layerfs.ino"),
        }
    }

    /// What the xattr `stored` on disk is called through the mount; `None` when it is a mark and does not show.
    /// One level of the nesting escape (`overlay.overlay.`) is taken off.
    pub fn shown(&self, stored: &[u8]) -> Option<Vec<u8>> {
        if let Some(rest) = stored.strip_prefix(self.prefix.as_bytes()) {
            let nested = rest.strip_prefix(b"overlay.")?;
            return Some([self.prefix.as_bytes(), nested].concat());
        }
        if is_override(stored) || stored.starts_with(b"user.fuseoverlayfs.") {
            return None;
        }
        Some(stored.to_vec())
    }

    /// What the xattr `shown` through the mount is called on disk: a level of the nesting escape is put on names
    /// that would read as marks. `None` for names that cannot be had through a mount at all.
    pub fn stored(&self, shown: &[u8]) -> Option<CString> {
        if is_override(shown) || shown.starts_with(b"user.fuseoverlayfs.") {
            return None;
        }
        match shown.strip_prefix(self.prefix.as_bytes()) {
            Some(rest) => CString::new([self.prefix.as_bytes(), b"overlay.", rest].concat()).ok(),
            None => CString::new(shown).ok(),
        }
    }

    /// True for names on disk that belong to a copy: all but the marks (escaped names are data).
    pub fn is_copied(&self, stored: &[u8]) -> bool {
        match stored.strip_prefix(self.prefix.as_bytes()) {
            Some(rest) => rest.starts_with(b"overlay."),
            None => !is_override(stored) && !stored.starts_with(b"user.fuseoverlayfs."),
        }
    }
}

fn is_override(name: &[u8]) -> bool {
    OVERRIDE_STAT.iter().any(|n| n.to_bytes() == name)
}

/// The value of an opaque mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Opaque {
    /// Not marked.
    #[default]
    No,
    /// `y`: hides the layers below.
    Yes,
    /// `x`: entries of the directory may be xattr whiteouts.
    XattrWhiteouts,
}

impl Opaque {
    /// Reads the value; values the kernel does not know mean nothing.
    pub fn parse(value: &[u8]) -> Self {
        match value {
            b"y" => Self::Yes,
            b"x" => Self::XattrWhiteouts,
            _ => Self::No,
        }
    }
}

/// The value of a redirect mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// Path from the layers' root, without leading slash, of at least one component.
    Absolute(Vec<u8>),
    /// Another name in the same directory.
    Name(Vec<u8>),
}

impl Redirect {
    /// Reads the value; `None` when it is corrupt (empty, with empty components, `.`, `..`, or a slash in a name):
    /// a corrupt mark must not lead anywhere.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let fine = |c: &[u8]| !c.is_empty() && c != b"." && c != b".." && !c.contains(&0) && c.len() <= 255;
        match value.strip_prefix(b"/") {
            Some(path) => path.split(|b| *b == b'/').all(fine).then(|| Self::Absolute(path.to_vec())),
            None => (fine(value) && !value.contains(&b'/')).then(|| Self::Name(value.to_vec())),
        }
    }

    /// The value as written on disk.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Absolute(path) => [b"/", path.as_slice()].concat(),
            Self::Name(name) => name.clone(),
        }
    }
}

/// An `override_stat` value: `uid:gid:mode[:type[-major-minor]]`, mode octal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverrideStat {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits (07777).
    pub mode: u32,
    /// `S_IF*` of the object, where the value names a type.
    pub file_type: Option<u32>,
    /// Device numbers for block and character devices.
    pub rdev: (u32, u32),
}

impl OverrideStat {
    /// Reads a value; `None` when it is not of the form.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?.trim_end_matches('\0');
        let mut fields = text.split(':');
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let mode = u32::from_str_radix(fields.next()?, 8).ok()?;
        let (file_type, rdev) = match fields.next() {
            None => (None, (0, 0)),
            Some(kind) => Self::parse_type(kind)?,
        };
        if fields.next().is_some() {
            return None;
        }
        // Older writers put the type into the mode itself.
        let file_type = file_type.or(match mode & libc::S_IFMT {
            0 => None,
            kind => Some(kind),
        });
        Some(Self { uid, gid, mode: mode & 0o7777, file_type, rdev })
    }

    fn parse_type(kind: &str) -> Option<(Option<u32>, (u32, u32))> {
        let mut parts = kind.split('-');
        let file_type = match parts.next()? {
            "dir" => libc::S_IFDIR,
            "file" => libc::S_IFREG,
            "symlink" => libc::S_IFLNK,
            "pipe" => libc::S_IFIFO,
            "socket" => libc::S_IFSOCK,
            "block" => libc::S_IFBLK,
            "char" => libc::S_IFCHR,
            _ => return None,
        };
        let mut rdev = (0, 0);
        if matches!(file_type, libc::S_IFBLK | libc::S_IFCHR) {
            rdev = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        }
        parts.next().is_none().then_some((Some(file_type), rdev))
    }

    /// The value as written on disk.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut text = format!("{}:{}:0{:o}", self.uid, self.gid, self.mode);
        let kind = match self.file_type {
            Some(libc::S_IFDIR) => "dir",
            Some(libc::S_IFREG) => "file",
            Some(libc::S_IFLNK) => "symlink",
            Some(libc::S_IFIFO) => "pipe",
            Some(libc::S_IFSOCK) => "socket",
            Some(libc::S_IFBLK) => "block",
            Some(libc::S_IFCHR) => "char",
            _ => return text.into_bytes(),
        };
        text.push(':');
        text.push_str(kind);
        if matches!(self.file_type, Some(libc::S_IFBLK | libc::S_IFCHR)) {
            text.push_str(&format!("-{}-{}", self.rdev.0, self.rdev.1));
        }
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_as_marks() {
        for (name, mark) in [
            (&b"plain"[..], NameMark::None),
            (b".wh.gone", NameMark::Whiteout(b"gone")),
            (b".wh..wh..opq", NameMark::Opaque),
            (b".wh..wh..opqx", NameMark::Whiteout(b".wh..opqx")),
            (b".wh.", NameMark::None),
            (b".wh..", NameMark::None),
            (b".wh...", NameMark::None),
            (b".wh....", NameMark::Whiteout(b"...")),
            (b"a.wh.b", NameMark::None),
        ] {
            assert_eq!(NameMark::of(name), mark, "{:?}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn redirects() {
        assert_eq!(Redirect::parse(b"/a/b"), Some(Redirect::Absolute(b"a/b".to_vec())));
        assert_eq!(Redirect::parse(b"name"), Some(Redirect::Name(b"name".to_vec())));
        for bad in [&b""[..], b"/", b"//a", b"/a/", b"/a/../b", b"..", b"a/b", b"/a//b", b"."] {
            assert_eq!(Redirect::parse(bad), None, "{:?}", String::from_utf8_lossy(bad));
        }
        for value in [&b"/a/b"[..], b"x"] {
            assert_eq!(Redirect::parse(value).map(|r| r.to_bytes()).as_deref(), Some(value));
        }
    }

    #[test]
    fn override_stat_round_trip() {
        for (text, kind, rdev) in [
            ("0:0:0755", None, (0, 0)),
            ("1:2:04755:file", Some(libc::S_IFREG), (0, 0)),
            ("1000:100:0644:char-0-0", Some(libc::S_IFCHR), (0, 0)),
            ("0:6:0660:block-8-1", Some(libc::S_IFBLK), (8, 1)),
            ("0:0:0777:symlink", Some(libc::S_IFLNK), (0, 0)),
        ] {
            let parsed = OverrideStat::parse(text.as_bytes()).unwrap();
            assert_eq!((parsed.file_type, parsed.rdev), (kind, rdev), "{text}");
            assert_eq!(parsed.to_bytes(), text.as_bytes());
        }
        for bad in [
            "",
            "0",
            "0:0",
            "a:0:755",
            "0:0:999",
            "0:0:755:what",
            "0:0:755:char",
            "0:0:755:char-1",
            "0:0:755:file:x",
        ] {
            assert_eq!(OverrideStat::parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(OverrideStat::parse(b"0:0:100755").unwrap().file_type, Some(libc::S_IFREG));
    }

    #[test]
    fn marks_never_show_and_nesting_is_escaped() {
        let names = MarkNames::trusted();
        assert_eq!(names.shown(b"trusted.overlay.opaque"), None);
        assert_eq!(names.shown(b"trusted.overlay.layerfs.ino"), None);
        assert_eq!(
            names.shown(b"trusted.overlay.overlay.opaque").as_deref(),
            Some(&b"trusted.overlay.opaque"[..])
        );
        assert_eq!(names.shown(b"user.overlay.opaque").as_deref(), Some(&b"user.overlay.opaque"[..]));
        assert_eq!(names.shown(b"user.containers.override_stat"), None);
        for name in
            [&b"trusted.overlay.opaque"[..], b"trusted.overlay.overlay.x", b"user.x", b"trusted.overlayx"]
        {
            let stored = names.stored(name).unwrap();
            assert_eq!(names.shown(stored.to_bytes()).as_deref(), Some(name));
            assert!(names.is_copied(stored.to_bytes()));
        }
        assert!(!names.is_copied(b"trusted.overlay.metacopy"));
    }
}
