use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use layerfs_image::layer::Stack;
use layerfs_image::tar::{EntryKind, TarLimits, TarReader};

use super::*;
use crate::context::{HashCache, SourceTree};
use crate::instruction::CopySpec;
use crate::pattern::IgnoreList;

fn lay(root: &Path, files: &[&str]) {
    std::fs::create_dir_all(root).unwrap();
    for file in files {
        let path = root.join(file);
        match file.strip_suffix('/') {
            Some(_) => std::fs::create_dir_all(&path).unwrap(),
            None => {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, file).unwrap();
            }
        }
    }
}

struct World {
    dir: tempfile::TempDir,
    ignore: &'static str,
    spec: CopySpec,
}

impl World {
    fn new(context: &[&str], image: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        lay(&dir.path().join("c"), context);
        lay(&dir.path().join("i"), image);
        Self { dir, ignore: "", spec: CopySpec::default() }
    }

    fn image(&self) -> std::path::PathBuf {
        self.dir.path().join("i")
    }

    /// What the layer has: paths, directories with a slash at their ends.
    fn copied(&self, sources: &[&str], destination: &str) -> Result<Vec<String>, CopyError> {
        let ignore = IgnoreList::parse(self.ignore).unwrap();
        let tree = Arc::new(SourceTree::context(&self.dir.path().join("c"), ignore).unwrap());
        let mut groups = Vec::new();
        for source in sources {
            groups.extend(select(&tree, source, &self.spec, &HashCache::default())?);
        }
        let stack = Stack::open(&[self.image()]).unwrap();
        let placement = Placement { destination: destination.into(), ..Placement::default() };
        let tar = place(&placement, &groups, &stack, Vec::new())?;
        let mut reader = TarReader::new(tar.as_slice(), TarLimits::default());
        let mut paths = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            let mut path = String::from_utf8(entry.path).unwrap();
            if entry.kind == EntryKind::HardLink {
                path = format!("{path} = {}", String::from_utf8(entry.link).unwrap());
            }
            paths.push(path);
        }
        Ok(paths)
    }
}

#[test]
fn files_go_to_a_name_or_into_a_directory() {
    let world = World::new(&["a", "d/b", "d/e/f"], &["etc/x", "usr/lib/y"]);
    assert_eq!(world.copied(&["a"], "/n").unwrap(), ["n"]);
    assert_eq!(world.copied(&["a"], "/n/").unwrap(), ["n/", "n/a"]);
    assert_eq!(world.copied(&["a"], "/etc").unwrap(), ["etc/", "etc/a"]);
    assert_eq!(world.copied(&["d"], "/n/m").unwrap(), ["n/", "n/m/", "n/m/b", "n/m/e/", "n/m/e/f"]);
    assert_eq!(world.copied(&["d/*"], "/n/").unwrap(), ["n/", "n/b", "n/f"]);
    assert_eq!(world.copied(&["a", "d"], "/").unwrap(), ["a", "b", "e/", "e/f"]);
    assert_eq!(world.copied(&["nothing*"], "/n/").unwrap(), ["n/"]);
    let missing = world.copied(&["b"], "/").unwrap_err();
    assert!(matches!(missing, CopyError::NotFound { ignored: false, .. }), "{missing}");
}

#[test]
fn links_of_the_image_are_followed_within_it() {
    let world = World::new(&["a", "lib/new"], &["usr/lib/y", "file"]);
    symlink("usr/lib", world.image().join("lib")).unwrap();
    symlink("/../../usr", world.image().join("out")).unwrap();
    symlink("round", world.image().join("round")).unwrap();
    symlink("gone/away", world.image().join("dangling")).unwrap();
    assert_eq!(world.copied(&["a"], "/lib/").unwrap(), ["usr/", "usr/lib/", "usr/lib/a"]);
    assert_eq!(world.copied(&["a"], "/out/z").unwrap(), ["usr/", "usr/z"]);
    assert_eq!(world.copied(&["."], "/").unwrap(), ["a", "usr/", "usr/lib/", "usr/lib/new"]);
    assert_eq!(world.copied(&["a"], "/dangling/").unwrap(), ["gone/", "gone/away/", "gone/away/a"]);
    assert!(matches!(world.copied(&["a"], "/round/x"), Err(CopyError::Loop(_))));
    assert!(matches!(world.copied(&["a"], "/file/x"), Err(CopyError::NotADirectory { .. })));
    // A link in the place of a file is replaced, where it is not the destination itself.
    assert_eq!(world.copied(&["a"], "/dangling").unwrap(), ["gone/", "gone/away"]);
}

