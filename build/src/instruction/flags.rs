//! `--name[=value]` of an instruction.

use crate::error::LanguageError;
use crate::parse::Node;

/// Flags that have not been asked for yet.
pub(super) struct Flags<'a> {
    node: &'a Node,
    left: Vec<(&'a str, Option<&'a str>)>,
    known: Vec<&'static str>,
}

impl<'a> Flags<'a> {
    pub(super) fn new(node: &'a Node) -> Self {
        let pair = |flag: &'a String| {
            let flag = flag.strip_prefix("--").unwrap_or(flag);
            match flag.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (flag, None),
            }
        };
        Self { node, left: node.flags.iter().map(pair).collect(), known: Vec::new() }
    }

    fn error(&self, name: &str, words: impl std::fmt::Display) -> LanguageError {
        LanguageError::new(self.node.lines, format!("flag --{name} {words}")).mark(format!("--{name}"))
    }

    fn take(&mut self, name: &'static str) -> Vec<Option<&'a str>> {
        self.known.push(name);
        let found = self.left.iter().filter(|(other, _)| *other == name).map(|(_, value)| *value).collect();
        self.left.retain(|(other, _)| *other != name);
        found
    }

    /// The value of a flag that is given at most once.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, LanguageError> {
        let mut all = self.texts(name)?;
        match all.len() {
            0 | 1 => Ok(all.pop()),
            _ => Err(self.error(name, "is given twice")),
        }
    }

    /// The values of a flag that may be given several times.
    pub(super) fn texts(&mut self, name: &'static str) -> Result<Vec<String>, LanguageError> {
        let values = self.take(name);
        let value = |value: Option<&str>| match value {
            Some(value) => Ok(value.to_owned()),
            None => Err(self.error(name, "needs a value").hint(format!("write --{name}=VALUE"))),
        };
        values.into_iter().map(value).collect()
    }

    /// `--name`, `--name=true`, `--name=false`; `None` when it is not given.
    pub(super) fn optional_switch(&mut self, name: &'static str) -> Result<Option<bool>, LanguageError> {
        match self.take(name)[..] {
            [] => Ok(None),
            [None | Some("true" | "1" | "t" | "T" | "TRUE" | "True")] => Ok(Some(true)),
            [Some("false" | "0" | "f" | "F" | "FALSE" | "False")] => Ok(Some(false)),
            [Some(_)] => Err(self.error(name, "is true or false")),
            _ => Err(self.error(name, "is given twice")),
        }
    }

    pub(super) fn switch(&mut self, name: &'static str) -> Result<bool, LanguageError> {
        Ok(self.optional_switch(name)?.unwrap_or(false))
    }

    /// A duration in Go's form as nanoseconds; 0 without it.
    pub(super) fn duration(&mut self, name: &'static str) -> Result<i64, LanguageError> {
        let Some(text) = self.text(name)? else { return Ok(0) };
        match duration(&text) {
            None => Err(self
                .error(name, format_args!("{text:?} is no duration"))
                .hint("write 30s, 1m30s or 500ms")),
            Some(0) => Ok(0),
            Some(time) if time < 1_000_000 => Err(self.error(name, "must be at least 1ms")),
            Some(time) => Ok(time),
        }
    }

    /// What was never asked for is not known.
    pub(super) fn finish(self) -> Result<(), LanguageError> {
        let Some((name, _)) = self.left.first() else { return Ok(()) };
        let error =
            LanguageError::new(self.node.lines, format!("unknown flag for {}: --{name}", self.node.keyword))
                .mark(format!("--{name}"));
        Err(match self.known.is_empty() {
            true => error.hint(format!("{} has no flags", self.node.keyword)),
            false => error.hint(format!("there are --{}", self.known.join(", --"))),
        })
    }
}

/// `1h2m3.5s`, `300ms`, `0` as nanoseconds.
fn duration(text: &str) -> Option<i64> {
    let (mut rest, mut total) = (text, 0_f64);
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, tail) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let end = tail.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        total += number
            * match unit {
                "h" => 3_600e9,
                "m" => 60e9,
                "s" => 1e9,
                "ms" => 1e6,
                "us" | "µs" => 1e3,
                "ns" => 1.0,
                _ => return None,
            };
        rest = tail;
    }
    #[allow(clippy::cast_possible_truncation, reason = "checked to fit")]
    (total < 9e18).then_some(total as i64)
}
