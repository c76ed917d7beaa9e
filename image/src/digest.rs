//! Digests: the names of content, and checking content against them while it streams.
//!
//! A digest is `ALGORITHM:HEX` (OCI image specification, descriptor.md). Content is never believed to be what its
//! digest says until all of it went through a [`VerifyingReader`] or a [`DigestWriter`].

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha512};
use thiserror::Error;

/// The registered algorithms (OCI image specification, descriptor.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// The one that everybody uses.
    Sha256,
    /// Allowed, and rare.
    Sha512,
}

impl Algorithm {
    /// As written before the colon, and as the directory below `blobs/` is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of the hexadecimal part.
    pub fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// What is wrong with a text that should be a digest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DigestError {
    /// No colon between algorithm and digits.
    #[error("digest {0:?} is not of the form ALGORITHM:HEX")]
    Form(String),
    /// Neither sha256 nor sha512.
    #[error("digest {0:?} has an unknown algorithm; known are sha256 and sha512")]
    Algorithm(String),
    /// Wrong number of digits, or something else than lower case hexadecimal digits.
    #[error("digest {0:?} has not the {1} lower case hexadecimal digits of its algorithm")]
    Digits(String, usize),
}

/// Name of some content by its hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(Value);

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Value {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

impl Digest {
    /// Reads `ALGORITHM:HEX`.
    ///
    /// # Errors
    /// When `text` is anything else; upper case digits are refused, as the specification does.
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        let (name, hex) = text.split_once(':').ok_or_else(|| DigestError::Form(text.to_owned()))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestError::Algorithm(text.to_owned())),
        };
        Self::from_hex(algorithm, hex)
            .ok_or_else(|| DigestError::Digits(text.to_owned(), algorithm.hex_len()))
    }

    /// From the digits alone; `None` when they are too few, too many or no lower case digits.
    pub fn from_hex(algorithm: Algorithm, hex: &str) -> Option<Self> {
        let mut bytes = [0; 64];
        let len = algorithm.hex_len() / 2;
        if hex.len() != algorithm.hex_len() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Self::from_bytes(algorithm, &bytes[..len])
    }

    /// From the raw hash; `None` when its length is not the algorithm's.
    pub fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Option<Self> {
        Some(Self(match algorithm {
            Algorithm::Sha256 => Value::Sha256(bytes.try_into().ok()?),
            Algorithm::Sha512 => Value::Sha512(bytes.try_into().ok()?),
        }))
    }

    /// The sha256 of `content`.
    pub fn of(content: impl AsRef<[u8]>) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(content.as_ref());
        hasher.finish()
    }

    /// Its algorithm.
    pub fn algorithm(&self) -> Algorithm {
        match self.0 {
            Value::Sha256(_) => Algorithm::Sha256,
            Value::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The raw hash.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Value::Sha256(bytes) => bytes,
            Value::Sha512(bytes) => bytes,
        }
    }

    /// The digits after the colon.
    pub fn hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let nibbles = self.as_bytes().iter().flat_map(|byte| [byte >> 4, byte & 15]);
        nibbles.map(|nibble| char::from(DIGITS[usize::from(nibble)])).collect()
    }

    /// The first twelve digits, enough for people.
    pub fn short(&self) -> String {
        let mut hex = self.hex();
        hex.truncate(12);
        hex
    }
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        Self::parse(text)
    }
}

impl TryFrom<&oci_spec::image::Digest> for Digest {
    type Error = DigestError;

