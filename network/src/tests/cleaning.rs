//! Many at once, and what is left after failures.

use std::os::fd::AsFd;

use super::world::{Container, enter, id_of, open, with_host, words};
use crate::lease::Leases;
use crate::netlink::socket::Socket;

#[test]
fn twenty_at_once_get_twenty_addresses() {
    with_host("twenty at once", |host| {
        let containers: Vec<Container> = std::thread::scope(|scope| {
            let attach = |n: usize| {
                enter(host.namespace.as_fd());
                // Each as another command would: with nothing in common but the disk.
                let own = super::world::Host {
                    networks: open(host.root.path()),
                    root: tempfile::tempdir().unwrap_or_else(|e| panic!("{e}")),
                    namespace: host.namespace.try_clone().unwrap_or_else(|e| panic!("{e}")),
                };
                own.container(&format!("c{n}"), "bridge", &["80", "81/udp"])
            };
            let threads: Vec<_> = (0..20).map(|n| scope.spawn(move || attach(n))).collect();
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| panic!("a thread failed"))).collect()
        });
        let mut addresses: Vec<_> = containers.iter().map(Container::v4).collect();
        let mut ports: Vec<_> = containers.iter().map(Container::port).collect();
        addresses.sort_unstable();
        addresses.dedup();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!((addresses.len(), ports.len()), (20, 20));
        assert_eq!(host.networks.list().map(|networks| networks.len()).ok(), Some(3));
        assert_eq!(host.networks.check(false, &|_| true).ok(), Some(Vec::new()));
        for container in &containers {
            assert_eq!(host.networks.detach(&container.id, None).ok(), Some(true));
        }
        host.assert_clean();
    });
}

#[test]
fn a_check_frees_what_dead_containers_had() {
    with_host("check", |host| {
        host.network("mine");
        let (a, b) = (host.container("a", "bridge", &["8080:80"]), host.container("b", "mine", &[]));
        let b_id = b.id.clone();
        drop((a.namespace, a.attachment));
        let runs = |id: &str| id == b_id;
        let found = host.networks.check(false, &runs).unwrap_or_else(|e| panic!("{}", words(&e)));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(!found[0].mended);
        host.networks.check(true, &runs).unwrap_or_else(|e| panic!("{}", words(&e)));
        assert_eq!(host.networks.leases().map(|leases| leases.len()).ok(), Some(1));
        assert_eq!(host.networks.check(false, &runs).ok(), Some(Vec::new()));
        assert!(!host.links().contains(&"layerfs0".to_owned()));
        // A lease that was written, and nothing else; and the reverse.
        let mut leases = Leases::load(host.networks.directory()).unwrap_or_else(|e| panic!("{}", words(&e)));
        let mut ghost = leases.leases[0].clone();
        ghost.container = id_of("ghost");
        ghost.host_interface = "lfv00000000".into();
        leases.leases = vec![ghost];
        leases.save(host.networks.directory()).unwrap_or_else(|e| panic!("{}", words(&e)));
        std::fs::write(host.networks.directory().join("leases.new"), "{").unwrap_or_else(|e| panic!("{e}"));
        let found = host.networks.check(true, &|_| false).unwrap_or_else(|e| panic!("{}", words(&e)));
        assert!(found.len() >= 3, "{found:?}");
        host.assert_clean();
        assert_eq!(host.networks.check(false, &|_| false).ok(), Some(Vec::new()));
    });
}

#[test]
fn the_packet_filter_comes_back_and_others_stay() {
    with_host("packet filter", |host| {
        let foreign = |socket: &mut Socket| socket.table_mark("foreign").ok().flatten();
        let mut socket = Socket::netfilter().unwrap_or_else(|e| panic!("{e}"));
        socket.replace_table("foreign", b"\0\x02x\0", &[]).unwrap_or_else(|e| panic!("{e:?}"));
        let a = host.container("a", "bridge", &["8080:80"]);
        assert!(host.has_table());
        let networks = host.networks.list().unwrap_or_else(|e| panic!("{}", words(&e)));
        let leases = host.networks.leases().unwrap_or_else(|e| panic!("{}", words(&e)));
        // What is right is left alone; what somebody removed is made again.
        assert_eq!(host.networks.sync_firewall(&networks, &leases).ok(), Some(false));
        socket.delete_table("layerfs").unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!(host.networks.sync_firewall(&networks, &leases).ok(), Some(true));
        assert_eq!(host.networks.detach(&a.id, None).ok(), Some(true));
        host.assert_clean();
        assert!(foreign(&mut socket).is_some());
        assert_eq!(host.networks.detach(&a.id, None).ok(), Some(false));
    });
}

#[test]
fn a_failed_attachment_leaves_nothing() {
    with_host("failed attachment", |host| {
        let a = host.container("a", "bridge", &[]);
        host.networks.detach(&a.id, None).unwrap_or_else(|e| panic!("{}", words(&e)));
        host.assert_clean();
        // An interface of that name is in the container already.
        let blocked = crate::namespace::create().unwrap_or_else(|e| panic!("{}", words(&e)));
        crate::namespace::within(blocked.as_fd(), || {
            let made = Socket::route()
                .and_then(|mut socket| socket.add_bridge("eth0", crate::Mac([2, 0, 0, 0, 0, 1]), None));
            made.map_err(|e| panic!("{e}"))
        })
        .unwrap_or_else(|e| panic!("{}", words(&e)));
        let refused = host.networks.attach(&crate::Request {
            container: "c",
            names: &[],
            network: "bridge",
            namespace: crate::Namespace::Descriptor(blocked.as_fd()),
            ports: &[],
            ipv4: None,
            ipv6: None,
            mac: None,
            dns: &[],
        });
        let said = refused.err().map(|e| words(&e)).unwrap_or_default();
        assert!(
            said.starts_with("make interface \"eth0\" of network bridge in the container: File exists"),
            "{said}"
        );
        host.assert_clean();
    });
}

#[test]
fn networks_are_made_and_removed() {
    with_host("networks", |host| {
        let networks = &host.networks;
        host.network("one");
        assert_eq!(
            networks
                .create(&crate::NewNetwork { name: "one".into(), ..Default::default() })
                .err()
                .map(|e| e.to_string())
                .as_deref(),
            Some("network with name one already exists")
        );
        let one = networks.find("one").unwrap_or_else(|e| panic!("{}", words(&e)));
        assert_eq!(networks.find(&one.id[..8]).map(|n| n.name).ok().as_deref(), Some("one"));
        assert_eq!(
            networks.find("two").err().map(|e| e.to_string()).as_deref(),
            Some("network two not found")
        );
        assert_eq!(
            networks.remove("bridge").err().map(|e| e.to_string()).as_deref(),
            Some("bridge is a pre-defined network and cannot be removed")
        );
        // The subnet of the next one is another.
        host.network("two");
        let two = networks.find("two").unwrap_or_else(|e| panic!("{}", words(&e)));
        assert_ne!(one.subnets, two.subnets);
        assert_eq!(networks.remove("one").map(|n| n.id).ok(), Some(one.id));
        assert_eq!(networks.list().map(|all| all.len()).ok(), Some(4));
    });
}
