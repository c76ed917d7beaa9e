//! Option text (`-o`) and the options of the command line to [`Config`].
//!
//! Understands the words of kernel overlayfs, fuse-overlayfs, libfuse and mount(8); `docs/options.md` lists them.
//! Later words override earlier ones. A word that nobody knows becomes a warning, because callers pass words
//! of many filesystems; a word with an impossible value, and words that contradict each other, are errors that
//! name the remedy. Nothing here touches the disk: that layers exist, or are nested in each other, is seen when
//! the mount opens them.

mod check;
mod error;
mod idmap;
#[cfg(test)]
mod tests;
mod text;
mod words;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::config::{Config, MountFlags, RedirectDir};

pub use error::{IdMapFault, OptionError};
pub use text::escape_path;

/// Lower layers that a mount can have, as in kernel overlayfs.
pub const MAX_LOWERS: usize = 500;

/// Options understood: what to mount, and what to tell the user about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The mount.
    pub config: Config,
    /// Words that were ignored or taken otherwise than their writer may expect, one sentence each.
    pub warnings: Vec<String>,
    /// `debug` was among the words: the caller logs more.
    pub debug: bool,
}

/// Reads one option text, complete in itself.
///
/// # Errors
/// [`OptionError`] when the text has no meaning or contradicts itself.
pub fn parse(text: &OsStr) -> Result<Parsed, OptionError> {
    let mut builder = Builder::new();
    builder.text(text)?;
    builder.build()
}

/// Collects option texts and options of the command line, in the order given, into one description.
///
/// ```
/// # use std::ffi::OsStr;
/// use layerfs_unionfs::config::parse::Builder;
/// let mut builder = Builder::new();
/// builder.lower("/srv/app").lower("/srv/base").text(OsStr::new("noatime,metacopy=off"))?;
/// let parsed = builder.build()?;
/// assert_eq!(parsed.config.lowers.len(), 2);
/// assert!(parsed.config.flags.read_only, "there is no upper");
/// # Ok::<(), layerfs_unionfs::config::parse::OptionError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Builder {
    /// Values that need no second look; layers, upper and the fields below are filled in at the end.
    config: Config,
    warnings: Vec<String>,
    word_lowers: Vec<PathBuf>,
    word_upper: Option<PathBuf>,
    word_work: Option<PathBuf>,
    flag_lowers: Vec<PathBuf>,
    flag_upper: Option<PathBuf>,
    flag_work: Option<PathBuf>,
    // What was said in so many words, since a default yields where two stated words contradict each other.
    metacopy: Option<bool>,
    redirect_dir: Option<RedirectDir>,
    index: Option<bool>,
    nfs_export: Option<bool>,
    fsync: Option<bool>,
    volatile: bool,
    squash_to_root: bool,
    writeback_cache: bool,
    remount: bool,
    debug: bool,
    labels: Vec<(String, String)>,
    fsname: Option<String>,
    source: Option<String>,
}

/// Which of the two id mappings is meant.
#[derive(Debug, Clone, Copy)]
enum Mapping {
    Uid,
    Gid,
}

impl Mapping {
    fn option(self) -> &'static str {
        match self {
            Self::Uid => "uidmapping",
            Self::Gid => "gidmapping",
        }
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// Nothing said yet.
    pub fn new() -> Self {
        let mut config = Config::new(Vec::new(), None);
        // Decided at the end, when it is known whether there is an upper.
        config.flags.read_only = false;
        Self {
            config,
            warnings: Vec::new(),
            word_lowers: Vec::new(),
            word_upper: None,
            word_work: None,
            flag_lowers: Vec::new(),
            flag_upper: None,
            flag_work: None,
            metacopy: None,
            redirect_dir: None,
            index: None,
            nfs_export: None,
            fsync: None,
            volatile: false,
            squash_to_root: false,
            writeback_cache: false,
            remount: false,
            debug: false,
            labels: Vec::new(),
            fsname: None,
            source: None,
        }
    }

