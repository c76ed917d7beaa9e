//! A container's config as the specification's document, for one start.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, bail};
use layerfs_runner::capabilities::{self, DEFAULT};
use layerfs_runner::config::TerminalSize;
use layerfs_runner::config::default_spec::{DefaultSpec, default_spec};
use layerfs_runner::host;
use serde_json::{Value, json};

use super::config::{ContainerConfig, MountSpec, NamespaceMode, NetworkMode, Seccomp, Ulimit};
use super::mounts::MAKE_SOURCE;
use super::parts;
use super::store::{Container, Containers};
use crate::commands::run::{Identity, store_root};
use crate::exit::Hinted;

/// What a program finds when the image says nothing.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Owner of terminals in every distribution.
const TTY_GROUP: u32 = 5;

/// Whether there is a capability of this name (without `CAP_`, in capitals).
pub(super) fn is_capability(name: &str) -> bool {
    capabilities::NAMES.contains(&name)
}

/// All that this process may give, as the specification names them.
pub(super) fn all_capabilities() -> Vec<String> {
    let all = own(capabilities::NAMES.iter().map(|name| (*name).to_owned()).collect());
    all.into_iter().map(|name| format!("CAP_{name}")).collect()
}

/// The document, with the root filesystem mounted at `merged`.
pub(super) fn document(container: &Container, merged: &Path, identity: &Identity) -> anyhow::Result<Value> {
    let config = &container.config;
    let held = held(config);
    let in_user_namespace =
        !host::is_initial_user_namespace().context("read the ids of this user namespace")?;
    let spec = default_spec(&DefaultSpec {
        root: merged.to_owned(),
        root_read_only: config.read_only,
        hostname: (!config.uts_host).then(|| config.hostname.clone()),
        terminal: config.tty.then(TerminalSize::default),
        is_root: identity.uid == 0,
        no_new_privileges: config.no_new_privileges,
        cgroup_name: None,
        in_user_namespace,
        without_tty_group: !host::has_group(TTY_GROUP).context("read the groups of this user namespace")?,
    });
    let mut spec = serde_json::to_value(spec).context("make the runtime's document")?;
    spec["process"] = process(config, identity, &held, &spec["process"]);
    if !config.domainname.is_empty() {
        spec["domainname"] = json!(config.domainname);
    }
    if !config.annotations.is_empty() {
        spec["annotations"] = json!(config.annotations);
    }
    let cgroup = match config.cgroup_parent.as_str() {
        "" => format!("layerfs-{}", config.id),
        parent => format!("{}/layerfs-{}", parent.trim_end_matches('/'), config.id),
    };
    spec["linux"]["cgroupsPath"] = json!(cgroup);
    namespaces(config, &mut spec)?;
    seccomp(config, &held, &mut spec)?;
    if config.privileged || config.is_unmasked {
        spec["linux"]["maskedPaths"] = json!([]);
        spec["linux"]["readonlyPaths"] = json!([]);
    }
    mounts(container, merged, &mut spec)?;
    devices(config, in_user_namespace, &mut spec)?;
    if let Value::Object(wanted) = config.resources.to_spec_here() {
        for (name, value) in wanted {
            spec["linux"]["resources"][name] = value;
        }
    }
    for (name, value) in &config.sysctls {
        spec["linux"]["sysctl"][name] = json!(value);
    }
    Ok(spec)
}

/// The capabilities that it has, without `CAP_`.
fn held(config: &ContainerConfig) -> BTreeSet<String> {
    let all = || capabilities::NAMES.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    if config.privileged {
        return own(all());
    }
    let is_all = |list: &[String]| list.iter().any(|name| name == "ALL");
    let default = DEFAULT.iter().map(|capability| capability.to_string());
    let default = default.map(|name| name.strip_prefix("CAP_").unwrap_or(&name).to_owned()).collect();
    let mut held: BTreeSet<String> = match (is_all(&config.cap_add), is_all(&config.cap_drop)) {
        (true, _) => own(all()),
        (false, true) => BTreeSet::new(),
        (false, false) => default,
    };
    held.retain(|name| !config.cap_drop.contains(name));
    held.extend(config.cap_add.iter().filter(|name| *name != "ALL").cloned());
    held
}

