//! A container in its networks: joined when its first process is there and does not run yet, left when it has ended.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use layerfs_network::files::{self, Dns, HostResolver, Reach};
use layerfs_network::ports::{self, ExposedPort, PortMapping, Protocol, Published};
use layerfs_network::userland::Program;
use layerfs_network::{Attachment, Driver, Lease, Mac, Namespace, Network, Request};
use layerfs_runner::host;
use layerfs_runner::state::ProcessIdentity;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::config::{ContainerConfig, NetworkMode};
use super::options::CreateOptions;
use super::store::{Container, Containers};
use crate::commands::network::{open, told};
use crate::exit::{Hinted, Usage};
use crate::{events, ui};

/// What was asked for of its networks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct NetworkSpec {
    /// Published ports.
    pub(crate) ports: Vec<PortMapping>,
    /// In the network of its mode.
    #[serde(flatten)]
    pub(crate) main: Endpoint,
    /// Further networks, by name.
    pub(crate) others: BTreeMap<String, Endpoint>,
}

/// What was asked for in one network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Endpoint {
    /// `--network-alias`
    pub(crate) aliases: Vec<String>,
    /// `--ip`
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// `--ip6`
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// `--mac-address`
    pub(crate) mac: Option<Mac>,
}

/// Environment variable with the network of containers for which none is named.
const DEFAULT_NETWORK: &str = "LAYERFS_NETWORK";

/// The networks of `--network`: the text before the first comma, or what `name=` says; with its own options.
fn wanted(options: &CreateOptions) -> anyhow::Result<Vec<(String, Endpoint)>> {
    let mut found: Vec<(String, Endpoint)> = Vec::new();
    for text in &options.network {
        let (mut name, mut endpoint) = (None, Endpoint::default());
        if !text.contains('=') {
            name = Some(text.clone());
        } else {
            for field in text.split(',') {
                match field.split_once('=') {
                    Some(("name", value)) => name = Some(value.to_owned()),
                    Some(("alias", value)) => endpoint.aliases.push(value.to_owned()),
                    Some(("ip", value)) => endpoint.ipv4 = Some(parsed("ip", value)?),
                    Some(("ip6", value)) => endpoint.ipv6 = Some(parsed("ip6", value)?),
                    Some(("mac-address", value)) => endpoint.mac = Some(mac(value)?),
                    _ => bail!(Usage(format!(
                        "--network {text}: invalid field {field}; there are name, alias, ip, ip6 and mac-address"
                    ))),
                }
            }
        }
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            bail!(Usage(format!("--network {text:?}: which network? name=NAME is missing")))
        };
        if found.iter().any(|(other, _)| *other == name) {
            bail!(Usage(format!("network {name} is named twice")));
        }
        found.push((name, endpoint));
    }
    Ok(found)
}

fn parsed<T: std::str::FromStr>(option: &str, text: &str) -> anyhow::Result<T> {
    text.parse()
        .map_err(|_| Usage(format!("invalid argument \"{text}\" for \"--{option}\": no such address")).into())
}

fn mac(text: &str) -> anyhow::Result<Mac> {
    text.parse::<Mac>().map_err(|error| Usage(error.to_string()).into())
}

/// The mode that the first `--network` means: whether there is such a network is known when it is looked for.
pub(super) fn mode(options: &CreateOptions, containers: &Containers) -> anyhow::Result<NetworkMode> {
    let is_root = !host::is_rootless();
    let usual = || std::env::var(DEFAULT_NETWORK).ok().filter(|name| !name.is_empty());
    let first = wanted(options)?.into_iter().next().map(|(name, _)| name).or_else(usual);
    let name = match first.as_deref() {
        None | Some("default") if is_root => "bridge",
        None | Some("default") => return Ok(without_root(options)),
        Some("none") => return Ok(NetworkMode::None),
        Some("host") => return Ok(NetworkMode::Host),
        Some("pasta" | "slirp4netns") => return Ok(NetworkMode::Userland),
        Some(name) => match name.strip_prefix("container:") {
            Some(name) => return Ok(NetworkMode::Container(containers.find(name)?.config.id)),
            None => name,
        },
    };
    if !is_root {
        if name == "bridge" {
            Program::find(std::env::var_os("PATH").as_deref()).map_err(told)?;
            return Ok(NetworkMode::Userland);
        }
        bail!(Usage(format!(
            "--network {name}: a bridge needs root; there are none, host, and pasta or slirp4netns"
        )));
    }
    let network = open()?.find(name).map_err(told)?;
    Ok(match network.driver {
        Driver::Bridge => NetworkMode::Named(network.name),
        Driver::Host => NetworkMode::Host,
        Driver::Null => NetworkMode::None,
    })
}

