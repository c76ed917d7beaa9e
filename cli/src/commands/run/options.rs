//! The command line of `run` as values that are known to make sense.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, PathBuf};

use anyhow::Context;

use super::ForegroundArgs;
use crate::exit::{Hinted, Usage};
use crate::logging::LogOptions;

/// What a container's program finds when nothing else is said.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest host name (utsname).
const HOSTNAME_MAX: usize = 64;

/// What is asked for.
#[derive(Debug)]
pub(super) struct Request {
    /// An existing directory, absolute, symlinks resolved.
    pub(super) rootfs: PathBuf,
    pub(super) remove: bool,
    pub(super) interactive: bool,
    pub(super) tty: bool,
    /// Names and values, in order; a later one replaces an earlier one.
    variables: Vec<(OsString, OsString)>,
    /// Absolute.
    pub(super) workdir: Option<PathBuf>,
    pub(super) hostname: Option<String>,
    pub(super) user: Option<String>,
    pub(super) read_only: bool,
    pub(super) no_new_privileges: bool,
    pub(super) log: LogOptions,
    /// Never empty.
    pub(super) command: Vec<CString>,
}

impl Request {
    /// # Errors
    /// The first thing that makes no sense, with what would.
    pub(super) fn new(args: ForegroundArgs) -> anyhow::Result<Self> {
        let ForegroundArgs { rootfs, options: args, log, command } = args;
        let rootfs = existing_directory(&rootfs)?;
        if command.is_empty() {
            return Err(
                Usage("no command is given: layerfs run --rootfs DIR -- COMMAND [ARG...]".into()).into()
            );
        }
        if args.interactive && args.tty && !rustix::termios::isatty(rustix::stdio::stdin()) {
            return Err(Hinted {
                message: "standard input is not a terminal".into(),
                hint: "leave out -t to feed the command from a file or pipe".into(),
            }
            .into());
        }
        let mut no_new_privileges = false;
        for option in &args.security_opt {
            no_new_privileges = match option.as_str() {
                "no-new-privileges" | "no-new-privileges:true" | "no-new-privileges=true" => true,
                "no-new-privileges:false" | "no-new-privileges=false" => false,
                other => {
                    let words = format!("--security-opt {other:?} is not known; no-new-privileges is");
                    return Err(Usage(words).into());
                }
            };
        }
        let words = |word: OsString| {
            CString::new(word.into_vec()).context("the command contains a zero byte, which no command can")
        };
        Ok(Self {
            rootfs,
            remove: args.rm,
            interactive: args.interactive,
            tty: args.tty,
            variables: variables(args.env)?,
            workdir: args.workdir.map(absolute_workdir).transpose()?,
            hostname: args.hostname.map(valid_hostname).transpose()?,
            user: args.user,
            read_only: args.read_only,
            no_new_privileges,
            log: log.options(),
            command: command.into_iter().map(words).collect::<Result<_, _>>()?,
        })
    }

    /// The program's environment: the defaults, overridden by what was asked for.
    pub(super) fn environment(&self, hostname: &str, home: &OsStr) -> Vec<CString> {
        let mut all: Vec<(OsString, OsString)> =
            vec![("PATH".into(), PATH.into()), ("HOSTNAME".into(), hostname.into())];
        if self.tty {
            all.push(("TERM".into(), "xterm".into()));
        }
        all.push(("HOME".into(), home.to_owned()));
        for (name, value) in &self.variables {
            match all.iter_mut().find(|(other, _)| other == name) {
                Some((_, old)) => old.clone_from(value),
                None => all.push((name.clone(), value.clone())),
            }
        }
        let entries = all.into_iter().map(|(name, value)| {
            let mut entry = name.into_vec();
            entry.push(b'=');
            entry.extend(value.into_vec());
            entry
        });
        // What came from arguments, the environment or a line of a file has no zero bytes.
        entries.filter_map(|entry| CString::new(entry).ok()).collect()
    }
}

