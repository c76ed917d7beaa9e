//! `-v [SOURCE:]TARGET[:OPTIONS]` and `--tmpfs TARGET[:OPTIONS]`.

use super::{Bind, Mount, Propagation, Recursive, Source, Tmpfs, VolumeSource, target};
use crate::error::{Error, Result};
use crate::store::check_name;

/// Reads one `-v`.
///
/// # Errors
/// docker's words for what is wrong with it.
pub fn parse_volume(text: &str) -> Result<Mount> {
    let bad = || Error::Invalid(format!("invalid volume specification: '{text}'"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, path, words) = match parts.as_slice() {
        [""] => return Err(Error::Invalid("invalid empty volume spec".into())),
        [path] => (None, *path, ""),
        // A volume without a name, with options: the path comes first where the second part is no path.
        [path, words] if path.starts_with('/') && !words.is_empty() && are_options(words) => {
            (None, *path, *words)
        }
        [source, path] => (Some(*source), *path, ""),
        [source, path, words] => (Some(*source), *path, *words),
        _ => return Err(bad()),
    };
    if source == Some("") || path.is_empty() {
        return Err(bad());
    }
    let target = target(path, text)?;
    let is_path = |source: &&str| source.starts_with(['/', '.', '~']);
    let options = Words::parse(words)?;
    let source = if let Some(path) = source.filter(is_path) {
        if options.no_copy {
            return Err(Error::Invalid(format!("invalid mode: {words}: nocopy is for volumes")));
        }
        Source::Bind(Bind {
            path: path.into(),
            create: true,
            propagation: options.propagation,
            recursive: if options.not_recursive { Recursive::Disabled } else { Recursive::Enabled },
            relabel: options.relabel,
        })
    } else {
        if options.propagation.is_some() {
            return Err(Error::Invalid(format!("invalid mode: {words}: propagation is for host paths")));
        }
        if let Some(name) = source {
            check_name(name)?;
        }
        Source::Volume(VolumeSource {
            name: source.map(str::to_owned),
            no_copy: options.no_copy,
            ..VolumeSource::default()
        })
    };
    Ok(Mount { target, read_only: options.read_only.unwrap_or(false), source })
}

/// Reads one `--tmpfs`.
///
/// # Errors
/// docker's words for what is wrong with it.
pub fn parse_tmpfs(text: &str) -> Result<Mount> {
    let (path, words) = text.split_once(':').unwrap_or((text, ""));
    let target = target(path, text)?;
    let mut options: Vec<String> = Vec::new();
    for word in words.split(',').filter(|word| !word.is_empty()) {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let fits = match name {
            "rw" | "ro" | "exec" | "noexec" | "suid" | "nosuid" | "dev" | "nodev" | "sync" | "async"
            | "atime" | "noatime" | "diratime" | "nodiratime" | "relatime" | "strictatime" | "dirsync"
            | "tmpcopyup" | "notmpcopyup" => value.is_empty(),
            "size" => super::size::bytes(value.trim_end_matches('%')).is_some(),
            "mode" => u32::from_str_radix(value, 8).is_ok_and(|mode| mode <= 0o7777),
            "uid" | "gid" => value.parse::<u32>().is_ok(),
            "nr_inodes" | "nr_blocks" => super::size::bytes(value).is_some(),
            "mpol" | "huge" => !value.is_empty(),
            _ => return Err(Error::Invalid(format!("invalid tmpfs option [{word:?}]"))),
        };
        if !fits {
            return Err(Error::Invalid(format!("invalid tmpfs option [{word:?}]")));
        }
        options.push(word.to_owned());
    }
    let read_only = options.iter().any(|word| word == "ro");
    Ok(Mount { target, read_only, source: Source::Tmpfs(Tmpfs { options }) })
}

fn are_options(words: &str) -> bool {
    Words::parse(words).is_ok()
}

/// The options of `-v`.
#[derive(Debug, Default)]
struct Words {
    read_only: Option<bool>,
    propagation: Option<Propagation>,
    relabel: Option<char>,
    no_copy: bool,
    not_recursive: bool,
}

impl Words {
    /// Each kind at most once.
    fn parse(words: &str) -> Result<Self> {
        let bad = || Error::Invalid(format!("invalid mode: {words}"));
        let mut found = Self::default();
        let mut consistency = false;
        let mut copy = false;
        for word in words.split(',') {
            let fresh = match word {
                "" if words.is_empty() => true,
                "ro" | "rw" => found.read_only.replace(word == "ro").is_none(),
                "z" => found.relabel.replace('z').is_none(),
                "Z" => found.relabel.replace('Z').is_none(),
                "nocopy" => {
                    found.no_copy = true;
                    !std::mem::replace(&mut copy, true)
                }
                "copy" => !std::mem::replace(&mut copy, true),
                "bind" => !std::mem::replace(&mut found.not_recursive, true),
                "rbind" => !found.not_recursive,
                "consistent" | "cached" | "delegated" | "default" => {
                    !std::mem::replace(&mut consistency, true)
                }
                word => match Propagation::parse(word) {
                    Some(propagation) => found.propagation.replace(propagation).is_none(),
                    None => false,
                },
            };
            if !fresh {
                return Err(bad());
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> String {
        match parse_volume(text) {
            Ok(mount) => {
                let source = match &mount.source {
                    Source::Bind(bind) => format!(
                        "bind {}{}{}{}",
                        bind.path.display(),
                        bind.propagation.map_or(String::new(), |p| format!(" {}", p.word())),
                        bind.relabel.map_or(String::new(), |c| format!(" {c}")),
                        if bind.recursive == Recursive::Disabled { " alone" } else { "" },
                    ),
                    Source::Volume(volume) => format!(
                        "volume {}{}",
                        volume.name.as_deref().unwrap_or("-"),
                        if volume.no_copy { " nocopy" } else { "" }
                    ),
                    other => format!("{other:?}"),
                };
                format!("{source} on {}{}", mount.target, if mount.read_only { " ro" } else { "" })
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn forms_of_v() {
        for (text, expected) in [
            ("/data", "volume - on /data"),
            ("/data:ro", "volume - on /data ro"),
            ("name:/data", "volume name on /data"),
            ("name:/data:ro", "volume name on /data ro"),
            ("name:/data:nocopy,ro", "volume name nocopy on /data ro"),
            ("/src:/dst", "bind /src on /dst"),
            ("/src:/dst/", "bind /src on /dst"),
            ("/src://a/../dst/.", "bind /src on /dst"),
            ("./here:/dst", "bind ./here on /dst"),
            ("..:/dst", "bind .. on /dst"),
            ("/src:/dst:rw", "bind /src on /dst"),
            ("/src:/dst:ro,z,rslave", "bind /src rslave z on /dst ro"),
            ("/src:/dst:Z,cached", "bind /src Z on /dst"),
            ("/src:/dst:bind", "bind /src alone on /dst"),
            ("", "invalid empty volume spec"),
            (":", "invalid volume specification: ':'"),
            (":/dst", "invalid volume specification: ':/dst'"),
            ("/src:", "invalid volume specification: '/src:'"),
            ("/src:dst", "invalid mount path: 'dst' mount path must be absolute"),
            ("dst", "invalid mount path: 'dst' mount path must be absolute"),
            (
                "/src:/",
                "invalid volume specification: '/src:/': invalid specification: destination can't be '/'",
            ),
            ("/src:/dst:x", "invalid mode: x"),
            ("/src:/dst:ro,rw", "invalid mode: ro,rw"),
            ("/src:/dst:ro,", "invalid mode: ro,"),
            ("/src:/dst:shared,slave", "invalid mode: shared,slave"),
            ("/src:/dst:nocopy", "invalid mode: nocopy: nocopy is for volumes"),
            ("name:/dst:shared", "invalid mode: shared: propagation is for host paths"),
            ("a:/b:ro:c", "invalid volume specification: 'a:/b:ro:c'"),
            (
                "a/b:/dst",
                "create a/b: \"a/b\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path",
            ),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn forms_of_tmpfs() {
        let options = |text: &str| {
            parse_tmpfs(text).map_err(|e| e.to_string()).map(|mount| match mount.source {
                Source::Tmpfs(tmpfs) => (mount.target, mount.read_only, tmpfs.options.join(" ")),
                other => panic!("{other:?}"),
            })
        };
        assert_eq!(options("/run"), Ok(("/run".into(), false, String::new())));
        assert_eq!(
            options("/run:ro,size=64m,mode=1777,exec"),
            Ok(("/run".into(), true, "ro size=64m mode=1777 exec".into()))
        );
        assert_eq!(options("/run:sise=1"), Err("invalid tmpfs option [\"sise=1\"]".into()));
        assert_eq!(options("/run:mode=9"), Err("invalid tmpfs option [\"mode=9\"]".into()));
        assert!(options("run").is_err());
    }

    proptest! {
        #[test]
        fn any_text_gives_a_mount_or_words(text in "[a-zA-Z0-9:/.,_~-]{0,24}") {
            if let Ok(mount) = parse_volume(&text) {
                prop_assert!(mount.target.starts_with('/') && mount.target.len() > 1);
                prop_assert!(!mount.target.split('/').any(|part| part == ".."));
            }
            prop_assert!(parse_tmpfs(&text).is_ok_and(|m| m.target.len() > 1) || parse_tmpfs(&text).is_err());
        }
    }
}
