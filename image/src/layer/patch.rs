//! Changes as a patch: git's extended form of the unified diff, which `git apply` and `patch -p1` take.
//!
//! What that form cannot say (owners, xattrs, directories, devices, what is binary) is in lines that begin with `# ` and
//! that both programs pass over.

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::Duration;

use rustix::fs::FileType;
use similar::{Algorithm, TextDiff};

use super::changes::{Change, ChangeKind};
use super::merged::{MergedObject, Stack};

/// Larger files are said to differ, and no more.
const MAX_TEXT: u64 = 32 << 20;
/// So many bytes at the beginning of a file tell whether it is text, as git has it.
const LOOKED_AT: usize = 8000;
/// A difference that takes longer to find is written with more lines than it needs.
const PATIENCE: Duration = Duration::from_secs(2);

/// Writes one change of `stack`'s topmost layer.
///
/// # Errors
/// Those of reading the layers and of writing.
pub fn write_patch(stack: &Stack, change: &Change, out: &mut impl Write) -> io::Result<()> {
    let names: Vec<&[u8]> = change.path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
    let lowers = stack.lowers();
    let now = match change.kind {
        ChangeKind::Deleted => None,
        _ => stack.lookup(&names)?,
    };
    let was = match change.kind {
        ChangeKind::Added => None,
        _ => lowers.lookup(&names)?,
    };
    let path = change.path.strip_prefix(b"/").unwrap_or(&change.path);
    let old = was.as_ref().map(|object| Side { stack: &lowers, object });
    let new = now.as_ref().map(|object| Side { stack, object });
    match (&old, &new) {
        // A file that has become something else is removed and made anew, as git says it.
        (Some(old), Some(new)) if old.object.kind() != new.object.kind() => {
            write_deleted(path, old, out)?;
            write_sides(path, None, Some(new), out)
        }
        (Some(old), None) => write_deleted(path, old, out),
        _ => write_sides(path, old.as_ref(), new.as_ref(), out),
    }
}

/// An object that is gone, and all that was in it: a patch removes files only.
fn write_deleted(path: &[u8], old: &Side<'_>, out: &mut impl Write) -> io::Result<()> {
    if let Some(directory) = old.object.directory() {
        for (name, object) in old.stack.list(directory)? {
            write_deleted(&[path, b"/", &name].concat(), &Side { stack: old.stack, object: &object }, out)?;
        }
    }
    write_sides(path, Some(old), None, out)
}

/// An object, and what shows it.
struct Side<'a> {
    stack: &'a Stack,
    object: &'a MergedObject,
}

impl Side<'_> {
    /// The mode as git writes it; `None` for what git does not keep.
    fn git_mode(&self) -> Option<&'static str> {
        match self.object.kind() {
            FileType::RegularFile if self.object.stat().mode & 0o100 != 0 => Some("100755"),
            FileType::RegularFile => Some("100644"),
            FileType::Symlink => Some("120000"),
            _ => None,
        }
    }

    /// What the object has to say in a patch: `None` when it is not text.
    fn text(&self) -> io::Result<Option<Vec<u8>>> {
        if self.object.kind() == FileType::Symlink {
            return Ok(Some(self.object.link_target()?));
        }
        if self.object.stat().size > MAX_TEXT {
            return Ok(None);
        }
        let mut text = Vec::new();
        File::from(self.object.open(self.stack)?).take(MAX_TEXT + 1).read_to_end(&mut text)?;
        let is_binary = text.len() as u64 > MAX_TEXT || text[..text.len().min(LOOKED_AT)].contains(&0);
        Ok((!is_binary).then_some(text))
    }

    fn same_data(&self, other: &Self) -> io::Result<bool> {
        if self.object.stat().size != other.object.stat().size {
            return Ok(false);
        }
        let files = [File::from(self.object.open(self.stack)?), File::from(other.object.open(other.stack)?)];
        let [mut a, mut b] = files;
        super::copy::same_data(&mut a, &mut b)
    }
}

fn kind_word(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        _ => "file",
    }
}

