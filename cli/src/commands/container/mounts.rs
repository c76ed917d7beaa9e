//! `-v`, `--mount` and `--tmpfs` as values.

use std::path::{Component, Path, PathBuf};

use super::config::MountSpec;
use super::options::CreateOptions;
use crate::exit::Usage;

fn wrong(words: impl Into<String>) -> Usage {
    Usage(words.into())
}

/// All mounts of a command line, those of nested places after what they are in.
pub(super) fn parse(options: &CreateOptions) -> Result<Vec<MountSpec>, Usage> {
    let mut mounts = Vec::new();
    for text in &options.volume {
        let mount = volume(text, mounts.len())?;
        mounts.push(mount);
    }
    for text in &options.mount {
        let mount = long_form(text, mounts.len())?;
        mounts.push(mount);
    }
    for text in &options.tmpfs {
        let (target, options) = text.split_once(':').unwrap_or((text, ""));
        let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
        mounts.push(MountSpec::Tmpfs { target: target_of(target)?, options });
    }
    for (at, mount) in mounts.iter().enumerate() {
        if mounts.iter().take(at).any(|other| Path::new(other.target()) == Path::new(mount.target())) {
            return Err(wrong(format!("Duplicate mount point: {}", mount.target())));
        }
    }
    mounts.sort_by_key(|mount| Path::new(mount.target()).components().count());
    Ok(mounts)
}

/// A volume without a name.
pub(super) fn anonymous(target: &str, number: usize) -> MountSpec {
    MountSpec::Volume { target: target.to_owned(), directory: number.to_string() }
}

fn target_of(text: &str) -> Result<String, Usage> {
    let path = Path::new(text);
    if !path.is_absolute()
        || path == Path::new("/")
        || path.components().any(|part| part == Component::ParentDir)
    {
        return Err(wrong(format!(
            "invalid mount path: '{text}': it must be absolute, not '/', and without '..'"
        )));
    }
    Ok(text.to_owned())
}

fn volume(text: &str, number: usize) -> Result<MountSpec, Usage> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, words) = match parts[..] {
        [target] => return Ok(anonymous(&target_of(target)?, number)),
        [source, target] => (source, target, ""),
        [source, target, words] => (source, target, words),
        _ => return Err(wrong(format!("invalid volume specification: '{text}'"))),
    };
    let mut read_only = false;
    let mut options = Vec::new();
    for word in words.split(',').filter(|word| !word.is_empty()) {
        match word {
            "ro" => read_only = true,
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" | "nocopy" => {}
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => {
                options.push(word.to_owned())
            }
            other => return Err(wrong(format!("invalid mode: {other}"))),
        }
    }
    bind(source, target, read_only, options, true)
}

/// As `-v` does it, a missing source is made (by `start`); `--mount` refuses it.
fn bind(
    source: &str,
    target: &str,
    read_only: bool,
    mut options: Vec<String>,
    makes_source: bool,
) -> Result<MountSpec, Usage> {
    let path = match source.starts_with('/') {
        true => PathBuf::from(source),
        false if source.starts_with('.') => std::path::absolute(source)
            .map_err(|error| wrong(format!("invalid volume specification: {source}: {error}")))?,
        false => {
            return Err(wrong(format!(
                "volume {source:?}: volumes with names are not supported yet; name a directory by its absolute path"
            )));
        }
    };
    if makes_source {
        options.push(MAKE_SOURCE.to_owned());
    }
    Ok(MountSpec::Bind { source: path, target: target_of(target)?, read_only, options })
}

/// Among the options of a bind: its source is made where it is missing.
pub(super) const MAKE_SOURCE: &str = "x-make-source";

fn long_form(text: &str, number: usize) -> Result<MountSpec, Usage> {
    let (mut kind, mut source, mut target, mut read_only) = ("volume", None, None, false);
    let mut options = Vec::new();
    for field in text.split(',') {
        let (name, value) = match field.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (field, None),
        };
        match (name, value) {
            ("type", Some(value)) => kind = value,
            ("source" | "src", Some(value)) => source = Some(value),
            ("target" | "dst" | "destination", Some(value)) => target = Some(value),
            ("readonly" | "ro", None | Some("true" | "1")) => read_only = true,
            ("readonly" | "ro", Some("false" | "0")) => read_only = false,
            ("bind-propagation", Some(value)) => options.push(value.to_owned()),
            ("bind-nonrecursive", None | Some("true")) => options.push("bind".into()),
            ("tmpfs-size", Some(value)) => options.push(format!("size={value}")),
            ("tmpfs-mode", Some(value)) => options.push(format!("mode={value}")),
            ("consistency", Some(_)) => {}
            _ => {
                return Err(wrong(format!(
                    "invalid argument \"{text}\" for --mount: unexpected key '{name}'"
                )));
            }
        }
    }
    let target = target
        .ok_or_else(|| wrong(format!("invalid argument \"{text}\" for --mount: target is required")))?;
    match (kind, source) {
        ("bind", Some(source)) => bind(source, target, read_only, options, false),
        ("bind", None) => Err(wrong(format!("invalid argument \"{text}\" for --mount: source is required"))),
        ("tmpfs", None) => {
            if read_only {
                options.push("ro".into());
            }
            Ok(MountSpec::Tmpfs { target: target_of(target)?, options })
        }
        ("tmpfs", Some(_)) => Err(wrong("--mount type=tmpfs has no source")),
        ("volume", None) => Ok(anonymous(&target_of(target)?, number)),
        ("volume", Some(name)) => {
            Err(wrong(format!("volume {name:?}: volumes with names are not supported yet")))
        }
        (other, _) => Err(wrong(format!("--mount type={other}: there are bind, tmpfs and volume"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_mean_the_same() {
        let short = volume("/srv:/data:ro,rslave", 0).unwrap();
        let long = long_form("type=bind,src=/srv,dst=/data,readonly,bind-propagation=rslave", 0).unwrap();
        let MountSpec::Bind { source, target, read_only, options } = &short else { panic!() };
        assert_eq!((source.as_path(), target.as_str(), *read_only), (Path::new("/srv"), "/data", true));
        assert_eq!(options, &["rslave", MAKE_SOURCE]);
        let MountSpec::Bind { options, .. } = long else { panic!() };
        assert_eq!(options, ["rslave"]);
        assert!(
            matches!(volume("/data", 3).unwrap(), MountSpec::Volume { directory, .. } if directory == "3")
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in ["", "a:b:c:d", "/a:b", "/a:/", "/a:/b:what", "name:/data", "/a:/b/../c"] {
            assert!(volume(text, 0).is_err(), "{text}");
        }
        for text in [
            "type=bind,dst=/x",
            "type=tmpfs,src=/a,dst=/x",
            "type=image,dst=/x",
            "what=1,dst=/x",
            "type=bind,src=/a",
        ] {
            assert!(long_form(text, 0).is_err(), "{text}");
        }
        let options =
            CreateOptions { tmpfs: vec!["/run".into(), "/run:size=1m".into()], ..CreateOptions::default() };
        assert!(parse(&options).unwrap_err().to_string().contains("Duplicate"));
    }
}
