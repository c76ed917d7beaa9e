//! `/proc/self/mountinfo`: which mounts are there, of what type, and which of them another one covers.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountEntry {
    /// The mount's id, unique while it is there.
    pub(crate) id: u64,
    /// Id of the mount it stands on.
    pub(crate) parent: u64,
    /// Mountpoint, unescaped, as seen from this process's root.
    pub(crate) target: PathBuf,
    /// Options of the mount and of its filesystem, joined.
    pub(crate) options: OsString,
    /// Filesystem type with its subtype, such as `fuse.layerfs`.
    pub(crate) fs_type: OsString,
    /// Source, unescaped.
    pub(crate) source: OsString,
}

/// All mounts of this process's mount namespace, in the kernel's order (later ones on top).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountTable(pub(crate) Vec<MountEntry>);

impl MountTable {
    /// Reads the table.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub(crate) fn read() -> anyhow::Result<Self> {
        let text = std::fs::read("/proc/self/mountinfo")
            .context("read /proc/self/mountinfo: /proc must be mounted to see the mounts")?;
        Ok(Self::parse(&text))
    }

    /// Lines of another form than proc(5) describes are passed over.
    fn parse(text: &[u8]) -> Self {
        Self(text.split(|&b| b == b'\n').filter_map(parse_line).collect())
    }

    /// The mount that a lookup of `target` (absolute, without symlinks) arrives in, when one stands there.
    pub(crate) fn on_top(&self, target: &Path) -> Option<&MountEntry> {
        self.0.iter().rfind(|m| m.target == target && !self.is_covered(m))
    }

    /// True when another mount stands on this one's root, so that no path leads into it.
    pub(crate) fn is_covered(&self, mount: &MountEntry) -> bool {
        self.0.iter().any(|m| m.parent == mount.id && m.target == mount.target && m.id != mount.id)
    }
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&b| b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let target = unescape(fields.nth(2)?);
    let own = fields.next()?;
    // Optional fields, any number of them, end at a dash.
    fields.find(|f| *f == b"-")?;
    let fs_type = unescape(fields.next()?);
    let source = unescape(fields.next()?);
    let mut options = own.to_vec();
    for option in fields.next().unwrap_or_default().split(|&b| b == b',') {
        if !own.split(|&b| b == b',').any(|o| o == option) && !matches!(option, b"rw" | b"") {
            options.push(b',');
            options.extend_from_slice(option);
        }
    }
    Some(MountEntry { id, parent, target: target.into(), options: unescape(&options), fs_type, source })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Takes off the kernel's octal escapes (`\040` for a space).
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let escape = tail.get(..3).filter(|_| byte == b'\\').and_then(|digits| {
            digits.iter().try_fold(0u32, |n, d| matches!(d, b'0'..=b'7').then(|| n * 8 + u32::from(d - b'0')))
        });
        match escape.and_then(|n| u8::try_from(n).ok()) {
            Some(unescaped) => {
                plain.push(unescaped);
                rest = &tail[3..];
            }
            None => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(plain)
}

/// The path by which the mount table knows `target`: absolute, symlinks resolved in all but the last component,
/// which is not touched, since a dead mount answers nothing.
///
/// # Errors
/// When the directory that holds the mountpoint cannot be reached.
pub(crate) fn table_path(target: &Path) -> anyhow::Result<PathBuf> {
    let absolute = std::path::absolute(target).with_context(|| format!("target {target:?}"))?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        // The root, or a path that ends in `..`, which needs its target to be resolved.
        return absolute.canonicalize().with_context(|| format!("resolve {target:?}"));
    };
    let parent =
        parent.canonicalize().with_context(|| format!("resolve {parent:?}, which should hold {name:?}"))?;
    let path = parent.join(name);
    // A symlink to a mountpoint is followed, as mount(8) does. For the root of a mount the kernel answers readlink
    // itself ("not a symlink"), so a dead or silent mount does no harm here.
    match std::fs::read_link(&path) {
        Ok(_) => path.canonicalize().with_context(|| format!("resolve {target:?}")),
        Err(_) => Ok(path),
    }
}

/// Text for one line of output: bytes that are not printable as escapes.
pub(crate) fn printable(text: impl AsRef<std::ffi::OsStr>) -> String {
    let mut shown = String::new();
    for chunk in text.as_ref().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' {
                shown.extend(c.escape_default());
            } else {
                shown.push(c);
            }
        }
        for byte in chunk.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro\n\
        40 22 0:33 / /mnt/a\\040b\\134 ro,nodev shared:2 master:3 - fuse.layerfs a\\054b rw,user_id=0,allow_other\n\
        41 40 0:34 / /mnt/a\\040b\\134 rw - tmpfs tmpfs rw\n\
        nonsense\n\
        42 22 0:35 / /mnt/c rw - fuse.layerfs layerfs rw\n";

    #[test]
    fn lines_are_read() {
        let table = MountTable::parse(TABLE);
        assert_eq!(table.0.len(), 4);
        assert_eq!(
            table.0[1],
            MountEntry {
                id: 40,
                parent: 22,
                target: "/mnt/a b\\".into(),
                options: "ro,nodev,user_id=0,allow_other".into(),
                fs_type: "fuse.layerfs".into(),
                source: "a,b".into(),
            }
        );
        assert_eq!(MountTable::parse(b"").0, []);
    }

    #[test]
    fn the_mount_on_top_is_found() {
        let table = MountTable::parse(TABLE);
        assert_eq!(table.on_top(Path::new("/mnt/a b\\")).unwrap().id, 41);
        assert!(table.is_covered(&table.0[1]));
        assert!(!table.is_covered(&table.0[0]));
        assert_eq!(table.on_top(Path::new("/mnt/c")).unwrap().id, 42);
        assert_eq!(table.on_top(Path::new("/mnt")), None);
    }

    #[test]
    fn text_for_a_line_is_printable() {
        assert_eq!(printable("a b"), "a b");
        assert_eq!(printable(OsString::from_vec(b"a\nb\xff\x1b[0m\\".to_vec())), "a\\nb\\xff\\u{1b}[0m\\\\");
        assert_eq!(printable("ä"), "ä");
    }
}
