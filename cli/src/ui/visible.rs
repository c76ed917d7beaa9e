//! What comes from images and containers, and is shown to whoever looks after them: no letter of it may speak to the terminal.

use std::borrow::Cow;
use std::io::{self, IsTerminal};

/// `text` with control characters written as escapes, also those that turn the direction of writing.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unseen) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        match letter {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            letter if is_unseen(letter) && letter.is_ascii() => {
                shown.push_str(&format!("\\x{:02x}", u32::from(letter)));
            }
            letter if is_unseen(letter) => shown.push_str(&format!("\\u{:04x}", u32::from(letter))),
            letter => shown.push(letter),
        }
    }
    Cow::Owned(shown)
}

fn is_unseen(letter: char) -> bool {
    letter.is_control() || matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A path for standard output: as it is for a program that reads it, [`visible`] for a terminal.
pub(crate) fn path(path: &[u8]) -> Cow<'_, [u8]> {
    match io::stdout().is_terminal() {
        true => Cow::Owned(visible(&String::from_utf8_lossy(path)).into_owned().into_bytes()),
        false => Cow::Borrowed(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_names_do_not_speak_to_the_terminal() {
        assert_eq!(visible("plain é 日本"), "plain é 日本");
        assert_eq!(visible("a\u{1b}[3A\u{7}b"), "a\\x1b[3A\\x07b");
        assert_eq!(visible("a\tb\nc\u{9b}d\u{202e}"), "a\\tb\\nc\\u009bd\\u202e");
    }
}
