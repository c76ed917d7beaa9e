//! `WWW-Authenticate` headers (RFC 9110, 11.6.1): what a server wants as a proof of identity.

/// One way to prove identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// Name and password with each request.
    Basic,
    /// A token that another server gives (distribution specification, token authentication).
    Bearer {
        /// URL of that server.
        realm: String,
        /// Name of the registry for that server.
        service: Option<String>,
        /// What the refused request would have needed.
        scope: Option<String>,
    },
}

/// All challenges of one header that are known here; others, and what is malformed, are left out.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut rest = header.trim_start();
    let mut scheme: Option<(String, Vec<(String, String)>)> = None;
    let mut finish = |scheme: Option<(String, Vec<(String, String)>)>| {
        let Some((name, parameters)) = scheme else { return };
        let get = |key: &str| {
            parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value.clone())
        };
        if name.eq_ignore_ascii_case("basic") {
            challenges.push(Challenge::Basic);
        } else if name.eq_ignore_ascii_case("bearer")
            && let Some(realm) = get("realm")
        {
            challenges.push(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
        }
    };
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        if end == 0 {
            break;
        }
        let (word, after) = rest.split_at(end);
        match after.trim_start().strip_prefix('=') {
            // A parameter of the scheme before it.
            Some(value) => {
                let Some((value, after)) = parameter_value(value.trim_start()) else { break };
                if let Some((_, parameters)) = &mut scheme {
                    parameters.push((word.to_owned(), value));
                }
                rest = after;
            }
            None => {
                finish(scheme.take());
                scheme = Some((word.to_owned(), Vec::new()));
                rest = after;
            }
        }
    }
    finish(scheme);
    challenges
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// A token or a quoted string, and what follows it.
fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer { realm: realm.to_owned(), service: own(service), scope: own(scope) }
    }

    #[test]
    fn challenges_are_read() {
        let table = [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull,push""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:a:pull,push"),
                )],
            ),
            (r#"Basic realm="Registry Realm""#, vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                r#"Negotiate, Basic realm="x, y", bearer Realm = "https://z/\"q\"" , error="x""#,
                vec![Challenge::Basic, bearer("https://z/\"q\"", None, None)],
            ),
            ("Bearer realm=https://x/y?z", vec![bearer("https://x/y?z", None, None)]),
            ("Bearer service=\"x\"", vec![]),
            ("Bearer realm=\"unterminated", vec![]),
            ("Bearer realm=\"x\\", vec![]),
            ("", vec![]),
            ("=,=,\"", vec![]),
            ("Digest a=b, Bearer realm=\"r\"", vec![bearer("r", None, None)]),
        ];
        for (header, expected) in table {
            assert_eq!(parse(header), expected, "{header}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_header_stops_it(header in "\\PC{0,60}|[Bbasicer =\",\\\\]{0,60}") {
            parse(&header);
        }
    }
}
