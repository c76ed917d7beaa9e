//! Architectures: their numbers in `struct seccomp_data`, and the numbers of their calls.

use std::str::FromStr;

use oci_spec::runtime::Arch;

/// One whose calls can be filtered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    X86,
    X86_64,
    /// The 64-bit machine with 32-bit pointers: calls of X86_64 with a bit set, some of them with numbers of their own.
    X32,
    Arm,
    Aarch64,
    Riscv64,
}

impl Architecture {
    /// What this program is built for.
    pub(super) fn native() -> Option<Self> {
        Some(match std::env::consts::ARCH {
            "x86_64" => Self::X86_64,
            "aarch64" => Self::Aarch64,
            "riscv64" => Self::Riscv64,
            _ => return None,
        })
    }

    /// One of the specification's list that this machine runs.
    pub(super) fn of(arch: &Arch) -> Option<Self> {
        let found = match arch {
            Arch::ScmpArchNative => return Self::native(),
            Arch::ScmpArchX86 => Self::X86,
            Arch::ScmpArchX86_64 => Self::X86_64,
            Arch::ScmpArchX32 => Self::X32,
            Arch::ScmpArchArm => Self::Arm,
            Arch::ScmpArchAarch64 => Self::Aarch64,
            Arch::ScmpArchRiscv64 => Self::Riscv64,
            _ => return None,
        };
        let runs = match Self::native()? {
            Self::X86_64 => matches!(found, Self::X86 | Self::X86_64 | Self::X32),
            Self::Aarch64 => matches!(found, Self::Arm | Self::Aarch64),
            other => found == other,
        };
        runs.then_some(found)
    }

    /// `AUDIT_ARCH_*` of linux/audit.h.
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86 => 0x4000_0003,
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::Arm => 0x4000_0028,
            Self::Aarch64 => 0xc000_00b7,
            Self::Riscv64 => 0xc000_00f3,
        }
    }

    /// True where a bit of the number chooses another interface (x32).
    pub(super) fn has_x32(self) -> bool {
        self == Self::X86_64
    }

    /// The number of a call, if there is one of this name.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        let number = match self {
            Self::X86 => syscalls::x86::Sysno::from_str(name).ok()?.id(),
            Self::X86_64 => syscalls::x86_64::Sysno::from_str(name).ok()?.id(),
            Self::X32 => return x32_number(name),
            Self::Arm => syscalls::arm::Sysno::from_str(name).ok()?.id(),
            Self::Aarch64 => syscalls::aarch64::Sysno::from_str(name).ok()?.id(),
            Self::Riscv64 => syscalls::riscv64::Sysno::from_str(name).ok()?.id(),
        };
        u32::try_from(number).ok()
    }
}

/// `__X32_SYSCALL_BIT`.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// Calls of x32 whose arguments differ from those of x86_64, numbered from 512 on (syscall_64.tbl).
const X32_OWN: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];

fn x32_number(name: &str) -> Option<u32> {
    let number = match X32_OWN.iter().position(|own| *own == name) {
        Some(place) => 512 + u32::try_from(place).ok()?,
        None => Architecture::X86_64.number(name)?,
    };
    Some(number | X32_BIT)
}

/// The specification's list for programs of `architecture` and those of its relatives that the same machine runs.
pub(super) fn with_relatives(architecture: Arch) -> Vec<Arch> {
    let native = match architecture {
        Arch::ScmpArchNative => Architecture::native(),
        other => Architecture::of(&other),
    };
    match native {
        Some(Architecture::X86_64) => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        Some(Architecture::Aarch64) => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        _ => vec![architecture],
    }
}

/// The architectures of the specification that a profile may list here.
#[must_use]
pub fn supported() -> Vec<Arch> {
    [
        Arch::ScmpArchX86,
        Arch::ScmpArchX86_64,
        Arch::ScmpArchX32,
        Arch::ScmpArchArm,
        Arch::ScmpArchAarch64,
        Arch::ScmpArchRiscv64,
    ]
    .into_iter()
    .filter(|arch| Architecture::of(arch).is_some())
    .collect()
}
