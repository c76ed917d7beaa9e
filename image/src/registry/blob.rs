//! Blobs as streams that outlive their connections.

use std::fmt;
use std::io::{self, Read};

use ureq::BodyReader;
use ureq::http::{Method, header};

use super::auth::Scope;
use super::client::{Repository, Spot};
use super::error::{ErrorKind, RegistryError};
use super::service::Call;
use super::transport::Answer;
use crate::digest::{Digest, Hasher};

/// A blob on its way from a registry.
///
/// A cut connection is opened again at the byte where it was cut; what a server sends twice is skipped. The read that
/// would say "end" is an error if length or digest is not what it should be: before it, nothing is to be believed.
/// Errors are [`io::Error`]s with a [`RegistryError`] inside.
pub struct BlobReader {
    repository: Repository,
    spot: Spot,
    subject: String,
    digest: Digest,
    size: Option<u64>,
    /// None where the caller hashes what it gets.
    hasher: Option<Hasher>,
    /// The end was reached, and all was right.
    ended: bool,
    position: u64,
    body: Option<BodyReader<'static>>,
    /// Failures in a row without a byte between them.
    failures: u32,
    reason: String,
}

impl fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobReader")
            .field("subject", &self.subject)
            .field("position", &self.position)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl Repository {
    /// Opens a blob. `size` is that of its descriptor, where there is one.
    ///
    /// # Errors
    /// When no place has it, or one has it with another size.
    pub fn blob(&self, digest: &Digest, size: Option<u64>) -> Result<BlobReader, RegistryError> {
        self.open_blob(digest, size, 0, Some(Hasher::new(digest.algorithm())))
    }

    /// As [`blob`](Self::blob), for a caller that hashes what it reads itself: length and place of the bytes are
    /// checked, the digest is not.
    pub(crate) fn blob_to_be_verified(
        &self,
        digest: &Digest,
        size: Option<u64>,
    ) -> Result<BlobReader, RegistryError> {
        self.open_blob(digest, size, 0, None)
    }

    /// As [`blob`](Self::blob), from byte `offset` on, where the bytes before are here already: `hasher` has had them.
    ///
    /// # Errors
    /// As [`blob`](Self::blob).
    pub fn blob_from(
        &self,
        digest: &Digest,
        size: Option<u64>,
        offset: u64,
        hasher: Hasher,
    ) -> Result<BlobReader, RegistryError> {
        self.open_blob(digest, size, offset, Some(hasher))
    }

    fn open_blob(
        &self,
        digest: &Digest,
        size: Option<u64>,
        offset: u64,
        hasher: Option<Hasher>,
    ) -> Result<BlobReader, RegistryError> {
        let subject = format!("blob {digest} of {}", self.name());
        let (spot, body, size) = self.ask(true, |spot| {
            if size.is_some_and(|size| size == offset && offset > 0) {
                return Ok((spot.clone(), None, size));
            }
            let (body, size) = open(spot, digest, size, offset, &subject)?;
            Ok((spot.clone(), Some(body), size))
        })?;
        Ok(BlobReader {
            repository: self.clone(),
            spot,
            subject,
            digest: *digest,
            size,
            hasher,
            ended: false,
            position: offset,
            body,
            failures: 0,
            reason: String::new(),
        })
    }

    /// Size of a blob at the registry itself; `None` when it is not there, 0 when the registry does not say.
    ///
    /// # Errors
    /// Denied, not reached.
    pub fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, RegistryError> {
        let subject = format!("blob {digest} of {}", self.name());
        let spot = self.home();
        let scopes = [Scope::Pull(spot.repository.clone())];
        let path = format!("/v2/{}/blobs/{digest}", spot.repository);
        let call = Call { method: Method::HEAD, ..Call::get(path, &spot.repository, &scopes, &subject) };
        let reply = spot.service.send(call)?;
        if reply.answer.status == 404 {
            return Ok(None);
        }
        let answer = reply.expect(&subject, &[200])?;
        Ok(Some(answer.content_length().unwrap_or(0)))
    }
}

/// The rest of a blob from `offset` on, and the size of the whole as far as known.
fn open(
    spot: &Spot,
    digest: &Digest,
    size: Option<u64>,
    offset: u64,
    subject: &str,
) -> Result<(BodyReader<'static>, Option<u64>), RegistryError> {
    let scopes = [Scope::Pull(spot.repository.clone())];
    let path = format!("/v2/{}/blobs/{digest}", spot.repository);
    let mut call = Call::get(path, &spot.repository, &scopes, subject);
    if offset > 0 {
        call.headers.push((header::RANGE, format!("bytes={offset}-")));
    }
    let reply = spot.service.send(call)?;
    if offset > 0 && reply.answer.status == 416 {
        // It has fewer bytes than were here already.
        let host = reply.answer.url.authority().to_owned();
        let kind = match size {
            Some(expected) => ErrorKind::WrongLength { host, expected, found: offset },
            None => ErrorKind::Protocol { host, reason: format!("it has no byte {offset}") },
        };
        return Err(RegistryError::new(subject, kind));
    }
    let answer = reply.expect(subject, &[200, 206])?;
    let host = answer.url.authority().to_owned();
    let fail = |kind| RegistryError::new(subject, kind);
    let (start, whole) =
        extent(&answer).map_err(|reason| fail(ErrorKind::Protocol { host: host.clone(), reason }))?;
    if start > offset {
        let reason = format!("it was asked for byte {offset} and sends from byte {start}");
        return Err(fail(ErrorKind::Protocol { host, reason }));
    }
    if let (Some(expected), Some(found)) = (size, whole)
        && expected != found
    {
        return Err(fail(ErrorKind::WrongLength { host, expected, found }));
    }
    let mut body = answer.body.into_reader();
    // A server that knows no ranges begins anew. The digest will show whether it is the same content.
    let skipped = io::copy(&mut (&mut body).take(offset - start), &mut io::sink());
    match skipped {
        Ok(count) if count == offset - start => Ok((body, size.or(whole))),
        Ok(_) => Err(fail(ErrorKind::Connect { host, reason: "the connection was cut".to_owned() })),
        Err(error) => Err(fail(ErrorKind::Connect { host, reason: error.to_string() })),
    }
}

