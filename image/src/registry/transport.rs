//! One HTTP exchange: connection, TLS, proxy, redirects, and retries of what may be sent twice. Knows nothing of
//! registries.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ureq::http::{HeaderMap, Method, Request, header};
use ureq::tls::TlsConfig;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{ConnectProxyConnector, Connector, TcpConnector};
use ureq::{Agent, Body, SendBody};

use super::config::ConfigError;
use super::environment::Environment;
use super::error::ErrorKind;
use super::proxy;
use super::retry::{self, RetryPolicy};
use super::tls::{self, Tls};
use super::url::Url;

/// More redirects than any registry needs.
const MAX_REDIRECTS: u32 = 10;

/// Time limits of a connection. No limit is set for a whole transfer: a slow line is no fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// For name resolution, connection and TLS together.
    pub connect: Duration,
    /// Longest silence within an exchange.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(30), idle: Duration::from_secs(120) }
    }
}

/// Makes exchanges; keeps connections for the next.
#[derive(Debug)]
pub(super) struct Transport {
    environment: Environment,
    user_agent: String,
    timeouts: Timeouts,
    retry: RetryPolicy,
    agents: Mutex<HashMap<(bool, String, bool), Agent>>,
}

/// What is sent after the headers.
pub(super) enum Payload<'a> {
    /// Nothing.
    None,
    /// These bytes; may be sent again.
    Bytes(&'a [u8]),
    /// These bytes, for the origin of the URL alone; may be sent again there.
    Secret(&'a [u8]),
    /// So many bytes from a reader; not twice.
    Stream(&'a mut dyn Read, u64),
}

/// A request as it goes out.
pub(super) struct Outgoing<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: Vec<(header::HeaderName, String)>,
    /// For the origin of `url` alone.
    pub(super) authorization: Option<String>,
    /// Plain http and unproven certificates are accepted from this host.
    pub(super) insecure: bool,
    pub(super) payload: Payload<'a>,
}

impl<'a> Outgoing<'a> {
    pub(super) fn get(url: Url) -> Self {
        let payload = Payload::None;
        Self { method: Method::GET, url, headers: Vec::new(), authorization: None, insecure: false, payload }
    }
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    /// Who answered, after redirects.
    pub(super) url: Url,
}

impl Answer {
    /// A header that is text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The announced length of the body.
    pub(super) fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.trim().parse().ok()
    }

    /// The body, if it has no more than `limit` bytes; `Ok(None)` if it has more.
    pub(super) fn bytes(self, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        self.body.into_reader().take(limit + 1).read_to_end(&mut bytes)?;
        Ok((bytes.len() as u64 <= limit).then_some(bytes))
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody is there.
    Unreachable(String),
    /// Somebody is there, and not the right one.
    Untrusted(String),
    /// Somebody is there who does not speak TLS.
    NoTls,
    /// The exchange broke off; trying again may help.
    Interrupted(String),
    /// No HTTP, or an impossible redirect.
    Nonsense(String),
    /// Own configuration.
    Config(ConfigError),
}

impl Failure {
    /// As an error about `host`.
    pub(super) fn into_kind(self, host: &str) -> ErrorKind {
        let host = host.to_owned();
        match self {
            Self::Unreachable(reason) | Self::Interrupted(reason) => ErrorKind::Connect { host, reason },
            Self::Untrusted(reason) => ErrorKind::Tls { host, reason },
            Self::NoTls => ErrorKind::NoTls { host },
            Self::Nonsense(reason) => ErrorKind::Protocol { host, reason },
            Self::Config(error) => ErrorKind::Config(error),
        }
    }

    pub(super) fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted(_))
    }
}

impl Transport {
    pub(super) fn new(
        environment: Environment,
        user_agent: String,
        timeouts: Timeouts,
        retry: RetryPolicy,
    ) -> Self {
        Self { environment, user_agent, timeouts, retry, agents: Mutex::default() }
    }

    pub(super) fn retry(&self) -> &RetryPolicy {
        &self.retry
    }

    /// Sends, and sends again while the server is only out of order for the moment. A stream is sent once.
    pub(super) fn send(&self, outgoing: &mut Outgoing<'_>) -> Result<Answer, Failure> {
        let once = matches!(outgoing.payload, Payload::Stream(..));
        let mut failures = 0;
        loop {
            let result = self.send_once(outgoing);
            let asked = match &result {
                Ok(answer) if is_passing(answer.status) => {
                    answer.header("retry-after").and_then(retry::retry_after)
                }
                Err(failure) if failure.is_interrupted() => None,
                _ => return result,
            };
            failures += 1;
            let Some(wait) = self.retry.wait(failures, asked).filter(|_| !once) else { return result };
            let reason = match &result {
                Ok(answer) => format!("status {}", answer.status),
                Err(failure) => format!("{failure:?}"),
            };
            tracing::debug!(url = %outgoing.url, reason, ?wait, "try again");
            std::thread::sleep(wait);
        }
    }

    /// Sends once, for a question that has another way to be asked.
    pub(super) fn try_once(&self, outgoing: &mut Outgoing<'_>) -> Result<Answer, Failure> {
        self.send_once(outgoing)
    }

