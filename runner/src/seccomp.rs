//! System call filters: the specification's profiles compiled to programs, and the default profile.
//!
//! A profile has a default action and rules with actions of their own; a compiled program has one action
//! for what matches and one for what does not. A profile therefore becomes one program that separates what
//! has a rule from the default, and one more for each action other than "allow". The kernel runs all of
//! them and takes the strictest result.

mod default_profile;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::str::FromStr;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

pub use self::default_profile::default_profile;
use crate::config::ConfigError;

/// One compiled filter.
#[derive(Clone)]
pub struct Filter(BpfProgram);

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Filter({} instructions)", self.0.len())
    }
}

impl Filter {
    pub(crate) fn program(&self) -> &[sock_filter] {
        &self.0
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Compiles `profile` for this machine's architecture, in the order of installation.
///
/// System calls that this architecture does not have are passed over, as profiles are written for several.
///
/// # Errors
/// Names the field: an action or flag that is not supported, a condition that makes no sense, or a profile
/// for other architectures only.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<Filter>, ConfigError> {
    let field = "linux.seccomp";
    let unsupported = |what: &str| ConfigError::new(format!("{field}.{what}"), "is not supported");
    let target = TargetArch::try_from(std::env::consts::ARCH)
        .map_err(|_| ConfigError::new(field, "filters cannot be made for this machine's architecture"))?;
    if let Some(architectures) = profile.architectures()
        && !architectures.is_empty()
        && !architectures.iter().any(is_native)
    {
        return Err(ConfigError::new(format!("{field}.architectures"), "do not include this machine's"));
    }
    if profile.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(unsupported("flags"));
    }
    if profile.listener_path().is_some() {
        return Err(unsupported("listenerPath"));
    }
    let default = action(profile.default_action(), profile.default_errno_ret())
        .ok_or_else(|| unsupported("defaultAction"))?;

    let mut all = Rules::new();
    let mut by_action: Vec<(SeccompAction, Rules)> = Vec::new();
    for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
        let field = format!("{field}.syscalls[{index}]");
        let action = action(rule.action(), rule.errno_ret())
            .ok_or_else(|| ConfigError::new(format!("{field}.action"), "is not supported"))?;
        if action == default {
            continue;
        }
        add_rule(&mut all, rule, &field)?;
        if action == SeccompAction::Allow {
            continue;
        }
        let group = match by_action.iter().position(|(other, _)| *other == action) {
            Some(found) => by_action.get_mut(found),
            None => {
                by_action.push((action, Rules::new()));
                by_action.last_mut()
            }
        };
        if let Some((_, rules)) = group {
            add_rule(rules, rule, &field)?;
        }
    }

    let mut filters = Vec::new();
    let mut add = |rules: Rules, mismatch: SeccompAction, matched: SeccompAction| {
        let program = SeccompFilter::new(rules, mismatch, matched, target)
            .and_then(BpfProgram::try_from)
            .map_err(|error| ConfigError::new(field, error.to_string()))?;
        filters.push(Filter(program));
        Ok(())
    };
    if default != SeccompAction::Allow {
        add(all, default, SeccompAction::Allow)?;
    }
    for (action, rules) in by_action {
        add(rules, SeccompAction::Allow, action)?;
    }
    Ok(filters)
}

fn is_native(architecture: &Arch) -> bool {
    match architecture {
        Arch::ScmpArchNative => true,
        Arch::ScmpArchX86_64 => cfg!(target_arch = "x86_64"),
        Arch::ScmpArchAarch64 => cfg!(target_arch = "aarch64"),
        Arch::ScmpArchRiscv64 => cfg!(target_arch = "riscv64"),
        _ => false,
    }
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Option<SeccompAction> {
    let errno = errno.unwrap_or(libc::EPERM.unsigned_abs());
    Some(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => SeccompAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => SeccompAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => SeccompAction::Trap,
        LinuxSeccompAction::ScmpActErrno => SeccompAction::Errno(errno),
        LinuxSeccompAction::ScmpActTrace => SeccompAction::Trace(errno),
        LinuxSeccompAction::ScmpActLog => SeccompAction::Log,
        LinuxSeccompAction::ScmpActAllow => SeccompAction::Allow,
        LinuxSeccompAction::ScmpActNotify => return None,
    })
}

