//! From text to instructions with their words not yet understood: lines, continuation, comments, parser directives,
//! here-documents, flags. As BuildKit's parser reads them (`frontend/dockerfile/parser`).

mod directives;
mod heredoc;
mod words;

pub use directives::Directives;
pub use heredoc::{Heredoc, chomp, parse_heredoc};
pub use words::split_words;

use crate::check::{Check, Warning};
use crate::error::LanguageError;

/// One instruction as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The instruction's name in capitals.
    pub keyword: String,
    /// `--name[=value]` in front of the rest, quotes taken off.
    pub flags: Vec<String>,
    /// What follows, continuation lines joined, trimmed.
    pub rest: String,
    /// The rest as a list, when it is a JSON array of texts and the instruction may have one.
    pub json: Option<Vec<String>>,
    /// Here-documents, in the order of their beginnings.
    pub heredocs: Vec<Heredoc>,
    /// First and last line, counted from 1, here-documents included.
    pub lines: (usize, usize),
}

/// A Dockerfile, read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Document {
    /// In the order of the text.
    pub nodes: Vec<Node>,
    /// What stood at its top.
    pub directives: Directives,
    /// What is allowed and unwise.
    pub warnings: Vec<Warning>,
}

/// Longest text that is read, in bytes.
pub const MAX_TEXT: usize = 8 << 20;

/// Reads a Dockerfile.
///
/// # Errors
/// The first thing that cannot be read.
pub fn parse(text: &str) -> Result<Document, LanguageError> {
    if text.len() > MAX_TEXT {
        return Err(LanguageError::new((0, 0), format!("it is longer than {MAX_TEXT} bytes")));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let directives = directives::read(text)?;
    let escape = directives.escape;
    let mut document = Document { directives, ..Document::default() };
    let mut lines = Lines { rest: text, number: 0 };
    while let Some(line) = lines.next() {
        let start = lines.number;
        let line = without_end(line).trim_start_matches(is_blank);
        if line.starts_with('#') {
            continue;
        }
        let (line, mut continues) = without_continuation(line, escape);
        if line.trim_matches(is_blank).is_empty() && !continues {
            continue;
        }
        let mut joined = line.to_owned();
        let mut has_empty_line = false;
        while continues {
            let Some(next) = lines.next() else { break };
            let next = without_end(next);
            let trimmed = next.trim_start_matches(is_blank);
            if trimmed.starts_with('#') {
                continue;
            }
            if trimmed.is_empty() {
                has_empty_line = true;
                continue;
            }
            let (next, more) = without_continuation(next, escape);
            joined.push_str(next);
            continues = more;
        }
        if has_empty_line {
            let words = "empty lines in a continued instruction: they end it one day";
            document.warnings.push(Warning::new(Check::NoEmptyContinuation, start, words));
        }
        if joined.trim().is_empty() {
            continue;
        }
        let mut node = node_of(&joined, (start, lines.number))?;
        if node.may_have_heredocs() && joined.contains("<<") {
            for mut heredoc in heredoc::in_line(&joined, escape) {
                read_heredoc(&mut lines, &mut heredoc, start)?;
                node.heredocs.push(heredoc);
            }
            node.lines.1 = lines.number;
        }
        document.nodes.push(node);
    }
    if document.nodes.is_empty() {
        return Err(LanguageError::new((0, 0), "the file has no instructions").hint("begin with FROM IMAGE"));
    }
    Ok(document)
}

fn read_heredoc(lines: &mut Lines<'_>, heredoc: &mut Heredoc, start: usize) -> Result<(), LanguageError> {
    while let Some(line) = lines.next() {
        let mut end = without_end(line);
        if heredoc.chomp {
            end = end.trim_start_matches('\t');
        }
        if end == heredoc.name {
            return Ok(());
        }
        heredoc.content.push_str(line);
    }
    Err(LanguageError::new((start, start), format!("unterminated here-document {:?}", heredoc.name))
        .mark(format!("<<{}", if heredoc.chomp { "-" } else { "" }))
        .hint(format!("end it by a line with nothing but {}", heredoc.name)))
}

struct Lines<'a> {
    rest: &'a str,
    number: usize,
}

