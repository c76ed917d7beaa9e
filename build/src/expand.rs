//! Variables and quotes in words, as BuildKit's lexer reads them (`frontend/dockerfile/shell`).

use std::collections::BTreeMap;

use crate::pattern::shell_pattern;

/// Where values come from.
pub trait Variables {
    /// The value of `name`, if it has one.
    fn value(&self, name: &str) -> Option<String>;
}

/// There are none.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoVariables;

impl Variables for NoVariables {
    fn value(&self, _name: &str) -> Option<String> {
        None
    }
}

impl Variables for BTreeMap<String, String> {
    fn value(&self, name: &str) -> Option<String> {
        self.get(name).cloned()
    }
}

/// Why a text cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ExpandError(String);

/// Reads words: takes quotes off and puts values in.
#[derive(Debug, Clone, Copy)]
pub struct Lexer {
    escape: char,
    raw: bool,
    /// Quotes are letters like others.
    no_quotes: bool,
    keep_unset: bool,
}

/// Values within values that are followed at most.
const MAX_DEPTH: usize = 32;

impl Lexer {
    /// With this escape character.
    pub fn new(escape: char) -> Self {
        Self { escape, raw: false, no_quotes: false, keep_unset: false }
    }

    /// Quotes and escapes stay.
    #[must_use]
    pub fn raw(mut self) -> Self {
        self.raw = true;
        self
    }

    /// Quotes mean nothing, and stay.
    #[must_use]
    pub fn without_quotes(mut self) -> Self {
        self.no_quotes = true;
        self
    }

    /// Variables without a value stay as they are written.
    #[must_use]
    pub fn keep_unset(mut self) -> Self {
        self.keep_unset = true;
        self
    }

    /// `text` as one word.
    ///
    /// # Errors
    /// A quote or brace without its end, a modifier that there is not, `?` of a variable that is not set.
    pub fn word(&self, text: &str, variables: &dyn Variables) -> Result<String, ExpandError> {
        Ok(self.read(text, variables)?.0)
    }

    /// `text` as words: white space outside of quotes separates them, also that of values.
    ///
    /// # Errors
    /// As [`word`](Self::word).
    pub fn words(&self, text: &str, variables: &dyn Variables) -> Result<Vec<String>, ExpandError> {
        Ok(self.read(text, variables)?.1)
    }

    fn read(&self, text: &str, variables: &dyn Variables) -> Result<(String, Vec<String>), ExpandError> {
        let letters: Vec<char> = text.chars().collect();
        let mut reader = Reader { lexer: *self, letters: &letters, at: 0, variables, depth: 0 };
        reader.until(None, false)
    }
}

#[derive(Default)]
struct Words {
    done: Vec<String>,
    word: String,
    is_open: bool,
}

impl Words {
    fn add(&mut self, letter: char) {
        if letter.is_whitespace() {
            self.close();
        } else {
            self.add_quoted(letter);
        }
    }

    fn add_quoted(&mut self, letter: char) {
        self.word.push(letter);
        self.is_open = true;
    }

    fn add_text(&mut self, text: &str, is_quoted: bool) {
        self.is_open |= is_quoted;
        for letter in text.chars() {
            if is_quoted {
                self.add_quoted(letter);
            } else {
                self.add(letter);
            }
        }
    }

    fn close(&mut self) {
        if self.is_open {
            self.done.push(std::mem::take(&mut self.word));
        }
        self.is_open = false;
    }
}

