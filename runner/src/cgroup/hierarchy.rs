//! Which cgroup hierarchies the machine has, and where this process is in each.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::CgroupError;
use crate::mountinfo::unescape;

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchy {
    /// Version 2.
    Unified {
        /// Name of its directory in `/sys/fs/cgroup`, when it is not all of it.
        name: String,
        /// The directory that it is mounted at.
        top: PathBuf,
        /// The directory of this process's cgroup, if it can be seen.
        own: Option<PathBuf>,
    },
    /// Version 1.
    Legacy {
        /// Name of its directory in `/sys/fs/cgroup`.
        name: String,
        /// Its controllers, or `name=...`: what a mount of it needs.
        options: Vec<String>,
        /// The directory that it is mounted at.
        top: PathBuf,
        /// The directory of this process's cgroup, if it can be seen.
        own: Option<PathBuf>,
    },
}

impl Hierarchy {
    /// Name of its directory in `/sys/fs/cgroup`.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Unified { name, .. } | Self::Legacy { name, .. } => name.clone(),
        }
    }

    /// The directory that it is mounted at.
    #[must_use]
    pub fn top_directory(&self) -> &Path {
        match self {
            Self::Unified { top, .. } | Self::Legacy { top, .. } => top,
        }
    }

    /// The directory of this process's cgroup, if it can be seen.
    #[must_use]
    pub fn own_directory(&self) -> Option<&Path> {
        match self {
            Self::Unified { own, .. } | Self::Legacy { own, .. } => own.as_deref(),
        }
    }

    /// True for version 1 with a controller: `name=systemd` has none.
    #[must_use]
    pub fn has_legacy_controllers(&self) -> bool {
        match self {
            Self::Unified { .. } => false,
            Self::Legacy { options, .. } => options.iter().any(|option| !option.starts_with("name=")),
        }
    }
}

/// The machine's hierarchies as this process sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies(Vec<Hierarchy>);

impl Hierarchies {
    /// Reads /proc/self/mountinfo and /proc/self/cgroup.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn discover() -> Result<Self, CgroupError> {
        let mounts = fs::read("/proc/self/mountinfo").map_err(CgroupError::Discover)?;
        let memberships = fs::read_to_string("/proc/self/cgroup").map_err(CgroupError::Discover)?;
        Ok(Self::parse(&mounts, &memberships))
    }

    /// All of them, in the order of their mounts.
    #[must_use]
    pub fn all(&self) -> &[Hierarchy] {
        &self.0
    }

    /// True when swap can be limited: the kernel counts it by cgroup.
    #[must_use]
    pub fn can_limit_swap(&self) -> bool {
        self.0.iter().any(|hierarchy| match hierarchy {
            Hierarchy::Legacy { top, .. } => top.join("memory.memsw.limit_in_bytes").exists(),
            // The topmost cgroup has no limits.
            Hierarchy::Unified { top, own, .. } => match own {
                Some(own) if own != top => own.join("memory.swap.max").exists(),
                _ => {
                    let controllers = fs::read_to_string(top.join("cgroup.controllers")).unwrap_or_default();
                    controllers.split_whitespace().any(|name| name == "memory")
                        && Path::new("/proc/swaps").exists()
                }
            },
        })
    }

    fn parse(mounts: &[u8], memberships: &str) -> Self {
        let mut found: Vec<Hierarchy> = Vec::new();
        for mount in mounts.split(|byte| *byte == b'\n').filter_map(CgroupMount::parse) {
            let hierarchy = mount.hierarchy(memberships);
            // A second mount of the same hierarchy adds nothing.
            if let Some(hierarchy) = hierarchy
                && !found.iter().any(|other| other.is_same(&hierarchy))
            {
                found.push(hierarchy);
            }
        }
        Self(found)
    }
}

impl Hierarchy {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unified { .. }, Self::Unified { .. }) => true,
            (Self::Legacy { options: a, .. }, Self::Legacy { options: b, .. }) => a == b,
            _ => false,
        }
    }
}

