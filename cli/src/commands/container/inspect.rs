//! `layerfs inspect`, of containers and images, and `layerfs container inspect`.

use std::process::ExitCode;

use clap::Args;
use layerfs_runner::monitor::record::Status;
use serde_json::{Value, json};

use super::config::{ContainerConfig, MountSpec};
use super::prune::disk_usage;
use super::store::{Container, Containers, LOG};
use crate::commands::image::inspect::{self as image, print};
use crate::commands::{network, volume};
use crate::exit::{self, Usage};
use crate::{images, ui};

/// Show all that is known of containers, as JSON
#[derive(Debug, Args)]
pub(crate) struct ContainerInspectArgs {
    /// A Go template, or `json`
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Also sizes
    #[arg(short, long)]
    size: bool,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

/// Show all that is known of containers, images, networks and volumes, as JSON
///
/// A name is looked for in this order.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A Go template, or `json`
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Also sizes of containers
    #[arg(short, long)]
    size: bool,
    /// Only of this type: container, image, network or volume
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// Names or ids
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

pub(crate) fn container_inspect(args: ContainerInspectArgs) -> anyhow::Result<ExitCode> {
    let ContainerInspectArgs { format, size, containers } = args;
    inspect(InspectArgs { format, size, r#type: Some("container".into()), names: containers })
}

pub(crate) fn inspect(args: InspectArgs) -> anyhow::Result<ExitCode> {
    let kinds = match args.r#type.as_deref() {
        None => &["container", "image", "network", "volume"][..],
        Some(kind @ ("container" | "image" | "network" | "volume")) => &[kind],
        Some(other) => return Err(Usage(format!("\"{other}\" is not a valid value for --type")).into()),
    };
    let containers = Containers::open()?;
    let store = if kinds.contains(&"image") { Some(images::open_store()?) } else { None };
    let find = |kind: &str, name: &str| match (kind, &store) {
        ("image", Some(store)) => images::find_whole(store, name).map(|found| image::document(store, &found)),
        ("network", _) => network::inspect::document(name),
        ("volume", _) => volume::inspect::document(name),
        _ => containers.find(name).map(|found| document(&found, args.size)),
    };
    let (mut documents, mut failed) = (Vec::new(), false);
    for name in &args.names {
        let (mut found, mut is_there) = (Err(anyhow::anyhow!("No such object: {name}")), false);
        for kind in kinds {
            found = find(kind, name);
            // A damaged image is there, and it is said what is wrong with it.
            is_there = found.as_ref().map_or_else(|error| *kind == "image" && !is_missing(error), |_| true);
            if is_there {
                break;
            }
        }
        match found {
            Ok(document) => documents.push(document),
            Err(error) => {
                failed = true;
                match args.r#type {
                    None if !is_there => ui::note(format_args!("No such object: {name}")),
                    _ => ui::error(&error),
                }
            }
        }
    }
    print(&documents, args.format.as_deref())?;
    Ok(ExitCode::from(if failed { exit::FAILURE } else { 0 }))
}

fn is_missing(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(layerfs_image::Error::NoSuchImage(_)))
}

