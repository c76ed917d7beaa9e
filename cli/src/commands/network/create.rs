//! `layerfs network create`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use layerfs_network::NewNetwork;
use layerfs_runner::host;

use super::open::{open, told};
use crate::exit::{Hinted, Usage};
use crate::ui;

/// Create a network
///
/// Containers of a network reach each other by address and by name. Networks are apart from each other.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Kind of network: bridge
    #[arg(short, long, value_name = "DRIVER", default_value = "bridge")]
    driver: String,
    /// Addresses, such as 10.90.0.0/24; one of IPv4 and one of IPv6 [default: a free one of 10.89.0.0/24 and on]
    #[arg(long, value_name = "SUBNET")]
    subnet: Vec<String>,
    /// The host's address in it [default: the first]
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<String>,
    /// Give containers addresses of this part only
    #[arg(long, value_name = "RANGE")]
    ip_range: Vec<String>,
    /// No way out, and no published ports
    #[arg(long)]
    internal: bool,
    /// Addresses of IPv6 too
    #[arg(long)]
    ipv6: bool,
    /// Option of the bridge: mtu=NUMBER, com.docker.network.bridge.name=NAME, ...enable_icc=BOOL,
    /// ...enable_ip_masquerade=BOOL, ...host_binding_ipv4=ADDRESS
    #[arg(short, long, value_name = "NAME=VALUE")]
    opt: Vec<String>,
    /// Label
    #[arg(long, value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// Accepted for docker's sake: every network of one machine is
    #[arg(long, hide = true)]
    attachable: bool,
    /// Name
    #[arg(value_name = "NETWORK")]
    network: String,
}

pub(crate) fn create(args: CreateArgs) -> anyhow::Result<ExitCode> {
    let mut options = BTreeMap::new();
    for text in &args.opt {
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| Usage(format!("--opt {text}: write NAME=VALUE, for example mtu=1400")))?;
        options.insert(name.to_owned(), value.to_owned());
    }
    let new = NewNetwork {
        name: args.network,
        driver: Some(args.driver),
        subnets: args.subnet,
        gateways: args.gateway,
        ranges: args.ip_range,
        internal: args.internal,
        ipv6: args.ipv6,
        options,
        labels: labels(&args.label),
    };
    // Refused here: what nobody can use later is not made.
    if host::is_rootless() {
        bail!(Hinted {
            message: format!("network {}: networks of bridges need root", new.name),
            hint: "an ordinary user's containers have --network none, host, container:NAME, and pasta or slirp4netns \
                   where one is installed"
                .into(),
        });
    }
    let network = open()?.create(&new).map_err(told)?;
    crate::events::network("create", &network.id, &network.name, "");
    ui::print(format!("{}\n", network.id))?;
    Ok(ExitCode::SUCCESS)
}

/// `NAME=VALUE`, or a name alone for an empty value.
pub(crate) fn labels(texts: &[String]) -> BTreeMap<String, String> {
    let split = |text: &String| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (name.to_owned(), value.to_owned())
    };
    texts.iter().map(split).collect()
}
