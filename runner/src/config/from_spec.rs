//! The specification's document to a [`Config`].

use std::path::{Component, Path};

use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceType, LinuxMemoryPolicy, LinuxPersonalityDomain, LinuxResources,
    MemoryPolicyFlagType, MemoryPolicyModeType, Spec,
};

use super::default_spec;
use super::hooks::Hooks;
use super::id_map::IdMap;
use super::mounts::{MountConfig, check_inside, propagation_word};
use super::process_spec::{number_list, process};
use super::{CgroupPath, Choice, Config, ConfigError, Device, MemoryPolicy, NetDevice};
use crate::namespaces::Namespaces;
use crate::seccomp;

/// `PER_LINUX32` of linux/personality.h; `PER_LINUX` is 0.
const PER_LINUX32: u64 = 8;

impl Config {
    /// Validates `spec`; relative paths in it are beneath `bundle`.
    ///
    /// # Errors
    /// The first field that is missing, contradictory, or asks for what this runtime does not do.
    pub fn from_spec(spec: &Spec, bundle: &Path) -> Result<Self, ConfigError> {
        check_version(spec.version())?;
        let root = spec.root().as_ref().ok_or_else(|| ConfigError::new("root", "is missing"))?;
        let linux = spec.linux().as_ref().ok_or_else(|| ConfigError::new("linux", "is missing"))?;
        refuse_unsupported(spec)?;
        let (namespaces, joined) = Namespaces::from_spec(linux.namespaces().as_deref().unwrap_or_default())?;
        let mut config = Self {
            root: bundle.join(root.path()),
            root_read_only: root.readonly().unwrap_or(false),
            root_no_devices: false,
            process: process(spec)?,
            hostname: spec.hostname().as_ref().filter(|name| !name.is_empty()).map(Into::into),
            domainname: spec.domainname().as_ref().filter(|name| !name.is_empty()).map(Into::into),
            namespaces,
            joined,
            uid_map: IdMap::from_spec(
                linux.uid_mappings().as_deref().unwrap_or_default(),
                "linux.uidMappings",
            )?,
            gid_map: IdMap::from_spec(
                linux.gid_mappings().as_deref().unwrap_or_default(),
                "linux.gidMappings",
            )?,
            time_offsets: time_offsets(linux)?,
            root_propagation: root_propagation(linux)?,
            mounts: Vec::new(),
            devices: Vec::new(),
            device_rules: Vec::new(),
            masked_paths: Vec::new(),
            read_only_paths: Vec::new(),
            sysctl: linux.sysctl().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
            seccomp: linux.seccomp().as_ref().map(seccomp::compile).transpose()?,
            personality: personality(linux)?,
            net_devices: net_devices(linux, namespaces)?,
            memory_policy: linux.memory_policy().as_ref().map(memory_policy).transpose()?,
            resources: linux.resources().clone().unwrap_or_default(),
            cgroup: linux.cgroups_path().as_deref().map(cgroup_path).transpose()?.flatten(),
            hooks: Hooks::from_spec(spec)?,
            mount_label: linux.mount_label().clone().filter(|label| !label.is_empty()),
            choice: Choice::default(),
        };
        config.sysctl.sort();
        for (index, mount) in spec.mounts().iter().flatten().enumerate() {
            config.mounts.push(MountConfig::from_spec(mount, bundle, &format!("mounts[{index}]"))?);
        }
        for (index, entry) in linux.devices().iter().flatten().enumerate() {
            config.devices.push(device(entry, &format!("linux.devices[{index}]"))?);
        }
        for (list, to, field) in [
            (linux.masked_paths(), &mut config.masked_paths, "linux.maskedPaths"),
            (linux.readonly_paths(), &mut config.read_only_paths, "linux.readonlyPaths"),
        ] {
            for (index, path) in list.iter().flatten().enumerate() {
                check_inside(Path::new(path), &format!("{field}[{index}]"))?;
                to.push(path.into());
            }
        }
        check_device_rules(&config.resources)?;
        config.add_default_devices();
        config.check_names()?;
        config.check_ids()?;
        Ok(config)
    }

    /// Every container has the specification's default devices ("Default Devices"), and may use them whatever the
    /// document's rules are. Without rules it may use no others.
    fn add_default_devices(&mut self) {
        let dev = Path::new("/dev");
        for (name, major, minor) in default_spec::DEVICES {
            let path = dev.join(name);
            // A /dev that is the machine's has them.
            let is_bound = self.mounts.iter().any(|mount| {
                (mount.destination == dev || mount.destination == path)
                    && matches!(mount.kind, super::MountKind::Bind { .. })
            });
            if !is_bound && !self.devices.iter().any(|device| device.path == path) {
                let kind = rustix::fs::FileType::CharacterDevice;
                self.devices.push(Device { path, kind, major, minor, mode: 0o666, uid: 0, gid: 0 });
            }
        }
        let mut rules = self.resources.devices().clone().unwrap_or_default();
        let defaults = default_spec::device_rules();
        if rules.is_empty() {
            rules = defaults;
        } else {
            // Those behind the first, which denies everything.
            rules.extend(defaults.into_iter().skip(1));
        }
        self.device_rules = rules;
    }

