//! Trees that steps copy from: a directory of the machine without what its ignore file names, or the layers of a stage or
//! an image. Read through [`Stack`], without a mount.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use layerfs_image::digest::{Algorithm, Digest, Hasher};
use layerfs_image::layer::{MergedDirectory, MergedObject, ObjectStat, Stack};
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::pattern::{IgnoreList, Pattern, file_pattern, path_pattern};

/// Links that a path may lead over, as the kernel has it.
const MAX_LINKS: usize = 40;

/// A tree to copy from.
#[derive(Debug)]
pub struct SourceTree {
    /// Its layers.
    pub stack: Stack,
    /// Where it is, for messages and for the cache of hashes.
    pub place: String,
    ignore: Option<IgnoreList>,
    is_context: bool,
}

/// Something in a tree.
#[derive(Debug, Clone)]
pub enum Found {
    /// The root.
    Root(MergedDirectory),
    /// Another object.
    Object(Box<MergedObject>),
}

/// A path in a tree that a source means.
#[derive(Debug, Clone)]
pub struct Match {
    /// As it was written, patterns replaced by names.
    pub written: Vec<String>,
    /// Names from the root, links followed.
    pub path: Vec<String>,
    /// What is there.
    pub found: Found,
}

impl Found {
    /// Its entries, when it is a directory.
    pub fn directory(&self) -> Option<&MergedDirectory> {
        match self {
            Self::Root(directory) => Some(directory),
            Self::Object(object) => object.directory(),
        }
    }
}

