//! Which namespaces a container gets of its own, and which it joins.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

use crate::config::ConfigError;

bitflags::bitflags! {
    /// Namespaces, as `CLONE_NEW*` bits.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Namespaces: u64 {
        /// Mounts; always there.
        const MOUNT = libc::CLONE_NEWNS as u64;
        /// Process ids; the program is process 1.
        const PID = libc::CLONE_NEWPID as u64;
        /// Host and domain name.
        const UTS = libc::CLONE_NEWUTS as u64;
        /// System V IPC and POSIX message queues.
        const IPC = libc::CLONE_NEWIPC as u64;
        /// Network interfaces, addresses, ports.
        const NETWORK = libc::CLONE_NEWNET as u64;
        /// The view of cgroup paths.
        const CGROUP = libc::CLONE_NEWCGROUP as u64;
        /// User and group ids, and capabilities over what belongs to them.
        const USER = libc::CLONE_NEWUSER as u64;
        /// Offsets of the monotonic and the boot-time clock.
        const TIME = 0x80;
    }
}

/// All namespaces, with their names in /proc/PID/ns and in the specification.
pub const ALL: [(Namespaces, &str, &str); 8] = [
    (Namespaces::USER, "user", "user"),
    (Namespaces::MOUNT, "mnt", "mount"),
    (Namespaces::PID, "pid", "pid"),
    (Namespaces::NETWORK, "net", "network"),
    (Namespaces::IPC, "ipc", "ipc"),
    (Namespaces::UTS, "uts", "uts"),
    (Namespaces::CGROUP, "cgroup", "cgroup"),
    (Namespaces::TIME, "time", "time"),
];

/// A namespace that exists already, to be entered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Its kind: one bit.
    pub namespace: Namespaces,
    /// A file that stands for it, absolute.
    pub path: PathBuf,
}

impl Namespaces {
    /// From the specification's list: those made new, and those joined.
    ///
    /// # Errors
    /// Names the entry when a namespace is listed twice or its path is not absolute, or when the mount namespace is
    /// missing, without which the machine's own mounts would be changed.
    pub fn from_spec(list: &[LinuxNamespace]) -> Result<(Self, Vec<Joined>), ConfigError> {
        let (mut new, mut joined) = (Self::empty(), Vec::<Joined>::new());
        let mut all = Self::empty();
        for (index, entry) in list.iter().enumerate() {
            let field = |name: &str| format!("linux.namespaces[{index}].{name}");
            let namespace = match entry.typ() {
                LinuxNamespaceType::Mount => Self::MOUNT,
                LinuxNamespaceType::Pid => Self::PID,
                LinuxNamespaceType::Uts => Self::UTS,
                LinuxNamespaceType::Ipc => Self::IPC,
                LinuxNamespaceType::Network => Self::NETWORK,
                LinuxNamespaceType::Cgroup => Self::CGROUP,
                LinuxNamespaceType::User => Self::USER,
                LinuxNamespaceType::Time => Self::TIME,
            };
            if all.contains(namespace) {
                return Err(ConfigError::new(field("type"), format!("{} is listed twice", entry.typ())));
            }
            all |= namespace;
            match entry.path().clone().filter(|path| !path.as_os_str().is_empty()) {
                Some(path) if path.is_absolute() => joined.push(Joined { namespace, path }),
                Some(path) => {
                    return Err(ConfigError::new(field("path"), format!("{path:?} is not absolute")));
                }
                None => new |= namespace,
            }
        }
        if !all.contains(Self::MOUNT) {
            return Err(ConfigError::new("linux.namespaces", "a mount namespace is required"));
        }
        Ok((new, joined))
    }

    /// Those that a child is born in. The cgroup namespace is entered later, by the child: its root is the
    /// cgroup that the process is in at that moment.
    pub(crate) fn at_birth(self) -> u64 {
        self.difference(Self::CGROUP).bits()
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxNamespaceBuilder, get_default_namespaces};

    use super::*;

    fn namespace(typ: LinuxNamespaceType) -> LinuxNamespace {
        LinuxNamespaceBuilder::default().typ(typ).build().unwrap()
    }

    #[test]
    fn the_defaults_are_all_but_user_and_time() {
        let (new, joined) = Namespaces::from_spec(&get_default_namespaces()).unwrap();
        assert_eq!(new, Namespaces::all().difference(Namespaces::USER | Namespaces::TIME));
        assert_eq!(joined, []);
        assert_eq!(new.at_birth() & libc::CLONE_NEWCGROUP as u64, 0);
    }

    #[test]
    fn doubles_relative_paths_and_a_missing_mount_namespace_are_refused() {
        let mount = namespace(LinuxNamespaceType::Mount);
        let error = Namespaces::from_spec(&[mount.clone(), mount.clone()]).unwrap_err();
        assert_eq!(error.to_string(), "linux.namespaces[1].type: mnt is listed twice");
        let error = Namespaces::from_spec(&[namespace(LinuxNamespaceType::Pid)]).unwrap_err();
        assert_eq!(error.to_string(), "linux.namespaces: a mount namespace is required");
        let mut joined = mount;
        joined.set_path(Some("ns/mnt".into()));
        let error = Namespaces::from_spec(&[joined]).unwrap_err();
        assert_eq!(error.field(), "linux.namespaces[0].path");
    }

    #[test]
    fn a_path_is_joined() {
        let mut pid = namespace(LinuxNamespaceType::Pid);
        pid.set_path(Some("/proc/1/ns/pid".into()));
        let (new, joined) = Namespaces::from_spec(&[namespace(LinuxNamespaceType::Mount), pid]).unwrap();
        assert_eq!(new, Namespaces::MOUNT);
        assert_eq!(joined, [Joined { namespace: Namespaces::PID, path: "/proc/1/ns/pid".into() }]);
    }
}
