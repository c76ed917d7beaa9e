//! The specification of a container about which nothing is said: what docker gives.

use std::path::PathBuf;

use oci_spec::runtime::{
    Arch, BoxBuilder, Linux, LinuxCapabilities, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType,
    LinuxResources, Mount, Process, Root, Spec, get_default_namespaces,
};

use super::TerminalSize;
use crate::capabilities::DEFAULT;
use crate::seccomp::default_profile;

/// What a caller chooses of it.
#[derive(Debug, Clone, Default)]
pub struct DefaultSpec {
    /// The root filesystem, absolute or beneath the bundle.
    pub root: PathBuf,
    /// Mounted read-only.
    pub root_read_only: bool,
    /// Name in the UTS namespace.
    pub hostname: Option<String>,
    /// A pseudo terminal of this size.
    pub terminal: Option<TerminalSize>,
    /// The container's user is its root: capabilities are in force from the start.
    pub is_root: bool,
    /// Exec gives no privileges.
    pub no_new_privileges: bool,
    /// Name of the container's cgroup.
    pub cgroup_name: Option<String>,
    /// The runtime is root of a user namespace, in which not all ids exist.
    pub in_user_namespace: bool,
    /// Group 5 (tty) does not exist in it.
    pub without_tty_group: bool,
}

/// Docker's masked paths, and the thermal counters of each CPU, which it masks since version 27.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Docker's read-only paths.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Devices of every container: name, major, minor. The specification's list ("Default Devices").
pub(super) const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// The whole document; its program is to be filled in by the caller (`sh` until then).
#[must_use]
pub fn default_spec(choice: &DefaultSpec) -> Spec {
    let mut root = Root::default();
    root.set_path(choice.root.clone()).set_readonly(Some(choice.root_read_only));
    let mut spec = Spec::default();
    spec.set_version("1.2.0".to_owned())
        .set_root(Some(root))
        .set_mounts(Some(mounts(choice)))
        .set_process(Some(process(choice)))
        .set_hostname(choice.hostname.clone())
        .set_hooks(None)
        .set_annotations(None)
        .set_linux(Some(linux(choice)));
    spec
}

/// A document to begin with: a shell, in a directory `rootfs` of the bundle, read-only. With `ids` (of an ordinary user)
/// it has a user namespace, in which that user is root, and no network of its own.
#[must_use]
pub fn template(ids: Option<(u32, u32)>) -> Spec {
    use oci_spec::runtime::{LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType};
    let mut spec = default_spec(&DefaultSpec {
        root: "rootfs".into(),
        root_read_only: true,
        hostname: Some("layerfs".to_owned()),
        terminal: Some(TerminalSize { rows: 0, columns: 0 }),
        is_root: true,
        no_new_privileges: true,
        in_user_namespace: ids.is_some(),
        without_tty_group: ids.is_some(),
        ..DefaultSpec::default()
    });
    if let Some(process) = spec.process_mut() {
        process.set_args(Some(vec!["sh".to_owned()])).set_console_size(None);
    }
    if let (Some((uid, gid)), Some(linux)) = (ids, spec.linux_mut()) {
        let map = |host: u32| {
            let map = LinuxIdMappingBuilder::default().container_id(0_u32).host_id(host).size(1_u32).build();
            map.ok().map(|map| vec![map])
        };
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        let mut user = LinuxNamespace::default();
        user.set_typ(LinuxNamespaceType::User);
        namespaces.push(user);
        linux
            .set_uid_mappings(map(uid))
            .set_gid_mappings(map(gid))
            .set_namespaces(Some(namespaces))
            .set_resources(None);
    }
    spec
}

