//! Putting an overlay behind FUSE: mounting, serving, unmounting.

mod attach;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::{Config, IoMode};
use crate::error::OpError;
use crate::fuse::{Adapter, Session};
use crate::layer::Layers;
use crate::layer::stack::StackError;
use crate::layer::upper::WhiteoutForm;
use crate::overlay::Overlay;
use crate::sys::{creds, limits};
use attach::Attached;

/// What /proc/self/mountinfo shows as the filesystem's type.
pub const FS_TYPE: &str = "fuse.layerfs";
/// Reading this xattr of the mount's root gives the [`MountReport`] as JSON. It is in no listing.
pub const REPORT_XATTR: &str = "layerfs.report";

/// Why a mount did not come about, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The layers.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// Reading the roots of the layers.
    #[error("read the layers' roots: {0}")]
    Roots(OpError),
    /// The mountpoint cannot be used.
    #[error("mountpoint {path:?}: {source}")]
    Target {
        /// The mountpoint.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// /dev/fuse cannot be used.
    #[error("open /dev/fuse: {0}; load the fuse module, or give this user access to the device")]
    Device(io::Error),
    /// mount(2), or fusermount3 in its place, said no.
    #[error("mount on {path:?}: {source}{hint}")]
    Mount {
        /// The mountpoint.
        path: PathBuf,
        /// What it said.
        source: io::Error,
        /// What to do.
        hint: String,
    },
    /// The kernel and this program did not agree on a protocol.
    #[error("agree with the kernel: {0}")]
    Handshake(io::Error),
    /// The session ended with an error.
    #[error("serve requests: {0}")]
    Serve(io::Error),
}

/// What was decided when mounting, and how it goes. Paths are for people: bytes that are no UTF-8 are replaced.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountReport {
    /// Version of this program.
    pub version: String,
    /// Process that serves the mount.
    pub pid: u32,
    /// The mountpoint as asked for.
    pub target: String,
    /// Lower layers, top first.
    pub lowers: Vec<String>,
    /// Lowers that answer from an index.
    pub indexed_lowers: usize,
    /// The writable layer.
    pub upper: Option<String>,
    /// Its work directory.
    pub work: Option<String>,
    /// How file data travels.
    pub io: IoMode,
    /// Opens need no message.
    pub zero_message_open: bool,
    /// Threads that serve requests.
    pub threads: usize,
    /// A busy caller may be served on its own CPU.
    pub same_cpu: bool,
    /// Prefix of the marks' xattrs.
    pub marks: String,
    /// How whiteouts are written: `device`, `xattr` or `file`.
    pub whiteouts: Option<String>,
    /// Metadata-only copy-up is on.
    pub metacopy: bool,
    /// Directories of lower layers are renamed by mark.
    pub redirect_dir: bool,
    /// fsync does nothing.
    pub volatile: bool,
    /// Nodes in use.
    pub nodes: usize,
    /// Descriptors kept open for layers' directories and files.
    pub descriptors: usize,
    /// Requests served so far, by kind.
    pub requests: BTreeMap<String, u64>,
}

/// Unmounts from any thread, or a signal handler's thread.
#[derive(Debug, Clone)]
pub struct Unmounter {
    attached: Arc<Attached>,
}

impl Unmounter {
    /// Unmounts: at once when nobody uses the mount, else from the tree now and for good with its last user.
    ///
    /// # Errors
    /// What umount(2) lists, but EINVAL: it was unmounted already.
    pub fn unmount(&self) -> io::Result<()> {
        self.attached.detach()
    }
}

/// A mount whose kernel side is in place. Requests wait until [`Self::serve`] runs.
#[derive(Debug)]
pub struct Mounted {
    session: Session,
    adapter: Arc<Adapter>,
    attached: Arc<Attached>,
}

/// linux/capability.h
const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_SYS_ADMIN: u32 = 21;

