//! `--mount` of a step.

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// Something of the context, a stage or an image.
    Bind {
        /// Where from; the build context without it.
        from: Option<String>,
        /// Path there.
        source: String,
        /// What is written is thrown away; without it nothing can be written.
        writable: bool,
    },
    /// A directory that later builds find again.
    Cache {
        /// Its name.
        id: String,
        /// What it holds at first: a stage, an image, a context.
        from: Option<String>,
        /// Path there.
        source: String,
        /// Who else may use it.
        sharing: Sharing,
        /// Permission bits of its root.
        mode: u32,
        /// Owner of its root.
        uid: u32,
        /// Group of its root.
        gid: u32,
        /// It can only be read.
        read_only: bool,
    },
    /// Memory.
    Tmpfs {
        /// Bytes; 0 without limit.
        size: u64,
    },
    /// A secret that `--secret` gives, as a file or a variable.
    Secret {
        /// Its name.
        id: String,
        /// The build fails without it.
        required: bool,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// The variable that has it; a file too only where a target is given.
        variable: Option<String>,
        /// Whether there is a file.
        as_file: bool,
    },
    /// The socket of an SSH agent.
    Ssh {
        /// Which of `--ssh`.
        id: String,
        /// The build fails without it.
        required: bool,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// Who may use a cache directory at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Everybody.
    Shared,
    /// Everybody has another one.
    Private,
    /// One after the other.
    Locked,
}

/// A mount of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunMount {
    /// Path in the container; relative to the working directory. Empty where there is none.
    pub target: String,
    /// What.
    pub kind: MountKind,
}

/// Reads `type=...,target=...`.
///
/// # Errors
/// What is not understood, in words.
pub fn parse_mount(text: &str) -> Result<RunMount, String> {
    let mut fields: Vec<(String, Option<String>)> = Vec::new();
    for field in csv(text)? {
        let (name, value) = match field.split_once('=') {
            Some((name, value)) => (name.to_lowercase(), Some(value.to_owned())),
            None => (field.to_lowercase(), None),
        };
        fields.push((name, value));
    }
    let mut take = |names: &[&str]| -> Option<Option<String>> {
        let at = fields.iter().rposition(|(name, _)| names.contains(&name.as_str()))?;
        let value = fields.remove(at).1;
        fields.retain(|(name, _)| !names.contains(&name.as_str()));
        Some(value)
    };
    let kind = take(&["type"]).flatten().unwrap_or_else(|| "bind".into());
    let value = |name: &str, found: Option<Option<String>>| match found {
        None => Ok(None),
        Some(Some(value)) if !value.is_empty() => Ok(Some(value)),
        Some(_) => Err(format!("mount: {name} needs a value")),
    };
    let switch = |name: &str, found: Option<Option<String>>| match found {
        None => Ok(None),
        Some(None) => Ok(Some(true)),
        Some(Some(value)) => match value.to_lowercase().as_str() {
            "true" | "1" | "t" => Ok(Some(true)),
            "false" | "0" | "f" => Ok(Some(false)),
            other => Err(format!("mount: {name} is true or false, not {other:?}")),
        },
    };
    let number = |name: &str, found: Option<Option<String>>, radix: u32| match value(name, found)? {
        None => Ok(None),
        Some(text) => u32::from_str_radix(text.trim_start_matches("0o"), radix)
            .map(Some)
            .map_err(|_| format!("mount: {name} {text:?} is no number")),
    };
    let target = value("target", take(&["target", "dst", "destination"]))?;
    let mount = match kind.as_str() {
        "bind" => {
            let read_only = switch("readonly", take(&["readonly", "ro"]))?;
            let writable = switch("readwrite", take(&["readwrite", "rw"]))?;
            MountKind::Bind {
                from: value("from", take(&["from"]))?,
                source: value("source", take(&["source", "src"]))?.unwrap_or_else(|| "/".into()),
                writable: writable.unwrap_or(false) && !read_only.unwrap_or(false)
                    || read_only == Some(false),
            }
        }
        "cache" => {
            let read_only = switch("readonly", take(&["readonly", "ro"]))?;
            let writable = switch("readwrite", take(&["readwrite", "rw"]))?;
            let target = target.as_deref().unwrap_or_default();
            MountKind::Cache {
                id: value("id", take(&["id"]))?.unwrap_or_else(|| crate::pattern::clean(target)),
                from: value("from", take(&["from"]))?,
                source: value("source", take(&["source", "src"]))?.unwrap_or_else(|| "/".into()),
                sharing: match value("sharing", take(&["sharing"]))?.as_deref() {
                    None | Some("shared") => Sharing::Shared,
                    Some("private") => Sharing::Private,
                    Some("locked") => Sharing::Locked,
                    Some(other) => {
                        return Err(format!("mount: sharing is shared, private or locked, not {other:?}"));
                    }
                },
                mode: number("mode", take(&["mode"]), 8)?.unwrap_or(0o755),
                uid: number("uid", take(&["uid"]), 10)?.unwrap_or(0),
                gid: number("gid", take(&["gid"]), 10)?.unwrap_or(0),
                read_only: read_only.unwrap_or(false) || writable == Some(false),
            }
        }
        "tmpfs" => MountKind::Tmpfs {
            size: match value("size", take(&["size"]))? {
                None => 0,
                Some(text) => size(&text).ok_or_else(|| format!("mount: size {text:?}: write 64m or 1g"))?,
            },
        },
        "secret" => {
            let variable = match take(&["env"]) {
                None => None,
                Some(None) => Some(String::new()),
                Some(name) => name,
            };
            let id = value("id", take(&["id", "source", "src"]))?;
            let id = match (id, &target) {
                (Some(id), _) => id,
                (None, Some(target)) => target.rsplit('/').next().unwrap_or_default().to_owned(),
                (None, None) => return Err("mount: a secret needs id or target".into()),
            };
            let variable = variable.map(|name| if name.is_empty() { id.clone() } else { name });
            MountKind::Secret {
                as_file: variable.is_none() || target.is_some(),
                required: switch("required", take(&["required"]))?.unwrap_or(false),
                mode: number("mode", take(&["mode"]), 8)?.unwrap_or(0o400),
                uid: number("uid", take(&["uid"]), 10)?.unwrap_or(0),
                gid: number("gid", take(&["gid"]), 10)?.unwrap_or(0),
                variable,
                id,
            }
        }
        "ssh" => MountKind::Ssh {
            id: value("id", take(&["id"]))?.unwrap_or_else(|| "default".into()),
            required: switch("required", take(&["required"]))?.unwrap_or(false),
            mode: number("mode", take(&["mode"]), 8)?.unwrap_or(0o600),
            uid: number("uid", take(&["uid"]), 10)?.unwrap_or(0),
            gid: number("gid", take(&["gid"]), 10)?.unwrap_or(0),
        },
        other => return Err(format!("mount: type is bind, cache, tmpfs, secret or ssh, not {other:?}")),
    };
    if let Some((name, _)) = fields.first() {
        return Err(format!("mount of type {kind}: {name:?} is not known"));
    }
    let target = match (&mount, target) {
        (MountKind::Secret { id, as_file: true, .. }, None) => format!("/run/secrets/{id}"),
        (MountKind::Secret { as_file: false, .. }, None) => String::new(),
        (MountKind::Ssh { .. }, None) => String::new(),
        (_, None) => return Err(format!("mount of type {kind}: a target is needed")),
        (_, Some(target)) => target,
    };
    if !matches!(mount, MountKind::Secret { .. } | MountKind::Ssh { .. })
        && crate::pattern::clean(&target) == "/"
    {
        return Err("mount: the target cannot be /".into());
    }
    Ok(RunMount { target, kind: mount })
}