    /// True when the container has a namespace of this kind that is not the runtime's, new or joined.
    pub(crate) fn has_own(&self, namespace: Namespaces) -> bool {
        self.namespaces.contains(namespace) || self.joined.iter().any(|joined| joined.namespace == namespace)
    }

    /// Names and kernel settings are those of namespaces; without such a one they would be the machine's.
    fn check_names(&self) -> Result<(), ConfigError> {
        let uts = self.has_own(Namespaces::UTS);
        for (field, name) in [("hostname", &self.hostname), ("domainname", &self.domainname)] {
            let Some(name) = name else { continue };
            if !uts {
                return Err(ConfigError::new(field, "needs a uts namespace of the container's own"));
            }
            if name.len() > 64 {
                return Err(ConfigError::new(field, "is longer than 64 bytes"));
            }
        }
        for (name, _) in &self.sysctl {
            let field = || format!("linux.sysctl[{name:?}]");
            let plain = name.replace('/', ".");
            let of = |namespace| match self.has_own(namespace) {
                true => Ok(()),
                false => Err(ConfigError::new(field(), "needs such a namespace of the container's own")),
            };
            const IPC: [&str; 7] = [
                "kernel.msgmax",
                "kernel.msgmnb",
                "kernel.msgmni",
                "kernel.sem",
                "kernel.shmall",
                "kernel.shmmax",
                "kernel.shmmni",
            ];
            if IPC.contains(&plain.as_str())
                || plain == "kernel.shm_rmid_forced"
                || plain.starts_with("fs.mqueue.")
            {
                of(Namespaces::IPC)?;
            } else if plain.starts_with("net.") {
                of(Namespaces::NETWORK)?;
            } else if plain == "kernel.domainname" || plain == "kernel.hostname" {
                of(Namespaces::UTS)?;
                let (other, name) = match plain.as_str() {
                    "kernel.hostname" => ("hostname", &self.hostname),
                    _ => ("domainname", &self.domainname),
                };
                if name.is_some() {
                    return Err(ConfigError::new(field(), format!("contradicts {other}: give one of them")));
                }
            } else if plain.starts_with("user.") {
                of(Namespaces::USER)?;
            } else {
                return Err(ConfigError::new(
                    field(),
                    "is a setting of the whole machine, not of a namespace",
                ));
            }
            if name.split(['.', '/']).any(|part| part.is_empty()) || name.contains("..") {
                return Err(ConfigError::new(field(), "is not a name"));
            }
        }
        Ok(())
    }

    fn check_ids(&self) -> Result<(), ConfigError> {
        let maps = [(&self.uid_map, "linux.uidMappings"), (&self.gid_map, "linux.gidMappings")];
        if !self.namespaces.contains(Namespaces::USER) {
            let joins = self.has_own(Namespaces::USER);
            return match maps.iter().find(|(map, _)| !map.is_empty()) {
                // Engines repeat the maps of the namespace that they have made.
                Some((_, field)) if !joins => Err(ConfigError::new(*field, "needs a new user namespace")),
                _ => self.check_time(),
            };
        }
        for (map, field) in maps {
            if map.is_empty() {
                return Err(ConfigError::new(field, "is missing: a new user namespace needs it"));
            }
        }
        self.uid_map.check_outside("/proc/self/uid_map", "linux.uidMappings")?;
        self.gid_map.check_outside("/proc/self/gid_map", "linux.gidMappings")?;
        let user = &self.process.user;
        let exists = |map: &IdMap, id: u32, field: String| match map.contains(id) {
            true => Ok(()),
            false => Err(ConfigError::new(field, format!("{id} is not mapped in the user namespace"))),
        };
        exists(&self.uid_map, user.uid, "process.user.uid".into())?;
        exists(&self.gid_map, user.gid, "process.user.gid".into())?;
        for (index, group) in user.groups.iter().enumerate() {
            exists(&self.gid_map, *group, format!("process.user.additionalGids[{index}]"))?;
        }
        self.check_time()
    }

    fn check_time(&self) -> Result<(), ConfigError> {
        if !self.time_offsets.is_empty() && !self.namespaces.contains(Namespaces::TIME) {
            return Err(ConfigError::new("linux.timeOffsets", "needs a new time namespace"));
        }
        Ok(())
    }
}