/// A time that never was, as docker has it.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Docker's document.
fn document(container: &Container, size: bool) -> Value {
    let (config, record) = (&container.config, &container.record);
    let time = |text: &str| if text.is_empty() { NEVER.to_owned() } else { text.to_owned() };
    let word = container.word();
    let args = config.args();
    let file = |name: &str| container.directory.join(name).display().to_string();
    let mut document = json!({
        "Id": config.id,
        "Created": config.created,
        "Path": args.first().cloned().unwrap_or_default(),
        "Args": args.get(1..).unwrap_or_default(),
        "State": {
            "Status": word,
            "Running": record.status == Status::Running || record.status == Status::Restarting,
            "Paused": word == "paused",
            "Restarting": record.status == Status::Restarting,
            "OOMKilled": record.oom_killed,
            "Dead": record.status == Status::Dead,
            "Pid": record.process.filter(|_| container.is_running()).map_or(0, |process| process.pid),
            "ExitCode": record.exit_code,
            "Error": record.error,
            "StartedAt": time(&record.started_at),
            "FinishedAt": time(&record.finished_at),
        },
        "Image": config.image.clone().unwrap_or_default(),
        "ResolvConfPath": file("resolv.conf"),
        "HostnamePath": file("hostname"),
        "HostsPath": file("hosts"),
        "LogPath": if config.log_driver != "json-file" { String::new() } else { file(LOG) },
        "Name": format!("/{}", config.name),
        "RestartCount": record.restart_count,
        "Driver": "layerfs",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": null,
        "HostConfig": host_config(config),
        "GraphDriver": { "Name": "layerfs", "Data": {
            "UpperDir": file("upper"), "WorkDir": file("work"), "MergedDir": file("merged") } },
        "Mounts": mounts(container),
        "Config": config_document(config),
        "NetworkSettings": super::network::settings(config),
    });
    if let Some(health) = &record.health {
        document["State"]["Health"] = json!(health);
    }
    if size {
        let own = disk_usage(&container.directory.join("upper"));
        document["SizeRw"] = own.into();
        document["SizeRootFs"] = (own + image_size(container)).into();
    }
    document
}

/// Bytes of the files of its image, unpacked; none of a container without one.
fn image_size(container: &Container) -> u64 {
    let Some(id) = &container.config.image else { return 0 };
    images::open_store()
        .and_then(|store| Ok(store.unpacked_size(&images::find(&store, id)?)))
        .unwrap_or_default()
}

fn host_config(config: &ContainerConfig) -> Value {
    let mode = |is_host: bool, own: &str| if is_host { "host".to_owned() } else { own.to_owned() };
    let list = |names: &[String]| if names.is_empty() { Value::Null } else { json!(names) };
    let binds: Vec<String> = config
        .mounts
        .iter()
        .filter_map(|mount| match mount {
            MountSpec::Bind { source, target, read_only, .. } => {
                Some(format!("{}:{target}{}", source.display(), if *read_only { ":ro" } else { "" }))
            }
            MountSpec::Volume { name, target, read_only, anonymous: false, .. } => {
                Some(format!("{name}:{target}{}", if *read_only { ":ro" } else { "" }))
            }
            _ => None,
        })
        .collect();
    let (name, retries) = match config.restart {
        layerfs_runner::monitor::restart::RestartPolicy::OnFailure(count) => ("on-failure", count),
        other => (other.name(), 0),
    };
    let mut security = Vec::new();
    if config.no_new_privileges {
        security.push("no-new-privileges".to_owned());
    }
    if config.seccomp == super::config::Seccomp::Unconfined {
        security.push("seccomp=unconfined".to_owned());
    }
    let mut document = json!({
        "Binds": list(&binds),
        "LogConfig": { "Type": config.log_driver, "Config": config.log_options },
        "NetworkMode": config.network.word(),
        "PortBindings": super::network::bindings(config),
        "RestartPolicy": { "Name": name, "MaximumRetryCount": retries },
        "AutoRemove": config.remove,
        "CapAdd": list(&config.cap_add),
        "CapDrop": list(&config.cap_drop),
        "CgroupnsMode": mode(config.cgroup_host, "private"),
        "Dns": config.dns,
        "DnsOptions": config.dns_options,
        "DnsSearch": config.dns_search,
        "ExtraHosts": list(&config.hosts),
        "GroupAdd": list(&config.groups),
        "IpcMode": config.ipc.word("private"),
        "OomScoreAdj": config.oom_score_adj.unwrap_or(0),
        "PidMode": config.pid.word(""),
        "Privileged": config.privileged,
        "PublishAllPorts": false,
        "ReadonlyRootfs": config.read_only,
        "SecurityOpt": list(&security),
        "UTSMode": mode(config.uts_host, ""),
        "ShmSize": if config.shm_size == 0 { 64 << 20 } else { config.shm_size },
        "Sysctls": config.sysctls,
        "Runtime": "layerfs",
        "Init": config.init,
    });
    if let (Some(document), Value::Object(limits)) = (document.as_object_mut(), limits(config)) {
        document.extend(limits);
    }
    document
}

