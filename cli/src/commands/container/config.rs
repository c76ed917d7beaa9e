//! What was asked for, of one container: `config.json`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use layerfs_runner::cgroup::Hierarchies;
use layerfs_runner::monitor::health::HealthCheck;
use layerfs_runner::monitor::restart::RestartPolicy;
use serde::{Deserialize, Serialize};

use super::network::NetworkSpec;

/// The document. What is not in an older one has its default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ContainerConfig {
    /// 64 hexadecimal digits.
    pub(crate) id: String,
    /// Unique among the containers of the store.
    pub(crate) name: String,
    /// RFC 3339.
    pub(crate) created: String,
    /// The image as it was named.
    pub(crate) image_name: String,
    /// The image's id; `None` on a root filesystem.
    pub(crate) image: Option<String>,
    /// The root filesystem.
    pub(crate) rootfs: Option<PathBuf>,
    /// RFC 3339, of a fork on a root filesystem: since when its changes are changes of that; empty: since `created`.
    pub(crate) lower_since: String,
    /// Kept by a foreground run on a root filesystem: it cannot be started again.
    pub(crate) is_foreground: bool,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    /// `NAME=VALUE`, the image's and those asked for.
    pub(crate) env: Vec<String>,
    pub(crate) workdir: String,
    pub(crate) user: String,
    pub(crate) groups: Vec<String>,
    pub(crate) hostname: String,
    pub(crate) domainname: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
    /// The end of the first client's input is the end of the program's.
    pub(crate) stdin_once: bool,
    pub(crate) attached: bool,
    /// By name or number.
    pub(crate) stop_signal: String,
    /// Seconds.
    pub(crate) stop_timeout: Option<i64>,
    pub(crate) restart: RestartPolicy,
    /// Remove it when it has ended.
    pub(crate) remove: bool,
    pub(crate) log_driver: String,
    pub(crate) log_options: BTreeMap<String, String>,
    pub(crate) network: NetworkMode,
    /// Of a network with a name.
    pub(crate) networking: NetworkSpec,
    /// `80/tcp`, of the image and of `--expose`.
    pub(crate) exposed: Vec<String>,
    pub(crate) read_only: bool,
    pub(crate) privileged: bool,
    pub(crate) cap_add: Vec<String>,
    pub(crate) cap_drop: Vec<String>,
    pub(crate) no_new_privileges: bool,
    pub(crate) seccomp: Seccomp,
    pub(crate) is_unmasked: bool,
    pub(crate) resources: Resources,
    pub(crate) ulimits: Vec<Ulimit>,
    /// Bytes; 0: 64 MiB.
    pub(crate) shm_size: u64,
    pub(crate) mounts: Vec<MountSpec>,
    pub(crate) devices: Vec<DeviceSpec>,
    pub(crate) device_rules: Vec<String>,
    pub(crate) sysctls: BTreeMap<String, String>,
    pub(crate) init: bool,
    pub(crate) pid: NamespaceMode,
    pub(crate) ipc: NamespaceMode,
    pub(crate) uts_host: bool,
    pub(crate) cgroup_host: bool,
    pub(crate) cgroup_parent: String,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) dns: Vec<String>,
    pub(crate) dns_search: Vec<String>,
    pub(crate) dns_options: Vec<String>,
    /// `NAME:ADDRESS`.
    pub(crate) hosts: Vec<String>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// How its health is checked; `None`: it is not.
    pub(crate) health: Option<HealthConfig>,
}

/// Docker's `Healthcheck`. Times are nanoseconds; 0 is the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct HealthConfig {
    /// `CMD` and a program with arguments, or `CMD-SHELL` and a command line.
    pub(crate) test: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) interval: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) timeout: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) start_period: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) start_interval: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) retries: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl HealthConfig {
    /// The command that tells; empty where there is none.
    pub(crate) fn args(&self) -> Vec<String> {
        match self.test.split_first() {
            Some((kind, rest)) if kind == "CMD" => rest.to_vec(),
            Some((kind, rest)) if kind == "CMD-SHELL" && !rest.is_empty() => {
                vec!["/bin/sh".into(), "-c".into(), rest.join(" ")]
            }
            _ => Vec::new(),
        }
    }

    /// When it runs.
    pub(crate) fn schedule(&self) -> HealthCheck {
        let default = HealthCheck::default();
        let or = |nanoseconds: u64, default: Duration| match nanoseconds {
            0 => default,
            nanoseconds => Duration::from_nanos(nanoseconds),
        };
        HealthCheck {
            interval: or(self.interval, default.interval),
            timeout: or(self.timeout, default.timeout),
            start_period: or(self.start_period, default.start_period),
            start_interval: or(self.start_interval, default.start_interval),
            retries: match self.retries {
                0 => default.retries,
                retries => u32::try_from(retries).unwrap_or(u32::MAX),
            },
        }
    }
}

