//! Instructions with their meaning: one value for each, its variables not yet replaced.

mod flags;
mod mount;

pub use mount::{MountKind, RunMount, Sharing, parse_mount};

use crate::error::LanguageError;
use crate::parse::{Heredoc, Node, parse_heredoc, split_words};
use flags::Flags;

/// A program: words, or a text for the shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// As it is.
    Exec(Vec<String>),
    /// For the shell in force.
    Shell(String),
}

/// A file that is written in the Dockerfile itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlineFile {
    /// Its name.
    pub name: String,
    /// Its content.
    pub content: String,
    /// Variables in it are replaced.
    pub expand: bool,
}

/// What `COPY` and `ADD` share.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CopySpec {
    /// Paths, patterns, URLs.
    pub sources: Vec<String>,
    /// Files in the Dockerfile.
    pub inline: Vec<InlineFile>,
    /// Where to.
    pub destination: String,
    /// `--from`: a stage by name or number, an image, a named context.
    pub from: Option<String>,
    /// `--chown`
    pub chown: Option<String>,
    /// `--chmod`
    pub chmod: Option<String>,
    /// `--link`
    pub link: bool,
    /// `--parents`
    pub parents: bool,
    /// `--exclude`, several.
    pub exclude: Vec<String>,
    /// `--checksum` of a URL.
    pub checksum: Option<String>,
    /// `--unpack`: archives, also from URLs; `None` for the instruction's own way.
    pub unpack: Option<bool>,
    /// `--keep-git-dir`
    pub keep_git_dir: bool,
}

/// Network of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunNetwork {
    /// What the build was given.
    Default,
    /// A loopback interface alone.
    None,
    /// The machine's.
    Host,
}

/// A step that runs a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSpec {
    /// What.
    pub command: Command,
    /// Here-documents that belong to it.
    pub heredocs: Vec<Heredoc>,
    /// `--mount` as written: variables in them are replaced later.
    pub mounts: Vec<String>,
    /// `--network`
    pub network: RunNetwork,
    /// `--security=insecure`
    pub insecure: bool,
}

/// How health is checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HealthSpec {
    /// `None`: not at all.
    pub command: Option<Command>,
    /// Nanoseconds; 0 for the default.
    pub interval: i64,
    /// Nanoseconds.
    pub timeout: i64,
    /// Nanoseconds.
    pub start_period: i64,
    /// Nanoseconds.
    pub start_interval: i64,
    /// How often before it counts.
    pub retries: i64,
}

/// An instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are the language's own names")]
pub enum Instruction {
    From { image: String, platform: Option<String>, name: Option<String> },
    Run(Box<RunSpec>),
    Copy(Box<CopySpec>),
    Add(Box<CopySpec>),
    Env(Vec<(String, String)>),
    Arg(Vec<(String, Option<String>)>),
    Label(Vec<(String, String)>),
    Workdir(String),
    User(String),
    Expose(String),
    Volume(Vec<String>),
    Cmd(Command),
    Entrypoint(Command),
    Shell(Vec<String>),
    StopSignal(String),
    HealthCheck(Box<HealthSpec>),
    OnBuild(String),
    Maintainer(String),
}

