//! Capabilities: names, the default set, and putting a process's five sets in force.

use std::collections::HashSet;

use oci_spec::runtime::Capability;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::step::{Doing, StepError};

/// Names of capabilities by number, without `CAP_` (linux/capability.h).
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What docker leaves to a container's root.
pub const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// The five sets of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sets {
    /// Upper limit of what exec can give.
    pub bounding: CapabilitySet,
    /// In force.
    pub effective: CapabilitySet,
    /// Can be put in force.
    pub permitted: CapabilitySet,
    /// Given to programs whose file says so.
    pub inheritable: CapabilitySet,
    /// Given to every program without set-id.
    pub ambient: CapabilitySet,
}

impl Default for Sets {
    fn default() -> Self {
        let none = CapabilitySet::empty();
        Self { bounding: none, effective: none, permitted: none, inheritable: none, ambient: none }
    }
}

impl Sets {
    /// Takes `capabilities` out of all five.
    pub fn remove(&mut self, capabilities: CapabilitySet) {
        for set in [
            &mut self.bounding,
            &mut self.effective,
            &mut self.permitted,
            &mut self.inheritable,
            &mut self.ambient,
        ] {
            set.remove(capabilities);
        }
    }
}

/// The bit of one capability; `None` for one that this table does not know.
#[must_use]
pub fn bit_of(capability: Capability) -> Option<CapabilitySet> {
    let name = capability.to_string();
    let number = NAMES.iter().position(|known| *known == name)?;
    Some(CapabilitySet::from_bits_retain(1 << number))
}

/// All names, as the specification writes them.
#[must_use]
pub fn names() -> Vec<String> {
    NAMES.iter().map(|name| format!("CAP_{name}")).collect()
}

/// `CAP_CHOWN`, `chown`.
#[must_use]
pub fn by_name(name: &str) -> Option<Capability> {
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.contains(&plain).then(|| plain.parse().ok()).flatten()
}

/// The bits of a set of the specification; unknown ones are none.
#[must_use]
pub fn bits_of(capabilities: &HashSet<Capability>) -> CapabilitySet {
    capabilities.iter().filter_map(|capability| bit_of(*capability)).collect()
}

/// Takes everything out of the bounding set that is not in `keep`. Needs CAP_SETPCAP.
pub(crate) fn limit_bounding_set(keep: CapabilitySet) -> Result<(), StepError> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The first number that this kernel does not know.
            Err(Errno::INVAL) => break,
            Err(error) => {
                return Err(error).doing(|| format!("drop capability {number} from the bounding set"));
            }
        }
    }
    Ok(())
}

/// Puts the sets in force, those asked for that the process does not have left out.
pub(crate) fn apply(sets: &Sets) -> Result<(), StepError> {
    let have = rustix::thread::capabilities(None).doing(|| "read the capabilities".into())?;
    let permitted = sets.permitted & have.permitted;
    let inheritable = sets.inheritable & sets.bounding & (have.permitted | have.inheritable);
    let wanted = CapabilitySets { effective: sets.effective & permitted, permitted, inheritable };
    rustix::thread::set_capabilities(None, wanted).doing(|| "set the capabilities".into())?;
    match rustix::thread::clear_ambient_capability_set() {
        // Before Linux 4.3 there is nothing to clear.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error).doing(|| "clear the ambient capabilities".into()),
    }
    for capability in (sets.ambient & permitted & inheritable).iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .doing(|| format!("add {capability:?} to the ambient capabilities"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_kernels_numbers() {
        for (capability, bit) in [
            (Capability::Chown, CapabilitySet::CHOWN),
            (Capability::SysAdmin, CapabilitySet::SYS_ADMIN),
            (Capability::Setfcap, CapabilitySet::SETFCAP),
            (Capability::CheckpointRestore, CapabilitySet::CHECKPOINT_RESTORE),
            (Capability::Mknod, CapabilitySet::MKNOD),
            (Capability::Bpf, CapabilitySet::BPF),
        ] {
            assert_eq!(bit_of(capability), Some(bit), "{capability}");
        }
    }

    #[test]
    fn the_default_set_has_no_way_out() {
        let bits = bits_of(&DEFAULT.into_iter().collect());
        assert_eq!(bits.bits().count_ones(), 14);
        let dangerous = CapabilitySet::SYS_ADMIN
            | CapabilitySet::SYS_MODULE
            | CapabilitySet::SYS_RAWIO
            | CapabilitySet::SYS_PTRACE
            | CapabilitySet::DAC_READ_SEARCH
            | CapabilitySet::NET_ADMIN
            | CapabilitySet::SYS_BOOT
            | CapabilitySet::BPF;
        assert!((bits & dangerous).is_empty());
    }
}
