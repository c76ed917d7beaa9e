//! Names of images, by docker's grammar and with docker's defaults.
//!
//! `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`. Source: `distribution/reference`, the grammar and its normalisation. Whatever a
//! user leaves out is filled in: `debian` is `docker.io/library/debian:latest`. What parses here is safe in a URL
//! path and as a relative file name: no empty and no `..` component can pass.

mod grammar;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::digest::{Digest, DigestError};

/// The registry meant when none is named.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// Old name of [`DEFAULT_REGISTRY`], which docker still takes.
const LEGACY_DEFAULT_REGISTRY: &str = "index.docker.io";
/// Where the default registry has the repositories that have one component.
const OFFICIAL: &str = "library/";
/// The tag meant when neither tag nor digest is given.
pub const DEFAULT_TAG: &str = "latest";
/// Longest path of a repository in bytes, without its registry.
pub const MAX_REPOSITORY: usize = 255;
/// Longest tag in bytes.
pub const MAX_TAG: usize = 128;

/// Why a text is not the name of an image. The words before the colon are docker's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReferenceError {
    /// Nothing at all.
    #[error("invalid reference format: the name is empty")]
    Empty,
    /// Does not follow the grammar.
    #[error("invalid reference format: {text:?}: {reason}")]
    Format {
        /// What was given.
        text: String,
        /// Which part does not fit.
        reason: &'static str,
    },
    /// Repositories are in lower case.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// Could be confused with the id of an image.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    Identifier(String),
    /// Longer than [`MAX_REPOSITORY`].
    #[error("repository name must not be more than {MAX_REPOSITORY} characters: {0}")]
    TooLong(String),
    /// Something follows `@` that is no digest.
    #[error("invalid reference format: {text:?}: {source}")]
    Digest {
        /// What was given.
        text: String,
        /// What is wrong with the digest.
        source: DigestError,
    },
}

/// Name of an image: registry and repository always, tag or digest or both.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Reads a name, with docker's defaults for what is left out: `latest` where there is neither tag nor digest.
    ///
    /// # Errors
    /// When `text` is outside the grammar.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        Ok(Self::parse_without_tag(text)?.or_latest())
    }

    /// As [`parse`](Self::parse), but leaves a missing tag missing: for commands that mean all tags.
    ///
    /// # Errors
    /// When `text` is outside the grammar.
    pub fn parse_without_tag(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if grammar::is_identifier(text) {
            return Err(ReferenceError::Identifier(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        let (registry, remainder) = split_registry(rest);
        let (path, tag) = match remainder.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (remainder, None),
        };
        let official = registry == DEFAULT_REGISTRY && !path.contains('/');
        let repository = format!("{}{path}", if official { OFFICIAL } else { "" });
        let fail = |reason| Err(ReferenceError::Format { text: text.to_owned(), reason });
        if path.is_empty() {
            return fail("the repository is missing");
        }
        if path.chars().any(char::is_uppercase) {
            return Err(ReferenceError::Uppercase(repository));
        }
        if repository.len() > MAX_REPOSITORY {
            return Err(ReferenceError::TooLong(repository));
        }
        if !grammar::is_registry(registry) {
            return fail("the registry is no HOST or HOST:PORT");
        }
        if !grammar::is_repository(&repository) {
            return fail("the repository has other characters than a-z, 0-9 and separators between them");
        }
        if tag.is_some_and(|tag| !grammar::is_tag(tag)) {
            return fail(
                "a tag is 1 to 128 of A-Z, a-z, 0-9, '_', '.', '-', and begins with none of the last two",
            );
        }
        let digest = digest
            .map(Digest::parse)
            .transpose()
            .map_err(|source| ReferenceError::Digest { text: text.to_owned(), source })?;
        Ok(Self { registry: registry.to_owned(), repository, tag: tag.map(str::to_owned), digest })
    }

    /// Host of the registry, with its port if one was given: `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path of the repository within its registry: `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. [`parse`](Self::parse) leaves none only where there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest. Where there is one, it says which image is meant, whatever the tag says.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository, without tag and digest: `docker.io/library/debian`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository with `tag` and no digest.
    ///
    /// # Errors
    /// When `tag` is none.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        if !grammar::is_tag(tag) {
            let reason =
                "a tag is 1 to 128 of A-Z, a-z, 0-9, '_', '.', '-', and begins with none of the last two";
            return Err(ReferenceError::Format { text: tag.to_owned(), reason });
        }
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The same repository with `digest` and no tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The same repository with neither tag nor digest.
    #[must_use]
    pub fn without_tag(&self) -> Self {
        Self { tag: None, digest: None, ..self.clone() }
    }

    /// With the default tag where there is neither tag nor digest.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// Registry and repository as people write them, without what is the default.
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return self.name();
        }
        let name = match self.repository.strip_prefix(OFFICIAL) {
            Some(name) if !name.contains('/') => name,
            _ => &self.repository,
        };
        // `docker.io/localhost/x` without its registry would be a name of another.
        if split_registry(name).0 == DEFAULT_REGISTRY { name.to_owned() } else { self.name() }
    }

    /// As people write it: without the default registry and its `library/`, but with tag and digest.
    pub fn familiar(&self) -> String {
        self.suffixed(self.familiar_name())
    }

    fn suffixed(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
        name
    }
}

/// True for a text that is a tag by itself.
pub fn is_tag(text: &str) -> bool {
    grammar::is_tag(text)
}

/// The registry and the rest. A first component is a registry if it could not be part of a repository: it has a dot
/// or a colon or a capital letter, or is `localhost`.
fn split_registry(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.chars().any(char::is_uppercase) =>
        {
            (if first == LEGACY_DEFAULT_REGISTRY { DEFAULT_REGISTRY } else { first }, rest)
        }
        _ => (DEFAULT_REGISTRY, text),
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.suffixed(self.name()))
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}