impl SourceTree {
    /// A directory of the machine. Owners do not count; what `ignore` names is not there.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn context(path: &Path, ignore: IgnoreList) -> Result<Self, Errno> {
        let ignore = Some(ignore).filter(|list| !list.is_empty());
        Ok(Self { stack: Stack::plain(path)?, place: path.display().to_string(), ignore, is_context: true })
    }

    /// Layers, the topmost first. Owners count.
    pub fn layers(stack: Stack, place: String) -> Self {
        Self { stack, place, ignore: None, is_context: false }
    }

    /// Whether owners and xattrs of its files are the machine's own affair.
    pub fn is_context(&self) -> bool {
        self.is_context
    }

    /// Whether the ignore file names the path.
    pub fn ignores(&self, path: &[String]) -> bool {
        self.ignore.as_ref().is_some_and(|list| list.ignores(&path.join("/")))
    }

    /// Whether an ignore file leaves something out.
    pub fn has_ignored(&self) -> bool {
        self.ignore.is_some()
    }

    /// Whether something below an ignored directory may be wanted.
    pub fn has_exceptions(&self) -> bool {
        self.ignore.as_ref().is_some_and(IgnoreList::has_exceptions)
    }

    /// Not ignored, or a directory in which something may not be.
    fn may_show(&self, path: &[String], found: &Found) -> bool {
        path.is_empty() || !self.ignores(path) || self.has_exceptions() && found.directory().is_some()
    }

    /// All that `source` means, links followed: one path, or as many as its patterns match.
    ///
    /// # Errors
    /// Those of reading; a pattern that cannot be read.
    pub fn find(&self, source: &str) -> Result<Vec<Match>, io::Error> {
        let names: Vec<&str> = source.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
        let root = Match { written: Vec::new(), path: Vec::new(), found: Found::Root(self.stack.root()?) };
        let mut at = vec![root];
        for name in names {
            let mut next = Vec::new();
            for place in at {
                self.step(&place, name, &mut next)?;
            }
            at = next;
        }
        at.retain(|place| self.may_show(&place.path, &place.found));
        Ok(at)
    }

    /// As [`find`](Self::find), where `**` is any number of directories: the topmost objects that match, and all that is in
    /// them. Links to directories are not followed by it.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn find_at_any_depth(&self, source: &str) -> Result<Vec<Match>, io::Error> {
        let names: Vec<&str> = source.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
        let Some(first) = names.iter().position(|name| name.contains("**")) else { return self.find(source) };
        let (before, rest) = names.split_at(first);
        let pattern =
            path_pattern(&rest.join("/")).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        let mut found = Vec::new();
        for place in self.find(&before.join("/"))? {
            self.descend(&place, &pattern, &mut Vec::new(), &mut found)?;
        }
        Ok(found)
    }

    /// `names` lead from where the pattern begins to `place`.
    fn descend(
        &self,
        place: &Match,
        pattern: &Pattern,
        names: &mut Vec<String>,
        found: &mut Vec<Match>,
    ) -> Result<(), io::Error> {
        let Some(directory) = place.found.directory() else { return Ok(()) };
        for (name, object) in self.stack.list(directory)? {
            let Ok(name) = String::from_utf8(name) else { continue };
            let with = |names: &[String]| names.iter().cloned().chain([name.clone()]).collect();
            let object = Found::Object(Box::new(object));
            let next = Match { written: with(&place.written), path: with(&place.path), found: object };
            if !self.may_show(&next.path, &next.found) {
                continue;
            }
            names.push(name);
            if pattern.matches(&names.join("/").chars().collect::<Vec<_>>()) {
                found.push(next);
            } else {
                self.descend(&next, pattern, names, found)?;
            }
            names.pop();
        }
        Ok(())
    }

    fn step(&self, place: &Match, name: &str, next: &mut Vec<Match>) -> Result<(), io::Error> {
        if name == ".." {
            let mut path = place.path.clone();
            path.pop();
            next.extend(self.follow(path, Vec::new())?.map(|(path, found)| Match {
                written: Vec::new(),
                path,
                found,
            }));
            return Ok(());
        }
        let Some(directory) = place.found.directory() else { return Ok(()) };
        let pattern = file_pattern(name).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        let names: Vec<String> = match pattern.is_plain() {
            true => vec![unescaped(name)],
            false => {
                let names = self.stack.list(directory)?.into_iter().map(|(name, _)| name);
                let names = names.filter_map(|name| String::from_utf8(name).ok());
                names.filter(|name| pattern.matches(&name.chars().collect::<Vec<_>>())).collect()
            }
        };
        for name in names {
            let found = self.follow(place.path.clone(), vec![name.clone()])?;
            let Some((path, found)) = found else { continue };
            if !self.may_show(&path, &found) {
                continue;
            }
            let written = place.written.iter().cloned().chain([name]).collect();
            next.push(Match { written, path, found });
        }
        Ok(())
    }

    /// Goes from `from`, which has no links, along `names`, following links within the tree.
    fn follow(
        &self,
        from: Vec<String>,
        names: Vec<String>,
    ) -> Result<Option<(Vec<String>, Found)>, io::Error> {
        let mut left: VecDeque<String> = from.into_iter().chain(names).collect();
        let mut at: Vec<(String, MergedObject)> = Vec::new();
        let root = self.stack.root()?;
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            match name.as_str() {
                "" | "." => continue,
                ".." => {
                    at.pop();
                    continue;
                }
                _ => {}
            }
            let directory = match at.last() {
                None => &root,
                Some((_, object)) => match object.directory() {
                    Some(directory) => directory,
                    None => return Ok(None),
                },
            };
            let Some(object) = self.stack.child(directory, name.as_bytes())? else { return Ok(None) };
            if object.kind() != FileType::Symlink {
                at.push((name, object));
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP.into());
            }
            let link = object.describe(&self.stack)?.link;
            let link = String::from_utf8(link).map_err(|_| io::Error::from(Errno::ILSEQ))?;
            if link.starts_with('/') {
                at.clear();
            }
            for part in link.split('/').rev() {
                left.push_front(part.to_owned());
            }
        }
        let path = at.iter().map(|(name, _)| name.clone()).collect();
        let found = match at.pop() {
            None => Found::Root(root),
            Some((_, object)) => Found::Object(Box::new(object)),
        };
        Ok(Some((path, found)))
    }

    /// A small file whole, links followed; `None` when there is none.
    ///
    /// # Errors
    /// Those of reading; one that is longer than `limit` bytes.
    pub fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, io::Error> {
        let names = path.split('/').map(str::to_owned).collect();
        let Some((_, Found::Object(object))) = self.follow(Vec::new(), names)? else { return Ok(None) };
        if object.kind() != FileType::RegularFile {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        File::from(object.open(&self.stack)?).take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("it has more than {limit} bytes"),
            ));
        }
        Ok(Some(bytes))
    }
}

/// A name with the escapes of patterns taken off.
fn unescaped(name: &str) -> String {
    let (mut out, mut letters) = (String::new(), name.chars());
    while let Some(letter) = letters.next() {
        out.extend(if letter == '\\' { letters.next() } else { Some(letter) });
    }
    out
}

/// Digests of files by what the disk says of them, kept from build to build.
#[derive(Debug, Default)]
pub struct HashCache {
    path: Option<PathBuf>,
    known: Mutex<HashMap<String, (Digest, bool)>>,
}

/// A file changed so lately (in nanoseconds) may change again within the same tick of its time.
const RACY: u128 = 2_000_000_000;
/// Entries that are kept.
const MAX_KEPT: usize = 500_000;

