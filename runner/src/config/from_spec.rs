//! The specification's document to a [`Config`].

use std::ffi::CString;
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, PosixRlimitType, Spec};
use rustix::process::Resource;
use rustix::thread::CapabilitySet;

use super::mounts::{MountConfig, check_inside};
use super::{Config, ConfigError, Device, Process, Rlimit, TerminalSize, User};
use crate::capabilities::{Sets, bits_of};
use crate::namespaces::Namespaces;
use crate::seccomp;

/// `RLIM_INFINITY` as the document writes it.
const UNLIMITED: u64 = u64::MAX;

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
        let mut config = Self {
            root: bundle.join(root.path()),
            root_read_only: root.readonly().unwrap_or(false),
            root_no_devices: false,
            process: process(spec)?,
            hostname: spec.hostname().as_ref().map(Into::into),
            domainname: spec.domainname().as_ref().map(Into::into),
            namespaces: Namespaces::from_spec(linux.namespaces().as_deref().unwrap_or_default())?,
            mounts: Vec::new(),
            devices: Vec::new(),
            device_rules: Vec::new(),
            masked_paths: Vec::new(),
            read_only_paths: Vec::new(),
            sysctl: linux.sysctl().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
            seccomp: Vec::new(),
            cgroup_name: None,
        };
        config.sysctl.sort();
        let uts = config.namespaces.contains(Namespaces::UTS);
        if (config.hostname.is_some() || config.domainname.is_some()) && !uts {
            return Err(ConfigError::new("hostname", "needs a uts namespace of the container's own"));
        }
        for (index, mount) in spec.mounts().iter().flatten().enumerate() {
            config.mounts.push(MountConfig::from_spec(mount, &format!("mounts[{index}]"))?);
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
        if let Some(resources) = linux.resources() {
            config.device_rules = resources.devices().clone().unwrap_or_default();
        }
        if let Some(profile) = linux.seccomp() {
            config.seccomp = seccomp::compile(profile)?;
        }
        config.cgroup_name = linux.cgroups_path().as_ref().map(|path| cgroup_name(path)).transpose()?;
        Ok(config)
    }
}

/// Versions are compatible within a major number (specification, "Specification version").
fn check_version(version: &str) -> Result<(), ConfigError> {
    if version.split('.').next() == Some("1") && version.split('.').count() >= 3 {
        return Ok(());
    }
    Err(ConfigError::new("ociVersion", format!("{version:?} is not supported; 1.x.y is")))
}

fn refuse_unsupported(spec: &Spec) -> Result<(), ConfigError> {
    let refused = |field: &str, asked: bool| match asked {
        true => Err(ConfigError::new(field, "is not supported")),
        false => Ok(()),
    };
    refused("hooks", spec.hooks().is_some())?;
    let Some(linux) = spec.linux() else { return Ok(()) };
    refused("linux.uidMappings", linux.uid_mappings().as_ref().is_some_and(|m| !m.is_empty()))?;
    refused("linux.gidMappings", linux.gid_mappings().as_ref().is_some_and(|m| !m.is_empty()))?;
    refused("linux.intelRdt", linux.intel_rdt().is_some())?;
    refused("linux.personality", linux.personality().is_some())?;
    refused("linux.mountLabel", linux.mount_label().as_ref().is_some_and(|l| !l.is_empty()))?;
    refused("linux.timeOffsets", linux.time_offsets().as_ref().is_some_and(|o| !o.is_empty()))?;
    let propagation = linux.rootfs_propagation().as_deref();
    let usual = matches!(propagation, None | Some("" | "private" | "rprivate"));
    refused("linux.rootfsPropagation", !usual)?;
    if let Some(resources) = linux.resources() {
        let limits = resources.memory().is_some()
            || resources.cpu().is_some()
            || resources.pids().is_some()
            || resources.block_io().is_some()
            || resources.hugepage_limits().as_ref().is_some_and(|l| !l.is_empty())
            || resources.network().is_some()
            || resources.rdma().is_some()
            || resources.unified().as_ref().is_some_and(|u| !u.is_empty());
        refused("linux.resources", limits)?;
    }
    let Some(process) = spec.process() else { return Ok(()) };
    refused("process.apparmorProfile", process.apparmor_profile().as_ref().is_some_and(|p| !p.is_empty()))?;
    refused("process.selinuxLabel", process.selinux_label().as_ref().is_some_and(|l| !l.is_empty()))?;
    refused("process.scheduler", process.scheduler().is_some())?;
    refused("process.ioPriority", process.io_priority().is_some())?;
    refused("process.execCPUAffinity", process.exec_cpu_affinity().is_some())
}