fn existing_directory(path: &std::path::Path) -> anyhow::Result<PathBuf> {
    let refused = |message: String, hint: &str| Hinted { message, hint: hint.into() };
    let found = std::fs::canonicalize(path).map_err(|error| {
        refused(
            format!("root filesystem {path:?}: {error}"),
            "give --rootfs an unpacked root filesystem, or / for this machine's own",
        )
    })?;
    if !found.is_dir() {
        let hint = "an archive has to be unpacked first";
        return Err(refused(format!("root filesystem {path:?}: not a directory"), hint).into());
    }
    Ok(found)
}

fn variables(arguments: Vec<OsString>) -> anyhow::Result<Vec<(OsString, OsString)>> {
    let mut variables = Vec::new();
    for argument in arguments {
        let bytes = argument.as_bytes();
        let (name, value) = match bytes.iter().position(|byte| *byte == b'=') {
            Some(at) => {
                let (name, rest) = bytes.split_at(at);
                (
                    OsStr::from_bytes(name),
                    Some(OsStr::from_bytes(rest.get(1..).unwrap_or_default()).to_owned()),
                )
            }
            None => (argument.as_os_str(), std::env::var_os(&argument)),
        };
        if name.is_empty() {
            return Err(Usage(format!("-e {argument:?}: a variable without a name")).into());
        }
        if let Some(value) = value {
            variables.push((name.to_owned(), value));
        }
    }
    Ok(variables)
}

fn absolute_workdir(path: PathBuf) -> Result<PathBuf, Usage> {
    if !path.is_absolute() {
        return Err(Usage(format!("-w {path:?}: the working directory must be an absolute path")));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(Usage(format!("-w {path:?}: the working directory may not contain \"..\"")));
    }
    Ok(path)
}

fn valid_hostname(name: String) -> Result<String, Usage> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if name.is_empty() || name.len() > HOSTNAME_MAX || !name.bytes().all(good) {
        return Err(Usage(format!(
            "--hostname {name:?}: 1 to {HOSTNAME_MAX} letters, digits, '-', '_' and '.' make a host name"
        )));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(variables: &[(&str, &str)], tty: bool) -> Request {
        Request {
            rootfs: "/".into(),
            remove: true,
            interactive: false,
            tty,
            variables: variables.iter().map(|(n, v)| (n.into(), v.into())).collect(),
            workdir: None,
            hostname: None,
            user: None,
            read_only: false,
            no_new_privileges: false,
            log: LogOptions::from_env(),
            command: vec![c"sh".into()],
        }
    }

    fn environment(request: &Request) -> Vec<String> {
        let entries = request.environment("box", OsStr::new("/root"));
        entries.into_iter().map(|entry| entry.into_string().unwrap()).collect()
    }

    #[test]
    fn defaults_and_what_overrides_them() {
        let plain = environment(&request(&[], false));
        assert_eq!(plain, [format!("PATH={PATH}"), "HOSTNAME=box".into(), "HOME=/root".into()]);
        let changed = environment(&request(&[("HOME", "/h"), ("A", "1"), ("A", "2"), ("EMPTY", "")], true));
        let expected = ["TERM=xterm", "HOME=/h", "A=2", "EMPTY="].map(str::to_owned);
        assert_eq!(changed[2..], expected);
    }

    #[test]
    fn variables_need_a_name() {
        let parse = |text: &str| variables(vec![text.into()]);
        assert_eq!(parse("A=b=c").unwrap(), [("A".into(), "b=c".into())]);
        assert_eq!(parse("LAYERFS_NO_SUCH_VARIABLE").unwrap(), []);
        assert!(parse("=x").is_err());
        let bytes = OsString::from_vec(b"A=\xff".to_vec());
        assert_eq!(variables(vec![bytes]).unwrap()[0].1.as_bytes(), b"\xff");
    }

    #[test]
    fn impossible_values_are_refused() {
        assert!(absolute_workdir("relative".into()).is_err());
        assert!(absolute_workdir("/a/../..".into()).is_err());
        assert!(valid_hostname("ok-1.example".into()).is_ok());
        assert!(valid_hostname(String::new()).is_err());
        assert!(valid_hostname("a b".into()).is_err());
        assert!(valid_hostname("x".repeat(65)).is_err());
        assert!(existing_directory("/no/such/directory".as_ref()).is_err());
        assert!(existing_directory("/proc/version".as_ref()).is_err());
    }
}
