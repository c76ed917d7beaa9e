//! Where a build's text and files come from: the Dockerfile, the context and its ignore file, further contexts.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use layerfs_build::context::SourceTree;
use layerfs_build::pattern::IgnoreList;
use layerfs_image::compression::{Compression, decompress};
use layerfs_image::layer::{Limits, Marks, unpack};
use layerfs_image::store::Session;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::options::{ContextSource, Request};
use crate::exit::Hinted;

/// Longest Dockerfile and ignore file.
const MAX_TEXT: u64 = 8 << 20;
/// Where a tar archive has its first mark (`ustar`).
const TAR_MAGIC: usize = 257;

/// All that a build reads.
#[derive(Debug)]
pub(super) struct Input {
    /// The Dockerfile's name, for messages.
    pub(super) file: String,
    /// Its text.
    pub(super) text: String,
    /// The context; `None` where there is none.
    pub(super) context: Option<Arc<SourceTree>>,
    /// Its directory.
    pub(super) directory: Option<PathBuf>,
    /// Whether an ignore file leaves something out of it.
    pub(super) is_filtered: bool,
    /// Contexts with names that are directories.
    pub(super) named: BTreeMap<String, (Arc<SourceTree>, PathBuf)>,
}

impl Input {
    pub(super) fn open(request: &Request, session: &Session) -> anyhow::Result<Self> {
        let mut piped = None;
        let directory = match &request.context {
            ContextSource::Directory(path) => Some(existing(path)?),
            ContextSource::Stdin => received("standard input", io::stdin().lock(), session, &mut piped)?,
            ContextSource::Url(url) => {
                let file =
                    layerfs_image::registry::get_file(url).map_err(|why| anyhow!("download {url}: {why}"))?;
                received(url, file.reader, session, &mut piped)?
            }
            ContextSource::Image(name) => bail!("the context is a directory, - or a URL, not image {name}"),
        };
        let mut named = BTreeMap::new();
        for (name, source) in &request.contexts {
            if let ContextSource::Directory(path) = source {
                let path = existing(path).with_context(|| format!("--build-context {name}"))?;
                let ignore = ignore_file(&path, None)?.unwrap_or_default();
                let tree =
                    SourceTree::context(&path, ignore).with_context(|| format!("open {}", path.display()))?;
                named.insert(name.clone(), (Arc::new(tree), path));
            }
        }
        let (file, place, text) = match (piped, &request.file) {
            (Some(text), _) => ("Dockerfile".to_owned(), None, text),
            (None, file) => dockerfile(file.as_deref(), directory.as_deref())?,
        };
        let ignore = match &directory {
            Some(directory) => ignore_file(directory, place.as_ref())?.unwrap_or_default(),
            None => IgnoreList::default(),
        };
        let is_filtered = !ignore.is_empty();
        let context = match &directory {
            Some(path) => Some(Arc::new(
                SourceTree::context(path, ignore).with_context(|| format!("open {}", path.display()))?,
            )),
            None => None,
        };
        Ok(Self { file, text, context, directory, is_filtered, named })
    }

    /// The context, or that there is none.
    pub(super) fn context(&self) -> anyhow::Result<&Arc<SourceTree>> {
        self.context.as_ref().ok_or_else(|| {
            Hinted {
                message: "there is no build context: the Dockerfile alone came from standard input".into(),
                hint: "build with -f - DIRECTORY to have both".into(),
            }
            .into()
        })
    }
}

fn existing(path: &Path) -> anyhow::Result<PathBuf> {
    let found = fs::canonicalize(path).map_err(|error| Hinted {
        message: format!("build context {}: {error}", path.display()),
        hint: "name a directory; a Dockerfile is named by -f".into(),
    })?;
    if !found.is_dir() {
        bail!(Hinted {
            message: format!("build context {} is no directory", path.display()),
            hint: format!("layerfs build -f {} DIRECTORY", path.display()),
        });
    }
    Ok(found)
}

fn text_of(path: &Path, reader: impl Read) -> anyhow::Result<String> {
    let words = || format!("read {}", path.display());
    let mut bytes = Vec::new();
    reader.take(MAX_TEXT + 1).read_to_end(&mut bytes).with_context(words)?;
    if bytes.len() as u64 > MAX_TEXT {
        bail!("{} has more than {MAX_TEXT} bytes", path.display());
    }
    String::from_utf8(bytes).map_err(|_| anyhow!("{} is not UTF-8 text", path.display()))
}

/// Where a text of the build is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// A path of the caller's.
    Here(PathBuf),
    /// A path in the context, which somebody else may have filled: an archive, a checkout.
    Context(PathBuf),
}

