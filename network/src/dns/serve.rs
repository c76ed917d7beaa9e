//! The server's process: sockets, threads, and when it ends.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use super::answer::{self, Decision, Transport};
use super::lock_path;
use super::names::Names;
use super::upstream::{read_message, write_message};
use crate::error::{Doing, Error, Result};
use crate::lease::{self, Leases};
use crate::store;

const PORT: u16 = 53;
/// Questions that wait for other servers, and connections, at one time. More are dropped; clients ask again.
const MAX_WAITING: usize = 128;
/// Of these, of one client: no container keeps the others of its network from being answered.
const MAX_WAITING_EACH: usize = 32;
/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(10);
/// What is enough for one question.
const STACK: usize = 192 << 10;

#[derive(Debug)]
struct Server {
    directory: PathBuf,
    network: String,
    names: RwLock<Arc<Names>>,
    waiting: Mutex<HashMap<IpAddr, usize>>,
    host_resolv: PathBuf,
}

/// Serves the names of a network until its last container has gone; then the caller should end its process, which has
/// threads that wait. `ready` is called when questions are answered. Returns at once where another server runs.
///
/// # Errors
/// When the gateway's port 53 cannot be had, or documents cannot be read.
pub fn serve(directory: &Path, network: &str, host_resolv: &Path, ready: impl FnOnce()) -> Result<()> {
    let path = lock_path(directory, network);
    let lock = store::open_lock(&path)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            ready();
            return Ok(());
        }
        Err(error) => return Err(Error::io("lock", &path)(error)),
    }
    // Before reading: what is replaced from now on is seen.
    let watch = inotify::init(CreateFlags::CLOEXEC).doing(|| "make a watch".into())?;
    inotify::add_watch(&watch, directory, WatchFlags::MOVED_TO).doing(|| "watch the networks".into())?;
    let names = read_names(directory)?;
    let Some(home) = names.networks.iter().find(|n| n.id == network) else {
        return Err(Error::NoSuchNetwork(network.to_owned()));
    };
    let gateways: Vec<IpAddr> = home.subnets.iter().map(|subnet| subnet.gateway).collect();
    let server = Arc::new(Server {
        directory: directory.to_owned(),
        network: network.to_owned(),
        names: RwLock::new(Arc::new(names)),
        waiting: Mutex::default(),
        host_resolv: host_resolv.to_owned(),
    });
    for gateway in gateways {
        let address = SocketAddr::new(gateway, PORT);
        let words = || format!("listen on {address}");
        let udp = UdpSocket::bind(address).doing(words)?;
        let tcp = TcpListener::bind(address).doing(words)?;
        let own = Arc::clone(&server);
        spawn(move || own.udp(&udp))?;
        let own = Arc::clone(&server);
        spawn(move || own.tcp(&tcp))?;
    }
    ready();
    server.follow(&watch)?;
    // Released while the networks' lock is held, in `follow`'s last step.
    drop(lock);
    Ok(())
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().stack_size(STACK).spawn(work).map(drop).doing(|| "start a thread".into())
}

fn read_names(directory: &Path) -> Result<Names> {
    Ok(Names { networks: store::load_all(directory)?, leases: Leases::load(directory)?.leases })
}