/// Opens the layers, locks the upper, mounts on `target` and agrees with the kernel on the protocol.
///
/// To be called in the process that will serve, before it starts threads.
///
/// # Errors
/// See [`MountError`]; nothing is left mounted then.
pub fn mount(config: &Config, target: &Path) -> Result<Mounted, MountError> {
    let descriptors = limits::raise_descriptors();
    // A quarter is left for open handles, removed files still open, and the rest of the process.
    let budget = usize::try_from(descriptors).unwrap_or(usize::MAX) / 4 * 3;
    let mut config = config.clone();
    config.flags.read_only |= config.upper.is_none();
    let stack = crate::mount::attach::check_target(target)?;
    let layers = Layers::open(config.clone(), budget)?;
    let overlay = Overlay::new(layers).map_err(MountError::Roots)?;
    overlay.record_root().map_err(|errno| MountError::Roots(errno.into()))?;
    let may_pass_through = creds::has_capability(CAP_SYS_ADMIN) && creds::in_initial_user_namespace();
    let may_reopen = creds::has_capability(CAP_DAC_OVERRIDE);
    let adapter = Arc::new(Adapter::new(overlay, config.io, may_pass_through, may_reopen));
    let (device, attached) = attach::attach(&config.flags, target, &stack)?;
    let attached = Arc::new(attached);
    let threads = if config.threads == 0 { default_threads() } else { config.threads };
    let session = match Session::new(adapter.clone(), device, threads, config.same_cpu) {
        Ok(session) => session,
        Err(e) => {
            if let Err(e) = attached.detach() {
                tracing::error!("unmount after a failed handshake: {e}");
            }
            return Err(MountError::Handshake(e));
        }
    };
    attached.tune();
    let mut report = describe(&adapter, target, threads);
    report.same_cpu = session.serves_near();
    // Set once, here.
    drop(adapter.report.set(report));
    Ok(Mounted { session, adapter, attached })
}

/// One for each processor that this process may use. Quotas of a cgroup, which the standard library would look up in
/// its files, say nothing about how many requests wait at once.
fn default_threads() -> usize {
    rustix::thread::sched_getaffinity(None).map_or(2, |set| set.count() as usize).clamp(2, 8)
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn describe(adapter: &Adapter, target: &Path, threads: usize) -> MountReport {
    let layers = adapter.overlay.layers();
    let protocol = adapter.protocol.get();
    let config = &layers.config;
    MountReport {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        target: shown(target),
        lowers: layers.lowers.iter().map(|l| shown(&l.path)).collect(),
        indexed_lowers: layers.lowers.iter().filter(|l| l.index().is_some()).count(),
        upper: config.upper.as_ref().map(|u| shown(&u.upper)),
        work: config.upper.as_ref().map(|u| shown(&u.work)),
        io: protocol.map_or(config.io, |p| p.io),
        zero_message_open: protocol.is_some_and(|p| p.zero_message_open),
        threads,
        same_cpu: false,
        marks: layers.names.prefix.into(),
        whiteouts: layers.upper.as_ref().map(|u| {
            match u.can.whiteout {
                WhiteoutForm::Device => "device",
                WhiteoutForm::Xattr => "xattr",
                WhiteoutForm::File => "file",
            }
            .into()
        }),
        metacopy: config.metacopy,
        redirect_dir: config.redirect_dir == crate::config::RedirectDir::On,
        volatile: config.volatile,
        nodes: 0,
        descriptors: 0,
        requests: BTreeMap::new(),
    }
}

impl Mounted {
    /// What was decided.
    pub fn report(&self) -> MountReport {
        let mut report = describe(&self.adapter, Path::new(""), 0);
        if let Some(known) = self.adapter.report.get() {
            report = known.clone();
        }
        report
    }

    /// A handle that unmounts.
    pub fn unmounter(&self) -> Unmounter {
        Unmounter { attached: self.attached.clone() }
    }

    /// Serves requests until the mount is gone for good; then tidies the upper and releases it. `ready` is called once, when
    /// all threads that serve have been started.
    ///
    /// # Errors
    /// What reading the device fails with, and what starting the first thread does.
    pub fn serve(self, ready: impl FnOnce()) -> Result<(), MountError> {
        let Self { session, adapter, attached } = self;
        let result = session.run(attach::open_device, ready).map_err(MountError::Serve);
        // The device is closed: if the mount is still in the tree it is dead, and must not be left there.
        if result.is_err()
            && let Err(e) = attached.detach()
        {
            tracing::debug!("unmount at the end: {e}");
        }
        if let Some(upper) = &adapter.overlay.layers().upper {
            if adapter.overlay.layers().config.volatile
                && result.is_ok()
                && let Err(e) = upper.clear_volatile()
            {
                tracing::error!("take the volatile marker away: {e}");
            }
            if let Err(e) = upper.clean_work() {
                tracing::error!("clean the work directory: {e}");
            }
            upper.release();
        }
        result
    }
}
