//! System call filters: the specification's profiles compiled to one program, and the default profile.
//!
//! The program looks up the architecture, then the call by binary search over ranges of numbers with one answer, then
//! the conditions of that call alone: the cost of a call grows with the logarithm of the profile.
//!
//! Which rule decides: a call's rules with conditions are tried before those without; where several apply, the
//! strictest decides.

mod architecture;
mod compiler;
mod default_profile;

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};

use self::architecture::Architecture;
pub use self::architecture::supported as supported_architectures;
use self::compiler::{Answer, Comparison, Condition, Rule, Section};
pub use self::default_profile::default_profile;
use crate::config::ConfigError;
use crate::sys::seccomp::Instruction;

/// The largest error number that a call can return.
const ERRNO_MAX: u32 = 4095;

/// A compiled profile.
#[derive(Clone, PartialEq, Eq)]
pub struct Seccomp {
    program: Vec<Instruction>,
    flags: u64,
    listener: Option<Listener>,
}

/// Who is asked about calls with action `SCMP_ACT_NOTIFY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// A unix socket, which is sent the descriptor.
    pub path: PathBuf,
    /// Passed on.
    pub metadata: Option<String>,
}

impl std::fmt::Debug for Seccomp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Seccomp({} instructions, listener {:?})", self.program.len(), self.listener)
    }
}

impl Seccomp {
    pub(crate) fn program(&self) -> &[Instruction] {
        &self.program
    }

    /// `SECCOMP_FILTER_FLAG_*`.
    pub(crate) fn flags(&self) -> u64 {
        self.flags
    }

    /// Set when an action asks for it.
    #[must_use]
    pub fn listener(&self) -> Option<&Listener> {
        self.listener.as_ref()
    }
}

/// Compiles `profile` for this machine's architecture and those listed that it runs too.
///
/// System calls that an architecture does not have are passed over, as profiles are written for several. Calls of
/// other architectures end the process; those of x32, where it is not listed, are refused.
///
/// # Errors
/// Names the field: a condition that makes no sense, an answer that cannot be given, a profile for other architectures
/// only.
pub fn compile(profile: &LinuxSeccomp) -> Result<Seccomp, ConfigError> {
    let field = "linux.seccomp";
    let native = Architecture::native()
        .ok_or_else(|| ConfigError::new(field, "filters cannot be made for this machine's architecture"))?;
    let mut architectures = vec![native];
    if let Some(listed) = profile.architectures().as_ref().filter(|listed| !listed.is_empty()) {
        let known: Vec<_> = listed.iter().filter_map(Architecture::of).collect();
        if !known.contains(&native) {
            return Err(ConfigError::new(format!("{field}.architectures"), "do not include this machine's"));
        }
        architectures.extend(known.into_iter().filter(|other| *other != native));
        architectures.dedup();
    }
    let default = answer(profile.default_action(), profile.default_errno_ret(), &format!("{field}.default"))?;
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        // The runtime's own calls on the way to the program would wait for an answer for ever.
        return Err(ConfigError::new(
            format!("{field}.defaultAction"),
            "SCMP_ACT_NOTIFY cannot be the default",
        ));
    }
    let mut notifies = false;
    let mut rules = Vec::new();
    for (index, syscall) in profile.syscalls().iter().flatten().enumerate() {
        let field = format!("{field}.syscalls[{index}]");
        if syscall.action() == LinuxSeccompAction::ScmpActNotify {
            notifies = true;
            if syscall.names().iter().any(|name| name == "write" || name == "sendmsg") {
                let problem = "SCMP_ACT_NOTIFY on write or sendmsg would stop the runtime itself";
                return Err(ConfigError::new(format!("{field}.action"), problem));
            }
        }
        let answer = answer(syscall.action(), syscall.errno_ret(), &format!("{field}."))?;
        rules.push((syscall, answer, alternatives(syscall, &field)?));
    }
    let lists_x32 = architectures.contains(&Architecture::X32);
    let mut sections = Vec::new();
    for architecture in architectures.into_iter().filter(|other| *other != Architecture::X32) {
        let mut section = section(architecture, &rules, default);
        if architecture.has_x32() && lists_x32 {
            // The kernel does not tell them apart but by the number.
            section.calls.extend(self::section(Architecture::X32, &rules, default).calls);
            section.refuses_x32 = false;
        }
        sections.push(section);
    }
    let program = compiler::program(&sections, default)
        .ok_or_else(|| ConfigError::new(field, "the filter is longer than the kernel takes"))?;
    let listener = listener(profile, notifies)?;
    Ok(Seccomp { program, flags: flags(profile, listener.is_some())?, listener })
}

