//! What is wrong with a Dockerfile, shown with its line.

use std::fmt::Write;

/// Something in a Dockerfile that cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LanguageError {
    /// What is wrong, lower case, without a full stop.
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
    /// First and last line of the instruction, counted from 1; 0 where no line is at fault.
    pub lines: (usize, usize),
    /// The text in these lines that is at fault, for the mark under it.
    pub mark: Option<String>,
}

/// Lines of one instruction that are shown at most.
const SHOWN: usize = 6;

impl LanguageError {
    /// Something wrong in the instruction at `lines`.
    pub fn new(lines: (usize, usize), message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, lines, mark: None }
    }

    /// With what would be right.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With the text that is at fault.
    #[must_use]
    pub fn mark(mut self, text: impl Into<String>) -> Self {
        self.mark = Some(text.into()).filter(|text: &String| !text.is_empty());
        self
    }

    /// Place and message, then the lines of `text` at fault with a mark under what is wrong. `file` is the
    /// Dockerfile's name.
    pub fn shown(&self, file: &str, text: &str) -> String {
        shown(file, text, self.lines, self.mark.as_deref(), &self.message)
    }
}

/// `message` with place, lines and mark, as [`LanguageError::shown`] has it.
pub fn shown(file: &str, text: &str, lines: (usize, usize), mark: Option<&str>, message: &str) -> String {
    let (first, last) = lines;
    if first == 0 {
        return format!("{file}: {message}");
    }
    let all: Vec<&str> = text.lines().collect();
    let wanted =
        (first..=last.max(first)).filter_map(|number| Some((number, *all.get(number.checked_sub(1)?)?)));
    let wanted: Vec<(usize, &str)> = wanted.collect();
    let marked = mark.and_then(|mark| {
        wanted.iter().find_map(|(number, line)| Some((*number, line.find(mark)?, mark.chars().count())))
    });
    let at = marked.map_or(first, |(number, ..)| number);
    let column = marked.and_then(|(number, byte, _)| {
        let line = wanted.iter().find(|(n, _)| *n == number)?.1;
        Some(line.get(..byte)?.chars().count())
    });
    let mut out = match column {
        Some(column) => format!("{file}:{at}:{}: {message}", column + 1),
        None => format!("{file}:{at}: {message}"),
    };
    for (shown, (number, line)) in wanted.iter().enumerate() {
        // The line with the mark is shown whatever the instruction's length.
        if shown >= SHOWN && *number != at {
            continue;
        }
        let line = line.replace('\t', " ");
        write!(out, "\n{number:>5} | {line}").ok();
        if let Some((_, byte, len)) = marked.filter(|(n, ..)| n == number) {
            let before =
                wanted.get(shown).and_then(|(_, l)| l.get(..byte)).map_or(0, |text| text.chars().count());
            write!(out, "\n      | {}{}", " ".repeat(before), "^".repeat(len.max(1))).ok();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_shown_with_a_mark() {
        let text = "FROM a\nRUN x \\\n  --bad y\nCMD z\n";
        let error = LanguageError::new((2, 3), "unknown flag").mark("--bad");
        assert_eq!(
            error.shown("Dockerfile", text),
            "Dockerfile:3:3: unknown flag\n    2 | RUN x \\\n    3 |   --bad y\n      |   ^^^^^"
        );
        assert_eq!(LanguageError::new((0, 0), "empty").shown("D", text), "D: empty");
        // A mark that is not there, and lines beyond the end.
        assert_eq!(LanguageError::new((9, 9), "m").mark("é").shown("D", text), "D:9: m");
    }
}