impl<'a> Lines<'a> {
    /// The next line with its end.
    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let end = self.rest.find('\n').map_or(self.rest.len(), |at| at + 1);
        let (line, rest) = self.rest.split_at(end);
        self.rest = rest;
        self.number += 1;
        Some(line)
    }
}

fn without_end(line: &str) -> &str {
    let line = line.strip_suffix('\n').unwrap_or(line);
    line.strip_suffix('\r').unwrap_or(line)
}

/// White space within a line, as the parser has it.
fn is_blank(letter: char) -> bool {
    matches!(letter, ' ' | '\t' | '\u{b}' | '\u{c}' | '\r')
}

/// An escape character at the end that is not itself escaped, blanks after it allowed.
fn without_continuation(line: &str, escape: char) -> (&str, bool) {
    let trimmed = line.trim_end_matches([' ', '\t']);
    match trimmed.strip_suffix(escape) {
        Some(before) if !before.ends_with(escape) => (before, true),
        _ => (line, false),
    }
}

fn node_of(line: &str, lines: (usize, usize)) -> Result<Node, LanguageError> {
    let line = line.trim_matches(|letter: char| is_blank(letter) || letter.is_whitespace());
    let (word, rest) = line.split_once(is_blank).unwrap_or((line, ""));
    let keyword = word.to_ascii_uppercase();
    let (flags, rest) = words::take_flags(rest.trim_start_matches(is_blank));
    let rest = rest.trim().to_owned();
    let mut node = Node { keyword, flags, rest, json: None, heredocs: Vec::new(), lines };
    if matches!(node.keyword.as_str(), "ADD" | "COPY" | "CMD" | "ENTRYPOINT" | "RUN" | "SHELL" | "VOLUME") {
        node.json = json_list(&node.rest, lines)?;
    }
    Ok(node)
}

/// A JSON array of texts. What is no JSON is left for the shell; an array of something else is a mistake.
pub(crate) fn json_list(text: &str, lines: (usize, usize)) -> Result<Option<Vec<String>>, LanguageError> {
    if !text.starts_with('[') {
        return Ok(None);
    }
    let Ok(serde_json::Value::Array(items)) = serde_json::from_str(text) else { return Ok(None) };
    let texts: Option<Vec<String>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
    match texts {
        Some(texts) => Ok(Some(texts)),
        None => Err(LanguageError::new(lines, "a JSON array here has texts only")
            .mark(text)
            .hint("write [\"program\", \"argument\"]")),
    }
}

impl Node {
    fn may_have_heredocs(&self) -> bool {
        let keyword = match self.keyword.as_str() {
            "ONBUILD" => self.rest.split(is_blank).next().unwrap_or_default().to_ascii_uppercase(),
            keyword => keyword.to_owned(),
        };
        matches!(keyword.as_str(), "ADD" | "COPY" | "RUN") && self.json.is_none()
    }

    /// The instruction in one line, as its author wrote it, without here-documents.
    pub fn text(&self) -> String {
        let flags: String = self.flags.iter().map(|flag| format!(" {flag}")).collect();
        match self.rest.is_empty() {
            true => format!("{}{flags}", self.keyword),
            false => format!("{}{flags} {}", self.keyword, self.rest),
        }
    }
}