/// Fields between commas; one in quotes may have commas.
fn csv(text: &str) -> Result<Vec<String>, String> {
    let (mut fields, mut field, mut in_quotes) = (Vec::new(), String::new(), false);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if in_quotes && letters.peek() == Some(&'"') => {
                letters.next();
                field.push('"');
            }
            '"' => in_quotes = !in_quotes,
            ',' if !in_quotes => fields.push(std::mem::take(&mut field)),
            letter => field.push(letter),
        }
    }
    if in_quotes {
        return Err("mount: a quote without its end".into());
    }
    fields.push(field);
    fields.retain(|field| !field.trim().is_empty());
    Ok(fields.into_iter().map(|field| field.trim().to_owned()).collect())
}

/// `64m` in bytes.
pub(crate) fn size(text: &str) -> Option<u64> {
    let lower = text.to_lowercase();
    let digits = lower.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let factor = match lower.get(digits.len()..)? {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_have_their_defaults() {
        let mount = parse_mount("type=cache,target=/root/.cache/").unwrap();
        let MountKind::Cache { id, mode, sharing, .. } = &mount.kind else { panic!() };
        assert_eq!((id.as_str(), *mode, *sharing), ("/root/.cache", 0o755, Sharing::Shared));
        let mount = parse_mount("from=base,source=/a,target=/b,rw").unwrap();
        let bind = MountKind::Bind { from: Some("base".into()), source: "/a".into(), writable: true };
        assert_eq!((mount.target.as_str(), mount.kind), ("/b", bind));
        let secret = |text: &str| match parse_mount(text).unwrap() {
            RunMount { target, kind: MountKind::Secret { id, variable, as_file, .. } } => {
                (target, id, variable, as_file)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(secret("type=secret,id=t"), ("/run/secrets/t".into(), "t".into(), None, true));
        assert_eq!(secret("type=secret,id=t,env=T"), (String::new(), "t".into(), Some("T".into()), false));
        assert!(secret("type=secret,target=/x/t,env").3);
        assert_eq!(
            parse_mount("type=tmpfs,target=/t,size=64m").unwrap().kind,
            MountKind::Tmpfs { size: 64 << 20 }
        );
        assert_eq!(parse_mount("type=bind,\"target=/a,b\"").unwrap().target, "/a,b");
    }

    #[test]
    fn what_is_not_known_is_told() {
        for text in [
            "type=x,target=/a",
            "type=bind",
            "type=cache,target=/a,sharing=x",
            "type=tmpfs,target=/",
            "type=secret",
            "type=cache,target=/a,mode=9",
            "type=bind,target=/a,what=1",
            "type=bind,\"target=/a",
            "target=",
            "type=bind,target=/a,ro=maybe",
            "type=tmpfs,target=/a,size=x",
        ] {
            assert!(parse_mount(text).is_err(), "{text}");
        }
    }
}