fn write_sides(
    path: &[u8],
    old: Option<&Side<'_>>,
    new: Option<&Side<'_>>,
    out: &mut impl Write,
) -> io::Result<()> {
    remarks(path, old, new, out)?;
    let Some(kind) = new.or(old).map(|side| side.object.kind()) else { return Ok(()) };
    if !matches!(kind, FileType::RegularFile | FileType::Symlink) {
        return Ok(());
    }
    let header = || -> Vec<u8> {
        let [from, to] = [quoted(b"a/", path), quoted(b"b/", path)];
        let mut text = [b"diff --git ".as_slice(), &from, b" ", &to, b"\n"].concat();
        let modes = (old.and_then(Side::git_mode), new.and_then(Side::git_mode));
        match modes {
            (Some(old), Some(new)) if old != new => {
                text.extend(format!("old mode {old}\nnew mode {new}\n").into_bytes());
            }
            (None, Some(new)) => text.extend(format!("new file mode {new}\n").into_bytes()),
            (Some(old), None) => text.extend(format!("deleted file mode {old}\n").into_bytes()),
            _ => {}
        }
        text
    };
    let changes_mode = old.and_then(Side::git_mode) != new.and_then(Side::git_mode);
    if let (Some(old), Some(new)) = (old, new)
        && kind == FileType::RegularFile
        && old.same_data(new)?
    {
        // Only its attributes differ.
        return if changes_mode { out.write_all(&header()) } else { Ok(()) };
    }
    let text = |side: Option<&Side<'_>>| side.map_or_else(|| Ok(Some(Vec::new())), Side::text);
    let (Some(before), Some(after)) = (text(old)?, text(new)?) else {
        out.write_all(b"# Binary files ")?;
        out.write_all(&if old.is_some() { quoted(b"a/", path) } else { b"/dev/null".to_vec() })?;
        out.write_all(b" and ")?;
        out.write_all(&if new.is_some() { quoted(b"b/", path) } else { b"/dev/null".to_vec() })?;
        return out.write_all(b" differ\n");
    };
    if before == after && !changes_mode {
        return Ok(());
    }
    out.write_all(&header())?;
    if before == after {
        return Ok(());
    }
    // As git has it, a tab tells where a name with spaces ends.
    let end: &[u8] = if path.contains(&b' ') { b"\t\n" } else { b"\n" };
    out.write_all(b"--- ")?;
    out.write_all(&if old.is_some() { quoted(b"a/", path) } else { b"/dev/null".to_vec() })?;
    out.write_all(end)?;
    out.write_all(b"+++ ")?;
    out.write_all(&if new.is_some() { quoted(b"b/", path) } else { b"/dev/null".to_vec() })?;
    out.write_all(end)?;
    let (before, after) = (lines(&before), lines(&after));
    let diff =
        TextDiff::configure().algorithm(Algorithm::Myers).timeout(PATIENCE).diff_slices(&before, &after);
    for hunk in diff.unified_diff().context_radius(3).iter_hunks() {
        out.write_all(format!("{}\n", hunk.header()).as_bytes())?;
        for change in hunk.iter_changes() {
            let sign: &[u8] = match change.tag() {
                similar::ChangeTag::Equal => b" ",
                similar::ChangeTag::Delete => b"-",
                similar::ChangeTag::Insert => b"+",
            };
            out.write_all(sign)?;
            let line: &[u8] = change.value();
            out.write_all(line)?;
            if !line.ends_with(b"\n") {
                out.write_all(b"\n\\ No newline at end of file\n")?;
            }
        }
    }
    Ok(())
}

/// Only a newline ends a line: a carriage return is content, as for git and patch.
fn lines(text: &[u8]) -> Vec<&[u8]> {
    text.split_inclusive(|byte| *byte == b'\n').collect()
}

