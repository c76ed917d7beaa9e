//! The name server, asked by containers.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc;

use super::world::{PATIENCE, enter, with_host, words};
use crate::dns;
use crate::namespace;

const A: u16 = 1;
const PTR: u16 = 12;

/// A query for a name, as a resolver sends it.
fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap_or(0));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, u8::try_from(kind).unwrap_or(0), 0, 1]);
    bytes
}

/// The code and the last bytes of the answer over UDP.
fn ask(from: BorrowedFd<'_>, server: IpAddr, name: &str, kind: u16) -> (u8, Vec<u8>) {
    let answer = namespace::within(from, || {
        let ask = || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send_to(&query(name, kind), SocketAddr::new(server, 53))?;
            let mut buffer = vec![0; 2048];
            let (len, _) = socket.recv_from(&mut buffer)?;
            buffer.truncate(len);
            std::io::Result::Ok(buffer)
        };
        Ok(ask().unwrap_or_else(|e| panic!("{name}: {e}")))
    })
    .unwrap_or_else(|e| panic!("{}", words(&e)));
    (answer[3] & 0xf, answer)
}

#[test]
fn names_of_a_network_are_answered_and_others_are_asked_for() {
    with_host("names", |host| {
        let outside = host.outside();
        host.network("mine");
        let (a, b) = (host.container("a", "mine", &[]), host.container("web", "mine", &[]));
        let resolv = host.root.path().join("resolv.conf");
        std::fs::write(&resolv, "nameserver 198.51.100.2\n").unwrap_or_else(|e| panic!("{e}"));
        // The server outside answers everything with one address, and to the question as it came.
        let foreign = namespace::within(outside.as_fd(), || {
            Ok(UdpSocket::bind("198.51.100.2:53").unwrap_or_else(|e| panic!("{e}")))
        })
        .unwrap_or_else(|e| panic!("{}", words(&e)));
        std::thread::spawn(move || {
            let mut buffer = vec![0; 2048];
            while let Ok((len, client)) = foreign.recv_from(&mut buffer) {
                let mut answer = buffer[..len].to_vec();
                answer[2] |= 0x80;
                answer[7] = 1;
                answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 77]);
                if foreign.send_to(&answer, client).is_err() {
                    return;
                }
            }
        });
        let (ready, is_ready) = mpsc::channel();
        let network = b.attachment.network.id.clone();
        std::thread::scope(|scope| {
            let server = scope.spawn(|| {
                enter(host.namespace.as_fd());
                dns::serve(host.networks.directory(), &network, &resolv, || {
                    ready.send(()).unwrap_or_default()
                })
            });
            if is_ready.recv_timeout(PATIENCE).is_err() {
                panic!("the server did not start: {:?}", server.join());
            }
            let gateway = b.attachment.network.name_servers()[0];
            let octets = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let (code, answer) = ask(a.fd(), gateway, "web", A);
            assert_eq!((code, answer.ends_with(&octets(b.v4()))), (0, true));
            assert_eq!(ask(a.fd(), gateway, "web", 28).0, 0);
            let IpAddr::V4(own) = b.v4() else { panic!("no IPv4") };
            let [x, y, z, w] = own.octets();
            let (code, answer) = ask(a.fd(), gateway, &format!("{w}.{z}.{y}.{x}.in-addr.arpa"), PTR);
            assert_eq!((code, answer.ends_with(b"\x03web\x04mine\0")), (0, true));
            let (code, answer) = ask(a.fd(), gateway, "elsewhere.example", A);
            assert_eq!((code, answer.ends_with(&[192, 0, 2, 77])), (0, true));
            // Over TCP, two questions on one connection.
            let over_tcp = namespace::within(a.fd(), || {
                let ask = || {
                    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(gateway, 53), PATIENCE)?;
                    stream.set_read_timeout(Some(PATIENCE))?;
                    for name in ["web", "a"] {
                        crate::dns::tests_write(&mut stream, &query(name, A))?;
                    }
                    let first = crate::dns::tests_read(&mut stream)?;
                    let second = crate::dns::tests_read(&mut stream)?;
                    std::io::Result::Ok((first, second))
                };
                Ok(ask().unwrap_or_else(|e| panic!("{e}")))
            });
            assert!(over_tcp.is_ok_and(|(first, second)| {
                first.is_some_and(|m| m.ends_with(&octets(b.v4())))
                    && second.is_some_and(|m| m.ends_with(&octets(a.v4())))
            }));
            // Of another network: nothing, over UDP or TCP.
            host.network("other");
            let foreign = host.container("foreign", "other", &[]);
            let unheard = namespace::within(foreign.fd(), || {
                let ask = || {
                    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(gateway, 53), PATIENCE)?;
                    stream.set_read_timeout(Some(PATIENCE))?;
                    crate::dns::tests_write(&mut stream, &query("web", A))?;
                    crate::dns::tests_read(&mut stream)
                };
                Ok(ask())
            });
            assert!(
                unheard.is_ok_and(|answer| answer.is_err() || answer.is_ok_and(|message| message.is_none()))
            );
            host.networks.detach(&foreign.id, None).unwrap_or_else(|e| panic!("{}", words(&e)));
            // A name that comes and goes.
            let c = host.container("late", "mine", &[]);
            while ask(a.fd(), gateway, "late.mine", A).1.ends_with(&[192, 0, 2, 77]) {}
            assert!(ask(a.fd(), gateway, "late", A).1.ends_with(&octets(c.v4())));
            for container in [&a, &b, &c] {
                host.networks.detach(&container.id, None).unwrap_or_else(|e| panic!("{}", words(&e)));
            }
            let ended = server.join();
            assert!(ended.is_ok_and(|result| result.is_ok()));
        });
    });
}
