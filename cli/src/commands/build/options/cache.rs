//! `--cache-from` and `--cache-to`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use layerfs_image::reference::Reference;
use layerfs_image::transfer::{CacheForm, PushCompression};

use super::{fields, wrong};
use crate::commands::registry::chosen_compression;

/// Where steps may be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum CacheSource {
    Local(PathBuf),
    Registry(Reference),
}

/// Where steps are kept besides the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum CachePlace {
    Local(PathBuf),
    Registry(Reference, CacheForm),
    /// In the image itself.
    Inline,
}

/// `--cache-to`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct CacheTarget {
    pub(in super::super) place: CachePlace,
    /// Only the steps of the result's own layers.
    pub(in super::super) only_result: bool,
    /// Failing to write it is no failure of the build.
    pub(in super::super) ignore_error: bool,
}

/// A text without any `=` is one or several names at registries.
fn names(text: &str) -> Option<Vec<&str>> {
    (!text.contains('=')).then(|| text.split(',').collect())
}

fn reference(option: &str, text: &str) -> anyhow::Result<Reference> {
    match Reference::parse_without_tag(text) {
        Ok(reference) => Ok(reference.or_latest()),
        Err(error) => Err(wrong(format!("{option} {text:?}: {error}"))),
    }
}

pub(super) fn sources(texts: &[String]) -> anyhow::Result<Vec<CacheSource>> {
    const OPTION: &str = "--cache-from";
    let mut sources = Vec::new();
    for text in texts {
        if let Some(names) = names(text) {
            for name in names {
                sources.push(CacheSource::Registry(reference(OPTION, name)?));
            }
            continue;
        }
        let (mut kind, mut place) = (String::new(), Place::default());
        for (name, value) in fields(OPTION, text)? {
            match name.as_str() {
                "type" => kind = value,
                "src" | "ref" => place.set(OPTION, text, &name, value)?,
                _ => {
                    return Err(wrong(format!(
                        "{OPTION} {text:?}: {name} is not known; there are type, src and ref"
                    )));
                }
            }
        }
        sources.push(match kind.as_str() {
            "local" => CacheSource::Local(place.take(OPTION, text, "src", "DIRECTORY")?.into()),
            "registry" => {
                CacheSource::Registry(reference(OPTION, &place.take(OPTION, text, "ref", "NAME")?)?)
            }
            "inline" => {
                return Err(wrong(format!(
                    "{OPTION} {text:?}: the steps that an image carries are found by type=registry,ref=IMAGE"
                )));
            }
            other => return Err(wrong(format!("{OPTION} type={other}: there are local and registry"))),
        });
    }
    Ok(sources)
}

/// Those that are asked for by the build argument that docker has for it are among them.
pub(super) fn targets(
    texts: &[String],
    arguments: &BTreeMap<String, String>,
) -> anyhow::Result<Vec<CacheTarget>> {
    let mut targets = Vec::new();
    for text in texts {
        match names(text) {
            Some(names) => {
                for name in names {
                    targets.push(target(&format!("type=registry,ref={name}"))?);
                }
            }
            None => targets.push(target(text)?),
        }
    }
    let asks = arguments.get("BUILDKIT_INLINE_CACHE").is_some_and(|value| value == "1" || value == "true");
    if asks && targets.iter().all(|target| target.place != CachePlace::Inline) {
        targets.push(CacheTarget { place: CachePlace::Inline, only_result: true, ignore_error: false });
    }
    Ok(targets)
}

fn target(text: &str) -> anyhow::Result<CacheTarget> {
    const OPTION: &str = "--cache-to";
    let bad = |name: &str, words: &str, value: &str| {
        wrong(format!("{OPTION} {text:?}: {name} is {words}, not {value:?}"))
    };
    let truth =
        |name: &str, value: &str| value.parse::<bool>().map_err(|_| bad(name, "true or false", value));
    let (mut kind, mut place, mut mode) = (String::new(), Place::default(), None);
    let (mut as_image, mut oci_types, mut ignore_error) = (None, true, false);
    let (mut compression, mut level) = (None, None);
    // What only a registry's cache has.
    let mut of_registry = Vec::new();
    for (name, value) in fields(OPTION, text)? {
        match name.as_str() {
            "type" => kind = value,
            "dest" | "ref" => place.set(OPTION, text, &name, value)?,
            "mode" => {
                mode = Some(match value.as_str() {
                    "min" => true,
                    "max" => false,
                    _ => return Err(bad(&name, "min or max", &value)),
                });
            }
            "ignore-error" => ignore_error = truth(&name, &value)?,
            "image-manifest" => as_image = Some(truth(&name, &value)?),
            "oci-mediatypes" => oci_types = truth(&name, &value)?,
            "compression" if matches!(value.as_str(), "gzip" | "zstd" | "uncompressed") => {
                compression = Some(value);
            }
            "compression" => return Err(bad(&name, "gzip, zstd or uncompressed", &value)),
            "compression-level" => {
                level = Some(value.parse::<u8>().map_err(|_| bad(&name, "a number", &value))?);
            }
            "force-compression" if !truth(&name, &value)? => {}
            "force-compression" => {
                return Err(wrong(format!(
                    "{OPTION} {text:?}: layers that are compressed already stay as they are; leave force-compression out"
                )));
            }
            _ => {
                return Err(wrong(format!(
                    "{OPTION} {text:?}: {name} is not known; there are type, dest, ref, mode, ignore-error, \
                     image-manifest, oci-mediatypes, compression and compression-level"
                )));
            }
        }
        if matches!(name.as_str(), "image-manifest" | "oci-mediatypes" | "compression" | "compression-level")
        {
            of_registry.push(name);
        }
    }
    if let Some(name) = of_registry.first().filter(|_| kind != "registry") {
        return Err(wrong(format!("{OPTION} {text:?}: {name} is for type=registry")));
    }
    let only_result = mode.unwrap_or(false);
    let place = match kind.as_str() {
        "local" => CachePlace::Local(place.take(OPTION, text, "dest", "DIRECTORY")?.into()),
        "inline" if mode == Some(false) => {
            return Err(wrong(format!(
                "{OPTION} {text:?}: an image carries the steps of its own layers (mode=min)"
            )));
        }
        "inline" => CachePlace::Inline,
        "registry" => {
            let reference = reference(OPTION, &place.take(OPTION, text, "ref", "NAME")?)?;
            if reference.digest().is_some() {
                return Err(wrong(format!(
                    "{OPTION} {text:?}: what is pushed has a tag for a name, no digest"
                )));
            }
            if as_image == Some(true) && !oci_types {
                return Err(wrong(format!(
                    "{OPTION} {text:?}: with image-manifest=true, media types are OCI's; leave oci-mediatypes=false out"
                )));
            }
            let compression = match compression {
                Some(format) => chosen_compression(&format, level)?,
                None => match level {
                    Some(_) => chosen_compression("gzip", level)?,
                    None => PushCompression::default(),
                },
            };
            let as_image = as_image.unwrap_or(oci_types);
            CachePlace::Registry(reference, CacheForm { as_image, docker_types: !oci_types, compression })
        }
        other => {
            return Err(wrong(format!("{OPTION} type={other}: there are local, registry and inline")));
        }
    };
    Ok(CacheTarget { place, only_result: only_result || kind == "inline", ignore_error })
}

