//! Manifests: read, checked, written. Bytes are kept as they came, since the digest is of them.

use oci_spec::image::{ImageIndex, ImageManifest};
use serde::Deserialize;
use ureq::http::{Method, header};

use super::auth::Scope;
use super::client::{Repository, Spot};
use super::error::{ErrorKind, RegistryError};
use super::service::Call;
use super::transport::{Answer, Payload};
use crate::digest::{Digest, Hasher};
use crate::media_type::{
    DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED, MANIFESTS, OCI_INDEX, OCI_MANIFEST, is_index, is_manifest,
};
use crate::reference::{DEFAULT_TAG, Reference};

/// Which manifest of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The one that the tag stands for now.
    Tag(String),
    /// This one.
    Digest(Digest),
}

impl Which {
    /// Digest before tag before `latest`.
    pub fn of(reference: &Reference) -> Self {
        match (reference.digest(), reference.tag()) {
            (Some(&digest), _) => Self::Digest(digest),
            (None, tag) => Self::Tag(tag.unwrap_or(DEFAULT_TAG).to_owned()),
        }
    }

    fn digest(&self) -> Option<Digest> {
        match self {
            Self::Tag(_) => None,
            Self::Digest(digest) => Some(*digest),
        }
    }
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A manifest or index as a registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// One of [`MANIFESTS`].
    pub media_type: String,
    /// Digest of `bytes`.
    pub digest: Digest,
    /// The document.
    pub bytes: Vec<u8>,
}

/// What a manifest is about.
#[derive(Debug, Clone, PartialEq)]
pub enum Document {
    /// One image.
    Image(Box<ImageManifest>),
    /// One image for several platforms.
    Index(Box<ImageIndex>),
}

impl Manifest {
    /// The document.
    ///
    /// # Errors
    /// In words, when it is malformed.
    pub fn document(&self) -> Result<Document, String> {
        parse_manifest(&self.media_type, &self.bytes)
    }
}

#[derive(Deserialize)]
struct Outline {
    #[serde(rename = "schemaVersion")]
    schema_version: Option<u64>,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
}

/// Reads a manifest or index of type `media_type`.
///
/// # Errors
/// In words, when it is malformed, or could be taken for both (CVE-2021-41190).
pub fn parse_manifest(media_type: &str, bytes: &[u8]) -> Result<Document, String> {
    let malformed = |error: serde_json::Error| format!("the manifest is malformed: {error}");
    let outline: Outline = serde_json::from_slice(bytes).map_err(malformed)?;
    check(&outline, media_type)?;
    if is_index(media_type) {
        Ok(Document::Index(Box::new(serde_json::from_slice(bytes).map_err(malformed)?)))
    } else {
        Ok(Document::Image(Box::new(serde_json::from_slice(bytes).map_err(malformed)?)))
    }
}

fn check(outline: &Outline, media_type: &str) -> Result<(), String> {
    if let Some(said) = outline.media_type.as_deref().filter(|&said| said != media_type) {
        return Err(format!("the manifest says it is {said:?}, its registry {media_type:?}"));
    }
    let has_image = outline.config.is_some() || outline.layers.is_some() || outline.fs_layers.is_some();
    if has_image && outline.manifests.is_some() {
        return Err("the manifest is an image and a list of images at once".to_owned());
    }
    if is_index(media_type) == outline.manifests.is_none() {
        return Err(format!("the manifest is not what its type {media_type:?} says"));
    }
    Ok(())
}

