//! Reading the document: what is not valid JSON of its kind is told with the field's name.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::de::DeserializeOwned;

use super::ConfigError;

/// Name of the document in a bundle.
pub const FILE: &str = "config.json";
/// A document is not longer than this, in bytes.
const LENGTH_MAX: u64 = 16 << 20;

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what the specification says.
    #[error("{}: {source}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The field and what is wrong with it.
        source: ConfigError,
    },
}

/// Reads the document of `bundle`: its text, and what it says.
///
/// # Errors
/// When it cannot be read, or a field of it has the wrong type or an unknown word.
pub fn read(bundle: &Path) -> Result<(Vec<u8>, Spec), DocumentError> {
    let path = bundle.join(FILE);
    let text = read_file(&path)?;
    match parse(&text) {
        Ok(spec) => Ok((text, spec)),
        Err(source) => Err(DocumentError::Content { path, source }),
    }
}

/// Reads another document, such as the process of `exec`.
///
/// # Errors
/// As [`read`].
pub fn read_as<T: DeserializeOwned>(path: &Path) -> Result<T, DocumentError> {
    parse(&read_file(path)?).map_err(|source| DocumentError::Content { path: path.to_owned(), source })
}

fn read_file(path: &Path) -> Result<Vec<u8>, DocumentError> {
    let failed = |source| DocumentError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > LENGTH_MAX {
        return Err(failed(io::Error::other("it is longer than any such document")));
    }
    fs::read(path).map_err(failed)
}

/// The specification's spelling of two flags of schedulers, and the one that the types understand.
const SCHEDULER_FLAGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// `text`, with flags of schedulers as the types spell them. Documents without such flags are not looked at.
fn respelled(text: &[u8]) -> Cow<'_, [u8]> {
    let mark = b"SCHED_FLAG_";
    if !text.windows(mark.len()).any(|part| part == mark) {
        return text.into();
    }
    // What is no JSON is told as it was written.
    let Ok(mut document) = serde_json::from_slice::<serde_json::Value>(text) else { return text.into() };
    for pointer in ["/process/scheduler/flags", "/scheduler/flags"] {
        for flag in document.pointer_mut(pointer).and_then(|flags| flags.as_array_mut()).into_iter().flatten()
        {
            if let Some((_, known)) = SCHEDULER_FLAGS.iter().find(|(spelling, _)| flag == spelling) {
                *flag = (*known).into();
            }
        }
    }
    serde_json::to_vec(&document).map_or(text.into(), Cow::from)
}

/// `text`, with the user that a process has which names none: root, as other runtimes have it. `None` where every process
/// names its user.
fn with_user(text: &[u8]) -> Option<Vec<u8>> {
    let mut document = serde_json::from_slice::<serde_json::Value>(text).ok()?;
    // A document of a container, or one of a process alone.
    let process = match document.get("process") {
        Some(_) => document.get_mut("process")?,
        None => &mut document,
    };
    let process = process.as_object_mut()?;
    if !process.contains_key("cwd") || process.get("user").is_some_and(|user| !user.is_null()) {
        return None;
    }
    process.insert("user".to_owned(), serde_json::json!({"uid": 0, "gid": 0}));
    serde_json::to_vec(&document).ok()
}

/// The document that `text` is.
///
/// # Errors
/// The field that is wrong.
pub fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, ConfigError> {
    let text = respelled(text);
    // Few documents leave the user out: only one that is refused as it stands is looked at again.
    parse_exactly(&text).or_else(|refused| match with_user(&text) {
        Some(completed) => parse_exactly(&completed),
        None => Err(refused),
    })
}

fn parse_exactly<T: DeserializeOwned>(text: &[u8]) -> Result<T, ConfigError> {
    serde_json::from_slice(text).map_err(|error| {
        // Slower, and only needed to say where.
        let mut reader = serde_json::Deserializer::from_slice(text);
        let located: Result<T, _> = serde_path_to_error::deserialize(&mut reader);
        let field = match &located {
            // The path of what ended before it had a name is a question mark.
            Err(located) if !located.path().to_string().starts_with(['?', '.']) => located.path().to_string(),
            _ => "document".to_owned(),
        };
        ConfigError::new(field, error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_a_process_without_a_user_is_roots() {
        for process in [r#"{"cwd":"/"}"#, r#"{"cwd":"/","user":null}"#, r#"{"cwd":"/","user":{}}"#] {
            let spec =
                parse::<Spec>(format!(r#"{{"ociVersion":"1.0.2","process":{process}}}"#).as_bytes()).unwrap();
            let alone = parse::<oci_spec::runtime::Process>(process.as_bytes()).unwrap();
            for user in [spec.process().as_ref().unwrap().user(), alone.user()] {
                assert_eq!((user.uid(), user.gid()), (0, 0), "{process}");
            }
        }
        let error = parse::<Spec>(br#"{"ociVersion":"1.0.2","process":{"cwd":"/","user":7}}"#).unwrap_err();
        assert!(error.field().starts_with("process.user"), "{error}");
        let error = parse::<Spec>(br#"{"ociVersion":"1.0.2","process":{"cwd":"/","args":7}}"#).unwrap_err();
        assert!(error.field().starts_with("process.args"), "{error}");
    }

    #[test]
    fn the_field_of_an_unknown_word_is_named() {
        let json = r#"{"ociVersion":"1.0.2","process":{"cwd":"/","user":{"uid":0,"gid":0},
                       "capabilities":{"bounding":["CAP_CHOWN","CAP_FLY"]}}}"#;
        let error = parse::<Spec>(json.as_bytes()).unwrap_err();
        assert!(error.field().starts_with("process.capabilities.bounding"), "{error}");
        let json = r#"{"ociVersion":"1.0.2","linux":{"seccomp":{"defaultAction":"SCMP_ACT_SHRUG"}}}"#;
        let error = parse::<Spec>(json.as_bytes()).unwrap_err();
        assert_eq!(error.field(), "linux.seccomp.defaultAction");
        let error = parse::<Spec>(b"{").unwrap_err();
        assert_eq!(error.field(), "document");
    }
}
