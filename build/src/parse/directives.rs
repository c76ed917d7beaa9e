//! Parser directives: `# name=value` lines before everything else.

use crate::check::Checks;
use crate::error::LanguageError;

/// What stood at the top of a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directives {
    /// The frontend that was asked for. This program reads the language itself.
    pub syntax: Option<String>,
    /// The character that continues lines and takes meaning away: `\` or a backtick.
    pub escape: char,
    /// Which checks are wanted.
    pub check: Option<Checks>,
}

impl Default for Directives {
    fn default() -> Self {
        Self { syntax: None, escape: '\\', check: None }
    }
}

pub(super) fn read(text: &str) -> Result<Directives, LanguageError> {
    let mut found = Directives::default();
    let mut seen: Vec<String> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        // A first line for the kernel (`#!`) may come before.
        if at == 0 && line.starts_with("#!") {
            continue;
        }
        let Some((name, value)) = line.strip_prefix('#').and_then(|rest| rest.split_once('=')) else { break };
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        let is_name = name.starts_with(|letter: char| letter.is_ascii_alphabetic())
            && name.chars().all(|letter| letter.is_ascii_alphanumeric());
        if !is_name || value.is_empty() || !matches!(name.as_str(), "syntax" | "escape" | "check") {
            break;
        }
        let lines = (at + 1, at + 1);
        if seen.contains(&name) {
            return Err(
                LanguageError::new(lines, format!("only one {name} parser directive can be used")).mark(name)
            );
        }
        match name.as_str() {
            "syntax" => found.syntax = Some(value.to_owned()),
            "check" => {
                let checks = Checks::parse(value).map_err(|what| {
                    LanguageError::new(lines, what)
                        .mark(value)
                        .hint("write skip=NAME,NAME or skip=all, error=true, or both with ; between")
                })?;
                found.check = Some(checks);
            }
            _ => {
                found.escape = match value {
                    "\\" => '\\',
                    "`" => '`',
                    _ => {
                        return Err(LanguageError::new(lines, format!("invalid escape character {value:?}"))
                            .mark(value)
                            .hint("it is \\ or `"));
                    }
                }
            }
        }
        seen.push(name);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_read_at_the_top_only() {
        let text =
            "#syntax=docker/dockerfile:1\n# Escape = `\n# check=skip=all\n# other=x\n# escape=\\\nFROM a";
        let found = read(text).unwrap();
        assert_eq!(found.syntax.as_deref(), Some("docker/dockerfile:1"));
        assert_eq!((found.escape, found.check), ('`', Checks::parse("skip=all").ok()));
        assert_eq!(read("\n# escape=`\n").unwrap().escape, '\\');
        assert_eq!(read("# about\n# escape=`\n").unwrap().escape, '\\');
        assert!(read("# escape=x\n").is_err());
        assert!(read("# escape=`\n# escape=`\n").is_err());
    }
}
