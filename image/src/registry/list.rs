//! Lists that come in pages: tags of a repository, repositories of a registry.

use serde::Deserialize;

use super::auth::Scope;
use super::client::{Client, Repository, Spot};
use super::error::{ErrorKind, RegistryError};
use super::service::{Call, Service, Target};
use super::url::Url;

/// Names per page that are asked for.
const PAGE: usize = 1000;
/// A page beyond this is not read, in bytes.
const MAX_PAGE: u64 = 16 << 20;
/// A registry that has more pages is going in a circle.
const MAX_PAGES: usize = 10_000;

#[derive(Deserialize)]
struct Tags {
    // Registries write null for none.
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Catalog {
    repositories: Option<Vec<String>>,
}

impl Repository {
    /// All tags, in the registry's order. Names that are no tags are left out.
    ///
    /// # Errors
    /// Not found, denied, not reached.
    pub fn tags(&self) -> Result<Vec<String>, RegistryError> {
        let subject = format!("tags of {}", self.name());
        self.ask(false, |Spot { service, repository }| {
            let scopes = [Scope::Pull(repository.clone())];
            let path = format!("/v2/{repository}/tags/list?n={PAGE}");
            let mut tags = Vec::new();
            pages(service, path, repository, &scopes, &subject, |bytes| {
                let page: Tags = serde_json::from_slice(bytes)?;
                tags.extend(
                    page.tags.unwrap_or_default().into_iter().filter(|tag| crate::reference::is_tag(tag)),
                );
                Ok(true)
            })?;
            Ok(tags)
        })
    }
}

impl Client {
    /// Names of the repositories of a registry, as long as `take` wants them. Many registries refuse this.
    ///
    /// # Errors
    /// Denied, not supported, not reached.
    pub fn catalog(&self, registry: &str, mut take: impl FnMut(String) -> bool) -> Result<(), RegistryError> {
        let subject = format!("catalogue of {registry}");
        let service = self.registry(registry)?;
        pages(&service, format!("/v2/_catalog?n={PAGE}"), "", &[Scope::Catalog], &subject, |bytes| {
            let page: Catalog = serde_json::from_slice(bytes)?;
            Ok(page.repositories.unwrap_or_default().into_iter().all(&mut take))
        })
    }
}

fn pages(
    service: &Service,
    path: String,
    repository: &str,
    scopes: &[Scope],
    subject: &str,
    mut page: impl FnMut(&[u8]) -> serde_json::Result<bool>,
) -> Result<(), RegistryError> {
    let mut target = Target::Path(path);
    for _ in 0..MAX_PAGES {
        let call = Call { target, ..Call::get(String::new(), repository, scopes, subject) };
        let answer = service.send(call)?.expect(subject, &[200])?;
        let (url, next) = (answer.url.clone(), answer.header("link").and_then(next_link).map(str::to_owned));
        let host = url.authority().to_owned();
        let fail = |kind| RegistryError::new(subject, kind);
        let protocol = |reason| fail(ErrorKind::Protocol { host: host.clone(), reason });
        let bytes = answer
            .bytes(MAX_PAGE)
            .map_err(|error| fail(ErrorKind::Connect { host: host.clone(), reason: error.to_string() }))?
            .ok_or_else(|| fail(ErrorKind::TooLarge { limit: MAX_PAGE }))?;
        if !page(&bytes).map_err(|error| protocol(format!("its list is malformed: {error}")))? {
            return Ok(());
        }
        let Some(next) = next else { return Ok(()) };
        let next = url.resolve(&next).map_err(protocol)?;
        if !same_site(&url, &next) {
            return Err(protocol(format!("the next page is elsewhere, at {next}")));
        }
        target = Target::Url(next);
    }
    let reason = format!("its list has more than {MAX_PAGES} pages");
    Err(RegistryError::new(subject, ErrorKind::Protocol { host: service.host().to_owned(), reason }))
}

fn same_site(url: &Url, next: &Url) -> bool {
    url.same_origin(next)
}

/// Target of a `Link: <...>; rel="next"` header (RFC 8288).
fn next_link(header: &str) -> Option<&str> {
    let mut rest = header;
    loop {
        let (_, after) = rest.split_once('<')?;
        let (target, after) = after.split_once('>')?;
        let parameters = after.split('<').next().unwrap_or(after);
        let is_next = parameters.split(';').any(|parameter| {
            let parameter = parameter.trim().trim_end_matches(',').replace(' ', "").to_ascii_lowercase();
            parameter == "rel=\"next\"" || parameter == "rel=next"
        });
        if is_next {
            return Some(target);
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found() {
        let table = [
            (r#"</v2/_catalog?last=b&n=2>; rel="next""#, Some("/v2/_catalog?last=b&n=2")),
            (r#"</a>; rel="prev", </b>; rel="next""#, Some("/b")),
            ("</a>;rel=next", Some("/a")),
            ("</a>; rel=\"prev\"", None),
            ("nonsense", None),
            ("<", None),
            ("", None),
        ];
        for (header, target) in table {
            assert_eq!(next_link(header), target, "{header}");
        }
    }
}