/// Those that the kernel knows and this process may give.
fn own(mut names: BTreeSet<String>) -> BTreeSet<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bounding =
        status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapBnd:")?.trim(), 16).ok());
    let Some(bounding) = bounding else { return names };
    for (number, name) in capabilities::NAMES.iter().enumerate() {
        if bounding & (1 << number) == 0 {
            names.remove(*name);
        }
    }
    names
}

fn process(config: &ContainerConfig, identity: &Identity, held: &BTreeSet<String>, default: &Value) -> Value {
    let mut process = default.clone();
    process["args"] = json!(config.args());
    process["env"] = json!(environment(config, config.tty, &identity.home.to_string_lossy()));
    process["cwd"] = json!(if config.workdir.is_empty() { "/" } else { &config.workdir });
    process["user"] = user(identity);
    let names: Vec<String> = held.iter().map(|name| format!("CAP_{name}")).collect();
    let in_force = if identity.uid == 0 { names.clone() } else { Vec::new() };
    process["capabilities"] = json!({ "bounding": names, "effective": in_force, "permitted": in_force });
    if !config.ulimits.is_empty() {
        process["rlimits"] = config.ulimits.iter().map(rlimit).collect();
    }
    if let Some(adjustment) = config.oom_score_adj {
        process["oomScoreAdj"] = json!(adjustment);
    }
    process
}

pub(super) fn user(identity: &Identity) -> Value {
    // The first of them is its own, as docker has it: a group that a program may leave must not give it more.
    let mut groups = vec![identity.gid];
    groups.extend(identity.groups.iter().filter(|group| **group != identity.gid));
    json!({ "uid": identity.uid, "gid": identity.gid, "additionalGids": groups })
}

fn rlimit(limit: &Ulimit) -> Value {
    let value = |number: i64| u64::try_from(number).unwrap_or(u64::MAX);
    json!({
        "type": format!("RLIMIT_{}", limit.name.to_uppercase()),
        "soft": value(limit.soft),
        "hard": value(limit.hard),
    })
}

/// Variables of a program in it: those of the config go before what is made up.
pub(super) fn environment(config: &ContainerConfig, tty: bool, home: &str) -> Vec<String> {
    let has = |all: &[String], name: &str| all.iter().any(|entry| entry.split('=').next() == Some(name));
    let mut all: Vec<String> = Vec::new();
    let made_up = [PATH.to_owned(), format!("HOSTNAME={}", config.hostname), "TERM=xterm".to_owned()];
    for entry in made_up {
        let name = entry.split('=').next().unwrap_or_default().to_owned();
        if !has(&config.env, &name) && (name != "TERM" || tty) {
            all.push(entry);
        }
    }
    all.extend(config.env.iter().cloned());
    if !has(&all, "HOME") {
        all.push(format!("HOME={home}"));
    }
    all
}

/// The program of another container, whose namespace is to be shared.
fn other(id: &str, what: &str) -> anyhow::Result<Container> {
    let other = Containers::at(&store_root()?)?.find(id)?;
    match other.is_running() && other.record.process.is_some() {
        true => Ok(other),
        false => bail!(Hinted {
            message: format!("cannot join the {what} of a non running container: {}", other.config.name),
            hint: format!("start {} first", other.config.name),
        }),
    }
}

/// The path of a namespace of another container.
fn namespace_of(id: &str, what: &str, file: &str) -> anyhow::Result<String> {
    let other = other(id, what)?;
    let path = format!("/proc/{}/ns/{file}", other.record.process.map_or(0, |process| process.pid));
    match fs::File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => bail!(
            "cannot join the {what} of container {}: it is in another user namespace; an ordinary user's container can \
             join one other, and those that were started in the user namespace of that",
            other.config.name
        ),
        // What else may be wrong with it, the runtime tells.
        _ => Ok(path),
    }
}

