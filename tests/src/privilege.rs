//! What a test needs from the machine: asked for loudly, never assumed.
//!
//! A missing privilege skips the test with words on stderr. Where `LAYERFS_TEST_ALL_PRIVILEGES=1` promises
//! that everything is there, the same becomes a failure: a suite that quietly tests nothing is worse than
//! none.

use std::path::{Path, PathBuf};

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::UnshareFlags;

use crate::sys;

/// Name of the variable that turns skips into failures.
pub const ALL_PRIVILEGES: &str = "LAYERFS_TEST_ALL_PRIVILEGES";

fn missing(what: &str) -> bool {
    assert!(
        std::env::var_os(ALL_PRIVILEGES).is_none_or(|v| v != "1"),
        "{ALL_PRIVILEGES}=1 is set, but {what}"
    );
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    eprintln!("SKIPPED {test}: {what}");
    false
}

/// Says loudly that a test is left out; fails where all privileges are promised.
pub fn skip(what: &str) {
    missing(what);
}

/// True when the test runs as root; the calling thread then has a mount namespace of its own.
#[must_use]
pub fn require_root() -> bool {
    if !rustix::process::geteuid().is_root() {
        return missing("this test needs root");
    }
    match own_mount_namespace() {
        Ok(()) => true,
        Err(e) => missing(&format!("no mount namespace can be made here: {e}")),
    }
}

/// True when FUSE filesystems can be mounted here and the layerfs binary has been built.
#[must_use]
pub fn require_fuse() -> bool {
    if let Err(e) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        return missing(&format!("/dev/fuse cannot be opened: {e}"));
    }
    if layerfs_binary().is_none() {
        return missing(
            "the layerfs binary is not built (cargo build -p layerfs-cli), and LAYERFS_BIN names none",
        );
    }
    true
}

/// True when fuse-overlayfs is installed.
#[must_use]
pub fn has_fuse_overlayfs() -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("fuse-overlayfs").is_file()))
}

/// Root and FUSE together: what nearly every mounted test asks for.
#[must_use]
pub fn require_root_and_fuse() -> bool {
    let elsewhere = std::env::var("LAYERFS_TEST_KIND").is_ok_and(|kind| kind != "layerfs");
    (elsewhere || require_fuse()) && require_root()
}

/// The binary under test: `LAYERFS_BIN`, else the newer of the release and the debug build.
#[must_use]
pub fn layerfs_binary() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("LAYERFS_BIN") {
        let named = PathBuf::from(named);
        return named.is_file().then_some(named);
    }
    // Test executables lie in <target>/<profile>/deps.
    let own = std::env::current_exe().ok()?;
    let target = own.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file())?;
    let built = |profile: &str| {
        let path = target.join(profile).join("layerfs");
        let age = path.metadata().ok()?.modified().ok()?;
        Some((age, path))
    };
    [built("release"), built("debug")].into_iter().flatten().max().map(|(_, path)| path)
}

/// Moves the calling thread, and whatever it spawns from now on, into a private mount namespace.
fn own_mount_namespace() -> std::io::Result<()> {
    sys::unshare_thread(UnshareFlags::NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}

/// Runs `work` with the effective ids of an ordinary user without supplementary groups, and gives root back.
///
/// Ids are per thread on Linux at the level of system calls, so other tests are not touched.
pub fn as_user<T>(uid: u32, gid: u32, work: impl FnOnce() -> T) -> T {
    use rustix::process::{Gid, Uid};
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    struct Back;
    impl Drop for Back {
        fn drop(&mut self) {
            // The uid first: only root may choose its gid and groups.
            set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).expect("take root's uid back");
            set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).expect("take root's gid back");
        }
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&[]).expect("drop supplementary groups");
    let back = Back;
    set_thread_res_gid(gid, gid, Gid::ROOT).expect("change gid");
    set_thread_res_uid(uid, uid, Uid::ROOT).expect("change uid");
    let result = work();
    drop(back);
    result
}

/// True when `path` is on a filesystem that takes trusted xattrs from this process (a kernel overlay's upper
/// must).
#[must_use]
pub fn takes_trusted_xattrs(path: &Path) -> bool {
    use rustix::fs::{XattrFlags, removexattr, setxattr};
    setxattr(path, "trusted.layerfs-probe", b"1", XattrFlags::empty()).is_ok()
        && removexattr(path, "trusted.layerfs-probe").is_ok()
}
