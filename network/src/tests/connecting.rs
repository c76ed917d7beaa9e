//! Packets: who reaches whom, and how they look when they arrive.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;

use super::world::{PATIENCE, SHORT, ask_tcp, ask_udp, serve_tcp, serve_udp, with_host, words};
use crate::{Namespace, NewNetwork, Request};

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

fn host_ip() -> IpAddr {
    Ipv4Addr::new(198, 51, 100, 1).into()
}

#[test]
fn two_containers_of_a_network_reach_each_other_and_the_host() {
    with_host("two containers", |host| {
        let (a, b) = (host.container("a", "bridge", &[]), host.container("b", "bridge", &[]));
        serve_tcp(b.fd(), "0.0.0.0:80");
        serve_tcp(host.namespace.as_fd(), "0.0.0.0:81");
        assert_eq!(ask_tcp(a.fd(), at(b.v4(), 80), PATIENCE).ok(), Some(a.v4().to_string()));
        let gateway = a.attachment.network.v4().map(|subnet| subnet.gateway);
        let gateway = gateway.unwrap_or_else(|| panic!("no gateway"));
        assert_eq!(ask_tcp(a.fd(), at(gateway, 81), PATIENCE).ok(), Some(a.v4().to_string()));
        assert_eq!(ask_tcp(host.namespace.as_fd(), at(b.v4(), 80), PATIENCE).ok(), Some(gateway.to_string()));
        for container in [&a, &b] {
            assert_eq!(host.networks.detach(&container.id, None).ok(), Some(true));
        }
        host.assert_clean();
    });
}

#[test]
fn what_leaves_has_the_address_of_the_host() {
    with_host("masquerade", |host| {
        let outside = host.outside();
        let a = host.container("a", "bridge", &[]);
        serve_tcp(outside.as_fd(), "0.0.0.0:80");
        // The outside has no route back to the container: only the host's address can be answered.
        let gateway = at(Ipv4Addr::new(198, 51, 100, 2).into(), 80);
        assert_eq!(ask_tcp(a.fd(), gateway, PATIENCE).ok(), Some(host_ip().to_string()));
    });
}

#[test]
fn published_ports_are_reached_from_everywhere() {
    with_host("publish", |host| {
        let outside = host.outside();
        host.network("other");
        let a = host.container(
            "a",
            "bridge",
            &["8080:80", "5353:53/udp", "9000-9002:9000-9002", "127.0.0.1:8081:80"],
        );
        let neighbour = host.container("b", "bridge", &[]);
        let stranger = host.container("c", "other", &[]);
        serve_tcp(a.fd(), "0.0.0.0:80");
        serve_tcp(a.fd(), "0.0.0.0:9001");
        serve_udp(a.fd(), "0.0.0.0:53");
        let local = IpAddr::from(Ipv4Addr::LOCALHOST);
        let home = host.namespace.as_fd();
        for port in [8080, 8081, 9001] {
            assert!(ask_tcp(home, at(local, port), PATIENCE).is_ok(), "{port} from the host by loopback");
        }
        assert!(ask_udp(home, at(local, 5353), PATIENCE).is_ok(), "UDP from the host by loopback");
        for (who, from) in [
            ("host", home),
            ("outside", outside.as_fd()),
            ("itself", a.fd()),
            ("neighbour", neighbour.fd()),
            ("stranger", stranger.fd()),
        ] {
            for port in [8080, 9001] {
                let said = ask_tcp(from, at(host_ip(), port), PATIENCE);
                assert!(said.is_ok(), "{port} from {who}: {said:?}");
            }
            let said = ask_udp(from, at(host_ip(), 5353), PATIENCE);
            assert!(said.is_ok(), "UDP from {who}: {said:?}");
            if who != "host" {
                assert!(
                    ask_tcp(from, at(host_ip(), 8081), SHORT).is_err(),
                    "published on loopback, reached from {who}"
                );
            }
        }
        // The outside is seen as it is.
        assert_eq!(
            ask_tcp(outside.as_fd(), at(host_ip(), 8080), PATIENCE).ok().as_deref(),
            Some("198.51.100.2")
        );
    });
}