impl Repository {
    /// Reads a manifest, from a mirror where one has it. Its digest is checked, its document not yet read.
    ///
    /// # Errors
    /// See [`ErrorKind`]: not found, denied, wrong digest, schema 1, too large, not reached.
    pub fn manifest(&self, which: &Which) -> Result<Manifest, RegistryError> {
        let subject = format!("manifest {which} of {}", self.name());
        self.ask(which.digest().is_some(), |spot| {
            let answer = self.request(spot, Method::GET, which, &subject)?;
            let fail = |kind| RegistryError::new(&subject, kind);
            let host = answer.url.authority().to_owned();
            let limit = self.client().options().max_manifest;
            let said_type = content_type(&answer);
            let said_digest = said_digest(&answer);
            let said_length = answer.content_length();
            let bytes = answer
                .bytes(limit)
                .map_err(|error| fail(ErrorKind::Connect { host: host.clone(), reason: error.to_string() }))?
                .ok_or_else(|| fail(ErrorKind::TooLarge { limit }))?;
            let found = bytes.len() as u64;
            if let Some(expected) = said_length.filter(|&length| length != found) {
                return Err(fail(ErrorKind::WrongLength { host, expected, found }));
            }
            // For a pull by tag, what the registry says of itself guards against damage on the way.
            let digest = match which.digest().or(said_digest) {
                Some(expected) => {
                    let mut hasher = Hasher::new(expected.algorithm());
                    hasher.update(&bytes);
                    let found = hasher.finish();
                    if found != expected {
                        return Err(fail(ErrorKind::WrongDigest {
                            host,
                            expected: Box::new(expected),
                            found: Box::new(found),
                        }));
                    }
                    expected
                }
                None => Digest::of(&bytes),
            };
            let media_type = media_type_of(said_type.as_deref(), &bytes).map_err(fail)?;
            Ok(Manifest { media_type, digest, bytes })
        })
    }