struct Reader<'a> {
    lexer: Lexer,
    letters: &'a [char],
    at: usize,
    variables: &'a dyn Variables,
    depth: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.letters.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let letter = self.peek()?;
        self.at += 1;
        Some(letter)
    }

    /// Up to `stop`, which is taken. `keep_escapes` for patterns, where an escape has its own meaning.
    fn until(
        &mut self,
        stop: Option<char>,
        keep_escapes: bool,
    ) -> Result<(String, Vec<String>), ExpandError> {
        let (mut text, mut words) = (String::new(), Words::default());
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(ExpandError("substitutions are nested too deep".into()));
        }
        while let Some(letter) = self.peek() {
            match letter {
                letter if Some(letter) == stop => {
                    self.at += 1;
                    self.depth -= 1;
                    words.close();
                    return Ok((text, words.done));
                }
                '\'' if !self.lexer.no_quotes => {
                    let part = self.single_quoted()?;
                    words.add_text(&part, true);
                    text.push_str(&part);
                }
                '"' if !self.lexer.no_quotes => {
                    let part = self.double_quoted()?;
                    words.add_text(&part, true);
                    text.push_str(&part);
                }
                '$' => {
                    let part = self.dollar()?;
                    words.add_text(&part, false);
                    text.push_str(&part);
                }
                letter if letter == self.lexer.escape => {
                    self.at += 1;
                    if self.lexer.raw || keep_escapes {
                        words.add_quoted(letter);
                        text.push(letter);
                    }
                    let Some(letter) = self.next() else { break };
                    words.add_quoted(letter);
                    text.push(letter);
                }
                letter => {
                    self.at += 1;
                    words.add(letter);
                    text.push(letter);
                }
            }
        }
        if let Some(stop) = stop {
            return Err(ExpandError(format!("unexpected end of text while looking for '{stop}'")));
        }
        self.depth -= 1;
        words.close();
        Ok((text, words.done))
    }

    fn single_quoted(&mut self) -> Result<String, ExpandError> {
        let start = self.at;
        self.at += 1;
        while let Some(letter) = self.next() {
            if letter == '\'' {
                let range = if self.lexer.raw { start..self.at } else { start + 1..self.at - 1 };
                return Ok(self.letters.get(range).unwrap_or_default().iter().collect());
            }
        }
        Err(ExpandError("unexpected end of text while looking for the other single quote".into()))
    }

    fn double_quoted(&mut self) -> Result<String, ExpandError> {
        let mut text = String::new();
        self.at += 1;
        if self.lexer.raw {
            text.push('"');
        }
        while let Some(letter) = self.peek() {
            match letter {
                '"' => {
                    self.at += 1;
                    if self.lexer.raw {
                        text.push('"');
                    }
                    return Ok(text);
                }
                '$' => text.push_str(&self.dollar()?),
                letter => {
                    self.at += 1;
                    if letter == self.lexer.escape {
                        if self.lexer.raw {
                            text.push(letter);
                        }
                        match self.peek() {
                            Some(next) if next == '"' || next == '$' || next == self.lexer.escape => {
                                self.at += 1;
                                text.push(next);
                            }
                            Some(_) if !self.lexer.raw => text.push(letter),
                            _ => {}
                        }
                        continue;
                    }
                    text.push(letter);
                }
            }
        }
        Err(ExpandError("unexpected end of text while looking for the other double quote".into()))
    }

    fn name(&mut self) -> String {
        let start = self.at;
        match self.peek() {
            Some(first) if first.is_ascii_digit() => {
                while self.peek().is_some_and(|letter| letter.is_ascii_digit()) {
                    self.at += 1;
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => self.at += 1,
            _ => {
                while self.peek().is_some_and(|letter| letter.is_alphanumeric() || letter == '_') {
                    self.at += 1;
                }
            }
        }
        self.letters.get(start..self.at).unwrap_or_default().iter().collect()
    }

    fn dollar(&mut self) -> Result<String, ExpandError> {
        let start = self.at;
        self.at += 1;
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".into());
            }
            return Ok(match self.variables.value(&name) {
                Some(value) => value,
                None if self.lexer.keep_unset => format!("${name}"),
                None => String::new(),
            });
        }
        self.at += 1;
        match self.peek() {
            None => return Err(ExpandError("missing '}' of a substitution".into())),
            Some('{' | '}' | ':') => return Err(ExpandError("bad substitution".into())),
            _ => {}
        }
        let name = self.name();
        let (value, done) = self.modified(&name)?;
        if self.lexer.keep_unset && self.variables.value(&name).is_none() && !done {
            return Ok(self.letters.get(start..self.at).unwrap_or_default().iter().collect());
        }
        Ok(value)
    }

    /// After the name in braces: the value, and whether it stands even where the variable is not set.
    fn modified(&mut self, name: &str) -> Result<(String, bool), ExpandError> {
        let value = self.variables.value(name);
        let mut modifier = self.next();
        match modifier {
            Some('}') => return Ok((value.unwrap_or_default(), false)),
            None => return Err(ExpandError(format!("missing '}}' of ${{{name}"))),
            _ => {}
        }
        if modifier == Some('/') {
            let all = self.peek() == Some('/');
            if all {
                self.at += 1;
            }
            let (pattern, _) = self.until(Some('/'), true)?;
            let (replacement, _) = self.until(Some('}'), false)?;
            return Ok((replaced(&value.unwrap_or_default(), &pattern, &replacement, all)?, false));
        }
        let empty_is_unset = modifier == Some(':');
        if empty_is_unset {
            modifier = self.next();
        }
        let is_pattern = matches!(modifier, Some('#' | '%'));
        if !matches!(modifier, Some('-' | '+' | '?')) && (!is_pattern || empty_is_unset) {
            let modifier: String = modifier.into_iter().collect();
            let colon = if empty_is_unset { ":" } else { "" };
            return Err(ExpandError(format!(
                "unsupported modifier ({colon}{modifier}) in substitution; there are :- - :+ + :? ? # ## % %% / //"
            )));
        }
        let (word, _) = self.until(Some('}'), is_pattern)?;
        let set = value.filter(|value| !(empty_is_unset && value.is_empty()));
        Ok((
            match modifier {
                Some('-') => set.unwrap_or(word),
                Some('+') => set.map(|_| word).unwrap_or_default(),
                Some('?') => match set {
                    Some(value) => value,
                    None if self.lexer.keep_unset => String::new(),
                    None => {
                        let why = if empty_is_unset {
                            "not allowed to be unset or empty"
                        } else {
                            "not allowed to be unset"
                        };
                        let word = if word.is_empty() { why.to_owned() } else { word };
                        return Err(ExpandError(format!("{name}: {word}")));
                    }
                },
                Some(edge) => {
                    let (pattern, longest) = match word.strip_prefix(edge) {
                        Some(rest) => (rest, true),
                        None => (word.as_str(), false),
                    };
                    trimmed(&set.unwrap_or_default(), pattern, edge == '#', longest)?
                }
                None => String::new(),
            },
            false,
        ))
    }
}

