//! What applying changes would do, and what stands in its way.

use std::collections::{BTreeMap, BTreeSet};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::super::changes::{Change, ChangeKind};
use super::super::index::ObjectStat;
use super::super::merged::{MergedDirectory, MergedObject, Stack};
use super::ApplyError;
use super::compare::{LowerState, same_attributes, same_content};
use super::root::split;
use crate::tar::Timestamp;

/// What is done at one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A new object takes its place, where there was none, or another.
    Put,
    /// The object gets other attributes.
    Attributes,
    /// The object goes, with all that is in it.
    Remove,
}

/// One thing to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// From the root, with a slash in front.
    pub path: Vec<u8>,
    /// What.
    pub action: Action,
    /// How that is in a list of changes.
    pub kind: ChangeKind,
}

/// A path where the directory is not any more what the change was made to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// From the root, with a slash in front.
    pub path: Vec<u8>,
    /// What is wrong, in words that go on after the path.
    pub why: String,
}

/// See [`plan`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of paths.
    pub steps: Vec<Step>,
    /// Where somebody else's changes would be lost.
    pub conflicts: Vec<Conflict>,
    /// Chosen changes that the directory has already.
    pub done: Vec<Vec<u8>>,
    /// Directories whose time of modification is to be what the container has: it tells of entries that are applied.
    pub times: Vec<(Vec<u8>, Timestamp)>,
    /// Something that was renamed is read where it was, which does not stay: all must be applied at once, and nobody may
    /// use the upper meanwhile.
    pub moves: bool,
    /// These are all changes of the upper, and nobody uses it: after a killed run it is emptied.
    pub whole: bool,
}

struct Planner<'a> {
    stack: &'a Stack,
    lowers: Stack,
    since: Timestamp,
    /// Directories that were looked at: what is wrong with them.
    directories: BTreeMap<Vec<u8>, Option<String>>,
    plan: Plan,
}

/// What applying `chosen` to the one layer below `stack`'s topmost would do. `all` are all changes of the upper: where a
/// chosen one is in a new directory, that is made too. `since` is when the upper was begun.
///
/// # Errors
/// Those of reading both.
pub fn plan(stack: &Stack, all: &[Change], chosen: &[Change], since: Timestamp) -> Result<Plan, ApplyError> {
    let mut planner =
        Planner { stack, lowers: stack.lowers(), since, directories: BTreeMap::new(), plan: Plan::default() };
    let mut wanted: BTreeMap<&[u8], &Change> = chosen.iter().map(|change| (&*change.path, change)).collect();
    let by_path: BTreeMap<&[u8], &Change> = all.iter().map(|change| (&*change.path, change)).collect();
    for change in chosen.iter().filter(|change| change.kind != ChangeKind::Deleted) {
        let mut at = split(&change.path).0;
        while !at.is_empty() {
            if let Some(parent) = by_path.get(at)
                && (parent.kind == ChangeKind::Added || !parent.same_attributes && planner.is_replaced(at)?)
            {
                wanted.insert(at, parent);
            }
            at = split(at).0;
        }
    }
    for change in wanted.into_values() {
        planner.step(change).map_err(ApplyError::object("look at", &change.path))?;
    }
    planner.times(chosen)?;
    planner.plan.moves |= planner.removes_sources(all)?;
    planner.plan.whole = all.len() == chosen.len();
    // What has become something else takes all that was in it along.
    let gone: BTreeSet<Vec<u8>> =
        planner.plan.steps.iter().filter(|s| s.action == Action::Remove).map(|s| s.path.clone()).collect();
    planner.plan.steps.retain(|step| {
        let mut at = split(&step.path).0;
        while !at.is_empty() {
            if gone.contains(at) {
                return false;
            }
            at = split(at).0;
        }
        true
    });
    Ok(planner.plan)
}

