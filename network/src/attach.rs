//! Putting a container into a network, and taking it out.
//!
//! Under the lock, in this order: the lease is written; bridge, pair, addresses and routes are made; the packet filter;
//! the name server. Taking out goes the other way round. A crash leaves a lease, from which all else is found.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use ipnet::IpNet;
use rustix::io::Errno;

use crate::address;
use crate::document::{Driver, Network, NewNetwork, Subnet};
use crate::error::{Doing, Error, Result};
use crate::lease::{Lease, Leases};
use crate::mac::Mac;
use crate::namespace;
use crate::netlink::conntrack::Flow;
use crate::netlink::route::Veth;
use crate::netlink::socket::Socket;
use crate::ports::{PortMapping, Protocol};
use crate::reserve::{self, Reservation};
use crate::store::{DEFAULT, Networks, find_in, random_bytes, random_id};
use crate::sysctl;

/// The network namespace of a container.
#[derive(Debug, Clone)]
pub enum Namespace<'a> {
    /// A descriptor of it.
    Descriptor(BorrowedFd<'a>),
    /// A file that is one, such as `/proc/PID/ns/net`.
    Path(PathBuf),
    /// That of a process.
    Process(rustix::process::Pid),
}

/// A container that is to be in a network.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Its id.
    pub container: &'a str,
    /// Its name, then other names in this network (`--network-alias`).
    pub names: &'a [String],
    /// The network's name or id.
    pub network: &'a str,
    /// Where its interface goes.
    pub namespace: Namespace<'a>,
    /// `-p`
    pub ports: &'a [PortMapping],
    /// `--ip`
    pub ipv4: Option<Ipv4Addr>,
    /// `--ip6`
    pub ipv6: Option<Ipv6Addr>,
    /// `--mac-address`
    pub mac: Option<Mac>,
    /// `--dns`: where the name server sends this container's other questions.
    pub dns: &'a [IpAddr],
}

/// What came of it.
#[derive(Debug)]
pub struct Attachment {
    /// What is written down.
    pub lease: Lease,
    /// The network.
    pub network: Network,
    /// Keeps the published ports from other programs; see [`Reservation`].
    pub reservation: Reservation,
}

impl Namespace<'_> {
    fn open(&self) -> Result<OwnedFd> {
        match self {
            Self::Descriptor(fd) => fd.try_clone_to_owned().doing(|| "duplicate a descriptor".into()),
            Self::Path(path) => namespace::open(path),
            Self::Process(pid) => {
                namespace::open(&PathBuf::from(format!("/proc/{}/ns/net", pid.as_raw_nonzero())))
            }
        }
    }
}

impl Networks {
    /// Puts a container into a network.
    ///
    /// # Errors
    /// When the network is not there, an address or port is taken, or the kernel refuses. Then nothing is left.
    pub fn attach(&self, request: &Request<'_>) -> Result<Attachment> {
        let namespace = request.namespace.open()?;
        let lock = self.lock()?;
        let mut networks = self.with_predefined(&lock)?;
        let network = find_in(networks.clone(), request.network)?;
        if network.driver != Driver::Bridge {
            return Err(Error::Invalid(format!(
                "container cannot be connected to the network {}: it has none to connect",
                network.name
            )));
        }
        let mut leases = Leases::load(self.directory())?;
        self.replace_dead(request.container, &network, &mut leases)?;
        let network = self.unless_taken(network, &mut networks, &leases)?;
        let other = leases.leases.iter().filter(|lease| lease.container == request.container);
        let taken: Vec<String> = other.map(|lease| lease.interface.clone()).collect();
        let interface =
            (0..).map(|n| format!("eth{n}")).find(|name| !taken.contains(name)).unwrap_or_default();
        let (lease, reservation) = self.lease(request, &network, interface, &mut leases)?;
        leases.leases.push(lease.clone());
        leases.save(self.directory())?;
        let made = self.make(&network, &lease, namespace.as_fd()).and_then(|()| {
            self.sync_firewall(&networks, &leases.leases)?;
            if !lease.ports.is_empty() {
                // After the rules that keep containers from the host's loopback addresses.
                sysctl::set(&format!("ipv4/conf/{}/route_localnet", network.interface), "1")?;
            }
            forget_flows(&lease, true);
            if network.names { self.start_responder(&network) } else { Ok(()) }
        });
        if let Err(error) = made {
            // What is said is the first fault; what cannot be undone is found by a check.
            if let Err(undo) = self.take_out(&networks, &mut leases, |other| other.endpoint == lease.endpoint)
            {
                tracing::warn!(error = %undo, "undo a failed attachment");
            }
            return Err(error);
        }
        Ok(Attachment { lease, network, reservation })
    }

