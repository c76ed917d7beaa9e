//! What is set through the new root's own /proc and /sys, before parts of them are closed.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::OFlags;

use crate::config::Config;
use crate::namespaces::Namespaces;
use crate::network::devices::Devices;
use crate::rootfs::{self, resolve};
use crate::step::{Doing, StepError};
use crate::{network, sys};

/// Names, loopback, sysctl, masks, working directory.
pub(super) fn prepare(root: &OwnedFd, config: &Config, devices: &Devices) -> Result<(), StepError> {
    if let Some(name) = &config.hostname {
        rustix::system::sethostname(name.as_encoded_bytes()).doing(|| format!("set host name {name:?}"))?;
    }
    if let Some(name) = &config.domainname {
        rustix::system::setdomainname(name.as_encoded_bytes())
            .doing(|| format!("set domain name {name:?}"))?;
    }
    if config.namespaces.contains(Namespaces::NETWORK) {
        network::bring_loopback_up()?;
        devices.bring_up()?;
    }
    if let Some(persona) = config.personality {
        sys::process::set_personality(persona).doing(|| "set linux.personality".into())?;
    }
    for (name, value) in &config.sysctl {
        // With a slash in it, dots are part of names.
        let path = if name.contains('/') { name.clone() } else { name.replace('.', "/") };
        write_proc(root, &format!("/proc/sys/{path}"), value)?;
    }
    if let Some(adjustment) = config.process.oom_score_adj {
        set_oom_score(root, adjustment)?;
    }
    rootfs::make_paths_read_only(root, &config.read_only_paths)?;
    rootfs::cover_paths(root, &config.masked_paths)?;
    make_working_directory(root, &config.process.cwd)
}

/// `process.oomScoreAdj` of the calling process.
pub(super) fn set_oom_score(root: &OwnedFd, adjustment: i32) -> Result<(), StepError> {
    match write_proc(root, "/proc/self/oom_score_adj", &adjustment.to_string()) {
        // Lowering it needs CAP_SYS_RESOURCE; what an engine asks for that is not root on the machine is its own
        // value, which it has inherited.
        Err(error)
            if error.errno() == Some(libc::EACCES)
                && std::fs::read_to_string("/proc/self/oom_score_adj")
                    .is_ok_and(|current| current.trim() == adjustment.to_string()) =>
        {
            Ok(())
        }
        result => result,
    }
}

/// Writes to a file that must be the kernel's: an image may have put another one there.
fn write_proc(root: &OwnedFd, path: &str, value: &str) -> Result<(), StepError> {
    let words = || format!("write {value:?} to {path}");
    // "self" is a symlink of /proc itself.
    let links = resolve::Links::Follow;
    let file = resolve::open(root, Path::new(path), OFlags::WRONLY, links).doing(words)?;
    let magic = rustix::fs::fstatfs(&file).doing(words)?.f_type;
    if magic != rootfs::PROC_MAGIC {
        return Err(StepError::refused(words(), "it is not on /proc"));
    }
    rustix::io::write(&file, value.as_bytes()).doing(words)?;
    Ok(())
}

fn make_working_directory(root: &OwnedFd, path: &Path) -> Result<(), StepError> {
    let words = || format!("make working directory {}", path.display());
    match resolve::find(root, path, resolve::Links::Follow) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            resolve::find_or_make_directory(root, path, resolve::Links::Follow).doing(words)?;
            Ok(())
        }
        Err(error) => Err(error).doing(words),
    }
}