#[test]
fn directories_that_are_there_keep_their_attributes() {
    let world = World::new(&["tmp/a"], &["tmp/"]);
    std::fs::set_permissions(world.image().join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    let tree = Arc::new(SourceTree::context(&world.dir.path().join("c"), IgnoreList::default()).unwrap());
    let groups = select(&tree, ".", &CopySpec::default(), &HashCache::default()).unwrap();
    let stack = Stack::open(&[world.image()]).unwrap();
    let placement =
        Placement { destination: "/".into(), owner: Some((7, 8)), mode: Some(0o600), ..Placement::default() };
    let tar = place(&placement, &groups, &stack, Vec::new()).unwrap();
    let mut reader = TarReader::new(tar.as_slice(), TarLimits::default());
    let directory = reader.next_entry().unwrap().unwrap();
    assert_eq!((directory.mode, directory.uid), (0o1777, 0));
    let file = reader.next_entry().unwrap().unwrap();
    assert_eq!((file.mode, file.uid, file.gid), (0o600, 7, 8));
}

#[test]
fn what_is_ignored_is_not_there() {
    let mut world = World::new(&["a.o", "a.c", "d/x.o", "d/keep.o", "e/y.o"], &[]);
    world.ignore = "**/*.o\n!d/keep.o\n";
    assert_eq!(world.copied(&["."], "/").unwrap(), ["a.c", "d/", "d/keep.o", "e/"]);
    let ignored = world.copied(&["a.o"], "/").unwrap_err();
    assert!(matches!(ignored, CopyError::NotFound { ignored: true, .. }), "{ignored}");
    world.ignore = "e";
    assert!(matches!(world.copied(&["e"], "/"), Err(CopyError::NotFound { ignored: true, .. })));
    assert!(matches!(world.copied(&["e/y.o"], "/"), Err(CopyError::NotFound { ignored: true, .. })));
    world.ignore = "*\n!d\n";
    assert_eq!(world.copied(&["."], "/").unwrap(), ["d/", "d/keep.o", "d/x.o"]);
}

#[test]
fn parents_and_exclusions() {
    let mut world = World::new(&["a/b/c.txt", "a/b/d.md", "a/e.txt"], &[]);
    world.spec.exclude = vec!["*.md".into(), "**/*.md".into()];
    assert_eq!(world.copied(&["a"], "/").unwrap(), ["b/", "b/c.txt", "e.txt"]);
    world.spec.parents = true;
    assert_eq!(world.copied(&["a/b/c.txt"], "/").unwrap(), ["a/", "a/b/", "a/b/c.txt"]);
    assert_eq!(world.copied(&["a/./b"], "/n/").unwrap(), ["n/", "n/b/", "n/b/c.txt"]);
}

#[test]
fn hard_links_stay_links() {
    let world = World::new(&["a"], &[]);
    std::fs::hard_link(world.dir.path().join("c/a"), world.dir.path().join("c/b")).unwrap();
    assert_eq!(world.copied(&["."], "/n/").unwrap(), ["n/", "n/a", "n/b = n/a"]);
}

#[test]
fn a_file_never_takes_a_directorys_place() {
    let world = World::new(&["x", "d/x"], &["n/x/y"]);
    assert!(matches!(world.copied(&["d"], "/n"), Err(CopyError::OverDirectory(_))));
    let world = World::new(&["d/x/z"], &["n/x"]);
    assert!(matches!(world.copied(&["d"], "/n"), Err(CopyError::NotADirectory { .. })));
    let world = World::new(&["d/.wh.x"], &[]);
    // No layer can have an object of this name.
    assert!(matches!(world.copied(&["d"], "/n"), Err(CopyError::Whiteout(_))));
}
