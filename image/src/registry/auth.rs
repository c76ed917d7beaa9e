//! Proof of identity towards one registry: tokens per scope, or name and password.
//!
//! Source: distribution specification, "token authentication", and its OAuth2 form for refresh tokens.

pub(super) mod challenge;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::http::{HeaderValue, Method, header};

use self::challenge::Challenge;
use super::credentials::{CredentialStore, Credentials};
use super::error::ErrorKind;
use super::transport::{Outgoing, Payload, Transport};
use super::url::{Url, escape};

/// Answers of a token server are small.
const MAX_TOKEN_ANSWER: u64 = 1 << 20;
/// How long a token is good when the server does not say (token authentication, "expires_in").
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Tokens are renewed this long before their end, so that a request in flight does not outlive them.
const MARGIN: Duration = Duration::from_secs(10);

/// A registry's server as it was found.
#[derive(Debug, Clone)]
pub(super) struct Site {
    /// Scheme and host.
    pub(super) base: Url,
    /// Plain http and unproven certificates are accepted.
    pub(super) insecure: bool,
    /// What it answered to a request without credentials.
    pub(super) challenges: Vec<Challenge>,
}

/// What a request needs to be allowed to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    /// Read a repository.
    Pull(String),
    /// Read and write a repository.
    Push(String),
    /// List the repositories of the registry.
    Catalog,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pull(repository) => write!(f, "repository:{repository}:pull"),
            Self::Push(repository) => write!(f, "repository:{repository}:pull,push"),
            Self::Catalog => f.write_str("registry:catalog:*"),
        }
    }
}

/// Value of an `Authorization` header, and whether the user's credentials stand behind it.
#[derive(Clone)]
pub(super) struct Proof {
    pub(super) value: Option<String>,
    pub(super) authenticated: bool,
}

struct Token {
    proof: Proof,
    until: Instant,
}

/// Credentials and tokens of one registry.
pub(super) struct Auth {
    /// Name of the registry, for the look-up of credentials.
    registry: String,
    given: Option<Credentials>,
    store: CredentialStore,
    found: Mutex<HashMap<String, Option<Credentials>>>,
    /// Held while a token is fetched: several layers at once need one token, not several.
    tokens: Mutex<HashMap<String, Token>>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// A token that was got, and the refresh token that some servers add at login.
pub(super) struct Fetched {
    token: String,
    life: Duration,
    pub(super) refresh_token: Option<String>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<f64>,
    refresh_token: Option<String>,
}

impl Auth {
    pub(super) fn new(registry: &str, given: Option<Credentials>, store: CredentialStore) -> Self {
        Self {
            registry: registry.to_owned(),
            given,
            store,
            found: Mutex::default(),
            tokens: Mutex::default(),
        }
    }

    /// The proof for a request to `repository` that needs `scopes`, by the challenges of `site`: a token where that is possible.
    pub(super) fn proof(
        &self,
        transport: &Transport,
        site: &Site,
        repository: &str,
        scopes: &[Scope],
    ) -> Result<Proof, ErrorKind> {
        let nothing = Proof { value: None, authenticated: false };
        let challenges = &site.challenges;
        let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        match bearer.or(challenges.first()) {
            None => Ok(nothing),
            Some(Challenge::Basic) => Ok(match self.credentials(repository)? {
                Some(Credentials::Password { username, password }) => {
                    Proof { value: Some(basic(&username, &password)), authenticated: true }
                }
                _ => nothing,
            }),
            Some(Challenge::Bearer { realm, service, scope }) => {
                let mut wanted: Vec<String> = scopes.iter().map(Scope::to_string).collect();
                if wanted.is_empty() {
                    wanted.extend(scope.clone());
                }
                let key = format!("{realm} {} {}", service.as_deref().unwrap_or_default(), wanted.join(" "));
                let mut tokens = lock(&self.tokens);
                if let Some(token) = tokens.get(&key).filter(|token| token.until > Instant::now()) {
                    return Ok(token.proof.clone());
                }
                let credentials = self.credentials(repository)?;
                let fetched = fetch_token(
                    transport,
                    site,
                    realm,
                    service.as_deref(),
                    &wanted,
                    credentials.as_ref(),
                    false,
                )?;
                let value = Some(format!("Bearer {}", fetched.token));
                let proof = Proof { value, authenticated: credentials.is_some() };
                let until = Instant::now() + fetched.life.saturating_sub(MARGIN);
                tokens.insert(key, Token { proof: proof.clone(), until });
                Ok(proof)
            }
        }
    }

    /// Forgets the tokens: one of them was refused.
    pub(super) fn drop_tokens(&self) {
        lock(&self.tokens).clear();
    }

