//! What the topmost layer of a stack changes, name by name.
//!
//! Only the names in that layer are read, and looked up below: what it costs depends on the changes and not on what they
//! are on. The exceptions are opaque and renamed directories, whose old and new content is listed.

use std::collections::BTreeSet;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::merged::{MergedDirectory, MergedObject, Stack};

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
    /// A directory now.
    pub is_directory: bool,
    /// A regular file without content now.
    pub is_empty_file: bool,
    /// A directory that was one before, of the same owner, mode and xattrs.
    pub same_attributes: bool,
    /// And of the same time of modification.
    pub same_time: bool,
}

/// What the topmost layer of `stack` changes, sorted by path. Directories on the way to a change are among it, also where
/// nothing about them differs; [`visible`] leaves those out that docker leaves out.
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

/// The changes that are of interest: without the mount points that were made for what is mounted at `targets` (paths from
/// the root, with a slash in front), and without directories that are as they were and in which nothing changed. The second
/// list is what was left out of the first and was not there before.
pub fn visible(changes: Vec<Change>, targets: &BTreeSet<Vec<u8>>) -> (Vec<Change>, Vec<Vec<u8>>) {
    let is_target = |path: &[u8]| {
        targets.contains(path)
            || targets
                .range::<[u8], _>((std::ops::Bound::Excluded(path), std::ops::Bound::Unbounded))
                .take_while(|target| target.starts_with(path))
                .any(|target| target.get(path.len()) == Some(&b'/'))
    };
    // From the bottom up: a directory is decided when all in it is. Sorting by the bytes of a path does not put all that is
    // in a directory right after it, so both sets are by the parent's path.
    let mut with_visible: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut with_placeholder: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut order: Vec<usize> = (0..changes.len()).collect();
    let depth = |path: &[u8]| path.iter().filter(|byte| **byte == b'/').count();
    order.sort_by_key(|at| std::cmp::Reverse(depth(&changes[*at].path)));
    let mut shown = vec![false; changes.len()];
    let mut placeholders = Vec::new();
    for at in order {
        let change = &changes[at];
        let is_bare = !with_visible.contains(&change.path);
        let is_placeholder = change.kind == ChangeKind::Added
            && is_bare
            && (change.is_directory || change.is_empty_file)
            && is_target(&change.path);
        let touched_by_us = with_placeholder.contains(&change.path);
        let is_unchanged = change.kind == ChangeKind::Modified
            && is_bare
            && change.same_attributes
            && (change.same_time || touched_by_us);
        let parent = parent_of(&change.path).to_vec();
        if is_placeholder {
            placeholders.push(change.path.clone());
            with_placeholder.insert(parent);
        } else if is_unchanged {
            if touched_by_us {
                with_placeholder.insert(parent);
            }
        } else {
            shown[at] = true;
            with_visible.insert(parent);
        }
    }
    placeholders.sort_unstable();
    let shown_ones = changes.into_iter().zip(shown).filter(|(_, shown)| *shown).map(|(change, _)| change);
    (shown_ones.collect(), placeholders)
}

fn parent_of(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |at| &path[..at])
}