impl Place {
    fn path(&self) -> &Path {
        match self {
            Self::Here(path) | Self::Context(path) => path,
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Here(path) => path.display().to_string(),
            Self::Context(path) => format!("{} in the context", path.display()),
        }
    }

    /// `NAME.dockerignore` beside it.
    fn ignore_file(&self) -> Self {
        let mut name = self.path().file_name().unwrap_or_default().to_owned();
        name.push(".dockerignore");
        let path = self.path().with_file_name(name);
        match self {
            Self::Here(_) => Self::Here(path),
            Self::Context(_) => Self::Context(path),
        }
    }

    /// Opens it; `None` when there is none. `directory` is the context.
    fn open(&self, directory: Option<&Path>) -> anyhow::Result<Option<File>> {
        match (self, directory) {
            // A pipe of the caller's, as of a shell's <(...), is read like a file.
            (Self::Here(path), _) => match File::open(path) {
                Ok(file) if file.metadata().is_ok_and(|found| found.is_dir()) => {
                    bail!("{} is a directory", path.display())
                }
                Ok(file) => Ok(Some(file)),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
                {
                    Ok(None)
                }
                Err(error) => Err(error).with_context(|| format!("open {}", path.display())),
            },
            (Self::Context(path), Some(directory)) => within(directory, path),
            (Self::Context(_), None) => Ok(None),
        }
    }
}

/// Opens a regular file of the context. Symlinks in it are followed as if the context were the whole machine, as BuildKit
/// does: `Dockerfile -> /etc/shadow` is a file `etc/shadow` of the context.
fn within(directory: &Path, name: &Path) -> anyhow::Result<Option<File>> {
    let words = || format!("open {} in the context", name.display());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(directory, flags, Mode::empty()).with_context(words)?;
    let look = |more: OFlags| {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..100 {
            match rustix::fs::openat2(
                &top,
                name,
                OFlags::PATH | OFlags::CLOEXEC | more,
                Mode::empty(),
                resolve,
            ) {
                // A rename somewhere in the path.
                Err(Errno::AGAIN | Errno::INTR) => {}
                found => return found,
            }
        }
        Err(Errno::AGAIN)
    };
    let found = match look(OFlags::empty()) {
        // There, and leading nowhere: what its author wanted to be read must not be left out without a word.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if look(OFlags::NOFOLLOW).is_ok() => bail!(Hinted {
            message: format!("{} in the context is a symlink that leads to nothing in it", name.display()),
            hint: "links are followed within the context alone; a Dockerfile elsewhere is named by -f".into(),
        }),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        found => found.with_context(words)?,
    };
    match FileType::from_raw_mode(rustix::fs::fstat(&found).with_context(words)?.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => bail!("{} in the context is a directory", name.display()),
        // A pipe would be waited for, and opening a device can set something off.
        _ => bail!("{} in the context is no regular file", name.display()),
    }
    // The very object that was looked at.
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(Some(rustix::fs::open(again, flags, Mode::empty()).with_context(words)?.into()))
}

/// Name, place and text of the Dockerfile.
fn dockerfile(
    file: Option<&Path>,
    directory: Option<&Path>,
) -> anyhow::Result<(String, Option<Place>, String)> {
    if file == Some(Path::new("-")) {
        return Ok(("Dockerfile".into(), None, text_of(Path::new("standard input"), io::stdin().lock())?));
    }
    let inside = |name: &Path| directory.map(|_| Place::Context(name.to_owned()));
    let candidates: Vec<Place> = match file {
        // As docker: from here, else from the context, which a path may not leave.
        Some(file) => {
            let is_inside =
                matches!(file.components().next(), Some(Component::Normal(_) | Component::CurDir));
            let beneath = inside(file).filter(|_| is_inside);
            [Some(Place::Here(file.to_owned())), beneath].into_iter().flatten().collect()
        }
        None => ["Dockerfile", "Containerfile"].iter().filter_map(|name| inside(Path::new(name))).collect(),
    };
    for place in &candidates {
        if let Some(opened) = place.open(directory).context("the Dockerfile")? {
            let path = place.path();
            let text = text_of(path, opened)?;
            let name = path
                .file_name()
                .map_or_else(|| "Dockerfile".into(), |name| name.to_string_lossy().into_owned());
            let shown = file.map_or(name, |file| file.display().to_string());
            return Ok((shown, Some(place.clone()), text));
        }
    }
    let names: Vec<String> = candidates.iter().map(Place::shown).collect();
    bail!(Hinted {
        message: format!("no Dockerfile: there is no {}", names.join(" and no ")),
        hint: "name it with -f FILE".into(),
    })
}

