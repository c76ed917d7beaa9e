//! What a mount is asked to be: validated values only.
//!
//! Option text is parsed in [`parse`]; everything behind this module sees values whose contradictions were
//! refused already. Nothing here touches the disk.

pub mod parse;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One read-only layer as named by the user or by an image store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LowerSpec {
    /// The layer's tree.
    pub path: PathBuf,
    /// Its layer index, when it is not at the default place beside the tree
    /// (see [`crate::index::default_index_path`]).
    pub index: Option<PathBuf>,
    /// True where the owner of the directory guarantees that it never changes (an image store's layer):
    /// the index is then believed without comparing it with the directory.
    pub immutable: bool,
    /// Filesystems mounted beneath the tree are part of the layer. Otherwise the layer is that one filesystem
    /// alone, as with the kernel's overlayfs, also where something is mounted on it later.
    pub submounts: bool,
}

impl LowerSpec {
    /// A plain directory, with an index used if there is a valid one beside it.
    pub fn plain(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), index: None, immutable: false, submounts: false }
    }
}

/// The writable layer and its scratch directory (same filesystem).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpperSpec {
    /// `upperdir=`: where changes are kept.
    pub upper: PathBuf,
    /// `workdir=`: scratch beside it.
    pub work: PathBuf,
}

/// Which xattr namespace carries our marks (`trusted.overlay.` or `user.overlay.`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MarkNamespace {
    /// `trusted.` where this process may write it on the upper (read it, without an upper), else `user.`.
    #[default]
    Auto,
    /// `trusted.overlay.*`
    Trusted,
    /// `user.overlay.*` (option `userxattr`).
    User,
}

/// How file data travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IoMode {
    /// Decided at mount.
    #[default]
    Auto,
    /// The kernel reads and writes upper files itself (Linux 6.9, CAP_SYS_ADMIN in the initial namespace).
    Passthrough,
    /// Kernel page cache, write-through, opens without a message.
    Cached,
    /// As `Cached`, with the kernel's writeback cache.
    Writeback,
}

/// `redirect_dir=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RedirectDir {
    /// Follow marks, and rename lower directories by writing one.
    #[default]
    On,
    /// Follow marks, write none: renaming a lower directory is EXDEV.
    Follow,
    /// As `Follow` in the kernel's default build: write none, follow those that exist.
    Off,
    /// Neither write nor follow.
    NoFollow,
}

/// `xino=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Xino {
    /// Compose inode numbers of several filesystems into one space where the bits allow it.
    #[default]
    Auto,
    /// As `Auto`.
    On,
    /// Never compose: numbers of other filesystems than the upper's are handed out for the life of the mount.
    Off,
}

/// Ownership shown for every object, whatever the layers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Squash {
    /// `squash_to_uid=` (or 0 with `squash_to_root`).
    pub uid: Option<u32>,
    /// `squash_to_gid=` (or 0 with `squash_to_root`).
    pub gid: Option<u32>,
}

/// One range of `uidmapping=`/`gidmapping=`: `length` ids from `disk` on disk appear from `shown` on.
///
/// Written `DISK:SHOWN:LENGTH`. Neither end runs past id 4294967294, and no two ranges of a map share an id on
/// either side, so the arithmetic of [`IdMap`] cannot wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// First id as stored in the layers.
    pub disk: u32,
    /// First id as seen through the mount.
    pub shown: u32,
    /// Number of ids; never 0.
    pub length: u32,
}

/// An id mapping of any number of ranges; empty means identity.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdMap(pub Vec<IdRange>);

/// The id shown for one that no range maps (`/proc/sys/fs/overflowuid`'s default).
pub const OVERFLOW_ID: u32 = 65534;

impl IdMap {
    /// Id on disk to id shown; unmapped ids become [`OVERFLOW_ID`].
    pub fn to_shown(&self, disk: u32) -> u32 {
        if self.0.is_empty() {
            return disk;
        }
        self.0
            .iter()
            .find(|r| disk >= r.disk && disk - r.disk < r.length)
            .map_or(OVERFLOW_ID, |r| r.shown + (disk - r.disk))
    }