/// What a patch has no words for.
fn remarks(
    path: &[u8],
    old: Option<&Side<'_>>,
    new: Option<&Side<'_>>,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut words: Vec<String> = Vec::new();
    let described = |side: &Side<'_>| {
        let stat = side.object.stat();
        let mut text = format!(
            "{}, mode {:04o}, owner {}:{}",
            kind_word(side.object.kind()),
            stat.mode & 0o7777,
            stat.uid,
            stat.gid
        );
        if matches!(side.object.kind(), FileType::CharacterDevice | FileType::BlockDevice) {
            text.push_str(&format!(", number {}:{}", stat.device.0, stat.device.1));
        }
        text
    };
    match (old, new) {
        (None, Some(new)) => {
            let stat = new.object.stat();
            let is_plain = new.git_mode().is_some()
                && (stat.uid, stat.gid) == (0, 0)
                && (new.object.kind() == FileType::Symlink || matches!(stat.mode & 0o7777, 0o644 | 0o755));
            if !is_plain {
                words.push(format!("new {}", described(new)));
            }
            words.extend(xattr_words(&[], &new.object.xattrs(new.stack)?));
        }
        (Some(old), None) => {
            if old.git_mode().is_none() {
                words.push(format!("deleted {}", described(old)));
            }
        }
        (Some(old), Some(new)) => {
            let (a, b) = (old.object.stat(), new.object.stat());
            if a.mode & 0o7777 != b.mode & 0o7777 && new.object.kind() != FileType::Symlink {
                words.push(format!("mode {:04o} -> {:04o}", a.mode & 0o7777, b.mode & 0o7777));
            }
            if (a.uid, a.gid) != (b.uid, b.gid) {
                words.push(format!("owner {}:{} -> {}:{}", a.uid, a.gid, b.uid, b.gid));
            }
            if a.device != b.device {
                words.push(format!("number {}:{} -> {}:{}", a.device.0, a.device.1, b.device.0, b.device.1));
            }
            words.extend(xattr_words(&old.object.xattrs(old.stack)?, &new.object.xattrs(new.stack)?));
        }
        (None, None) => {}
    }
    if words.is_empty() {
        return Ok(());
    }
    out.write_all(b"# ")?;
    out.write_all(&quoted(b"/", path))?;
    out.write_all(format!(": {}\n", words.join("; ")).as_bytes())
}

type Xattrs = [(Vec<u8>, Vec<u8>)];

fn xattr_words(old: &Xattrs, new: &Xattrs) -> Vec<String> {
    let value = |all: &Xattrs, name: &[u8]| all.iter().find(|(own, _)| own == name).map(|(_, v)| v.clone());
    let shown = |value: &[u8]| match std::str::from_utf8(value) {
        Ok(text) if !text.is_empty() && text.chars().all(|c| !c.is_control()) => format!("{text:?}"),
        _ => format!("0x{}", value.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    };
    let mut words = Vec::new();
    for (name, new_value) in new {
        let name_words = String::from_utf8_lossy(name);
        match value(old, name) {
            None => words.push(format!("xattr {name_words}={}", shown(new_value))),
            Some(old_value) if old_value != *new_value => {
                words.push(format!("xattr {name_words}={} (was {})", shown(new_value), shown(&old_value)));
            }
            Some(_) => {}
        }
    }
    for (name, _) in old {
        if value(new, name).is_none() {
            words.push(format!("xattr {} removed", String::from_utf8_lossy(name)));
        }
    }
    words
}

/// A name as git writes it: in quotes, with escapes, where it has bytes that would be misread.
fn quoted(prefix: &[u8], path: &[u8]) -> Vec<u8> {
    let is_plain = |byte: &u8| (0x20..0x7f).contains(byte) && !matches!(byte, b'"' | b'\\');
    let mut text = Vec::with_capacity(prefix.len() + path.len());
    if path.iter().all(is_plain) {
        text.extend_from_slice(prefix);
        text.extend_from_slice(path);
        return text;
    }
    text.push(b'"');
    text.extend_from_slice(prefix);
    for byte in path {
        match byte {
            b'"' | b'\\' => text.extend([b'\\', *byte]),
            b'\n' => text.extend(b"\\n"),
            b'\t' => text.extend(b"\\t"),
            byte if is_plain(byte) => text.push(*byte),
            byte => text.extend(format!("\\{byte:03o}").into_bytes()),
        }
    }
    text.push(b'"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_as_git_quotes_them() {
        assert_eq!(quoted(b"a/", b"etc/x y"), b"a/etc/x y");
        assert_eq!(quoted(b"b/", "é\"\n".as_bytes()), b"\"b/\\303\\251\\\"\\n\"");
    }
}