/// First byte of an answer, and the length of the whole where that is known.
fn extent(answer: &Answer) -> Result<(u64, Option<u64>), String> {
    if answer.status == 200 {
        return Ok((0, answer.content_length()));
    }
    let range = answer.header("content-range").unwrap_or_default();
    let parsed = range.strip_prefix("bytes ").and_then(|rest| {
        let (bytes, whole) = rest.split_once('/')?;
        let start = bytes.split_once('-')?.0.trim().parse().ok()?;
        Some((start, whole.trim().parse().ok()))
    });
    parsed.ok_or_else(|| format!("a part without a usable Content-Range: {range:?}"))
}

impl BlobReader {
    /// Digest of the blob.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Bytes given out so far, those before the start included.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Size of the whole blob, once it is known.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    fn fail(&self, kind: ErrorKind) -> io::Error {
        RegistryError::new(&self.subject, kind).into()
    }

    /// The error of content that has the digest `found`.
    pub(crate) fn wrong_digest(&self, found: Digest) -> RegistryError {
        let (host, expected) = (self.host(), Box::new(self.digest));
        RegistryError::new(&self.subject, ErrorKind::WrongDigest { host, expected, found: Box::new(found) })
    }

    fn host(&self) -> String {
        self.spot.service.host().to_owned()
    }

    /// All bytes are there: are they the right ones?
    fn finish(&mut self) -> io::Result<usize> {
        if let Some(hasher) = &self.hasher {
            let found = hasher.clone().finish();
            if found != self.digest {
                return Err(self.wrong_digest(found).into());
            }
        }
        self.ended = true;
        self.body = None;
        Ok(0)
    }

    /// Opens the rest of the blob again, after a wait.
    fn reopen(&mut self) -> io::Result<()> {
        let policy = self.spot.service.transport().retry().clone();
        loop {
            self.failures += 1;
            let Some(wait) = policy.wait(self.failures, None) else {
                let reason = format!(
                    "the connection was cut {} times in a row at byte {}: {}",
                    self.failures, self.position, self.reason
                );
                return Err(self.fail(ErrorKind::Connect { host: self.host(), reason }));
            };
            tracing::debug!(
                subject = self.subject,
                at = self.position,
                reason = self.reason,
                ?wait,
                "resume"
            );
            std::thread::sleep(wait);
            match open(&self.spot, &self.digest, self.size, self.position, &self.subject) {
                Ok((body, size)) => {
                    self.body = Some(body);
                    self.size = size;
                    return Ok(());
                }
                // Exhausted patience of the request, or a server that went away for a moment.
                Err(error) if matches!(*error.kind, ErrorKind::Connect { .. }) => {
                    self.reason = error.kind.to_string();
                }
                Err(error) => return self.elsewhere(error),
            }
        }
    }

    /// Goes on at another place; `error` is why this one cannot.
    fn elsewhere(&mut self, error: RegistryError) -> io::Result<()> {
        let (digest, size, position, subject) = (self.digest, self.size, self.position, self.subject.clone());
        let failed = self.spot.repository.clone() + self.spot.service.host();
        let found = self.repository.clone().ask(true, |spot| {
            if spot.repository.clone() + spot.service.host() == failed {
                // Asked just now.
                return Err(RegistryError::new(&subject, ErrorKind::NotFound(String::new())));
            }
            let (body, size) = open(spot, &digest, size, position, &subject)?;
            Ok((spot.clone(), body, size))
        });
        match found {
            Ok((spot, body, size)) => {
                self.spot = spot;
                self.body = Some(body);
                self.size = size;
                Ok(())
            }
            Err(_) => Err(error.into()),
        }
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.ended {
            return Ok(0);
        }
        loop {
            // One byte beyond the end is asked for, to see whether there is one.
            let room = self.size.map_or(u64::MAX, |size| (size - self.position.min(size)).saturating_add(1));
            let room = usize::try_from(room).unwrap_or(usize::MAX).min(buffer.len());
            let result = match &mut self.body {
                Some(body) => body.read(&mut buffer[..room]),
                None if self.size == Some(self.position) => return self.finish(),
                None => {
                    self.reopen()?;
                    continue;
                }
            };
            match result {
                Ok(0) if self.size.is_none_or(|size| size == self.position) => return self.finish(),
                Ok(0) => "the connection was closed early".clone_into(&mut self.reason),
                Ok(count) => {
                    let read = &buffer[..count];
                    self.position += count as u64;
                    self.failures = 0;
                    if let Some(expected) = self.size.filter(|&size| self.position > size) {
                        let (host, found) = (self.host(), self.position);
                        return Err(self.fail(ErrorKind::WrongLength { host, expected, found }));
                    }
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update(read);
                    }
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The end was reached: how the connection went down afterwards does not matter.
                Err(_) if self.size == Some(self.position) => return self.finish(),
                Err(error) => self.reason = error.to_string(),
            }
            self.body = None;
        }
    }
}