    /// Id shown to id on disk; `None` when no range maps it (the caller answers EINVAL, as idmapped mounts do).
    pub fn to_disk(&self, shown: u32) -> Option<u32> {
        if self.0.is_empty() {
            return Some(shown);
        }
        self.0
            .iter()
            .find(|r| shown >= r.shown && shown - r.shown < r.length)
            .map(|r| r.disk + (shown - r.shown))
    }
}

/// Options that the kernel's mount carries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MountFlags {
    /// `ro` (also set when there is no upper).
    pub read_only: bool,
    /// `nodev`
    pub nodev: bool,
    /// `nosuid`
    pub nosuid: bool,
    /// `noexec`
    pub noexec: bool,
    /// `noatime`
    pub noatime: bool,
    /// `strictatime`; never together with `noatime`.
    pub strictatime: bool,
    /// `nodiratime`
    pub nodiratime: bool,
    /// `lazytime`
    pub lazytime: bool,
    /// `sync`
    pub sync: bool,
    /// `dirsync`
    pub dirsync: bool,
    /// `nosymfollow`
    pub nosymfollow: bool,
    /// `context=` and its relatives as mount data, labels quoted: `context="...",rootcontext="..."`.
    pub context: Option<String>,
    /// False: only the mounting user may use the mount (`noallow_other`).
    pub private: bool,
    /// Shown as the source in /proc/self/mountinfo.
    pub source: String,
}

/// A mount, completely described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Read-only layers, top first; 1 to 500.
    pub lowers: Vec<LowerSpec>,
    /// The writable layer; `None` makes a read-only mount.
    pub upper: Option<UpperSpec>,
    /// Namespace of the marks.
    pub marks: MarkNamespace,
    /// Metadata-only copy-up.
    pub metacopy: bool,
    /// Directory renames by mark.
    pub redirect_dir: RedirectDir,
    /// How file data travels.
    pub io: IoMode,
    /// Inode numbers over several filesystems.
    pub xino: Xino,
    /// No durability: fsync and syncfs do nothing, and the upper is marked until cleanly unmounted.
    pub volatile: bool,
    /// Lower directories may change behind the mount: short cache times, no index, no cached listings.
    pub volatile_lower: bool,
    /// Copies in the upper tell which lower object, in which state, they came from ([`crate::lower_state`]).
    pub record_lower: bool,
    /// Use layer indexes at all.
    pub use_index: bool,
    /// Nobody changes a layer that has an index: each of them is as [`LowerSpec::immutable`].
    pub trust_index: bool,
    /// Ownership override.
    pub squash: Squash,
    /// `uidmapping=`
    pub uid_map: IdMap,
    /// `gidmapping=`
    pub gid_map: IdMap,
    /// `xattr_permissions=2`: owner, mode and type of upper objects are kept in
    /// `user.containers.override_stat`.
    pub xattr_permissions: bool,
    /// POSIX ACLs honoured (`noacl` clears it).
    pub acl: bool,
    /// `static_nlink`: directories always report one link.
    pub static_nlink: bool,
    /// Event-loop threads; 0 chooses by the number of CPUs.
    pub threads: usize,
    /// Serve one busy caller on its own CPU, where this process may.
    pub same_cpu: bool,
    /// Flags of the mount itself.
    pub flags: MountFlags,
}

impl Config {
    /// Defaults over the given layers.
    pub fn new(lowers: Vec<LowerSpec>, upper: Option<UpperSpec>) -> Self {
        let read_only = upper.is_none();
        Self {
            lowers,
            upper,
            marks: MarkNamespace::Auto,
            metacopy: true,
            redirect_dir: RedirectDir::On,
            io: IoMode::Auto,
            xino: Xino::Auto,
            volatile: false,
            volatile_lower: false,
            record_lower: false,
            use_index: true,
            trust_index: false,
            squash: Squash::default(),
            uid_map: IdMap::default(),
            gid_map: IdMap::default(),
            xattr_permissions: false,
            acl: true,
            static_nlink: false,
            threads: 0,
            same_cpu: true,
            flags: MountFlags { read_only, source: "layerfs".into(), ..MountFlags::default() },
        }
    }
}