/// The instructions' names.
pub const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Gives an instruction its meaning.
///
/// # Errors
/// When there is no such instruction or flag, or something is missing or too much.
pub fn understand(node: &Node, escape: char) -> Result<Instruction, LanguageError> {
    let bad = |message: &str| LanguageError::new(node.lines, format!("{} {message}", node.keyword));
    let mut flags = Flags::new(node);
    if !KEYWORDS.contains(&node.keyword.as_str()) {
        let error = LanguageError::new(node.lines, format!("unknown instruction: {}", node.keyword));
        let word = nearest(&node.keyword);
        let error = error.hint(match word {
            Some(word) => format!("did you mean {word}?"),
            None => format!("instructions are {}", KEYWORDS.join(", ")),
        });
        return Err(error.mark(node.keyword.as_str()));
    }
    if node.rest.is_empty() && !matches!(node.keyword.as_str(), "CMD" | "ENTRYPOINT") {
        return Err(bad("requires at least one argument").mark(node.keyword.as_str()));
    }
    let instruction = match node.keyword.as_str() {
        "FROM" => from(node, &mut flags)?,
        "RUN" => run(node, &mut flags)?,
        "COPY" => Instruction::Copy(Box::new(copy(node, &mut flags, false)?)),
        "ADD" => Instruction::Add(Box::new(copy(node, &mut flags, true)?)),
        "ENV" => Instruction::Env(pairs(node, escape)?),
        "LABEL" => Instruction::Label(pairs(node, escape)?),
        "ARG" => Instruction::Arg(arguments(node, escape)?),
        "WORKDIR" => Instruction::Workdir(node.rest.clone()),
        "USER" => Instruction::User(one_word(node)?),
        "EXPOSE" => Instruction::Expose(node.rest.clone()),
        "VOLUME" => {
            let volumes = node
                .json
                .clone()
                .unwrap_or_else(|| node.rest.split_whitespace().map(str::to_owned).collect());
            if volumes.is_empty() || volumes.iter().any(|volume| volume.trim().is_empty()) {
                return Err(bad("specified can not be an empty string"));
            }
            Instruction::Volume(volumes)
        }
        "CMD" => Instruction::Cmd(command(node)),
        "ENTRYPOINT" => Instruction::Entrypoint(command(node)),
        "SHELL" => match node.json.clone() {
            Some(words) if !words.is_empty() => Instruction::Shell(words),
            _ => {
                return Err(bad("requires the arguments to be in JSON form")
                    .mark(node.rest.as_str())
                    .hint("write SHELL [\"/bin/sh\", \"-c\"]"));
            }
        },
        "STOPSIGNAL" => Instruction::StopSignal(one_word(node)?),
        "HEALTHCHECK" => Instruction::HealthCheck(Box::new(health(node, &mut flags)?)),
        "ONBUILD" => on_build(node)?,
        _ => Instruction::Maintainer(node.rest.clone()),
    };
    flags.finish()?;
    Ok(instruction)
}

/// An instruction that is written almost so.
fn nearest(word: &str) -> Option<&'static str> {
    let distance = |other: &str| {
        let (a, b): (Vec<char>, Vec<char>) = (word.chars().take(20).collect(), other.chars().collect());
        let sorted = |letters: &[char]| {
            let mut letters = letters.to_vec();
            letters.sort_unstable();
            letters
        };
        if sorted(&a) == sorted(&b) {
            return 0;
        }
        let mut row: Vec<usize> = (0..=b.len()).collect();
        for (i, x) in a.iter().enumerate() {
            let mut last = row[0];
            row[0] = i + 1;
            for (j, y) in b.iter().enumerate() {
                let here = (last + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
                last = std::mem::replace(&mut row[j + 1], here);
            }
        }
        row[b.len()]
    };
    KEYWORDS
        .into_iter()
        .map(|other| (distance(other), other))
        .filter(|(far, _)| *far <= 2)
        .min()
        .map(|(_, word)| word)
}

fn one_word(node: &Node) -> Result<String, LanguageError> {
    match node.rest.split_whitespace().count() {
        1 => Ok(node.rest.clone()),
        _ => Err(LanguageError::new(node.lines, format!("{} requires exactly one argument", node.keyword))
            .mark(node.rest.as_str())),
    }
}

fn command(node: &Node) -> Command {
    match &node.json {
        Some(words) => Command::Exec(words.clone()),
        None => Command::Shell(node.rest.clone()),
    }
}

fn from(node: &Node, flags: &mut Flags<'_>) -> Result<Instruction, LanguageError> {
    let platform = flags.text("platform")?;
    let words: Vec<&str> = node.rest.split_whitespace().collect();
    let (image, name) = match words[..] {
        [image] => (image, None),
        [image, word, name] if word.eq_ignore_ascii_case("as") => (image, Some(name.to_lowercase())),
        _ => {
            return Err(LanguageError::new(node.lines, "FROM requires either one or three arguments")
                .mark(node.rest.as_str())
                .hint("write FROM [--platform=PLATFORM] IMAGE [AS NAME]"));
        }
    };
    if let Some(name) = &name {
        let is_name = name.starts_with(|letter: char| letter.is_ascii_lowercase())
            && name.chars().all(|letter| {
                letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-_.".contains(letter)
            });
        if !is_name {
            return Err(LanguageError::new(node.lines, format!("invalid name for build stage: {name:?}"))
                .mark(words.last().copied().unwrap_or_default())
                .hint("it begins with a letter, and has letters, digits, '-', '_' and '.'"));
        }
        if matches!(name.as_str(), "scratch" | "context") {
            return Err(LanguageError::new(
                node.lines,
                format!("{name:?} is reserved and cannot name a build stage"),
            )
            .mark(words.last().copied().unwrap_or_default()));
        }
    }
    Ok(Instruction::From { image: image.to_owned(), platform, name })
}

