//! [`Client`] and [`Repository`]: from a name to the servers that have it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::config::{ConfigError, Place, PullFrom, RegistriesConf};
use super::credentials::{CredentialStore, Credentials};
use super::environment::Environment;
use super::error::{ErrorKind, RegistryError};
use super::proxy::{host_and_port, in_network};
use super::retry::RetryPolicy;
use super::service::Service;
use super::transport::{Timeouts, Transport};
use crate::reference::{DEFAULT_REGISTRY, Reference};

/// What a client does otherwise than by default.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Configuration files, credentials, proxies.
    pub environment: Environment,
    /// Used for every registry instead of what is found in files.
    pub credentials: Option<Credentials>,
    /// Mirrors of the default registry as of docker's `--registry-mirror`: `[http[s]://]HOST[:PORT][/PATH]`.
    pub mirrors: Vec<String>,
    /// Registries that may speak plain http or have unproven certificates: `HOST[:PORT]` or a network `ADDRESS/BITS`.
    pub insecure: Vec<String>,
    /// Patience.
    pub retry: RetryPolicy,
    /// Time limits.
    pub timeouts: Timeouts,
    /// Upload blobs that are larger than this in pieces of this many bytes. Without it a blob is sent in one
    /// piece, which every registry takes, and in pieces only after a failure.
    pub chunk_size: Option<u64>,
    /// Largest manifest that is read, in bytes.
    pub max_manifest: u64,
    /// How this program calls itself.
    pub user_agent: String,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            environment: Environment::of_process(),
            credentials: None,
            mirrors: Vec::new(),
            insecure: Vec::new(),
            retry: RetryPolicy::default(),
            timeouts: Timeouts::default(),
            chunk_size: None,
            max_manifest: 4 << 20,
            user_agent: concat!("layerfs/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// A client of registries. Cheap to clone; clones share connections and tokens.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: ClientOptions,
    conf: RegistriesConf,
    mirrors: Vec<Place>,
    transport: Arc<Transport>,
    store: CredentialStore,
    services: Mutex<HashMap<(String, bool), Arc<Service>>>,
}

impl Client {
    /// Reads the configuration. Nothing is sent yet.
    ///
    /// # Errors
    /// Configuration that is there and malformed.
    pub fn new(options: ClientOptions) -> Result<Self, RegistryError> {
        let fail = |error: ConfigError| RegistryError::new("configuration of registries", error.into());
        let conf = RegistriesConf::load(&options.environment).map_err(fail)?;
        let mirrors = options.mirrors.iter().map(|mirror| mirror_place(mirror));
        let mirrors = mirrors.collect::<Result<_, _>>().map_err(fail)?;
        let transport = Arc::new(Transport::new(
            options.environment.clone(),
            options.user_agent.clone(),
            options.timeouts.clone(),
            options.retry.clone(),
        ));
        let store = CredentialStore::new(options.environment.clone());
        Ok(Self(Arc::new(Inner { options, conf, mirrors, transport, store, services: Mutex::default() })))
    }

    /// The repository of `reference`, with its mirrors. Tag and digest play no part.
    ///
    /// # Errors
    /// When the configuration blocks the registry.
    pub fn repository(&self, reference: &Reference) -> Result<Repository, RegistryError> {
        let places = self.0.conf.places(reference.registry(), reference.repository());
        let mut places = places.ok_or_else(|| {
            RegistryError::new(reference.name(), ErrorKind::Blocked(reference.registry().to_owned()))
        })?;
        if reference.registry() == DEFAULT_REGISTRY {
            let mirrors = self.0.mirrors.iter().cloned().map(|mut mirror| {
                mirror.repository.push_str(reference.repository());
                mirror
            });
            places.splice(0..0, mirrors);
        }
        for place in &mut places {
            place.insecure |= self.is_insecure(&place.host);
        }
        Ok(Repository {
            client: self.clone(),
            name: reference.name(),
            places: places.into(),
            answered: Arc::new(AtomicUsize::new(0)),
        })
    }

    /// The server of a registry as a whole.
    pub(super) fn registry(&self, registry: &str) -> Result<Arc<Service>, RegistryError> {
        let insecure = self
            .0
            .conf
            .is_insecure(registry)
            .ok_or_else(|| RegistryError::new(registry, ErrorKind::Blocked(registry.to_owned())))?;
        Ok(self.service(registry, insecure || self.is_insecure(registry)))
    }

    pub(super) fn service(&self, host: &str, insecure: bool) -> Arc<Service> {
        let mut services = self.0.services.lock().unwrap_or_else(PoisonError::into_inner);
        let service = services.entry((host.to_owned(), insecure)).or_insert_with(|| {
            let given = self.0.options.credentials.clone();
            Arc::new(Service::new(host, insecure, self.0.transport.clone(), given, self.0.store.clone()))
        });
        service.clone()
    }

    pub(super) fn options(&self) -> &ClientOptions {
        &self.0.options
    }

    pub(super) fn transport(&self) -> &Arc<Transport> {
        &self.0.transport
    }

