//! Mounts of the specification: option words become attributes, data and a kind.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;

use super::ConfigError;
use super::id_map::IdMap;

/// `MOUNT_ATTR_*` of linux/mount.h.
pub(crate) mod attribute {
    pub(crate) const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
    pub(crate) const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
    pub(crate) const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
    pub(crate) const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
    pub(crate) const ATIME_MASK: u64 = libc::MOUNT_ATTR__ATIME;
    pub(crate) const RELATIME: u64 = libc::MOUNT_ATTR_RELATIME;
    pub(crate) const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
    pub(crate) const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
    pub(crate) const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
    pub(crate) const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;
}

/// Mount attributes to switch on and off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` bits to clear.
    pub clear: u64,
}

impl Attributes {
    fn turn_on(&mut self, bits: u64) {
        self.set |= bits;
        self.clear &= !bits;
    }

    fn turn_off(&mut self, bits: u64) {
        self.clear |= bits;
        self.set &= !bits;
    }

    /// The times of access are one choice of several values, not a bit each.
    fn choose_atime(&mut self, value: u64) {
        self.clear |= attribute::ATIME_MASK;
        self.set = (self.set & !attribute::ATIME_MASK) | value;
    }

    /// True when nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// A new instance of a filesystem type.
    Filesystem {
        /// Type, as in /proc/filesystems.
        fstype: String,
        /// Shown as source.
        source: OsString,
        /// The filesystem's own options: name, and value if it has one.
        data: Vec<(String, Option<String>)>,
    },
    /// A file or tree of the machine.
    Bind {
        /// Absolute.
        source: PathBuf,
        /// Mounts below it too.
        recursive: bool,
    },
    /// The container's own cgroups, in the form that the machine has (unified, or one mount per hierarchy).
    Cgroup,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountConfig {
    /// Absolute path in the container, without `..`.
    pub destination: PathBuf,
    /// What.
    pub kind: MountKind,
    /// Attributes of this mount.
    pub attributes: Attributes,
    /// Attributes of this mount and all below it (`rro` and its relatives).
    pub recursive_attributes: Attributes,
    /// `MS_PRIVATE` and its relatives, with the mounts below when the second value is true.
    pub propagation: Option<(u64, bool)>,
    /// Owners are shown through a map of ids.
    pub id_map: Option<MountIdMap>,
    /// A new tmpfs begins with what the root filesystem has at its place.
    pub copy_up: bool,
    /// The mount that is at the place already changes its attributes; nothing is mounted.
    pub remount: bool,
}

/// Owners of a mount's files as seen through it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountIdMap {
    /// Users: ids of the filesystem as `container`, shown as `host`. Empty: the container's own map.
    pub uid_map: IdMap,
    /// Groups.
    pub gid_map: IdMap,
    /// Mounts below it too.
    pub recursive: bool,
}

impl MountConfig {
    /// From one entry of the specification's `mounts`; `field` names it in errors.
    ///
    /// # Errors
    /// A destination that climbs, a bind without a source, half a map of ids, or an option that makes no sense.
    pub fn from_spec(mount: &Mount, bundle: &Path, field: &str) -> Result<Self, ConfigError> {
        // Relative ones were allowed before version 1.0.2 of the specification, and are beneath the root.
        let destination = Path::new("/").join(mount.destination());
        check_inside(&destination, &format!("{field}.destination"))?;
        let mut words = Words::default();
        for (index, word) in mount.options().iter().flatten().enumerate() {
            words
                .add(word)
                .map_err(|problem| ConfigError::new(format!("{field}.options[{index}]"), problem))?;
        }
        let fstype = mount.typ().clone().unwrap_or_default();
        let source = mount.source().clone();
        let kind = if words.bind || fstype == "bind" {
            let source = source.filter(|source| !source.as_os_str().is_empty());
            let Some(source) = source.map(|source| bundle.join(source)) else {
                return Err(ConfigError::new(format!("{field}.source"), "a bind needs a path"));
            };
            MountKind::Bind { source, recursive: words.recursive }
        } else if fstype == "cgroup" || fstype == "cgroup2" {
            MountKind::Cgroup
        } else if fstype.is_empty() {
            return Err(ConfigError::new(format!("{field}.type"), "is missing"));
        } else {
            let source = source.map_or_else(|| OsString::from(&fstype), PathBuf::into_os_string);
            MountKind::Filesystem { fstype, source, data: words.data }
        };
        let id_map = id_map(mount, words.id_map, field)?;
        let is_tmpfs = matches!(&kind, MountKind::Filesystem { fstype, .. } if fstype == "tmpfs");
        if words.copy_up && !is_tmpfs {
            return Err(ConfigError::new(format!("{field}.options"), "tmpcopyup is for a tmpfs"));
        }
        if id_map.is_some() && !matches!(kind, MountKind::Bind { .. }) {
            return Err(ConfigError::new(format!("{field}.options"), "a map of ids is for a bind"));
        }
        Ok(Self {
            destination,
            id_map,
            copy_up: words.copy_up,
            remount: words.remount,
            kind,
            attributes: words.attributes,
            recursive_attributes: words.recursive_attributes,
            propagation: words.propagation,
        })
    }
}

