//! `config.json` and `auth.json`: the same form. Whatever else is in the file is kept as it is.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::{CredentialError, Credentials};

/// Larger files are no configuration.
const MAX_SIZE: u64 = 4 << 20;

/// One file's content.
#[derive(Debug)]
pub(super) struct AuthFile {
    path: PathBuf,
    content: Map<String, Value>,
}

impl AuthFile {
    /// The file, or `None` when there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, CredentialError> {
        let fail = |source| CredentialError::File { action: "read", path: path.to_owned(), source };
        match fs::metadata(path) {
            Ok(meta) if meta.len() > MAX_SIZE => {
                let reason = format!("it is larger than {MAX_SIZE} bytes");
                return Err(CredentialError::Malformed { path: path.to_owned(), reason });
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(source) => return Err(fail(source)),
        }
        let text = fs::read(path).map_err(fail)?;
        if text.trim_ascii().is_empty() {
            return Ok(Some(Self { path: path.to_owned(), content: Map::new() }));
        }
        match serde_json::from_slice(&text) {
            Ok(content) => Ok(Some(Self { path: path.to_owned(), content })),
            Err(error) => {
                let reason = format!("no JSON object (line {}, column {})", error.line(), error.column());
                Err(CredentialError::Malformed { path: path.to_owned(), reason })
            }
        }
    }

    /// Suffix of the helper program that has the credentials of `server`.
    pub(super) fn helper(&self, server: &str) -> Option<&str> {
        let special = self.content.get("credHelpers").and_then(|helpers| helpers.get(server));
        let name = special.or_else(|| self.content.get("credsStore"))?.as_str()?;
        (!name.is_empty()).then_some(name)
    }