fn run(node: &Node, flags: &mut Flags<'_>) -> Result<Instruction, LanguageError> {
    let network = match flags.text("network")?.as_deref() {
        None | Some("default") => RunNetwork::Default,
        Some("none") => RunNetwork::None,
        Some("host") => RunNetwork::Host,
        Some(other) => {
            return Err(LanguageError::new(node.lines, format!("invalid network {other:?}"))
                .mark(other)
                .hint("a step's network is default, none or host"));
        }
    };
    let insecure = match flags.text("security")?.as_deref() {
        None | Some("sandbox") => false,
        Some("insecure") => true,
        Some(other) => {
            return Err(LanguageError::new(node.lines, format!("invalid security {other:?}"))
                .mark(other)
                .hint("it is sandbox or insecure"));
        }
    };
    let mounts = flags.texts("mount")?;
    for text in &mounts {
        // What has no variables is checked now, before anything is built.
        if !text.contains('$') {
            parse_mount(text).map_err(|why| LanguageError::new(node.lines, why).mark(text.as_str()))?;
        }
    }
    if let Some(device) = flags.text("device")? {
        return Err(
            LanguageError::new(node.lines, "devices of a step (--device) are not supported").mark(device)
        );
    }
    let command = command(node);
    if !node.heredocs.is_empty() && matches!(command, Command::Exec(_)) {
        return Err(LanguageError::new(node.lines, "the exec form has no here-documents"));
    }
    if matches!(&command, Command::Exec(words) if words.is_empty()) {
        return Err(LanguageError::new(node.lines, "RUN requires at least one argument").mark("[]"));
    }
    Ok(Instruction::Run(Box::new(RunSpec {
        command,
        heredocs: node.heredocs.clone(),
        mounts,
        network,
        insecure,
    })))
}

fn copy(node: &Node, flags: &mut Flags<'_>, is_add: bool) -> Result<CopySpec, LanguageError> {
    let mut spec = CopySpec {
        chown: flags.text("chown")?,
        chmod: flags.text("chmod")?,
        link: flags.switch("link")?,
        exclude: flags.texts("exclude")?,
        ..CopySpec::default()
    };
    if is_add {
        spec.checksum = flags.text("checksum")?;
        spec.keep_git_dir = flags.switch("keep-git-dir")?;
        spec.unpack = flags.optional_switch("unpack")?;
    } else {
        spec.from = flags.text("from")?;
        spec.parents = flags.switch("parents")?;
    }
    if let Some(from) = spec.from.as_deref().filter(|from| from.contains('$')) {
        return Err(LanguageError::new(node.lines, "variables are not replaced in --from")
            .mark(from)
            .hint("name the stage, or begin a stage FROM the variable and copy from that"));
    }
    let mut words = match &node.json {
        Some(words) => words.clone(),
        None => node.rest.split_whitespace().map(str::to_owned).collect(),
    };
    let destination = words.pop().filter(|_| !words.is_empty());
    let Some(destination) = destination else {
        return Err(LanguageError::new(
            node.lines,
            format!("{} requires at least two arguments, but only one was provided", node.keyword),
        )
        .mark(node.rest.as_str())
        .hint("the last argument is the destination"));
    };
    if node.json.is_none() && parse_heredoc(&destination).is_some() {
        return Err(
            LanguageError::new(node.lines, "a here-document cannot be the destination").mark(destination)
        );
    }
    spec.destination = destination;
    for word in words {
        let heredoc = if node.json.is_none() { parse_heredoc(&word) } else { None };
        match heredoc {
            Some(heredoc) => {
                if spec.inline.iter().any(|file| file.name == heredoc.name) {
                    return Err(LanguageError::new(
                        node.lines,
                        format!("two here-documents are called {:?}", heredoc.name),
                    )
                    .mark(word));
                }
                let content = node.heredocs.iter().find(|found| found.name == heredoc.name);
                let content = content.map(Heredoc::text).unwrap_or_default();
                spec.inline.push(InlineFile { name: heredoc.name, content, expand: heredoc.expand });
            }
            None => spec.sources.push(word),
        }
    }
    Ok(spec)
}