/// `src=`, `dest=` or `ref=`, of which one fits the type.
#[derive(Debug, Default)]
struct Place(Option<(String, String)>);

impl Place {
    fn set(&mut self, option: &str, text: &str, name: &str, value: String) -> anyhow::Result<()> {
        match self.0.replace((name.to_owned(), value)) {
            None => Ok(()),
            Some((other, _)) => Err(wrong(format!("{option} {text:?}: both {other} and {name} are given"))),
        }
    }

    fn take(self, option: &str, text: &str, name: &str, what: &str) -> anyhow::Result<String> {
        match self.0 {
            Some((given, value)) if given == name && !value.is_empty() => Ok(value),
            _ => Err(wrong(format!("{option} {text:?}: where? write {name}={what}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_have_their_meaning() {
        let sources = |text: &str| sources(&[text.to_owned()]);
        let shown = |text: &str| match sources(text).unwrap().remove(0) {
            CacheSource::Registry(reference) => reference.to_string(),
            CacheSource::Local(path) => path.display().to_string(),
        };
        assert_eq!(shown("type=local,src=d"), "d");
        assert_eq!(shown("h:1/a"), "h:1/a:latest");
        assert_eq!(shown("type=registry,ref=h:1/a:x"), "h:1/a:x");
        assert_eq!(sources("h/a,h/b").unwrap().len(), 2);
        for text in [
            "type=gha",
            "type=local",
            "type=local,ref=x",
            "type=local,dest=x",
            "type=registry,src=a",
            "type=inline",
            "A B",
            "type=registry,ref=a,ref=b",
            "",
            "src=x",
        ] {
            assert!(sources(text).is_err(), "{text}");
        }
    }

    #[test]
    fn targets_have_their_meaning() {
        let none = BTreeMap::new();
        let one = |text: &str| targets(&[text.to_owned()], &none).unwrap().remove(0);
        let form = |text: &str| match one(text).place {
            CachePlace::Registry(_, form) => (form.as_image, form.docker_types, form.compression),
            other => panic!("{other:?}"),
        };
        let default = PushCompression::default();
        assert_eq!(form("h:1/a"), (true, false, default));
        assert_eq!(form("type=registry,ref=h/a,image-manifest=false"), (false, false, default));
        assert_eq!(form("type=registry,ref=h/a,oci-mediatypes=false"), (false, true, default));
        let zstd = "type=registry,ref=h/a,compression=zstd,compression-level=7,force-compression=false";
        assert_eq!(form(zstd), (true, false, PushCompression::Zstd(7)));
        let target = one("type=local,dest=d,mode=min,ignore-error=true");
        assert_eq!(target.place, CachePlace::Local("d".into()));
        assert!(target.only_result && target.ignore_error);
        assert!(!one("h/a").only_result && one("type=inline").only_result);
        for text in [
            "type=registry",
            "type=local,src=x",
            "type=local,dest=x,compression=gzip",
            "type=inline,mode=max",
            "type=s3",
            "type=registry,ref=a,mode=all",
            "type=registry,ref=a,image-manifest=true,oci-mediatypes=false",
            "type=registry,ref=a,force-compression=true",
            "type=registry,ref=a,compression=estargz",
            "type=registry,ref=a,compression=gzip,compression-level=10",
            "type=registry,ref=a,ignore-error=perhaps",
            &format!("type=registry,ref=a@sha256:{}", "0".repeat(64)),
        ] {
            assert!(targets(&[text.to_owned()], &none).is_err(), "{text}");
        }
        let asked = BTreeMap::from([("BUILDKIT_INLINE_CACHE".to_owned(), "1".to_owned())]);
        let both = targets(&["type=inline".to_owned()], &asked).unwrap();
        assert_eq!((both.len(), &both[0].place), (1, &CachePlace::Inline));
        assert_eq!(targets(&[], &asked).unwrap(), both);
    }
}