/// Whose namespace of a kind it has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NamespaceMode {
    /// One of its own.
    #[default]
    Own,
    /// The machine's.
    Host,
    /// That of another container, by id.
    Container(String),
}

impl NamespaceMode {
    /// As docker shows it; `own` for one of its own.
    pub(crate) fn word(&self, own: &str) -> String {
        match self {
            Self::Own => own.to_owned(),
            Self::Host => "host".into(),
            Self::Container(id) => format!("container:{id}"),
        }
    }
}

/// Where its network comes from. Other modes are added here and in `spec.rs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NetworkMode {
    /// A network namespace with a loopback interface.
    #[default]
    None,
    /// The machine's.
    Host,
    /// A network of `layerfs network`, by name.
    Named(String),
    /// That of another container, by id.
    Container(String),
    /// Sockets of the user, by a program of its own: for who may not make bridges.
    Userland,
}

impl NetworkMode {
    pub(crate) fn word(&self) -> String {
        match self {
            Self::None => "none".into(),
            Self::Host => "host".into(),
            Self::Named(name) => name.clone(),
            Self::Container(id) => format!("container:{id}"),
            Self::Userland => "user".into(),
        }
    }
}

/// Its system call filter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Seccomp {
    /// The default.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// The text of a profile in the specification's form.
    Profile(String),
}

/// Something mounted in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum MountSpec {
    /// A file or directory of the machine.
    Bind { source: PathBuf, target: String, read_only: bool, options: Vec<String> },
    /// Memory.
    Tmpfs { target: String, options: Vec<String> },
    /// A volume, filled from the image when it is first used. `volume rm` finds its users by `name`.
    Volume {
        name: String,
        target: String,
        read_only: bool,
        /// Nothing is copied into it.
        no_copy: bool,
        /// The part of it that is mounted; empty: all.
        subpath: String,
        /// Made for this container, and goes with it.
        anonymous: bool,
    },
    /// What an image shows, read-only.
    Image {
        /// As it was named.
        name: String,
        /// Its id.
        image: String,
        target: String,
        /// The part of it that is mounted; empty: all.
        subpath: String,
    },
}

impl MountSpec {
    pub(crate) fn target(&self) -> &str {
        match self {
            Self::Bind { target, .. }
            | Self::Tmpfs { target, .. }
            | Self::Volume { target, .. }
            | Self::Image { target, .. } => target,
        }
    }
}

/// A device of the machine in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceSpec {
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    /// Of `rwm`.
    pub(crate) access: String,
}

/// A limit of its processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ulimit {
    pub(crate) name: String,
    /// -1: none.
    pub(crate) soft: i64,
    pub(crate) hard: i64,
}

/// Limits of its cgroup; 0, and empty, are none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Resources {
    /// Bytes.
    pub(crate) memory: i64,
    /// Bytes, with memory; -1: without limit.
    pub(crate) memory_swap: i64,
    /// Bytes.
    pub(crate) memory_reservation: i64,
    /// Thousand-millionths of a CPU.
    pub(crate) nano_cpus: i64,
    pub(crate) cpu_shares: u64,
    /// Microseconds.
    pub(crate) cpu_period: u64,
    /// Microseconds.
    pub(crate) cpu_quota: i64,
    pub(crate) cpuset_cpus: String,
    pub(crate) cpuset_mems: String,
    /// -1: without limit.
    pub(crate) pids_limit: i64,
    pub(crate) blkio_weight: u16,
    pub(crate) oom_kill_disable: bool,
}

impl Resources {
    /// The limit of memory and swap together, in bytes; -1: without limit, 0: none is set. With a limit of memory alone it
    /// is docker's default, as much swap as memory.
    pub(crate) fn swap(&self) -> i64 {
        match (self.memory_swap, self.memory) {
            (0, memory) if memory > 0 => memory.saturating_mul(2),
            (swap, _) => swap,
        }
    }