/// Versions are compatible within a major number (specification, "Specification version").
fn check_version(version: &str) -> Result<(), ConfigError> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let mut parts = core.split('.');
    if parts.next() == Some("1") && parts.clone().count() == 2 && parts.all(is_number) {
        return Ok(());
    }
    Err(ConfigError::new("ociVersion", format!("{version:?} is not supported; 1.x.y is")))
}

fn refuse_unsupported(spec: &Spec) -> Result<(), ConfigError> {
    let refused = |field: &str, asked: bool| match asked {
        true => Err(ConfigError::new(field, "is not supported")),
        false => Ok(()),
    };
    refused("vm", spec.vm().is_some())?;
    refused("windows", spec.windows().is_some())?;
    refused("solaris", spec.solaris().is_some())?;
    refused("zos", spec.zos().is_some())?;
    let Some(linux) = spec.linux() else { return Ok(()) };
    refused("linux.intelRdt", linux.intel_rdt().is_some())?;
    if linux.mount_label().as_ref().is_some_and(|label| !label.is_empty()) {
        super::process_spec::require_selinux("linux.mountLabel")?;
    }
    Ok(())
}

fn root_propagation(linux: &Linux) -> Result<Option<(u64, bool)>, ConfigError> {
    match linux.rootfs_propagation().as_deref() {
        None | Some("") => Ok(None),
        Some(word) => propagation_word(word).map(Some).ok_or_else(|| {
            let problem = format!("{word:?} is none of shared, slave, private, unbindable and their r forms");
            ConfigError::new("linux.rootfsPropagation", problem)
        }),
    }
}

fn time_offsets(linux: &Linux) -> Result<Vec<(String, i64, u32)>, ConfigError> {
    let mut offsets = Vec::new();
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        let field = format!("linux.timeOffsets.{clock}");
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(ConfigError::new(field, "is neither monotonic nor boottime"));
        }
        let nanoseconds = offset.nanosecs().unwrap_or(0);
        if nanoseconds >= 1_000_000_000 {
            return Err(ConfigError::new(format!("{field}.nanosecs"), "is not below 1000000000"));
        }
        offsets.push((clock.clone(), offset.secs().unwrap_or(0), nanoseconds));
    }
    offsets.sort();
    Ok(offsets)
}

fn personality(linux: &Linux) -> Result<Option<u64>, ConfigError> {
    let Some(personality) = linux.personality() else { return Ok(None) };
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(ConfigError::new("linux.personality.flags", "are not defined by the specification"));
    }
    Ok(Some(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
    }))
}

/// Names as the kernel takes them (`dev_valid_name`), with a namespace of the container's own to move them to.
fn net_devices(linux: &Linux, namespaces: Namespaces) -> Result<Vec<NetDevice>, ConfigError> {
    let mut devices = Vec::new();
    for (name, device) in linux.net_devices().iter().flatten() {
        let field = format!("linux.netDevices[{name:?}]");
        let inside =
            device.name().clone().filter(|inside| !inside.is_empty()).unwrap_or_else(|| name.clone());
        for (field, name) in [(field.clone(), name), (format!("{field}.name"), &inside)] {
            let is_valid = (1..=15).contains(&name.len())
                && name != "."
                && name != ".."
                && !name
                    .contains(|letter: char| matches!(letter, '/' | ':' | '\0') || letter.is_whitespace());
            if !is_valid {
                return Err(ConfigError::new(field, format!("{name:?} is no name of an interface")));
            }
        }
        // A namespace that is joined is another's, who may have no use for it.
        if !namespaces.contains(Namespaces::NETWORK) {
            return Err(ConfigError::new(field, "needs a new network namespace"));
        }
        devices.push(NetDevice { name: name.clone(), inside });
    }
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    let mut names: Vec<_> = devices.iter().map(|device| &device.inside).collect();
    names.sort();
    names.dedup();
    if names.len() < devices.len() {
        return Err(ConfigError::new("linux.netDevices", "two interfaces would have the same name"));
    }
    Ok(devices)
}

/// Numbers of linux/mempolicy.h. The kernel decides which of them go together.
fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<MemoryPolicy, ConfigError> {
    let mode = match policy.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten().fold(0, |bits, flag| {
        bits | match flag {
            MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
            MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
            MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
        }
    });
    let nodes = match policy.nodes().as_deref() {
        None | Some("") => Vec::new(),
        Some(text) => number_list(text).ok_or_else(|| {
            let problem = format!("{text:?} is not a list of nodes such as 0-3,7");
            ConfigError::new("linux.memoryPolicy.nodes", problem)
        })?,
    };
    Ok(MemoryPolicy { mode: mode | flags, nodes })
}

