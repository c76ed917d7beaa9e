//! Words of an instruction, quotes and escapes kept, and flags in front of them.

use super::is_blank;

/// Splits at white space outside of quotes; quotes and escapes stay in the words (`ENV`, `LABEL`, `ARG`).
pub fn split_words(text: &str, escape: char) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            (letter, None) if letter.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            (letter, quote_now) if letter == escape && quote_now != Some('\'') => {
                word.push(letter);
                word.extend(letters.next());
            }
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.push(letter);
            }
            (letter, open) => {
                if open == Some(letter) {
                    quote = None;
                }
                word.push(letter);
            }
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Takes `--flag` words off the front; `--` alone ends them.
pub(super) fn take_flags(text: &str) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(is_blank);
        if !rest.starts_with("--") {
            return (flags, rest);
        }
        let (mut word, mut quote, mut end) = (String::new(), None, rest.len());
        let mut letters = rest.char_indices();
        while let Some((at, letter)) = letters.next() {
            match (letter, quote) {
                (letter, None) if letter.is_whitespace() => {
                    end = at;
                    break;
                }
                ('\\', None | Some('"')) => word.extend(letters.next().map(|(_, letter)| letter)),
                ('"' | '\'', None) => quote = Some(letter),
                (letter, Some(open)) if letter == open => quote = None,
                (letter, _) => word.push(letter),
            }
        }
        rest = rest.get(end..).unwrap_or_default();
        if word == "--" {
            return (flags, rest);
        }
        flags.push(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_words_together() {
        assert_eq!(split_words(r#"A="b c" D=e\ f 'g h'=i"#, '\\'), [r#"A="b c""#, r"D=e\ f", "'g h'=i"]);
        assert_eq!(split_words("a \"b", '\\'), ["a", "\"b"]);
        assert!(split_words(" \t", '\\').is_empty());
    }
}