fn limits(config: &ContainerConfig) -> Value {
    let resources = &config.resources;
    json!({
        "CpuShares": resources.cpu_shares,
        "Memory": resources.memory,
        "NanoCpus": resources.nano_cpus,
        "CgroupParent": config.cgroup_parent,
        "BlkioWeight": resources.blkio_weight,
        "CpuPeriod": resources.cpu_period,
        "CpuQuota": resources.cpu_quota,
        "CpusetCpus": resources.cpuset_cpus,
        "CpusetMems": resources.cpuset_mems,
        "Devices": config.devices.iter().map(|device| json!({
            "PathOnHost": device.source, "PathInContainer": device.target, "CgroupPermissions": device.access,
        })).collect::<Vec<_>>(),
        "MemoryReservation": resources.memory_reservation,
        "MemorySwap": resources.swap(),
        "OomKillDisable": resources.oom_kill_disable,
        "PidsLimit": if resources.pids_limit == 0 { Value::Null } else { json!(resources.pids_limit) },
        "Ulimits": config.ulimits.iter().map(|limit| json!({
            "Name": limit.name, "Soft": limit.soft, "Hard": limit.hard,
        })).collect::<Vec<_>>(),
    })
}

fn config_document(config: &ContainerConfig) -> Value {
    let list = |words: &[String]| if words.is_empty() { Value::Null } else { json!(words) };
    let volumes: serde_json::Map<String, Value> = config
        .mounts
        .iter()
        .filter(|mount| matches!(mount, MountSpec::Volume { .. }))
        .map(|mount| (mount.target().to_owned(), json!({})))
        .collect();
    let mut document = json!({
        "Hostname": config.hostname,
        "Domainname": config.domainname,
        "User": config.user,
        "AttachStdin": config.attached && config.stdin,
        "AttachStdout": config.attached,
        "AttachStderr": config.attached,
        "Tty": config.tty,
        "OpenStdin": config.stdin,
        "StdinOnce": config.stdin_once,
        "Env": config.env,
        "Cmd": list(&config.cmd),
        "Image": config.image_name,
        "Volumes": if volumes.is_empty() { Value::Null } else { Value::Object(volumes) },
        "WorkingDir": config.workdir,
        "Entrypoint": list(&config.entrypoint),
        "Labels": config.labels,
    });
    if !config.exposed.is_empty() {
        let ports: serde_json::Map<String, Value> =
            config.exposed.iter().map(|port| (port.clone(), json!({}))).collect();
        document["ExposedPorts"] = Value::Object(ports);
    }
    if let Some(health) = &config.health {
        document["Healthcheck"] = json!(health);
    }
    if !config.stop_signal.is_empty() {
        document["StopSignal"] = json!(config.stop_signal);
    }
    if let Some(timeout) = config.stop_timeout {
        document["StopTimeout"] = json!(timeout);
    }
    document
}

/// Where a volume is on disk.
fn volume_place(name: &str) -> String {
    let found = crate::commands::volume::open().ok().and_then(|volumes| volumes.find(name).ok());
    found.map(|volume| volume.mountpoint.display().to_string()).unwrap_or_default()
}

fn mounts(container: &Container) -> Vec<Value> {
    let entry = |mount: &MountSpec| match mount {
        MountSpec::Bind { source, target, read_only, .. } => json!({
            "Type": "bind", "Source": source, "Destination": target, "Mode": if *read_only { "ro" } else { "" },
            "RW": !read_only, "Propagation": "rprivate",
        }),
        MountSpec::Tmpfs { target, options } => json!({
            "Type": "tmpfs", "Source": "", "Destination": target, "Mode": options.join(","),
            "RW": !options.iter().any(|option| option == "ro"), "Propagation": "",
        }),
        MountSpec::Volume { name, target, read_only, .. } => json!({
            "Type": "volume", "Name": name, "Source": volume_place(name), "Destination": target,
            "Driver": "local", "Mode": if *read_only { "ro" } else { "" }, "RW": !read_only, "Propagation": "",
        }),
        MountSpec::Image { name, target, .. } => json!({
            "Type": "image", "Name": name, "Source": "", "Destination": target, "Mode": "ro", "RW": false,
            "Propagation": "",
        }),
    };
    container.config.mounts.iter().map(entry).collect()
}