    /// Where credentials are looked up and kept.
    pub fn credential_store(&self) -> &CredentialStore {
        &self.0.store
    }

    pub(super) fn is_insecure(&self, host: &str) -> bool {
        let (name, _) = host_and_port(host);
        let address = name.parse::<IpAddr>().ok();
        self.0.options.insecure.iter().any(|entry| match (entry.split_once('/'), address) {
            (Some((network, bits)), Some(address)) => in_network(address, network, bits),
            _ => entry == host,
        })
    }
}

/// A mirror of the default registry; its repository is the prefix of those in it.
fn mirror_place(text: &str) -> Result<Place, ConfigError> {
    let fail = || ConfigError::Mirror(text.to_owned());
    let (insecure, rest) = match text.split_once("://") {
        Some(("https", rest)) => (false, rest),
        Some(("http", rest)) => (true, rest),
        Some(_) => return Err(fail()),
        None => (false, text),
    };
    let rest = rest.trim_end_matches('/');
    // What is a place of an image is one of a mirror.
    let probe = Reference::parse(&format!("{rest}/probe")).map_err(|_| fail())?;
    let host = rest.split('/').next().unwrap_or(rest);
    if probe.registry() != host || probe.digest().is_some() {
        return Err(fail());
    }
    let prefix = probe.repository().strip_suffix("probe").unwrap_or_default().to_owned();
    Ok(Place {
        host: host.to_owned(),
        repository: prefix,
        insecure,
        pull_from: PullFrom::All,
        is_mirror: true,
    })
}

/// One repository, at its registry and at the mirrors. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Repository {
    client: Client,
    name: String,
    places: Arc<[Place]>,
    /// Index of the place that answered last: blobs are asked where the manifest was.
    answered: Arc<AtomicUsize>,
}

/// A server, and the name of the repository there.
#[derive(Debug, Clone)]
pub(super) struct Spot {
    pub(super) service: Arc<Service>,
    pub(super) repository: String,
}

impl Repository {
    /// Registry and repository as the user knows them: `docker.io/library/debian`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The registry itself, for what changes it.
    pub(super) fn home(&self) -> Spot {
        let place =
            self.places.iter().rfind(|place| !place.is_mirror).unwrap_or(&self.places[self.places.len() - 1]);
        self.spot(place)
    }

    fn spot(&self, place: &Place) -> Spot {
        Spot {
            service: self.client.service(&place.host, place.insecure),
            repository: place.repository.clone(),
        }
    }

    /// Asks the places one after the other until one has an answer. The error is that of the registry itself.
    pub(super) fn ask<T>(
        &self,
        by_digest: bool,
        mut question: impl FnMut(&Spot) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let mut order: Vec<usize> = (0..self.places.len()).collect();
        let answered = self.answered.load(Ordering::Relaxed);
        order.sort_by_key(|&index| index != answered);
        let mut failed = None;
        for index in order {
            let place = &self.places[index];
            let skipped = match place.pull_from {
                PullFrom::All => false,
                PullFrom::DigestOnly => !by_digest,
                PullFrom::TagOnly => by_digest,
            };
            if skipped {
                continue;
            }
            match question(&self.spot(place)) {
                Ok(answer) => {
                    self.answered.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) if place.is_mirror => {
                    tracing::info!(mirror = place.host, %error, "a mirror has no answer");
                    failed.get_or_insert(error);
                }
                // The last word, wherever it came in the order.
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| {
            let reason = "no mirror takes pulls of this kind".to_owned();
            RegistryError::new(&self.name, ErrorKind::Manifest(reason))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(mirrors: &[&str], insecure: &[&str]) -> Client {
        let own = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        let options = ClientOptions {
            environment: Environment::default(),
            mirrors: own(mirrors),
            insecure: own(insecure),
            ..ClientOptions::default()
        };
        Client::new(options).unwrap()
    }

    #[test]
    fn mirrors_are_for_the_default_registry() {
        let client = client(&["http://m.local:5000", "n.local/hub/"], &["10.0.0.0/8", "r.local"]);
        let places = |name: &str| {
            let repository = client.repository(&Reference::parse(name).unwrap()).unwrap();
            let words = |place: &Place| format!("{}/{} {}", place.host, place.repository, place.insecure);
            repository.places.iter().map(words).collect::<Vec<_>>()
        };
        assert_eq!(
            places("debian"),
            [
                "m.local:5000/library/debian true",
                "n.local/hub/library/debian false",
                "docker.io/library/debian false"
            ]
        );
        assert_eq!(places("10.1.2.3:5000/a"), ["10.1.2.3:5000/a true"]);
        assert_eq!(places("11.1.2.3:5000/a"), ["11.1.2.3:5000/a false"]);
        assert_eq!(places("r.local/a"), ["r.local/a true"]);
        for bad in ["", "ftp://a.b", "http://", "a b", "http://a.b/../c", "mirror"] {
            assert!(mirror_place(bad).is_err(), "{bad:?}");
        }
    }
}
