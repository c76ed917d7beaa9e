//! Networks on disk.
//!
//! ```text
//! ROOT/networks/.lock         held while anything of networks is changed, here or in the kernel
//! ROOT/networks/ID.json       a network
//! ROOT/networks/leases.json   who is in which network now
//! ROOT/networks/ID.dns        held by the network's name server as long as it lives
//! ```

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use rustix::fs::FlockOperation;
use serde::Serialize;

use crate::address;
use crate::document::{self, Driver, Network, NewNetwork};
use crate::error::{Doing, Error, Result};
use crate::lease::{Lease, Leases};
use crate::netlink::socket::Socket;

const LOCK: &str = ".lock";
/// The default network.
pub(crate) const DEFAULT: &str = "bridge";

/// What the caller knows and this crate does not.
#[derive(Debug, Clone)]
pub struct Options {
    /// Tells engines apart that share a machine with different roots: up to four characters for names of interfaces
    /// and of the packet filter's table. Empty for the usual root.
    pub instance: String,
    /// The command that serves names: the directory of the networks and the network's id are added. It must call
    /// [`dns::serve`](crate::dns::serve), and leave its caller when that says that it answers. `None`: no names.
    pub responder: Option<Vec<OsString>>,
    /// The present, RFC 3339.
    pub now: fn() -> String,
}

/// The networks of an engine.
#[derive(Debug)]
pub struct Networks {
    directory: PathBuf,
    pub(crate) options: Options,
}

/// While it lives, nobody else changes networks.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Networks {
    /// Opens the networks below `root`, the engine's directory; it is made if it is missing.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(root: &Path, options: Options) -> Result<Self> {
        let directory = root.join("networks");
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o711).create(root).map_err(Error::io("make directory", root))?;
        builder.mode(0o700).create(&directory).map_err(Error::io("make directory", &directory))?;
        Ok(Self { directory, options })
    }

    /// Where they are kept.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn lock(&self) -> Result<Lock> {
        lock(&self.directory)
    }

    /// All networks by name: the pre-defined ones are made at first use.
    ///
    /// # Errors
    /// When documents cannot be read or written.
    pub fn list(&self) -> Result<Vec<Network>> {
        let mut networks = load_all(&self.directory)?;
        if ["bridge", "host", "none"].iter().any(|name| !networks.iter().any(|n| n.name == *name)) {
            let lock = self.lock()?;
            networks = self.with_predefined(&lock)?;
        }
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(networks)
    }

    /// As [`list`](Self::list), for who holds the lock.
    pub(crate) fn with_predefined(&self, _lock: &Lock) -> Result<Vec<Network>> {
        let mut networks = load_all(&self.directory)?;
        for (name, driver) in [(DEFAULT, Driver::Bridge), ("host", Driver::Host), ("none", Driver::Null)] {
            if networks.iter().any(|network| network.name == name) {
                continue;
            }
            let mut network = Network {
                name: name.to_owned(),
                id: random_id()?,
                created: (self.options.now)(),
                driver,
                interface: String::new(),
                subnets: Vec::new(),
                internal: false,
                names: false,
                options: std::collections::BTreeMap::new(),
                labels: std::collections::BTreeMap::new(),
            };
            if driver == Driver::Bridge {
                let used = self.used(&networks)?;
                let free = |_| address::free_v4(true, &used);
                network.subnets = address::subnets(&NewNetwork::default(), &used, free)?;
                network.interface = self.default_interface();
            }
            self.write(&network)?;
            networks.push(network);
        }
        Ok(networks)
    }

    /// The network of this name, id, or beginning of an id.
    ///
    /// # Errors
    /// When there is none, or several.
    pub fn find(&self, name: &str) -> Result<Network> {
        find_in(self.list()?, name)
    }

    /// Makes a network.
    ///
    /// # Errors
    /// When its name or its subnet is taken, or the wish contradicts itself.
    pub fn create(&self, new: &NewNetwork) -> Result<Network> {
        document::check_name(&new.name)?;
        document::check_options(&new.options)?;
        if let Some(driver) = new.driver.as_deref().filter(|driver| *driver != "bridge") {
            return Err(Error::Invalid(match driver {
                "host" | "null" | "none" => format!("only one instance of {driver:?} network is allowed"),
                _ => format!("driver {driver:?} is not supported: only bridge is"),
            }));
        }
        let lock = self.lock()?;
        let networks = self.with_predefined(&lock)?;
        if networks.iter().any(|network| network.name == new.name) {
            return Err(Error::Exists(new.name.clone()));
        }
        let used = self.used(&networks)?;
        let random: [u8; 7] = random_bytes()?;
        let free = |v6| if v6 { address::unique_local(random) } else { address::free_v4(false, &used) };
        let subnets = address::subnets(new, &used, free)?;
        let id = random_id()?;
        let interface = match new.options.get("com.docker.network.bridge.name") {
            Some(name) if networks.iter().any(|network| network.interface == *name) => {
                return Err(Error::Invalid(format!("bridge name {name} belongs to another network")));
            }
            Some(name) => name.clone(),
            None => format!("lf-{}", id.get(..12).unwrap_or(&id)),
        };
        let network = Network {
            name: new.name.clone(),
            id,
            created: (self.options.now)(),
            driver: Driver::Bridge,
            interface,
            subnets,
            internal: new.internal,
            names: true,
            options: new.options.clone(),
            labels: new.labels.clone(),
        };
        self.write(&network)?;
        Ok(network)
    }

    /// Removes a network that nobody uses.
    ///
    /// # Errors
    /// When it is pre-defined or has containers.
    pub fn remove(&self, name: &str) -> Result<Network> {
        let lock = self.lock()?;
        let network = find_in(self.with_predefined(&lock)?, name)?;
        if network.is_predefined() {
            return Err(Error::Predefined(network.name));
        }
        let leases = Leases::load(&self.directory)?;
        let endpoints: Vec<String> = leases
            .of_network(&network.id)
            .map(|lease| {
                format!("name:{:?} id:{:?}", lease.name(), lease.container.get(..12).unwrap_or_default())
            })
            .collect();
        if !endpoints.is_empty() {
            return Err(Error::Active { name: network.name, endpoints: endpoints.join(", ") });
        }
        if network.driver == Driver::Bridge {
            // Before its document, by which it is found.
            let name = &network.interface;
            let words = || format!("remove bridge {name:?}");
            let mut socket = Socket::route().doing(words)?;
            // Only looked for where there is none: an ordinary user may ask no more.
            if socket.links().doing(words)?.iter().any(|link| link.name == *name) {
                socket.delete_link(name).doing(words)?;
            }
        }
        let path = self.document(&network.id);
        fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        let responder = crate::dns::lock_path(&self.directory, &network.id);
        match fs::remove_file(&responder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &responder)(error));
            }
            _ => {}
        }
        Ok(network)
    }

    /// Who is in which network now.
    ///
    /// # Errors
    /// When the document cannot be read.
    pub fn leases(&self) -> Result<Vec<Lease>> {
        Ok(Leases::load(&self.directory)?.leases)
    }

    /// The networks that a container is in now.
    ///
    /// # Errors
    /// As [`leases`](Self::leases).
    pub fn leases_of(&self, container: &str) -> Result<Vec<Lease>> {
        Ok(self.leases()?.into_iter().filter(|lease| lease.container == container).collect())
    }

    /// The bridge of the default network.
    fn default_interface(&self) -> String {
        match self.options.instance.as_str() {
            "" => "layerfs0".into(),
            instance => format!("layerfs-{instance}"),
        }
    }

    /// Subnets that a new one must keep clear of.
    pub(crate) fn used(&self, networks: &[Network]) -> Result<Vec<IpNet>> {
        let occupied = || Socket::route()?.occupied();
        let host = occupied().doing(|| "list the host's addresses and routes".into())?;
        let ours = networks.iter().flat_map(|network| network.subnets.iter().map(|subnet| subnet.subnet));
        // Link-local addresses are on every interface.
        let host = host.into_iter().map(|(net, _)| net).filter(|net| match net {
            IpNet::V4(net) => !net.addr().is_loopback(),
            IpNet::V6(net) => {
                !net.addr().is_unicast_link_local() && !net.addr().is_loopback() && !net.addr().is_multicast()
            }
        });
        Ok(ours.chain(host).collect())
    }

    fn document(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }

    pub(crate) fn write(&self, network: &Network) -> Result<()> {
        replace(&self.document(&network.id), network, true)
    }
}

