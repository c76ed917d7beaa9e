//! Uploads of blobs: in one piece where that works, in pieces from where the registry is after a failure.
//!
//! Source: distribution specification, "Pushing blobs".

use std::io::{self, Read};

use ureq::http::{Method, header};

use super::auth::Scope;
use super::client::{Repository, Spot};
use super::error::{ErrorKind, RegistryError};
use super::service::{Call, Reply, Target};
use super::transport::{Answer, Payload, is_passing};
use super::url::{Url, escape};
use crate::digest::Digest;

/// Size of the pieces that follow a failure, if nothing else was asked for.
const RESUMED_CHUNK: u64 = 32 << 20;
/// So many repositories are tried as the source of a mount.
const MAX_MOUNTS: usize = 4;
const OCTETS: &str = "application/octet-stream";

/// Content to be uploaded. It may be opened several times, from any byte on.
pub trait BlobSource {
    /// The bytes from `offset` to the end.
    ///
    /// # Errors
    /// When they cannot be read.
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>>;
}

impl<F: Fn(u64) -> io::Result<Box<dyn Read>>> BlobSource for F {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>> {
        self(offset)
    }
}

impl BlobSource for [u8] {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        Ok(Box::new(&self[start..]))
    }
}

impl BlobSource for std::path::Path {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>> {
        let mut file = std::fs::File::open(self)?;
        io::Seek::seek(&mut file, io::SeekFrom::Start(offset))?;
        Ok(Box::new(file))
    }
}

/// How a blob came to be at the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uploaded {
    /// It was there.
    Existed,
    /// Taken over from another repository of the registry, without transfer.
    Mounted,
    /// Sent.
    Sent,
}

/// What is being uploaded, and how far that is.
struct Upload<'a> {
    spot: Spot,
    scopes: Vec<Scope>,
    subject: &'a str,
    digest: &'a Digest,
    size: u64,
    source: &'a dyn SourceRef,
    progress: &'a mut dyn FnMut(u64),
    chunk: Option<u64>,
}

/// A source behind a reference, whatever its size is known to be.
trait SourceRef {
    fn open_at(&self, offset: u64) -> io::Result<Box<dyn Read + '_>>;
}

impl<S: BlobSource + ?Sized> SourceRef for &S {
    fn open_at(&self, offset: u64) -> io::Result<Box<dyn Read + '_>> {
        self.open(offset)
    }
}

/// An upload that the registry has begun.
struct Session {
    url: Url,
    /// Bytes that it has.
    offset: u64,
    /// Smallest piece that it takes.
    min_chunk: u64,
}

/// How a piece went.
enum Step {
    /// The registry has the whole blob.
    Done(Answer),
    /// It has a piece more.
    More,
    /// It did not come through; the words say why.
    Lost(RegistryError),
}

impl Repository {
    /// Sees to it that the registry has a blob: looks whether it has, takes it over from one of `mount_from`
    /// (other repositories of the same registry), sends it. `progress` hears how many bytes the registry has.
    ///
    /// # Errors
    /// Denied, refused, or failed more often than patience allows.
    pub fn push_blob<S: BlobSource + ?Sized>(
        &self,
        digest: &Digest,
        size: u64,
        source: &S,
        mount_from: &[String],
        progress: &mut dyn FnMut(u64),
    ) -> Result<Uploaded, RegistryError> {
        let spot = self.home();
        let subject = format!("push of blob {digest} to {}", self.name());
        let scopes = vec![Scope::Push(spot.repository.clone())];
        if self.exists(&spot, digest, &scopes, &subject)? {
            progress(size);
            return Ok(Uploaded::Existed);
        }
        let mut session: Option<Session> = None;
        let others = mount_from.iter().filter(|from| **from != spot.repository);
        for from in others.take(MAX_MOUNTS) {
            let scopes = [Scope::Push(spot.repository.clone()), Scope::Pull(from.clone())];
            let query = format!("?mount={}&from={}", escape(&digest.to_string()), escape(from));
            let reply = match self.begin(&spot, &query, &scopes, &subject) {
                Ok(reply) => reply,
                // Where the other repository may not be read, the blob can still be sent.
                Err(error) if error.is_denied() => continue,
                Err(error) => return Err(error),
            };
            match reply.answer.status {
                201 => {
                    if let Some(begun) = session {
                        self.cancel(&spot, begun, &scopes, &subject);
                    }
                    progress(size);
                    return Ok(Uploaded::Mounted);
                }
                // Not mounted; the registry has begun an upload instead. One is enough.
                202 => {
                    let begun = started(reply.answer, &subject)?;
                    if let Some(before) = session.replace(begun) {
                        self.cancel(&spot, before, &scopes, &subject);
                    }
                }
                _ => {}
            }
        }
        let chunk = self.client().options().chunk_size;
        let mut upload =
            Upload { spot, scopes, subject: &subject, digest, size, source: &source, progress, chunk };
        upload.run(self, session)?;
        Ok(Uploaded::Sent)
    }

