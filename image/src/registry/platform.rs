//! Which image of an index is meant for which machine.
//!
//! Rules: containerd's `platforms.Only`, which docker uses: names are normalised, and a machine also takes what
//! older machines of its family take, the nearest first.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::Descriptor;
use thiserror::Error;

/// Go's words for the architectures of Linux.
const ARCHITECTURES: [&str; 15] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mipsle", "mips64", "mips64le", "ppc64", "ppc64le",
    "riscv64", "s390x", "sparc64", "wasm",
];

/// Operating system, architecture, variant of it, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// `linux`
    pub os: String,
    /// `amd64`, `arm64`, `arm`...
    pub architecture: String,
    /// `v7` of `arm`, `v3` of `amd64`; empty for the plain one.
    pub variant: String,
}

/// A text that is no platform.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no platform of the form OS/ARCHITECTURE[/VARIANT], such as linux/arm64 or linux/arm/v7")]
pub struct PlatformError(String);

impl Platform {
    /// Of these words, normalised.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let os = os.to_ascii_lowercase();
        let variant = variant.to_ascii_lowercase();
        let (architecture, variant) = match (architecture.to_ascii_lowercase().as_str(), variant.as_str()) {
            ("amd64" | "x86_64" | "x86-64", "v1") => ("amd64".into(), String::new()),
            ("amd64" | "x86_64" | "x86-64", _) => ("amd64".into(), variant),
            ("386" | "i386" | "i486" | "i586" | "i686" | "x86", _) => ("386".into(), String::new()),
            ("arm64" | "aarch64", "8" | "v8" | "v8.0") => ("arm64".into(), String::new()),
            ("arm64" | "aarch64", _) => ("arm64".into(), variant),
            ("armhf", _) => ("arm".into(), "v7".into()),
            ("armel", _) => ("arm".into(), "v6".into()),
            ("arm", "" | "7") => ("arm".into(), "v7".into()),
            ("arm", "5" | "6" | "8") => ("arm".into(), format!("v{variant}")),
            (other, _) => (other.to_owned(), variant),
        };
        Self { os, architecture, variant }
    }

    /// Of this machine.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            "mips64" if cfg!(target_endian = "little") => "mips64le",
            other => other,
        };
        Self::new(std::env::consts::OS, architecture, "")
    }

    /// Whether it runs what was made for another one.
    pub fn runs(&self, other: &Self) -> bool {
        self.candidates().contains(other)
    }

    /// What this platform runs, the best first.
    fn candidates(&self) -> Vec<Self> {
        let number: u8 = self.variant.strip_prefix('v').and_then(|number| number.parse().ok()).unwrap_or(0);
        let at = |architecture: &str, variant: String| Self {
            architecture: architecture.into(),
            variant,
            ..self.clone()
        };
        let mut candidates = vec![self.clone()];
        match self.architecture.as_str() {
            "amd64" => {
                candidates.extend((2..number).rev().map(|n| at("amd64", format!("v{n}"))));
                if number > 1 {
                    candidates.push(at("amd64", String::new()));
                }
                candidates.push(at("386", String::new()));
            }
            "arm" => candidates.extend((5..number).rev().map(|n| at("arm", format!("v{n}")))),
            "arm64" => {
                if !self.variant.is_empty() {
                    candidates.push(at("arm64", String::new()));
                }
                candidates.extend((5..=8).rev().map(|n| at("arm", format!("v{n}"))));
            }
            _ => {}
        }
        candidates
    }
}