    fn credentials(&self, repository: &str) -> Result<Option<Credentials>, ErrorKind> {
        if self.given.is_some() {
            return Ok(self.given.clone());
        }
        let mut found = lock(&self.found);
        if let Some(known) = found.get(repository) {
            return Ok(known.clone());
        }
        let credentials = self.store.find(&self.registry, repository)?;
        found.insert(repository.to_owned(), credentials.clone());
        Ok(credentials)
    }
}

/// Value of the header for name and password.
pub(super) fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

/// Asks the token server at `realm`. With `offline` a refresh token is asked for as well, as at login.
pub(super) fn fetch_token(
    transport: &Transport,
    site: &Site,
    realm: &str,
    service: Option<&str>,
    scopes: &[String],
    credentials: Option<&Credentials>,
    offline: bool,
) -> Result<Fetched, ErrorKind> {
    let base = &site.base;
    let host = base.authority();
    let protocol = |host: &str, reason: String| ErrorKind::Protocol { host: host.to_owned(), reason };
    let url = base.resolve(realm).map_err(|reason| protocol(host, format!("token server: {reason}")))?;
    // Who can read the traffic to a token server without TLS would have the password.
    if base.is_https() && !url.is_https() {
        return Err(protocol(host, format!("it has its tokens given out without TLS, by {url}")));
    }
    let form;
    let mut outgoing = match credentials {
        Some(Credentials::IdentityToken(token)) => {
            let scope = scopes.join(" ");
            form = format!(
                "grant_type=refresh_token&client_id=layerfs&service={}&scope={}&refresh_token={}",
                escape(service.unwrap_or_default()),
                escape(&scope),
                escape(token)
            );
            let mut outgoing = Outgoing::get(url);
            outgoing.method = Method::POST;
            outgoing.headers.push((header::CONTENT_TYPE, "application/x-www-form-urlencoded".to_owned()));
            outgoing.payload = Payload::Secret(form.as_bytes());
            outgoing
        }
        other => {
            let mut url = url;
            if let Some(service) = service {
                url = url.with_query("service", service);
            }
            for scope in scopes.iter().flat_map(|scope| scope.split(' ')).filter(|scope| !scope.is_empty()) {
                url = url.with_query("scope", scope);
            }
            if offline {
                url = url.with_query("offline_token", "true").with_query("client_id", "layerfs");
            }
            let mut authorization = None;
            if let Some(Credentials::Password { username, password }) = other {
                url = url.with_query("account", username);
                authorization = Some(basic(username, password));
            }
            Outgoing { authorization, ..Outgoing::get(url) }
        }
    };
    // A private registry with a certificate of its own often gives out its tokens itself.
    outgoing.insecure = site.insecure && outgoing.url.authority() == host;
    let host = outgoing.url.authority().to_owned();
    let answer = transport.send(&mut outgoing).map_err(|failure| failure.into_kind(&host))?;
    let status = answer.status;
    let retry_after = answer.header("retry-after").and_then(super::retry::retry_after);
    let bytes = answer
        .bytes(MAX_TOKEN_ANSWER)
        .map_err(|error| ErrorKind::Connect { host: host.clone(), reason: error.to_string() })?
        .ok_or_else(|| protocol(&host, "its token is enormous".to_owned()))?;
    if status != 200 {
        let reason = super::answer::reason_of(&bytes);
        return Err(match status {
            // The user logs in to the registry, not to its token server.
            400 | 401 | 403 => ErrorKind::Denied {
                host: display_host(base.authority()),
                authenticated: credentials.is_some(),
                reason,
            },
            429 => ErrorKind::TooManyRequests { host, retry_after },
            _ => ErrorKind::Status { host, status, reason },
        });
    }
    let answer: TokenAnswer = serde_json::from_slice(&bytes)
        .map_err(|error| protocol(&host, format!("its token is malformed at column {}", error.column())))?;
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token).unwrap_or_default();
    if token.is_empty() || HeaderValue::from_str(&token).is_err() {
        return Err(protocol(&host, "it gave no usable token".to_owned()));
    }
    // Seconds from a server: anything may be in there.
    let life = answer.expires_in.filter(|seconds| (0.0..1e9).contains(seconds)).map(Duration::from_secs_f64);
    Ok(Fetched { token, life: life.unwrap_or(DEFAULT_LIFE), refresh_token: answer.refresh_token })
}

impl Fetched {
    /// Value of the header.
    pub(super) fn value(&self) -> String {
        format!("Bearer {}", self.token)
    }
}

/// The name under which users know a registry's host.
pub(super) fn display_host(host: &str) -> String {
    if host == super::service::DEFAULT_HOST {
        crate::reference::DEFAULT_REGISTRY.to_owned()
    } else {
        host.to_owned()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