    fn exists(
        &self,
        spot: &Spot,
        digest: &Digest,
        scopes: &[Scope],
        subject: &str,
    ) -> Result<bool, RegistryError> {
        let path = format!("/v2/{}/blobs/{digest}", spot.repository);
        let call = Call { method: Method::HEAD, ..Call::get(path, &spot.repository, scopes, subject) };
        let reply = spot.service.send(call)?;
        match reply.answer.status {
            200 => Ok(true),
            404 => Ok(false),
            _ => Err(reply.into_error(subject)),
        }
    }

    /// Tells the registry that an upload will not go on. It forgets those that it is not told of, too, but later.
    fn cancel(&self, spot: &Spot, session: Session, scopes: &[Scope], subject: &str) {
        let call = Call {
            method: Method::DELETE,
            target: Target::Url(session.url),
            ..Call::get(String::new(), &spot.repository, scopes, subject)
        };
        if let Err(error) = spot.service.send(call) {
            tracing::debug!(%error, "an upload that is not needed stays behind");
        }
    }

    fn begin(
        &self,
        spot: &Spot,
        query: &str,
        scopes: &[Scope],
        subject: &str,
    ) -> Result<Reply, RegistryError> {
        let path = format!("/v2/{}/blobs/uploads/{query}", spot.repository);
        spot.service.send(Call { method: Method::POST, ..Call::get(path, &spot.repository, scopes, subject) })
    }
}

impl Upload<'_> {
    /// Until the registry has it. A failure without progress costs one attempt; with progress the count begins anew.
    fn run(&mut self, repository: &Repository, begun: Option<Session>) -> Result<(), RegistryError> {
        let policy = self.spot.service.transport().retry().clone();
        let mut failures = 0;
        let mut best = 0;
        let mut session = begun;
        loop {
            let current = match &mut session {
                Some(session) => session,
                None => {
                    let reply = repository.begin(&self.spot, "", &self.scopes, self.subject)?;
                    session.insert(started(reply.expect(self.subject, &[202])?, self.subject)?)
                }
            };
            match self.step(current)? {
                Step::Done(answer) => return self.check(&answer),
                Step::More => {
                    if current.offset > best {
                        best = current.offset;
                        failures = 0;
                    }
                }
                Step::Lost(error) => {
                    failures += 1;
                    let Some(wait) = policy.wait(failures, None) else { return Err(error) };
                    tracing::debug!(subject = self.subject, %error, ?wait, "upload interrupted");
                    std::thread::sleep(wait);
                    // From now on in pieces, from where the registry is; from the start if it has forgotten.
                    self.chunk.get_or_insert(RESUMED_CHUNK);
                    if !self.locate(current) {
                        session = None;
                    }
                }
            }
        }
    }

    /// Sends the next piece, or the whole.
    fn step(&mut self, session: &mut Session) -> Result<Step, RegistryError> {
        let left = self.size - session.offset;
        let chunk = self.chunk.map_or(left, |chunk| chunk.max(session.min_chunk).max(1)).min(left);
        if chunk == left && (session.offset == 0 || left == 0) {
            // All of it with the closing request.
            let url = session.url.with_query("digest", &self.digest.to_string());
            return self.send(Method::PUT, url, session.offset, left, session);
        }
        self.send(Method::PATCH, session.url.clone(), session.offset, chunk, session)
    }

    fn send(
        &mut self,
        method: Method,
        url: Url,
        offset: u64,
        len: u64,
        session: &mut Session,
    ) -> Result<Step, RegistryError> {
        let fail = |kind| RegistryError::new(self.subject, kind);
        let opened = self.source.open_at(offset).map_err(|error| fail(ErrorKind::Source(error)))?;
        let mut reader =
            Piece { inner: opened, left: len, sent: offset, error: None, progress: self.progress };
        let mut headers = vec![(header::CONTENT_TYPE, OCTETS.to_owned())];
        if method == Method::PATCH {
            headers.push((header::CONTENT_RANGE, format!("{offset}-{}", offset + len - 1)));
        }
        let payload = if len == 0 { Payload::None } else { Payload::Stream(&mut reader, len) };
        let closing = method == Method::PUT;
        let result = self.spot.service.send(Call {
            method,
            target: Target::Url(url),
            headers,
            payload,
            repository: &self.spot.repository,
            scopes: &self.scopes,
            subject: self.subject,
        });
        if let Some(error) = reader.error {
            return Err(fail(ErrorKind::Source(error)));
        }
        let reply = match result {
            Ok(reply) => reply,
            Err(error) if matches!(*error.kind, ErrorKind::Connect { .. }) => return Ok(Step::Lost(error)),
            Err(error) => return Err(error),
        };
        match reply.answer.status {
            201 | 204 if closing => Ok(Step::Done(reply.answer)),
            202 | 204 if !closing => {
                let end = range_end(&reply.answer).unwrap_or(offset + len);
                follow(&reply.answer, session, self.subject)?;
                if end <= offset || end > self.size {
                    let host = reply.answer.url.authority().to_owned();
                    let reason = format!("it was sent bytes {offset} to {} and has {end}", offset + len);
                    return Ok(Step::Lost(fail(ErrorKind::Protocol { host, reason })));
                }
                session.offset = end;
                Ok(Step::More)
            }
            // The token ended on the way, the piece is not where the registry is, or it is too large for a proxy.
            401 | 416 | 413 | 404 | 400 => Ok(Step::Lost(reply.into_error(self.subject))),
            status if is_passing(status) => Ok(Step::Lost(reply.into_error(self.subject))),
            _ => Err(reply.into_error(self.subject)),
        }
    }

    /// Asks the registry how much it has. False when the upload is to begin anew.
    fn locate(&mut self, session: &mut Session) -> bool {
        let reply = self.spot.service.send(Call {
            method: Method::GET,
            target: Target::Url(session.url.clone()),
            headers: Vec::new(),
            payload: Payload::None,
            repository: &self.spot.repository,
            scopes: &self.scopes,
            subject: self.subject,
        });
        // Whatever is wrong with it, a new upload will show.
        let Ok(Reply { answer, .. }) = reply else { return false };
        if answer.status != 204 || follow(&answer, session, self.subject).is_err() {
            return false;
        }
        match range_end(&answer) {
            Some(end) if end <= self.size => {
                session.offset = end;
                true
            }
            _ => false,
        }
    }

    fn check(&self, answer: &Answer) -> Result<(), RegistryError> {
        let said = answer.header("docker-content-digest").and_then(|text| Digest::parse(text.trim()).ok());
        match said {
            Some(found) if found != *self.digest && found.algorithm() == self.digest.algorithm() => {
                let (host, expected) = (answer.url.authority().to_owned(), *self.digest);
                Err(RegistryError::new(
                    self.subject,
                    ErrorKind::WrongDigest { host, expected: Box::new(expected), found: Box::new(found) },
                ))
            }
            _ => Ok(()),
        }
    }
}

