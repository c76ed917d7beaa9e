//! Files at a URL, for `import`: through the same proxies, certificates and redirects as registries, without credentials.

use std::io::{self, Read};

use ureq::BodyReader;

use super::answer::error_of;
use super::client::Client;
use super::error::{ErrorKind, RegistryError};
use super::proxy::is_loopback;
use super::transport::Outgoing;
use super::url::Url;

/// A file on its way. The read that would say "end" is an error when bytes are missing.
pub struct Download {
    body: BodyReader<'static>,
    host: String,
    subject: String,
    expected: Option<u64>,
    count: u64,
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Download")
            .field("subject", &self.subject)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Opens the file at `url`, which is http or https.
    ///
    /// # Errors
    /// No such URL, not reached, an answer that is not the file.
    pub fn download(&self, url: &str) -> Result<Download, RegistryError> {
        let fail = |kind| RegistryError::new(format!("download of {url}"), kind);
        let parsed = Url::parse(url)
            .map_err(|reason| fail(ErrorKind::Protocol { host: "the command line".into(), reason }))?;
        let host = parsed.authority().to_owned();
        // Who may speak plain http as a registry may also have a certificate that nothing proves.
        let insecure = is_loopback(&host) || self.is_insecure(&host);
        let mut outgoing = Outgoing { insecure, ..Outgoing::get(parsed) };
        let answer =
            self.transport().send(&mut outgoing).map_err(|failure| fail(failure.into_kind(&host)))?;
        if answer.status != 200 {
            return Err(fail(error_of(answer, false)));
        }
        let expected = answer.content_length();
        let host = answer.url.authority().to_owned();
        let subject = format!("download of {url}");
        Ok(Download { body: answer.body.into_reader(), host, subject, expected, count: 0 })
    }
}

impl Download {
    /// Bytes that the server announced.
    pub fn size(&self) -> Option<u64> {
        self.expected
    }

    fn cut(&self, reason: String) -> io::Error {
        RegistryError::new(&self.subject, ErrorKind::Connect { host: self.host.clone(), reason }).into()
    }
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.body.read(buffer) {
            Ok(0) if !buffer.is_empty() && self.expected.is_some_and(|expected| self.count < expected) => {
                let expected = self.expected.unwrap_or_default();
                Err(self.cut(format!("the connection was cut after {} of {expected} bytes", self.count)))
            }
            Ok(len) => {
                self.count += len as u64;
                Ok(len)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => Err(self.cut(format!("after {} bytes: {error}", self.count))),
        }
    }
}
