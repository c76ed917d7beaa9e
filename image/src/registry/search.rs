//! Search: Docker Hub's index, and for other registries their index or their catalogue.

use serde::{Deserialize, Serialize};

use super::answer::{error_of, printable};
use super::client::Client;
use super::error::{ErrorKind, RegistryError};
use super::transport::Outgoing;
use super::url::Url;
use crate::reference::DEFAULT_REGISTRY;

/// The host that searches for the default registry.
const DEFAULT_INDEX: &str = "index.docker.io";
/// Largest answer, in bytes.
const MAX_ANSWER: u64 = 8 << 20;
/// The most results that are given.
pub const MAX_SEARCH_LIMIT: usize = 100;

/// One repository that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct SearchResult {
    /// As it is written to pull it.
    pub name: String,
    /// One line.
    pub description: String,
    /// How many like it.
    pub star_count: u64,
    /// Docker stands for it.
    pub is_official: bool,
    /// Built by Docker Hub from a public source; obsolete.
    pub is_automated: bool,
}

/// Which results are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SearchFilter {
    /// At least so many stars.
    pub stars: u64,
    /// Official or not.
    pub is_official: Option<bool>,
    /// Automated or not.
    pub is_automated: Option<bool>,
}

impl SearchFilter {
    fn takes(&self, result: &SearchResult) -> bool {
        result.star_count >= self.stars
            && self.is_official.is_none_or(|wanted| wanted == result.is_official)
            && self.is_automated.is_none_or(|wanted| wanted == result.is_automated)
    }
}

/// The index's document, version 1.
#[derive(Deserialize)]
struct IndexAnswer {
    results: Option<Vec<IndexEntry>>,
}

#[derive(Deserialize)]
struct IndexEntry {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    star_count: u64,
    #[serde(default)]
    is_official: bool,
    #[serde(default)]
    is_automated: bool,
}

impl Client {
    /// Repositories whose name or description has `term`, at most `limit`, which is brought
    /// between 1 and [`MAX_SEARCH_LIMIT`]. A term `HOST/WORD` searches at
    /// that registry.
    ///
    /// # Errors
    /// A registry that is not reached or does not search.
    pub fn search(
        &self,
        term: &str,
        limit: usize,
        filter: &SearchFilter,
    ) -> Result<Vec<SearchResult>, RegistryError> {
        let subject = format!("search for {term:?}");
        let limit = limit.clamp(1, MAX_SEARCH_LIMIT);
        let (registry, word) = split(term);
        let mut results = if registry == DEFAULT_REGISTRY {
            self.search_index(&Url::of_host(true, DEFAULT_INDEX), false, "", word, limit, &subject)?
        } else {
            let service = self.registry(registry)?;
            let site = service.site(&subject)?;
            let prefix = format!("{registry}/");
            match self.search_index(&site.base, site.insecure, &prefix, word, limit, &subject) {
                Ok(results) => results,
                // Most private registries have no index.
                Err(error) if is_unsupported(&error) => self.search_catalog(registry, word, limit)?,
                Err(error) => return Err(error),
            }
        };
        results.retain(|result| filter.takes(result));
        results.truncate(limit);
        Ok(results)
    }

    fn search_index(
        &self,
        base: &Url,
        insecure: bool,
        prefix: &str,
        word: &str,
        limit: usize,
        subject: &str,
    ) -> Result<Vec<SearchResult>, RegistryError> {
        let url = base.with_path("/v1/search").with_query("q", word).with_query("n", &limit.to_string());
        let fail = |kind| RegistryError::new(subject, kind);
        let host = url.authority().to_owned();
        let mut outgoing = Outgoing { insecure, ..Outgoing::get(url) };
        let answer =
            self.transport().send(&mut outgoing).map_err(|failure| fail(failure.into_kind(&host)))?;
        if answer.status != 200 {
            return Err(fail(error_of(answer, false)));
        }
        let bytes = answer
            .bytes(MAX_ANSWER)
            .map_err(|error| fail(ErrorKind::Connect { host: host.clone(), reason: error.to_string() }))?
            .ok_or_else(|| fail(ErrorKind::TooLarge { limit: MAX_ANSWER }))?;
        let answer: IndexAnswer = serde_json::from_slice(&bytes)
            .map_err(|error| fail(ErrorKind::Protocol { host, reason: format!("its results: {error}") }))?;
        let entries = answer.results.unwrap_or_default().into_iter();
        // What others wrote goes to a terminal.
        let result = |entry: IndexEntry| SearchResult {
            name: format!("{prefix}{}", printable(&entry.name)),
            description: entry
                .description
                .unwrap_or_default()
                .replace(char::is_control, " ")
                .trim()
                .to_owned(),
            star_count: entry.star_count,
            is_official: entry.is_official,
            is_automated: entry.is_automated,
        };
        Ok(entries.map(result).collect())
    }

    fn search_catalog(
        &self,
        registry: &str,
        word: &str,
        limit: usize,
    ) -> Result<Vec<SearchResult>, RegistryError> {
        let mut results = Vec::new();
        self.catalog(registry, |name| {
            if name.contains(word) {
                results.push(SearchResult {
                    name: format!("{registry}/{}", printable(&name)),
                    description: String::new(),
                    star_count: 0,
                    is_official: false,
                    is_automated: false,
                });
            }
            results.len() < limit
        })?;
        Ok(results)
    }
}

fn is_unsupported(error: &RegistryError) -> bool {
    match &*error.kind {
        ErrorKind::NotFound(_) | ErrorKind::Protocol { .. } | ErrorKind::Denied { .. } => true,
        ErrorKind::Status { status, .. } => *status < 500,
        _ => false,
    }
}

/// Registry and word, by the rule for names of images.
fn split(term: &str) -> (&str, &str) {
    match term.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            let known = matches!(first, "docker.io" | DEFAULT_INDEX);
            (if known { DEFAULT_REGISTRY } else { first }, rest)
        }
        _ => (DEFAULT_REGISTRY, term),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_before_the_word_is_the_registry() {
        assert_eq!(split("busybox"), ("docker.io", "busybox"));
        assert_eq!(split("me/tool"), ("docker.io", "me/tool"));
        assert_eq!(split("docker.io/me"), ("docker.io", "me"));
        assert_eq!(split("localhost:5000/a/b"), ("localhost:5000", "a/b"));
        assert_eq!(split("quay.io/"), ("quay.io", ""));
    }
}