fn started(answer: Answer, subject: &str) -> Result<Session, RegistryError> {
    let min_chunk =
        answer.header("oci-chunk-min-length").and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let mut session = Session { url: answer.url.clone(), offset: 0, min_chunk };
    if answer.header("location").is_none() {
        let host = answer.url.authority().to_owned();
        let reason = "it began an upload and does not say where".to_owned();
        return Err(RegistryError::new(subject, ErrorKind::Protocol { host, reason }));
    }
    follow(&answer, &mut session, subject)?;
    Ok(session)
}

/// Each answer says where the next piece goes.
fn follow(answer: &Answer, session: &mut Session, subject: &str) -> Result<(), RegistryError> {
    let Some(location) = answer.header("location") else { return Ok(()) };
    let protocol = |reason| {
        let host = answer.url.authority().to_owned();
        RegistryError::new(subject, ErrorKind::Protocol { host, reason })
    };
    let url = answer.url.resolve(location).map_err(protocol)?;
    if answer.url.is_https() && !url.is_https() {
        return Err(protocol(format!("it wants the upload without TLS, at {url}")));
    }
    session.url = url;
    Ok(())
}

/// From `Range: 0-N`: how many bytes the registry has. Registries write `0-0` or `0--1` for none.
fn range_end(answer: &Answer) -> Option<u64> {
    let range = answer.header("range")?.trim();
    let (_, last) = range.trim_start_matches("bytes=").trim_start_matches("bytes ").split_once('-')?;
    match last.trim().parse::<i64>().ok()? {
        0 | -1 => Some(0),
        last => u64::try_from(last).ok()?.checked_add(1),
    }
}

/// A piece of a source; tells of an end before its time.
struct Piece<'a, 'b> {
    inner: Box<dyn Read + 'a>,
    left: u64,
    sent: u64,
    error: Option<io::Error>,
    progress: &'b mut dyn FnMut(u64),
}

impl Read for Piece<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if room == 0 {
            return Ok(0);
        }
        let fail = |this: &mut Self, error: io::Error| {
            let copy = io::Error::new(error.kind(), error.to_string());
            this.error = Some(error);
            Err(copy)
        };
        match self.inner.read(&mut buffer[..room]) {
            Ok(0) => {
                let reason = format!("it ended {} bytes too early", self.left);
                fail(self, io::Error::new(io::ErrorKind::UnexpectedEof, reason))
            }
            Ok(count) => {
                self.left -= count as u64;
                self.sent += count as u64;
                (self.progress)(self.sent);
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => fail(self, error),
        }
    }
}
