//! `registries.conf`: mirrors, other locations, insecure and blocked registries.
//!
//! Source: containers-registries.conf(5), version 2. Search lists and short names are not used: a name without a
//! registry is docker's.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Deserialize;
use thiserror::Error;

use super::environment::Environment;

/// Configuration that is there and cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Not readable.
    #[error("read {path:?}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not TOML, or not of this form.
    #[error("{path:?} is not a registries.conf of version 2: {reason}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with its place.
        reason: String,
    },
    /// A certificate or key that is none.
    #[error("certificate {path:?}: {reason}")]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A proxy variable that is no URL.
    #[error("proxy {url:?}: {reason}")]
    Proxy {
        /// As given.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A mirror that is none.
    #[error("registry mirror {0:?} is not of the form HOST[:PORT][/PATH] or http[s]://HOST[:PORT][/PATH]")]
    Mirror(String),
}

/// What `registries.conf` and its drop-ins say.
#[derive(Debug, Clone, Default)]
pub struct RegistriesConf {
    registries: Vec<Registry>,
}

/// Which pulls a mirror may answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullFrom {
    /// Any.
    #[default]
    All,
    /// Those by digest, where a mirror cannot cheat.
    DigestOnly,
    /// Those by tag.
    TagOnly,
}

/// Where a repository is found: one entry per place, in the order in which they are tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// `HOST[:PORT]`
    pub host: String,
    /// The repository there.
    pub repository: String,
    /// Plain http, or certificates that prove nothing, are accepted.
    pub insecure: bool,
    /// Which pulls it answers.
    pub pull_from: PullFrom,
    /// False for the registry itself.
    pub is_mirror: bool,
}

#[derive(Debug, Clone, Deserialize)]
struct File {
    #[serde(default)]
    registry: Vec<Registry>,
    /// Version 1 of the format had tables here; `unqualified-search-registries` of version 2 is not used.
    registries: Option<toml::Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Registry {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: PullFrom,
}

impl RegistriesConf {
    /// Reads the main file and the drop-ins. Files that are missing say nothing.
    ///
    /// # Errors
    /// When one is there and is unreadable or malformed.
    pub fn load(environment: &Environment) -> Result<Self, ConfigError> {
        let mut conf = Self::default();
        for path in &environment.registries_conf {
            if let Some(text) = read(path)? {
                conf.add(path, &text)?;
                break;
            }
        }
        for dir in &environment.registries_conf_d {
            for path in drop_ins(dir)? {
                if let Some(text) = read(&path)? {
                    conf.add(&path, &text)?;
                }
            }
        }
        Ok(conf)
    }

    /// Adds what `text` says; entries of a prefix that is already known are replaced.
    ///
    /// # Errors
    /// When it is malformed; `path` is named then.
    pub fn add(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let fail = |reason: String| ConfigError::Parse { path: path.to_owned(), reason };
        let file: File = toml::from_str(text).map_err(|error| fail(error.to_string().trim().to_owned()))?;
        if file.registries.is_some() {
            return Err(fail("[registries] is of version 1".to_owned()));
        }
        for mut registry in file.registry {
            if registry.prefix.is_empty() {
                registry.prefix = registry.location.clone();
            }
            if registry.prefix.is_empty() {
                return Err(fail("a [[registry]] has neither prefix nor location".to_owned()));
            }
            if registry.location.is_empty() && !registry.prefix.starts_with("*.") {
                registry.location = registry.prefix.clone();
            }
            self.registries.retain(|known| known.prefix != registry.prefix);
            self.registries.push(registry);
        }
        Ok(())
    }

    /// Where `repository` of `registry` is found, mirrors first; `None` when the registry is blocked.
    pub fn places(&self, registry: &str, repository: &str) -> Option<Vec<Place>> {
        let name = format!("{registry}/{repository}");
        let itself = |host: &str, repository: &str, insecure| Place {
            host: host.to_owned(),
            repository: repository.to_owned(),
            insecure,
            pull_from: PullFrom::All,
            is_mirror: false,
        };
        let fitting = self.registries.iter().filter(|known| matched(&known.prefix, &name).is_some());
        let Some(entry) = fitting.max_by_key(|known| known.prefix.trim_start_matches("*.").len()) else {
            return Some(vec![itself(registry, repository, false)]);
        };
        if entry.blocked {
            return None;
        }
        // What follows the prefix is kept; under a wildcard without location the name is not changed.
        let rest = &name[matched(&entry.prefix, &name).unwrap_or(0)..];
        let mut places: Vec<Place> = Vec::new();
        for mirror in &entry.mirror {
            let Some((host, repository)) = split(&format!("{}{rest}", mirror.location)) else { continue };
            let pull_from =
                if entry.mirror_by_digest_only { PullFrom::DigestOnly } else { mirror.pull_from_mirror };
            places.push(Place { host, repository, insecure: mirror.insecure, pull_from, is_mirror: true });
        }
        let moved =
            if entry.location.is_empty() { name.clone() } else { format!("{}{rest}", entry.location) };
        match split(&moved) {
            Some((host, repository)) => places.push(itself(&host, &repository, entry.insecure)),
            None => places.push(itself(registry, repository, entry.insecure)),
        }
        Some(places)
    }