fn process(choice: &DefaultSpec) -> Process {
    let bounding = DEFAULT.into_iter().collect::<std::collections::HashSet<_>>();
    // Another user than root gets none at exec in any case; saying so keeps them out of the setup too.
    let in_force = if choice.is_root { bounding.clone() } else { Default::default() };
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(bounding))
        .set_effective(Some(in_force.clone()))
        .set_permitted(Some(in_force))
        .set_inheritable(None)
        .set_ambient(None);
    let console = choice.terminal.and_then(|size| {
        BoxBuilder::default().height(u64::from(size.rows)).width(u64::from(size.columns)).build().ok()
    });
    let mut process = Process::default();
    process
        .set_terminal(Some(choice.terminal.is_some()))
        .set_console_size(console)
        .set_cwd("/".into())
        .set_capabilities(Some(capabilities))
        .set_rlimits(None)
        .set_no_new_privileges(Some(choice.no_new_privileges));
    process
}

fn linux(choice: &DefaultSpec) -> Linux {
    let owned = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(device_rules()));
    let architecture = match std::env::consts::ARCH {
        "aarch64" => Arch::ScmpArchAarch64,
        "riscv64" => Arch::ScmpArchRiscv64,
        _ => Arch::ScmpArchX86_64,
    };
    let held = DEFAULT.into_iter().collect();
    let pinging_groups = if choice.in_user_namespace { "0 0" } else { "0 2147483647" };
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(get_default_namespaces()))
        .set_devices(Some(devices()))
        .set_resources(Some(resources))
        .set_masked_paths(Some(owned(&MASKED)))
        .set_readonly_paths(Some(owned(&READ_ONLY)))
        .set_sysctl(Some(
            // Ports below 1024 and ping without privileges: the network namespace is the container's alone.
            [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", pinging_groups)]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        ))
        .set_seccomp(Some(default_profile(&held, architecture)))
        .set_cgroups_path(choice.cgroup_name.as_ref().map(PathBuf::from));
    linux
}

fn mounts(choice: &DefaultSpec) -> Vec<Mount> {
    let mut devpts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if !choice.without_tty_group {
        devpts.push("gid=5");
    }
    [
        ("/proc", "proc", vec!["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", vec!["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", devpts),
        ("/dev/shm", "tmpfs", vec!["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", vec!["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", vec!["nosuid", "noexec", "nodev", "ro"]),
        ("/sys/fs/cgroup", "cgroup", vec!["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ]
    .into_iter()
    .map(|(destination, typ, options)| {
        let source = if destination == "/dev/shm" { "shm" } else { typ };
        let mut mount = Mount::default();
        mount
            .set_destination(destination.into())
            .set_typ(Some(typ.to_owned()))
            .set_source(Some(source.into()))
            .set_options(Some(options.into_iter().map(str::to_owned).collect()));
        mount
    })
    .collect()
}

fn devices() -> Vec<LinuxDevice> {
    DEVICES
        .into_iter()
        .map(|(name, major, minor)| {
            let mut device = LinuxDevice::default();
            device
                .set_path(PathBuf::from("/dev").join(name))
                .set_typ(LinuxDeviceType::C)
                .set_major(i64::from(major))
                .set_minor(i64::from(minor))
                .set_file_mode(Some(0o666))
                .set_uid(Some(0))
                .set_gid(Some(0));
            device
        })
        .collect()
}

/// Any device may be made, few may be used: those of every container, terminals, and `/dev/net/tun`, which
/// docker allows too.
pub(super) fn device_rules() -> Vec<LinuxDeviceCgroup> {
    let rule = |allow, typ, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow)
            .set_typ(Some(typ))
            .set_major(major)
            .set_minor(minor)
            .set_access(Some(access.to_owned()));
        rule
    };
    let mut rules = vec![
        rule(false, LinuxDeviceType::A, None, None, "rwm"),
        rule(true, LinuxDeviceType::C, None, None, "m"),
        rule(true, LinuxDeviceType::B, None, None, "m"),
    ];
    let usable = DEVICES.map(|(_, major, minor)| (i64::from(major), Some(i64::from(minor))));
    let terminals = [(5, Some(1)), (5, Some(2)), (136, None)];
    for (major, minor) in usable.into_iter().chain(terminals).chain([(10, Some(200))]) {
        rules.push(rule(true, LinuxDeviceType::C, Some(major), minor, "rwm"));
    }
    rules
}
