//! `--mount KEY=VALUE,...`

use std::collections::BTreeMap;

use super::{
    Bind, Mount, Propagation, Recursive, Source, Tmpfs, VolumeSource, fields, size, subpath, target,
};
use crate::error::{Error, Result};
use crate::store::check_name;

/// What was said, before it is known for which type.
#[derive(Debug, Default)]
struct Said {
    kind: Option<String>,
    source: Option<String>,
    target: Option<String>,
    read_only: bool,
    /// Options that belong to one type: the type, and the key.
    special: Vec<(&'static str, String)>,
    bind: BindWords,
    volume: VolumeSource,
    image_subpath: Option<String>,
    tmpfs: Vec<String>,
}

#[derive(Debug, Default)]
struct BindWords {
    propagation: Option<Propagation>,
    recursive: Recursive,
    create: bool,
    relabel: Option<char>,
}

/// Reads one `--mount`.
///
/// # Errors
/// docker's words for what is wrong with it.
pub fn parse_mount(text: &str) -> Result<Mount> {
    let wrong =
        |why: String| Error::Invalid(format!("invalid argument {text:?} for \"--mount\" flag: {why}"));
    let fields =
        fields::split(text).ok_or_else(|| wrong("a quote is not closed, or is within a field".into()))?;
    let mut said = Said::default();
    for field in &fields {
        said.field(field).map_err(wrong)?;
    }
    said.finish(text).map_err(|error| match error {
        Error::Invalid(why) => wrong(why),
        error => error,
    })
}

fn flag(key: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("1" | "true" | "True" | "TRUE" | "t" | "T") => Ok(true),
        Some("0" | "false" | "False" | "FALSE" | "f" | "F") => Ok(false),
        Some(value) => Err(format!("invalid value for {key}: {value}")),
    }
}

