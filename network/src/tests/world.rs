//! A host, containers and an outside for tests.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use ipnet::IpNet;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::mac::Mac;
use crate::namespace;
use crate::netlink::route::Veth;
use crate::netlink::socket::Socket;
use crate::ports::{self, PortMapping};
use crate::{Attachment, Error, Namespace, Networks, NewNetwork, Options, Request};

/// Nothing in a test takes that long; what does has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// What a packet that is dropped is waited for.
pub(super) const SHORT: Duration = Duration::from_millis(300);

/// Runs `test` in a thread with a host of its own.
pub(super) fn with_host(name: &str, test: impl FnOnce(&Host) + Send) {
    let made = namespace::create();
    let host = match made {
        Ok(host) => host,
        Err(error) => {
            let promised = std::env::var("LAYERFS_TEST_ALL_PRIVILEGES").is_ok_and(|value| value == "1");
            assert!(!promised, "{name}: {error}: {:?}", std::error::Error::source(&error));
            eprintln!("SKIPPED {name}: no network namespace can be made here: {error}");
            return;
        }
    };
    std::thread::scope(|scope| {
        let run = || {
            enter(host.as_fd());
            let root = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
            let networks = open(root.path());
            test(&Host { networks, root, namespace: host });
        };
        if let Err(panic) = scope.spawn(run).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

pub(super) fn open(root: &std::path::Path) -> Networks {
    let options = Options { instance: String::new(), responder: None, now: || "2026-11-28T00:00:00Z".into() };
    Networks::open(root, options).unwrap_or_else(|e| panic!("{e}"))
}

pub(super) fn enter(namespace: BorrowedFd<'_>) {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network)).unwrap_or_else(|e| panic!("{e}"));
}

pub(super) fn words(error: &Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

/// A host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) networks: Networks,
    pub(super) root: tempfile::TempDir,
    pub(super) namespace: OwnedFd,
}

/// A container: a namespace that is in a network.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) namespace: OwnedFd,
    pub(super) attachment: Attachment,
}

impl Host {
    pub(super) fn network(&self, name: &str) {
        self.network_with(&NewNetwork { name: name.into(), ..NewNetwork::default() });
    }

    pub(super) fn network_with(&self, new: &NewNetwork) {
        self.networks.create(new).unwrap_or_else(|e| panic!("{}", words(&e)));
    }

    pub(super) fn try_container(
        &self,
        name: &str,
        network: &str,
        publish: &[&str],
    ) -> Result<Container, Error> {
        let namespace = namespace::create()?;
        let ports: Vec<PortMapping> =
            publish.iter().flat_map(|p| ports::parse_publish(p).unwrap_or_else(|e| panic!("{e}"))).collect();
        let id = id_of(name);
        let attachment = self.networks.attach(&Request {
            container: &id,
            names: &[name.to_owned()],
            network,
            namespace: Namespace::Descriptor(namespace.as_fd()),
            ports: &ports,
            ipv4: None,
            ipv6: None,
            mac: None,
            dns: &[],
        })?;
        Ok(Container { id, namespace, attachment })
    }

    pub(super) fn container(&self, name: &str, network: &str, publish: &[&str]) -> Container {
        self.try_container(name, network, publish).unwrap_or_else(|e| panic!("{name}: {}", words(&e)))
    }

    /// A machine outside, 198.51.100.2, with the host at 198.51.100.1 as its neighbour and no way to the containers.
    pub(super) fn outside(&self) -> OwnedFd {
        let outside = namespace::create().unwrap_or_else(|e| panic!("{}", words(&e)));
        let net = |text: &str| text.parse::<IpNet>().unwrap_or_else(|e| panic!("{e}"));
        let mut socket = Socket::route().unwrap_or_else(|e| panic!("{e}"));
        let veth = Veth {
            host: "uplink",
            bridge: 0,
            mtu: None,
            inside: "eth0",
            mac: Mac([2, 0, 0, 0, 0, 2]),
            namespace: outside.as_fd(),
        };
        socket.add_veth(&veth).unwrap_or_else(|e| panic!("{e}"));
        address(&mut socket, "uplink", net("198.51.100.1/24"));
        namespace::within(outside.as_fd(), || {
            let mut socket = Socket::route().unwrap_or_else(|e| panic!("{e}"));
            address(&mut socket, "eth0", net("198.51.100.2/24"));
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{}", words(&e)));
        outside
    }

    pub(super) fn links(&self) -> Vec<String> {
        let links = Socket::route().and_then(|mut socket| socket.links()).unwrap_or_else(|e| panic!("{e}"));
        links.into_iter().map(|link| link.name).collect()
    }

    pub(super) fn has_table(&self) -> bool {
        let mark = Socket::netfilter().and_then(|mut socket| socket.table_mark("layerfs"));
        mark.unwrap_or_else(|e| panic!("{e}")).is_some()
    }

    /// Nothing of a container is in the kernel, and after a repair nothing of a network.
    pub(super) fn assert_clean(&self) {
        let problems = self.networks.check(true, &|_| false).unwrap_or_else(|e| panic!("{}", words(&e)));
        assert!(problems.is_empty(), "{problems:?}");
        let links: Vec<String> = self
            .links()
            .into_iter()
            .filter(|name| name.starts_with("lf") || name.starts_with("layerfs"))
            .collect();
        assert_eq!(links, Vec::<String>::new());
        assert!(!self.has_table());
        assert_eq!(self.networks.leases().map(|leases| leases.len()).ok(), Some(0));
    }
}

fn address(socket: &mut Socket, name: &str, net: IpNet) {
    let link = socket.link(name).unwrap_or_else(|e| panic!("{e}")).unwrap_or_else(|| panic!("no {name}"));
    socket.set_up(link.index).unwrap_or_else(|e| panic!("{e}"));
    socket.add_address(link.index, net).unwrap_or_else(|e| panic!("{e}"));
}

pub(super) fn id_of(name: &str) -> String {
    let hex: String = name.bytes().map(|b| format!("{b:02x}")).collect();
    format!("{hex:0<64}")
}

impl Container {
    pub(super) fn v4(&self) -> IpAddr {
        self.attachment.lease.ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED).into()
    }

    pub(super) fn port(&self) -> u16 {
        self.attachment.lease.ports.first().map_or(0, |port| port.host_port)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// A service of TCP in a namespace that answers each connection with what it knows of its client, until the test ends.
pub(super) fn serve_tcp(namespace: BorrowedFd<'_>, address: &str) {
    let listener = namespace::within(namespace, || {
        Ok(TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}")))
    })
    .unwrap_or_else(|e| panic!("{}", words(&e)));
    std::thread::spawn(move || {
        while let Ok((mut stream, client)) = listener.accept() {
            if stream.write_all(client.ip().to_string().as_bytes()).is_err() {
                return;
            }
        }
    });
}

/// As [`serve_tcp`], of UDP: one packet for each.
pub(super) fn serve_udp(namespace: BorrowedFd<'_>, address: &str) {
    let socket = namespace::within(namespace, || {
        Ok(UdpSocket::bind(address).unwrap_or_else(|e| panic!("{address}: {e}")))
    })
    .unwrap_or_else(|e| panic!("{}", words(&e)));
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            if socket.send_to(client.ip().to_string().as_bytes(), client).is_err() {
                return;
            }
        }
    });
}

/// What the service at `address` says to a client in the namespace: whom it takes it for.
pub(super) fn ask_tcp(
    namespace: BorrowedFd<'_>,
    address: SocketAddr,
    patience: Duration,
) -> std::io::Result<String> {
    let asked = namespace::within(namespace, || {
        Ok(TcpStream::connect_timeout(&address, patience).and_then(|mut stream| {
            stream.set_read_timeout(Some(patience))?;
            let mut said = String::new();
            stream.read_to_string(&mut said)?;
            Ok(said)
        }))
    });
    asked.unwrap_or_else(|e| panic!("{}", words(&e)))
}

/// As [`ask_tcp`], by UDP.
pub(super) fn ask_udp(
    namespace: BorrowedFd<'_>,
    address: SocketAddr,
    patience: Duration,
) -> std::io::Result<String> {
    let asked = namespace::within(namespace, || {
        let ask = || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(patience))?;
            socket.connect(address)?;
            socket.send(b"?")?;
            let mut buffer = [0; 64];
            let len = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(buffer.get(..len).unwrap_or_default()).into_owned())
        };
        Ok(ask())
    });
    asked.unwrap_or_else(|e| panic!("{}", words(&e)))
}
