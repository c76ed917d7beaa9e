//! Login and logout: credentials are tried before they are kept.

use ureq::http::header;

use super::answer::error_of;
use super::auth::challenge::Challenge;
use super::auth::{basic, fetch_token};
use super::client::Client;
use super::credentials::{Credentials, KeptIn};
use super::error::{ErrorKind, RegistryError};
use super::transport::Outgoing;

/// A login that worked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedIn {
    /// Where the credentials are now.
    pub kept: KeptIn,
    /// False when the registry lets everybody in, so that nothing is proved.
    pub checked: bool,
}

impl Client {
    /// Tries `credentials` at `registry`, and keeps them if they are taken. Where the registry's token server gives
    /// a refresh token for them, that is kept in place of the password.
    ///
    /// # Errors
    /// Refused credentials; a registry that is not reached; a file or helper that does not take them.
    pub fn login(&self, registry: &str, credentials: &Credentials) -> Result<LoggedIn, RegistryError> {
        let subject = format!("login to {registry}");
        let fail = |kind| RegistryError::new(&subject, kind);
        let service = self.registry(registry)?;
        let site = service.site(&subject)?;
        let mut kept = credentials.clone();
        let bearer = site.challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service, scope } => Some((realm, service, scope)),
            Challenge::Basic => None,
        });
        let proof = match (bearer, credentials) {
            (Some((realm, name, scope)), _) => {
                let scopes: Vec<String> = scope.iter().cloned().collect();
                let name = name.as_deref();
                let token =
                    fetch_token(self.transport(), &site, realm, name, &scopes, Some(credentials), true)
                        .map_err(fail)?;
                if let Some(refresh) = token.refresh_token.clone().filter(|refresh| !refresh.is_empty()) {
                    kept = Credentials::IdentityToken(refresh);
                }
                Some(token.value())
            }
            (None, Credentials::Password { username, password }) => Some(basic(username, password)),
            (None, Credentials::IdentityToken(_)) => None,
        };
        let checked = !site.challenges.is_empty();
        if checked {
            let mut outgoing = Outgoing::get(site.base.with_path("/v2/"));
            outgoing.insecure = site.insecure;
            outgoing.authorization = proof;
            outgoing.headers.push((header::ACCEPT, "application/json".to_owned()));
            let answer = self.transport().send(&mut outgoing);
            let answer = answer.map_err(|failure| fail(failure.into_kind(site.base.authority())))?;
            if answer.status != 200 {
                return Err(fail(error_of(answer, true)));
            }
        }
        let kept = self
            .credential_store()
            .keep(registry, &kept)
            .map_err(|error| fail(ErrorKind::Credentials(error)))?;
        Ok(LoggedIn { kept, checked })
    }

    /// Deletes what login has kept. False when there was nothing. The registry is not asked.
    ///
    /// # Errors
    /// A file or helper that does not let go.
    pub fn logout(&self, registry: &str) -> Result<bool, RegistryError> {
        self.credential_store()
            .forget(registry)
            .map_err(|error| RegistryError::new(format!("logout from {registry}"), error.into()))
    }
}