impl HashCache {
    /// Reads what was kept at `path`. What cannot be read is no harm.
    pub fn open(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = |line: &str| {
            let (hex, key) = line.split_once(' ')?;
            Some((key.to_owned(), (Digest::from_hex(Algorithm::Sha256, hex)?, false)))
        };
        Self { path: Some(path.to_owned()), known: Mutex::new(text.lines().filter_map(line).collect()) }
    }

    /// The digest of an object's data.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn digest(&self, tree: &SourceTree, object: &MergedObject) -> Result<Digest, io::Error> {
        let stat = object.stat();
        let key = key_of(&tree.place, stat);
        if let Some((digest, used)) = self.lock().get_mut(&key) {
            *used = true;
            return Ok(*digest);
        }
        let mut file = File::from(object.open(&tree.stack)?);
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => hasher.update(&buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let digest = hasher.finish();
        // Data of a metadata-only copy is in another file, whose times are not these.
        if !is_racy(stat) && !object.is_metadata_only() {
            self.lock().insert(key, (digest, true));
        }
        Ok(digest)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Digest, bool)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps it for the next build. What was not asked for goes when there is too much.
    pub fn save(&self) {
        let Some(path) = &self.path else { return };
        let known = self.lock();
        if !known.values().any(|(_, used)| *used) {
            return;
        }
        let drops = known.len() > MAX_KEPT;
        let lines = known.iter().filter(|(_, (_, used))| *used || !drops);
        let text: String = lines.map(|(key, (digest, _))| format!("{} {key}\n", digest.hex())).collect();
        let new = path.with_extension(format!("new-{}", std::process::id()));
        let write = || {
            let mut options = File::options();
            // Whoever can change it chooses what the cache of builds gives.
            options.write(true).create(true).truncate(true).mode(0o600);
            options.open(&new)?.write_all(text.as_bytes())?;
            std::fs::rename(&new, path)
        };
        if let Err(error) = write() {
            tracing::debug!(%error, "keep the hashes of files");
        }
    }
}

fn key_of(place: &str, stat: &ObjectStat) -> String {
    let (mtime, ctime) = (stat.mtime, stat.ctime);
    format!("{} {} {}.{} {}.{} {place}", stat.ino, stat.size, mtime.0, mtime.1, ctime.0, ctime.1)
        .replace('\n', " ")
}

fn is_racy(stat: &ObjectStat) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let changed = u128::try_from(stat.ctime.0).unwrap_or(0) * 1_000_000_000 + u128::from(stat.ctime.1);
    now < changed + RACY
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn paths_and_patterns_lead_within_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        for file in ["a/b/one.c", "a/b/two.c", "a/b/x.h", "a/[1]"] {
            std::fs::write(dir.path().join(file), file).unwrap();
        }
        symlink("/a/b", dir.path().join("link")).unwrap();
        symlink("../../../../etc", dir.path().join("out")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        let tree = SourceTree::context(dir.path(), IgnoreList::parse("a/b/two.c").unwrap()).unwrap();
        let paths = |source: &str| -> Vec<String> {
            tree.find(source).unwrap().into_iter().map(|found| found.path.join("/")).collect()
        };
        assert_eq!(paths("a/*/*.c"), ["a/b/one.c"]);
        assert_eq!(paths("link/x.h"), ["a/b/x.h"]);
        assert_eq!(paths("/a/../a/b/../../a/b/x.h"), ["a/b/x.h"]);
        assert_eq!(paths("a/\\[1]"), ["a/[1]"]);
        assert_eq!(paths("."), [""]);
        assert!(paths("out").is_empty() && paths("a/b/two.c").is_empty() && paths("a/b/x.h/y").is_empty());
        assert!(tree.find("loop").is_err() && tree.find("[").is_err());
        let any_depth = |source: &str| -> Vec<String> {
            let found = tree.find_at_any_depth(source).unwrap();
            found.into_iter().map(|found| found.written.join("/")).collect()
        };
        std::fs::write(dir.path().join("x.h"), "").unwrap();
        std::fs::create_dir_all(dir.path().join("c/b/d.h")).unwrap();
        assert_eq!(any_depth("**/*.h"), ["a/b/x.h", "c/b/d.h", "x.h"]);
        assert_eq!(any_depth("./a/**/x.h"), ["a/b/x.h"]);
        assert_eq!(any_depth("**/b"), ["a/b", "c/b"]);
        assert_eq!(any_depth("a/b/*.h"), ["a/b/x.h"]);
        // No layer: nothing in it is a mark.
        std::fs::write(dir.path().join(".wh.x.h"), "").unwrap();
        assert_eq!(paths("*.h"), [".wh.x.h", "x.h"]);
        assert_eq!(tree.read("link/one.c", 100).unwrap().unwrap(), b"a/b/one.c");
        assert!(tree.read("link/one.c", 3).is_err());
    }
}