fn namespaces(config: &ContainerConfig, spec: &mut Value) -> anyhow::Result<()> {
    let mut joined = Vec::new();
    if let NetworkMode::Container(id) = &config.network {
        joined.push(("network", namespace_of(id, "network", "net")?));
    }
    if let NamespaceMode::Container(id) = &config.pid {
        joined.push(("pid", namespace_of(id, "PID namespace", "pid")?));
    }
    if let NamespaceMode::Container(id) = &config.ipc {
        joined.push(("ipc", namespace_of(id, "IPC namespace", "ipc")?));
    }
    let shared = [
        ("network", config.network == NetworkMode::Host),
        ("pid", config.pid == NamespaceMode::Host),
        ("ipc", config.ipc == NamespaceMode::Host),
        ("uts", config.uts_host),
        ("cgroup", config.cgroup_host || config.privileged),
    ];
    if let Some(list) = spec["linux"]["namespaces"].as_array_mut() {
        list.retain(|namespace| {
            !shared.iter().any(|(name, is_shared)| *is_shared && namespace["type"].as_str() == Some(name))
        });
        for (name, path) in &joined {
            if let Some(namespace) = list.iter_mut().find(|namespace| namespace["type"] == *name) {
                namespace["path"] = json!(path);
            }
        }
    }
    // These are the machine's then.
    if let Some(sysctl) = spec["linux"]["sysctl"].as_object_mut()
        && matches!(config.network, NetworkMode::Host | NetworkMode::Container(_))
    {
        sysctl.retain(|name, _| !name.starts_with("net."));
    }
    if config.ipc == NamespaceMode::Host
        && let Some(mounts) = spec["mounts"].as_array_mut()
    {
        mounts.retain(|mount| mount["destination"] != "/dev/mqueue");
        // A machine that has no place for message queues shows none.
        if Path::new("/dev/mqueue").is_dir() {
            mounts.push(json!({"destination": "/dev/mqueue", "type": "bind", "source": "/dev/mqueue", "options": ["rbind", "nosuid", "noexec", "nodev"]}));
        }
    }
    Ok(())
}

fn seccomp(config: &ContainerConfig, held: &BTreeSet<String>, spec: &mut Value) -> anyhow::Result<()> {
    let linux = &mut spec["linux"];
    match &config.seccomp {
        _ if config.privileged => drop(linux.as_object_mut().map(|linux| linux.remove("seccomp"))),
        Seccomp::Unconfined => drop(linux.as_object_mut().map(|linux| linux.remove("seccomp"))),
        Seccomp::Profile(text) => {
            linux["seccomp"] = serde_json::from_str(text).context("read the seccomp profile")?;
        }
        Seccomp::Default => {
            let held =
                held.iter().filter_map(|name| serde_json::from_value(json!(format!("CAP_{name}"))).ok());
            let architecture = serde_json::from_value(linux["seccomp"]["architectures"][0].clone())
                .context("the architecture of the default profile")?;
            let profile = layerfs_runner::seccomp::default_profile(&held.collect(), architecture);
            linux["seccomp"] = serde_json::to_value(profile)?;
        }
    }
    Ok(())
}