/// `NAME.dockerignore` beside the Dockerfile, else the context's own.
fn ignore_file(directory: &Path, dockerfile: Option<&Place>) -> anyhow::Result<Option<IgnoreList>> {
    let own = dockerfile.map(Place::ignore_file);
    let usual = [".containerignore", ".dockerignore"].map(|name| Place::Context(name.into()));
    for place in own.into_iter().chain(usual) {
        if let Some(file) = place.open(Some(directory)).context("the ignore file")? {
            let text = text_of(place.path(), file)?;
            let list =
                IgnoreList::parse(&text).map_err(|why| anyhow!("{}: {why}", place.path().display()))?;
            return Ok(Some(list));
        }
    }
    Ok(None)
}

/// An archive becomes a directory of the session; anything else is a Dockerfile.
fn received(
    what: &str,
    reader: impl Read,
    session: &Session,
    text: &mut Option<String>,
) -> anyhow::Result<Option<PathBuf>> {
    let words = || format!("read the context from {what}");
    let mut reader = BufReader::with_capacity(256 * 1024, reader);
    let mut start = Vec::new();
    (&mut reader).take(6).read_to_end(&mut start).with_context(words)?;
    let is_compressed = Compression::sniff(&start) != Compression::None;
    let whole = BufReader::with_capacity(256 * 1024, io::Cursor::new(start).chain(reader));
    let mut plain: Box<dyn BufRead> = match is_compressed {
        true => decompress(whole).with_context(words)?.1,
        false => Box::new(whole),
    };
    let mut head = Vec::new();
    (&mut plain).take(512).read_to_end(&mut head).with_context(words)?;
    if head.is_empty() {
        bail!("{what} is empty: there is neither a Dockerfile nor a context");
    }
    let is_tar = head.get(TAR_MAGIC..TAR_MAGIC + 5) == Some(b"ustar")
        || head.len() == 512 && head.iter().all(|b| *b == 0);
    let rest = io::Cursor::new(head).chain(plain);
    if !is_tar {
        *text = Some(text_of(Path::new(what), rest)?);
        return Ok(None);
    }
    let directory = session.path().join("context");
    unpack_into(&directory, BufReader::with_capacity(256 * 1024, rest)).with_context(words)?;
    Ok(Some(directory))
}

/// Unpacks an archive into a new directory.
pub(super) fn unpack_into(directory: &Path, reader: impl BufRead) -> anyhow::Result<()> {
    fs::create_dir(directory).with_context(|| format!("make {}", directory.display()))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(directory, flags, Mode::empty())?;
    let marks = Marks::probe(std::os::fd::AsFd::as_fd(&root))?;
    let mut unpacked = unpack(reader, root, marks, Limits::default())?;
    let none = layerfs_image::layer::Stack::new(Vec::new());
    let index = directory.with_extension("unpacked-index");
    unpacked.finish(&none, &layerfs_image::layer::WithoutIndex, &index)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn regression_names_of_a_context_are_resolved_within_it() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("context");
        fs::create_dir_all(top.join("sub")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        fs::write(top.join("sub/real"), "FROM scratch").unwrap();
        let link = |target: &str, name: &str| symlink(target, top.join(name)).unwrap();
        let read = |name: &str| {
            let found = within(&top, Path::new(name)).map_err(|error| format!("{error:#}"))?;
            Ok::<_, String>(found.map(|file| io::read_to_string(file).unwrap()))
        };
        for (target, name) in [("sub/real", "beside"), ("/sub/real", "absolute"), ("../../sub/real", "above")]
        {
            link(target, name);
            assert_eq!(read(name), Ok(Some("FROM scratch".to_owned())), "{name}");
        }
        assert_eq!(read("none"), Ok(None));
        assert_eq!(read("sub/real/none"), Ok(None));
        for (target, name) in [("/etc/passwd", "outside"), ("../secret", "parent"), ("circle", "circle")] {
            link(target, name);
            assert!(read(name).is_err_and(|error| error.contains("leads to nothing in it")), "{name}");
        }
        rustix::fs::mknodat(rustix::fs::CWD, top.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(read("pipe").is_err_and(|error| error.contains("no regular file")));
        assert!(read("sub").is_err_and(|error| error.contains("is a directory")));
        // As the Dockerfile and the ignore file of a context.
        link("/etc/passwd", "Dockerfile");
        assert!(dockerfile(None, Some(&top)).is_err());
        assert!(dockerfile(Some(Path::new("outside")), Some(&top)).is_err());
        link("/etc/passwd", ".dockerignore");
        assert!(ignore_file(&top, None).is_err());
        let (_, place, text) = dockerfile(Some(Path::new("sub/real")), Some(&top)).unwrap();
        assert_eq!((place, &*text), (Some(Place::Context("sub/real".into())), "FROM scratch"));
    }
}
