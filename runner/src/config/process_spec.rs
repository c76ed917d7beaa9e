//! The specification's `process` to a [`Process`].

use std::ffi::CString;
use std::path::Path;

use oci_spec::runtime::{IOPriorityClass, LinuxSchedulerFlag, LinuxSchedulerPolicy, PosixRlimitType, Spec};
use rustix::process::Resource;
use rustix::thread::CapabilitySet;

use super::{ConfigError, Process, Rlimit, Scheduler, TerminalSize, User};
use crate::capabilities::{Sets, bits_of};

/// `RLIM_INFINITY` as the document writes it.
const UNLIMITED: u64 = u64::MAX;

pub(super) fn process(spec: &Spec) -> Result<Process, ConfigError> {
    let process = spec.process().as_ref().ok_or_else(|| ConfigError::new("process", "is missing"))?;
    from_process(process)
}

impl Process {
    /// Validates the specification's description of a process, as `exec` is given one.
    ///
    /// # Errors
    /// The first field that makes no sense or cannot be done here.
    pub fn from_spec(process: &oci_spec::runtime::Process) -> Result<Self, ConfigError> {
        from_process(process)
    }
}

fn from_process(process: &oci_spec::runtime::Process) -> Result<Process, ConfigError> {
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
    check_user(user)?;
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
        scheduler: process.scheduler().as_ref().map(scheduler).transpose()?,
        io_priority: io_priority(process)?,
        exec_affinity: affinity(process)?,
        apparmor_profile: label(process.apparmor_profile(), "process.apparmorProfile", require_apparmor)?,
        selinux_label: label(process.selinux_label(), "process.selinuxLabel", require_selinux)?,
    })
}

/// The largest id of a user or group. The highest of 32 bits, -1, would leave the program the runtime's own.
pub const ID_MAX: u32 = i32::MAX.unsigned_abs();

fn check_user(user: &oci_spec::runtime::User) -> Result<(), ConfigError> {
    let groups = user.additional_gids().iter().flatten().enumerate();
    let groups = groups.map(|(index, gid)| (format!("process.user.additionalGids[{index}]"), *gid));
    let own = [("process.user.uid".to_owned(), user.uid()), ("process.user.gid".to_owned(), user.gid())];
    match own.into_iter().chain(groups).find(|(_, id)| *id > ID_MAX) {
        Some((field, id)) => Err(ConfigError::new(field, format!("{id} is not within 0 and {ID_MAX}"))),
        None => Ok(()),
    }
}

fn c_string(word: &str, field: &str) -> Result<CString, ConfigError> {
    CString::new(word).map_err(|_| ConfigError::new(field, "contains a zero byte"))
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

fn label(
    label: &Option<String>,
    field: &str,
    require: fn(&str) -> Result<(), ConfigError>,
) -> Result<Option<String>, ConfigError> {
    match label.as_deref() {
        None | Some("") => Ok(None),
        // What a process has without AppArmor.
        Some("unconfined") if field == "process.apparmorProfile" => Ok(None),
        Some(label) => require(field).map(|()| Some(label.to_owned())),
    }
}

/// Refuses a profile where the kernel has no AppArmor: the container would run unconfined.
fn require_apparmor(field: &str) -> Result<(), ConfigError> {
    match has_apparmor() {
        true => Ok(()),
        false => Err(ConfigError::new(field, "this kernel has no AppArmor, or it is switched off")),
    }
}

/// The kernel has AppArmor, and it is switched on.
pub(crate) fn has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

/// The kernel has SELinux, and it is switched on.
pub(crate) fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// Refuses a label where the kernel has no SELinux.
pub(super) fn require_selinux(field: &str) -> Result<(), ConfigError> {
    match has_selinux() {
        true => Ok(()),
        false => Err(ConfigError::new(field, "this kernel has no SELinux, or it is switched off")),
    }
}

fn scheduler(from: &oci_spec::runtime::Scheduler) -> Result<Scheduler, ConfigError> {
    let refused =
        |name: &str, problem: String| Err(ConfigError::new(format!("process.scheduler.{name}"), problem));
    // SCHED_* of linux/sched.h.
    let policy = match from.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
        LinuxSchedulerPolicy::SchedIso => return refused("policy", "SCHED_ISO is not in Linux".into()),
    };
    let (nice, priority) = (from.nice().unwrap_or(0), from.priority().unwrap_or(0));
    if !(-20..=19).contains(&nice) {
        return refused("nice", format!("{nice} is not within -20 and 19"));
    }
    let real_time = matches!(policy, 1 | 2);
    let priority = match u32::try_from(priority) {
        Ok(priority) if real_time && (1..=99).contains(&priority) => priority,
        Ok(0) if !real_time => 0,
        _ if real_time => return refused("priority", format!("{priority} is not within 1 and 99")),
        _ => return refused("priority", "needs SCHED_FIFO or SCHED_RR".into()),
    };
    let (runtime, deadline, period) =
        (from.runtime().unwrap_or(0), from.deadline().unwrap_or(0), from.period().unwrap_or(0));
    if policy != 6 && (runtime, deadline, period) != (0, 0, 0) {
        return refused("policy", "runtime, deadline and period need SCHED_DEADLINE".into());
    }
    // SCHED_FLAG_* of linux/sched.h.
    let flags = from.flags().iter().flatten().fold(0, |bits, flag| {
        bits | match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
            LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
        }
    });
    Ok(Scheduler { policy, flags, nice, priority, runtime, deadline, period })
}