#[test]
fn networks_are_apart_and_internal_ones_have_no_way_out() {
    with_host("isolation", |host| {
        let outside = host.outside();
        host.network("other");
        host.network_with(&NewNetwork { name: "inner".into(), internal: true, ..NewNetwork::default() });
        let a = host.container("a", "bridge", &["8080:80"]);
        let b = host.container("b", "other", &[]);
        let c = host.container("c", "inner", &["8082:80"]);
        let d = host.container("d", "inner", &[]);
        for container in [&a, &b, &c, &d] {
            serve_tcp(container.fd(), "0.0.0.0:80");
        }
        serve_tcp(outside.as_fd(), "0.0.0.0:80");
        serve_tcp(host.namespace.as_fd(), "127.0.0.1:83");
        assert!(ask_tcp(b.fd(), at(a.v4(), 80), SHORT).is_err(), "from one network into another");
        assert!(ask_tcp(c.fd(), at(d.v4(), 80), PATIENCE).is_ok(), "within the internal network");
        assert!(ask_tcp(host.namespace.as_fd(), at(c.v4(), 80), PATIENCE).is_ok(), "from the host");
        assert!(ask_tcp(c.fd(), at(Ipv4Addr::new(198, 51, 100, 2).into(), 80), SHORT).is_err(), "out of it");
        assert_eq!(c.attachment.lease.ports, []);
        // The host's loopback services stay its own, though loopback packets may pass for published ports.
        let gateway =
            a.attachment.network.v4().map_or(IpAddr::from(Ipv4Addr::UNSPECIFIED), |subnet| subnet.gateway);
        assert!(ask_tcp(a.fd(), at(gateway, 83), SHORT).is_err(), "the host's loopback service");
        // A machine that knows the way to the containers still gets to published ports only.
        crate::namespace::within(outside.as_fd(), || {
            let mut socket = crate::netlink::socket::Socket::route().unwrap_or_else(|e| panic!("{e}"));
            let link = socket.link("eth0").ok().flatten().map_or(0, |link| link.index);
            socket.add_default_route(link, host_ip()).map(drop).map_err(|e| panic!("{e}"))
        })
        .unwrap_or_else(|e| panic!("{}", words(&e)));
        assert!(
            ask_tcp(outside.as_fd(), at(b.v4(), 80), SHORT).is_err(),
            "from outside by a container's own address"
        );
    });
}

#[test]
fn ipv6_is_as_ipv4() {
    with_host("IPv6", |host| {
        let subnets = vec!["fd12:3456::/64".to_owned()];
        host.network_with(&NewNetwork { name: "six".into(), subnets, ipv6: true, ..NewNetwork::default() });
        let a = host.container("a", "six", &["8080:80"]);
        let b = host.container("b", "six", &[]);
        serve_tcp(a.fd(), "[::]:80");
        let six = a.attachment.lease.ipv6.map(IpAddr::from);
        let six = six.unwrap_or_else(|| panic!("no address of IPv6"));
        let from = b.attachment.lease.ipv6.map(|ip| ip.to_string());
        assert_eq!(ask_tcp(b.fd(), at(six, 80), PATIENCE).ok(), from);
        let gateway = a.attachment.network.v6().map(|subnet| subnet.gateway);
        let gateway = gateway.unwrap_or_else(|| panic!("no gateway"));
        assert!(ask_tcp(host.namespace.as_fd(), at(gateway, 8080), PATIENCE).is_ok(), "published");
        assert!(ask_tcp(b.fd(), at(gateway, 8080), PATIENCE).is_ok(), "published, from a neighbour");
    });
}

#[test]
fn wishes_are_granted_or_refused_in_words() {
    with_host("wishes", |host| {
        host.network_with(&NewNetwork {
            name: "small".into(),
            subnets: vec!["10.7.0.0/29".into()],
            options: [("mtu".to_owned(), "1400".to_owned())].into(),
            ..NewNetwork::default()
        });
        let namespace = crate::namespace::create().unwrap_or_else(|e| panic!("{}", words(&e)));
        let attach = |ip: [u8; 4], mac: &str| {
            host.networks.attach(&Request {
                container: "c1",
                names: &["wisher".to_owned()],
                network: "small",
                namespace: Namespace::Descriptor(namespace.as_fd()),
                ports: &[],
                ipv4: Some(ip.into()),
                ipv6: None,
                mac: Some(mac.parse().unwrap_or_else(|e| panic!("{e}"))),
                dns: &[],
            })
        };
        let refused = |ip| attach(ip, "02:00:00:00:00:09").err().map(|e| e.to_string()).unwrap_or_default();
        assert!(refused([10, 8, 0, 2]).contains("no configured subnet contains IP address 10.8.0.2"));
        assert!(refused([10, 7, 0, 1]).contains("not for containers"));
        assert!(refused([10, 7, 0, 7]).contains("not for containers"));
        let granted = attach([10, 7, 0, 5], "02:00:00:00:00:09").unwrap_or_else(|e| panic!("{}", words(&e)));
        assert_eq!(granted.lease.ipv4, Some(Ipv4Addr::new(10, 7, 0, 5)));
        let seen = crate::namespace::within(namespace.as_fd(), || {
            let read = |name: &str| {
                std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default()
            };
            Ok((read("route"), read("dev")))
        });
        assert!(
            seen.is_ok_and(|(route, dev)| route.contains("eth0\t00000000\t0100070A") && dev.contains("eth0"))
        );
        assert!(matches!(
            attach([10, 7, 0, 6], "02:00:00:00:00:09"),
            Err(crate::Error::AlreadyAttached { .. })
        ));
        for name in ["a", "b", "c", "d"] {
            drop(host.container(name, "small", &[]));
        }
        let full = host.try_container("e", "small", &[]).err().map(|e| e.to_string());
        assert_eq!(full.as_deref(), Some("no available addresses in 10.7.0.0/29 of network small"));
        assert!(
            host.networks
                .remove("small")
                .is_err_and(|e| e.to_string().contains("has active endpoints (name:\"wisher\""))
        );
    });
}

