//! Patterns of names: Go's `filepath.Match`, and the ignore files made of them with `**` and `!`.

/// One element of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Element {
    One(char),
    /// Any letter, but a slash only where `true`.
    Any(bool),
    /// Any number of letters; slashes only where `true`.
    Many(bool),
    /// Nothing, or any names with their slashes (`**/`).
    Directories,
    Class {
        not: bool,
        slashes: bool,
        ranges: Vec<(char, char)>,
    },
}

/// A pattern, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<Element>);

/// Go's `filepath.Match`: `*`, `?`, `[a-z]`, `[^a]`, `\`.
///
/// # Errors
/// A class without its end, an escape at the end.
pub fn file_pattern(text: &str) -> Result<Pattern, String> {
    read(text, false, false)
}

/// A shell's pattern in a substitution: `*` and `?` take slashes too.
///
/// # Errors
/// As [`file_pattern`].
pub fn shell_pattern(text: &str) -> Result<Pattern, String> {
    read(text, true, false)
}

/// As [`file_pattern`], and `**` for any number of directories.
///
/// # Errors
/// As [`file_pattern`].
pub fn path_pattern(text: &str) -> Result<Pattern, String> {
    read(text, false, true)
}

/// The letter at `at` of a class, without the backslash that protects it; none at the end of the text.
fn class_letter(letters: &[char], at: &mut usize) -> Option<char> {
    if letters.get(*at) == Some(&'\\') {
        *at += 1;
    }
    *at += 1;
    letters.get(*at - 1).copied()
}

fn read(text: &str, slashes: bool, directories: bool) -> Result<Pattern, String> {
    let bad = || format!("syntax error in pattern {text:?}");
    let letters: Vec<char> = text.chars().collect();
    let (mut at, mut out) = (0, Vec::new());
    while let Some(&letter) = letters.get(at) {
        at += 1;
        out.push(match letter {
            '*' if directories && letters.get(at) == Some(&'*') => {
                at += 1;
                at += usize::from(letters.get(at) == Some(&'/'));
                // At the end everything below, elsewhere whole directories.
                if at == letters.len() { Element::Many(true) } else { Element::Directories }
            }
            '*' => Element::Many(slashes),
            '?' => Element::Any(slashes),
            '\\' => {
                at += 1;
                Element::One(*letters.get(at - 1).ok_or_else(bad)?)
            }
            '[' => {
                let not =
                    matches!(letters.get(at), Some('^')) || slashes && matches!(letters.get(at), Some('!'));
                at += usize::from(not);
                let mut ranges = Vec::new();
                loop {
                    let first = class_letter(&letters, &mut at).ok_or_else(bad)?;
                    if first == ']' && letters.get(at.wrapping_sub(2)) != Some(&'\\') {
                        if ranges.is_empty() {
                            return Err(bad());
                        }
                        break;
                    }
                    let last = match (letters.get(at), letters.get(at + 1)) {
                        (Some('-'), Some(next)) if *next != ']' => {
                            at += 1;
                            class_letter(&letters, &mut at).ok_or_else(bad)?
                        }
                        _ => first,
                    };
                    ranges.push((first, last));
                }
                Element::Class { not, slashes, ranges }
            }
            letter => Element::One(letter),
        });
    }
    Ok(Pattern(out))
}

impl Pattern {
    /// Whether it matches all of `text`. Time grows with the product of both lengths, never more.
    pub fn matches(&self, text: &[char]) -> bool {
        let len = text.len();
        // For each place in the text whether the elements from one on match all that follows; from the last one back.
        let mut after = vec![false; len + 1];
        after[len] = true;
        for element in self.0.iter().rev() {
            let mut here = vec![false; len + 1];
            // Whether the elements after `**/` match from some later beginning of a name.
            let mut later = false;
            for at in (0..=len).rev() {
                let letter = text.get(at).copied();
                let rest = |value: &[bool]| value.get(at + 1).copied().unwrap_or(false);
                here[at] = match (element, letter) {
                    (Element::One(wanted), letter) => letter == Some(*wanted) && rest(&after),
                    (Element::Any(slashes), Some(letter)) => (*slashes || letter != '/') && rest(&after),
                    (Element::Many(slashes), letter) => {
                        after[at] || letter.is_some_and(|letter| *slashes || letter != '/') && rest(&here)
                    }
                    (Element::Directories, letter) => {
                        later |= letter == Some('/') && rest(&after);
                        after[at] || later
                    }
                    (Element::Class { not, slashes, ranges }, Some(letter)) => {
                        let is_in = ranges.iter().any(|(first, last)| (*first..=*last).contains(&letter));
                        (*slashes || letter != '/') && is_in != *not && rest(&after)
                    }
                    (Element::Any(_) | Element::Class { .. }, None) => false,
                };
            }
            after = here;
        }
        after[0]
    }

    /// Whether it is a plain name or path.
    pub fn is_plain(&self) -> bool {
        self.0.iter().all(|element| matches!(element, Element::One(_)))
    }
}

/// The patterns of an ignore file. The last one that matches a name, or a directory above it, decides.
#[derive(Debug, Clone, Default)]
pub struct IgnoreList {
    patterns: Vec<(Pattern, bool)>,
    has_exceptions: bool,
}

