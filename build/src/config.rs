//! What instructions do to an image's config, and what a step is when its variables are replaced.

mod change;

use std::collections::BTreeMap;

use layerfs_image::config::Config;
use serde_json::{Value, json};

use crate::error::LanguageError;
use crate::expand::{Lexer, Variables};
use crate::instruction::{Command, CopySpec, Instruction, RunMount, RunNetwork, RunSpec, parse_mount};
use crate::plan::{Plan, Step};

/// `PATH` of an image that says nothing.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Build arguments that need no `ARG`, and count for no key.
pub const PREDEFINED: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// A stage while it is built, as far as it is no files.
#[derive(Debug, Clone)]
pub struct StageState {
    /// The config of the image in the making. Its layers are the caller's.
    pub config: Config,
    /// `ARG` in force: names in the order of their declaration, and values.
    pub arguments: Vec<(String, String)>,
    /// Names of `--build-arg` that were asked for.
    pub used_arguments: Vec<String>,
    escape: char,
    /// `CMD` was given here.
    has_command: bool,
}

/// A step that makes a layer.
#[derive(Debug, Clone)]
pub enum Action {
    /// None.
    None,
    /// The config alone changed.
    Config,
    /// Run a program.
    Run(Box<RunAction>),
    /// Copy.
    Copy(Box<CopyAction>),
    /// Make a directory for this user.
    Directory {
        /// Absolute.
        path: String,
        /// `USER` in force, `None` for root.
        user: Option<String>,
    },
}