/// What an ordinary user has who asks for nothing: packets by a program where there is one, else none, with a word.
fn without_root(options: &CreateOptions) -> NetworkMode {
    match Program::find(std::env::var_os("PATH").as_deref()) {
        Ok(_) => NetworkMode::Userland,
        Err(error) => {
            if options.publish.is_empty() && !options.publish_all {
                ui::note(format_args!("the container has no network: {error}"));
            }
            NetworkMode::None
        }
    }
}

/// `-p`, `-P` and the addresses, with the ports that are exposed.
pub(super) fn spec(options: &CreateOptions, config: &ContainerConfig) -> anyhow::Result<NetworkSpec> {
    let mut found = NetworkSpec::default();
    for text in &options.publish {
        found.ports.extend(ports::parse_publish(text).map_err(|error| Usage(error.to_string()))?);
    }
    if options.publish_all {
        for text in &config.exposed {
            let exposed = ports::parse_expose(text).map_err(|error| Usage(error.to_string()))?;
            let missing = |port: &ExposedPort| !found.ports.iter().any(|mapping| mapping.container == *port);
            let missing: Vec<ExposedPort> = exposed.into_iter().filter(missing).collect();
            let mapping = |container| PortMapping { host_ip: None, host: None, container };
            found.ports.extend(missing.into_iter().map(mapping));
        }
    }
    let mut networks = wanted(options)?.into_iter();
    found.main = networks.next().map(|(_, endpoint)| endpoint).unwrap_or_default();
    found.main.aliases.extend(options.network_alias.iter().cloned());
    if let Some(text) = &options.ip {
        found.main.ipv4 = Some(parsed("ip", text)?);
    }
    if let Some(text) = &options.ip6 {
        found.main.ipv6 = Some(parsed("ip6", text)?);
    }
    if let Some(text) = &options.mac_address {
        found.main.mac = Some(mac(text)?);
    }
    for (name, endpoint) in networks {
        if !matches!(config.network, NetworkMode::Named(_)) {
            bail!(Usage(format!(
                "a container with network {} cannot be in network {name} too",
                config.network.word()
            )));
        }
        let network = open()?.find(&name).map_err(told)?;
        if network.driver != Driver::Bridge {
            bail!(Usage(format!("a container cannot be in network {name} and in others")));
        }
        found.others.insert(network.name, endpoint);
    }
    let asks = found.main != Endpoint::default();
    match &config.network {
        NetworkMode::None if !found.ports.is_empty() => {
            bail!(Hinted {
                message: "ports can be published from a network only".into(),
                hint: match !host::is_rootless() {
                    true => "leave out --network none".into(),
                    false => "install pasta (package passt) or slirp4netns".into(),
                }
            })
        }
        NetworkMode::Container(_) if !found.ports.is_empty() => {
            bail!(Usage("conflicting options: port publishing and the container type network mode".into()))
        }
        // As docker: what the container listens on is the machine's already.
        NetworkMode::Host => found.ports.clear(),
        _ => {}
    }
    match &config.network {
        NetworkMode::Named(name) if name == "bridge" && !found.main.aliases.is_empty() => {
            bail!(Usage(
                "network-scoped alias is supported only for containers in user defined networks".into()
            ))
        }
        NetworkMode::Named(name)
            if name == "bridge" && (found.main.ipv4.is_some() || found.main.ipv6.is_some()) =>
        {
            bail!(Usage("user specified IP address is supported on user defined networks only".into()))
        }
        NetworkMode::Named(_) => {}
        other if asks => bail!(Usage(format!("network {} gives no names and addresses", other.word()))),
        _ => {}
    }
    Ok(found)
}