/// The names of `directory` under which the topmost layer may have changed something: its own, and those below that an
/// opaque or renamed directory does not show.
pub(super) fn candidates(
    directory: &MergedDirectory,
    lowers: &Stack,
    below: Option<&MergedDirectory>,
) -> Result<Vec<Vec<u8>>, Errno> {
    let Some(top) = directory.top() else { return Ok(Vec::new()) };
    let mut names: Vec<Vec<u8>> =
        super::remove::list(top)?.into_iter().map(|(name, _)| name.into_bytes()).collect();
    for name in &mut names {
        if super::merged::is_mark_name(name) && name.as_slice() != b".wh..wh..opq" {
            name.drain(..4);
        }
    }
    names.retain(|name| name.as_slice() != b".wh..wh..opq");
    // An opaque or moved directory shows less than what is below: that is not among its own names.
    if let Some(below) = below
        && !directory.merges_with(below)
    {
        names.extend(lowers.list(below)?.into_iter().map(|(name, _)| name));
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

fn compare(
    stack: &Stack,
    directory: &MergedDirectory,
    lowers: &Stack,
    below: Option<&MergedDirectory>,
    path: &[u8],
    found: &mut Vec<Change>,
) -> Result<(), Errno> {
    let merges = below.is_some_and(|below| directory.merges_with(below));
    let mut names = candidates(directory, lowers, below)?;
    if !merges && directory.has_lowers() {
        // A moved directory brings along what is in it below.
        names.extend(stack.list(directory)?.into_iter().map(|(name, _)| name));
        names.sort_unstable();
        names.dedup();
    }
    for name in names {
        let path = [path, b"/", &name].concat();
        let now = stack.child(directory, &name)?;
        let was = match below {
            Some(below) => lowers.child(below, &name)?,
            None => None,
        };
        let Some(kind) = kind_of(now.as_ref(), was.as_ref()) else { continue };
        found.push(describe(stack, lowers, &path, kind, now.as_ref(), was.as_ref())?);
        if let Some(now) = now.as_ref().and_then(MergedObject::directory) {
            let was = was.as_ref().and_then(MergedObject::directory);
            match now.top() {
                Some(_) => compare(stack, now, lowers, was, &path, found)?,
                None => brought(stack, now, lowers, was, &path, found)?,
            }
        }
    }
    Ok(())
}

/// What happened to a name that is there now, or was; nothing where it neither is nor was.
fn kind_of(now: Option<&MergedObject>, was: Option<&MergedObject>) -> Option<ChangeKind> {
    match (now, was) {
        (None, None) => None,
        (None, Some(_)) => Some(ChangeKind::Deleted),
        (Some(_), None) => Some(ChangeKind::Added),
        (Some(_), Some(_)) => Some(ChangeKind::Modified),
    }
}

/// A directory that is only below, and shows at another place than there.
fn brought(
    stack: &Stack,
    directory: &MergedDirectory,
    lowers: &Stack,
    below: Option<&MergedDirectory>,
    path: &[u8],
    found: &mut Vec<Change>,
) -> Result<(), Errno> {
    let mut names: Vec<Vec<u8>> = stack.list(directory)?.into_iter().map(|(name, _)| name).collect();
    if let Some(below) = below {
        names.extend(lowers.list(below)?.into_iter().map(|(name, _)| name));
    }
    names.sort_unstable();
    names.dedup();
    for name in names {
        let path = [path, b"/", &name].concat();
        let now = stack.child(directory, &name)?;
        let was = below.map(|below| lowers.child(below, &name)).transpose()?.flatten();
        let Some(kind) = kind_of(now.as_ref(), was.as_ref()) else { continue };
        found.push(describe(stack, lowers, &path, kind, now.as_ref(), was.as_ref())?);
        if let Some(now) = now.as_ref().and_then(MergedObject::directory) {
            let was = was.as_ref().and_then(MergedObject::directory);
            brought(stack, now, lowers, was, &path, found)?;
        }
    }
    Ok(())
}

fn describe(
    stack: &Stack,
    lowers: &Stack,
    path: &[u8],
    kind: ChangeKind,
    now: Option<&MergedObject>,
    was: Option<&MergedObject>,
) -> Result<Change, Errno> {
    let mut change = Change {
        path: path.to_vec(),
        kind,
        is_directory: now.is_some_and(|now| now.kind() == FileType::Directory),
        is_empty_file: now.is_some_and(|now| now.kind() == FileType::RegularFile && now.stat().size == 0),
        same_attributes: false,
        same_time: false,
    };
    if let (true, Some(now), Some(was)) = (change.is_directory, now, was)
        && was.kind() == FileType::Directory
    {
        let (new, old) = (now.stat(), was.stat());
        change.same_time = new.mtime == old.mtime;
        change.same_attributes = (new.mode, new.uid, new.gid) == (old.mode, old.uid, old.gid)
            && now.xattrs(stack)? == was.xattrs(lowers)?;
    }
    Ok(change)
}
