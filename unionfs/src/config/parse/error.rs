//! What can be wrong with option text. Each message names the option, the text and the remedy.

use std::ffi::OsString;
use std::path::PathBuf;

use thiserror::Error;

use crate::config::IdRange;

/// Why option text was refused, before anything was mounted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OptionError {
    /// No lower layer at all.
    #[error("no lower layer is named: give lowerdir=DIR[:DIR...] (or --lower DIR), the top layer first")]
    NoLower,
    /// More lower layers than a mount can have.
    #[error("{count} lower layers are named, and a mount has at most {max}: flatten some of them into one")]
    TooManyLowers {
        /// How many were named.
        count: usize,
        /// How many may be ([`super::MAX_LOWERS`]).
        max: usize,
    },
    /// `lowerdir=a::b`, or `datadir+=`.
    #[error(
        "option `{option}={value}`: data-only layers are a feature of kernel overlayfs alone; \
         separate ordinary layers by a single colon", value = .value.display()
    )]
    DataOnlyLayer {
        /// The option as written.
        option: &'static str,
        /// Its value as written.
        value: OsString,
    },
    /// An empty element in a list of layers.
    #[error(
        "option `{option}={value}`: an empty layer name; remove the colon too many, or escape one that is \
         part of a name as \\:", value = .value.display()
    )]
    EmptyLayer {
        /// The option as written.
        option: &'static str,
        /// Its value as written.
        value: OsString,
    },
    /// The same layer twice.
    #[error("layer {path:?} is named twice: every layer of a stack is a directory of its own, name it once")]
    DuplicateLower {
        /// The repeated path.
        path: PathBuf,
    },
    /// `upperdir=` without `workdir=`.
    #[error(
        "upperdir={upper:?} without workdir: add workdir=DIR, an empty directory on the filesystem of the \
         upper but not inside it"
    )]
    UpperWithoutWork {
        /// The upper.
        upper: PathBuf,
    },
    /// `workdir=` without `upperdir=`.
    #[error(
        "workdir={work:?} without upperdir: add upperdir=DIR for a writable mount, or leave workdir out for \
         a read-only one"
    )]
    WorkWithoutUpper {
        /// The work directory.
        work: PathBuf,
    },
    /// Upper and work are one directory, or one is in the other.
    #[error(
        "upperdir={upper:?} and workdir={work:?} overlap: use two directories side by side on one filesystem"
    )]
    UpperOverlapsWork {
        /// The upper.
        upper: PathBuf,
        /// The work directory.
        work: PathBuf,
    },
    /// A directory is both a lower and the upper or work.
    #[error("{path:?} is both a lower layer and the {role}: use a directory of its own for the {role}")]
    LowerIsWritable {
        /// The directory.
        path: PathBuf,
        /// `upperdir` or `workdir`.
        role: &'static str,
    },
    /// The same thing said by an option of the command line and in the `-o` text.
    #[error("{what} is given both as {flag} and as `{option}=`: use one of the two")]
    GivenTwice {
        /// What is named.
        what: &'static str,
        /// The option of the command line.
        flag: &'static str,
        /// The word in the `-o` text.
        option: &'static str,
    },
    /// A value is missing.
    #[error("option `{option}` needs a value: write `{option}={form}`")]
    MissingValue {
        /// The option.
        option: &'static str,
        /// What the value looks like.
        form: &'static str,
    },
    /// A value where none belongs.
    #[error("option `{option}` takes no value, but `{option}={value}` was given", value = .value.display())]
    UnexpectedValue {
        /// The option.
        option: &'static str,
        /// The text after the equals sign.
        value: OsString,
    },
    /// A value that the option does not know.
    #[error("option `{option}={value}`: expected {expected}", value = .value.display())]
    BadValue {
        /// The option.
        option: &'static str,
        /// The text after the equals sign.
        value: OsString,
        /// What was expected, in words.
        expected: &'static str,
    },
    /// An id mapping that maps nothing sensible.
    #[error("option `{option}={value}`: {fault}", value = .value.display())]
    IdMap {
        /// `uidmapping` or `gidmapping`.
        option: &'static str,
        /// The text after the equals sign.
        value: OsString,
        /// What is wrong with it.
        fault: IdMapFault,
    },
    /// `0:1000:1` standing alone between commas.
    #[error(
        "`{word}` looks like a range of uidmapping or gidmapping: join ranges by colons \
         (uidmapping=0:1000:1:1:100000:65536), commas separate options"
    )]
    StrayIdRange {
        /// The word as written.
        word: String,
    },
    /// Quotes that do not close, or text after the closing one.
    #[error(
        "option `{option}={value}`: put the whole label between one pair of double quotes, as in \
         {option}=\"system_u:object_r:container_file_t:s0:c1,c2\"", value = .value.display()
    )]
    Quotes {
        /// The option.
        option: &'static str,
        /// The text after the equals sign.
        value: OsString,
    },
    /// A backslash with nothing behind it.
    #[error("option `{option}={value}` ends in a backslash: write \\\\ for one", value = .value.display())]
    DanglingEscape {
        /// The option.
        option: &'static str,
        /// The text after the equals sign.
        value: OsString,
    },
    /// Two options that cannot both hold.
    #[error("options `{first}` and `{second}` contradict each other: {reason}; leave one of them out")]
    Contradiction {
        /// One option as written.
        first: &'static str,
        /// The other one.
        second: &'static str,
        /// Why they exclude each other.
        reason: &'static str,
    },
    /// An option whose promise cannot be kept here, and whose silent loss would do harm.
    #[error("option `{option}={value}` is not supported: {reason}", value = .value.display())]
    Unsupported {
        /// The option.
        option: &'static str,
        /// The text after the equals sign.
        value: OsString,
        /// What to do instead.
        reason: &'static str,
    },
    /// `remount` where a mount is described.
    #[error("`remount` changes a mount that is there: use it as `mount -o remount,... MERGED`")]
    Remount,
}

/// What is wrong with the ranges of an id mapping.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdMapFault {
    /// The numbers do not come in threes.
    #[error("{fields} numbers are not triples DISK:SHOWN:LENGTH joined by colons")]
    NotTriples {
        /// How many numbers there are.
        fields: usize,
    },
    /// Something else than a decimal number below 2^32.
    #[error("`{field}` is not a number below 4294967296")]
    NotNumber {
        /// The field as written (lossy).
        field: String,
    },
    /// A range of no ids.
    #[error("the range {disk}:{shown}:0 is empty: give a length of at least 1")]
    Empty {
        /// First id on disk.
        disk: u32,
        /// First id shown.
        shown: u32,
    },
    /// A range that runs past the last valid id.
    #[error("the range {}:{}:{} runs past id 4294967294, the last there is", .0.disk, .0.shown, .0.length)]
    TooLong(IdRange),
    /// Two ranges share ids.
    #[error(
        "the ranges {}:{}:{} and {}:{}:{} share ids {side}: make them disjoint",
        .first.disk, .first.shown, .first.length, .second.disk, .second.shown, .second.length
    )]
    Overlap {
        /// One range.
        first: IdRange,
        /// The other one.
        second: IdRange,
        /// `on disk` or `as shown`.
        side: &'static str,
    },
}