fn add_rule(rules: &mut Rules, rule: &LinuxSyscall, field: &str) -> Result<(), ConfigError> {
    let mut conditions = Vec::new();
    let mut seen = HashSet::new();
    let mut one_argument_twice = false;
    for (index, argument) in rule.args().iter().flatten().enumerate() {
        one_argument_twice |= !seen.insert(argument.index());
        conditions.push(condition(argument, &format!("{field}.args[{index}]"))?);
    }
    // libseccomp's rule, which profiles rely on: conditions on one argument are alternatives.
    let alternatives: Vec<Vec<SeccompCondition>> = match one_argument_twice {
        true => conditions.into_iter().map(|condition| vec![condition]).collect(),
        false => vec![conditions],
    };
    let mut compiled = Vec::new();
    for conditions in alternatives.into_iter().filter(|conditions| !conditions.is_empty()) {
        let rule =
            SeccompRule::new(conditions).map_err(|error| ConfigError::new(field, error.to_string()))?;
        compiled.push(rule);
    }
    for name in rule.names() {
        let Ok(number) = syscalls::Sysno::from_str(name) else { continue };
        // A call without rules matches always, which no further rule can narrow.
        match rules.entry(i64::from(number.id())) {
            Entry::Vacant(entry) => drop(entry.insert(compiled.clone())),
            Entry::Occupied(mut entry) if compiled.is_empty() => entry.get_mut().clear(),
            Entry::Occupied(entry) if entry.get().is_empty() => {}
            Entry::Occupied(mut entry) => entry.get_mut().extend(compiled.iter().cloned()),
        }
    }
    Ok(())
}