/// A program that is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAction {
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=VALUE`: build arguments, then the config's.
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: String,
    /// `USER` in force; empty for root.
    pub user: String,
    /// What is mounted.
    pub mounts: Vec<RunMount>,
    /// Its network.
    pub network: RunNetwork,
    /// With all capabilities.
    pub insecure: bool,
    /// A script of the Dockerfile that is run itself: name and content.
    pub script: Option<(String, String)>,
}

/// What is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyAction {
    /// `ADD`: archives and URLs.
    pub is_add: bool,
    /// Variables replaced.
    pub spec: CopySpec,
    /// Absolute; a slash at its end stays.
    pub destination: String,
}

/// A step with its variables replaced.
#[derive(Debug, Clone)]
pub struct Evaluated {
    /// What is to be done.
    pub action: Action,
    /// For the history; `None` where there is no entry.
    pub history: Option<String>,
}

struct StageVariables<'a>(&'a StageState);

impl Variables for StageVariables<'_> {
    fn value(&self, name: &str) -> Option<String> {
        // What ENV says is stronger than any ARG.
        let env = self.0.config.run_list("Env");
        let env = env.iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('=').map(str::to_owned));
        env.or_else(|| {
            self.0.arguments.iter().rev().find(|(other, _)| other == name).map(|(_, value)| value.clone())
        })
    }
}

impl StageState {
    /// On an image with this config.
    pub fn new(config: Config, escape: char) -> Self {
        Self { config, arguments: Vec::new(), used_arguments: Vec::new(), escape, has_command: false }
    }

    /// On nothing, for a platform.
    pub fn scratch(os: &str, architecture: &str, variant: Option<&str>, escape: char) -> Self {
        let config = Config {
            architecture: architecture.to_owned(),
            variant: variant.filter(|text| !text.is_empty()).map(str::to_owned),
            os: os.to_owned(),
            config: json!({ "Env": [format!("PATH={PATH}")], "WorkingDir": "/" }),
            rootfs: layerfs_image::config::RootFs { kind: "layers".into(), diff_ids: Vec::new() },
            ..Config::default()
        };
        Self::new(config, escape)
    }

    /// Triggers that the image left; they are not its successor's.
    pub fn take_triggers(&mut self) -> Vec<String> {
        let triggers = self.config.run_list("OnBuild");
        if let Some(config) = self.config.config.as_object_mut() {
            config.remove("OnBuild");
        }
        triggers
    }

    fn words(&self, text: &str, step: &Step) -> Result<Vec<String>, LanguageError> {
        Lexer::new(self.escape).words(text, &StageVariables(self)).map_err(|error| bad(text, &error, step))
    }

    fn word(&self, text: &str, step: &Step) -> Result<String, LanguageError> {
        Lexer::new(self.escape).word(text, &StageVariables(self)).map_err(|error| bad(text, &error, step))
    }

    fn all(&self, texts: &[String], step: &Step) -> Result<Vec<String>, LanguageError> {
        texts.iter().map(|text| self.word(text, step)).collect()
    }

    fn optional(&self, text: Option<&String>, step: &Step) -> Result<Option<String>, LanguageError> {
        text.map(|text| self.word(text, step)).transpose()
    }

    /// Replaces variables in a step and changes the config by it.
    ///
    /// # Errors
    /// A substitution that cannot be, a value that is no port, signal or path.
    pub fn evaluate(
        &mut self,
        step: &Step,
        plan: &Plan,
        given: &BTreeMap<String, String>,
    ) -> Result<Evaluated, LanguageError> {
        let mut action = Action::Config;
        let history = match &step.instruction {
            Instruction::From { .. } => return Ok(Evaluated { action: Action::None, history: None }),
            Instruction::Run(run) => {
                let run = self.run(run, step, given)?;
                let history = self.run_history(&run);
                action = Action::Run(Box::new(run));
                history
            }
            Instruction::Copy(spec) | Instruction::Add(spec) => {
                let is_add = matches!(step.instruction, Instruction::Add(_));
                let copy = self.copy(spec, is_add, step)?;
                let history = copy_history(&copy, &step.node.keyword);
                action = Action::Copy(Box::new(copy));
                history
            }
            Instruction::Workdir(path) => {
                let path = self.word(path, step)?;
                let path = self.absolute(&path);
                let path = crate::pattern::clean(&path);
                self.set("WorkingDir", json!(path));
                let history = format!("WORKDIR {path}");
                if path != "/" {
                    let user =
                        self.config.run_text("User").filter(|user| !user.is_empty()).map(str::to_owned);
                    action = Action::Directory { path, user };
                }
                history
            }
            Instruction::Arg(arguments) => {
                let mut shown = Vec::new();
                for (name, default) in arguments {
                    let name = self.word(name, step)?;
                    let default = self.optional(default.as_ref(), step)?;
                    let value = match (given.get(&name), &default) {
                        (Some(value), _) => Some(value.clone()),
                        (None, Some(value)) => Some(value.clone()),
                        (None, None) => plan.global.get(&name).cloned(),
                    };
                    self.used_arguments.push(name.clone());
                    shown
                        .push(value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}={value}")));
                    self.arguments.retain(|(other, _)| *other != name);
                    if let Some(value) = value {
                        self.arguments.push((name, value));
                    }
                }
                format!("ARG {}", shown.join(" "))
            }
            other => return self.change(other, step),
        };
        Ok(Evaluated { action, history: Some(history) })
    }

    fn absolute(&self, path: &str) -> String {
        match path.starts_with('/') {
            true => path.to_owned(),
            false => {
                format!("{}/{path}", self.config.run_text("WorkingDir").unwrap_or("/").trim_end_matches('/'))
            }
        }
    }

    /// The shell in force.
    fn shell(&self) -> Vec<String> {
        let shell = self.config.run_list("Shell");
        if shell.is_empty() { vec!["/bin/sh".into(), "-c".into()] } else { shell }
    }

    fn with_shell(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(text) => self.shell().into_iter().chain([text.clone()]).collect(),
        }
    }

    fn run(
        &mut self,
        run: &RunSpec,
        step: &Step,
        given: &BTreeMap<String, String>,
    ) -> Result<RunAction, LanguageError> {
        let mut script = None;
        let args = match (&run.command, run.heredocs.as_slice()) {
            (Command::Shell(text), [only]) if crate::parse::parse_heredoc(text).is_some() => {
                let content = only.text();
                if content.starts_with("#!") {
                    script = Some((only.name.clone(), content));
                    vec![format!("/dev/pipes/{}", only.name)]
                } else {
                    self.with_shell(&Command::Shell(content))
                }
            }
            (Command::Shell(text), heredocs) if !heredocs.is_empty() => {
                let mut text = text.clone();
                for heredoc in heredocs {
                    text.push('\n');
                    text.push_str(&heredoc.content);
                    text.push_str(&heredoc.name);
                }
                self.with_shell(&Command::Shell(text))
            }
            (command, _) => self.with_shell(command),
        };
        let mut env: Vec<String> = Vec::new();
        let own = self.config.run_list("Env");
        let has =
            |list: &[String], name: &str| list.iter().any(|entry| entry.split('=').next() == Some(name));
        for (name, value) in &self.arguments {
            if !has(&own, name) {
                env.push(format!("{name}={value}"));
            }
        }
        for name in PREDEFINED {
            if let Some(value) = given.get(name).filter(|_| !has(&own, name) && !has(&env, name)) {
                env.push(format!("{name}={value}"));
            }
        }
        env.extend(own);
        if !has(&env, "PATH") {
            env.push(format!("PATH={PATH}"));
        }
        let mount = |text: &String| {
            let expanded = self.word_in_mount(text, step)?;
            parse_mount(&expanded).map_err(|why| LanguageError::new(step.node.lines, why).mark(text.as_str()))
        };
        let mut mounts: Vec<RunMount> = run.mounts.iter().map(mount).collect::<Result<_, _>>()?;
        for mount in &mut mounts {
            if !mount.target.is_empty() {
                mount.target = crate::pattern::clean(&self.absolute(&mount.target));
            }
        }
        mounts.sort_by_key(|mount| mount.target.matches('/').count());
        Ok(RunAction {
            args,
            env,
            workdir: self
                .config
                .run_text("WorkingDir")
                .filter(|path| !path.is_empty())
                .unwrap_or("/")
                .to_owned(),
            user: self.config.run_text("User").unwrap_or_default().to_owned(),
            mounts,
            network: run.network,
            insecure: run.insecure,
            script,
        })
    }

    /// A mount's text keeps its quotes: they are those of its fields.
    fn word_in_mount(&self, text: &str, step: &Step) -> Result<String, LanguageError> {
        match text.contains('$') {
            true => Lexer::new(self.escape)
                .raw()
                .word(text, &StageVariables(self))
                .map_err(|error| bad(text, &error, step)),
            false => Ok(text.to_owned()),
        }
    }

    fn run_history(&self, run: &RunAction) -> String {
        let arguments: Vec<String> =
            self.arguments.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let script = run.script.as_ref().map(|(_, content)| content.clone());
        let command = script.unwrap_or_else(|| run.args.join(" "));
        match arguments.is_empty() {
            true => format!("RUN {command}"),
            false => format!("RUN |{} {} {command}", arguments.len(), arguments.join(" ")),
        }
    }

    fn copy(&self, spec: &CopySpec, is_add: bool, step: &Step) -> Result<CopyAction, LanguageError> {
        let mut spec = CopySpec {
            sources: self.all(&spec.sources, step)?,
            destination: self.word(&spec.destination, step)?,
            chown: self.optional(spec.chown.as_ref(), step)?,
            chmod: self.optional(spec.chmod.as_ref(), step)?,
            exclude: self.all(&spec.exclude, step)?,
            checksum: self.optional(spec.checksum.as_ref(), step)?,
            ..spec.clone()
        };
        for file in &mut spec.inline {
            if file.expand {
                // Only variables: quotes in a file are its own.
                file.content = self.content(&file.content, step)?;
            }
        }
        if spec.sources.len() + spec.inline.len() > 1
            && !spec.destination.ends_with('/')
            && spec.destination != "."
        {
            return Err(LanguageError::new(
                step.node.lines,
                format!("when using {} with more than one source file, the destination must be a directory and end with a /", step.node.keyword),
            )
            .mark(spec.destination.as_str())
            .hint(format!("write {}/", spec.destination)));
        }
        let is_directory =
            spec.destination.ends_with('/') || spec.destination == "." || spec.destination.ends_with("/.");
        let mut destination = crate::pattern::clean(&self.absolute(&spec.destination));
        if is_directory && destination != "/" {
            destination.push('/');
        }
        if let Some(mode) = &spec.chmod {
            let digits = mode.trim_start_matches("0o");
            if u32::from_str_radix(digits, 8).is_ok_and(|mode| mode <= 0o7777) {
                spec.chmod = Some(digits.to_owned());
            } else {
                return Err(LanguageError::new(
                    step.node.lines,
                    format!("invalid chmod parameter: {mode:?}"),
                )
                .mark(mode.as_str())
                .hint("write it in octal, as 0755"));
            }
        }
        Ok(CopyAction { is_add, spec, destination })
    }

    /// Variables of a here-document: quotes stay. A backslash goes and what follows it stays, whatever it is, also where the
    /// file's escape is another one; so BuildKit has it.
    fn content(&self, text: &str, step: &Step) -> Result<String, LanguageError> {
        Lexer::new('\\')
            .without_quotes()
            .word(text, &StageVariables(self))
            .map_err(|error| bad(text, &error, step))
    }

    fn set(&mut self, key: &str, value: Value) {
        if !self.config.config.is_object() {
            self.config.config = json!({});
        }
        self.config.config[key] = value;
    }
}

fn bad(text: &str, error: &crate::expand::ExpandError, step: &Step) -> LanguageError {
    LanguageError::new(step.node.lines, format!("process {text:?}: {error}")).mark(text)
}

fn copy_history(copy: &CopyAction, keyword: &str) -> String {
    let mut text = keyword.to_owned();
    let spec = &copy.spec;
    for (name, value) in
        [("from", &spec.from), ("chown", &spec.chown), ("chmod", &spec.chmod), ("checksum", &spec.checksum)]
    {
        if let Some(value) = value {
            text.push_str(&format!(" --{name}={value}"));
        }
    }
    for (name, is_set) in [("link", spec.link), ("parents", spec.parents)] {
        if is_set {
            text.push_str(&format!(" --{name}"));
        }
    }
    for source in &spec.sources {
        text.push_str(&format!(" {source}"));
    }
    for file in &spec.inline {
        text.push_str(&format!(" <<{}", file.name));
    }
    text.push_str(&format!(" {}", spec.destination));
    text
}

#[cfg(test)]
mod tests;