    fn try_from(digest: &oci_spec::image::Digest) -> Result<Self, DigestError> {
        Self::parse(digest.as_ref())
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Digest of a layer's uncompressed tar (OCI image specification, config.md).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub Digest);

/// Digest of a stack of layers: of the topmost and everything below it (OCI image specification, config.md).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(pub Digest);

impl ChainId {
    /// Of the lowest layer alone.
    pub fn base(diff_id: DiffId) -> Self {
        Self(diff_id.0)
    }

    /// Of this stack with `diff_id` on top.
    #[must_use]
    pub fn with(self, diff_id: DiffId) -> Self {
        Self(Digest::of(format!("{} {}", self.0, diff_id.0)))
    }

    /// Of each prefix of `diff_ids`, which are in the order of the config: the lowest first.
    pub fn chain(diff_ids: &[DiffId]) -> Vec<Self> {
        let mut chain: Vec<Self> = Vec::with_capacity(diff_ids.len());
        for &diff_id in diff_ids {
            let next = chain.last().map_or_else(|| Self::base(diff_id), |below| below.with(diff_id));
            chain.push(next);
        }
        chain
    }
}

macro_rules! shown_as_digest {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )*};
}
shown_as_digest!(DiffId, ChainId);

/// A hash in the making.
#[derive(Clone, Debug)]
pub struct Hasher(State);

#[derive(Clone, Debug)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// Of nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        Digest(match self.0 {
            State::Sha256(hasher) => Value::Sha256(hasher.finalize().into()),
            State::Sha512(hasher) => Value::Sha512(hasher.finalize().into()),
        })
    }
}

/// Content is not what its descriptor says. Comes as the inner error of an [`io::Error`] of kind `InvalidData`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MismatchError {
    /// All bytes came, and they are others.
    #[error("content has digest {found}, not {expected}")]
    Digest {
        /// What the descriptor says.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The content ended early.
    #[error("content {digest} ended after {found} of {expected} bytes")]
    Short {
        /// Which content.
        digest: Digest,
        /// What the descriptor says.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// More bytes than declared.
    #[error("content {digest} is longer than the {expected} bytes it is declared with")]
    Long {
        /// Which content.
        digest: Digest,
        /// What the descriptor says.
        expected: u64,
    },
}

impl From<MismatchError> for io::Error {
    fn from(error: MismatchError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// Passes content on and checks it: the read that would say "end" is an error if the content was not what
/// it should be. Bytes read before that are not yet to be believed.
#[derive(Debug)]
pub struct VerifyingReader<R> {
    inner: R,
    hasher: Option<Hasher>,
    expected: Digest,
    size: Option<u64>,
    count: u64,
}

impl<R: Read> VerifyingReader<R> {
    /// Expects `digest`, and exactly `size` bytes where that is known.
    pub fn new(inner: R, digest: Digest, size: Option<u64>) -> Self {
        let hasher = Some(Hasher::new(digest.algorithm()));
        Self { inner, hasher, expected: digest, size, count: 0 }
    }

    /// Bytes read so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// True once the end was reached and all was right.
    pub fn is_verified(&self) -> bool {
        self.hasher.is_none()
    }

    /// Reads what is left, and checks it.
    ///
    /// # Errors
    /// Those of reading; [`MismatchError`] inside an `InvalidData` error.
    pub fn finish(mut self) -> io::Result<R> {
        let mut buffer = vec![0; 64 * 1024];
        while self.read(&mut buffer)? > 0 {}
        Ok(self.inner)
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        if let Some(size) = self.size.filter(|&size| size != self.count) {
            // Stays an error at the next read as well.
            self.hasher = Some(hasher);
            return Err(
                MismatchError::Short { digest: self.expected, expected: size, found: self.count }.into()
            );
        }
        let found = hasher.clone().finish();
        if found != self.expected {
            self.hasher = Some(hasher);
            return Err(MismatchError::Digest { expected: self.expected, found }.into());
        }
        Ok(())
    }
}

impl<R: Read> Read for VerifyingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.hasher.is_none() {
            return Ok(0);
        }
        let len = self.inner.read(buffer)?;
        if len == 0 {
            return self.end().map(|()| 0);
        }
        self.count += len as u64;
        if let Some(expected) = self.size.filter(|&size| self.count > size) {
            return Err(MismatchError::Long { digest: self.expected, expected }.into());
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..len]);
        }
        Ok(len)
    }
}

