//! Removing a directory tree that a container wrote.
//!
//! Must hold: nothing outside the tree goes, whatever is in it. Each directory is reached by descriptor, no
//! symlink is followed, and no mount is entered: a tree that something is still mounted in stays.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Context;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

/// Bytes of directory entries read at a time.
const LISTING: usize = 16 * 1024;

/// How often a directory is emptied that is not empty any more when it is to go.
const TRIES: u32 = 10;

/// Removes `path` with everything below it. What does not exist is no error, nor what somebody else removes meanwhile: the
/// lock of a directory goes with it, and who comes then may take it for one that was left behind.
pub(crate) fn remove_tree(path: &Path) -> anyhow::Result<()> {
    let words = || format!("remove {}", path.display());
    let parent = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().with_context(words)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match rustix::fs::openat(CWD, parent, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        result => result.with_context(words)?,
    };
    let name = CString::new(name.as_bytes()).with_context(words)?;
    remove_entry(&parent, &name).with_context(words)
}

/// Removes the entry `name` of `parent`, of whatever kind.
fn remove_entry(parent: &OwnedFd, name: &CString) -> anyhow::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // A directory says EISDIR; EPERM on filesystems that follow POSIX to the letter.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error).with_context(|| named(name)),
    }
    let mut tries = TRIES;
    loop {
        let directory = match enter(parent, name) {
            Err(Errno::NOENT) => return Ok(()),
            result => result.with_context(|| named(name))?,
        };
        empty_directory(&directory).with_context(|| named(name))?;
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) if tries > 0 => tries -= 1,
            Err(error) => return Err(error).with_context(|| named(name)),
        }
    }
}

fn named(name: &CString) -> String {
    format!("{:?}", OsStr::from_bytes(name.as_bytes()))
}

fn enter(parent: &OwnedFd, name: &CString) -> rustix::io::Result<OwnedFd> {
    let open = || {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve)
    };
    match open() {
        // The owner may have taken its own permission, as the work directory of a mount does.
        Err(Errno::ACCESS) => {
            layerfs_image::layer::set_mode(parent, name, Mode::RWXU)?;
            open()
        }
        result => result,
    }
}

fn empty_directory(directory: &OwnedFd) -> anyhow::Result<()> {
    loop {
        let names = entries(directory)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in &names {
            remove_entry(directory, name)?;
        }
        // Removing moves entries about: look again from the beginning.
        rustix::fs::seek(directory, rustix::fs::SeekFrom::Start(0))?;
    }
}

/// Some of the names in `directory`; none when it is empty.
fn entries(directory: impl AsFd) -> anyhow::Result<Vec<CString>> {
    let mut buffer = Vec::with_capacity(LISTING);
    let mut names = Vec::new();
    let mut listing = RawDir::new(directory, buffer.spare_capacity_mut());
    while let Some(entry) = listing.next() {
        let entry = match entry {
            // The directory itself is gone.
            Err(Errno::NOENT) => break,
            result => result?,
        };
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn regression_two_that_remove_one_tree_both_succeed() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..50 {
            let tree = dir.path().join("tree");
            for n in 0..20 {
                fs::create_dir_all(tree.join(format!("{n}/a/b"))).unwrap();
                fs::write(tree.join(format!("{n}/a/file")), "").unwrap();
            }
            let start = std::sync::Barrier::new(2);
            let remove = || {
                start.wait();
                remove_tree(&tree)
            };
            std::thread::scope(|scope| {
                let other = scope.spawn(remove);
                remove().unwrap();
                other.join().unwrap().unwrap();
            });
            assert!(!tree.exists());
        }
    }

    #[test]
    fn a_tree_goes_and_what_its_links_name_stays() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        symlink(&outside, tree.join("a/link")).unwrap();
        for n in 0..3000 {
            fs::write(tree.join(format!("a/b/{n:0100}")), "").unwrap();
        }
        fs::set_permissions(tree.join("a/b/c"), fs::Permissions::from_mode(0o000)).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(outside.join("kept").exists());
        remove_tree(&tree).unwrap();
        remove_tree(&tree.join("deeper/still")).unwrap();
    }

    #[test]
    fn a_link_in_the_place_of_the_tree_goes_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("target")).unwrap();
        fs::write(dir.path().join("target/kept"), "").unwrap();
        symlink("target", dir.path().join("link")).unwrap();
        remove_tree(&dir.path().join("link")).unwrap();
        assert!(dir.path().join("target/kept").exists());
        assert!(dir.path().join("link").symlink_metadata().is_err());
    }
}