impl Said {
    fn field(&mut self, field: &str) -> Result<(), String> {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_ascii_lowercase(), Some(value)),
            None => (field.to_ascii_lowercase(), None),
        };
        let key = key.as_str();
        for kind in ["bind", "volume", "tmpfs", "image"] {
            if key.strip_prefix(kind).is_some_and(|rest| rest.starts_with('-')) {
                self.special.push((kind, key.to_owned()));
            }
        }
        // Those that mean something alone.
        match key {
            "readonly" | "ro" => return flag(key, value).map(|v| self.read_only = v),
            "volume-nocopy" => return flag(key, value).map(|v| self.volume.no_copy = v),
            "bind-create-src" => return flag(key, value).map(|v| self.bind.create = v),
            "bind-nonrecursive" => {
                let alone = flag(key, value)?;
                self.bind.recursive = if alone { Recursive::Disabled } else { Recursive::Enabled };
                return Ok(());
            }
            _ => {}
        }
        let Some(value) = value else {
            return Err(format!("invalid field '{field}' must be a key=value pair"));
        };
        let own = || Some(value.to_owned());
        match key {
            "type" => self.kind = Some(value.to_ascii_lowercase()),
            "source" | "src" => self.source = own(),
            "target" | "dst" | "destination" => self.target = own(),
            // Other systems have caches to speak of.
            "consistency" => {}
            "bind-propagation" => {
                let propagation = Propagation::parse(&value.to_ascii_lowercase());
                self.bind.propagation =
                    Some(propagation.ok_or_else(|| format!("invalid propagation: {value}"))?);
            }
            "bind-recursive" => {
                self.bind.recursive = match value {
                    "enabled" => Recursive::Enabled,
                    "disabled" => Recursive::Disabled,
                    "writable" => Recursive::Writable,
                    "readonly" => Recursive::ReadOnly,
                    _ => {
                        return Err(format!(
                            "invalid value for bind-recursive: {value} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")"
                        ));
                    }
                };
            }
            "relabel" => {
                self.bind.relabel = Some(match value {
                    "shared" => 'z',
                    "private" => 'Z',
                    _ => {
                        return Err(format!(
                            "invalid value for relabel: {value} (must be shared or private)"
                        ));
                    }
                });
            }
            "volume-driver" => self.volume.driver = own(),
            "volume-subpath" => self.volume.subpath = own(),
            "image-subpath" => self.image_subpath = own(),
            "volume-label" => pair(&mut self.volume.labels, value),
            "volume-opt" => pair(&mut self.volume.options, value),
            "tmpfs-size" => {
                let bytes = size::bytes(value).ok_or_else(|| format!("invalid value for {key}: {value}"))?;
                self.tmpfs.push(format!("size={bytes}"));
            }
            "tmpfs-mode" => {
                let mode = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777);
                let mode = mode.ok_or_else(|| format!("invalid value for {key}: {value}"))?;
                self.tmpfs.push(format!("mode={mode:o}"));
            }
            _ => return Err(format!("unexpected key '{key}' in '{field}'")),
        }
        Ok(())
    }

    fn finish(self, text: &str) -> Result<Mount> {
        let kind = self.kind.as_deref().unwrap_or("volume");
        if let Some((other, _)) = self.special.iter().find(|(special, _)| *special != kind) {
            return Err(Error::Invalid(format!("cannot mix '{other}-*' options with mount type '{kind}'")));
        }
        let wanted = self.target.as_deref().filter(|target| !target.is_empty());
        let target = target(wanted.ok_or_else(|| Error::Invalid("target is required".into()))?, text)?;
        let given = self.source.as_deref().filter(|source| !source.is_empty());
        let needed =
            || given.ok_or_else(|| Error::Invalid(format!("source is required for mount type '{kind}'")));
        let mut read_only = self.read_only;
        let source = match kind {
            "bind" => {
                let path = needed()?;
                if self.bind.recursive == Recursive::ReadOnly && !read_only {
                    return Err(Error::Invalid(
                        "option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction"
                            .into(),
                    ));
                }
                Source::Bind(Bind {
                    path: path.into(),
                    create: self.bind.create,
                    propagation: self.bind.propagation,
                    recursive: self.bind.recursive,
                    relabel: self.bind.relabel,
                })
            }
            "volume" => {
                if let Some(name) = given {
                    check_name(name)?;
                }
                let subpath = self.volume.subpath.as_deref().map(subpath).transpose()?;
                Source::Volume(VolumeSource { name: given.map(str::to_owned), subpath, ..self.volume })
            }
            "tmpfs" => {
                if given.is_some() {
                    return Err(Error::Invalid("a mount of type tmpfs has no source".into()));
                }
                let mut options = self.tmpfs;
                if read_only {
                    options.push("ro".into());
                }
                Source::Tmpfs(Tmpfs { options })
            }
            "image" => {
                read_only = true;
                let subpath = self.image_subpath.as_deref().map(subpath).transpose()?;
                Source::Image { image: needed()?.to_owned(), subpath }
            }
            "npipe" | "cluster" => {
                return Err(Error::Invalid(format!("mount type '{kind}' is not supported on this system")));
            }
            _ => {
                return Err(Error::Invalid(format!(
                    "invalid mount type {kind:?}: there are bind, volume, tmpfs and image"
                )));
            }
        };
        Ok(Mount { target, read_only, source })
    }
}