/// Rules whose words would be taken for fewer than they say, or for all.
fn check_device_rules(resources: &LinuxResources) -> Result<(), ConfigError> {
    for (index, rule) in resources.devices().iter().flatten().enumerate() {
        let field = |name: &str| format!("linux.resources.devices[{index}].{name}");
        if let Some(access) = rule.access()
            && access.chars().any(|letter| !matches!(letter, 'r' | 'w' | 'm'))
        {
            let problem = format!("{access:?} has other letters than r, w and m");
            return Err(ConfigError::new(field("access"), problem));
        }
        for (name, number) in [("major", rule.major()), ("minor", rule.minor())] {
            if let Some(number) = number
                && number != -1
                && u32::try_from(number).is_err()
            {
                let problem = format!("{number} is no device number; -1 is all of them");
                return Err(ConfigError::new(field(name), problem));
            }
        }
    }
    Ok(())
}

fn device(device: &LinuxDevice, field: &str) -> Result<Device, ConfigError> {
    check_inside(device.path(), &format!("{field}.path"))?;
    let kind = match device.typ() {
        LinuxDeviceType::B => rustix::fs::FileType::BlockDevice,
        LinuxDeviceType::C | LinuxDeviceType::U => rustix::fs::FileType::CharacterDevice,
        LinuxDeviceType::P => rustix::fs::FileType::Fifo,
        LinuxDeviceType::A => return Err(ConfigError::new(format!("{field}.type"), "is not a device type")),
    };
    let number = |value: i64, name: &str| {
        u32::try_from(value)
            .map_err(|_| ConfigError::new(format!("{field}.{name}"), format!("{value} is no device number")))
    };
    Ok(Device {
        path: device.path().clone(),
        kind,
        major: number(device.major(), "major")?,
        minor: number(device.minor(), "minor")?,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

/// An absolute path is beneath the root of the hierarchies, a relative one beneath the runtime's own cgroup.
fn cgroup_path(path: &Path) -> Result<Option<CgroupPath>, ConfigError> {
    let field = "linux.cgroupsPath";
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    if path.to_str().is_none_or(|text| text.contains(['\n', '\0'])) {
        return Err(ConfigError::new(field, "is not text"));
    }
    if path.components().any(|part| matches!(part, Component::ParentDir)) {
        return Err(ConfigError::new(field, "contains \"..\""));
    }
    let names: std::path::PathBuf =
        path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    if names.as_os_str().is_empty() {
        return Err(ConfigError::new(field, "is the root cgroup, which cannot be a container's own"));
    }
    Ok(Some(if path.is_absolute() { CgroupPath::Absolute(names) } else { CgroupPath::Relative(names) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::default_spec::{DefaultSpec, default_spec};

    fn spec() -> Spec {
        default_spec(&DefaultSpec { root: "/srv/root".into(), ..DefaultSpec::default() })
    }

    #[test]
    fn the_default_specification_is_valid() {
        let config = Config::from_spec(&spec(), Path::new("/bundle")).unwrap();
        assert_eq!(config.root, Path::new("/srv/root"));
        assert_eq!(config.namespaces, Namespaces::all().difference(Namespaces::USER | Namespaces::TIME));
        assert!(config.seccomp.is_some());
        assert!(config.masked_paths.iter().any(|path| path == Path::new("/proc/kcore")));
        assert_eq!(config.process.capabilities.bounding.bits().count_ones(), 14);
    }

    #[test]
    fn errors_name_the_field() {
        let refused = |change: &dyn Fn(&mut Spec)| {
            let mut spec = spec();
            change(&mut spec);
            Config::from_spec(&spec, Path::new("/bundle")).unwrap_err().field().to_owned()
        };
        assert_eq!(
            refused(&|s| {
                s.set_version("2.0.0".into());
            }),
            "ociVersion"
        );
        assert_eq!(
            refused(&|s| {
                s.set_root(None);
            }),
            "root"
        );
        assert_eq!(
            refused(&|s| {
                s.set_linux(None);
            }),
            "linux"
        );
        assert_eq!(
            refused(&|s| {
                s.set_process(None);
            }),
            "process"
        );
        assert_eq!(
            refused(&|s| {
                let process = s.process_mut().as_mut().unwrap();
                process.set_args(Some(vec![]));
            }),
            "process.args"
        );
        assert_eq!(
            refused(&|s| {
                let process = s.process_mut().as_mut().unwrap();
                process.set_env(Some(vec!["A=1".into(), "B=\0".into()]));
            }),
            "process.env[1]"
        );
        assert_eq!(
            refused(&|s| {
                s.linux_mut().as_mut().unwrap().set_cgroups_path(Some("a/../../b".into()));
            }),
            "linux.cgroupsPath"
        );
    }

    #[test]
    fn a_relative_root_is_beneath_the_bundle() {
        let mut spec = spec();
        spec.root_mut().as_mut().unwrap().set_path("rootfs".into());
        let config = Config::from_spec(&spec, Path::new("/bundle")).unwrap();
        assert_eq!(config.root, Path::new("/bundle/rootfs"));
    }
}