/// Notes that a container is in one more network from now on. True when it was not before.
pub(crate) fn connect(name: &str, network: &Network, endpoint: Endpoint) -> anyhow::Result<bool> {
    change(name, |config| {
        if network.driver != Driver::Bridge {
            bail!(
                "a container cannot be put into network {} later: it has that from its beginning, or not",
                network.name
            );
        }
        match &config.network {
            NetworkMode::Named(main) if *main == network.name => Ok(false),
            NetworkMode::Named(_) => {
                Ok(config.networking.others.insert(network.name.clone(), endpoint).is_none())
            }
            other => bail!(Hinted {
                message: format!(
                    "container {} has network {}: it cannot be in another one too",
                    config.name,
                    other.word()
                ),
                hint: "make it anew with --network".into(),
            }),
        }
    })
}

/// Notes that a container is not in a network any more. True when it was.
pub(crate) fn disconnect(name: &str, network: &Network) -> anyhow::Result<bool> {
    change(name, |config| {
        if config.networking.others.remove(&network.name).is_some() {
            return Ok(true);
        }
        if config.network != NetworkMode::Named(network.name.clone()) {
            return Ok(false);
        }
        // The next one is its main network then.
        (config.network, config.networking.main) = match config.networking.others.pop_first() {
            Some((name, endpoint)) => (NetworkMode::Named(name), endpoint),
            None => (NetworkMode::None, Endpoint::default()),
        };
        Ok(true)
    })
}

/// Changes what is written down of a container. A monitor reads it at each start.
fn change(
    name: &str,
    change: impl FnOnce(&mut ContainerConfig) -> anyhow::Result<bool>,
) -> anyhow::Result<bool> {
    let containers = Containers::open()?;
    let _store = containers.lock()?;
    let mut container = containers.find(name)?;
    let changed = change(&mut container.config)?;
    container.save_config()?;
    Ok(changed)
}

/// Joins its networks, and writes hosts and resolv.conf as they are there. Gives what must stay open while it runs.
pub(super) fn join(config: &ContainerConfig, directory: &Path, pid: Pid) -> anyhow::Result<Vec<OwnedFd>> {
    match &config.network {
        NetworkMode::Named(network) => join_named(config, network, directory, pid),
        NetworkMode::Userland => join_userland(config, directory, pid),
        NetworkMode::None | NetworkMode::Host | NetworkMode::Container(_) => Ok(Vec::new()),
    }
}

fn join_named(
    config: &ContainerConfig,
    network: &str,
    directory: &Path,
    pid: Pid,
) -> anyhow::Result<Vec<OwnedFd>> {
    let dns = servers(config);
    let networks = open()?;
    // What an earlier life of it has left.
    networks.detach(&config.id, None).map_err(told)?;
    let spec = &config.networking;
    let all = std::iter::once((network, &spec.main))
        .chain(spec.others.iter().map(|(name, own)| (name.as_str(), own)));
    let mut attachments = Vec::new();
    let mut result = Ok(());
    for (at, (network, endpoint)) in all.enumerate() {
        let mut names = vec![config.name.clone()];
        names.extend(endpoint.aliases.iter().cloned());
        let request = Request {
            container: &config.id,
            names: &names,
            network,
            namespace: Namespace::Process(pid),
            // The main network's: the default route goes there.
            ports: if at == 0 { &spec.ports } else { &[] },
            ipv4: endpoint.ipv4,
            ipv6: endpoint.ipv6,
            mac: endpoint.mac,
            dns: &dns,
        };
        match networks.attach(&request) {
            Ok(attachment) => attachments.push(attachment),
            Err(error) => {
                result = Err(told(error));
                break;
            }
        }
    }
    let result = result.and_then(|()| write_files(config, directory, &attachments, dns));
    if let Err(error) = result {
        networks.detach(&config.id, None).map_err(told)?;
        return Err(error);
    }
    for attachment in &attachments {
        events::network("connect", &attachment.network.id, &attachment.network.name, &config.id);
    }
    Ok(attachments.into_iter().flat_map(|attachment| attachment.reservation.into_sockets()).collect())
}