impl Server {
    fn now(&self) -> Arc<Names> {
        Arc::clone(&self.names.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the leases again as they are replaced, until there are none of this network.
    fn follow(&self, watch: &impl std::os::fd::AsFd) -> Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        loop {
            match read_names(&self.directory) {
                Ok(names) => {
                    let used = names.leases.iter().any(|lease| lease.network == self.network);
                    *self.names.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(names);
                    if !used && self.may_leave()? {
                        return Ok(());
                    }
                }
                // What cannot be read now may be written again; until then what was known holds.
                Err(error) => tracing::warn!(%error, "read the networks"),
            }
            let mut events = inotify::Reader::new(watch, &mut buffer);
            loop {
                let event = events.next();
                let name = match &event {
                    Ok(event) => event.file_name().map(std::ffi::CStr::to_bytes),
                    Err(Errno::INTR) => continue,
                    Err(errno) => return Err(*errno).doing(|| "read a watch".into()),
                };
                let ours = name.is_none_or(|name| name == lease::FILE.as_bytes() || name.ends_with(b".json"));
                if ours && events.is_buffer_empty() {
                    break;
                }
            }
        }
    }

    /// Nobody attaches while this is looked at. True ends the process, and with it the server's own lock, before the
    /// networks' lock is freed.
    fn may_leave(&self) -> Result<bool> {
        let lock = store::lock(&self.directory)?;
        let leases = Leases::load(&self.directory)?;
        let leave = leases.of_network(&self.network).next().is_none();
        if leave {
            // Freed by the kernel when the process ends, which is the caller's next step.
            std::mem::forget(lock);
        }
        Ok(leave)
    }

    fn udp(self: Arc<Self>, socket: &UdpSocket) {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            let (len, client) = match socket.recv_from(&mut buffer) {
                Ok(received) => received,
                // An earlier answer met a closed port.
                Err(error) if is_passing(&error) => continue,
                Err(error) => return tracing::warn!(%error, "receive questions"),
            };
            let query = buffer.get(..len).unwrap_or_default();
            match self.decide(client, query, Transport::Udp) {
                // A client that has gone needs no answer.
                Decision::Answer(answer) => drop(socket.send_to(&answer, client)),
                Decision::Ignore => {}
                Decision::Forward(question, servers) => {
                    let (Some(slot), Ok(socket)) = (self.slot(client.ip()), socket.try_clone()) else {
                        continue;
                    };
                    let query = query.to_vec();
                    let waited = spawn(move || {
                        let _slot = slot;
                        let answer = answer::forward(&question, &servers, &query, Transport::Udp);
                        drop(socket.send_to(&answer, client));
                    });
                    if let Err(error) = waited {
                        tracing::warn!(%error, "forward a question");
                    }
                }
            }
        }
    }

    fn tcp(self: Arc<Self>, listener: &TcpListener) {
        loop {
            let (stream, client) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if is_passing(&error) => continue,
                Err(error) => return tracing::warn!(%error, "accept connections"),
            };
            if !self.now().admits(&self.network, client.ip()) {
                continue;
            }
            let Some(slot) = self.slot(client.ip()) else { continue };
            let own = Arc::clone(&self);
            let started = spawn(move || {
                let _slot = slot;
                if let Err(error) = own.connection(stream, client) {
                    tracing::debug!(%client, %error, "a connection");
                }
            });
            if let Err(error) = started {
                tracing::warn!(%error, "serve a connection");
            }
        }
    }

    fn connection(&self, mut stream: TcpStream, client: SocketAddr) -> std::io::Result<()> {
        stream.set_read_timeout(Some(IDLE))?;
        stream.set_write_timeout(Some(IDLE))?;
        while let Some(query) = read_message(&mut stream)? {
            match self.decide(client, &query, Transport::Tcp) {
                Decision::Answer(answer) => write_message(&mut stream, &answer)?,
                Decision::Ignore => return Ok(()),
                Decision::Forward(question, servers) => {
                    let answer = answer::forward(&question, &servers, &query, Transport::Tcp);
                    write_message(&mut stream, &answer)?;
                }
            }
        }
        Ok(())
    }

    fn decide(&self, client: SocketAddr, query: &[u8], transport: Transport) -> Decision {
        answer::decide(&self.now(), &self.network, client.ip(), query, transport, &self.host_resolv)
    }

    /// Room for one more of `client` that waits.
    fn slot(self: &Arc<Self>, client: IpAddr) -> Option<Slot> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.values().sum::<usize>() >= MAX_WAITING {
            return None;
        }
        let own = waiting.entry(client).or_default();
        if *own >= MAX_WAITING_EACH {
            return None;
        }
        *own += 1;
        Some(Slot { server: Arc::clone(self), client })
    }
}

/// One that waits; gone with its thread.
struct Slot {
    server: Arc<Server>,
    client: IpAddr,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut waiting = self.server.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = waiting.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                waiting.remove(&self.client);
            }
        }
    }
}

/// Failures of one packet or connection, after which the next may be fine.
fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::Interrupted
            | Kind::ConnectionRefused
            | Kind::ConnectionAborted
            | Kind::ConnectionReset
            | Kind::HostUnreachable
    ) || error.raw_os_error() == Some(Errno::MFILE.raw_os_error())
}
