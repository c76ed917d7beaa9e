//! This program as a mount helper: called by mount(8), mount.fuse3, containerd, podman and their like, whose
//! command lines are theirs to choose.
//!
//! The forms: `PROG [SOURCE] TARGET -o OPTIONS` and `PROG -o OPTIONS TARGET`, with flags of mount(8)'s helpers or
//! of libfuse around them. A repeated call for a mount that is there already succeeds, since some callers repeat.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::CommandFactory;
use layerfs_unionfs::config::parse::Builder;

use crate::args::Cli;
use crate::commands::mount::{Request, carry_out, is_there_already};
use crate::exit::Usage;
use crate::logging::LogOptions;
use crate::{mounts, ui};

/// Whose flags are spoken: `-f` and `-s` mean two things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Face {
    /// libfuse: `-f` foreground, `-s` one thread, `-d` debug.
    Fuse,
    /// mount(8): `-f` fake, `-s` sloppy.
    MountHelper,
}

impl Face {
    /// The face that is wanted, by the program's name, else by the form of the command line; `None` for the
    /// command with its subcommands.
    pub(crate) fn of(arguments: &[OsString]) -> Option<Self> {
        let name = arguments.first().and_then(|a| Path::new(a).file_name()).unwrap_or_default();
        if name.as_bytes().starts_with(b"mount.") {
            return Some(Self::MountHelper);
        }
        if name == "fuse-overlayfs" {
            return Some(Self::Fuse);
        }
        if name == crate::commands::oci::NAME {
            return None;
        }
        let command = Cli::command();
        let is_command = |word: &OsString| {
            let mut commands = command.get_subcommands();
            word == "help"
                || commands.any(|c| {
                    std::iter::once(c.get_name()).chain(c.get_all_aliases()).any(|name| word == name)
                })
        };
        let is_option = |word: &OsString| word.as_bytes().starts_with(b"-");
        // A place may have the name of a command, but the first word does not then: what comes before a command are
        // options and their values.
        let begins_with_place = arguments.get(1).is_some_and(|first| !is_option(first) && !is_command(first));
        for argument in &arguments[1..] {
            match argument.as_bytes() {
                b"--" => return None,
                b"--options" => return Some(Self::Fuse),
                [b'-', b'-', ..] => {}
                // Every caller of a mount helper gives options, and no other use of the bare program has such a flag.
                [b'-', flags @ ..] if flags.contains(&b'o') => return Some(Self::Fuse),
                _ if !begins_with_place && is_command(argument) => return None,
                _ => {}
            }
        }
        None
    }
}

/// A command line as it was given.
#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    options: Vec<OsString>,
    places: Vec<PathBuf>,
    foreground: bool,
    fake: bool,
    debug: bool,
    help: bool,
    version: bool,
}

impl Call {
    fn parse(face: Face, arguments: &[OsString]) -> Result<Self, Usage> {
        let mut call = Self::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = |flag: &str| {
                rest.next().cloned().ok_or_else(|| Usage(format!("{flag} needs a value behind it")))
            };
            match argument.as_bytes() {
                b"--" => {
                    call.places.extend(rest.map(PathBuf::from));
                    break;
                }
                b"--help" => call.help = true,
                b"--version" => call.version = true,
                b"--debug" => call.debug = true,
                b"--foreground" => call.foreground = true,
                b"--options" => call.options.push(value("--options")?),
                [b'-', b'-', ..] => {
                    return Err(Usage(format!("a mount helper knows no option {:?}", argument.display())));
                }
                [b'-', flags @ ..] if !flags.is_empty() => {
                    let mut flags = flags;
                    while let [flag, behind @ ..] = flags {
                        flags = behind;
                        if matches!(flag, b'o' | b't' | b'N') {
                            // The value is attached, or the next argument.
                            let text = if behind.is_empty() {
                                value(&format!("-{}", char::from(*flag)))?
                            } else {
                                OsString::from_vec(behind.to_vec())
                            };
                            call.valued(*flag, text)?;
                            break;
                        }
                        call.flag(face, *flag)?;
                    }
                }
                _ => call.places.push(argument.into()),
            }
        }
        Ok(call)
    }

    fn flag(&mut self, face: Face, flag: u8) -> Result<(), Usage> {
        match (flag, face) {
            (b'f', Face::Fuse) => self.foreground = true,
            (b'f', Face::MountHelper) => self.fake = true,
            (b's', Face::Fuse) => self.options.push("threads=1".into()),
            (b'd', _) => (self.debug, self.foreground) = (true, true),
            (b'r', _) => self.options.push("ro".into()),
            (b'w', _) => self.options.push("rw".into()),
            (b'h', _) => self.help = true,
            (b'V', _) => self.version = true,
            // No mtab, sloppy, verbose, internal only: nothing to do otherwise.
            (b'n' | b's' | b'v' | b'i', _) => {}
            _ => return Err(Usage(format!("a mount helper knows no flag -{}", char::from(flag)))),
        }
        Ok(())
    }

    fn valued(&mut self, flag: u8, text: OsString) -> Result<(), Usage> {
        match flag {
            b'o' => self.options.push(text),
            b'N' => {
                return Err(Usage(format!(
                    "-N {}: enter the namespace first, with nsenter --mount={}",
                    text.display(),
                    text.display()
                )));
            }
            // -t: the type by which we were found.
            _ => {}
        }
        Ok(())
    }
}