impl IgnoreList {
    /// Reads the text of a `.dockerignore`: a pattern a line, `#` for comments, `!` for exceptions.
    ///
    /// # Errors
    /// A pattern that cannot be read, with its line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut list = Self::default();
        for (at, line) in text.lines().enumerate() {
            if line.starts_with('#') {
                continue;
            }
            list.add(line).map_err(|why| format!("line {}: {why}", at + 1))?;
        }
        Ok(list)
    }

    /// Adds one pattern, as a line of the file has it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn add(&mut self, line: &str) -> Result<(), String> {
        let line = line.trim();
        let (line, is_exception) = match line.strip_prefix('!') {
            Some(rest) => (rest.trim(), true),
            None => (line, false),
        };
        if line.is_empty() {
            return match is_exception {
                true => Err("illegal exclusion pattern: \"!\"".into()),
                false => Ok(()),
            };
        }
        let clean = clean(line);
        let clean = clean.trim_start_matches('/');
        self.has_exceptions |= is_exception;
        self.patterns.push((path_pattern(clean)?, is_exception));
        Ok(())
    }

    /// Without any pattern.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether something below an ignored directory may yet be wanted.
    pub fn has_exceptions(&self) -> bool {
        self.has_exceptions
    }

    /// Whether `path` (names with slashes between them, from the root of the context) is left out.
    pub fn ignores(&self, path: &str) -> bool {
        let letters: Vec<char> = path.chars().collect();
        let ends: Vec<usize> =
            (0..letters.len()).filter(|at| letters[*at] == '/').chain([letters.len()]).collect();
        let mut ignored = false;
        for (pattern, is_exception) in &self.patterns {
            if *is_exception != ignored {
                continue;
            }
            if ends.iter().any(|end| pattern.matches(&letters[..*end])) {
                ignored = !is_exception;
            }
        }
        ignored
    }
}

/// Go's `path.Clean`: no empty names, no `.`, and `..` with what it takes back.
pub fn clean(path: &str) -> String {
    let is_absolute = path.starts_with('/');
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." if names.last().is_some_and(|last| *last != "..") => drop(names.pop()),
            ".." if is_absolute => {}
            name => names.push(name),
        }
    }
    match (is_absolute, names.is_empty()) {
        (true, _) => format!("/{}", names.join("/")),
        (false, true) => ".".into(),
        (false, false) => names.join("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: Result<Pattern, String>, text: &str) -> bool {
        pattern.unwrap().matches(&text.chars().collect::<Vec<_>>())
    }

    #[test]
    fn names_as_go_matches_them() {
        for (pattern, text, wanted) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a/b", false),
            ("a*/b", "abc/b", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
            ("a?b", "a/b", false),
            ("a[!a]b", "a!b", true),
            ("a[^a]b", "axb", true),
            ("a[^a]b", "aab", false),
            ("ab[b-d]", "abc", true),
            ("[\\]a]", "]", true),
            ("[x\\-]", "-", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("é?", "éx", true),
        ] {
            assert_eq!(matches(file_pattern(pattern), text), wanted, "{pattern} {text}");
        }
        for bad in ["[]a]", "[", "[^", "[a-", "a[", "\\"] {
            assert!(file_pattern(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn two_stars_are_directories() {
        for (pattern, text, wanted) in [
            ("**", "file", true),
            ("**/", "dir/file", true),
            ("**/file", "file", true),
            ("**/file", "a/b/file", true),
            ("**/file", "afile", false),
            ("dir/**", "dir/a/b", true),
            ("dir/**", "dir", false),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("a/**/b", "a/xb", false),
            ("a**/*a", "ba", false),
            ("**/.git", "x/.git", true),
            ("abc.def*", "abcXdef", false),
        ] {
            assert_eq!(matches(path_pattern(pattern), text), wanted, "{pattern} {text}");
        }
    }

    #[test]
    fn the_last_pattern_decides() {
        let list = IgnoreList::parse("# c\n*\n!src\nsrc/*.o\n  !src/keep.o \n\n/top/\n").unwrap();
        for (path, ignored) in [
            ("a", true),
            ("src", false),
            ("src/a.c", false),
            ("src/a.o", true),
            ("src/keep.o", false),
            ("top/x", true),
            ("src/d/x.o", false),
        ] {
            assert_eq!(list.ignores(path), ignored, "{path}");
        }
        assert!(IgnoreList::parse("!").is_err() && IgnoreList::parse("a\n[").is_err());
        assert!(!IgnoreList::default().ignores("a"));
        assert_eq!(["a//b/../c/.", "/../a", "", "../x"].map(clean), ["a/c", "/a", ".", "../x"]);
    }

    proptest::proptest! {
        #[test]
        fn never_panics(pattern in "[ab*?\\[\\]^/!é\\\\-]{0,12}", text in "[ab/é]{0,12}") {
            if let Ok(pattern) = path_pattern(&pattern) {
                pattern.matches(&text.chars().collect::<Vec<_>>());
            }
        }
    }
}