    /// The entry for `server`, for a longer path below `registry` first.
    pub(super) fn credentials(
        &self,
        server: &str,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Credentials>, CredentialError> {
        let Some(auths) = self.content.get("auths").and_then(Value::as_object) else { return Ok(None) };
        let mut names: Vec<String> = Vec::new();
        let mut path = format!("{registry}/{repository}");
        while let Some(end) = path.rfind('/') {
            names.push(path.clone());
            path.truncate(end);
        }
        names.push(server.to_owned());
        names.push(registry.to_owned());
        for name in &names {
            if let Some(found) = auths.get(name).map(|entry| self.entry(name, entry)).transpose()?.flatten() {
                return Ok(Some(found));
            }
        }
        // Old files name servers by URL.
        for (name, entry) in auths {
            if host_of(name) == registry
                && name.contains("://")
                && let Some(found) = self.entry(name, entry)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn entry(&self, name: &str, entry: &Value) -> Result<Option<Credentials>, CredentialError> {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        if let Some(token) = text("identitytoken") {
            return Ok(Some(Credentials::IdentityToken(token.to_owned())));
        }
        if let Some(auth) = text("auth") {
            let decoded = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
            let Some((username, password)) = pair else {
                let reason = format!("the auth of {name:?} is no base64 of NAME:PASSWORD");
                return Err(CredentialError::Malformed { path: self.path.clone(), reason });
            };
            // Docker's old padding.
            return Ok(Some(Credentials::password(username, password.trim_end_matches('\0'))));
        }
        match (text("username"), text("password")) {
            (Some(username), Some(password)) => Ok(Some(Credentials::password(username, password))),
            _ => Ok(None),
        }
    }

    /// True when there is an entry for the registry under any of its names.
    pub(super) fn has(&self, server: &str, registry: &str) -> bool {
        let auths = self.content.get("auths").and_then(Value::as_object);
        auths.is_some_and(|auths| auths.keys().any(|name| is_for(name, server, registry)))
    }

    /// Writes the entry of `server`: with `credentials`, or empty when a helper has them.
    pub(super) fn set(&mut self, server: &str, credentials: Option<&Credentials>) {
        let entry = match credentials {
            None => json!({}),
            Some(Credentials::Password { username, password }) => {
                json!({ "auth": STANDARD.encode(format!("{username}:{password}")) })
            }
            Some(Credentials::IdentityToken(token)) => {
                json!({ "auth": STANDARD.encode("<token>:"), "identitytoken": token })
            }
        };
        let auths = self.content.entry("auths").or_insert_with(|| json!({}));
        if !auths.is_object() {
            *auths = json!({});
        }
        auths[server] = entry;
    }

    /// Deletes the entries of the registry.
    pub(super) fn remove(&mut self, server: &str, registry: &str) {
        if let Some(auths) = self.content.get_mut("auths").and_then(Value::as_object_mut) {
            auths.retain(|name, _| !is_for(name, server, registry));
        }
    }
}

fn is_for(name: &str, server: &str, registry: &str) -> bool {
    name == server || name == registry || (name.contains("://") && host_of(name) == registry)
}

/// The host of a URL or of a bare name.
fn host_of(name: &str) -> &str {
    let name = name.split_once("://").map_or(name, |(_, rest)| rest);
    name.split('/').next().unwrap_or(name)
}

/// Reads the file at `path`, lets `change` edit it, and puts the result in its place: complete or not at all,
/// readable by its owner alone. Two logins at a time wait for each other.
pub(super) fn change<T>(
    path: &Path,
    change: impl FnOnce(&mut AuthFile) -> Result<T, CredentialError>,
) -> Result<T, CredentialError> {
    let fail = |source| CredentialError::File { action: "write", path: path.to_owned(), source };
    // A link to a file kept elsewhere stays a link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !dir.exists() {
        fs::create_dir_all(dir).map_err(fail)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(fail)?;
    }
    let lock = File::open(dir).map_err(fail)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|errno| fail(errno.into()))?;

    let mut file =
        AuthFile::read(&target)?.unwrap_or_else(|| AuthFile { path: target.clone(), content: Map::new() });
    let before = file.content.clone();
    let result = change(&mut file)?;
    if file.content == before && target.exists() {
        return Ok(result);
    }
    let mut text = serde_json::to_string_pretty(&file.content).map_err(|error| fail(error.into()))?;
    text.push('\n');
    // Made with mode 0600.
    let mut fresh = tempfile::Builder::new().prefix(".config.json.").tempfile_in(dir).map_err(fail)?;
    fresh.write_all(text.as_bytes()).and_then(|()| fresh.as_file().sync_all()).map_err(fail)?;
    fresh.persist(&target).map_err(|error| fail(error.error))?;
    lock.sync_all().map_err(fail)?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::credentials::{CredentialStore, KeptIn};
    use crate::registry::environment::Environment;

    fn store(dir: &Path) -> CredentialStore {
        let docker_config = Some(dir.join("docker/config.json"));
        CredentialStore::new(Environment { docker_config, ..Environment::default() })
    }

    #[test]
    fn what_is_kept_is_found_and_forgotten_and_nobody_else_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let path = dir.path().join("docker/config.json");
        let credentials = Credentials::password("me", "pass:word");
        assert_eq!(store.find("a.b", "c").unwrap(), None);
        assert_eq!(store.keep("a.b", &credentials).unwrap(), KeptIn::File(path.clone()));
        store.keep("docker.io", &Credentials::IdentityToken("t".into())).unwrap();
        assert_eq!(store.find("a.b", "c/d").unwrap(), Some(credentials));
        assert_eq!(store.find("docker.io", "x").unwrap(), Some(Credentials::IdentityToken("t".into())));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::read_to_string(&path).unwrap().contains("https://index.docker.io/v1/"));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "a temporary file stayed");
        assert!(store.forget("a.b").unwrap());
        assert!(!store.forget("a.b").unwrap());
        assert_eq!(store.find("a.b", "c").unwrap(), None);
    }

    #[test]
    fn the_rest_of_the_file_and_a_link_to_it_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("docker")).unwrap();
        let real = dir.path().join("real.json");
        fs::write(&real, r#"{"psFormat":"x","auths":{"old.x":{"auth":"YTpi"}}}"#).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("docker/config.json")).unwrap();
        store(dir.path()).keep("a.b", &Credentials::password("u", "p")).unwrap();
        let text = fs::read_to_string(&real).unwrap();
        assert!(text.contains("psFormat") && text.contains("old.x") && text.contains("a.b"), "{text}");
        assert!(fs::symlink_metadata(dir.path().join("docker/config.json")).unwrap().is_symlink());
    }

    #[test]
    fn the_most_specific_entry_wins_and_urls_are_understood() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        fs::write(
            &path,
            r#"{"auths":{"q.io":{"auth":"aG9zdDox"},"q.io/org":{"auth":"b3JnOjI="},
                "https://old.io/v2/":{"username":"o","password":"3"},"broken.io":{"auth":"?"},"empty.io":{}}}"#,
        )
        .unwrap();
        let store = CredentialStore::new(Environment { auth_files: vec![path], ..Environment::default() });
        assert_eq!(store.find("q.io", "org/x").unwrap(), Some(Credentials::password("org", "2")));
        assert_eq!(store.find("q.io", "organ/x").unwrap(), Some(Credentials::password("host", "1")));
        assert_eq!(store.find("old.io", "x").unwrap(), Some(Credentials::password("o", "3")));
        assert_eq!(store.find("empty.io", "x").unwrap(), None);
        assert!(store.find("broken.io", "x").unwrap_err().to_string().contains("broken.io"));
    }

    #[test]
    fn a_malformed_file_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, "{\"auths\": secret").unwrap();
        let environment = Environment { docker_config: Some(path.clone()), ..Environment::default() };
        let store = CredentialStore::new(environment);
        let error = store.keep("a.b", &Credentials::password("u", "p")).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"auths\": secret");
    }
}
