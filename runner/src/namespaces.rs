//! Which namespaces a container gets of its own.

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

use crate::config::ConfigError;

bitflags::bitflags! {
    /// Namespaces made new for a container, as `CLONE_NEW*` bits.
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
    }
}

impl Namespaces {
    /// From the specification's list.
    ///
    /// # Errors
    /// Names the entry when a namespace is listed twice, is to be joined by path, is of a type that is not
    /// made here, or when the mount namespace is missing, without which the machine's own mounts would be
    /// changed.
    pub fn from_spec(list: &[LinuxNamespace]) -> Result<Self, ConfigError> {
        let mut namespaces = Self::empty();
        for (index, entry) in list.iter().enumerate() {
            let field = || format!("linux.namespaces[{index}]");
            if entry.path().is_some() {
                return Err(ConfigError::new(field() + ".path", "joining a namespace is not supported"));
            }
            let namespace = match entry.typ() {
                LinuxNamespaceType::Mount => Self::MOUNT,
                LinuxNamespaceType::Pid => Self::PID,
                LinuxNamespaceType::Uts => Self::UTS,
                LinuxNamespaceType::Ipc => Self::IPC,
                LinuxNamespaceType::Network => Self::NETWORK,
                LinuxNamespaceType::Cgroup => Self::CGROUP,
                LinuxNamespaceType::User | LinuxNamespaceType::Time => {
                    let problem = format!("a new {} namespace is not supported", entry.typ());
                    return Err(ConfigError::new(field() + ".type", problem));
                }
            };
            if namespaces.contains(namespace) {
                let problem = format!("{} is listed twice", entry.typ());
                return Err(ConfigError::new(field() + ".type", problem));
            }
            namespaces |= namespace;
        }
        if !namespaces.contains(Self::MOUNT) {
            return Err(ConfigError::new("linux.namespaces", "a mount namespace is required"));
        }
        Ok(namespaces)
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
    fn the_defaults_are_all_six() {
        let namespaces = Namespaces::from_spec(&get_default_namespaces()).unwrap();
        assert_eq!(namespaces, Namespaces::all());
        assert_eq!(namespaces.at_birth() & libc::CLONE_NEWCGROUP as u64, 0);
    }

    #[test]
    fn doubles_joins_and_a_missing_mount_namespace_are_refused() {
        let mount = namespace(LinuxNamespaceType::Mount);
        let error = Namespaces::from_spec(&[mount.clone(), mount.clone()]).unwrap_err();
        assert_eq!(error.to_string(), "linux.namespaces[1].type: mnt is listed twice");
        let error = Namespaces::from_spec(&[namespace(LinuxNamespaceType::Pid)]).unwrap_err();
        assert_eq!(error.to_string(), "linux.namespaces: a mount namespace is required");
        let mut joined = mount;
        joined.set_path(Some("/proc/1/ns/mnt".into()));
        assert!(Namespaces::from_spec(&[joined]).is_err());
        assert!(Namespaces::from_spec(&[namespace(LinuxNamespaceType::User)]).is_err());
    }
}
