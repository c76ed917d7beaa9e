//! Who the user is to a registry: docker's `config.json`, the containers tools' `auth.json`, credential helpers.
//!
//! Sources: docker's documentation of `docker login` and of credential stores; containers-auth.json(5).

mod file;
mod helper;

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::environment::Environment;
use file::AuthFile;
use helper::Helper;

/// Under this name docker keeps the credentials of the default registry.
const DEFAULT_SERVER: &str = "https://index.docker.io/v1/";

/// Credentials that could not be read, kept or deleted.
#[derive(Debug, Error)]
pub enum CredentialError {
    /// The file is not readable or not writable.
    #[error("{action} credentials file {path:?}")]
    File {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is no JSON of this form.
    #[error("credentials file {path:?} is malformed: {reason}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong; never the content.
        reason: String,
    },
    /// The helper is not there or failed.
    #[error("credential helper {program}: {reason}")]
    Helper {
        /// Name of the program.
        program: String,
        /// Its words.
        reason: String,
    },
    /// No place to write to.
    #[error("there is no home directory to keep credentials in: set DOCKER_CONFIG")]
    NoHome,
}

/// What proves the user's identity.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Name and password.
    Password {
        /// Name of the account.
        username: String,
        /// Password, or an access token in its place.
        password: String,
    },
    /// A refresh token, as docker keeps it under `identitytoken`.
    IdentityToken(String),
}

impl Credentials {
    /// Name and password.
    pub fn password(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self::Password { username: username.into(), password: password.into() }
    }
}

/// Secrets are not shown, not even in logs.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => write!(f, "Password({username:?}, ...)"),
            Self::IdentityToken(_) => f.write_str("IdentityToken(...)"),
        }
    }
}

/// Where credentials are looked up and kept.
#[derive(Debug, Clone)]
pub struct CredentialStore {
    environment: Environment,
}

/// Where login put something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeptIn {
    /// In this file, readable by its owner but not encrypted.
    File(PathBuf),
    /// With this helper.
    Helper(String),
}

impl CredentialStore {
    /// With the paths of `environment`.
    pub fn new(environment: Environment) -> Self {
        Self { environment }
    }

    fn helper<'a>(&'a self, name: &'a str) -> Helper<'a> {
        Helper { name, path: self.environment.helper_path.as_deref() }
    }

    /// Credentials for `repository` of `registry`: of the most specific entry of the first file that has one.
    ///
    /// # Errors
    /// A file or helper that is there and cannot be used. Missing credentials are `None`.
    pub fn find(&self, registry: &str, repository: &str) -> Result<Option<Credentials>, CredentialError> {
        let server = server_of(registry);
        let mut paths: Vec<PathBuf> = self.environment.auth_files.clone();
        // An explicit REGISTRY_AUTH_FILE stands first; docker's file comes before the containers tools' defaults.
        let explicit = usize::from(!paths.is_empty() && !is_default(&paths[0]));
        paths.splice(explicit..explicit, self.environment.docker_config.clone());
        for path in paths {
            let Some(file) = AuthFile::read(&path)? else { continue };
            if let Some(name) = file.helper(&server)
                && let Some(found) = self.helper(name).get(&server)?
            {
                return Ok(Some(found));
            }
            if let Some(found) = file.credentials(&server, registry, repository)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Keeps `credentials` for `registry` in docker's file, or with the helper that it names.
    ///
    /// # Errors
    /// When neither can be written.
    pub fn keep(&self, registry: &str, credentials: &Credentials) -> Result<KeptIn, CredentialError> {
        let path = self.environment.docker_config.clone().ok_or(CredentialError::NoHome)?;
        let server = server_of(registry);
        file::change(&path, |file| {
            if let Some(name) = file.helper(&server).map(str::to_owned) {
                self.helper(&name).store(&server, credentials)?;
                file.set(&server, None);
                return Ok(KeptIn::Helper(name));
            }
            file.set(&server, Some(credentials));
            Ok(KeptIn::File(path.clone()))
        })
    }

    /// Deletes what is kept for `registry` in docker's file and with its helper. False when there was nothing.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn forget(&self, registry: &str) -> Result<bool, CredentialError> {
        let path = self.environment.docker_config.clone().ok_or(CredentialError::NoHome)?;
        let Some(file) = AuthFile::read(&path)? else { return Ok(false) };
        let server = server_of(registry);
        let helped = match file.helper(&server) {
            Some(name) => {
                let known = self.helper(name).get(&server)?.is_some();
                if known {
                    self.helper(name).erase(&server)?;
                }
                known
            }
            None => false,
        };
        if !file.has(&server, registry) {
            return Ok(helped);
        }
        file::change(&path, |file| {
            file.remove(&server, registry);
            Ok(true)
        })
    }

    /// The account that docker's file knows for `registry`, to propose it at login.
    pub fn username(&self, registry: &str) -> Option<String> {
        match self.find(registry, "").ok()?? {
            Credentials::Password { username, .. } => Some(username),
            Credentials::IdentityToken(_) => None,
        }
    }
}

/// The name by which docker keeps the credentials of `registry`.
fn server_of(registry: &str) -> String {
    if registry == crate::reference::DEFAULT_REGISTRY {
        DEFAULT_SERVER.to_owned()
    } else {
        registry.to_owned()
    }
}

fn is_default(path: &std::path::Path) -> bool {
    path.ends_with("containers/auth.json")
}