    /// The default network, whose addresses nobody has chosen, moves out of the way of what the host (another engine, a
    /// VPN) has come to use since, while no container is in it.
    fn unless_taken(&self, network: Network, networks: &mut [Network], leases: &Leases) -> Result<Network> {
        if network.name != DEFAULT || leases.leases.iter().any(|lease| lease.network == network.id) {
            return Ok(network);
        }
        let others: Vec<Network> = networks.iter().filter(|other| other.id != network.id).cloned().collect();
        let used = self.used(&others)?;
        let is_free = |subnet: &Subnet| !used.iter().any(|net| address::overlap(subnet.subnet, *net));
        if network.subnets.iter().all(is_free) {
            return Ok(network);
        }
        let mut socket = Socket::route().doing(|| "reach the kernel's networks".into())?;
        let bridge = socket.link(&network.interface);
        if bridge.doing(|| format!("look for bridge {:?}", network.interface))?.is_some() {
            return Ok(network);
        }
        let free = |_| address::free_v4(true, &used);
        let subnets = address::subnets(&NewNetwork::default(), &used, free)?;
        let moved = Network { subnets, ..network };
        self.write(&moved)?;
        if let Some(own) = networks.iter_mut().find(|own| own.id == moved.id) {
            own.clone_from(&moved);
        }
        Ok(moved)
    }

    /// Takes a container out of a network, or out of all. True when it was in one.
    ///
    /// # Errors
    /// When the network is not there, or the kernel refuses.
    pub fn detach(&self, container: &str, network: Option<&str>) -> Result<bool> {
        let lock = self.lock()?;
        let networks = self.with_predefined(&lock)?;
        let id = match network {
            Some(name) => Some(find_in(networks.clone(), name)?.id),
            None => None,
        };
        let mut leases = Leases::load(self.directory())?;
        let wanted =
            |lease: &Lease| lease.container == container && id.as_ref().is_none_or(|id| lease.network == *id);
        if !leases.leases.iter().any(wanted) {
            return Ok(false);
        }
        self.take_out(&networks, &mut leases, wanted)?;
        Ok(true)
    }