/// Passes content on, and tells its digest and length.
#[derive(Debug)]
pub struct DigestWriter<W> {
    inner: W,
    hasher: Hasher,
    count: u64,
}

impl<W: Write> DigestWriter<W> {
    /// Takes the sha256 of what is written to `inner`.
    pub fn new(inner: W) -> Self {
        Self::with_algorithm(inner, Algorithm::Sha256)
    }

    /// As [`new`](Self::new) with another algorithm.
    pub fn with_algorithm(inner: W, algorithm: Algorithm) -> Self {
        Self { inner, hasher: Hasher::new(algorithm), count: 0 }
    }

    /// Bytes written so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What was written to, the digest, the number of bytes. Does not flush.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, self.hasher.finish(), self.count)
    }
}

impl<W: Write> Write for DigestWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let len = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..len]);
        self.count += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digests_are_read_and_shown() {
        let digest = Digest::parse(EMPTY).unwrap();
        assert_eq!(digest, Digest::of(b""));
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(digest.short(), "e3b0c44298fc");
        assert_eq!(serde_json::from_str::<Digest>(&format!("{EMPTY:?}")).unwrap(), digest);
        let long = format!("sha512:{}", "0a".repeat(64));
        assert_eq!(Digest::parse(&long).unwrap().to_string(), long);
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        for text in [
            "",
            "sha256",
            "sha256:",
            "md5:00",
            &EMPTY.to_uppercase(),
            &EMPTY.replace('e', "E"),
            &EMPTY[..70],
            &format!("{EMPTY}0"),
            &EMPTY.replace("e3", "../"),
            &EMPTY.replacen("e3", "é", 1),
        ] {
            assert!(Digest::parse(text).is_err(), "{text:?} was taken for a digest");
        }
    }

    /// The example of the OCI image specification, computed with sha256sum.
    #[test]
    fn chain_ids_follow_the_specification() {
        let [a, b] = [DiffId(Digest::of(b"a")), DiffId(Digest::of(b"b"))];
        let chain = ChainId::chain(&[a, b]);
        assert_eq!(chain[0].0, a.0);
        assert_eq!(chain[1].to_string(), Digest::of(format!("{a} {b}")).to_string());
        assert!(ChainId::chain(&[]).is_empty());
    }

    fn verify(content: &[u8], digest: Digest, size: Option<u64>) -> Result<u64, Box<MismatchError>> {
        let mut reader = VerifyingReader::new(content, digest, size);
        match io::copy(&mut reader, &mut io::sink()) {
            Ok(count) => {
                assert!(reader.is_verified());
                Ok(count)
            }
            Err(error) => {
                assert!(!reader.is_verified());
                assert!(reader.read(&mut [0]).is_err(), "an error that vanished");
                Err(Box::new(error.get_ref().unwrap().downcast_ref::<MismatchError>().unwrap().clone()))
            }
        }
    }

    #[test]
    fn content_is_checked_while_it_streams() {
        let digest = Digest::of(b"content");
        assert_eq!(verify(b"content", digest, Some(7)), Ok(7));
        assert_eq!(verify(b"content", digest, None), Ok(7));
        assert_eq!(
            verify(b"conten", digest, Some(7)),
            Err(Box::new(MismatchError::Short { digest, expected: 7, found: 6 }))
        );
        assert_eq!(
            verify(b"content!", digest, Some(7)),
            Err(Box::new(MismatchError::Long { digest, expected: 7 }))
        );
        assert_eq!(
            verify(b"cOntent", digest, Some(7)),
            Err(Box::new(MismatchError::Digest { expected: digest, found: Digest::of(b"cOntent") }))
        );
    }

    #[test]
    fn a_writer_tells_what_went_through() {
        let mut writer = DigestWriter::new(Vec::new());
        writer.write_all(b"con").unwrap();
        writer.write_all(b"tent").unwrap();
        assert_eq!(writer.finish(), (b"content".to_vec(), Digest::of(b"content"), 7));
    }
}
