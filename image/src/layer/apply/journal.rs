//! What is to be done, on disk, from before the first temporary is made until the last step is done.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ApplyError;
use super::plan::Action;

/// The document.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Journal {
    /// All is prepared: it is carried out, whatever happens. Else nothing has been put in its place.
    pub(super) complete: bool,
    /// All changes of the upper are applied: nothing of it is needed then.
    pub(super) whole: bool,
    pub(super) entries: Vec<Entry>,
    /// Times of directories that stay.
    pub(super) times: Vec<DirectoryTime>,
}

/// A directory, and its time of modification.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct DirectoryTime {
    #[serde(with = "bytes")]
    pub(super) path: Vec<u8>,
    pub(super) time: (i64, u32),
}

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Bytes of paths need not be text.
    #[serde(with = "bytes")]
    pub(super) path: Vec<u8>,
    pub(super) action: StepAction,
    /// Where the new object waits, or the old one goes, on the same filesystem.
    #[serde(with = "bytes")]
    pub(super) beside: Vec<u8>,
    /// Inode number: of the new object, else of the old.
    pub(super) ino: u64,
    /// Of a new directory: its time of modification, which changes with all that is put in.
    pub(super) time: Option<(i64, u32)>,
}

/// [`Action`], as the journal has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum StepAction {
    Put,
    Attributes,
    Remove,
}

impl From<Action> for StepAction {
    fn from(action: Action) -> Self {
        match action {
            Action::Put => Self::Put,
            Action::Attributes => Self::Attributes,
            Action::Remove => Self::Remove,
        }
    }
}

/// Bytes as text, those that are none of ASCII's as `%XX`.
mod bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(bytes.len());
        for byte in bytes {
            match byte {
                0x20..=0x7e if *byte != b'%' => text.push(char::from(*byte)),
                byte => text.push_str(&format!("%{byte:02x}")),
            }
        }
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut rest = text.as_bytes();
        let mut bytes = Vec::with_capacity(rest.len());
        while let [first, after @ ..] = rest {
            if *first == b'%' {
                let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
                let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                bytes.push(byte.ok_or_else(|| D::Error::custom("a path is no path"))?);
                rest = &after[2..];
            } else {
                bytes.push(*first);
                rest = after;
            }
        }
        Ok(bytes)
    }
}

impl Journal {
    /// Writes it, so that it is there whatever happens to the machine.
    pub(super) fn save(&self, path: &Path) -> Result<(), ApplyError> {
        let beside = path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&beside)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()?;
            fs::rename(&beside, path)?;
            sync_parent(path)
        };
        write().map_err(|source| ApplyError::Journal { path: path.to_owned(), source })
    }
}

pub(super) fn load(path: &Path) -> Result<Option<Journal>, ApplyError> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(|source| ApplyError::Journal { path: path.to_owned(), source })?,
    };
    let damaged =
        |error: serde_json::Error| ApplyError::Damaged { path: path.to_owned(), words: error.to_string() };
    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

pub(super) fn remove(path: &Path) -> Result<(), ApplyError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.and_then(|()| sync_parent(path)),
    }
    .map_err(|source| ApplyError::Journal { path: path.to_owned(), source })
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.json");
        assert_eq!(load(&path).unwrap(), None);
        let entry = Entry {
            path: b"/a%\xff\n b".to_vec(),
            action: StepAction::Put,
            beside: b"/x".to_vec(),
            ino: 7,
            time: Some((1, 2)),
        };
        let journal = Journal { complete: true, whole: true, entries: vec![entry], times: Vec::new() };
        journal.save(&path).unwrap();
        assert_eq!(load(&path).unwrap(), Some(journal));
        fs::write(&path, "{").unwrap();
        assert!(matches!(load(&path), Err(ApplyError::Damaged { .. })));
        remove(&path).unwrap();
        remove(&path).unwrap();
    }
}