fn pairs(node: &Node, escape: char) -> Result<Vec<(String, String)>, LanguageError> {
    let words = split_words(&node.rest, escape);
    if words.first().is_some_and(|word| !word.contains('=')) {
        // The old form: one name, and all that follows is its value.
        return match node.rest.split_once(char::is_whitespace) {
            Some((name, value)) => Ok(vec![(name.to_owned(), value.trim_start().to_owned())]),
            None => Err(LanguageError::new(node.lines, format!("{} must have two arguments", node.keyword))
                .mark(node.rest.as_str())
                .hint(format!("write {} NAME=VALUE", node.keyword))),
        };
    }
    let pair = |word: &String| match word.split_once('=') {
        Some(("", _)) => {
            Err(LanguageError::new(node.lines, format!("{} names can not be blank", node.keyword))
                .mark(word.as_str()))
        }
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(LanguageError::new(node.lines, format!("can't find = in {word:?}"))
            .mark(word.as_str())
            .hint("write NAME=VALUE; a value with blanks goes in quotes")),
    };
    words.iter().map(pair).collect()
}

fn arguments(node: &Node, escape: char) -> Result<Vec<(String, Option<String>)>, LanguageError> {
    let argument = |word: String| match word.split_once('=') {
        Some(("", _)) => {
            Err(LanguageError::new(node.lines, "ARG names can not be blank").mark(word.as_str()))
        }
        Some((name, value)) => Ok((name.to_owned(), Some(value.to_owned()))),
        None => Ok((word, None)),
    };
    split_words(&node.rest, escape).into_iter().map(argument).collect()
}

fn health(node: &Node, flags: &mut Flags<'_>) -> Result<HealthSpec, LanguageError> {
    let mut spec = HealthSpec {
        interval: flags.duration("interval")?,
        timeout: flags.duration("timeout")?,
        start_period: flags.duration("start-period")?,
        start_interval: flags.duration("start-interval")?,
        ..HealthSpec::default()
    };
    if let Some(text) = flags.text("retries")? {
        spec.retries = text.parse().ok().filter(|number| *number >= 0).ok_or_else(|| {
            LanguageError::new(node.lines, format!("--retries {text:?} must be a number, 0 or more"))
                .mark(text)
        })?;
    }
    let (word, rest) = node.rest.split_once(char::is_whitespace).unwrap_or((&node.rest, ""));
    match word.to_ascii_uppercase().as_str() {
        "NONE" if rest.trim().is_empty() => Ok(spec),
        "NONE" => {
            Err(LanguageError::new(node.lines, "HEALTHCHECK NONE takes no arguments").mark(rest.trim()))
        }
        "CMD" => {
            let rest = rest.trim();
            let command = match crate::parse::json_list(rest, node.lines)? {
                Some(words) => Command::Exec(words),
                None => Command::Shell(rest.to_owned()),
            };
            if rest.is_empty() || command == Command::Exec(Vec::new()) {
                return Err(LanguageError::new(node.lines, "missing command after HEALTHCHECK CMD"));
            }
            spec.command = Some(command);
            Ok(spec)
        }
        _ => Err(LanguageError::new(node.lines, format!("unknown type {word:?} in HEALTHCHECK"))
            .mark(word)
            .hint("write HEALTHCHECK [OPTIONS] CMD COMMAND, or HEALTHCHECK NONE")),
    }
}