/// Takes the lock of the networks in `directory`; the kernel frees it however its holder ends.
pub(crate) fn lock(directory: &Path) -> Result<Lock> {
    let path = directory.join(LOCK);
    let file = open_lock(&path)?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))
        .map_err(Error::io("lock", &path))?;
    Ok(Lock { _file: file })
}

pub(crate) fn open_lock(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(Error::io("open lock file", path))
}

/// The networks in `directory`.
pub(crate) fn load_all(directory: &Path) -> Result<Vec<Network>> {
    let mut networks = Vec::new();
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let path = entry.map_err(Error::io("list", directory))?.path();
        let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"));
        if !id.is_some_and(|id| id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())) {
            continue;
        }
        let text = match fs::read(&path) {
            Ok(text) => text,
            // Removed since it was listed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let network = serde_json::from_slice(&text).map_err(|source| Error::Json { path, source })?;
        networks.push(network);
    }
    Ok(networks)
}

/// By name, then by id, then by a beginning of an id that only one has.
pub(crate) fn find_in(networks: Vec<Network>, name: &str) -> Result<Network> {
    // docker's name of the default.
    let name = if name == "default" { DEFAULT } else { name };
    let found: Vec<Network> = match networks.iter().find(|n| n.name == name || n.id == name) {
        Some(network) => vec![network.clone()],
        None => networks.into_iter().filter(|n| !name.is_empty() && n.id.starts_with(name)).collect(),
    };
    match <[Network; 1]>::try_from(found) {
        Ok([network]) => Ok(network),
        Err(found) if found.is_empty() => Err(Error::NoSuchNetwork(name.to_owned())),
        Err(_) => Err(Error::Ambiguous(name.to_owned())),
    }
}

/// Writes a document beside `path` and renames it there; `durable` ones survive a power cut.
pub(crate) fn replace(path: &Path, document: &impl Serialize, durable: bool) -> Result<()> {
    let mut text =
        serde_json::to_vec(document).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    text.push(b'\n');
    // Only the holder of the lock writes: one name is enough, and a crash leaves one file at most.
    let beside = path.with_extension("new");
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let write = || -> std::io::Result<()> {
        let mut file = options.open(&beside)?;
        file.write_all(&text)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&beside, path)?;
        if let (true, Some(directory)) = (durable, path.parent()) {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(Error::io("write", path))
}

/// 64 hexadecimal digits by chance.
pub(crate) fn random_id() -> Result<String> {
    Ok(random_bytes::<32>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Bytes by chance.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .doing(|| "get random bytes".into())?;
    Ok(bytes)
}
