//! A container in a network: joined when its first process is there and does not run yet, left when it has ended.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::bail;
use layerfs_network::files::{self, Dns, HostResolver, Reach};
use layerfs_network::ports::{self, ExposedPort, PortMapping, Protocol};
use layerfs_network::{Attachment, Driver, Lease, Namespace, Request};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::config::{ContainerConfig, NetworkMode};
use super::options::CreateOptions;
use crate::commands::network::{open, told};
use crate::exit::Usage;

/// What was asked for of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct NetworkSpec {
    /// Published ports.
    pub(crate) ports: Vec<PortMapping>,
    /// `--network-alias`
    pub(crate) aliases: Vec<String>,
}

/// The mode that `--network` means: whether there is such a network is known when it is looked for.
pub(super) fn mode(text: Option<&str>) -> anyhow::Result<NetworkMode> {
    let name = match text {
        None | Some("none") => return Ok(NetworkMode::None),
        Some("host") => return Ok(NetworkMode::Host),
        Some(name) if name.starts_with("container:") => {
            bail!(Usage(format!("--network {name}: the network of another container cannot be shared yet")))
        }
        Some(name) => name,
    };
    if !rustix::process::geteuid().is_root() {
        bail!(Usage(format!("--network {name}: a bridge needs root; there are none and host")));
    }
    let network = open()?.find(name).map_err(told)?;
    Ok(match network.driver {
        Driver::Bridge => NetworkMode::Named(network.name),
        Driver::Host => NetworkMode::Host,
        Driver::Null => NetworkMode::None,
    })
}

/// `-p` and `-P`, with the ports that are exposed.
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
    match config.network {
        NetworkMode::None if !found.ports.is_empty() => {
            bail!(Usage("ports can be published from a network only: add --network bridge".into()))
        }
        // As docker: what the container listens on is the machine's already.
        NetworkMode::Host => found.ports.clear(),
        _ => {}
    }
    Ok(found)
}

/// Joins the network, and writes hosts and resolv.conf as it is there. Gives what keeps the ports.
pub(super) fn join(config: &ContainerConfig, directory: &Path, pid: Pid) -> anyhow::Result<Vec<OwnedFd>> {
    let NetworkMode::Named(network) = &config.network else { return Ok(Vec::new()) };
    let mut names = vec![config.name.clone()];
    names.extend(config.networking.aliases.iter().cloned());
    let dns: Vec<IpAddr> = config.dns.iter().filter_map(|text| text.parse().ok()).collect();
    let networks = open()?;
    // What an earlier life of it has left.
    networks.detach(&config.id, None).map_err(told)?;
    let attachment = networks
        .attach(&Request {
            container: &config.id,
            names: &names,
            network,
            namespace: Namespace::Process(pid),
            ports: &config.networking.ports,
            ipv4: None,
            ipv6: None,
            mac: None,
            dns: &dns,
        })
        .map_err(told)?;
    if let Err(error) = write_files(config, directory, &attachment, dns) {
        networks.detach(&config.id, None).map_err(told)?;
        return Err(error);
    }
    Ok(attachment.reservation.into_sockets())
}

/// Leaves all networks, also those that it was connected to later.
pub(super) fn leave(config: &ContainerConfig) -> anyhow::Result<()> {
    let root = crate::commands::run::store_root()?;
    if !rustix::process::geteuid().is_root() || !root.join("networks").is_dir() {
        return Ok(());
    }
    let networks = open()?;
    if networks.leases_of(&config.id).map_err(told)?.is_empty() {
        return Ok(());
    }
    networks.detach(&config.id, None).map(drop).map_err(told)
}

/// The files exist, and are mounted in the container: they are written in place.
fn write_files(
    config: &ContainerConfig,
    directory: &Path,
    attachment: &Attachment,
    servers: Vec<IpAddr>,
) -> anyhow::Result<()> {
    let own: Vec<IpAddr> = attachment.lease.addresses().collect();
    let extra: Vec<_> =
        config.hosts.iter().map(|text| files::parse_add_host(text)).collect::<Result<_, _>>()?;
    let gateway = attachment.network.v4().map(|subnet| subnet.gateway);
    let hosts = files::hosts(&own, &[&config.hostname, &config.name], &extra, gateway)?;
    let named = attachment.name_servers();
    let reach = if named.is_empty() { Reach::Plain } else { Reach::Named(&named) };
    let dns = Dns { servers, search: config.dns_search.clone(), options: config.dns_options.clone() };
    let resolv = files::resolv_conf(&HostResolver::for_containers(), &dns, reach);
    for (name, text) in [("hosts", hosts), ("resolv.conf", resolv)] {
        std::fs::write(directory.join(name), text)?;
    }
    Ok(())
}

/// The lines of `layerfs port`: `80/tcp -> 0.0.0.0:8080`.
pub(super) fn published(id: &str, wanted: Option<&str>) -> anyhow::Result<Vec<String>> {
    let leases = open()?.leases_of(id).map_err(told)?;
    let wanted = wanted.map(parse_port).transpose()?;
    let mut ports: Vec<_> = leases.iter().flat_map(|lease: &Lease| lease.ports.iter()).collect();
    ports.sort_by_key(|port| (port.container_port, port.protocol, port.host_ip));
    let line = |port: &&layerfs_network::ports::Published| {
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
