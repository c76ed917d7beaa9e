//! Where a build's text and files come from: the Dockerfile, the context and its ignore file, further contexts.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use layerfs_build::context::SourceTree;
use layerfs_build::pattern::IgnoreList;
use layerfs_image::compression::{Compression, decompress};
use layerfs_image::layer::{Limits, Marks, unpack};
use layerfs_image::store::Session;
use rustix::fs::{Mode, OFlags};

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
        let (file, path, text) = match (piped, &request.file) {
            (Some(text), _) => ("Dockerfile".to_owned(), None, text),
            (None, file) => dockerfile(file.as_deref(), directory.as_deref())?,
        };
        let ignore = match &directory {
            Some(directory) => ignore_file(directory, path.as_deref())?.unwrap_or_default(),
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

/// Name, path and text of the Dockerfile.
fn dockerfile(
    file: Option<&Path>,
    directory: Option<&Path>,
) -> anyhow::Result<(String, Option<PathBuf>, String)> {
    if file == Some(Path::new("-")) {
        return Ok(("Dockerfile".into(), None, text_of(Path::new("standard input"), io::stdin().lock())?));
    }
    let inside = |name: &str| directory.map(|directory| directory.join(name));
    let candidates: Vec<PathBuf> = match file {
        // As docker: from here, else from the context.
        Some(file) => {
            let beneath = directory.map(|directory| directory.join(file));
            [Some(file.to_owned()), beneath].into_iter().flatten().collect()
        }
        None => ["Dockerfile", "Containerfile"].iter().filter_map(|name| inside(name)).collect(),
    };
    for path in &candidates {
        match File::open(path) {
            Ok(opened) => {
                if path.is_dir() {
                    bail!("the Dockerfile {} is a directory", path.display());
                }
                let text = text_of(path, opened)?;
                let name = path
                    .file_name()
                    .map_or_else(|| "Dockerfile".into(), |name| name.to_string_lossy().into_owned());
                let shown = file.map_or(name, |file| file.display().to_string());
                return Ok((shown, Some(path.clone()), text));
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
        }
    }
    let shown = |path: &PathBuf| match directory.and_then(|directory| path.strip_prefix(directory).ok()) {
        Some(within) => format!("{} in the context", within.display()),
        None => path.display().to_string(),
    };
    let names: Vec<String> = candidates.iter().map(shown).collect();
    bail!(Hinted {
        message: format!("no Dockerfile: there is no {}", names.join(" and no ")),
        hint: "name it with -f FILE".into(),
    })
}

/// `NAME.dockerignore` beside the Dockerfile, else the context's own.
fn ignore_file(directory: &Path, dockerfile: Option<&Path>) -> anyhow::Result<Option<IgnoreList>> {
    let own = dockerfile.map(|path| {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".dockerignore");
        path.with_file_name(name)
    });
    let usual = [".containerignore", ".dockerignore"].map(|name| Some(directory.join(name)));
    for path in [own].into_iter().chain(usual).flatten() {
        match File::open(&path) {
            Ok(file) => {
                let text = text_of(&path, file)?;
                let list = IgnoreList::parse(&text).map_err(|why| anyhow!("{}: {why}", path.display()))?;
                return Ok(Some(list));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
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