fn pair(map: &mut BTreeMap<String, String>, text: &str) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    map.insert(key.to_owned(), value.to_owned());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_makes_sense() {
        let parse = |text: &str| parse_mount(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let bind = |path: &str| Bind {
            path: path.into(),
            create: false,
            propagation: None,
            recursive: Recursive::Enabled,
            relabel: None,
        };
        let at = |target: &str, read_only, source| Mount { target: target.into(), read_only, source };
        assert_eq!(parse("type=bind,src=/a,dst=/b"), at("/b", false, Source::Bind(bind("/a"))));
        assert_eq!(
            parse("type=bind,source=/a,destination=/b,ro,bind-propagation=rslave,bind-recursive=readonly"),
            at(
                "/b",
                true,
                Source::Bind(Bind {
                    propagation: Some(Propagation::RecursiveSlave),
                    recursive: Recursive::ReadOnly,
                    ..bind("/a")
                })
            )
        );
        assert_eq!(
            parse("\"type=bind\",\"src=/with,comma\",target=/b,readonly=false"),
            at("/b", false, Source::Bind(bind("/with,comma")))
        );
        assert_eq!(parse("target=/data"), at("/data", false, Source::Volume(VolumeSource::default())));
        assert_eq!(
            parse(
                "TYPE=volume,src=name,target=/data,volume-nocopy,volume-label=a=b,volume-opt=type=tmpfs,volume-subpath=x/y"
            ),
            at(
                "/data",
                false,
                Source::Volume(VolumeSource {
                    name: Some("name".into()),
                    no_copy: true,
                    subpath: Some("x/y".into()),
                    driver: None,
                    labels: [("a".to_owned(), "b".to_owned())].into(),
                    options: [("type".to_owned(), "tmpfs".to_owned())].into(),
                })
            )
        );
        assert_eq!(
            parse("type=tmpfs,dst=/t,tmpfs-size=64m,tmpfs-mode=0700"),
            at(
                "/t",
                false,
                Source::Tmpfs(Tmpfs { options: vec!["size=67108864".into(), "mode=700".into()] })
            )
        );
        assert_eq!(
            parse("type=image,src=debian,dst=/i"),
            at("/i", true, Source::Image { image: "debian".into(), subpath: None })
        );
    }

    #[test]
    fn what_does_not() {
        for (text, words) in [
            ("", "invalid field '' must be a key=value pair"),
            ("type=bind,src=/a", "target is required"),
            ("type=bind,dst=/a", "source is required for mount type 'bind'"),
            ("type=bind,src=/a,dst=b", "mount path must be absolute"),
            ("type=bind,src=/a,dst=/b,x", "invalid field 'x' must be a key=value pair"),
            ("type=bind,src=/a,dst=/b,x=y", "unexpected key 'x' in 'x=y'"),
            ("type=bind,src=/a,dst=/b,readonly=maybe", "invalid value for readonly: maybe"),
            ("type=bind,src=/a,dst=/b,bind-propagation=up", "invalid propagation: up"),
            ("type=bind,src=/a,dst=/b,bind-recursive=readonly", "requires 'readonly'"),
            ("type=bind,src=/a,dst=/b,volume-nocopy", "cannot mix 'volume-*' options with mount type 'bind'"),
            ("type=volume,dst=/b,tmpfs-size=1", "cannot mix 'tmpfs-*' options with mount type 'volume'"),
            ("type=tmpfs,dst=/b,tmpfs-size=x", "invalid value for tmpfs-size: x"),
            ("type=tmpfs,dst=/b,tmpfs-mode=x", "invalid value for tmpfs-mode: x"),
            ("type=tmpfs,src=/a,dst=/b", "has no source"),
            ("type=volume,dst=/b,volume-subpath=../x", "subpath must be a relative path"),
            ("type=npipe,src=/a,dst=/b", "not supported on this system"),
            ("type=thing,dst=/b", "invalid mount type \"thing\""),
            ("type=bind,\"src=/a,dst=/b", "a quote is not closed"),
        ] {
            let error = parse_mount(text).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.starts_with("invalid argument") && error.contains(words), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_gives_a_mount_or_words(text in "(type=|src=|dst=|ro|,|\"|/|\\.\\.|bind|volume|tmpfs|=|x){0,12}") {
            if let Ok(mount) = parse_mount(&text) {
                prop_assert!(mount.target.starts_with('/') && mount.target.len() > 1);
            }
        }
    }
}