    /// Gives a container that lost the way out by [`detach`](Self::detach) another one, through a network that it is
    /// still in.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn restore_default_route(&self, container: &str, namespace: &Namespace<'_>) -> Result<()> {
        let namespace = namespace.open()?;
        let networks = self.list()?;
        for lease in self.leases_of(container)? {
            let Some(network) = networks.iter().find(|network| network.id == lease.network) else { continue };
            if !network.internal {
                let gateways: Vec<IpAddr> = network.subnets.iter().map(|subnet| subnet.gateway).collect();
                namespace::within(namespace.as_fd(), || inside(&lease.interface, &[], &gateways))?;
            }
        }
        Ok(())
    }

    /// Changes a container's names in all its networks; the first is its own.
    ///
    /// # Errors
    /// When the document cannot be written.
    pub fn rename(&self, container: &str, name: &str) -> Result<()> {
        let _lock = self.lock()?;
        let mut leases = Leases::load(self.directory())?;
        for lease in leases.leases.iter_mut().filter(|lease| lease.container == container) {
            match lease.names.first_mut() {
                Some(first) => name.clone_into(first),
                None => lease.names.push(name.to_owned()),
            }
        }
        leases.save(self.directory())
    }

    /// A lease of the same container whose interface is gone is of an earlier life.
    fn replace_dead(&self, container: &str, network: &Network, leases: &mut Leases) -> Result<()> {
        let position = leases.leases.iter().position(|l| l.container == container && l.network == network.id);
        let Some(position) = position else { return Ok(()) };
        let name = leases.leases[position].host_interface.clone();
        let lives = || Ok::<_, Errno>(Socket::route()?.link(&name)?.is_some());
        if lives().doing(|| format!("look for interface {name:?}"))? {
            return Err(Error::AlreadyAttached {
                container: leases.leases[position].name().to_owned(),
                network: network.name.clone(),
            });
        }
        leases.leases.remove(position);
        Ok(())
    }

    fn lease(
        &self,
        request: &Request<'_>,
        network: &Network,
        interface: String,
        leases: &mut Leases,
    ) -> Result<(Lease, Reservation)> {
        let (v4, v6) = (network.v4(), network.v6());
        let ipv4 = give(network, v4, request.ipv4.map(IpAddr::from), leases)?;
        let ipv6 = give(network, v6, request.ipv6.map(IpAddr::from), leases)?;
        let (IpAddr::V4(ipv4), ipv6) = (
            ipv4.ok_or_else(|| Error::Invalid(format!("network {} has no subnet", network.name)))?,
            ipv6.and_then(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None }),
        ) else {
            return Err(Error::Invalid(format!("network {} has no subnet of IPv4", network.name)));
        };
        let versions = (true, ipv6.is_some());
        // Nothing comes into a network without a way out.
        let mappings = if network.internal { &[] } else { request.ports };
        let (ports, reservation) =
            reserve::reserve(mappings, network.default_binding(), versions, &leases.leases)?;
        let tag: String = random_bytes::<4>()?.iter().map(|byte| format!("{byte:02x}")).collect();
        let lease = Lease {
            container: request.container.to_owned(),
            network: network.id.clone(),
            endpoint: random_id()?,
            names: request.names.to_vec(),
            host_interface: format!("{}{tag}", self.interface_prefix()),
            interface,
            mac: request.mac.unwrap_or_else(|| Mac::of(ipv4)),
            ipv4: Some(ipv4),
            ipv6,
            ports,
            dns: request.dns.to_vec(),
        };
        Ok((lease, reservation))
    }

    /// How the names of this engine's interfaces on the host begin. With eight more digits they fit.
    pub(crate) fn interface_prefix(&self) -> String {
        format!("lfv{}", self.options.instance.get(..4).unwrap_or(&self.options.instance))
    }

    fn make(&self, network: &Network, lease: &Lease, namespace: BorrowedFd<'_>) -> Result<()> {
        let mut socket = Socket::route().doing(|| "open a socket for interfaces".into())?;
        let bridge = ensure_bridge(&mut socket, network)?;
        let veth = Veth {
            host: &lease.host_interface,
            bridge,
            mtu: network.mtu(),
            inside: &lease.interface,
            mac: lease.mac,
            namespace,
        };
        socket.add_veth(&veth).doing(|| {
            format!("make interface {:?} of network {} in the container", lease.interface, network.name)
        })?;
        let (isolated, hairpin) = (!network.talks_within(), !lease.ports.is_empty());
        if isolated || hairpin {
            // Where bridged packets pass the filter (module br_netfilter), a container reaches its own published port
            // by a port that may send back.
            let index = socket.link(&lease.host_interface).ok().flatten().map_or(0, |link| link.index);
            socket
                .configure_port(index, isolated, hairpin)
                .doing(|| format!("configure interface {:?} in its bridge", lease.host_interface))?;
        }
        let addresses: Vec<IpNet> = lease
            .addresses()
            .filter_map(|ip| {
                let subnet = network.subnets.iter().find(|subnet| subnet.subnet.contains(&ip))?;
                IpNet::new(ip, subnet.subnet.prefix_len()).ok()
            })
            .collect();
        let gateways: Vec<IpAddr> = if network.internal {
            Vec::new()
        } else {
            network.subnets.iter().map(|subnet| subnet.gateway).collect()
        };
        namespace::within(namespace, || {
            namespace::loopback_up()?;
            if addresses.iter().any(|net| net.addr().is_ipv6()) {
                sysctl::set(&format!("ipv6/conf/{}/disable_ipv6", lease.interface), "0")?;
            }
            inside(&lease.interface, &addresses, &gateways)
        })
    }

    /// Removes leases and everything that was made for them. What is gone already is no fault.
    pub(crate) fn take_out(
        &self,
        networks: &[Network],
        leases: &mut Leases,
        wanted: impl Fn(&Lease) -> bool,
    ) -> Result<()> {
        let (gone, kept): (Vec<Lease>, Vec<Lease>) = leases.leases.drain(..).partition(|lease| wanted(lease));
        leases.leases = kept;
        self.sync_firewall(networks, &leases.leases)?;
        let mut socket = Socket::route().doing(|| "open a socket for interfaces".into())?;
        for lease in &gone {
            forget_flows(lease, false);
            let name = &lease.host_interface;
            // The bridge stays for the next one: its removal takes the kernel longer (some 40 ms) than all the rest.
            socket.delete_link(name).doing(|| format!("remove interface {name:?}"))?;
        }
        leases.save(self.directory())
    }
}

/// Makes clients of UDP that go on sending find the right place: flows to published ports that began before they were
/// published (`begins`), or that lead to a container that goes. Where the kernel cannot tell flows, they run out.
fn forget_flows(lease: &Lease, begins: bool) {
    let ports: Vec<u16> =
        lease.ports.iter().filter(|p| p.protocol == Protocol::Udp).map(|port| port.host_port).collect();
    if ports.is_empty() {
        return;
    }
    let stale = |flow: Flow| match flow.redirected {
        None => begins && !flow.masqueraded && ports.contains(&flow.port),
        Some(to) => !begins && lease.addresses().any(|own| own == to),
    };
    if let Err(error) = Socket::netfilter().and_then(|mut socket| socket.forget_flows(stale)) {
        tracing::debug!(%error, "forget flows of UDP");
    }
}

