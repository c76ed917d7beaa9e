//! What a step takes: objects with their attributes and, for its key, digests of their content.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use layerfs_image::digest::Digest;
use layerfs_image::layer::{MergedDirectory, MergedObject};
use layerfs_image::tar::{Entry, EntryKind};
use rustix::io::Errno;

use super::CopyError;
use crate::context::{Found, HashCache, Match, SourceTree};
use crate::instruction::CopySpec;
use crate::key::KeyBuilder;
use crate::pattern::IgnoreList;

/// Where an item's data is.
#[derive(Debug, Clone)]
pub enum Content {
    /// It has none.
    None,
    /// In a tree.
    Object(Arc<SourceTree>, Box<MergedObject>),
    /// Here.
    Bytes(Vec<u8>),
    /// In a file of its own.
    File(PathBuf),
}

/// One object that is taken.
#[derive(Debug, Clone)]
pub struct Item {
    /// Names below where the group goes; empty for the group's own root.
    pub name: Vec<Vec<u8>>,
    /// Its attributes; no path.
    pub entry: Entry,
    /// Its data.
    pub content: Content,
    /// Digest of its data.
    pub digest: Option<Digest>,
    /// The item of the same group that is the same object.
    pub same_as: Option<usize>,
}

/// How a group goes to its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupKind {
    /// One object that is no directory, with the name `base` where the destination is a directory.
    File,
    /// What is in a directory.
    Contents,
    /// The same, beneath all the directories that lead to it.
    Parents,
    /// An archive that is unpacked, the group's only item.
    Archive,
}

/// What one source stands for.
#[derive(Debug, Clone)]
pub struct Group {
    /// Last name of the source.
    pub base: Vec<u8>,
    /// How it goes.
    pub kind: GroupKind,
    /// Parents before what is in them.
    pub items: Vec<Item>,
    /// As it was written, for messages.
    pub source: String,
}

/// All that a step takes.
pub type Selection = Vec<Group>;

/// Takes `source` out of a tree. An empty answer is that of a pattern that matches nothing.
///
/// # Errors
/// When it is not there, or cannot be read.
pub fn select(
    tree: &Arc<SourceTree>,
    source: &str,
    spec: &CopySpec,
    hashes: &HashCache,
) -> Result<Vec<Group>, CopyError> {
    let has_pattern = source.contains(['*', '?', '[']);
    let (pivot, path) = match source.split_once("/./").filter(|_| spec.parents) {
        Some((before, after)) => (
            before.split('/').filter(|name| !matches!(*name, "" | "." | "..")).count(),
            format!("{before}/{after}"),
        ),
        None => (0, source.to_owned()),
    };
    // BuildKit takes these as a filter of a walk, and others as a pattern of the shell.
    let matches = match spec.parents {
        true => tree.find_at_any_depth(&path),
        false => tree.find(&path),
    };
    let matches = matches.map_err(CopyError::read(source))?;
    let mut exclude = IgnoreList::default();
    for pattern in &spec.exclude {
        exclude.add(pattern).map_err(|why| CopyError::Read {
            path: pattern.clone(),
            source: std::io::Error::new(std::io::ErrorKind::InvalidInput, why),
        })?;
    }
    let mut groups = Vec::new();
    for found in matches {
        let mut walk = Walk { tree, hashes, exclude: &exclude, items: Vec::new(), links: HashMap::new() };
        let base = found.written.last().cloned().unwrap_or_default();
        let kind = match found.found.directory() {
            Some(_) => GroupKind::Contents,
            None => GroupKind::File,
        };
        let mut prefix = Vec::new();
        if spec.parents {
            walk.parents(&found, pivot)?;
            prefix = found.written.iter().skip(pivot).map(|name| name.clone().into_bytes()).collect();
        }
        match &found.found {
            Found::Root(directory) => walk.directory(directory, &found.path, &prefix, &[])?,
            Found::Object(object) => {
                let relative = if object.directory().is_some() { Vec::new() } else { vec![base.clone()] };
                walk.object(object, &found.path, &prefix, &relative, true)?;
            }
        }
        let nothing_left = walk.items.is_empty();
        let is_hidden = nothing_left && !found.path.is_empty() && tree.ignores(&found.path);
        if is_hidden && !has_pattern {
            return Err(not_found(tree, source, true));
        }
        // All of it is excluded.
        if nothing_left && kind == GroupKind::File {
            continue;
        }
        groups.push(Group {
            base: base.into_bytes(),
            kind: if spec.parents { GroupKind::Parents } else { kind },
            items: walk.items,
            source: source.to_owned(),
        });
    }
    if groups.is_empty() && !has_pattern && exclude.is_empty() {
        let clean = crate::pattern::clean(&format!("/{source}"));
        let names: Vec<String> =
            clean.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        return Err(not_found(tree, source, tree.ignores(&names)));
    }
    Ok(groups)
}

fn not_found(tree: &SourceTree, source: &str, ignored: bool) -> CopyError {
    let place = if tree.is_context() { "the build context".to_owned() } else { tree.place.clone() };
    CopyError::NotFound { source_path: source.to_owned(), place, ignored }
}