    /// Digest of a manifest by name, without reading it; `None` when there is none. Mirrors are not asked: what is
    /// wanted is what the tag stands for now.
    ///
    /// # Errors
    /// As [`manifest`](Self::manifest).
    pub fn manifest_digest(&self, which: &Which) -> Result<Option<Digest>, RegistryError> {
        let subject = format!("manifest {which} of {}", self.name());
        match self.request(&self.home(), Method::HEAD, which, &subject) {
            Ok(answer) => match said_digest(&answer) {
                Some(digest) => Ok(Some(digest)),
                // Some registries do not say it.
                None => self.manifest(which).map(|manifest| Some(manifest.digest)),
            },
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a manifest. Everything that it names must be there already.
    ///
    /// # Errors
    /// Denied, refused, not reached; or the registry gives it another digest than it has.
    pub fn put_manifest(
        &self,
        which: &Which,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, RegistryError> {
        let subject = format!("push of manifest {which} to {}", self.name());
        let spot = self.home();
        let scopes = [Scope::Push(spot.repository.clone())];
        let path = format!("/v2/{}/manifests/{which}", spot.repository);
        let reply = spot.service.send(Call {
            method: Method::PUT,
            headers: vec![(header::CONTENT_TYPE, media_type.to_owned())],
            payload: Payload::Bytes(bytes),
            ..Call::get(path, &spot.repository, &scopes, &subject)
        })?;
        let answer = reply.expect(&subject, &[201, 202, 200])?;
        let algorithm = which.digest().map_or(crate::digest::Algorithm::Sha256, |digest| digest.algorithm());
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        let expected = hasher.finish();
        match said_digest(&answer) {
            Some(found) if found != expected && found.algorithm() == algorithm => {
                let host = answer.url.authority().to_owned();
                Err(RegistryError::new(
                    subject,
                    ErrorKind::WrongDigest { host, expected: Box::new(expected), found: Box::new(found) },
                ))
            }
            _ => Ok(expected),
        }
    }

    fn request(
        &self,
        spot: &Spot,
        method: Method,
        which: &Which,
        subject: &str,
    ) -> Result<Answer, RegistryError> {
        let scopes = [Scope::Pull(spot.repository.clone())];
        let path = format!("/v2/{}/manifests/{which}", spot.repository);
        let reply = spot.service.send(Call {
            method,
            headers: vec![(header::ACCEPT, MANIFESTS.join(", "))],
            ..Call::get(path, &spot.repository, &scopes, subject)
        })?;
        reply.expect(subject, &[200])
    }
}

fn content_type(answer: &Answer) -> Option<String> {
    let value = answer.header("content-type")?;
    Some(value.split(';').next().unwrap_or(value).trim().to_ascii_lowercase())
}

fn said_digest(answer: &Answer) -> Option<Digest> {
    Digest::parse(answer.header("docker-content-digest")?.trim()).ok()
}

/// The type by the header, or, since some servers say just "JSON", by the document.
fn media_type_of(said: Option<&str>, bytes: &[u8]) -> Result<String, ErrorKind> {
    if said.is_some_and(|said| said == DOCKER_SCHEMA1 || said == DOCKER_SCHEMA1_SIGNED) {
        return Err(ErrorKind::Schema1);
    }
    let malformed =
        |error: serde_json::Error| ErrorKind::Manifest(format!("the manifest is malformed: {error}"));
    let outline: Outline = serde_json::from_slice(bytes).map_err(malformed)?;
    if outline.schema_version == Some(1) || outline.fs_layers.is_some() {
        return Err(ErrorKind::Schema1);
    }
    let known = |text: &&str| is_manifest(text) || is_index(text);
    let found = said.filter(known).or(outline.media_type.as_deref().filter(known));
    let media_type = match found {
        Some(known) => known,
        None if outline.manifests.is_some() => OCI_INDEX,
        None if outline.config.is_some() => OCI_MANIFEST,
        None => {
            let said = outline.media_type.as_deref().or(said).unwrap_or_default().to_owned();
            return Err(ErrorKind::Manifest(format!("it is of type {said:?}, which is no image")));
        }
    };
    check(&outline, media_type).map_err(ErrorKind::Manifest)?;
    Ok(media_type.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media_type::DOCKER_MANIFEST;

    const IMAGE: &str = r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json",
        "digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#;

    #[test]
    fn the_type_is_what_the_document_is() {
        let of = |said: Option<&str>, text: &str| media_type_of(said, text.as_bytes());
        assert_eq!(of(Some(OCI_MANIFEST), IMAGE).unwrap(), OCI_MANIFEST);
        assert_eq!(of(Some(DOCKER_MANIFEST), IMAGE).unwrap(), DOCKER_MANIFEST);
        assert_eq!(of(Some("application/json"), IMAGE).unwrap(), OCI_MANIFEST);
        assert_eq!(of(None, r#"{"schemaVersion":2,"manifests":[]}"#).unwrap(), OCI_INDEX);
        for (said, text) in [
            (Some(DOCKER_SCHEMA1_SIGNED), "{}"),
            (Some("text/plain"), r#"{"schemaVersion":1,"fsLayers":[]}"#),
        ] {
            assert!(matches!(of(said, text), Err(ErrorKind::Schema1)), "{text}");
        }
        for (said, text) in [
            (Some(OCI_INDEX), IMAGE),
            (Some(OCI_MANIFEST), r#"{"schemaVersion":2,"manifests":[]}"#),
            (Some(OCI_MANIFEST), r#"{"config":{},"layers":[],"manifests":[]}"#),
            (Some(OCI_MANIFEST), r#"{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#),
            (None, "{}"),
            (None, "[]"),
            (None, "<html>"),
            (Some("application/vnd.cncf.helm.config.v1+json"), "{}"),
        ] {
            assert!(matches!(of(said, text), Err(ErrorKind::Manifest(_))), "{text}");
        }
    }

    #[test]
    fn documents_are_read() {
        let image = parse_manifest(OCI_MANIFEST, IMAGE.as_bytes()).unwrap();
        assert!(matches!(image, Document::Image(image) if image.layers().is_empty()));
        assert!(parse_manifest(OCI_INDEX, IMAGE.as_bytes()).is_err());
        let deep = format!("{{\"config\":{}", "[".repeat(100_000));
        assert!(parse_manifest(OCI_MANIFEST, deep.as_bytes()).is_err());
    }
}