/// The address that is asked for, or a free one. Nothing where the network has none of the kind.
fn give(
    network: &Network,
    subnet: Option<&Subnet>,
    wanted: Option<IpAddr>,
    leases: &mut Leases,
) -> Result<Option<IpAddr>> {
    let taken: Vec<(IpAddr, String)> = leases
        .of_network(&network.id)
        .flat_map(|lease| lease.addresses().map(|ip| (ip, lease.name().to_owned())).collect::<Vec<_>>())
        .collect();
    if let Some(wanted) = wanted {
        address::check_wanted(&network.name, subnet, wanted)?;
        if let Some((_, owner)) = taken.iter().find(|(ip, _)| *ip == wanted) {
            return Err(Error::AddressInUse {
                address: wanted,
                network: network.name.clone(),
                container: owner.clone(),
            });
        }
        return Ok(Some(wanted));
    }
    let Some(subnet) = subnet else { return Ok(None) };
    let last = leases.last.entry(network.id.clone()).or_default();
    let before = last.iter().position(|ip| ip.is_ipv4() == subnet.gateway.is_ipv4());
    let previous = before.and_then(|at| last.get(at).copied());
    let is_taken = |ip: IpAddr| taken.iter().any(|(other, _)| *other == ip);
    let found = address::allocate(subnet, previous, &is_taken).ok_or_else(|| Error::NoAddress {
        network: network.name.clone(),
        range: subnet.range.unwrap_or(subnet.subnet).to_string(),
    })?;
    match before {
        Some(at) => last[at] = found,
        None => last.push(found),
    }
    Ok(Some(found))
}

/// The bridge of a network, up and with its addresses; its number.
fn ensure_bridge(socket: &mut Socket, network: &Network) -> Result<u32> {
    let name = &network.interface;
    let look = |socket: &mut Socket| socket.link(name).doing(|| format!("look for bridge {name:?}"));
    let found = look(socket)?;
    let link = match found {
        Some(link) => link,
        None => {
            let occupied = socket.occupied().doing(|| "list the host's addresses and routes".into())?;
            let ours = |net: &IpNet| network.subnets.iter().any(|s| address::overlap(s.subnet, *net));
            if let Some((net, _)) = occupied.iter().find(|(net, _)| ours(net)) {
                return Err(Error::Invalid(format!(
                    "network {} cannot be used: the host now has addresses or routes of {net}, which is a part of it or the reverse; make another network",
                    network.name
                )));
            }
            let mac = Mac::local(random_bytes()?);
            socket.add_bridge(name, mac, network.mtu()).doing(|| format!("make bridge {name:?}"))?;
            look(socket)?.ok_or(Errno::NODEV).doing(|| format!("make bridge {name:?}"))?
        }
    };
    // Said again each time: an earlier attempt may have ended between, and what is right costs little.
    for subnet in &network.subnets {
        let prefix = subnet.subnet.prefix_len();
        let net = IpNet::new(subnet.gateway, prefix).map_err(|error| Error::Invalid(error.to_string()))?;
        if net.addr().is_ipv6() {
            sysctl::set(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
            sysctl::set(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        }
        socket.add_address(link.index, net).doing(|| format!("give bridge {name:?} address {net}"))?;
        if !network.internal {
            let forwarding =
                if net.addr().is_ipv4() { "ipv4/ip_forward" } else { "ipv6/conf/all/forwarding" };
            sysctl::set(forwarding, "1")?;
        }
    }
    Ok(link.index)
}

/// In the container: addresses and the ways out.
fn inside(interface: &str, addresses: &[IpNet], gateways: &[IpAddr]) -> Result<()> {
    let mut socket = Socket::route().doing(|| "open a socket in the container's network".into())?;
    let index = socket
        .link(interface)
        .and_then(|link| link.ok_or(Errno::NODEV))
        .doing(|| format!("look for interface {interface:?} in the container"))?
        .index;
    socket.set_up(index).doing(|| format!("bring interface {interface:?} up in the container"))?;
    for address in addresses {
        socket.add_address(index, *address).doing(|| format!("give the container address {address}"))?;
    }
    for gateway in gateways {
        socket
            .add_default_route(index, *gateway)
            .doing(|| format!("make {gateway} the container's gateway"))?;
    }
    Ok(())
}
