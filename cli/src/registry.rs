//! What all commands that speak to a registry share: options, a client, errors with a remedy.

use clap::{ArgAction, Args};
use layerfs_image::reference::{DEFAULT_REGISTRY, Reference};
use layerfs_image::registry::{Client, ClientOptions, RegistryError};

use crate::exit::{Hinted, Usage};

/// Options of commands that speak to a registry.
#[derive(Debug, Args)]
pub(crate) struct RegistryArgs {
    /// Require https, and a certificate that is trusted; without it, the registry may also be reached by http.
    /// This machine itself needs neither
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, default_value_t = true, num_args = 0..=1,
        default_missing_value = "true", require_equals = true)]
    tls_verify: bool,
}

impl RegistryArgs {
    /// A client for `registry`, with `change` made to its options.
    pub(crate) fn client(
        &self,
        registry: &str,
        change: impl FnOnce(&mut ClientOptions),
    ) -> anyhow::Result<Client> {
        let mut options = ClientOptions::default();
        if !self.tls_verify {
            options.insecure.push(registry.to_owned());
        }
        change(&mut options);
        Client::new(options).map_err(hinted)
    }
}

/// The error with what can be done about it.
pub(crate) fn hinted(error: RegistryError) -> anyhow::Error {
    match error.hint() {
        Some(hint) => {
            let message = error.to_string();
            anyhow::Error::new(error).context(Hinted { message, hint })
        }
        None => error.into(),
    }
}

/// The registry that a user means by `server`: a host, or a URL as docker keeps it; without one the default.
pub(crate) fn server(server: Option<&str>) -> anyhow::Result<String> {
    let Some(server) = server else { return Ok(DEFAULT_REGISTRY.to_owned()) };
    let host = server.split_once("://").map_or(server, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or(host);
    // What may stand before a repository.
    let known = Reference::parse(&format!("{host}/x")).ok().filter(|reference| reference.repository() == "x");
    match known {
        Some(reference) => Ok(reference.registry().to_owned()),
        None if host == DEFAULT_REGISTRY || host == "index.docker.io" => Ok(DEFAULT_REGISTRY.to_owned()),
        None => Err(Usage(format!("{server:?} is no registry: it has the form HOST[:PORT]")).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_hosts() {
        for (text, host) in [
            ("localhost:5000", "localhost:5000"),
            ("https://a.b/v2/", "a.b"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("docker.io", "docker.io"),
        ] {
            assert_eq!(server(Some(text)).unwrap(), host);
        }
        assert_eq!(server(None).unwrap(), "docker.io");
        for bad in ["", "a b", "plain", "https://", "-x.y"] {
            assert!(server(Some(bad)).is_err(), "{bad:?}");
        }
    }
}
