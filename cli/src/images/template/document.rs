//! Fields of docker's documents that are not always there.
//!
//! docker fills a template from Go's structures (moby `api/types`), where a field that was not set still has the zero of its
//! type. Here data is JSON, and such a field is missing or null.

/// What Go prints for the zero of a type.
const TEXT: &str = "";
const NUMBER: &str = "0";
const BOOL: &str = "false";
const LIST: &str = "[]";
const MAP: &str = "map[]";
const POINTER: &str = "<nil>";

/// What `{{.NAME}}` prints where `field` has not been set; nothing for fields that no document has, or that always are.
pub(super) fn unset(field: &str) -> Option<&'static str> {
    Some(match field {
        "Variant"
        | "OsVersion"
        | "Parent"
        | "Comment"
        | "Author"
        | "DockerVersion"
        | "Container"
        | "Hostname"
        | "Domainname"
        | "User"
        | "Image"
        | "WorkingDir"
        | "MacAddress"
        | "StopSignal"
        | "Runtime"
        | "Isolation"
        | "CgroupParent"
        | "Cgroup"
        | "CpusetCpus"
        | "CpusetMems"
        | "UsernsMode"
        | "UTSMode"
        | "PidMode"
        | "IpcMode"
        | "CgroupnsMode"
        | "ContainerIDFile"
        | "VolumeDriver"
        | "AppArmorProfile"
        | "MountLabel"
        | "ProcessLabel"
        | "IPAddress"
        | "Gateway"
        | "EndpointID"
        | "GlobalIPv6Address"
        | "IPv6Gateway"
        | "SandboxID"
        | "SandboxKey"
        | "Bridge"
        | "LinkLocalIPv6Address"
        | "SecondaryMountpoint" => TEXT,
        "SizeRw"
        | "SizeRootFs"
        | "StopTimeout"
        | "PidsLimit"
        | "Init"
        | "OomKillDisable"
        | "MemorySwappiness"
        | "Healthcheck"
        | "Health"
        | "Node"
        | "Status"
        | "UsageData"
        | "ClusterVolume"
        | "ContainerConfig"
        | "ImageManifestDescriptor"
        | "Descriptor" => POINTER,
        "VirtualSize"
        | "Memory"
        | "MemorySwap"
        | "MemoryReservation"
        | "KernelMemory"
        | "NanoCpus"
        | "CpuShares"
        | "CpuPeriod"
        | "CpuQuota"
        | "CpuRealtimePeriod"
        | "CpuRealtimeRuntime"
        | "BlkioWeight"
        | "CpuCount"
        | "CpuPercent"
        | "IOMaximumIOps"
        | "IOMaximumBandwidth"
        | "ShmSize"
        | "OomScoreAdj"
        | "IPPrefixLen"
        | "GlobalIPv6PrefixLen"
        | "LinkLocalIPv6PrefixLen" => NUMBER,
        "ArgsEscaped" | "NetworkDisabled" | "AttachStdin" | "AttachStdout" | "AttachStderr" | "Tty"
        | "OpenStdin" | "StdinOnce" | "HairpinMode" | "AutoRemove" | "Privileged" | "PublishAllPorts"
        | "ReadonlyRootfs" | "EnableIPv6" | "ConfigOnly" | "Ingress" | "Attachable" | "Internal" => BOOL,
        "Env"
        | "Cmd"
        | "Entrypoint"
        | "OnBuild"
        | "Shell"
        | "ExecIDs"
        | "Binds"
        | "VolumesFrom"
        | "CapAdd"
        | "CapDrop"
        | "Dns"
        | "DnsOptions"
        | "DnsSearch"
        | "ExtraHosts"
        | "GroupAdd"
        | "Links"
        | "SecurityOpt"
        | "Devices"
        | "DeviceCgroupRules"
        | "DeviceRequests"
        | "Ulimits"
        | "BlkioWeightDevice"
        | "BlkioDeviceReadBps"
        | "BlkioDeviceWriteBps"
        | "BlkioDeviceReadIOps"
        | "BlkioDeviceWriteIOps"
        | "MaskedPaths"
        | "ReadonlyPaths"
        | "ConsoleSize"
        | "RepoTags"
        | "RepoDigests"
        | "Layers"
        | "Aliases"
        | "DNSNames"
        | "Mounts"
        | "Args"
        | "SecondaryIPAddresses"
        | "SecondaryIPv6Addresses"
        | "Manifests" => LIST,
        "Labels" | "Annotations" | "Sysctls" | "Tmpfs" | "StorageOpt" | "Options" | "DriverOpts"
        | "ExposedPorts" | "Volumes" | "PortBindings" | "Ports" | "Networks" | "Containers" | "Data"
        | "AuxiliaryAddresses" => MAP,
        _ => return None,
    })
}

/// As [`unset`], in an entry of a list: a mount, a layer of the history.
pub(super) fn unset_in_list(field: &str) -> Option<&'static str> {
    match field {
        "Name" | "Driver" | "Source" | "Destination" | "Mode" | "Propagation" | "Type" => Some(TEXT),
        "RW" => Some(BOOL),
        _ => unset(field),
    }
}

/// Whether the keys of what `path` leads to are for users to choose.
pub(super) fn has_any_keys(path: &[String]) -> bool {
    match path {
        [.., log, config] if config == "Config" => log == "LogConfig",
        [.., last] => unset(last) == Some(MAP),
        [] => false,
    }
}