/// Reads one instruction, a trigger that an image left.
///
/// # Errors
/// As [`parse`].
pub fn parse_one(text: &str) -> Result<Node, LanguageError> {
    let document = parse(text)?;
    let mut nodes = document.nodes.into_iter();
    match (nodes.next(), nodes.next()) {
        (Some(node), None) => Ok(node),
        _ => Err(LanguageError::new((1, 1), "a trigger is one instruction")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap().nodes.into_iter().map(|node| (node.keyword, node.rest)).collect()
    }

    fn one(text: &str) -> Node {
        parse(text).unwrap().nodes.remove(0)
    }

    #[test]
    fn lines_are_joined_and_comments_left_out() {
        let text = "# c\n\n  from a\nRUN x \\\n  # comment within\n\n  y \\ \n  z\nRUN a\\\\\nRUN \\\n b\n";
        let found = nodes(text);
        let wanted = [("FROM", "a"), ("RUN", "x   y   z"), ("RUN", "a\\\\"), ("RUN", "b")];
        assert_eq!(found, wanted.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(parse(text).unwrap().warnings.len(), 1);
    }

    #[test]
    fn windows_lines_and_byte_order_mark() {
        assert_eq!(nodes("\u{feff}FROM a\r\nRUN b \\\r\n c\r\n")[1].1, "b  c");
    }

    #[test]
    fn a_comment_sign_in_a_line_is_no_comment() {
        assert_eq!(one("RUN echo # not a comment").rest, "echo # not a comment");
    }

    #[test]
    fn the_escape_character_can_be_another() {
        let text = "# escape=`\nFROM a `\n AS b\nRUN dir c:\\\n";
        assert_eq!(
            nodes(text),
            [("FROM".into(), "a  AS b".into()), ("RUN".to_owned(), "dir c:\\".to_owned())]
        );
    }

    #[test]
    fn heredocs_are_taken_whole() {
        let node = one("RUN <<EOF cat <<-\"END\"\na\n  # kept\\\nEOF\n\tb\n\tEND\n");
        assert_eq!(node.rest, "<<EOF cat <<-\"END\"");
        assert_eq!(node.heredocs.len(), 2);
        assert_eq!((node.heredocs[0].content.as_str(), node.heredocs[0].expand), ("a\n  # kept\\\n", true));
        assert_eq!((node.heredocs[1].content.as_str(), node.heredocs[1].expand), ("\tb\n", false));
        assert!(node.heredocs[1].chomp);
        assert_eq!(node.lines, (1, 6));
        let open = parse("RUN <<EOF\nx\n").unwrap_err();
        assert!(open.message.contains("unterminated"), "{open}");
        // Not where the shell has none.
        assert!(one("CMD echo <<EOF").heredocs.is_empty());
        assert!(one("RUN [\"a\", \"<<EOF\"]").heredocs.is_empty());
        assert!(one("RUN echo '<<EOF'").heredocs.is_empty());
        assert_eq!(parse("ONBUILD RUN <<E\nx\nE\n").unwrap().nodes[0].heredocs.len(), 1);
    }

    #[test]
    fn flags_come_before_the_rest() {
        let node = one("RUN --mount=type=cache,target=/x --network=\"none\" -- --not-a-flag");
        assert_eq!(node.flags, ["--mount=type=cache,target=/x", "--network=none"]);
        assert_eq!(node.rest, "--not-a-flag");
        assert_eq!(one("COPY --from=a\\ b x y").flags, ["--from=a b"]);
    }

    #[test]
    fn json_falls_back_to_the_shell() {
        assert_eq!(one("RUN [\"a\", \"b c\"]").json, Some(vec!["a".into(), "b c".into()]));
        assert_eq!(one("RUN ['a']").json, None);
        assert_eq!(one("CMD [ -f x ]").json, None);
        assert!(parse("CMD [1]").is_err());
        assert_eq!(one("CMD []").json, Some(Vec::new()));
    }

    #[test]
    fn an_empty_file_is_refused() {
        for text in ["", "# only\n", "\n\n", "\\\n"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[ -~\\n\\t\\\\`#<$éß\\u{feff}]{0,120}") {
            let _result = parse(&text);
        }

        #[test]
        fn never_panics_on_likely_text(words in proptest::collection::vec(
            proptest::sample::select(vec!["FROM", "RUN", " ", "\n", "\\\n", "<<EOF", "<<-'E'", "EOF\n", "--mount=", "[\"a\"]",
                "# escape=`\n", "$", "${a:-", "}", "\"", "'", "\\", "ONBUILD ", "COPY", "é", "\t"]), 0..30)) {
            let text = words.concat();
            if let Ok(document) = parse(&text) {
                for node in &document.nodes {
                    let _result = crate::instruction::understand(node, document.directives.escape);
                }
            }
        }
    }
}
