//! A place on a real filesystem, gone when dropped.
//!
//! As root it is a fresh ext4 in a loop-mounted sparse file, so that every xattr namespace works, the size can
//! be chosen, and a leftover cannot outlive the test's mount namespace. Otherwise it is a directory in TMPDIR.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

use crate::mount::unmount_patiently;

/// Size of the sparse file behind an ordinary scratch place: never really used up.
const ROOMY: u64 = 16 << 30;

/// See the module's text.
#[derive(Debug)]
pub struct Scratch {
    /// Holds the image file and the mountpoint.
    holder: TempDir,
    mounted: bool,
    path: PathBuf,
}

impl Scratch {
    /// An ext4 of its own when root, a directory in TMPDIR otherwise.
    #[must_use]
    pub fn new() -> Self {
        if rustix::process::geteuid().is_root() { Self::ext4(ROOMY, "") } else { Self::plain() }
    }

    /// A directory in TMPDIR; no privilege needed.
    #[must_use]
    pub fn plain() -> Self {
        Self::plain_in(&std::env::temp_dir())
    }

    /// A directory in memory where that takes user xattrs, else in TMPDIR; for tests that make many small
    /// trees, and care for what is visible, not for the disk.
    #[must_use]
    pub fn memory() -> Self {
        let memory = Path::new("/dev/shm");
        let probe = TempDir::with_prefix_in("layerfs-test-", memory);
        let takes_xattrs = probe.is_ok_and(|dir| {
            rustix::fs::setxattr(dir.path(), "user.overlay.probe", b"1", rustix::fs::XattrFlags::empty())
                .is_ok()
        });
        if takes_xattrs { Self::plain_in(memory) } else { Self::plain() }
    }

    fn plain_in(parent: &Path) -> Self {
        let holder = TempDir::with_prefix_in("layerfs-test-", parent)
            .unwrap_or_else(|e| panic!("make a directory in {}: {e}", parent.display()));
        // Ordinary users, played by some operations, must get through.
        fs::set_permissions(holder.path(), Permissions::from_mode(0o755))
            .expect("chmod the scratch directory");
        let path = holder.path().to_path_buf();
        Self { holder, mounted: false, path }
    }

    /// A fresh ext4 of `bytes`, mounted with `options` (comma-separated, may be empty). Needs root and the
    /// private mount namespace of [`crate::privilege::require_root`].
    #[must_use]
    pub fn ext4(bytes: u64, options: &str) -> Self {
        let mut scratch = Self::plain();
        let image = scratch.holder.path().join("disk.img");
        let target = scratch.holder.path().join("disk");
        File::create(&image).and_then(|f| f.set_len(bytes)).expect("make the disk image");
        fs::create_dir(&target).expect("make the mountpoint");
        run(Command::new("mkfs.ext4")
            .args(["-q", "-m", "0", "-I", "256", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"])
            .args(["-O", "^metadata_csum_seed"])
            .arg(&image));
        let options = if options.is_empty() { "loop".to_owned() } else { format!("loop,{options}") };
        run(Command::new("mount").args(["-t", "ext4", "-o", &options]).arg(&image).arg(&target));
        scratch.mounted = true;
        // lost+found would show up in every listing of the filesystem's root.
        scratch.path = target.join("s");
        fs::create_dir(&scratch.path).expect("make the scratch directory");
        scratch
    }

    /// A fresh filesystem of another kind (`xfs`, `btrfs`), of its smallest usual size. `None` when it cannot be made here,
    /// which has been said. Needs what [`Self::ext4`] needs.
    #[must_use]
    pub fn of_kind(kind: &str) -> Option<Self> {
        let mut scratch = Self::plain();
        let image = scratch.holder.path().join("disk.img");
        let target = scratch.holder.path().join("disk");
        File::create(&image).and_then(|f| f.set_len(400 << 20)).expect("make the disk image");
        fs::create_dir(&target).expect("make the mountpoint");
        let program = format!("mkfs.{kind}");
        if let Err(error) = Command::new(&program).arg("-q").arg(&image).status() {
            crate::privilege::skip(&format!("start {program}: {error}"));
            return None;
        }
        run(Command::new("mount").args(["-t", kind, "-o", "loop"]).arg(&image).arg(&target));
        scratch.mounted = true;
        scratch.path = target.join("s");
        fs::create_dir(&scratch.path).expect("make the scratch directory");
        Some(scratch)
    }

    /// The directory to work in.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new directory of this name in the scratch place.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).expect("make a scratch directory");
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        let target = self.holder.path().join("disk");
        if let Err(e) = unmount_patiently(&target) {
            // Something of the test still uses the disk; detaching keeps the machine clean all the same.
            let detached = unmount(&target, UnmountFlags::DETACH);
            if !std::thread::panicking() {
                panic!(
                    "the scratch disk was still in use at the end of the test: {e} (detached: {detached:?})"
                );
            }
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("start {command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}