struct Walk<'a> {
    tree: &'a Arc<SourceTree>,
    hashes: &'a HashCache,
    exclude: &'a IgnoreList,
    items: Vec<Item>,
    /// First item of each object that has several names.
    links: HashMap<(usize, u64), usize>,
}

impl Walk<'_> {
    /// The directories that lead to a source, for `--parents`.
    fn parents(&mut self, found: &Match, pivot: usize) -> Result<(), CopyError> {
        for len in pivot + 1..found.written.len() {
            let names = found.written.get(..len).unwrap_or_default();
            let path = names.join("/");
            let matches = self.tree.find(&path).map_err(CopyError::read(&path))?;
            if let Some(Match { found: Found::Object(object), .. }) = matches.first()
                && object.directory().is_some()
            {
                let name = names.iter().skip(pivot).map(|name| name.clone().into_bytes()).collect();
                self.add(object, name, &path)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, object: &MergedObject, name: Vec<Vec<u8>>, path: &str) -> Result<(), CopyError> {
        let mut entry = match object.describe(&self.tree.stack) {
            Ok(entry) => entry,
            // A socket: nothing that could be kept.
            Err(Errno::OPNOTSUPP) => return Ok(()),
            Err(errno) => return Err(CopyError::read(path)(errno)),
        };
        if self.tree.is_context() {
            (entry.uid, entry.gid) = (0, 0);
            entry.xattrs.retain(|(name, _)| name == b"security.capability" || name.starts_with(b"user."));
        }
        let mut item = Item { name, entry, content: Content::None, digest: None, same_as: None };
        if item.entry.kind != EntryKind::Directory && object.stat().nlink > 1 {
            match self.links.get(&object.identity()) {
                Some(first) => item.same_as = Some(*first),
                None => drop(self.links.insert(object.identity(), self.items.len())),
            }
        }
        if item.entry.kind == EntryKind::File {
            item.digest = Some(self.hashes.digest(self.tree, object).map_err(CopyError::read(path))?);
            item.content = Content::Object(self.tree.clone(), Box::new(object.clone()));
        }
        self.items.push(item);
        Ok(())
    }

    /// `path` leads there in the tree, `prefix` and `relative` say what it is called where it goes.
    fn object(
        &mut self,
        object: &MergedObject,
        path: &[String],
        prefix: &[Vec<u8>],
        relative: &[String],
        is_source: bool,
    ) -> Result<(), CopyError> {
        let shown = path.join("/");
        if !relative.is_empty()
            && self.exclude.ignores(&relative.join("/"))
            && (object.directory().is_none() || !self.exclude.has_exceptions())
        {
            return Ok(());
        }
        let is_ignored = self.tree.ignores(path);
        if is_ignored && (object.directory().is_none() || !self.tree.has_exceptions()) {
            return Ok(());
        }
        // A file's own name belongs to the group; what is in a directory is called by the names below it.
        let below = if is_source { &[][..] } else { relative };
        let name = prefix.iter().cloned().chain(below.iter().map(|name| name.clone().into_bytes())).collect();
        let at = self.items.len();
        self.add(object, name, &shown)?;
        let Some(directory) = object.directory() else { return Ok(()) };
        self.directory(directory, path, prefix, relative)?;
        // An ignored directory is there only for what in it is not.
        if is_ignored && self.items.len() == at + 1 {
            self.items.truncate(at);
        }
        Ok(())
    }

    fn directory(
        &mut self,
        directory: &MergedDirectory,
        path: &[String],
        prefix: &[Vec<u8>],
        relative: &[String],
    ) -> Result<(), CopyError> {
        let shown = path.join("/");
        for (name, object) in self.tree.stack.list(directory).map_err(CopyError::read(&shown))? {
            let Ok(text) = String::from_utf8(name) else {
                let why =
                    std::io::Error::new(std::io::ErrorKind::InvalidData, "it has a name that is not UTF-8");
                return Err(CopyError::Read { path: shown, source: why });
            };
            let path: Vec<String> = path.iter().cloned().chain([text.clone()]).collect();
            let relative: Vec<String> = relative.iter().cloned().chain([text]).collect();
            self.object(&object, &path, prefix, &relative, false)?;
        }
        Ok(())
    }
}

/// Adds to a key what the selection is: names, attributes but for times, content.
pub fn add_to_key(key: &mut KeyBuilder, selection: &Selection) {
    for group in selection {
        key.add("group", &group.base);
        key.add("kind", format!("{:?} {}", group.kind, group.items.len()));
        for item in &group.items {
            let entry = &item.entry;
            key.add_all("name", &item.name);
            key.add(
                "object",
                format!(
                    "{:?} {:o} {} {} {:?} {:?}",
                    entry.kind, entry.mode, entry.uid, entry.gid, entry.device, item.same_as
                ),
            );
            key.add("link", &entry.link);
            for (name, value) in &entry.xattrs {
                key.add("xattr", name);
                key.add("value", value);
            }
            key.add("content", item.digest.map(|digest| digest.to_string()).unwrap_or_default());
        }
    }
}
