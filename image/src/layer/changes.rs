//! What the topmost layer of a stack changes, name by name.

use rustix::io::Errno;

use super::merged::{MergedDirectory, Stack};

/// How a name differs from what the layers below show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It was there, and is another.
    Modified,
    /// It was not there.
    Added,
    /// It is not there any more.
    Deleted,
}

impl ChangeKind {
    /// As docker marks it.
    pub fn letter(self) -> char {
        match self {
            Self::Modified => 'C',
            Self::Added => 'A',
            Self::Deleted => 'D',
        }
    }

    /// As docker numbers it.
    pub fn number(self) -> u8 {
        match self {
            Self::Modified => 0,
            Self::Added => 1,
            Self::Deleted => 2,
        }
    }
}

/// One name that differs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// From the root, with a slash in front.
    pub path: Vec<u8>,
    /// How.
    pub kind: ChangeKind,
}

/// What the topmost layer of `stack` changes, sorted by path; parents of what changed are changed.
///
/// # Errors
/// Those of reading the layers.
pub fn changes(stack: &Stack) -> Result<Vec<Change>, Errno> {
    let lowers = stack.lowers();
    let mut found = Vec::new();
    let below = lowers.root()?;
    compare(stack, &stack.root()?, &lowers, Some(&below), b"", &mut found)?;
    found.sort_unstable();
    Ok(found)
}

fn compare(
    stack: &Stack,
    directory: &MergedDirectory,
    lowers: &Stack,
    below: Option<&MergedDirectory>,
    path: &[u8],
    found: &mut Vec<Change>,
) -> Result<(), Errno> {
    let Some(top) = directory.top() else { return Ok(()) };
    let mut names: Vec<Vec<u8>> =
        super::remove::list(top)?.into_iter().map(|(name, _)| name.into_bytes()).collect();
    for name in &mut names {
        if super::merged::is_mark_name(name) && name.as_slice() != b".wh..wh..opq" {
            name.drain(..4);
        }
    }
    names.retain(|name| name.as_slice() != b".wh..wh..opq");
    // An opaque or moved directory shows less than what is below: that is not among its own names.
    if let Some(below) = below {
        let merges = directory.has_lowers();
        if !merges {
            names.extend(lowers.list(below)?.into_iter().map(|(name, _)| name));
        }
    }
    names.sort_unstable();
    names.dedup();
    for name in names {
        let path = [path, b"/", &name].concat();
        let now = stack.child(directory, &name)?;
        let was = match below {
            Some(below) => lowers.child(below, &name)?,
            None => None,
        };
        let kind = match (&now, &was) {
            (None, None) => continue,
            (None, Some(_)) => ChangeKind::Deleted,
            (Some(_), None) => ChangeKind::Added,
            (Some(_), Some(_)) => ChangeKind::Modified,
        };
        found.push(Change { path: path.clone(), kind });
        if let Some(now) = now.as_ref().and_then(|object| object.directory()) {
            let was = was.as_ref().and_then(|object| object.directory());
            compare(stack, now, lowers, was, &path, found)?;
            if kind == ChangeKind::Added {
                added_below(stack, now, &path, found)?;
            }
        }
    }
    Ok(())
}

/// What a moved directory brought along from the layers below.
fn added_below(
    stack: &Stack,
    directory: &MergedDirectory,
    path: &[u8],
    found: &mut Vec<Change>,
) -> Result<(), Errno> {
    if !directory.has_lowers() {
        return Ok(());
    }
    for (name, object) in stack.list(directory)? {
        if object.is_top() {
            continue;
        }
        let path = [path, b"/", &name].concat();
        found.push(Change { path: path.clone(), kind: ChangeKind::Added });
        if let Some(directory) = object.directory() {
            added_below(stack, directory, &path, found)?;
        }
    }
    Ok(())
}