fn process(spec: &Spec) -> Result<Process, ConfigError> {
    let process = spec.process().as_ref().ok_or_else(|| ConfigError::new("process", "is missing"))?;
    let strings = |list: &Option<Vec<String>>, field: &str| -> Result<Vec<CString>, ConfigError> {
        let words = list.iter().flatten().enumerate();
        words.map(|(index, word)| c_string(word, &format!("{field}[{index}]"))).collect()
    };
    let args = strings(process.args(), "process.args")?;
    if args.first().is_none_or(|program| program.is_empty()) {
        return Err(ConfigError::new("process.args", "names no program"));
    }
    let cwd = process.cwd();
    if !cwd.is_absolute() {
        return Err(ConfigError::new("process.cwd", format!("{} is not absolute", cwd.display())));
    }
    let user = process.user();
    let mut capabilities = Sets::default();
    if let Some(sets) = process.capabilities() {
        let bits = |set: &Option<_>| set.as_ref().map_or(CapabilitySet::empty(), bits_of);
        capabilities = Sets {
            bounding: bits(sets.bounding()),
            effective: bits(sets.effective()),
            permitted: bits(sets.permitted()),
            inheritable: bits(sets.inheritable()),
            ambient: bits(sets.ambient()),
        };
    }
    let mut rlimits = Vec::new();
    for (index, limit) in process.rlimits().iter().flatten().enumerate() {
        let field = format!("process.rlimits[{index}]");
        if limit.soft() > limit.hard() {
            return Err(ConfigError::new(field, "soft is above hard"));
        }
        let bound = |value: u64| (value != UNLIMITED).then_some(value);
        let resource = resource(limit.typ())
            .ok_or_else(|| ConfigError::new(format!("{field}.type"), "is not supported"))?;
        if rlimits.iter().any(|other: &Rlimit| other.resource == resource) {
            return Err(ConfigError::new(format!("{field}.type"), "is listed twice"));
        }
        rlimits.push(Rlimit { resource, soft: bound(limit.soft()), hard: bound(limit.hard()) });
    }
    if let Some(adjustment) = process.oom_score_adj()
        && !(-1000..=1000).contains(&adjustment)
    {
        return Err(ConfigError::new("process.oomScoreAdj", "is not within -1000 and 1000"));
    }
    let characters = |count: u64| u16::try_from(count).unwrap_or(u16::MAX);
    let size = process
        .console_size()
        .map(|size| TerminalSize { rows: characters(size.height()), columns: characters(size.width()) });
    Ok(Process {
        args,
        env: strings(process.env(), "process.env")?,
        cwd: cwd.clone(),
        user: User {
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
            umask: user.umask(),
        },
        capabilities,
        rlimits,
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        oom_score_adj: process.oom_score_adj(),
        terminal: process.terminal().unwrap_or(false).then(|| size.unwrap_or_default()),
    })
}

fn c_string(word: &str, field: &str) -> Result<CString, ConfigError> {
    CString::new(word).map_err(|_| ConfigError::new(field, "contains a zero byte"))
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

fn resource(kind: PosixRlimitType) -> Option<Resource> {
    Some(match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    })
}

/// The cgroup is one directory beneath the runtime's own, so its path is one name.
fn cgroup_name(path: &Path) -> Result<String, ConfigError> {
    let field = "linux.cgroupsPath";
    let name = path.to_str().ok_or_else(|| ConfigError::new(field, "is not text"))?;
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(ConfigError::new(field, format!("{name:?} is not a single name")));
    }
    Ok(name.to_owned())
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
        assert_eq!(config.namespaces, Namespaces::all());
        assert!(!config.seccomp.is_empty());
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
                s.linux_mut().as_mut().unwrap().set_cgroups_path(Some("a/b".into()));
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