#[test]
fn a_port_has_one_owner() {
    with_host("port conflicts", |host| {
        let a = host.container("a", "bridge", &["8080:80", "80"]);
        assert!((32768..=60999).contains(&a.attachment.lease.ports[1].host_port));
        let refused = |publish: &str| {
            host.try_container("b", "bridge", &[publish]).err().map(|e| words(&e)).unwrap_or_default()
        };
        assert_eq!(refused("8080:81"), "Bind for 0.0.0.0:8080 failed: port is already allocated");
        assert_eq!(refused("127.0.0.1:8080:81"), "Bind for 127.0.0.1:8080 failed: port is already allocated");
        let other = std::net::TcpListener::bind("127.0.0.1:8090").unwrap_or_else(|e| panic!("{e}"));
        assert!(refused("8090:81").starts_with("failed to bind host port 0.0.0.0:8090/tcp: Address"));
        drop(other);
        // Nothing is left of those who were refused, and another program cannot take the port.
        assert_eq!(host.networks.leases().map(|leases| leases.len()).ok(), Some(1));
        assert!(std::net::TcpListener::bind("0.0.0.0:8080").is_err());
        let b = host.container("b", "bridge", &["8080-8083:81", "8080:80/udp"]);
        assert_eq!(b.port(), 8081);
        assert_eq!(host.networks.detach(&a.id, None).ok(), Some(true));
        drop(a);
        assert_eq!(host.container("c", "bridge", &["8080:80"]).port(), 8080);
    });
}

#[test]
fn a_container_in_two_networks_keeps_a_way_out() {
    with_host("two networks", |host| {
        let outside = host.outside();
        serve_tcp(outside.as_fd(), "0.0.0.0:80");
        host.network("second");
        let a = host.container("a", "bridge", &[]);
        let namespace = Namespace::Descriptor(a.fd());
        let second = host.networks.attach(&Request {
            container: &a.id,
            names: &["a".to_owned()],
            network: "second",
            namespace: namespace.clone(),
            ports: &[],
            ipv4: None,
            ipv6: None,
            mac: None,
            dns: &[],
        });
        assert_eq!(second.map(|s| s.lease.interface).ok().as_deref(), Some("eth1"));
        let out = at(Ipv4Addr::new(198, 51, 100, 2).into(), 80);
        assert!(ask_tcp(a.fd(), out, PATIENCE).is_ok());
        assert_eq!(host.networks.detach(&a.id, Some("bridge")).ok(), Some(true));
        assert!(ask_tcp(a.fd(), out, SHORT).is_err());
        host.networks.restore_default_route(&a.id, &namespace).unwrap_or_else(|e| panic!("{}", words(&e)));
        assert!(ask_tcp(a.fd(), out, PATIENCE).is_ok());
    });
}

#[test]
fn without_icc_neighbours_do_not_reach_each_other() {
    with_host("icc", |host| {
        let options = [("com.docker.network.bridge.enable_icc".to_owned(), "false".to_owned())].into();
        host.network_with(&NewNetwork { name: "apart".into(), options, ..NewNetwork::default() });
        let (a, b) = (host.container("a", "apart", &[]), host.container("b", "apart", &[]));
        serve_tcp(b.fd(), "0.0.0.0:80");
        for container in [&a, &b] {
            serve_tcp(container.fd(), "0.0.0.0:81");
            assert!(ask_tcp(host.namespace.as_fd(), at(container.v4(), 81), PATIENCE).is_ok());
        }
        assert!(ask_tcp(a.fd(), at(b.v4(), 80), SHORT).is_err());
    });
}

#[test]
fn a_client_of_udp_that_goes_on_finds_the_next_container() {
    with_host("flows", |host| {
        let outside = host.outside();
        let a = host.container("a", "bridge", &["5353:53/udp"]);
        serve_udp(a.fd(), "0.0.0.0:53");
        let client = crate::namespace::within(outside.as_fd(), || {
            let client = std::net::UdpSocket::bind("0.0.0.0:0").unwrap_or_else(|e| panic!("{e}"));
            client.connect(at(host_ip(), 5353)).unwrap_or_else(|e| panic!("{e}"));
            client.set_read_timeout(Some(PATIENCE)).unwrap_or_else(|e| panic!("{e}"));
            Ok(client)
        })
        .unwrap_or_else(|e| panic!("{}", words(&e)));
        let ask = || client.send(b"?").and_then(|_| client.recv(&mut [0; 64]));
        assert!(ask().is_ok());
        let before = a.v4();
        host.networks.detach(&a.id, None).unwrap_or_else(|e| panic!("{}", words(&e)));
        drop(a);
        // Into the void; this flow is remembered without a container.
        client.send(b"?").unwrap_or_default();
        let b = host.container("b", "bridge", &["5353:53/udp"]);
        assert_ne!(b.v4(), before);
        serve_udp(b.fd(), "0.0.0.0:53");
        let answered = ask().or_else(|_| ask());
        assert!(answered.is_ok(), "{answered:?}");
    });
}