fn mounts(container: &Container, merged: &Path, spec: &mut Value) -> anyhow::Result<()> {
    let config = &container.config;
    // Who shares a network has the names in it too.
    let files = match &config.network {
        NetworkMode::Container(id) => other(id, "network")?.directory,
        _ => container.directory.clone(),
    };
    // Shared memory that programs of both are to see.
    let memory = match &config.ipc {
        NamespaceMode::Container(id) => {
            let pid = other(id, "IPC namespace")?.record.process.map_or(0, |process| process.pid);
            Some(
                parts::of_another(&container.directory, "shm", pid, Path::new("/dev/shm"))?
                    .display()
                    .to_string(),
            )
        }
        NamespaceMode::Host => Some("/dev/shm".into()),
        NamespaceMode::Own => None,
    };
    let Some(list) = spec["mounts"].as_array_mut() else { return Ok(()) };
    for mount in list.iter_mut() {
        match mount["destination"].as_str() {
            Some("/dev/shm") if memory.is_some() => {
                *mount = json!({"destination": "/dev/shm", "type": "bind", "source": memory,
                                "options": ["rbind", "rprivate", "nosuid", "noexec", "nodev"]});
            }
            Some("/dev/shm") if config.shm_size > 0 => {
                mount["options"] =
                    json!(["nosuid", "noexec", "nodev", "mode=1777", format!("size={}", config.shm_size)]);
            }
            Some("/sys" | "/sys/fs/cgroup") if config.privileged => {
                if let Some(options) = mount["options"].as_array_mut() {
                    options.retain(|option| option != "ro");
                }
            }
            _ => {}
        }
    }
    let own = |name: &str, target: &str| {
        json!({"destination": target, "type": "bind", "source": files.join(name),
               "options": ["rbind", "rprivate"]})
    };
    for (name, target) in
        [("hostname", "/etc/hostname"), ("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf")]
    {
        if !config.mounts.iter().any(|mount| mount.target() == target) {
            list.push(own(name, target));
        }
    }
    for (at, mount) in config.mounts.iter().enumerate() {
        let target = mount.target();
        // What is asked for takes the place of what every container has.
        list.retain(|other| other["destination"].as_str() != Some(target));
        list.push(match mount {
            MountSpec::Bind { source, read_only, options, .. } => {
                let makes_source = options.iter().any(|option| option == MAKE_SOURCE);
                if makes_source && !source.exists() {
                    fs::create_dir_all(source)
                        .with_context(|| format!("make {} for -v", source.display()))?;
                }
                if fs::symlink_metadata(source).is_err() {
                    bail!(
                        "invalid mount config for type \"bind\": bind source path does not exist: {}",
                        source.display()
                    );
                }
                let mut words: Vec<&str> =
                    options.iter().map(String::as_str).filter(|option| *option != MAKE_SOURCE).collect();
                if !words.contains(&"bind") && !words.contains(&"rbind") {
                    words.push("rbind");
                }
                if !words
                    .iter()
                    .any(|word| word.contains("private") || word.contains("shared") || word.contains("slave"))
                {
                    words.push("rprivate");
                }
                if *read_only {
                    words.push("ro");
                }
                json!({"destination": target, "type": "bind", "source": source, "options": words})
            }
            MountSpec::Tmpfs { options, .. } => {
                let mut words = vec!["nosuid".to_owned(), "nodev".into(), "noexec".into()];
                words.extend(options.iter().cloned());
                json!({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": words})
            }
            MountSpec::Volume { .. } => super::volume::mount(mount, merged, |part| {
                parts::of_descriptor(&container.directory, &at.to_string(), &part)
            })?,
            MountSpec::Image { subpath, .. } => {
                let path = super::body::image_place(&container.directory, at);
                let part = layerfs_runner::host::beneath(&path, Path::new(subpath))
                    .with_context(|| format!("cannot access path {subpath} in the image at {target}"))?;
                // Nobody writes to an image: what is there now is what will be mounted.
                let source = fs::read_link(format!("/proc/self/fd/{}", part.as_raw_fd()))?;
                json!({"destination": target, "type": "bind", "options": ["rbind", "rprivate", "ro"], "source": source})
            }
        });
    }
    Ok(())
}

fn devices(config: &ContainerConfig, in_user_namespace: bool, spec: &mut Value) -> anyhow::Result<()> {
    let mut rules = Vec::new();
    let mut devices = Vec::new();
    let mut shown = Vec::new();
    if config.privileged {
        rules.push(json!({"allow": true, "access": "rwm"}));
        let host = fs::read_dir("/dev").context("list /dev")?;
        for entry in host.flatten() {
            let path = entry.path();
            if path == Path::new("/dev/console")
                || fs::symlink_metadata(&path).is_ok_and(|m| m.file_type().is_symlink())
            {
                continue;
            }
            if let Some(device) = device(&path, &path.to_string_lossy()) {
                devices.push(device);
            }
        }
    }
    for wanted in &config.devices {
        let words = || {
            format!("error gathering device information while adding device \"{}\"", wanted.source.display())
        };
        let metadata = fs::metadata(&wanted.source).with_context(words)?;
        let sources = match metadata.is_dir() {
            false => vec![(wanted.source.clone(), wanted.target.clone())],
            true => fs::read_dir(&wanted.source)
                .with_context(words)?
                .flatten()
                .map(|entry| {
                    let target = Path::new(&wanted.target).join(entry.file_name());
                    (entry.path(), target.to_string_lossy().into_owned())
                })
                .collect(),
        };
        let is_directory = metadata.is_dir();
        for (source, target) in sources {
            match device(&source, &target) {
                Some(device) => {
                    rules.push(json!({
                        "allow": true, "type": device["type"], "major": device["major"], "minor": device["minor"],
                        "access": wanted.access,
                    }));
                    // A user namespace may make none, and only here is it known what the machine calls it.
                    match in_user_namespace {
                        true => shown.push(json!({"destination": target, "type": "bind", "source": source,
                                                  "options": ["bind", "rprivate", "nosuid", "noexec"]})),
                        false => devices.push(device),
                    }
                }
                None if is_directory => {}
                None => bail!("{}: not a device node", words()),
            }
        }
    }
    for rule in &config.device_rules {
        let fields: Vec<&str> = rule.split_whitespace().collect();
        if let [kind, numbers, access] = fields[..]
            && let Some((major, minor)) = numbers.split_once(':')
        {
            let number = |text: &str| text.parse::<i64>().ok();
            rules.push(json!({"allow": true, "type": kind, "major": number(major), "minor": number(minor), "access": access}));
        }
    }
    if let Some(list) = spec["linux"]["devices"].as_array_mut() {
        for device in devices {
            list.retain(|other| other["path"] != device["path"]);
            list.push(device);
        }
    }
    if let Some(list) = spec["mounts"].as_array_mut() {
        list.extend(shown);
    }
    if let Some(list) = spec["linux"]["resources"]["devices"].as_array_mut() {
        list.extend(rules);
    }
    Ok(())
}

fn device(source: &Path, target: &str) -> Option<Value> {
    let metadata = fs::metadata(source).ok()?;
    let kind = match metadata.file_type() {
        kind if kind.is_block_device() => "b",
        kind if kind.is_char_device() => "c",
        _ => return None,
    };
    Some(json!({
        "path": target, "type": kind,
        "major": rustix::fs::major(metadata.rdev()), "minor": rustix::fs::minor(metadata.rdev()),
        "fileMode": metadata.mode() & 0o777, "uid": metadata.uid(), "gid": metadata.gid(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_added_and_dropped() {
        let held = |add: &[&str], drop: &[&str]| {
            let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            held(&ContainerConfig { cap_add: list(add), cap_drop: list(drop), ..ContainerConfig::default() })
        };
        assert_eq!(held(&[], &[]).len(), 14);
        assert!(held(&["NET_ADMIN"], &[]).contains("NET_ADMIN"));
        assert!(!held(&[], &["CHOWN"]).contains("CHOWN"));
        assert_eq!(held(&["KILL"], &["ALL"]).into_iter().collect::<Vec<_>>(), ["KILL"]);
        assert!(!held(&["ALL"], &["CHOWN"]).contains("CHOWN"));
    }

    #[test]
    fn what_is_asked_for_goes_before_what_is_made_up() {
        let config = ContainerConfig {
            hostname: "box".into(),
            env: vec!["PATH=/bin".into(), "A=1".into()],
            ..ContainerConfig::default()
        };
        assert_eq!(
            environment(&config, true, "/root"),
            ["HOSTNAME=box", "TERM=xterm", "PATH=/bin", "A=1", "HOME=/root"]
        );
        let config = ContainerConfig { env: vec!["HOME=/h".into()], ..config };
        assert_eq!(environment(&config, false, "/root"), [PATH, "HOSTNAME=box", "HOME=/h"]);
    }
}