    /// Sends, and follows redirects. Credentials go to the origin they are meant for and nowhere else.
    fn send_once(&self, outgoing: &mut Outgoing<'_>) -> Result<Answer, Failure> {
        let mut url = outgoing.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let home = url.same_origin(&outgoing.url);
            let authorization = outgoing.authorization.clone().filter(|_| home);
            let insecure = outgoing.insecure && url.authority() == outgoing.url.authority();
            let answer = self.exchange(outgoing, &url, authorization.as_deref(), insecure)?;
            let again = match answer.status {
                301..=303 => matches!(outgoing.method, Method::GET | Method::HEAD),
                307 | 308 => !matches!(outgoing.payload, Payload::Stream(..)),
                _ => return Ok(answer),
            };
            let Some(location) = answer.header("location") else { return Ok(answer) };
            if !again {
                return Err(Failure::Nonsense(format!("it redirects an upload to {location:?}")));
            }
            let next =
                url.resolve(location).map_err(|reason| Failure::Nonsense(format!("redirect: {reason}")))?;
            if url.is_https() && !next.is_https() && !insecure {
                return Err(Failure::Nonsense(format!("it redirects from https to {next}")));
            }
            if matches!(outgoing.payload, Payload::Secret(..))
                && matches!(answer.status, 307 | 308)
                && !next.same_origin(&outgoing.url)
            {
                let reason = format!("it redirects a request that has a secret to another server, {next}");
                return Err(Failure::Nonsense(reason));
            }
            url = next;
        }
        Err(Failure::Nonsense(format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn exchange(
        &self,
        outgoing: &mut Outgoing<'_>,
        url: &Url,
        authorization: Option<&str>,
        insecure: bool,
    ) -> Result<Answer, Failure> {
        let agent = self.agent(url, insecure)?;
        let mut request = Request::builder().method(outgoing.method.clone()).uri(url.to_string());
        for (name, value) in &outgoing.headers {
            request = request.header(name, value);
        }
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        let has_body = !matches!(outgoing.method, Method::GET | Method::HEAD | Method::DELETE);
        let bad =
            |error: ureq::http::Error| Failure::Nonsense(format!("no request can be made of it: {error}"));
        let result = match &mut outgoing.payload {
            Payload::None if has_body => agent.run(request.body(&[][..]).map_err(bad)?),
            Payload::None => agent.run(request.body(()).map_err(bad)?),
            Payload::Bytes(bytes) | Payload::Secret(bytes) => agent.run(request.body(*bytes).map_err(bad)?),
            Payload::Stream(reader, len) => {
                let request = request.header(header::CONTENT_LENGTH, *len);
                agent.run(request.body(SendBody::from_reader(reader)).map_err(bad)?)
            }
        };
        let response = result.map_err(failure)?;
        let (parts, body) = response.into_parts();
        tracing::trace!(method = %outgoing.method, %url, status = parts.status.as_u16(), "exchange");
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body, url: url.clone() })
    }

    fn agent(&self, url: &Url, insecure: bool) -> Result<Agent, Failure> {
        let key = (url.is_https(), url.authority().to_owned(), insecure);
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(&key) {
            return Ok(agent.clone());
        }
        let (tls, connector) = if url.is_https() {
            let tls = tls::config(&self.environment.certificate_dirs, url.authority(), insecure);
            match tls.map_err(Failure::Config)? {
                Tls::Plain(config) => (*config, None),
                Tls::Own(connector) => (TlsConfig::default(), Some(connector)),
            }
        } else {
            (TlsConfig::default(), None)
        };
        let proxy = match proxy::for_host(&self.environment, url.is_https(), url.authority()) {
            Some(text) => Some(ureq::Proxy::new(text).map_err(|error| {
                Failure::Config(ConfigError::Proxy { url: without_secrets(text), reason: error.to_string() })
            })?),
            None => None,
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(&self.user_agent)
            .accept_encoding("identity")
            .timeout_connect(Some(self.timeouts.connect))
            .timeout_resolve(Some(self.timeouts.connect))
            .timeout_per_read(Some(self.timeouts.idle))
            .timeout_per_write(Some(self.timeouts.idle))
            .max_idle_connections_per_host(8)
            .tls_config(tls)
            .proxy(proxy)
            .build();
        let agent = match connector {
            None => Agent::new_with_config(config),
            Some(connector) => {
                let chain = ().chain(ConnectProxyConnector::default()).chain(TcpConnector::default());
                Agent::with_parts(config, chain.chain(connector), DefaultResolver::default())
            }
        };
        agents.insert(key, agent.clone());
        Ok(agent)
    }
}

/// Statuses that may be others at the next attempt.
pub(super) fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

fn failure(error: ureq::Error) -> Failure {
    let words = error.to_string();
    match error {
        ureq::Error::Io(error) => {
            if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                if is_no_tls(tls) {
                    return Failure::NoTls;
                }
                return Failure::Untrusted(words.trim_start_matches("io: ").to_owned());
            }
            let words = words.trim_start_matches("io: ").to_owned();
            match error.kind() {
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::AddrNotAvailable => Failure::Unreachable(words),
                _ => Failure::Interrupted(words),
            }
        }
        ureq::Error::Timeout(_) => Failure::Interrupted(words),
        ureq::Error::HostNotFound => Failure::Unreachable("there is no host of this name".to_owned()),
        ureq::Error::ConnectionFailed | ureq::Error::ConnectProxyFailed(_) => Failure::Unreachable(words),
        ureq::Error::Rustls(error) if is_no_tls(&error) => Failure::NoTls,
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::TlsRequired => Failure::Untrusted(words),
        _ => Failure::Nonsense(words),
    }
}

/// A server of plain http answers the beginning of TLS with a status line.
fn is_no_tls(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType))
}

/// A proxy's URL for an error message.
fn without_secrets(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((before, host)) => {
            let scheme = before.split_once("://").map_or("", |(scheme, _)| scheme);
            format!("{scheme}://...@{host}")
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxys_password_is_not_shown() {
        assert_eq!(without_secrets("http://u:p@host:1"), "http://...@host:1");
        assert_eq!(without_secrets("http://host:1"), "http://host:1");
    }
}