/// Carries out a call as a mount helper.
///
/// # Errors
/// As `layerfs mount`.
pub(crate) fn mount(face: Face, arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    let call = Call::parse(face, arguments.get(1..).unwrap_or_default())?;
    if call.help || call.version {
        let mut command = Cli::command();
        command.build();
        let text =
            if call.version { command.render_version() } else { command.render_long_help().to_string() };
        ui::print(text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut builder = Builder::new();
    for text in &call.options {
        builder.text(text)?;
    }
    let target = match call.places.as_slice() {
        [target] => target,
        [source, target] => {
            builder.source(shown_source(source.as_os_str()));
            target
        }
        [] => return Err(Usage("no mountpoint is named: [SOURCE] TARGET -o OPTIONS".to_owned()).into()),
        [_, _, extra, ..] => return Err(Usage(format!("{extra:?} is one place too many")).into()),
    };
    if let Some(flags) = builder.remount() {
        if !call.fake {
            mounts::remount(target, &flags)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let parsed = builder.build()?;
    if call.fake {
        return Ok(ExitCode::SUCCESS);
    }
    if is_there_already(&parsed, target) {
        ui::note(format_args!("{target:?} is this mount already"));
        return Ok(ExitCode::SUCCESS);
    }
    let log = LogOptions::from_env().with_debug(call.debug);
    carry_out(Request { parsed, target: target.clone(), foreground: call.foreground, log })
}

/// What the mount table shows as the source; it need not be a path, nor even text.
fn shown_source(source: &OsStr) -> String {
    source.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_face_is_seen_by_name_and_by_form() {
        let table = [
            ("layerfs", None),
            ("layerfs mount -o lowerdir=l m", None),
            ("layerfs unmount m", None),
            ("layerfs help", None),
            ("layerfs --version", None),
            ("layerfs -h", None),
            ("layerfs frobnicate", None),
            ("layerfs frobnicate m", None),
            ("layerfs src m -o lowerdir=l", Some(Face::Fuse)),
            ("/usr/bin/layerfs -o lowerdir=l m", Some(Face::Fuse)),
            ("layerfs -f -olowerdir=l m", Some(Face::Fuse)),
            ("layerfs -N 1 -o lowerdir=l", Some(Face::Fuse)),
            ("fuse-overlayfs --version", Some(Face::Fuse)),
            ("/x/fuse-overlayfs mount", Some(Face::Fuse)),
            ("/sbin/mount.fuse.layerfs a b", Some(Face::MountHelper)),
            ("mount.layerfs", Some(Face::MountHelper)),
            // Regression: a word with an o in it, behind a command or of another program.
            ("layerfs-runtime --root /r ps c1 -o pid,comm", None),
            ("layerfs-runtime --root /r exec c1 sort -o f g", None),
            ("/usr/bin/layerfs-runtime -o x", None),
            ("layerfs --debug exec c1 sort -o f g", None),
            ("layerfs --root run ps -o pid", None),
            ("layerfs -- src m -o lowerdir=l", None),
            ("layerfs src /run -o lowerdir=l", Some(Face::Fuse)),
            ("layerfs src run -o lowerdir=l", Some(Face::Fuse)),
        ];
        for (line, face) in table {
            assert_eq!(Face::of(&arguments(line)), face, "{line}");
        }
    }

    #[test]
    fn calls_as_callers_make_them() {
        let options = |texts: &[&str]| texts.iter().map(OsString::from).collect::<Vec<_>>();
        let places = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        let table = [
            (
                Face::Fuse,
                "-o lowerdir=l/A,upperdir=u,workdir=w /merged",
                Call {
                    options: options(&["lowerdir=l/A,upperdir=u,workdir=w"]),
                    places: places(&["/merged"]),
                    ..Call::default()
                },
            ),
            (
                Face::Fuse,
                "src m -o rw,lowerdir=l,dev,suid",
                Call {
                    options: options(&["rw,lowerdir=l,dev,suid"]),
                    places: places(&["src", "m"]),
                    ..Call::default()
                },
            ),
            (
                Face::MountHelper,
                "src m -n -s -f -v -r -o lowerdir=l -t fuse.layerfs",
                Call {
                    options: options(&["ro", "lowerdir=l"]),
                    places: places(&["src", "m"]),
                    fake: true,
                    ..Call::default()
                },
            ),
            (
                Face::Fuse,
                "-fdolowerdir=l -s -- -m",
                Call {
                    options: options(&["lowerdir=l", "threads=1"]),
                    places: places(&["-m"]),
                    foreground: true,
                    debug: true,
                    ..Call::default()
                },
            ),
            (Face::Fuse, "--version", Call { version: true, ..Call::default() }),
        ];
        for (face, line, call) in table {
            assert_eq!(Call::parse(face, &arguments(line)).unwrap(), call, "{line}");
        }
        for line in ["-o", "m -t", "-x", "--frob", "-N 1 m"] {
            Call::parse(Face::Fuse, &arguments(line)).expect_err(line);
        }
    }
}