/// The maps of an entry, or the option words that ask for the container's.
fn id_map(mount: &Mount, word: Option<bool>, field: &str) -> Result<Option<MountIdMap>, ConfigError> {
    let map = |list: &Option<Vec<_>>, name: &str| {
        IdMap::from_spec(list.as_deref().unwrap_or_default(), &format!("{field}.{name}"))
    };
    let uid_map = map(mount.uid_mappings(), "uidMappings")?;
    let gid_map = map(mount.gid_mappings(), "gidMappings")?;
    if uid_map.is_empty() != gid_map.is_empty() {
        let missing = if uid_map.is_empty() { "uidMappings" } else { "gidMappings" };
        return Err(ConfigError::new(
            format!("{field}.{missing}"),
            "is missing, while the other map is there",
        ));
    }
    if uid_map.is_empty() && word.is_none() {
        return Ok(None);
    }
    Ok(Some(MountIdMap { uid_map, gid_map, recursive: word.unwrap_or(false) }))
}

/// `MS_*` of a propagation word, and whether it means the mounts below too.
pub(super) fn propagation_word(word: &str) -> Option<(u64, bool)> {
    let (plain, recursive) = match word.strip_prefix('r') {
        Some(plain) => (plain, true),
        None => (word, false),
    };
    let bits = match plain {
        "private" => libc::MS_PRIVATE,
        "slave" => libc::MS_SLAVE,
        "shared" => libc::MS_SHARED,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some((bits, recursive))
}

/// Every option word that is not handed to the filesystem.
#[must_use]
pub fn known_words() -> Vec<&'static str> {
    let mut words = vec![
        "bind",
        "rbind",
        "remount",
        "idmap",
        "ridmap",
        "tmpcopyup",
        "defaults",
        "async",
        "sync",
        "dirsync",
        "lazytime",
        "nolazytime",
        "mand",
        "nomand",
        "iversion",
        "noiversion",
        "silent",
        "loud",
        "private",
        "rprivate",
        "slave",
        "rslave",
        "shared",
        "rshared",
        "unbindable",
        "runbindable",
    ];
    words.extend(ATTRIBUTE_WORDS);
    words.extend(RECURSIVE_WORDS);
    words.sort_unstable();
    words
}

const ATTRIBUTE_WORDS: [&str; 18] = [
    "ro",
    "rw",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noexec",
    "exec",
    "nodiratime",
    "diratime",
    "nosymfollow",
    "symfollow",
    "relatime",
    "norelatime",
    "noatime",
    "atime",
    "strictatime",
    "nostrictatime",
];
const RECURSIVE_WORDS: [&str; 18] = [
    "rro",
    "rrw",
    "rnosuid",
    "rsuid",
    "rnodev",
    "rdev",
    "rnoexec",
    "rexec",
    "rnodiratime",
    "rdiratime",
    "rnosymfollow",
    "rsymfollow",
    "rrelatime",
    "rnorelatime",
    "rnoatime",
    "ratime",
    "rstrictatime",
    "rnostrictatime",
];

/// Refuses a path that is not absolute or climbs.
pub(crate) fn check_inside(path: &Path, field: &str) -> Result<(), ConfigError> {
    if !path.is_absolute() {
        return Err(ConfigError::new(field, format!("{} is not absolute", path.display())));
    }
    if path.components().any(|part| matches!(part, Component::ParentDir)) {
        return Err(ConfigError::new(field, format!("{} contains \"..\"", path.display())));
    }
    Ok(())
}

#[derive(Default)]
struct Words {
    bind: bool,
    recursive: bool,
    attributes: Attributes,
    recursive_attributes: Attributes,
    propagation: Option<(u64, bool)>,
    id_map: Option<bool>,
    copy_up: bool,
    remount: bool,
    data: Vec<(String, Option<String>)>,
}

impl Words {
    fn add(&mut self, word: &str) -> Result<(), String> {
        match word {
            "defaults" | "async" => {}
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "remount" => self.remount = true,
            "idmap" => self.id_map = Some(false),
            "ridmap" => self.id_map = Some(true),
            "tmpcopyup" => self.copy_up = true,
            // Flags of the superblock that have no meaning any more, and of mount(8) itself.
            "mand" | "nomand" | "iversion" | "noiversion" | "silent" | "loud" => {}
            "nolazytime" => {}
            _ => {
                if let Some(propagation) = propagation_word(word) {
                    self.propagation = Some(propagation);
                    return Ok(());
                }
                if attribute_word(word, &mut self.attributes) {
                    return Ok(());
                }
                if let Some(plain) = word.strip_prefix('r')
                    && attribute_word(plain, &mut self.recursive_attributes)
                {
                    return Ok(());
                }
                let (name, value) = match word.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (word, None),
                };
                if name.is_empty() || word.contains('\0') {
                    return Err(format!("{word:?} is no option"));
                }
                self.data.push((name.to_owned(), value));
            }
        }
        Ok(())
    }
}