/// `value` without what `pattern` matches at its beginning or end.
fn trimmed(value: &str, pattern: &str, at_start: bool, longest: bool) -> Result<String, ExpandError> {
    let pattern = shell_pattern(pattern).map_err(ExpandError)?;
    let letters: Vec<char> = value.chars().collect();
    let lengths: Vec<usize> = match longest {
        true => (0..=letters.len()).rev().collect(),
        false => (0..=letters.len()).collect(),
    };
    for len in lengths {
        let (part, rest) = match at_start {
            true => letters.split_at(len),
            false => {
                let (rest, part) = letters.split_at(letters.len() - len);
                (part, rest)
            }
        };
        if pattern.matches(part) {
            return Ok(rest.iter().collect());
        }
    }
    Ok(value.to_owned())
}

fn replaced(value: &str, pattern: &str, with: &str, all: bool) -> Result<String, ExpandError> {
    let pattern = shell_pattern(pattern).map_err(ExpandError)?;
    let letters: Vec<char> = value.chars().collect();
    let (mut out, mut at, mut done) = (String::new(), 0, false);
    while at < letters.len() {
        let longest = (1..=letters.len() - at)
            .rev()
            .find(|len| !done && letters.get(at..at + len).is_some_and(|part| pattern.matches(part)));
        match longest {
            Some(len) => {
                out.push_str(with);
                at += len;
                done = !all;
            }
            None => {
                out.extend(letters.get(at));
                at += 1;
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> BTreeMap<String, String> {
        [
            ("A", "one"),
            ("EMPTY", ""),
            ("PATH", "/usr/bin:/bin"),
            ("TWO", "x y"),
            ("F", "a.tar.gz"),
            ("é", "e"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    #[test]
    fn values_are_put_in() {
        for (text, wanted) in [
            ("$A", "one"),
            ("${A}s $Ax", "ones "),
            ("\\$A", "$A"),
            ("'$A'", "$A"),
            ("\"$A \\\" \\$A \\n\"", "one \" $A \\n"),
            ("${U:-def}", "def"),
            ("${EMPTY:-def}", "def"),
            ("${EMPTY-def}", ""),
            ("${A:+set}", "set"),
            ("${EMPTY:+set}", ""),
            ("${EMPTY+set}", "set"),
            ("${U:-$A}", "one"),
            ("${U:-${A}x}", "onex"),
            ("${A:?no}", "one"),
            ("${F#*.}", "tar.gz"),
            ("${F##*.}", "gz"),
            ("${F%.*}", "a.tar"),
            ("${F%%.*}", "a"),
            ("${PATH/bin/sbin}", "/usr/sbin:/bin"),
            ("${PATH//bin/sbin}", "/usr/sbin:/sbin"),
            ("${PATH//[\\/:]/_}", "_usr_bin__bin"),
            ("${F/a*z/}", ""),
            ("$é$", "e$"),
            ("a\\", "a"),
            ("${A}${U}", "one"),
            ("$1$@", ""),
        ] {
            assert_eq!(Lexer::new('\\').word(text, &variables()).as_deref(), Ok(wanted), "{text}");
        }
        assert_eq!(Lexer::new('`').word("c:\\$A`$", &variables()).unwrap(), "c:\\one$");
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for text in [
            "'a",
            "\"a",
            "${A",
            "${}",
            "${:x}",
            "${A:=x}",
            "${A^}",
            "${U?}",
            "${EMPTY:?gone}",
            "${A:#x}",
            "${A/x",
        ] {
            assert!(Lexer::new('\\').word(text, &variables()).is_err(), "{text}");
        }
        assert_eq!(
            Lexer::new('\\').word("${U?}", &variables()).unwrap_err().to_string(),
            "U: not allowed to be unset"
        );
        let deep = "${U:-".repeat(100) + &"}".repeat(100);
        assert!(Lexer::new('\\').word(&deep, &NoVariables).is_err());
    }

    #[test]
    fn words_are_separated() {
        let words = |text: &str| Lexer::new('\\').words(text, &variables()).unwrap();
        assert_eq!(words("a  'b c' $TWO \"$TWO\" d\\ e ''"), ["a", "b c", "x", "y", "x y", "d e", ""]);
        assert!(words("").is_empty());
        let kept = Lexer::new('\\').keep_unset().word("$U ${U} ${U:-x} $A", &variables()).unwrap();
        assert_eq!(kept, "$U ${U} ${U:-x} one");
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[$a{}:?#%/'\"\\\\ é*\\[\\]-]{0,40}") {
            let _result = Lexer::new('\\').words(&text, &variables());
        }
    }
}
