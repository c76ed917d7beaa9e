//! `layerfs network connect` and `disconnect`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

use clap::Args;
use layerfs_network::{Error, Request};

use super::containers;
use super::open::{open, told};
use crate::commands::container::{self, network::Endpoint};
use crate::events;

/// Put a container into a network
#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    /// Another name of the container in this network
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// Its address [default: a free one]
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,
    /// Its address of IPv6 [default: a free one]
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<Ipv6Addr>,
    /// Name or id of the network
    #[arg(value_name = "NETWORK")]
    network: String,
    /// Name or id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// Take a container out of a network
#[derive(Debug, Args)]
pub(crate) struct DisconnectArgs {
    /// A container that is gone is taken out too
    #[arg(short, long)]
    force: bool,
    /// Name or id of the network
    #[arg(value_name = "NETWORK")]
    network: String,
    /// Name or id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

pub(crate) fn connect(args: ConnectArgs) -> anyhow::Result<ExitCode> {
    let networks = open()?;
    let network = networks.find(&args.network).map_err(told)?;
    let endpoint = Endpoint { aliases: args.alias, ipv4: args.ip, ipv6: args.ip6, mac: None };
    let connected = container::network::connect(&args.container, &network, endpoint.clone())?;
    let container = containers::find(&args.container)?;
    // Of one that does not run, its next start sees to it.
    if let Ok(namespace) = container.namespace() {
        let mut names = vec![container.name.clone()];
        names.extend(endpoint.aliases);
        let request = Request {
            container: &container.id,
            names: &names,
            network: &network.name,
            namespace,
            ports: &[],
            ipv4: endpoint.ipv4,
            ipv6: endpoint.ipv6,
            mac: None,
            dns: &[],
        };
        if let Err(error) = networks.attach(&request) {
            if connected {
                container::network::disconnect(&args.container, &network)?;
            }
            return Err(told(error));
        }
        container::network::networks_changed(&container.id)?;
        events::network("connect", &network.id, &network.name, &container.id);
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn disconnect(args: DisconnectArgs) -> anyhow::Result<ExitCode> {
    let networks = open()?;
    let network = networks.find(&args.network).map_err(told)?;
    let (id, namespace) = match containers::find(&args.container) {
        Ok(found) => (found.id.clone(), found.namespace().ok()),
        Err(error) => {
            // Its lease may have outlived it.
            let leases = networks.leases().map_err(told)?;
            let named = |lease: &&layerfs_network::Lease| {
                lease.container.starts_with(&args.container) || lease.name() == args.container
            };
            match leases.iter().find(named) {
                Some(lease) if args.force => (lease.container.clone(), None),
                _ => return Err(error),
            }
        }
    };
    let was_asked = match container::network::disconnect(&id, &network) {
        Ok(was_asked) => was_asked,
        // Only its lease is left of it.
        Err(_) if args.force => false,
        Err(error) => return Err(error),
    };
    let was_attached = networks.detach(&id, Some(&network.name)).map_err(told)?;
    if !was_attached && !was_asked {
        return Err(told(Error::NotAttached { container: args.container, network: network.name }));
    }
    if let Some(namespace) = namespace {
        networks.restore_default_route(&id, &namespace).map_err(told)?;
        container::network::networks_changed(&id)?;
    }
    events::network("disconnect", &network.id, &network.name, &id);
    Ok(ExitCode::SUCCESS)
}