    /// As [`to_spec`](Self::to_spec), without a limit of swap that nobody has asked for where the kernel has none.
    pub(crate) fn to_spec_here(&self) -> serde_json::Value {
        let mut spec = self.to_spec();
        if self.memory_swap == 0
            && let Some(memory) = spec.get_mut("memory").and_then(serde_json::Value::as_object_mut)
            && !Hierarchies::discover().is_ok_and(|hierarchies| hierarchies.can_limit_swap())
        {
            memory.remove("swap");
        }
        spec
    }

    /// As the specification's `linux.resources`.
    pub(crate) fn to_spec(&self) -> serde_json::Value {
        use serde_json::{Value, json};
        let mut memory = serde_json::Map::new();
        let mut cpu = serde_json::Map::new();
        let set = |map: &mut serde_json::Map<String, Value>, name: &str, value: Value, is_set: bool| {
            if is_set {
                map.insert(name.into(), value);
            }
        };
        set(&mut memory, "limit", json!(self.memory), self.memory != 0);
        let swap = self.swap();
        set(&mut memory, "swap", json!(swap), swap != 0);
        set(&mut memory, "reservation", json!(self.memory_reservation), self.memory_reservation != 0);
        set(&mut memory, "disableOOMKiller", json!(true), self.oom_kill_disable);
        set(&mut cpu, "shares", json!(self.cpu_shares), self.cpu_shares != 0);
        let (quota, period) = match self.nano_cpus {
            0 => (self.cpu_quota, self.cpu_period),
            nano => (nano / 10_000, 100_000),
        };
        set(&mut cpu, "quota", json!(quota), quota != 0);
        set(&mut cpu, "period", json!(period), period != 0);
        set(&mut cpu, "cpus", json!(self.cpuset_cpus), !self.cpuset_cpus.is_empty());
        set(&mut cpu, "mems", json!(self.cpuset_mems), !self.cpuset_mems.is_empty());
        let mut resources = serde_json::Map::new();
        set(&mut resources, "memory", json!(memory.clone()), !memory.is_empty());
        set(&mut resources, "cpu", json!(cpu.clone()), !cpu.is_empty());
        set(&mut resources, "pids", json!({"limit": self.pids_limit}), self.pids_limit != 0);
        set(&mut resources, "blockIO", json!({"weight": self.blkio_weight}), self.blkio_weight != 0);
        Value::Object(resources)
    }
}

impl ContainerConfig {
    /// Its program has the streams of the command that starts it, and nothing is logged.
    pub(crate) fn passes_streams(&self) -> bool {
        self.log_driver == "passthrough"
    }

    /// The container, by its id, of whose namespaces it shares one.
    pub(crate) fn joined(&self) -> Option<&str> {
        let network = match &self.network {
            NetworkMode::Container(id) => Some(id.as_str()),
            _ => None,
        };
        let others = [&self.pid, &self.ipc].into_iter().filter_map(|mode| match mode {
            NamespaceMode::Container(id) => Some(id.as_str()),
            _ => None,
        });
        network.into_iter().chain(others).next()
    }

    /// The program and its arguments.
    pub(crate) fn args(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.cmd).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_the_specifications() {
        let resources =
            Resources { memory: 64 << 20, nano_cpus: 1_500_000_000, pids_limit: 50, ..Resources::default() };
        let spec = resources.to_spec();
        assert_eq!(spec["memory"]["limit"], 64 << 20);
        // Docker's default.
        assert_eq!(spec["memory"]["swap"], 128 << 20);
        let swap = |memory, memory_swap| Resources { memory, memory_swap, ..Resources::default() }.swap();
        assert_eq!((swap(0, 0), swap(10, -1), swap(10, 15)), (0, -1, 15));
        assert_eq!(
            (spec["cpu"]["quota"].as_i64(), spec["cpu"]["period"].as_u64()),
            (Some(150_000), Some(100_000))
        );
        assert_eq!(spec["pids"]["limit"], 50);
        assert_eq!(Resources::default().to_spec(), serde_json::json!({}));
    }

    #[test]
    fn an_older_document_is_read() {
        let config: ContainerConfig =
            serde_json::from_str(r#"{"id":"x","name":"y","restart":{"on-failure":3}}"#).unwrap();
        assert_eq!(config.restart, RestartPolicy::OnFailure(3));
        assert_eq!(config.network, NetworkMode::None);
    }
}