fn on_build(node: &Node) -> Result<Instruction, LanguageError> {
    let word = node.rest.split_whitespace().next().unwrap_or_default();
    match word.to_ascii_uppercase().as_str() {
        "ONBUILD" => {
            Err(LanguageError::new(node.lines, "chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"))
        }
        "FROM" | "MAINTAINER" => {
            Err(LanguageError::new(node.lines, format!("{word} isn't allowed as an ONBUILD trigger"))
                .mark(word))
        }
        _ => {
            let mut text = node.rest.clone();
            for heredoc in &node.heredocs {
                text.push('\n');
                text.push_str(&heredoc.content);
                text.push_str(&heredoc.name);
            }
            // A trigger that could never be carried out is told here, and not to who builds on the image.
            let trigger = crate::parse::parse_one(&text);
            let trigger = trigger.and_then(|trigger| understand(&trigger, '\\'));
            trigger.map_err(|error| LanguageError { lines: node.lines, ..error })?;
            Ok(Instruction::OnBuild(text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::parse;

    fn one(text: &str) -> Result<Instruction, LanguageError> {
        let document = parse(text)?;
        understand(&document.nodes[0], document.directives.escape)
    }

    #[test]
    fn instructions_have_their_parts() {
        assert_eq!(
            one("FROM --platform=linux/amd64 a:1 As Base").unwrap(),
            Instruction::From {
                image: "a:1".into(),
                platform: Some("linux/amd64".into()),
                name: Some("base".into())
            }
        );
        assert_eq!(one("ENV a b  c").unwrap(), Instruction::Env(vec![("a".into(), "b  c".into())]));
        assert_eq!(
            one("ENV a=b c='d e'").unwrap(),
            Instruction::Env(vec![("a".into(), "b".into()), ("c".into(), "'d e'".into())])
        );
        assert_eq!(
            one("ARG a b=c").unwrap(),
            Instruction::Arg(vec![("a".into(), None), ("b".into(), Some("c".into()))])
        );
        let Instruction::Copy(copy) = one("COPY --from=x --chown=1:2 --link a b /c/").unwrap() else {
            panic!()
        };
        assert_eq!((copy.sources.len(), copy.destination.as_str(), copy.link), (2, "/c/", true));
        let Instruction::Copy(copy) = one("COPY <<a <<-\"b\" /c/\n1\na\n\t2\nb\n").unwrap() else { panic!() };
        assert_eq!((copy.inline[0].content.as_str(), copy.inline[1].content.as_str()), ("1\n", "2\n"));
        let Instruction::HealthCheck(health) =
            one("HEALTHCHECK --interval=1m30s --retries=3 CMD a b").unwrap()
        else {
            panic!()
        };
        assert_eq!((health.interval, health.retries), (90_000_000_000, 3));
        assert_eq!(one("VOLUME /a /b").unwrap(), Instruction::Volume(vec!["/a".into(), "/b".into()]));
        assert_eq!(one("CMD").unwrap(), Instruction::Cmd(Command::Shell(String::new())));
        assert_eq!(one("ONBUILD RUN x").unwrap(), Instruction::OnBuild("RUN x".into()));
    }

    #[test]
    fn mistakes_are_told_with_what_would_be_right() {
        for (text, words) in [
            ("RNU x", "did you mean RUN"),
            ("QWERTYUIOP x", "instructions are"),
            ("FROM a b", "one or three"),
            ("FROM a AS 1x", "invalid name"),
            ("COPY a", "at least two"),
            ("COPY --form=a b c", "--from"),
            ("COPY --from=$x b c", "variables are not replaced"),
            ("RUN --network=x y", "default, none or host"),
            ("RUN --mount=type=x y", "type"),
            ("ENV a", "two arguments"),
            ("ENV a=b c", "can't find ="),
            ("ENV =b", "blank"),
            ("SHELL /bin/sh -c", "JSON"),
            ("HEALTHCHECK x", "unknown type"),
            ("HEALTHCHECK CMD", "missing command"),
            ("HEALTHCHECK --interval=1 CMD x", "duration"),
            ("ONBUILD ONBUILD RUN x", "chaining"),
            ("ONBUILD FROM x", "isn't allowed"),
            ("ONBUILD RNU x", "did you mean"),
            ("USER a b", "exactly one"),
            ("RUN", "at least one"),
            ("RUN []", "at least one"),
            ("ENV --x a=b", "has no flags"),
            ("COPY --link --link a b", "twice"),
            ("COPY --link=maybe a b", "true or false"),
            ("FROM --platform a", "value"),
        ] {
            let error = one(text).unwrap_err();
            let all = format!("{} {}", error.message, error.hint.unwrap_or_default());
            assert!(all.contains(words), "{text}: {all}");
        }
    }
}