fn join_userland(config: &ContainerConfig, directory: &Path, pid: Pid) -> anyhow::Result<Vec<OwnedFd>> {
    let program = Program::find(std::env::var_os("PATH").as_deref()).map_err(told)?;
    let namespace = PathBuf::from(format!("/proc/{}/ns/net", pid.as_raw_nonzero()));
    let userland = program.start(&namespace, &config.networking.ports, directory).map_err(told)?;
    let (process, kept) = userland.into_parts();
    let process = ProcessIdentity::of(process).context("look at the program of the container's network")?;
    std::fs::write(directory.join(USERLAND), serde_json::to_vec(&process)?)
        .context("write down the program of the container's network")?;
    Ok(kept.into_iter().collect())
}

/// The program that carries packets for it, written down in its directory.
const USERLAND: &str = "userland.json";

fn leave_userland(directory: &Path) -> anyhow::Result<()> {
    let path = directory.join(USERLAND);
    let Ok(text) = std::fs::read(&path) else { return Ok(()) };
    if let Ok(process) = serde_json::from_slice::<ProcessIdentity>(&text) {
        process.kill().context("end the program of the container's network")?;
    }
    layerfs_network::userland::forget(directory);
    std::fs::remove_file(&path).context("forget the program of the container's network")
}

/// Leaves all networks, also those that it was connected to later.
pub(super) fn leave(config: &ContainerConfig, directory: &Path) -> anyhow::Result<()> {
    leave_userland(directory)?;
    let root = crate::commands::run::store_root()?;
    if host::is_rootless() || !root.join("networks").is_dir() {
        return Ok(());
    }
    let networks = open()?;
    let leases = networks.leases_of(&config.id).map_err(told)?;
    if leases.is_empty() {
        return Ok(());
    }
    networks.detach(&config.id, None).map(drop).map_err(told)?;
    for lease in leases {
        let name = networks.find(&lease.network).map(|network| network.name).unwrap_or_default();
        events::network("disconnect", &lease.network, &name, &config.id);
    }
    Ok(())
}

/// The files exist, and are mounted in the container: they are written in place.
fn write_files(
    config: &ContainerConfig,
    directory: &Path,
    attachments: &[Attachment],
    servers: Vec<IpAddr>,
) -> anyhow::Result<()> {
    let own: Vec<IpAddr> = attachments.iter().flat_map(|attachment| attachment.lease.addresses()).collect();
    let extra: Vec<_> =
        config.hosts.iter().map(|text| files::parse_add_host(text)).collect::<Result<_, _>>()?;
    let gateway = attachments.first().and_then(|first| first.network.v4()).map(|subnet| subnet.gateway);
    let hosts = files::hosts(&own, &[&config.hostname, &config.name], &extra, gateway)?;
    std::fs::write(directory.join("hosts"), hosts)?;
    let networks = attachments.iter().map(|attachment| &attachment.network);
    write_resolver(config, directory, networks, servers)
}

fn write_resolver<'a>(
    config: &ContainerConfig,
    directory: &Path,
    networks: impl Iterator<Item = &'a Network>,
    servers: Vec<IpAddr>,
) -> anyhow::Result<()> {
    let named: Vec<IpAddr> = networks.flat_map(Network::name_servers).collect();
    let reach = if named.is_empty() { Reach::Plain } else { Reach::Named(&named) };
    let dns = Dns { servers, search: config.dns_search.clone(), options: config.dns_options.clone() };
    let resolv = files::resolv_conf(&HostResolver::for_containers(), &dns, reach);
    std::fs::write(directory.join("resolv.conf"), resolv)?;
    Ok(())
}

