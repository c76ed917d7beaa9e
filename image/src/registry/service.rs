//! One registry server: how it is reached, what proof it wants, and a request to it with that proof.

use std::sync::{Arc, Mutex, PoisonError};

use ureq::http::{Method, header};

use super::answer::{challenges, error_of};
use super::auth::challenge::Challenge;
use super::auth::{Auth, Proof, Scope, Site};
use super::credentials::{CredentialStore, Credentials};
use super::error::{ErrorKind, RegistryError};
use super::proxy::is_loopback;
use super::transport::{Answer, Outgoing, Payload, Transport, is_passing};
use super::url::Url;

/// The server behind `docker.io`.
pub(super) const DEFAULT_HOST: &str = "registry-1.docker.io";

/// A registry server. Shared by all requests to it, from any thread.
#[derive(Debug)]
pub(super) struct Service {
    host: String,
    insecure: bool,
    transport: Arc<Transport>,
    auth: Auth,
    site: Mutex<Option<Arc<Site>>>,
}

/// Where a request goes.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// Path and query below the host.
    Path(String),
    /// A URL that the registry gave, such as that of an upload.
    Url(Url),
}

/// A request to a registry.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) target: Target,
    pub(super) headers: Vec<(header::HeaderName, String)>,
    pub(super) payload: Payload<'a>,
    /// The repository it concerns, for the choice of credentials.
    pub(super) repository: &'a str,
    pub(super) scopes: &'a [Scope],
    /// What it is for, in the words of an error.
    pub(super) subject: &'a str,
}

impl<'a> Call<'a> {
    pub(super) fn get(path: String, repository: &'a str, scopes: &'a [Scope], subject: &'a str) -> Self {
        Self {
            method: Method::GET,
            target: Target::Path(path),
            headers: Vec::new(),
            payload: Payload::None,
            repository,
            scopes,
            subject,
        }
    }
}

/// An answer, and whether credentials stood behind the request.
pub(super) struct Reply {
    pub(super) answer: Answer,
    pub(super) authenticated: bool,
}

impl Reply {
    /// The answer if its status is one of `statuses`.
    pub(super) fn expect(self, subject: &str, statuses: &[u16]) -> Result<Answer, RegistryError> {
        if statuses.contains(&self.answer.status) {
            return Ok(self.answer);
        }
        Err(self.into_error(subject))
    }

    pub(super) fn into_error(self, subject: &str) -> RegistryError {
        RegistryError::new(subject, error_of(self.answer, self.authenticated))
    }
}

impl Service {
    /// The server of `registry`, as users call it.
    pub(super) fn new(
        registry: &str,
        insecure: bool,
        transport: Arc<Transport>,
        given: Option<Credentials>,
        store: CredentialStore,
    ) -> Self {
        let host = if registry == crate::reference::DEFAULT_REGISTRY { DEFAULT_HOST } else { registry };
        Self {
            host: host.to_owned(),
            // As docker has it: who can listen on loopback needs no network to read along.
            insecure: insecure || is_loopback(host),
            transport,
            auth: Auth::new(registry, given, store),
            site: Mutex::default(),
        }
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn transport(&self) -> &Arc<Transport> {
        &self.transport
    }

    /// Finds out by the first request how the server is reached: by https, or, where it may be insecure, by http.
    pub(super) fn site(&self, subject: &str) -> Result<Arc<Site>, RegistryError> {
        let mut site = self.site.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(site) = &*site {
            return Ok(site.clone());
        }
        let found = Arc::new(self.ping().map_err(|kind| RegistryError::new(subject, kind))?);
        *site = Some(found.clone());
        Ok(found)
    }

    fn ping(&self) -> Result<Site, ErrorKind> {
        let schemes: &[bool] = if self.insecure { &[true, false] } else { &[true] };
        let mut first = None;
        for &https in schemes {
            let base = Url::of_host(https, &self.host);
            let mut outgoing = Outgoing::get(base.with_path("/v2/"));
            outgoing.insecure = self.insecure;
            // A plain server hangs up on TLS: that is an answer, and no reason for patience.
            let last = https == schemes[schemes.len() - 1];
            let sent = if last {
                self.transport.send(&mut outgoing)
            } else {
                self.transport.try_once(&mut outgoing)
            };
            match sent {
                // A plain server's answer to TLS, or the reverse.
                Ok(answer) if answer.status == 400 && !https && schemes.len() > 1 => {
                    first.get_or_insert(error_of(answer, false));
                }
                Ok(answer) if is_passing(answer.status) => return Err(error_of(answer, false)),
                Ok(answer) => {
                    return Ok(Site { base, insecure: self.insecure, challenges: challenges(&answer) });
                }
                Err(failure) => {
                    tracing::debug!(host = self.host, https, ?failure, "not reached");
                    let kind = failure.into_kind(&self.host);
                    // With http as the last resort, its failure is what the user must know.
                    first = Some(kind);
                }
            }
        }
        Err(first.unwrap_or_else(|| ErrorKind::Connect {
            host: self.host.clone(),
            reason: "no answer".to_owned(),
        }))
    }

    /// Sends `call` with the proof that it needs. Temporary failures are tried again, if the payload allows;
    /// refused tokens are renewed once.
    pub(super) fn send(&self, call: Call<'_>) -> Result<Reply, RegistryError> {
        let subject = call.subject;
        let fail = |kind| RegistryError::new(subject, kind);
        let mut site = self.site(subject)?;
        let url = match call.target {
            Target::Path(path) => site.base.with_path(&path),
            Target::Url(url) => url,
        };
        // An upload's URL may lead to another host, which has proofs of its own in the URL.
        let foreign = !url.same_origin(&site.base);
        let mut outgoing = Outgoing {
            method: call.method,
            url,
            headers: call.headers,
            authorization: None,
            insecure: self.insecure && !foreign,
            payload: call.payload,
        };
        let mut renewed = false;
        loop {
            let proof = if foreign {
                Proof { value: None, authenticated: false }
            } else {
                self.auth.proof(&self.transport, &site, call.repository, call.scopes).map_err(fail)?
            };
            outgoing.authorization = proof.value.clone();
            let answer = self.transport.send(&mut outgoing).map_err(|failure| {
                let host = outgoing.url.authority().to_owned();
                fail(failure.into_kind(&host))
            })?;
            let once = matches!(outgoing.payload, Payload::Stream(..));
            if answer.status == 401 && !renewed && !once && !foreign {
                renewed = true;
                let fresh = challenges(&answer);
                let basic_was_refused =
                    proof.value.is_some() && fresh.iter().all(|it| *it == Challenge::Basic);
                if !fresh.is_empty() && !basic_was_refused {
                    self.auth.drop_tokens();
                    site = self.update(&site, fresh);
                    continue;
                }
            }
            return Ok(Reply { answer, authenticated: proof.authenticated });
        }
    }

    fn update(&self, site: &Site, challenges: Vec<Challenge>) -> Arc<Site> {
        let site = Arc::new(Site { challenges, ..site.clone() });
        *self.site.lock().unwrap_or_else(PoisonError::into_inner) = Some(site.clone());
        site
    }
}