/// Applies one attribute word; false when it is none. The recursive forms are the same words after an `r`.
fn attribute_word(word: &str, attributes: &mut Attributes) -> bool {
    match word {
        "ro" => attributes.turn_on(attribute::RDONLY),
        "rw" => attributes.turn_off(attribute::RDONLY),
        "nosuid" => attributes.turn_on(attribute::NOSUID),
        "suid" => attributes.turn_off(attribute::NOSUID),
        "nodev" => attributes.turn_on(attribute::NODEV),
        "dev" => attributes.turn_off(attribute::NODEV),
        "noexec" => attributes.turn_on(attribute::NOEXEC),
        "exec" => attributes.turn_off(attribute::NOEXEC),
        "nodiratime" => attributes.turn_on(attribute::NODIRATIME),
        "diratime" => attributes.turn_off(attribute::NODIRATIME),
        "nosymfollow" => attributes.turn_on(attribute::NOSYMFOLLOW),
        "symfollow" => attributes.turn_off(attribute::NOSYMFOLLOW),
        "relatime" | "atime" | "nostrictatime" => attributes.choose_atime(attribute::RELATIME),
        "noatime" => attributes.choose_atime(attribute::NOATIME),
        "strictatime" | "norelatime" => attributes.choose_atime(attribute::STRICTATIME),
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::MountBuilder;

    use super::*;

    fn parsed(typ: &str, options: &[&str]) -> Result<MountConfig, ConfigError> {
        let mount = MountBuilder::default()
            .destination("/target")
            .typ(typ)
            .source("/source")
            .options(options.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
            .build()
            .unwrap();
        MountConfig::from_spec(&mount, Path::new("/bundle"), "mounts[0]")
    }

    #[test]
    fn words_become_attributes_and_the_rest_is_data() {
        let mount = parsed("tmpfs", &["nosuid", "ro", "strictatime", "mode=755", "size=64k", "rw"]).unwrap();
        assert_eq!(mount.attributes.set, attribute::NOSUID | attribute::STRICTATIME);
        assert_eq!(mount.attributes.clear, attribute::RDONLY | attribute::ATIME_MASK);
        let MountKind::Filesystem { data, fstype, .. } = mount.kind else { panic!("no filesystem") };
        assert_eq!(fstype, "tmpfs");
        assert_eq!(data, [("mode".into(), Some("755".into())), ("size".into(), Some("64k".into()))]);
    }

    #[test]
    fn recursive_words_are_kept_apart_from_plain_ones() {
        let mount = parsed("bind", &["rbind", "rro", "rnosuid", "rprivate", "relatime"]).unwrap();
        assert_eq!(mount.recursive_attributes.set, attribute::RDONLY | attribute::NOSUID);
        assert_eq!(mount.attributes.clear, attribute::ATIME_MASK);
        assert_eq!(mount.propagation, Some((libc::MS_PRIVATE, true)));
        assert_eq!(mount.kind, MountKind::Bind { source: "/source".into(), recursive: true });
    }

    #[test]
    fn every_known_word_is_known() {
        for word in known_words().into_iter().filter(|word| !matches!(*word, "sync" | "dirsync" | "lazytime"))
        {
            let mut words = Words::default();
            words.add(word).unwrap();
            assert!(words.data.is_empty(), "{word} is taken for the filesystem's");
        }
    }

    #[test]
    fn half_a_map_and_climbing_places_are_refused() {
        let json = r#"{"destination":"/t","source":"/s","type":"bind","options":["bind"],
                       "uidMappings":[{"containerID":0,"hostID":1,"size":1}]}"#;
        let error =
            MountConfig::from_spec(&serde_json::from_str(json).unwrap(), Path::new("/b"), "mounts[3]")
                .unwrap_err();
        assert_eq!(error.field(), "mounts[3].gidMappings");
        let mount =
            MountBuilder::default().destination("/a/../b").typ("proc").source("proc").build().unwrap();
        assert!(MountConfig::from_spec(&mount, Path::new("/b"), "m").is_err());
    }

    #[test]
    fn a_relative_source_is_beneath_the_bundle() {
        let json = r#"{"destination":"t","source":"s","options":["rbind","ridmap"]}"#;
        let mount =
            MountConfig::from_spec(&serde_json::from_str(json).unwrap(), Path::new("/b"), "m").unwrap();
        assert_eq!(mount.kind, MountKind::Bind { source: "/b/s".into(), recursive: true });
        assert_eq!(mount.destination, Path::new("/t"));
        assert!(mount.id_map.is_some_and(|map| map.recursive && map.uid_map.is_empty()));
    }
}
