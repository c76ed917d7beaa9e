//! `layerfs cp`: files and directories between a container and the machine, both ways.
//!
//! Both ends are a root directory and a path in it ([`place`]): symlinks of a container lead nowhere but into the container.
//! What is copied goes as a tar stream from the one ([`pack`]) to the other ([`unpack`]), which is also what `-` reads and
//! writes.

mod pack;
mod place;
mod unpack;

use std::ffi::OsStr;
use std::io::{BufReader, BufWriter, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use self::place::{Kind, Root};
use self::unpack::Owner;
use super::store::Containers;
use crate::commands::run::store_root;
use crate::exit::Usage;
use crate::images::human;
use crate::ui;

/// Copy files and directories between a container and this machine
///
/// The container may run or not. A directory is copied with all that is in it; with `/.` behind it, only what is in it. Into
/// a directory that exists, things are copied under their own name.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples
  layerfs cp web:/etc/nginx/nginx.conf .
  layerfs cp site/. web:/usr/share/nginx/html
  layerfs cp web:/var/log - | tar -t
  tar -c data | layerfs cp - web:/srv")]
pub(crate) struct CopyArgs {
    /// Keep owners and groups, by number; else the files are the container's root's, or the caller's here
    #[arg(short, long)]
    archive: bool,
    /// Copy what a symlink SOURCE leads to
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Say nothing
    #[arg(short, long)]
    quiet: bool,
    /// CONTAINER:PATH, a path here, or - for a tar archive on standard input
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// CONTAINER:PATH, a path here, or - for a tar archive on standard output
    #[arg(value_name = "TARGET")]
    target: PathBuf,
}

/// One end of a copy, as it was written.
#[derive(Debug, PartialEq, Eq)]
enum End<'a> {
    Stream,
    Here(&'a Path),
    Container(&'a str, &'a Path),
}

impl<'a> End<'a> {
    fn parse(text: &'a Path) -> Result<Self, Usage> {
        let bytes = text.as_os_str().as_bytes();
        if bytes == b"-" {
            return Ok(Self::Stream);
        }
        // A path here that has a colon is written with a slash before it.
        let colon = bytes.iter().position(|byte| *byte == b':');
        let Some(colon) = colon.filter(|colon| !bytes.iter().take(*colon).any(|byte| *byte == b'/')) else {
            return Ok(Self::Here(text));
        };
        if bytes.starts_with(b".") {
            return Ok(Self::Here(text));
        }
        let (name, path) = bytes.split_at(colon);
        let name = std::str::from_utf8(name)
            .map_err(|_| Usage(format!("{}: no container has this name", text.display())))?;
        let path = Path::new(OsStr::from_bytes(path.get(1..).unwrap_or_default()));
        if name.is_empty() || path.as_os_str().is_empty() {
            return Err(Usage(format!("{}: write CONTAINER:PATH", text.display())));
        }
        Ok(Self::Container(name, path))
    }
}

pub(crate) fn copy(args: CopyArgs) -> anyhow::Result<ExitCode> {
    let (source, target) = (End::parse(&args.source)?, End::parse(&args.target)?);
    let (from, to) = match (&source, &target) {
        (End::Stream, End::Stream)
        | (End::Here(_), End::Here(_) | End::Stream)
        | (End::Stream, End::Here(_)) => {
            bail!(Usage("must specify at least one container source or target: CONTAINER:PATH".into()))
        }
        // The machine's side first: entering the container's user namespace must not change what is found there.
        (End::Container(from, _), End::Container(to, _)) => {
            let (from, to) = between(from, to)?;
            (Some(from), Some(to))
        }
        (End::Container(from, _), _) => {
            let here = Root::here()?;
            (Some(Root::of_container(from)?), Some(here))
        }
        (_, End::Container(to, _)) => {
            let here = Root::here()?;
            (Some(here), Some(Root::of_container(to)?))
        }
    };
    let (Some(from), Some(to)) = (from, to) else { bail!("nothing to copy") };
    let owner = match (args.archive, &target) {
        (true, _) => Owner::Kept,
        (false, End::Container(..)) => Owner::Is(0, 0),
        (false, _) => Owner::Is(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
    };
    let bytes = match (&source, &target) {
        (End::Stream, End::Container(_, path)) => {
            let stdin = std::io::stdin();
            if stdin.is_terminal() {
                bail!(Usage("cp - reads a tar archive: standard input is a terminal".into()));
            }
            into_directory(&to, path)?;
            unpack::unpack(&to, path, None, BufReader::new(stdin.lock()), Owner::Kept)?
        }
        (End::Container(_, path), End::Stream) => {
            let stdout = std::io::stdout();
            if stdout.is_terminal() {
                bail!(Usage("cp ... - writes a tar archive: send it to a file or a program".into()));
            }
            let (object, name) = from.source(path, args.follow_link)?;
            pack::pack(&object, &name, BufWriter::new(stdout.lock()))?
        }
        (End::Here(source) | End::Container(_, source), End::Here(target) | End::Container(_, target)) => {
            through(&from, source, &to, target, args.follow_link, owner)?
        }
        _ => bail!("nothing to copy"),
    };
    // The target first: in the same container it is the source's mount that it is in.
    let written = to.finish();
    from.finish()?;
    written?;
    for (end, action) in [(&source, "archive-path"), (&target, "extract-to-dir")] {
        if let End::Container(name, _) = end
            && let Ok(container) = Containers::open().and_then(|containers| containers.find(name))
        {
            crate::events::container(action, &container.config, &[]);
        }
    }
    if !args.quiet && !matches!(target, End::Stream) && std::io::stderr().is_terminal() {
        ui::note(format_args!("Successfully copied {} to {}", human::size(bytes), args.target.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Two containers, or twice the same. Each that does not run is locked: all who copy between two of them do so in one order.
fn between(from: &str, to: &str) -> anyhow::Result<(Root, Root)> {
    let containers = Containers::at(&store_root()?)?;
    let (first, second) = (containers.find(from)?, containers.find(to)?);
    let (first, second) = (first.id(), second.id());
    if first == second {
        let root = Root::of_container(first)?;
        let again = root.again()?;
        return Ok((root, again));
    }
    if first < second {
        let from = Root::of_container(first)?;
        return Ok((from, Root::of_container(second)?));
    }
    let to = Root::of_container(second)?;
    Ok((Root::of_container(first)?, to))
}

fn into_directory(to: &Root, path: &Path) -> anyhow::Result<()> {
    match to.kind(path)? {
        Some(Kind::Directory) => Ok(()),
        Some(_) => bail!("destination {} must be a directory to place stdin contents", path.display()),
        None => bail!("Could not find the file {} in the container", path.display()),
    }
}

/// Whether the path means what is in a directory, not itself.
fn is_content(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes == b"." || bytes.ends_with(b"/.")
}

/// From the one tree into the other, by docker's rules for what the copy is called.
fn through(
    from: &Root,
    source: &Path,
    to: &Root,
    target: &Path,
    follow: bool,
    owner: Owner,
) -> anyhow::Result<u64> {
    let (object, name) = from.source(source, follow)?;
    let is_directory = object.is_directory();
    let wants_directory = target.as_os_str().as_bytes().ends_with(b"/") || is_content(target);
    let parent = |path: &Path| path.parent().map_or_else(|| PathBuf::from("."), Path::to_owned);
    // In which directory, and under which name; none for the content alone.
    let (directory, new_name) = match (to.kind(target)?, is_directory) {
        (Some(Kind::Directory), true) if is_content(source) => (target.to_owned(), None),
        (Some(Kind::Directory), _) => (target.to_owned(), Some(name.clone())),
        (Some(_), true) => bail!("cannot copy directory: {} is no directory", target.display()),
        (Some(_), false) if wants_directory => bail!("not a directory: {}", target.display()),
        (None, false) if wants_directory => bail!("no such directory: {}", target.display()),
        (Some(_), false) | (None, _) => {
            // A trailing slash, or dot, is no part of the name.
            let clean: PathBuf = target.components().collect();
            let name =
                clean.file_name().with_context(|| format!("{}: no name for the copy", target.display()))?;
            let directory = parent(&clean);
            if to.kind(&directory)? != Some(Kind::Directory) {
                bail!("no such directory: {}", directory.display());
            }
            (directory, Some(name.as_bytes().to_owned()))
        }
    };
    // The content of a directory is packed as `.`, anything else under its new name.
    let packed = new_name.unwrap_or_else(|| b".".to_vec());
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    std::thread::scope(|scope| {
        let packing =
            scope.spawn(|| pack::pack(&object, &packed, BufWriter::with_capacity(64 << 10, writer)));
        let unpacked =
            unpack::unpack(to, &directory, Some(&packed), BufReader::with_capacity(64 << 10, reader), owner);
        let packing = match packing.join() {
            Ok(packing) => packing,
            Err(_) => bail!("reading {} failed", source.display()),
        };
        // Who cannot write stops reading; its error is the cause of the other's.
        match (unpacked, packing) {
            (Ok(bytes), Ok(_)) => Ok(bytes),
            (Err(error), Err(cause)) if !pack::is_broken_pipe(&cause) => Err(cause.context(error)),
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_dockers() {
        let parse = |text: &'static str| End::parse(Path::new(text));
        assert_eq!(parse("-").unwrap(), End::Stream);
        assert_eq!(parse("web:/etc").unwrap(), End::Container("web", Path::new("/etc")));
        assert_eq!(parse("web:etc").unwrap(), End::Container("web", Path::new("etc")));
        assert_eq!(parse("./a:b").unwrap(), End::Here(Path::new("./a:b")));
        assert_eq!(parse("/a:b").unwrap(), End::Here(Path::new("/a:b")));
        assert_eq!(parse("..:b").unwrap(), End::Here(Path::new("..:b")));
        assert!(parse("web:").is_err() && parse(":/etc").is_err());
        assert!(is_content(Path::new("a/.")) && is_content(Path::new(".")) && !is_content(Path::new("a.")));
    }
}
