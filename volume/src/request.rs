//! `-v`, `--mount` and `--tmpfs` as values. Nothing is looked up: what depends on the disk is decided by who mounts.

mod fields;
mod mount;
mod size;
mod volume;

pub use mount::parse_mount;
pub use volume::{parse_tmpfs, parse_volume};

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// A mount that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where in the container: absolute, without `.`, `..` and double slashes.
    pub target: String,
    /// Nothing can be written through it.
    pub read_only: bool,
    /// What is mounted.
    pub source: Source,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file or directory of the host.
    Bind(Bind),
    /// A volume.
    Volume(VolumeSource),
    /// A filesystem in memory.
    Tmpfs(Tmpfs),
    /// The content of an image, read-only.
    Image {
        /// Its name.
        image: String,
        /// The part of it that is mounted.
        subpath: Option<String>,
    },
}

/// A file or directory of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// The path as written: absolute, or relative to the caller's directory.
    pub path: PathBuf,
    /// A missing directory is made (`-v`), or is an error (`--mount`).
    pub create: bool,
    /// How mounts made later pass between host and container.
    pub propagation: Option<Propagation>,
    /// What of the mounts below it comes along.
    pub recursive: Recursive,
    /// Labels for SELinux were asked for (`z` shared, `Z` private).
    pub relabel: Option<char>,
}

/// Mount propagation, as mount(8) has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// `private`
    Private,
    /// `rprivate`
    RecursivePrivate,
    /// `shared`
    Shared,
    /// `rshared`
    RecursiveShared,
    /// `slave`
    Slave,
    /// `rslave`
    RecursiveSlave,
}

impl Propagation {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "private" => Self::Private,
            "rprivate" => Self::RecursivePrivate,
            "shared" => Self::Shared,
            "rshared" => Self::RecursiveShared,
            "slave" => Self::Slave,
            "rslave" => Self::RecursiveSlave,
            _ => return None,
        })
    }

    /// Its word, as in the options of an OCI mount.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::RecursivePrivate => "rprivate",
            Self::Shared => "shared",
            Self::RecursiveShared => "rshared",
            Self::Slave => "slave",
            Self::RecursiveSlave => "rslave",
        }
    }
}

/// What of the mounts below a bind comes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recursive {
    /// All, and read-only where the bind is, as far as the kernel can.
    #[default]
    Enabled,
    /// None.
    Disabled,
    /// All, and they stay writable.
    Writable,
    /// All, and they must be read-only.
    ReadOnly,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VolumeSource {
    /// Its name; `None` for a new one without.
    pub name: Option<String>,
    /// Nothing is copied into it.
    pub no_copy: bool,
    /// The part of it that is mounted.
    pub subpath: Option<String>,
    /// `volume-driver`
    pub driver: Option<String>,
    /// `volume-label`
    pub labels: BTreeMap<String, String>,
    /// `volume-opt`
    pub options: BTreeMap<String, String>,
}

/// A filesystem in memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tmpfs {
    /// Words of mount(8), as given.
    pub options: Vec<String>,
}

/// A clean absolute path of the container.
fn target(text: &str, whole: &str) -> Result<String> {
    if !text.starts_with('/') {
        return Err(Error::Invalid(format!("invalid mount path: '{text}' mount path must be absolute")));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        return Err(Error::Invalid(format!(
            "invalid volume specification: '{whole}': invalid specification: destination can't be '/'"
        )));
    }
    Ok(format!("/{}", parts.join("/")))
}

/// A part of a volume or image: relative, and not out of it.
fn subpath(text: &str) -> Result<String> {
    let leaves = text.split('/').any(|part| part == "..");
    if text.starts_with('/') || leaves || text.is_empty() {
        return Err(Error::Invalid(format!("subpath must be a relative path within the volume: {text:?}")));
    }
    Ok(text.to_owned())
}
