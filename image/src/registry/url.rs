//! The little that is needed of URLs: origin, resolution of a `Location`, and escapes.

use std::fmt;

use ureq::http::Uri;

/// An absolute `http` or `https` URL with a host, without user and fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    https: bool,
    authority: String,
    /// Path and query; begins with a slash.
    path: String,
}

impl Url {
    /// `scheme://authority/`
    pub(super) fn of_host(https: bool, authority: &str) -> Self {
        Self { https, authority: authority.to_owned(), path: "/".to_owned() }
    }

    /// Reads an absolute URL.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = text.split('#').next().unwrap_or(text);
        let uri: Uri = text.parse().map_err(|error| format!("{text:?} is no URL: {error}"))?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(format!("{text:?} is no http or https URL")),
        };
        let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        if authority.is_empty() || authority.contains('@') {
            return Err(format!("{text:?} has no host, or has a user in it"));
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Self { https, authority: authority.to_ascii_lowercase(), path: format!("{slash}{path}") })
    }

    /// What `location` means when this URL's answer has it (RFC 3986, 5.2, without dot segments).
    pub(super) fn resolve(&self, location: &str) -> Result<Self, String> {
        let location = location.trim();
        let scheme = if self.https { "https" } else { "http" };
        let absolute = if location.contains("://") && !location.starts_with(['/', '?']) {
            location.to_owned()
        } else if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.starts_with('/') {
            format!("{scheme}://{}{location}", self.authority)
        } else {
            let path = self.path.split('?').next().unwrap_or("/");
            let kept = if location.starts_with('?') { path } else { &path[..=path.rfind('/').unwrap_or(0)] };
            format!("{scheme}://{}{kept}{location}", self.authority)
        };
        Self::parse(&absolute)
    }

    /// This host with another path and query.
    pub(super) fn with_path(&self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }

    /// With `name=value` added to the query.
    pub(super) fn with_query(&self, name: &str, value: &str) -> Self {
        let joint = if self.path.contains('?') { '&' } else { '?' };
        self.with_path(&format!("{}{joint}{name}={}", self.path, escape(value)))
    }

    pub(super) fn is_https(&self) -> bool {
        self.https
    }

    /// Host, with the port if it was given.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// Whether credentials for one may be sent to the other.
    pub(super) fn same_origin(&self, other: &Self) -> bool {
        self.https == other.https && self.host_and_port() == other.host_and_port()
    }

    fn host_and_port(&self) -> (&str, &str) {
        let (host, port) = super::proxy::host_and_port(&self.authority);
        (host, port.unwrap_or(if self.https { "443" } else { "80" }))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.https { "https" } else { "http" }, self.authority, self.path)
    }
}

/// Percent-encodes everything but the unreserved characters.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved() {
        let base = Url::parse("https://a.b:5000/v2/x/blobs/uploads/?y=1").unwrap();
        let table = [
            ("https://c.d/e", "https://c.d/e"),
            ("http://C.d", "http://c.d/"),
            ("//c.d/e", "https://c.d/e"),
            ("/e?f=g#h", "https://a.b:5000/e?f=g"),
            ("e", "https://a.b:5000/v2/x/blobs/uploads/e"),
            ("?e", "https://a.b:5000/v2/x/blobs/uploads/?e"),
            ("/r?to=http://x/", "https://a.b:5000/r?to=http://x/"),
        ];
        for (location, expected) in table {
            assert_eq!(base.resolve(location).unwrap().to_string(), expected, "{location}");
        }
        for bad in ["ftp://x/", "https://", "https://u:p@x/", "https://x y/", "javascript:x"] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn origins_differ_by_scheme_host_and_port() {
        let url = |text| Url::parse(text).unwrap();
        assert!(url("https://a.b/").same_origin(&url("https://A.b:443/x")));
        for other in ["http://a.b/", "https://a.b:444/", "https://a.b.c/"] {
            assert!(!url("https://a.b/").same_origin(&url(other)), "{other}");
        }
    }

    #[test]
    fn queries_are_escaped() {
        let url = Url::parse("https://a/b").unwrap().with_query("x", "a:b&c").with_query("y", "é");
        assert_eq!(url.to_string(), "https://a/b?x=a%3Ab%26c&y=%C3%A9");
    }
}