/// `IOPRIO_PRIO_VALUE` of linux/ioprio.h.
fn io_priority(process: &oci_spec::runtime::Process) -> Result<Option<i32>, ConfigError> {
    let Some(priority) = process.io_priority() else { return Ok(None) };
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match i32::try_from(priority.priority()) {
        Ok(level @ 0..=7) => Ok(Some(class << 13 | level)),
        _ => {
            let problem = format!("{} is not within 0 and 7", priority.priority());
            Err(ConfigError::new("process.ioPriority.priority", problem))
        }
    }
}

type Affinity = (Option<Vec<usize>>, Option<Vec<usize>>);

fn affinity(process: &oci_spec::runtime::Process) -> Result<Affinity, ConfigError> {
    let Some(affinity) = process.exec_cpu_affinity() else { return Ok((None, None)) };
    let cpus = |text: &Option<String>, name: &str| match text.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => number_list(text).map(Some).ok_or_else(|| {
            let field = format!("process.execCPUAffinity.{name}");
            ConfigError::new(field, format!("{text:?} is not a list of CPUs such as 0-3,7"))
        }),
    };
    Ok((cpus(affinity.initial(), "initial")?, cpus(affinity.cpu_affinity_final(), "final")?))
}

/// `0-3,7` as numbers, of CPUs or of NUMA nodes, each below 1024.
pub(super) fn number_list(text: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse::<usize>().ok()?);
        if first > last || last >= 1024 {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(text: &str) -> Result<Process, ConfigError> {
        let mut value: serde_json::Value = serde_json::from_str(text).unwrap();
        let (cwd, args, user) = (json!("/"), json!(["sh"]), json!({"uid": 0, "gid": 0}));
        for (name, default) in [("cwd", cwd), ("args", args), ("user", user)] {
            value.as_object_mut().unwrap().entry(name).or_insert(default);
        }
        Process::from_spec(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn priorities_and_schedulers_are_numbers_of_the_kernel() {
        let json = r#"{"ioPriority":{"class":"IOPRIO_CLASS_IDLE","priority":7},
                       "scheduler":{"policy":"SCHED_FIFO","priority":50}}"#;
        let process = parsed(json).unwrap();
        assert_eq!(process.io_priority, Some(3 << 13 | 7));
        assert_eq!(process.scheduler, Some(Scheduler { policy: 1, priority: 50, ..Scheduler::default() }));
    }

    #[test]
    fn flags_of_schedulers_are_spelled_as_in_the_specification() {
        let all = [
            "SCHED_FLAG_RESET_ON_FORK",
            "SCHED_FLAG_RECLAIM",
            "SCHED_FLAG_DL_OVERRUN",
            "SCHED_FLAG_KEEP_POLICY",
            "SCHED_FLAG_KEEP_PARAMS",
            "SCHED_FLAG_UTIL_CLAMP_MIN",
            "SCHED_FLAG_UTIL_CLAMP_MAX",
        ];
        for (place, flag) in all.iter().enumerate() {
            let json = format!(
                r#"{{"cwd":"/","args":["{flag}"],"user":{{"uid":0,"gid":0}},
                     "scheduler":{{"policy":"SCHED_OTHER","flags":["{flag}"]}}}}"#
            );
            let spec = crate::config::document::parse(json.as_bytes()).unwrap();
            let process = Process::from_spec(&spec).unwrap();
            assert_eq!(process.scheduler.unwrap().flags, 1 << place, "{flag}");
            assert_eq!(process.args[0].to_str(), Ok(*flag), "what is no flag stays as it is");
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (json, field) in [
            (r#"{"ioPriority":{"class":"IOPRIO_CLASS_BE","priority":8}}"#, "process.ioPriority.priority"),
            (r#"{"scheduler":{"policy":"SCHED_OTHER","priority":5}}"#, "process.scheduler.priority"),
            (r#"{"scheduler":{"policy":"SCHED_OTHER","nice":20}}"#, "process.scheduler.nice"),
            (r#"{"scheduler":{"policy":"SCHED_RR","priority":100}}"#, "process.scheduler.priority"),
            (r#"{"oomScoreAdj":1001}"#, "process.oomScoreAdj"),
            (r#"{"cwd":"here"}"#, "process.cwd"),
            (r#"{"rlimits":[{"type":"RLIMIT_CORE","soft":2,"hard":1}]}"#, "process.rlimits[0]"),
            (r#"{"user":{"uid":4294967295,"gid":0}}"#, "process.user.uid"),
            (r#"{"user":{"uid":0,"gid":2147483648}}"#, "process.user.gid"),
            (
                r#"{"user":{"uid":0,"gid":0,"additionalGids":[5,4294967295]}}"#,
                "process.user.additionalGids[1]",
            ),
        ] {
            assert_eq!(parsed(json).unwrap_err().field(), field, "{json}");
        }
    }

    #[test]
    fn lists_of_numbers() {
        assert_eq!(number_list("0-2,7"), Some(vec![0, 1, 2, 7]));
        assert_eq!(number_list("2-1"), None);
        assert_eq!(number_list("x"), None);
    }
}
