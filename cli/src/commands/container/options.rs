//! The options of `create` and `run`, with docker's words; as values in `create.rs`.

// Help texts put what may be left out in brackets, as usage lines do.
#![allow(rustdoc::broken_intra_doc_links)]

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

/// What a container is to be.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub(crate) struct CreateOptions {
    /// Name of the container [default: one is made up]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Remove the container and its anonymous volumes when its command has ended
    #[arg(long)]
    pub(crate) rm: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set an environment variable; without =VALUE, to what it is here
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,
    /// Read environment variables from a file, a line each
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Working directory, made if it is missing
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<PathBuf>,
    /// User and group, by name in the container or by number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Further groups of the user
    #[arg(long, value_name = "GROUP")]
    pub(crate) group_add: Vec<String>,
    /// Host name [default: the container's short id]
    // -h is docker's; help is --help alone on these commands.
    #[arg(short = 'h', long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Domain name
    #[arg(long, value_name = "NAME")]
    pub(crate) domainname: Option<String>,
    /// Command in place of the image's entrypoint; empty for none
    #[arg(long, value_name = "COMMAND")]
    pub(crate) entrypoint: Option<String>,
    /// Set a label
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) label: Vec<String>,
    /// Read labels from a file, a line each
    #[arg(long, value_name = "FILE")]
    pub(crate) label_file: Vec<PathBuf>,
    /// Write the id to a file, which must not exist
    #[arg(long, value_name = "FILE")]
    pub(crate) cidfile: Option<PathBuf>,
    /// Say nothing of pulling the image
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// When to pull the image: missing, always, never
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pub(crate) pull: String,
    /// Start again after an end: no, on-failure[:N], always, unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub(crate) restart: String,
    /// Signal that asks the command to stop
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<String>,
    /// Seconds until a command that was asked to stop is killed
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub(crate) stop_timeout: Option<i64>,
    /// Run an init as process 1, which reaps orphans and passes signals on
    #[arg(long)]
    pub(crate) init: bool,
    /// Log driver: json-file, none, or passthrough, which gives the command the streams of who starts it
    #[arg(long, value_name = "DRIVER")]
    pub(crate) log_driver: Option<String>,
    /// Option of the log driver: max-size, max-file
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) log_opt: Vec<String>,
    /// Add an annotation of the runtime's document
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) annotation: Vec<String>,

    /// Mount a volume or a path of the machine: NAME:TARGET[:ro,...] or /PATH:TARGET[:ro,...]; TARGET alone is a new volume
    /// without a name
    #[arg(short, long, value_name = "VOLUME", help_heading = "Files")]
    pub(crate) volume: Vec<String>,
    /// Mount: type=bind|tmpfs|volume|image,source=...,target=...[,readonly]
    #[arg(long, value_name = "MOUNT", help_heading = "Files")]
    pub(crate) mount: Vec<String>,
    /// Mount what another container has mounted too: CONTAINER[:ro|rw]
    #[arg(long, value_name = "CONTAINER", help_heading = "Files")]
    pub(crate) volumes_from: Vec<String>,
    /// Mount memory at a path: PATH[:OPTIONS]
    #[arg(long, value_name = "PATH[:OPTIONS]", help_heading = "Files")]
    pub(crate) tmpfs: Vec<String>,
    /// Mount the root filesystem read-only
    #[arg(long, help_heading = "Files")]
    pub(crate) read_only: bool,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES", help_heading = "Files")]
    pub(crate) shm_size: Option<String>,
    /// Add a device of the machine: SOURCE[:TARGET[:rwm]]
    #[arg(long, value_name = "DEVICE", help_heading = "Files")]
    pub(crate) device: Vec<String>,
    /// Allow devices: TYPE MAJOR:MINOR rwm
    #[arg(long, value_name = "RULE", help_heading = "Files")]
    pub(crate) device_cgroup_rule: Vec<String>,

    /// Network: bridge, host, none, container:NAME, or one of layerfs network, also as name=NAME,alias=...,ip=...
    /// [default: bridge]
    #[arg(long, visible_alias = "net", value_name = "NETWORK", help_heading = "Network")]
    pub(crate) network: Vec<String>,
    /// Another name of the container in its network
    #[arg(long, visible_alias = "net-alias", value_name = "NAME", help_heading = "Network")]
    pub(crate) network_alias: Vec<String>,
    /// Its address [default: a free one of the network]
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    pub(crate) ip: Option<String>,
    /// Its address of IPv6 [default: a free one of the network]
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    pub(crate) ip6: Option<String>,
    /// Its hardware address [default: made of its address]
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    pub(crate) mac_address: Option<String>,
    /// Tell which port the command listens on: PORT[/PROTOCOL]
    #[arg(long, value_name = "PORT", help_heading = "Network")]
    pub(crate) expose: Vec<String>,
    /// Name server for /etc/resolv.conf
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    pub(crate) dns: Vec<String>,
    /// Search domain for /etc/resolv.conf
    #[arg(long, value_name = "DOMAIN", help_heading = "Network")]
    pub(crate) dns_search: Vec<String>,
    /// Option for /etc/resolv.conf
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION", help_heading = "Network")]
    pub(crate) dns_option: Vec<String>,
    /// Line for /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS", help_heading = "Network")]
    pub(crate) add_host: Vec<String>,
    /// Publish a port: [IP:][HOST[-RANGE]]:CONTAINER[-RANGE][/tcp|/udp]
    #[arg(short, long, value_name = "PORTS", help_heading = "Network")]
    pub(crate) publish: Vec<String>,
    /// Publish all exposed ports on free ones
    #[arg(short = 'P', long, help_heading = "Network")]
    pub(crate) publish_all: bool,

    /// Most memory: a number with b, k, m or g
    #[arg(short, long, value_name = "BYTES", help_heading = "Limits")]
    pub(crate) memory: Option<String>,
    /// Memory and swap; -1 for any amount of swap
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, help_heading = "Limits")]
    pub(crate) memory_swap: Option<String>,
    /// Memory below which nothing is taken from it
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub(crate) memory_reservation: Option<String>,
    /// CPUs, as a decimal number
    #[arg(long, value_name = "NUMBER", help_heading = "Limits")]
    pub(crate) cpus: Option<String>,
    /// Weight among others [default of the kernel: 1024]
    #[arg(short, long, value_name = "NUMBER", help_heading = "Limits")]
    pub(crate) cpu_shares: Option<u64>,
    /// Length of a period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", help_heading = "Limits")]
    pub(crate) cpu_period: Option<u64>,
    /// CPU time in a period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true, help_heading = "Limits")]
    pub(crate) cpu_quota: Option<i64>,
    /// CPUs it may run on: 0-3,7
    #[arg(long, value_name = "LIST", help_heading = "Limits")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes it may use
    #[arg(long, value_name = "LIST", help_heading = "Limits")]
    pub(crate) cpuset_mems: Option<String>,
    /// Most processes; -1 for any number
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, help_heading = "Limits")]
    pub(crate) pids_limit: Option<i64>,
    /// Weight of disk I/O, 10 to 1000
    #[arg(long, value_name = "NUMBER", help_heading = "Limits")]
    pub(crate) blkio_weight: Option<u16>,
    /// Limit of each process: NAME=SOFT[:HARD]
    #[arg(long, value_name = "LIMIT", help_heading = "Limits")]
    pub(crate) ulimit: Vec<String>,
    /// How likely the kernel kills it for lack of memory, -1000 to 1000
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, help_heading = "Limits")]
    pub(crate) oom_score_adj: Option<i32>,
    /// Never kill it for lack of memory (version 1 of cgroups)
    #[arg(long, help_heading = "Limits")]
    pub(crate) oom_kill_disable: bool,

    /// Give it a capability; ALL for all
    #[arg(long, value_name = "CAPABILITY", help_heading = "Isolation")]
    pub(crate) cap_add: Vec<String>,
    /// Take a capability from it; ALL for all
    #[arg(long, value_name = "CAPABILITY", help_heading = "Isolation")]
    pub(crate) cap_drop: Vec<String>,
    /// All capabilities and devices, nothing masked, no system call filter
    #[arg(long, help_heading = "Isolation")]
    pub(crate) privileged: bool,
    /// no-new-privileges, seccomp=unconfined|FILE, systempaths=unconfined
    #[arg(long, value_name = "OPTION", help_heading = "Isolation")]
    pub(crate) security_opt: Vec<String>,
    /// Set a kernel parameter of its namespaces
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Isolation")]
    pub(crate) sysctl: Vec<String>,
    /// Process ids: host shares the machine's, container:NAME another container's
    #[arg(long, value_name = "MODE", help_heading = "Isolation")]
    pub(crate) pid: Option<String>,
    /// Shared memory: private, shareable, host for the machine's, or container:NAME
    #[arg(long, value_name = "MODE", help_heading = "Isolation")]
    pub(crate) ipc: Option<String>,
    /// Names of the machine: host shares them
    #[arg(long, value_name = "MODE", help_heading = "Isolation")]
    pub(crate) uts: Option<String>,
    /// View of cgroups: private, or host for the machine's
    #[arg(long, value_name = "MODE", help_heading = "Isolation")]
    pub(crate) cgroupns: Option<String>,
    /// Cgroup above the container's
    #[arg(long, value_name = "CGROUP", help_heading = "Isolation")]
    pub(crate) cgroup_parent: Option<String>,

    /// Not supported: told in words
    #[arg(long, hide = true)]
    pub(crate) gpus: Option<String>,
    /// Command that tells whether it is healthy, by its exit code
    #[arg(long, value_name = "COMMAND", help_heading = "Health")]
    pub(crate) health_cmd: Option<String>,
    /// Time between two checks, as 1m30s [default: 30s]
    #[arg(long, value_name = "TIME", help_heading = "Health")]
    pub(crate) health_interval: Option<String>,
    /// Time that a check may take [default: 30s]
    #[arg(long, value_name = "TIME", help_heading = "Health")]
    pub(crate) health_timeout: Option<String>,
    /// Failures in a row that make it unhealthy [default: 3]
    #[arg(long, value_name = "NUMBER", help_heading = "Health")]
    pub(crate) health_retries: Option<u64>,
    /// Time after the start in which failures do not count [default: 0s]
    #[arg(long, value_name = "TIME", help_heading = "Health")]
    pub(crate) health_start_period: Option<String>,
    /// Time between two checks in that time [default: 5s]
    #[arg(long, value_name = "TIME", help_heading = "Health")]
    pub(crate) health_start_interval: Option<String>,
    /// Do not check its health, also where the image says how
    #[arg(long, help_heading = "Health")]
    pub(crate) no_healthcheck: bool,
    /// User namespace: host, the one of who runs it
    #[arg(long, value_name = "MODE", help_heading = "Isolation")]
    pub(crate) userns: Option<String>,
    /// Platform of the image: OS/ARCHITECTURE[/VARIANT]
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
}

impl CreateOptions {
    /// What was asked for of the namespaces that another container may share.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.network.iter().chain(&self.pid).chain(&self.ipc).map(String::as_str)
    }
}
