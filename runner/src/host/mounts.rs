//! A mount namespace of this process's own.

use rustix::fs::CWD;

use crate::step::{Doing, StepError};
use crate::sys;
use crate::sys::mount::{MountAttr, mount_setattr};

/// Moves the process into a mount namespace of its own. What it mounts is seen by nobody else and vanishes with
/// the last process in it, however that ends; what the machine mounts later is seen here too.
///
/// # Errors
/// Without CAP_SYS_ADMIN in the process's user namespace, or on a kernel before Linux 5.12.
pub fn enter_private_mounts() -> Result<(), StepError> {
    sys::process::unshare(libc::CLONE_NEWNS).doing(|| "make a mount namespace".into())?;
    let slave = MountAttr { propagation: libc::MS_SLAVE, ..MountAttr::default() };
    mount_setattr(CWD, c"/", true, slave).doing(|| "keep mounts from spreading".into())
}
