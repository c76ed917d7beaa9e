//! Where this user and this machine keep what a registry client must know: paths and proxies. Read from the
//! process's environment in one place, so that a test, or a program that serves several users, can say otherwise.

use std::path::PathBuf;

/// Paths of configuration and credentials, and proxies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// Docker's `config.json`: read, and written by login.
    pub docker_config: Option<PathBuf>,
    /// Credential files of the containers tools, the most important first; only read.
    pub auth_files: Vec<PathBuf>,
    /// `registries.conf`; the first that exists counts.
    pub registries_conf: Vec<PathBuf>,
    /// Directories of further `*.conf` files; all that exist are read, later files override.
    pub registries_conf_d: Vec<PathBuf>,
    /// Directories that have one directory `HOST[:PORT]` with certificates per registry.
    pub certificate_dirs: Vec<PathBuf>,
    /// `PATH` in which credential helpers are searched; `None` for the process's own.
    pub helper_path: Option<String>,
    /// Proxy for http URLs.
    pub http_proxy: Option<String>,
    /// Proxy for https URLs.
    pub https_proxy: Option<String>,
    /// Hosts that are reached without proxy, comma-separated.
    pub no_proxy: Option<String>,
}

impl Environment {
    /// Of this process: `DOCKER_CONFIG`, `REGISTRY_AUTH_FILE`, `CONTAINERS_REGISTRIES_CONF`, `XDG_RUNTIME_DIR`,
    /// `XDG_CONFIG_HOME`, `HOME`, `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY` and the last three in lower case.
    pub fn of_process() -> Self {
        Self::from_variables(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// As [`of_process`](Self::of_process), with the variables from `get`.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Self {
        let path = |name: &str| get(name).map(PathBuf::from);
        let either = |upper: &str| get(upper).or_else(|| get(&upper.to_lowercase()));
        let home = path("HOME");
        let in_home = |below: &str| home.as_ref().map(|home| home.join(below));
        let config_home = path("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
        let in_config = |below: &str| config_home.as_ref().map(|config| config.join(below));

        let docker_dir = path("DOCKER_CONFIG").or_else(|| in_home(".docker"));
        let mut auth_files: Vec<PathBuf> = path("REGISTRY_AUTH_FILE").into_iter().collect();
        auth_files.extend(path("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")));
        auth_files.extend(in_config("containers/auth.json"));

        let (registries_conf, registries_conf_d) = match path("CONTAINERS_REGISTRIES_CONF") {
            Some(only) => (vec![only], Vec::new()),
            None => {
                let mut files: Vec<PathBuf> = in_config("containers/registries.conf").into_iter().collect();
                files.push("/etc/containers/registries.conf".into());
                let mut dirs = vec![PathBuf::from("/etc/containers/registries.conf.d")];
                dirs.extend(in_config("containers/registries.conf.d"));
                (files, dirs)
            }
        };

        let mut certificate_dirs: Vec<PathBuf> = in_config("containers/certs.d").into_iter().collect();
        certificate_dirs.push("/etc/containers/certs.d".into());
        certificate_dirs.push("/etc/docker/certs.d".into());
        Self {
            docker_config: docker_dir.map(|dir| dir.join("config.json")),
            auth_files,
            registries_conf,
            registries_conf_d,
            certificate_dirs,
            helper_path: None,
            http_proxy: either("HTTP_PROXY"),
            https_proxy: either("HTTPS_PROXY"),
            no_proxy: either("NO_PROXY"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_say_where_things_are() {
        let environment = Environment::from_variables(|name| {
            let value = match name {
                "HOME" => "/home/u",
                "XDG_RUNTIME_DIR" => "/run/u",
                "REGISTRY_AUTH_FILE" => "/auth",
                "https_proxy" => "http://proxy:3128",
                _ => return None,
            };
            Some(value.to_owned())
        });
        assert_eq!(environment.docker_config, Some("/home/u/.docker/config.json".into()));
        assert_eq!(environment.https_proxy.as_deref(), Some("http://proxy:3128"));
        assert_eq!(environment.http_proxy, None);
        let auth: Vec<PathBuf> = vec![
            "/auth".into(),
            "/run/u/containers/auth.json".into(),
            "/home/u/.config/containers/auth.json".into(),
        ];
        assert_eq!(environment.auth_files, auth);
        assert_eq!(
            environment.registries_conf[0],
            PathBuf::from("/home/u/.config/containers/registries.conf")
        );
    }
}