/// What a line of mountinfo says about a cgroup mount.
struct CgroupMount {
    root: PathBuf,
    point: PathBuf,
    is_unified: bool,
    super_options: Vec<String>,
}

impl CgroupMount {
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        // A variable number of optional fields ends with "-".
        let separator = fields.iter().position(|field| *field == b"-")?;
        let fstype = *fields.get(separator + 1)?;
        if fstype != b"cgroup" && fstype != b"cgroup2" {
            return None;
        }
        let options = String::from_utf8_lossy(fields.get(separator + 3)?).into_owned();
        Some(Self {
            root: unescape(fields.get(3)?),
            point: unescape(fields.get(4)?),
            is_unified: fstype == b"cgroup2",
            super_options: options.split(',').map(str::to_owned).collect(),
        })
    }

    fn hierarchy(self, memberships: &str) -> Option<Hierarchy> {
        let name = self.point.file_name()?.to_str()?.to_owned();
        for line in memberships.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            if self.is_unified {
                if id == "0" && controllers.is_empty() {
                    let own = self.directory_of(path);
                    return Some(Hierarchy::Unified { name, top: self.point, own });
                }
                continue;
            }
            if controllers.is_empty() {
                continue;
            }
            let options: Vec<String> = controllers.split(',').map(str::to_owned).collect();
            if options.iter().all(|option| self.super_options.contains(option)) {
                let own = self.directory_of(path);
                return Some(Hierarchy::Legacy { name, options, top: self.point, own });
            }
        }
        None
    }

    /// Where a cgroup is that `/proc/self/cgroup` names: the mount may show a part of the hierarchy only.
    fn directory_of(&self, path: &str) -> Option<PathBuf> {
        let path = Path::new(path);
        // "/.." is beyond the cgroup namespace: it cannot be seen.
        if path.components().any(|part| matches!(part, Component::ParentDir)) {
            return None;
        }
        let below = path.strip_prefix(&self.root).ok()?;
        Some(if below.as_os_str().is_empty() { self.point.clone() } else { self.point.join(below) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_machine() {
        let memberships = "9:name=systemd:/\n4:memory:/a/b\n1:cpu,cpuacct:/c\n0::/u\n";
        let found = Hierarchies::parse(HYBRID.as_bytes(), memberships);
        let names: Vec<_> = found.all().iter().map(Hierarchy::name).collect();
        assert_eq!(names, ["cpu,cpuacct", "memory", "systemd", "unified"]);
        let own: Vec<_> = found.all().iter().map(|h| h.own_directory().unwrap().to_str().unwrap()).collect();
        assert_eq!(
            own,
            [
                "/sys/fs/cgroup/cpu,cpuacct/c",
                "/sys/fs/cgroup/memory/a/b",
                "/sys/fs/cgroup/systemd",
                "/sys/fs/cgroup/unified/u"
            ]
        );
        let Hierarchy::Legacy { options, .. } = &found.all()[2] else { panic!("not legacy") };
        assert_eq!(options, &["name=systemd"]);
    }

    #[test]
    fn a_mount_of_a_part_and_a_path_beyond_the_namespace() {
        let mounts = b"30 23 0:26 /user/me /sys/fs/cg\\040roup rw - cgroup2 cgroup2 rw\n";
        let found = Hierarchies::parse(mounts, "0::/user/me/session\n");
        assert_eq!(found.all()[0].own_directory(), Some(Path::new("/sys/fs/cg roup/session")));
        let found = Hierarchies::parse(mounts, "0::/elsewhere\n");
        assert_eq!(found.all()[0].own_directory(), None);
        let found = Hierarchies::parse(mounts, "0::/../x\n");
        assert_eq!(found.all()[0].own_directory(), None);
    }

    #[test]
    fn garbage_is_nothing() {
        assert_eq!(Hierarchies::parse(b"\n- \nx - cgroup\n\xff\xff", "::\n\n0"), Hierarchies::default());
    }
}
