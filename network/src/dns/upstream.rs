//! Asking other name servers.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::answer::Transport;
use super::message::Question;

const PORT: u16 = 53;
/// For each server. A client's own patience is 5 seconds by default.
const PATIENCE: Duration = Duration::from_secs(2);
/// Largest message.
const MAX: usize = u16::MAX as usize;

/// The first answer of `servers`, with the client's number; `None` when nobody answers.
pub(crate) fn ask(
    question: &Question,
    servers: &[IpAddr],
    query: &[u8],
    transport: Transport,
) -> Option<Vec<u8>> {
    servers.iter().take(3).find_map(|server| {
        let address = SocketAddr::new(*server, PORT);
        // A number of our own: what a client chose, another may guess.
        let id = u16::from_ne_bytes(crate::store::random_bytes().ok()?);
        let mut own = query.to_vec();
        own.get_mut(..2)?.copy_from_slice(&id.to_be_bytes());
        let asked = match transport {
            Transport::Udp => over_udp(question, address, &own, id),
            Transport::Tcp => over_tcp(question, address, &own, id),
        };
        match asked {
            Ok(mut answer) => {
                answer.get_mut(..2)?.copy_from_slice(&question.id.to_be_bytes());
                Some(answer)
            }
            Err(error) => {
                tracing::debug!(%server, %error, "ask a name server");
                None
            }
        }
    })
}

fn over_udp(question: &Question, server: SocketAddr, query: &[u8], id: u16) -> std::io::Result<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    // Only this server's packets arrive.
    socket.connect(server)?;
    socket.send(query)?;
    let end = Instant::now() + PATIENCE;
    let mut buffer = vec![0; MAX];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let len = socket.recv(&mut buffer)?;
        let answer = buffer.get(..len).unwrap_or_default();
        if question.is_answered_by(answer, id) {
            return Ok(answer.to_vec());
        }
    }
}

fn over_tcp(question: &Question, server: SocketAddr, query: &[u8], id: u16) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write_message(&mut stream, query)?;
    let answer = read_message(&mut stream)?.ok_or(std::io::ErrorKind::UnexpectedEof)?;
    if question.is_answered_by(&answer, id) {
        Ok(answer)
    } else {
        Err(std::io::ErrorKind::InvalidData.into())
    }
}

/// A message with its length in front, in one packet.
pub(crate) fn write_message(stream: &mut impl Write, message: &[u8]) -> std::io::Result<()> {
    let len = u16::try_from(message.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    stream.write_all(&bytes)
}

/// The next message of a stream; `None` at its end.
pub(crate) fn read_message(stream: &mut impl Read) -> std::io::Result<Option<Vec<u8>>> {
    let mut len = [0; 2];
    match stream.read_exact(&mut len) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut message)?;
    Ok(Some(message))
}
