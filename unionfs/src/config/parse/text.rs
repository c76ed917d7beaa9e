//! Option text as bytes: splitting at commas and colons, escapes, quotes. No meaning, no I/O.
//!
//! The rules are those of kernel overlayfs: a backslash takes the meaning from the byte behind it, whatever
//! that byte is; nothing else is special in a path. Double quotes count only around the value of a security
//! label (`context=` and its relatives), whose categories are separated by commas.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Options whose value is a security label and may stand between double quotes.
pub(super) const LABELS: [&str; 4] = ["context", "fscontext", "defcontext", "rootcontext"];

/// One option as written: the name up to the first `=`, and what follows it, still escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RawWord<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: Option<&'a [u8]>,
}

/// Splits option text at its unescaped, unquoted commas. Empty words (`a,,b`) are left out.
pub(super) fn words(text: &[u8]) -> Vec<RawWord<'_>> {
    let mut words = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = word_end(rest);
        let word = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        if word.is_empty() {
            continue;
        }
        words.push(match word.iter().position(|&b| b == b'=') {
            Some(at) => RawWord { name: &word[..at], value: Some(&word[at + 1..]) },
            None => RawWord { name: word, value: None },
        });
    }
    words
}

/// Offset of the comma that ends the first word of `text`, or the end of the text.
fn word_end(text: &[u8]) -> usize {
    let mut at = match label_value_start(text) {
        // A quote that never closes ends at the next comma; the label's own check refuses it then.
        Some(start) => text[start + 1..].iter().position(|&b| b == b'"').map_or(start, |p| start + 1 + p + 1),
        None => 0,
    };
    while at < text.len() {
        match text[at] {
            b',' => return at,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

/// Offset of the opening quote when the first word of `text` is a label that begins with one.
fn label_value_start(text: &[u8]) -> Option<usize> {
    LABELS.iter().find_map(|name| {
        let rest = text.strip_prefix(name.as_bytes())?;
        rest.starts_with(b"=\"").then_some(name.len() + 1)
    })
}

/// Splits a list of layers at its unescaped colons; the elements are still escaped.
pub(super) fn layers(list: &[u8]) -> Vec<&[u8]> {
    let mut elements = Vec::new();
    let (mut start, mut at) = (0, 0);
    while at < list.len() {
        match list[at] {
            b':' => {
                elements.push(&list[start..at]);
                at += 1;
                start = at;
            }
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    elements.push(&list[start..]);
    elements
}

/// Takes the escapes out; `None` when the text ends in a backslash that escapes nothing.
pub(super) fn unescape(text: &[u8]) -> Option<OsString> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        plain.push(if byte == b'\\' { *bytes.next()? } else { byte });
    }
    Some(OsString::from_vec(plain))
}

/// A path as an element of `lowerdir=` (or the value of `upperdir=`, `workdir=`): `\`, `:` and `,` escaped.
pub fn escape_path(path: &Path) -> OsString {
    let mut escaped = Vec::with_capacity(path.as_os_str().len());
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'\\' | b':' | b',') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    OsString::from_vec(escaped)
}

/// Bytes of option text as an owned string for a message.
pub(super) fn shown(bytes: &[u8]) -> OsString {
    OsStr::from_bytes(bytes).to_os_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Words = Vec<(String, Option<String>)>;

    fn split(text: &str) -> Words {
        let string = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
        words(text.as_bytes()).into_iter().map(|w| (string(w.name), w.value.map(string))).collect()
    }

    #[test]
    fn words_end_at_plain_commas_only() {
        let word = |n: &str, v: Option<&str>| (n.to_owned(), v.map(str::to_owned));
        let table: &[(&str, Words)] = &[
            ("", vec![]),
            (",,", vec![]),
            ("ro", vec![word("ro", None)]),
            ("ro,,dev,", vec![word("ro", None), word("dev", None)]),
            ("a=b=c", vec![word("a", Some("b=c"))]),
            (r"lowerdir=/a\,b,ro", vec![word("lowerdir", Some(r"/a\,b")), word("ro", None)]),
            (r"lowerdir=/a\\,ro", vec![word("lowerdir", Some(r"/a\\")), word("ro", None)]),
            (r"lowerdir=/a\", vec![word("lowerdir", Some(r"/a\"))]),
            (
                r#"context="u:r:t:s0:c1,c2",ro"#,
                vec![word("context", Some(r#""u:r:t:s0:c1,c2""#)), word("ro", None)],
            ),
            (r#"context=u:r:t:s0,ro"#, vec![word("context", Some("u:r:t:s0")), word("ro", None)]),
            // A quote in a path is a byte like any other.
            (r#"lowerdir=/a",ro"#, vec![word("lowerdir", Some(r#"/a""#)), word("ro", None)]),
            (r#"lowerdir="/a,ro"#, vec![word("lowerdir", Some(r#""/a"#)), word("ro", None)]),
            (r#"context="open,ro"#, vec![word("context", Some(r#""open"#)), word("ro", None)]),
        ];
        for (text, expected) in table {
            assert_eq!(&split(text), expected, "{text}");
        }
    }

    #[test]
    fn layers_end_at_plain_colons_only() {
        let table: &[(&str, &[&str])] = &[
            ("", &[""]),
            ("a", &["a"]),
            ("a:b", &["a", "b"]),
            (r"a\:b:c", &[r"a\:b", "c"]),
            (r"a\\:b", &[r"a\\", "b"]),
            ("a::b", &["a", "", "b"]),
            (":", &["", ""]),
            (r"a\", &[r"a\"]),
        ];
        for (text, expected) in table {
            let found: Vec<_> =
                layers(text.as_bytes()).into_iter().map(|l| std::str::from_utf8(l).unwrap()).collect();
            assert_eq!(&found, expected, "{text}");
        }
    }

    #[test]
    fn escapes_come_off_one_level() {
        assert_eq!(unescape(br"a\:b\,c\\d").unwrap(), r"a:b,c\d");
        assert_eq!(unescape(br"a\b").unwrap(), "ab");
        assert_eq!(unescape(br"a\\"), Some(r"a\".into()));
        assert_eq!(unescape(br"a\"), None);
        assert_eq!(unescape(b""), Some(OsString::new()));
        assert_eq!(unescape(b"\xff\\,"), Some(OsString::from_vec(b"\xff,".to_vec())));
    }
}