/// After a running container has come into a network, or has left one: other name servers may answer it. `/etc/hosts` is
/// left as it is: its program may have changed it.
pub(crate) fn networks_changed(id: &str) -> anyhow::Result<()> {
    let container = Containers::open()?.find(id)?;
    let networks = open()?;
    let leases = networks.leases_of(container.id()).map_err(told)?;
    let joined = leases
        .iter()
        .map(|lease| networks.find(&lease.network).map_err(told))
        .collect::<Result<Vec<_>, _>>()?;
    let servers = servers(&container.config);
    write_resolver(&container.config, &container.directory, joined.iter(), servers)
        .with_context(|| format!("write resolv.conf of container {}", container.short()))
}

/// After a container has another name: what its networks call it.
pub(super) fn renamed(config: &ContainerConfig) -> anyhow::Result<()> {
    match config.network {
        NetworkMode::Named(_) => open()?.rename(&config.id, &config.name).map_err(told),
        _ => Ok(()),
    }
}

fn servers(config: &ContainerConfig) -> Vec<IpAddr> {
    config.dns.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Docker's `NetworkSettings`.
pub(super) fn settings(config: &ContainerConfig) -> Value {
    let leases = leases(&config.id);
    let mut ports = serde_json::Map::new();
    for text in &config.exposed {
        ports.insert(text.clone(), Value::Null);
    }
    for port in leases.iter().flat_map(|lease| &lease.ports) {
        let name = format!("{}/{}", port.container_port, port.protocol);
        let entry = json!({ "HostIp": port.host_ip.to_string(), "HostPort": port.host_port.to_string() });
        match ports.get_mut(&name).and_then(Value::as_array_mut) {
            Some(list) => list.push(entry),
            None => drop(ports.insert(name, json!([entry]))),
        }
    }
    if let NetworkMode::Userland = config.network {
        for (name, binding) in bindings(config).as_object().into_iter().flatten() {
            ports.insert(name.clone(), binding.clone());
        }
    }
    let mut networks = serde_json::Map::new();
    let spec = &config.networking;
    match &config.network {
        NetworkMode::Named(name) => {
            let all = std::iter::once((name, &spec.main)).chain(&spec.others);
            for (name, endpoint) in all {
                networks.insert(name.clone(), endpoint_document(None, None, endpoint));
            }
            for lease in &leases {
                let network = open().ok().and_then(|networks| networks.find(&lease.network).ok());
                let name =
                    network.as_ref().map_or_else(|| lease.network.clone(), |network| network.name.clone());
                let asked =
                    if name == *config.network.word() { Some(&spec.main) } else { spec.others.get(&name) };
                let document =
                    endpoint_document(Some(lease), network.as_ref(), asked.unwrap_or(&Endpoint::default()));
                networks.insert(name, document);
            }
        }
        NetworkMode::Container(_) => {}
        other => {
            networks.insert(other.word(), endpoint_document(None, None, &Endpoint::default()));
        }
    }
    let first = networks.get("bridge").cloned().unwrap_or_default();
    let of = |name: &str| first[name].as_str().unwrap_or_default().to_owned();
    json!({
        "Bridge": "", "SandboxID": "", "SandboxKey": "", "HairpinMode": false,
        "Ports": ports,
        "IPAddress": of("IPAddress"), "Gateway": of("Gateway"), "MacAddress": of("MacAddress"),
        "IPPrefixLen": first["IPPrefixLen"].as_u64().unwrap_or(0), "EndpointID": of("EndpointID"),
        "GlobalIPv6Address": of("GlobalIPv6Address"), "IPv6Gateway": of("IPv6Gateway"),
        "Networks": networks,
    })
}

fn endpoint_document(lease: Option<&Lease>, network: Option<&Network>, asked: &Endpoint) -> Value {
    let text = |address: Option<String>| address.unwrap_or_default();
    let v4 = network.and_then(Network::v4);
    let v6 = network.and_then(Network::v6);
    let ipam = match (asked.ipv4, asked.ipv6) {
        (None, None) => Value::Null,
        (v4, v6) => {
            let mut ipam = serde_json::Map::new();
            ipam.extend(v4.map(|address| ("IPv4Address".to_owned(), json!(address))));
            ipam.extend(v6.map(|address| ("IPv6Address".to_owned(), json!(address))));
            Value::Object(ipam)
        }
    };
    json!({
        "IPAMConfig": ipam,
        "Links": null,
        "Aliases": if asked.aliases.is_empty() { Value::Null } else { json!(asked.aliases) },
        "DNSNames": lease.map(|lease| lease.names.clone()),
        "MacAddress": text(lease.map(|lease| lease.mac.to_string())),
        "NetworkID": text(network.map(|network| network.id.clone())),
        "EndpointID": text(lease.map(|lease| lease.endpoint.clone())),
        "Gateway": text(lease.and(v4).map(|subnet| subnet.gateway.to_string())),
        "IPAddress": text(lease.and_then(|lease| lease.ipv4).map(|address| address.to_string())),
        "IPPrefixLen": lease.and(v4).map_or(0, |subnet| subnet.subnet.prefix_len()),
        "IPv6Gateway": text(lease.and(v6).map(|subnet| subnet.gateway.to_string())),
        "GlobalIPv6Address": text(lease.and_then(|lease| lease.ipv6).map(|address| address.to_string())),
        "GlobalIPv6PrefixLen": lease.and(v6).map_or(0, |subnet| subnet.subnet.prefix_len()),
    })
}

/// Docker's `PortBindings`: what was asked for.
pub(super) fn bindings(config: &ContainerConfig) -> Value {
    let mut all = serde_json::Map::new();
    for mapping in &config.networking.ports {
        let host = mapping.host.map(ports_of).unwrap_or_default();
        let entry = json!({ "HostIp": mapping.host_ip.map(|ip| ip.to_string()).unwrap_or_default(), "HostPort": host });
        let name = mapping.container.to_string();
        match all.get_mut(&name).and_then(Value::as_array_mut) {
            Some(list) => list.push(entry),
            None => drop(all.insert(name, json!([entry]))),
        }
    }
    Value::Object(all)
}

/// A port, or the range that one is taken from.
pub(super) fn ports_of((first, last): (u16, u16)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

/// Its networks as they are now; none where that cannot be found out.
fn leases(id: &str) -> Vec<Lease> {
    if host::is_rootless() {
        return Vec::new();
    }
    open().and_then(|networks| networks.leases_of(id).map_err(told)).unwrap_or_default()
}

/// All leases there are, for lists; none where they cannot be read.
pub(super) fn all_leases() -> Vec<Lease> {
    let is_any = crate::commands::run::store_root().is_ok_and(|root| root.join("networks").is_dir());
    if host::is_rootless() || !is_any {
        return Vec::new();
    }
    open().and_then(|networks| networks.leases().map_err(told)).unwrap_or_default()
}

/// The lines of `layerfs port`: `80/tcp -> 0.0.0.0:8080`.
pub(super) fn published(container: &Container, wanted: Option<&str>) -> anyhow::Result<Vec<String>> {
    let config = &container.config;
    let wanted = wanted.map(parse_port).transpose()?;
    let mut ports: Vec<Published> = leases(&config.id).into_iter().flat_map(|lease| lease.ports).collect();
    if config.network == NetworkMode::Userland && container.is_running() {
        ports.extend(config.networking.ports.iter().map(|mapping| Published {
            host_ip: mapping.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
            host_port: mapping.host.map_or(mapping.container.port, |(first, _)| first),
            container_port: mapping.container.port,
            protocol: mapping.container.protocol,
        }));
    }
    ports.sort_by_key(|port| (port.container_port, port.protocol, port.host_ip));
    let line = |port: &Published| {
        let host = std::net::SocketAddr::new(port.host_ip, port.host_port);
        match wanted {
            None => Some(format!("{}/{} -> {host}", port.container_port, port.protocol)),
            Some(wanted) => {
                let fits = (port.container_port, port.protocol) == (wanted.port, wanted.protocol);
                fits.then(|| host.to_string())
            }
        }
    };
    Ok(ports.iter().filter_map(line).collect())
}

fn parse_port(text: &str) -> anyhow::Result<ExposedPort> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => bail!("invalid proto: {other}"),
    };
    match port.parse() {
        Ok(port) => Ok(ExposedPort { port, protocol }),
        Err(_) => bail!("invalid port: {port}"),
    }
}