fn listener(profile: &LinuxSeccomp, notifies: bool) -> Result<Option<Listener>, ConfigError> {
    let field = "linux.seccomp.listenerPath";
    match profile.listener_path() {
        _ if !notifies => Ok(None),
        Some(path) if path.is_absolute() => {
            Ok(Some(Listener { path: path.clone(), metadata: profile.listener_metadata().clone() }))
        }
        Some(path) => Err(ConfigError::new(field, format!("{} is not absolute", path.display()))),
        None => Err(ConfigError::new(field, "is missing, while a rule has action SCMP_ACT_NOTIFY")),
    }
}

fn flags(profile: &LinuxSeccomp, listens: bool) -> Result<u64, ConfigError> {
    let mut bits = 0;
    for flag in profile.flags().iter().flatten() {
        bits |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            // There is one thread when the filter is installed.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if listens => {
                libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                let problem = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a listener";
                return Err(ConfigError::new("linux.seccomp.flags", problem));
            }
        };
    }
    Ok(bits)
}

type Parsed<'a> = (&'a LinuxSyscall, Answer, Vec<Vec<Condition>>);

/// What each call of one architecture is answered.
fn section(architecture: Architecture, rules: &[Parsed<'_>], default: Answer) -> Section {
    let mut calls: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for (syscall, answer, alternatives) in rules {
        // As with libseccomp: what is answered by default in any case says nothing.
        if *answer == default && alternatives.iter().all(Vec::is_empty) {
            continue;
        }
        for number in syscall.names().iter().filter_map(|name| architecture.number(name)) {
            let list = calls.entry(number).or_default();
            list.extend(
                alternatives
                    .iter()
                    .map(|conditions| Rule { conditions: conditions.clone(), answer: *answer }),
            );
        }
    }
    for list in calls.values_mut() {
        list.sort_by_key(|rule| (rule.conditions.is_empty(), rule.answer.strictness()));
    }
    Section { audit: architecture.audit(), refuses_x32: architecture.has_x32(), calls }
}

/// `field` ends where the name of the action or of the error number begins.
fn answer(action: LinuxSeccompAction, errno: Option<u32>, field: &str) -> Result<Answer, ConfigError> {
    let errno = errno.unwrap_or(libc::EPERM.unsigned_abs());
    if errno > ERRNO_MAX {
        let name = if field.ends_with("default") { "ErrnoRet" } else { "errnoRet" };
        return Err(ConfigError::new(format!("{field}{name}"), format!("{errno} is above {ERRNO_MAX}")));
    }
    Ok(Answer(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            libc::SECCOMP_RET_KILL_THREAD
        }
        LinuxSeccompAction::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        LinuxSeccompAction::ScmpActErrno => libc::SECCOMP_RET_ERRNO | errno,
        LinuxSeccompAction::ScmpActTrace => libc::SECCOMP_RET_TRACE | errno,
        LinuxSeccompAction::ScmpActLog => libc::SECCOMP_RET_LOG,
        LinuxSeccompAction::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        LinuxSeccompAction::ScmpActNotify => libc::SECCOMP_RET_USER_NOTIF,
    }))
}

/// The conditions of a rule: it applies when all of one of these lists hold.
fn alternatives(rule: &LinuxSyscall, field: &str) -> Result<Vec<Vec<Condition>>, ConfigError> {
    let mut conditions: Vec<Condition> = Vec::new();
    let mut one_argument_twice = false;
    for (index, argument) in rule.args().iter().flatten().enumerate() {
        let condition = condition(argument, &format!("{field}.args[{index}]"))?;
        one_argument_twice |= conditions.iter().any(|other| other.argument == condition.argument);
        conditions.push(condition);
    }
    // libseccomp's rule, which profiles rely on: conditions on one argument are alternatives.
    Ok(match one_argument_twice {
        true => conditions.into_iter().map(|condition| vec![condition]).collect(),
        false => vec![conditions],
    })
}