    /// Adds the words of one `-o` text.
    ///
    /// # Errors
    /// [`OptionError`] for a word with a value that it cannot have.
    pub fn text(&mut self, text: &OsStr) -> Result<&mut Self, OptionError> {
        for word in text::words(text.as_bytes()) {
            words::apply(self, word)?;
        }
        Ok(self)
    }

    /// Adds a lower layer under those given before; the path is taken as it is, without escapes.
    pub fn lower(&mut self, path: impl Into<PathBuf>) -> &mut Self {
        self.flag_lowers.push(path.into());
        self
    }

    /// Names the upper; the path is taken as it is.
    pub fn upper(&mut self, path: impl Into<PathBuf>) -> &mut Self {
        self.flag_upper = Some(path.into());
        self
    }

    /// Names the work directory; the path is taken as it is.
    pub fn work(&mut self, path: impl Into<PathBuf>) -> &mut Self {
        self.flag_work = Some(path.into());
        self
    }

    /// Names the source shown in the mount table, unless `fsname=` does.
    pub fn source(&mut self, source: impl Into<String>) -> &mut Self {
        self.source = Some(source.into());
        self
    }

    /// The flags for a mount that is there already, when `remount` was among the words.
    pub fn remount(&self) -> Option<MountFlags> {
        self.remount.then(|| self.config.flags.clone())
    }

    /// What there is to tell so far; [`Builder::build`] moves it into [`Parsed`].
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Refuses contradictions and gives the description out.
    ///
    /// # Errors
    /// [`OptionError`] naming the contradiction and the remedy.
    pub fn build(self) -> Result<Parsed, OptionError> {
        check::build(self)
    }

    /// `lowerdir=`: the whole stack, replacing one named before. An empty layer is refused, as in the kernel.
    fn set_lowers(&mut self, list: &[u8]) -> Result<(), OptionError> {
        let raw = text::RawWord { name: b"lowerdir", value: Some(list) };
        let elements = text::layers(list);
        if elements.iter().any(|e| e.is_empty()) {
            let value = text::shown(list);
            let inner_gap = elements.iter().skip(1).rev().skip(1).any(|e| e.is_empty());
            return Err(if inner_gap {
                OptionError::DataOnlyLayer { option: "lowerdir", value }
            } else {
                OptionError::EmptyLayer { option: "lowerdir", value }
            });
        }
        self.word_lowers = elements
            .into_iter()
            .map(|element| words::layer_path(raw, "lowerdir", element))
            .collect::<Result<_, _>>()?;
        Ok(())
    }

    /// `lowerdir+=`: one more under those named before.
    fn add_word_lower(&mut self, path: PathBuf) {
        self.word_lowers.push(path);
    }

    /// `context=` and its relatives, quotes off. One of each; a later one replaces.
    fn set_label(&mut self, name: &str, raw: text::RawWord<'_>) -> Result<(), OptionError> {
        let Some(option) = text::LABELS.into_iter().find(|label| *label == name) else {
            return Ok(());
        };
        let form = "\"user_u:role_r:type_t:level\"";
        let value = raw.value.filter(|v| !v.is_empty()).ok_or(OptionError::MissingValue { option, form })?;
        let quotes = || OptionError::Quotes { option, value: text::shown(value) };
        let label = match value {
            [b'"', inner @ .., b'"'] => inner,
            _ => value,
        };
        if label.is_empty() || label.contains(&b'"') {
            return Err(quotes());
        }
        let label = std::str::from_utf8(label).map_err(|_| quotes())?;
        self.labels.retain(|(other, _)| other != name);
        self.labels.push((name.to_owned(), label.to_owned()));
        Ok(())
    }

    fn warn(&mut self, sentence: impl Into<String>) {
        let sentence = sentence.into();
        if !self.warnings.contains(&sentence) {
            self.warnings.push(sentence);
        }
    }

    fn unknown(&mut self, raw: text::RawWord<'_>) {
        self.warn(format!("unknown option `{}` is ignored", words::as_written(raw)));
    }
}