impl Planner<'_> {
    /// Whether a directory stands where there is something else below.
    fn is_replaced(&self, path: &[u8]) -> Result<bool, ApplyError> {
        let words = || ApplyError::object("look at", path);
        let was = lookup(&self.lowers, path).map_err(words())?;
        Ok(was.is_some_and(|was| was.kind() != FileType::Directory))
    }

    /// Directories that are as they were but for their entries. Where others have changed entries too, the time is theirs.
    fn times(&mut self, chosen: &[Change]) -> Result<(), ApplyError> {
        let holders: BTreeSet<Vec<u8>> =
            self.plan.steps.iter().map(|step| split(&step.path).0.to_vec()).collect();
        let directories =
            chosen.iter().filter(|change| change.is_directory).map(|change| change.path.clone());
        let paths: BTreeSet<Vec<u8>> =
            holders.iter().cloned().chain(directories).filter(|path| !path.is_empty()).collect();
        for path in paths {
            let words = || ApplyError::object("look at", &path);
            let now = lookup(self.stack, &path).map_err(words())?;
            let was = lookup(&self.lowers, &path).map_err(words())?;
            let (Some(now), Some(was)) = (now, was) else { continue };
            let is_same = now.kind() == FileType::Directory
                && was.kind() == FileType::Directory
                && same_attributes((self.stack, &now), (&self.lowers, &was)).map_err(words())?;
            // One in which nothing is done has its time already, unless that itself was changed.
            let is_touched = holders.contains(&path) || now.stat().mtime != was.stat().mtime;
            if is_same && is_touched && !self.is_new(was.stat()) {
                self.plan.times.push((path.clone(), now.stat().mtime));
            }
        }
        Ok(())
    }

    /// Whether something goes, or is replaced, that a renamed object of the upper is still read from.
    fn removes_sources(&self, all: &[Change]) -> Result<bool, ApplyError> {
        let replaced: BTreeSet<&[u8]> =
            self.plan.steps.iter().filter(|s| s.action != Action::Attributes).map(|s| &*s.path).collect();
        for change in all.iter().filter(|change| change.kind != ChangeKind::Deleted) {
            let words = || ApplyError::object("look at", &change.path);
            let now = lookup(self.stack, &change.path).map_err(words())?;
            let source = now.map(|now| now.renamed_from(self.stack)).transpose().map_err(words())?.flatten();
            let Some(source) = source.filter(|source| *source != change.path) else { continue };
            let mut at: &[u8] = &source;
            while !at.is_empty() {
                if replaced.contains(at) {
                    return Ok(true);
                }
                at = split(at).0;
            }
            let beneath =
                |path: &&[u8]| path.strip_prefix(&*source).is_some_and(|rest| rest.starts_with(b"/"));
            if replaced.iter().any(beneath) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn step(&mut self, change: &Change) -> Result<(), Errno> {
        let now = match change.kind {
            ChangeKind::Deleted => None,
            _ => lookup(self.stack, &change.path)?,
        };
        let was = lookup(&self.lowers, &change.path)?;
        let action = match (&now, &was) {
            (None, None) => return Ok(()),
            (None, Some(_)) => Action::Remove,
            (Some(_), None) => Action::Put,
            (Some(now), Some(was)) => {
                let (new, old) = ((self.stack, now), (&self.lowers, was));
                let is_directory = now.kind() == FileType::Directory;
                if !same_content(new, old)? {
                    Action::Put
                } else if same_attributes(new, old)? && (is_directory || now.stat().mtime == was.stat().mtime)
                {
                    self.plan.done.push(change.path.clone());
                    return Ok(());
                } else {
                    Action::Attributes
                }
            }
        };
        if now.as_ref().is_some_and(|now| now.kind() == FileType::Socket) && action == Action::Put {
            // A socket without the process that made it is of no use.
            return Ok(());
        }
        self.plan.moves |= action == Action::Put
            && now.as_ref().is_some_and(|now| {
                // A metadata-only copy, such as a link, gets its data while that is there: `removes_sources`.
                !now.is_top() || now.directory().is_some_and(MergedDirectory::has_lowers)
            });
        if let Some(why) = self.conflict(&change.path, action, now.as_ref(), was.as_ref())? {
            self.plan.conflicts.push(Conflict { path: change.path.clone(), why });
        }
        self.plan.steps.push(Step { path: change.path.clone(), action, kind: change.kind });
        Ok(())
    }

    fn conflict(
        &mut self,
        path: &[u8],
        action: Action,
        now: Option<&MergedObject>,
        was: Option<&MergedObject>,
    ) -> Result<Option<String>, Errno> {
        let (parent, name) = split(path);
        if let Some(why) = self.directory(parent)? {
            return Ok(Some(why));
        }
        let mark = now.map(|now| LowerState::of(self.stack, now)).transpose()?.flatten();
        let below = match parent {
            b"" => self.lowers.root_stat()?,
            parent => lookup(&self.lowers, parent)?.map(|directory| *directory.stat()),
        };
        // A copy that was renamed tells nothing about what is at its new place.
        let mark = mark.filter(|mark| below.is_some_and(|below| mark.is_of_place(below.ino, name)));
        Ok(match (was, mark) {
            (None, Some(_)) => Some("was removed meanwhile".into()),
            (None, None) => None,
            (Some(was), Some(mark)) if was.kind() == FileType::Directory => {
                let fits = match action {
                    Action::Attributes => mark.is_directory_unchanged(was.stat()),
                    _ => mark.is_directory(was.stat()) && self.changed_within(path, was)?.is_none(),
                };
                (!fits).then(|| "was changed meanwhile".into())
            }
            (Some(was), Some(mark)) => {
                (!mark.is_unchanged(was.stat())).then(|| "was changed meanwhile".into())
            }
            // Attributes of a directory whose copy tells nothing: its time changes with every entry.
            (Some(was), None) if action == Action::Attributes && was.kind() == FileType::Directory => None,
            (Some(was), None) => self.changed_within(path, was)?.map(|changed| {
                if changed == path {
                    "was made or changed meanwhile".into()
                } else {
                    format!(
                        "has something that was made or changed meanwhile: {}",
                        String::from_utf8_lossy(&changed)
                    )
                }
            }),
        })
    }

    /// What is wrong with a directory on the way: it is not the one any more that the upper's is a copy of.
    fn directory(&mut self, path: &[u8]) -> Result<Option<String>, Errno> {
        if let Some(known) = self.directories.get(path) {
            return Ok(known.clone());
        }
        let found = if path.is_empty() {
            let mark = LowerState::of_root(self.stack)?;
            let root = self.lowers.root_stat()?;
            let differs = mark.zip(root).is_some_and(|(mark, root)| !mark.is_directory(&root));
            differs.then(|| "is in another root filesystem than that of the container".to_owned())
        } else {
            match self.directory(split(path).0)? {
                Some(why) => Some(why),
                None => self.own_directory(path)?,
            }
        };
        self.directories.insert(path.to_vec(), found.clone());
        Ok(found)
    }

    fn own_directory(&self, path: &[u8]) -> Result<Option<String>, Errno> {
        let Some(now) = lookup(self.stack, path)? else { return Ok(None) };
        let (parent, name) = split(path);
        let Some(mark) = LowerState::of(self.stack, &now)? else { return Ok(None) };
        let below = match parent {
            b"" => self.lowers.root_stat()?,
            parent => lookup(&self.lowers, parent)?.map(|directory| *directory.stat()),
        };
        if !below.is_some_and(|below| mark.is_of_place(below.ino, name)) {
            return Ok(None);
        }
        let fits = lookup(&self.lowers, path)?
            .is_some_and(|was| was.directory().is_some() && mark.is_directory(was.stat()));
        let words =
            || format!("is in {}, which was replaced or removed meanwhile", String::from_utf8_lossy(path));
        Ok((!fits).then(words))
    }

    /// The first path at or in `object` that has changed since the upper was begun.
    fn changed_within(&self, path: &[u8], object: &MergedObject) -> Result<Option<Vec<u8>>, Errno> {
        if self.is_new(object.stat()) {
            return Ok(Some(path.to_vec()));
        }
        match object.directory() {
            Some(directory) => self.changed_below(path, directory),
            None => Ok(None),
        }
    }

    fn changed_below(&self, path: &[u8], directory: &MergedDirectory) -> Result<Option<Vec<u8>>, Errno> {
        for (name, object) in self.lowers.list(directory)? {
            let path = [path, b"/", &name].concat();
            if let Some(changed) = self.changed_within(&path, &object)? {
                return Ok(Some(changed));
            }
        }
        Ok(None)
    }

    fn is_new(&self, stat: &ObjectStat) -> bool {
        stat.ctime >= self.since
    }
}

pub(in crate::layer) fn lookup(stack: &Stack, path: &[u8]) -> Result<Option<MergedObject>, Errno> {
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
    stack.lookup(&names)
}