fn condition(argument: &LinuxSeccompArg, field: &str) -> Result<Condition, ConfigError> {
    let value = argument.value();
    let (comparison, value) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (Comparison::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => (Comparison::Below, value),
        LinuxSeccompOperator::ScmpCmpLe => (Comparison::AtMost, value),
        LinuxSeccompOperator::ScmpCmpEq => (Comparison::Equal, value),
        LinuxSeccompOperator::ScmpCmpGe => (Comparison::AtLeast, value),
        LinuxSeccompOperator::ScmpCmpGt => (Comparison::Above, value),
        // The first value is the mask, the second what must be left.
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (Comparison::Masked { mask: value }, argument.value_two().unwrap_or(0))
        }
    };
    let index = argument.index();
    match u8::try_from(index) {
        Ok(index @ 0..=5) => Ok(Condition { argument: index, comparison, value }),
        _ => Err(ConfigError::new(format!("{field}.index"), format!("{index} is above 5"))),
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Arch;

    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;

    /// Runs a program as the kernel does, on `struct seccomp_data` (number, architecture, arguments).
    fn evaluate(filter: &Seccomp, number: i64, arguments: &[u64]) -> u32 {
        evaluate_on(filter, Architecture::native().unwrap().audit(), number, arguments)
    }

    fn evaluate_on(filter: &Seccomp, architecture: u32, number: i64, arguments: &[u64]) -> u32 {
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
            let k = instruction.constant;
            at += 1;
            let mut jump = |condition: bool| {
                at += usize::from(if condition { instruction.then } else { instruction.or });
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

    fn verdict(filter: &Seccomp, number: i64, arguments: &[u64]) -> u32 {
        evaluate(filter, number, arguments)
    }

    fn profile(json: &str) -> Result<Seccomp, ConfigError> {
        compile(&serde_json::from_str(json).unwrap())
    }

    fn default_filters() -> Seccomp {
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
    #[cfg(target_arch = "x86_64")]
    fn the_default_profile_has_32_bit_programs_and_x32() {
        const X86: u32 = 0x4000_0003;
        const X32: i64 = 0x4000_0000;
        let filters = default_filters();
        let refused = ERRNO | libc::EPERM as u32;
        // read, execve, stat64, mmap2, _llseek, set_thread_area, socket, clock_gettime64, futex_time64.
        for number in [3, 11, 195, 192, 140, 243, 359, 403, 422] {
            assert_eq!(evaluate_on(&filters, X86, number, &[]), ALLOW, "{number}");
        }
        // mount, ptrace's neighbour umount2, init_module, keyctl.
        for number in [21, 52, 128, 288] {
            assert_eq!(evaluate_on(&filters, X86, number, &[]), refused, "{number}");
        }
        // read, execve and ioctl by their own numbers.
        for number in [X32, X32 | 520, X32 | 514] {
            assert_eq!(verdict(&filters, number, &[]), ALLOW, "{number:#x}");
        }
        // mount, kexec_load by both of its numbers.
        for number in [X32 | 165, X32 | 528, X32 | 246] {
            assert_eq!(verdict(&filters, number, &[]), refused, "{number:#x}");
        }
        assert_eq!(
            evaluate_on(&filters, 0xc000_00b7, 0, &[]),
            libc::SECCOMP_RET_KILL_PROCESS,
            "another machine"
        );
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn x32_is_refused_where_it_is_not_listed() {
        let filter = profile(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],
                "syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}"#,
        )
        .unwrap();
        assert_eq!(verdict(&filter, 0x4000_0000, &[]), ERRNO | libc::ENOSYS as u32);
        assert_eq!(verdict(&filter, 0, &[]), ALLOW);
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
    fn the_default_profile_is_short() {
        let length = default_filters().program().len();
        assert!(length < 1600, "{length} instructions: one jump for each call, and some for their arguments");
    }

    /// No two calls have an answer in common: nearly every jump is longer than a conditional one can be.
    #[test]
    fn jumps_reach_every_answer() {
        let held = crate::capabilities::DEFAULT.into_iter().collect();
        let listed = default_profile(&held, Arch::ScmpArchNative);
        let names = listed.syscalls().iter().flatten().flat_map(|rule| rule.names().clone());
        let native = Architecture::native().unwrap();
        let known: BTreeMap<u32, String> =
            names.filter_map(|name| Some((native.number(&name)?, name))).collect();
        assert!(known.len() > 300, "{}", known.len());
        let rule = |(at, name): (usize, &String)| {
            format!(r#"{{"names":["{name}"],"action":"SCMP_ACT_ERRNO","errnoRet":{}}}"#, at + 100)
        };
        let rules: Vec<String> = known.values().enumerate().map(rule).collect();
        let filter = profile(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_AARCH64"],
                "syscalls":[{}]}}"#,
            rules.join(",")
        ))
        .unwrap();
        for number in 0..1000 {
            let expected = known.keys().position(|known| *known == number);
            let expected = expected.map_or(ALLOW, |at| ERRNO | (at as u32 + 100));
            assert_eq!(verdict(&filter, number.into(), &[]), expected, "{number}");
        }
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
        assert_eq!(verdict(&filters, libc::SYS_getppid, &[]), 0x8000_0000);
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
        assert_eq!(error.field(), "linux.seccomp.syscalls[0].args[0].index");
        let error = profile(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#).unwrap_err();
        assert_eq!(error.field(), "linux.seccomp.defaultAction");
        let error = profile(r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_S390X"]}"#);
        assert_eq!(error.unwrap_err().field(), "linux.seccomp.architectures");
    }

    #[test]
    fn conditions_compare_as_the_kernel_documents() {
        let values = [0, 1, 5, 0x1_0000_0000, 0x1_0000_0005, 0x7_0000_0000, u64::MAX - 1, u64::MAX];
        type Holds = fn(u64, u64) -> bool;
        let operators: [(&str, Holds); 6] = [
            ("SCMP_CMP_NE", |a, b| a != b),
            ("SCMP_CMP_LT", |a, b| a < b),
            ("SCMP_CMP_LE", |a, b| a <= b),
            ("SCMP_CMP_EQ", |a, b| a == b),
            ("SCMP_CMP_GE", |a, b| a >= b),
            ("SCMP_CMP_GT", |a, b| a > b),
        ];
        for (operator, holds) in operators {
            for against in values {
                let filter = profile(&format!(
                    r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["close"],"action":"SCMP_ACT_ALLOW",
                        "args":[{{"index":3,"value":{against},"op":"{operator}"}}]}}]}}"#
                ))
                .unwrap();
                for value in values {
                    let allowed = verdict(&filter, libc::SYS_close, &[0, 0, 0, value]) == ALLOW;
                    assert_eq!(allowed, holds(value, against), "{value:#x} {operator} {against:#x}");
                }
            }
        }
        let masked = profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["close"],"action":"SCMP_ACT_ALLOW",
                "args":[{"index":0,"value":68719476751,"valueTwo":68719476739,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#,
        )
        .unwrap();
        assert_eq!(verdict(&masked, libc::SYS_close, &[0x10_0000_00f3]), ALLOW);
        assert_ne!(verdict(&masked, libc::SYS_close, &[0x00_0000_00f3]), ALLOW);
        assert_ne!(verdict(&masked, libc::SYS_close, &[0x10_0000_00f4]), ALLOW);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn other_architectures_have_numbers_of_their_own_or_end_the_process() {
        const I386: u32 = 0x4000_0003;
        let rules = r#""syscalls":[{"names":["getpid"],"action":"SCMP_ACT_ALLOW"}]"#;
        let both = profile(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86","SCMP_ARCH_X86_64"],{rules}}}"#
        ))
        .unwrap();
        // getpid is 20 there; 39 is mkdir.
        assert_eq!(evaluate_on(&both, I386, 20, &[]), ALLOW);
        assert_eq!(evaluate_on(&both, I386, 39, &[]), ERRNO | 1);
        assert_eq!(verdict(&both, libc::SYS_getpid, &[]), ALLOW);
        let one = profile(&format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO",{rules}}}"#)).unwrap();
        assert_eq!(evaluate_on(&one, I386, 20, &[]), 0x8000_0000);
        let lenient = profile(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap();
        assert_eq!(verdict(&lenient, 0x4000_0000 + 1, &[]), ERRNO | libc::ENOSYS as u32, "x32");
    }

    #[test]
    fn a_listener_is_needed_exactly_for_what_notifies() {
        let rules = r#""syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_NOTIFY"}]"#;
        let error = profile(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW",{rules}}}"#)).unwrap_err();
        assert_eq!(error.field(), "linux.seccomp.listenerPath");
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/x","listenerMetadata":"m",{rules}}}"#
        );
        let filter = profile(&json).unwrap();
        assert_eq!(filter.listener().unwrap().metadata.as_deref(), Some("m"));
        assert_eq!(verdict(&filter, libc::SYS_mkdirat, &[]), 0x7fc0_0000);
    }

    #[test]
    fn a_condition_goes_before_a_rule_without_one() {
        let filter = profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[
                {"names":["kill"],"action":"SCMP_ACT_ALLOW"},
                {"names":["kill"],"action":"SCMP_ACT_ERRNO","errnoRet":13,"args":[{"index":1,"value":9,"op":"SCMP_CMP_EQ"}]}]}"#,
        )
        .unwrap();
        assert_eq!(verdict(&filter, libc::SYS_kill, &[1, 9]), ERRNO | 13);
        assert_eq!(verdict(&filter, libc::SYS_kill, &[1, 15]), ALLOW);
        assert_eq!(verdict(&filter, libc::SYS_getpid, &[]), ERRNO | 38);
    }
}