fn condition(argument: &LinuxSeccompArg, field: &str) -> Result<SeccompCondition, ConfigError> {
    let value = argument.value();
    let (operator, value) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (SeccompCmpOp::Ne, value),
        LinuxSeccompOperator::ScmpCmpLt => (SeccompCmpOp::Lt, value),
        LinuxSeccompOperator::ScmpCmpLe => (SeccompCmpOp::Le, value),
        LinuxSeccompOperator::ScmpCmpEq => (SeccompCmpOp::Eq, value),
        LinuxSeccompOperator::ScmpCmpGe => (SeccompCmpOp::Ge, value),
        LinuxSeccompOperator::ScmpCmpGt => (SeccompCmpOp::Gt, value),
        // The first value is the mask, the second what must be left.
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (SeccompCmpOp::MaskedEq(value), argument.value_two().unwrap_or(0))
        }
    };
    let index = u8::try_from(argument.index())
        .map_err(|_| ConfigError::new(format!("{field}.index"), "is above 5"))?;
    SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value)
        .map_err(|error| ConfigError::new(field, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;

    /// Runs a program as the kernel does, on `struct seccomp_data` (number, architecture, arguments).
    fn evaluate(filter: &Filter, number: i64, arguments: &[u64]) -> u32 {
        let architecture: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
        let mut data = [0_u8; 64];
        data[0..4].copy_from_slice(&(number as u32).to_ne_bytes());
        data[4..8].copy_from_slice(&architecture.to_ne_bytes());
        for (index, argument) in arguments.iter().enumerate() {
            data[16 + index * 8..24 + index * 8].copy_from_slice(&argument.to_ne_bytes());
        }
        let program = filter.program();
        let (mut at, mut accumulator) = (0_usize, 0_u32);
        loop {
            let instruction = &program[at];
            let k = instruction.k;
            at += 1;
            let mut jump = |condition: bool| {
                at += usize::from(if condition { instruction.jt } else { instruction.jf });
            };
            match instruction.code {
                0x20 => {
                    accumulator = u32::from_ne_bytes(data[k as usize..k as usize + 4].try_into().unwrap());
                }
                0x54 => accumulator &= k,
                0x05 => at += k as usize,
                0x15 => jump(accumulator == k),
                0x25 => jump(accumulator > k),
                0x35 => jump(accumulator >= k),
                0x06 => return k,
                code => panic!("instruction {code:#x} is not evaluated"),
            }
        }
    }

    /// What the kernel does with all filters together.
    fn verdict(filters: &[Filter], number: i64, arguments: &[u64]) -> u32 {
        filters.iter().map(|filter| evaluate(filter, number, arguments)).min().unwrap_or(ALLOW)
    }

    fn profile(json: &str) -> Result<Vec<Filter>, ConfigError> {
        compile(&serde_json::from_str(json).unwrap())
    }

    fn default_filters() -> Vec<Filter> {
        let held = crate::capabilities::DEFAULT.into_iter().collect();
        compile(&default_profile(&held, Arch::ScmpArchNative)).unwrap()
    }

    #[test]
    fn the_default_profile_lets_ordinary_programs_be() {
        let filters = default_filters();
        for number in [libc::SYS_read, libc::SYS_execve, libc::SYS_openat, libc::SYS_futex, libc::SYS_chroot]
        {
            assert_eq!(verdict(&filters, number, &[]), ALLOW, "{number}");
        }
        let thread = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;
        assert_eq!(verdict(&filters, libc::SYS_clone, &[thread]), ALLOW);
        assert_eq!(verdict(&filters, libc::SYS_socket, &[libc::AF_INET as u64]), ALLOW);
        assert_eq!(verdict(&filters, libc::SYS_personality, &[0xffff_ffff]), ALLOW);
    }

    #[test]
    fn the_default_profile_refuses_ways_out() {
        let filters = default_filters();
        let refused = ERRNO | libc::EPERM as u32;
        for number in [
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_open_tree,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_kexec_load,
            libc::SYS_reboot,
            libc::SYS_open_by_handle_at,
            libc::SYS_swapon,
            libc::SYS_settimeofday,
            libc::SYS_pidfd_getfd,
        ] {
            assert_eq!(verdict(&filters, number, &[]), refused, "{number}");
        }
        assert_eq!(verdict(&filters, libc::SYS_clone, &[libc::CLONE_NEWUSER as u64]), refused);
        assert_eq!(verdict(&filters, libc::SYS_socket, &[libc::AF_VSOCK as u64]), refused);
        assert_eq!(verdict(&filters, libc::SYS_personality, &[0x0040_0000]), refused);
        // The C library falls back to clone, whose flags can be read, on this answer only.
        assert_eq!(verdict(&filters, libc::SYS_clone3, &[]), ERRNO | libc::ENOSYS as u32);
        #[cfg(target_arch = "x86_64")]
        assert_eq!(verdict(&filters, 0x4000_0000 + libc::SYS_mount, &[]), refused, "x32");
    }

    #[test]
    fn a_call_allowed_once_without_conditions_stays_allowed() {
        let filters = profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
                {"names":["getpid"],"action":"SCMP_ACT_ALLOW"},
                {"names":["getpid","no_such_call"],"action":"SCMP_ACT_ALLOW",
                 "args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}]}"#,
        )
        .unwrap();
        assert_eq!(verdict(&filters, libc::SYS_getpid, &[7]), ALLOW);
        assert_eq!(verdict(&filters, libc::SYS_getppid, &[]), ERRNO | 1);
    }

    #[test]
    fn actions_other_than_allow_are_kept_apart() {
        let filters = profile(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
                {"names":["getpid"],"action":"SCMP_ACT_ERRNO","errnoRet":38},
                {"names":["getppid"],"action":"SCMP_ACT_KILL_PROCESS"},
                {"names":["kill"],"action":"SCMP_ACT_ERRNO","errnoRet":38,"args":[
                    {"index":1,"value":9,"op":"SCMP_CMP_EQ"},{"index":1,"value":15,"op":"SCMP_CMP_EQ"}]}]}"#,
        )
        .unwrap();
        assert_eq!(verdict(&filters, libc::SYS_getpid, &[]), ERRNO | 38);
        assert!(filters.iter().any(|filter| evaluate(filter, libc::SYS_getppid, &[]) == 0x8000_0000));
        assert_eq!(verdict(&filters, libc::SYS_kill, &[1, 9]), ERRNO | 38);
        assert_eq!(verdict(&filters, libc::SYS_kill, &[1, 15]), ERRNO | 38);
        assert_eq!(verdict(&filters, libc::SYS_kill, &[1, 1]), ALLOW);
        assert_eq!(verdict(&filters, libc::SYS_read, &[]), ALLOW);
    }

    #[test]
    fn malformed_profiles_name_the_field() {
        let error = profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW",
                "args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}]}"#,
        )
        .unwrap_err();
        assert_eq!(error.field(), "linux.seccomp.syscalls[0].args[0]");
        let error = profile(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#).unwrap_err();
        assert_eq!(error.field(), "linux.seccomp.defaultAction");
        let error = profile(r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_S390X"]}"#);
        assert_eq!(error.unwrap_err().field(), "linux.seccomp.architectures");
    }
}
