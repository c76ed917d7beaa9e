//! Files of the web, for builds: what `ADD URL` takes, and contexts. The same connections, certificates and proxies as
//! with registries; no credentials.

use std::fmt;
use std::io::Read;

use super::environment::Environment;
use super::retry::RetryPolicy;
use super::transport::{Outgoing, Timeouts, Transport};
use super::url::Url;

/// A file that is being downloaded.
pub struct WebFile {
    /// Its bytes.
    pub reader: Box<dyn Read>,
    /// When the server last changed it, in seconds since 1970, where it says so.
    pub last_modified: Option<i64>,
    /// Last name of the path that it came from.
    pub name: String,
}

impl fmt::Debug for WebFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebFile").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Begins to download `url`.
///
/// # Errors
/// In words: who could not be reached or trusted, or what was answered.
pub fn get_file(url: &str) -> Result<WebFile, String> {
    let parsed = Url::parse(url)?;
    let agent = format!("layerfs/{}", env!("CARGO_PKG_VERSION"));
    let transport =
        Transport::new(Environment::of_process(), agent, Timeouts::default(), RetryPolicy::default());
    let host = parsed.authority().to_owned();
    let answer =
        transport.send(&mut Outgoing::get(parsed)).map_err(|failure| failure.into_kind(&host).to_string())?;
    if answer.status != 200 {
        return Err(format!("{host} answered with status {}", answer.status));
    }
    let last_modified = answer.header("last-modified").and_then(|text| httpdate::parse_http_date(text).ok());
    let last_modified = last_modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    let name = path.split_once('/').and_then(|(_, path)| path.rsplit('/').next()).unwrap_or_default();
    Ok(WebFile {
        name: name.to_owned(),
        last_modified: last_modified.and_then(|since| i64::try_from(since.as_secs()).ok()),
        reader: Box::new(answer.body.into_reader()),
    })
}
