//! Credential helpers: programs `docker-credential-NAME` that take a word as argument, and data on standard input.
//!
//! Source: docker-credential-helpers, its README: `get` and `erase` read the server's name, `store` reads JSON; `get`
//! answers JSON.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::{CredentialError, Credentials};

/// User name that says: the secret is an identity token.
const TOKEN: &str = "<token>";
/// What helpers say when they have nothing.
const MISSING: &str = "credentials not found";

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "ServerURL", default)]
    server: String,
    username: String,
    secret: String,
}

/// A helper program.
#[derive(Debug)]
pub(super) struct Helper<'a> {
    /// Its name without `docker-credential-`.
    pub(super) name: &'a str,
    /// Where it is searched; `None` for the process's own `PATH`.
    pub(super) path: Option<&'a str>,
}

impl Helper<'_> {
    /// What it has for `server`.
    pub(super) fn get(&self, server: &str) -> Result<Option<Credentials>, CredentialError> {
        let answer = match self.run("get", server.as_bytes()) {
            Ok(answer) => answer,
            Err(CredentialError::Helper { reason, .. }) if reason.contains(MISSING) => return Ok(None),
            Err(error) => return Err(error),
        };
        // The text may hold a secret: it is not shown.
        let malformed = |_| self.failed("its answer to get is malformed".to_owned());
        let entry: Entry = serde_json::from_slice(&answer).map_err(malformed)?;
        if entry.username.is_empty() && entry.secret.is_empty() {
            return Ok(None);
        }
        Ok(Some(if entry.username == TOKEN {
            Credentials::IdentityToken(entry.secret)
        } else {
            Credentials::password(entry.username, entry.secret)
        }))
    }

    /// Gives it `credentials` to keep.
    pub(super) fn store(&self, server: &str, credentials: &Credentials) -> Result<(), CredentialError> {
        let (username, secret) = match credentials {
            Credentials::Password { username, password } => (username.clone(), password.clone()),
            Credentials::IdentityToken(token) => (TOKEN.to_owned(), token.clone()),
        };
        let entry = Entry { server: server.to_owned(), username, secret };
        let text = serde_json::to_vec(&entry).map_err(|error| self.failed(error.to_string()))?;
        self.run("store", &text).map(drop)
    }

    /// Has it forget `server`.
    pub(super) fn erase(&self, server: &str) -> Result<(), CredentialError> {
        self.run("erase", server.as_bytes()).map(drop)
    }

    fn program(&self) -> String {
        format!("docker-credential-{}", self.name)
    }

    fn failed(&self, reason: String) -> CredentialError {
        CredentialError::Helper { program: self.program(), reason }
    }

    fn run(&self, action: &str, input: &[u8]) -> Result<Vec<u8>, CredentialError> {
        let name = self.name;
        let fail = |reason: String| self.failed(reason);
        if name.contains('/') {
            return Err(fail("a name with a slash is no helper's".to_owned()));
        }
        let mut command = Command::new(self.program());
        command.arg(action).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(path) = self.path {
            command.env("PATH", path);
        }
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => fail(format!(
                "is named in config.json and not in PATH; install it, or remove {name:?} from credsStore and credHelpers"
            )),
            _ => fail(error.to_string()),
        })?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(input) {
                // It may answer without reading.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    child.kill().ok();
                    child.wait().ok();
                    return Err(fail(error.to_string()));
                }
                _ => {}
            }
        }
        let output = child.wait_with_output().map_err(|error| fail(error.to_string()))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        // Helpers give their reason on standard output.
        let words =
            [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).trim().to_owned());
        let words = words.into_iter().find(|text| !text.is_empty());
        Err(fail(words.unwrap_or_else(|| format!("{action} ended with {}", output.status))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_that_is_missing_or_no_name_is_told() {
        let error = Helper { name: "layerfs-test-no-such", path: None }.get("a.b").unwrap_err().to_string();
        assert!(
            error.contains("docker-credential-layerfs-test-no-such") && error.contains("PATH"),
            "{error}"
        );
        let error = Helper { name: "x/../../bin/sh", path: None }.get("a.b").unwrap_err().to_string();
        assert!(error.contains("slash"), "{error}");
    }

    /// Speaks the protocol with files in its directory, as `pass` would.
    const PROGRAM: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
case "$1" in
store) cat > kept ;;
get) read -r server; grep -qs "\"ServerURL\":\"$server\"" kept || { echo 'credentials not found in native keychain'; exit 1; }
    cat kept ;;
erase) rm kept ;;
esac
"#;

    #[test]
    fn a_helper_keeps_gives_and_forgets() {
        use crate::registry::credentials::{CredentialStore, KeptIn};
        use crate::registry::environment::Environment;
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("docker-credential-test");
        std::fs::write(&program, PROGRAM).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = dir.path().join("config.json");
        std::fs::write(&config, r#"{"credHelpers":{"a.b":"test"}}"#).unwrap();
        let store = CredentialStore::new(Environment {
            docker_config: Some(config.clone()),
            helper_path: Some(format!("{}:/usr/bin:/bin", dir.path().display())),
            ..Environment::default()
        });
        assert_eq!(store.find("a.b", "c").unwrap(), None);
        for credentials in [Credentials::password("u", "p"), Credentials::IdentityToken("t".into())] {
            assert_eq!(store.keep("a.b", &credentials).unwrap(), KeptIn::Helper("test".into()));
            assert_eq!(store.find("a.b", "c").unwrap(), Some(credentials));
        }
        assert!(
            !std::fs::read_to_string(&config).unwrap().contains("\"auth\""),
            "the secret is in the file too"
        );
        assert!(store.forget("a.b").unwrap());
        assert_eq!(store.find("a.b", "c").unwrap(), None);
        assert!(!dir.path().join("kept").exists());
    }
}
