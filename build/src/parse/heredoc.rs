//! Here-documents: `<<NAME`, `<<-NAME`, `<<"NAME"`, several in a line.

use crate::expand::{Lexer, NoVariables};

/// A here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// What ends it; in `COPY` the file's name too.
    pub name: String,
    /// Its lines, each with its end.
    pub content: String,
    /// Variables in it are replaced: no part of its name is in quotes.
    pub expand: bool,
    /// Tabs at the beginning of lines go.
    pub chomp: bool,
    /// The descriptor in front of `<<`, 0 without one.
    pub descriptor: u32,
}

impl Heredoc {
    /// Its content as it is meant, without the tabs that `<<-` takes off.
    pub fn text(&self) -> String {
        if self.chomp { chomp(&self.content) } else { self.content.clone() }
    }
}

/// Takes the tabs off at the beginning of each line.
pub fn chomp(text: &str) -> String {
    text.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}

/// The here-document that a word begins; its content is empty.
pub fn parse_heredoc(word: &str) -> Option<Heredoc> {
    let digits = word.len() - word.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
    let (number, rest) = word.split_at(digits);
    let rest = rest.strip_prefix("<<")?;
    let (chomp, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let rest = rest.trim_start();
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let plain = Lexer::new('\\').keep_unset().words(rest, &NoVariables).ok()?;
    let raw = Lexer::new('\\').keep_unset().raw().words(rest, &NoVariables).ok()?;
    let ([name], [raw]) = (plain.as_slice(), raw.as_slice()) else { return None };
    if name.is_empty() {
        return None;
    }
    let descriptor = if number.is_empty() { 0 } else { number.parse().ok()? };
    Some(Heredoc { name: name.clone(), content: String::new(), expand: name == raw, chomp, descriptor })
}

/// Those that a line begins.
pub(super) fn in_line(line: &str, escape: char) -> Vec<Heredoc> {
    // A line that is no list of words is the shell's affair.
    let words = Lexer::new(escape).keep_unset().raw().words(line, &NoVariables).unwrap_or_default();
    words.iter().filter_map(|word| parse_heredoc(word)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_begin_one() {
        let one = parse_heredoc("3<<-\"E\"OF").unwrap();
        assert_eq!((one.name.as_str(), one.expand, one.chomp, one.descriptor), ("EOF", false, true, 3));
        assert!(parse_heredoc("<<EOF").unwrap().expand);
        for word in ["<<", "<<<x", "a<<EOF", "<EOF", "<<-"] {
            assert!(parse_heredoc(word).is_none(), "{word}");
        }
        assert_eq!(chomp("\t\ta\n b\n\tc"), "a\n b\nc");
    }
}
