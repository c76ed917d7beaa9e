//! Mounts of the specification: option words become attributes, data and a kind.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;

use super::ConfigError;

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
}

impl MountConfig {
    /// From one entry of the specification's `mounts`; `field` names it in errors.
    ///
    /// # Errors
    /// A destination that is not absolute or has `..`, a bind without an absolute source, an id-mapped
    /// mount, or an option that needs what is not supported.
    pub fn from_spec(mount: &Mount, field: &str) -> Result<Self, ConfigError> {
        let destination = mount.destination();
        check_inside(destination, &format!("{field}.destination"))?;
        if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
            return Err(ConfigError::new(
                format!("{field}.uidMappings"),
                "id-mapped mounts are not supported",
            ));
        }
        let mut words = Words::default();
        for (index, word) in mount.options().iter().flatten().enumerate() {
            words
                .add(word)
                .map_err(|problem| ConfigError::new(format!("{field}.options[{index}]"), problem))?;
        }
        let fstype = mount.typ().clone().unwrap_or_default();
        let source = mount.source().clone();
        let kind = if words.bind || fstype == "bind" {
            let Some(source) = source.filter(|source| source.is_absolute()) else {
                return Err(ConfigError::new(format!("{field}.source"), "a bind needs an absolute path"));
            };
            MountKind::Bind { source, recursive: words.recursive }
        } else if fstype == "cgroup" {
            MountKind::Cgroup
        } else if fstype.is_empty() {
            return Err(ConfigError::new(format!("{field}.type"), "is missing"));
        } else {
            let source = source.map_or_else(|| OsString::from(&fstype), PathBuf::into_os_string);
            MountKind::Filesystem { fstype, source, data: words.data }
        };
        Ok(Self {
            destination: destination.clone(),
            kind,
            attributes: words.attributes,
            recursive_attributes: words.recursive_attributes,
            propagation: words.propagation,
        })
    }
}

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
    data: Vec<(String, Option<String>)>,
}

impl Words {
    fn add(&mut self, word: &str) -> Result<(), String> {
        match word {
            "defaults" | "async" => {}
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "remount" | "idmap" | "ridmap" | "tmpcopyup" | "mand" | "iversion" => {
                return Err(format!("{word:?} is not supported"));
            }
            "private" => self.propagation = Some((libc::MS_PRIVATE, false)),
            "rprivate" => self.propagation = Some((libc::MS_PRIVATE, true)),
            "slave" => self.propagation = Some((libc::MS_SLAVE, false)),
            "rslave" => self.propagation = Some((libc::MS_SLAVE, true)),
            "shared" => self.propagation = Some((libc::MS_SHARED, false)),
            "rshared" => self.propagation = Some((libc::MS_SHARED, true)),
            "unbindable" => self.propagation = Some((libc::MS_UNBINDABLE, false)),
            "runbindable" => self.propagation = Some((libc::MS_UNBINDABLE, true)),
            _ => {
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
        MountConfig::from_spec(&mount, "mounts[0]")
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
    fn what_is_not_done_is_refused_by_name() {
        let error = parsed("bind", &["bind", "idmap"]).unwrap_err();
        assert_eq!(error.to_string(), "mounts[0].options[1]: \"idmap\" is not supported");
        let mut mount =
            MountBuilder::default().destination("/a/../b").typ("proc").source("proc").build().unwrap();
        assert!(MountConfig::from_spec(&mount, "m").is_err());
        mount.set_destination("relative".into());
        assert!(MountConfig::from_spec(&mount, "m").is_err());
    }
}