    /// Whether all of `registry` is insecure, for requests that concern no repository; `None` when it is blocked.
    pub fn is_insecure(&self, registry: &str) -> Option<bool> {
        match self.registries.iter().find(|known| matched(&known.prefix, registry).is_some()) {
            Some(known) if known.blocked => None,
            found => Some(found.is_some_and(|known| known.insecure)),
        }
    }
}

/// How many bytes of `name` the prefix stands for, if it fits at a border of components. A wildcard stands for the
/// host alone.
fn matched(prefix: &str, name: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = name.split('/').next().unwrap_or(name);
        let bare = host.split(':').next().unwrap_or(host);
        return (bare.len() > domain.len() && bare.ends_with(domain)).then_some(host.len());
    }
    let rest = name.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(prefix.len())
}

fn split(name: &str) -> Option<(String, String)> {
    let (host, repository) = name.split_once('/')?;
    (!host.is_empty() && !repository.is_empty()).then(|| (host.to_owned(), repository.to_owned()))
}

fn read(path: &Path) -> Result<Option<String>, ConfigError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
    }
}

fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let fail = |source| ConfigError::Read { path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(fail(source)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|extension| extension == "conf") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(text: &str) -> RegistriesConf {
        let mut conf = RegistriesConf::default();
        conf.add(Path::new("registries.conf"), text).unwrap();
        conf
    }

    fn hosts(conf: &RegistriesConf, registry: &str, repository: &str) -> Vec<String> {
        let places = conf.places(registry, repository).unwrap();
        places.iter().map(|place| format!("{}/{}", place.host, place.repository)).collect()
    }

    #[test]
    fn mirrors_come_first_and_keep_the_rest_of_the_name() {
        let conf = conf(
            r#"
            unqualified-search-registries = ["docker.io"]
            [[registry]]
            prefix = "docker.io"
            location = "docker.io"
            [[registry.mirror]]
            location = "mirror.local:5000/hub"
            insecure = true
            pull-from-mirror = "digest-only"
            [[registry]]
            prefix = "docker.io/special"
            location = "other.example/moved"
            [[registry]]
            location = "bad.example"
            blocked = true
            [[registry]]
            prefix = "*.wild.example"
            insecure = true
            "#,
        );
        assert_eq!(
            hosts(&conf, "docker.io", "library/a"),
            ["mirror.local:5000/hub/library/a", "docker.io/library/a"]
        );
        let places = conf.places("docker.io", "library/a").unwrap();
        assert_eq!(places[0].pull_from, PullFrom::DigestOnly);
        assert!(places[0].insecure && places[0].is_mirror && !places[1].insecure && !places[1].is_mirror);
        assert_eq!(hosts(&conf, "docker.io", "special/b"), ["other.example/moved/b"]);
        assert_eq!(hosts(&conf, "docker.io", "specially/b").len(), 2);
        assert_eq!(conf.places("bad.example", "a"), None);
        assert_eq!(conf.is_insecure("bad.example"), None);
        let wild = conf.places("x.wild.example:5000", "a/b").unwrap();
        assert!(wild[0].insecure && wild[0].host == "x.wild.example:5000" && wild[0].repository == "a/b");
        assert!(!conf.places("wild.example", "a").unwrap()[0].insecure);
        assert_eq!(hosts(&conf, "quay.io", "a"), ["quay.io/a"]);
    }

    #[test]
    fn a_later_file_replaces_a_prefix() {
        let mut conf = conf("[[registry]]\nlocation = \"a.b\"\nblocked = true");
        conf.add(Path::new("x"), "[[registry]]\nlocation = \"a.b\"").unwrap();
        assert!(conf.places("a.b", "c").is_some());
    }

    #[test]
    fn what_is_no_configuration_is_told_with_its_file() {
        for text in ["[[registry]]", "x = ", "[registries.search]\nregistries = []", "registry = 1"] {
            let error = RegistriesConf::default().add(Path::new("/etc/r.conf"), text).unwrap_err();
            assert!(error.to_string().contains("/etc/r.conf"), "{error}");
        }
    }
}