/// The manifest for `wanted`. `Err` has the platforms that there are.
///
/// # Errors
/// When none fits.
pub fn choose<'a>(manifests: &'a [Descriptor], wanted: &Platform) -> Result<&'a Descriptor, Vec<Platform>> {
    let of = |descriptor: &Descriptor| {
        descriptor.platform().as_ref().map(|platform| {
            let variant = platform.variant().as_deref().unwrap_or_default();
            Platform::new(&platform.os().to_string(), &platform.architecture().to_string(), variant)
        })
    };
    let known: Vec<(Option<Platform>, &Descriptor)> = manifests.iter().map(|one| (of(one), one)).collect();
    for candidate in wanted.candidates() {
        if let Some((_, found)) = known.iter().find(|(platform, _)| platform.as_ref() == Some(&candidate)) {
            return Ok(found);
        }
    }
    match &known[..] {
        // An index that says nothing leaves no choice.
        [(None, only)] => Ok(only),
        // Attestations are of platform unknown/unknown.
        _ => Err(known
            .into_iter()
            .filter_map(|(platform, _)| platform)
            .filter(|one| one.os != "unknown")
            .collect()),
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    /// `OS/ARCHITECTURE[/VARIANT]`; one word alone is an architecture, or `linux`.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let words: Vec<&str> = text.split('/').collect();
        let fine = |word: &&str| {
            !word.is_empty()
                && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        };
        if !words.iter().all(fine) {
            return Err(PlatformError(text.to_owned()));
        }
        match words[..] {
            ["linux"] => Ok(Self { os: "linux".into(), ..Self::host() }),
            [architecture] => {
                let platform = Self::new("linux", architecture, "");
                // A word alone may be anything: docker refuses what it does not know, and so a typing error is told.
                match ARCHITECTURES.contains(&platform.architecture.as_str()) {
                    true => Ok(platform),
                    false => Err(PlatformError(text.to_owned())),
                }
            }
            [os, architecture] => Ok(Self::new(os, architecture, "")),
            [os, architecture, variant] => Ok(Self::new(os, architecture, variant)),
            _ => Err(PlatformError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[&str]) -> Vec<Descriptor> {
        let descriptor = |(at, platform): (usize, &&str)| {
            let mut json = serde_json::json!({
                "mediaType": crate::media_type::OCI_MANIFEST,
                "digest": crate::digest::Digest::of([at as u8]).to_string(),
                "size": at,
            });
            if let [os, architecture, rest @ ..] = &platform.split('/').collect::<Vec<_>>()[..] {
                json["platform"] = serde_json::json!({ "os": os, "architecture": architecture });
                if let [variant] = rest {
                    json["platform"]["variant"] = (*variant).into();
                }
            }
            serde_json::from_value(json).unwrap()
        };
        platforms.iter().enumerate().map(descriptor).collect()
    }

    #[test]
    fn the_nearest_platform_is_chosen() {
        let table: [(&[&str], &str, Option<u64>); 14] = [
            (&["linux/arm64/v8", "linux/amd64"], "linux/amd64", Some(1)),
            (&["linux/arm64/v8", "linux/amd64"], "linux/arm64", Some(0)),
            (&["linux/arm64/v8", "linux/amd64"], "aarch64", Some(0)),
            (&["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7", Some(1)),
            (&["linux/arm/v7"], "linux/arm/v6", None),
            (&["linux/arm"], "linux/arm/v7", Some(0)),
            (&["linux/arm/v6", "linux/arm/v7"], "linux/arm64", Some(1)),
            (&["linux/amd64", "linux/amd64/v3"], "linux/amd64/v3", Some(1)),
            (&["linux/amd64", "linux/amd64/v4"], "linux/amd64/v3", Some(0)),
            (&["linux/386"], "linux/amd64", Some(0)),
            (&["linux/386", "linux/amd64"], "linux/amd64", Some(1)),
            (&["windows/amd64"], "linux/amd64", None),
            (&[""], "linux/amd64", Some(0)),
            (&["", ""], "linux/amd64", None),
        ];
        for (platforms, wanted, expected) in table {
            let index = index(platforms);
            let chosen = choose(&index, &wanted.parse().unwrap()).ok().map(Descriptor::size);
            assert_eq!(chosen, expected, "{wanted} of {platforms:?}");
        }
        let none =
            choose(&index(&["linux/s390x", "unknown/unknown"]), &Platform::new("linux", "amd64", "")).err();
        assert_eq!(none, Some(vec![Platform::new("linux", "s390x", "")]));
    }

    #[test]
    fn platforms_are_read_and_shown() {
        for (text, shown) in [
            ("linux/x86_64", "linux/amd64"),
            ("LINUX/arm64/v8", "linux/arm64"),
            ("arm", "linux/arm/v7"),
            ("windows/amd64", "windows/amd64"),
            ("linux/ppc64le", "linux/ppc64le"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), shown);
        }
        for bad in ["", "/", "linux/", "a/b/c/d", "a b", "linux//v1", "nonsense", "amd46"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad:?}");
        }
        assert_eq!(Platform::host().os, "linux");
    }
}
