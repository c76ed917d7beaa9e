//! Checks: what a Dockerfile may have and had better not. The names and rules are BuildKit's; not all of its checks are
//! here.

use std::fmt;

use crate::instruction::{Command, Instruction};
use crate::parse::Node;
use crate::plan::Stage;

/// A rule, by BuildKit's name for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Check {
    /// Empty lines in a continued instruction.
    NoEmptyContinuation,
    /// Two stages of one name.
    DuplicateStageName,
    /// `FROM --platform=$TARGETPLATFORM`, which is what happens without it.
    RedundantTargetPlatform,
    /// `MAINTAINER`.
    MaintainerDeprecated,
    /// `ENV name value`.
    LegacyKeyValueFormat,
    /// Several of an instruction of which the last one counts.
    MultipleInstructionsDisallowed,
    /// A command that runs in a shell, which keeps signals to itself.
    JsonArgsRecommended,
    /// A name that promises a secret, in what everybody with the image can read.
    SecretsUsedInArgOrEnv,
}

impl Check {
    const ALL: [Self; 8] = [
        Self::NoEmptyContinuation,
        Self::DuplicateStageName,
        Self::RedundantTargetPlatform,
        Self::MaintainerDeprecated,
        Self::LegacyKeyValueFormat,
        Self::MultipleInstructionsDisallowed,
        Self::JsonArgsRecommended,
        Self::SecretsUsedInArgOrEnv,
    ];

    /// As `# check=skip=` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoEmptyContinuation => "NoEmptyContinuation",
            Self::DuplicateStageName => "DuplicateStageName",
            Self::RedundantTargetPlatform => "RedundantTargetPlatform",
            Self::MaintainerDeprecated => "MaintainerDeprecated",
            Self::LegacyKeyValueFormat => "LegacyKeyValueFormat",
            Self::MultipleInstructionsDisallowed => "MultipleInstructionsDisallowed",
            Self::JsonArgsRecommended => "JSONArgsRecommended",
            Self::SecretsUsedInArgOrEnv => "SecretsUsedInArgOrEnv",
        }
    }
}

/// BuildKit's other checks: their names are no mistake.
const ELSEWHERE: &[&str] = &[
    "ConsistentInstructionCasing",
    "CopyIgnoredFile",
    "ExposeInvalidFormat",
    "ExposeProtoCasing",
    "FromAsCasing",
    "FromPlatformFlagConstDisallowed",
    "InvalidBaseImagePlatform",
    "InvalidDefaultArgInFrom",
    "InvalidDefinitionDescription",
    // Refused whatever the checks say.
    "ReservedStageName",
    "StageNameCasing",
    "UndefinedArgInFrom",
    "UndefinedVar",
    "WorkdirRelativePath",
];

/// Something unwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The rule; `None` where no rule can be skipped.
    pub check: Option<Check>,
    /// Line, counted from 1.
    pub line: usize,
    /// What, in words.
    pub message: String,
}

impl Warning {
    pub(crate) fn new(check: Check, line: usize, message: impl Into<String>) -> Self {
        Self { check: Some(check), line, message: message.into() }
    }

    pub(crate) fn note(line: usize, message: impl Into<String>) -> Self {
        Self { check: None, line, message: message.into() }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.check {
            Some(check) => write!(f, "{}: {}", check.name(), self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// Which checks are wanted: the value of `# check=`, or of the build argument `BUILDKIT_DOCKERFILE_CHECK`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checks {
    skip_all: bool,
    skip: Vec<String>,
    /// What a check finds fails the build.
    pub is_error: bool,
}

impl Checks {
    /// Reads `skip=NAME,NAME|all;error=BOOL;experimental=...`.
    ///
    /// # Errors
    /// What is of another form, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut checks = Self::default();
        for part in text.trim().split(';').filter(|_| !text.trim().is_empty()) {
            let (name, value) =
                part.split_once('=').ok_or_else(|| format!("invalid check option {part:?}"))?;
            let value = value.trim();
            match name.trim() {
                "skip" if value == "all" => checks.skip_all = true,
                "skip" => checks.skip = value.split(',').map(|name| name.trim().to_owned()).collect(),
                // There are none.
                "experimental" => {}
                "error" => {
                    checks.is_error = match value {
                        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                        _ => return Err(format!("invalid check option {part:?}: error is true or false")),
                    }
                }
                other => return Err(format!("invalid check option {other:?}")),
            }
        }
        Ok(checks)
    }

    pub(crate) fn wants(&self, warning: &Warning) -> bool {
        warning.check.is_none_or(|check| !self.skip_all && !self.skip.iter().any(|name| name == check.name()))
    }

    /// Names that are no check's.
    pub(crate) fn unknown(&self) -> impl Iterator<Item = &str> {
        let is_known =
            |name: &str| ELSEWHERE.contains(&name) || Check::ALL.iter().any(|check| check.name() == name);
        self.skip.iter().map(String::as_str).filter(move |name| !is_known(name))
    }
}

/// What the checks find in a stage.
pub(crate) fn look(stage: &Stage, warnings: &mut Vec<Warning>) {
    let line = stage.from.lines.0;
    let platform = stage.from.flags.iter().find_map(|flag| flag.strip_prefix("--platform="));
    if platform.is_some_and(|text| matches!(text, "$TARGETPLATFORM" | "${TARGETPLATFORM}")) {
        let message = "--platform=$TARGETPLATFORM is what happens without it";
        warnings.push(Warning::new(Check::RedundantTargetPlatform, line, message));
    }
    let mut has_shell = false;
    let mut seen: Vec<&str> = Vec::new();
    for step in &stage.steps {
        let (line, keyword) = (step.node.lines.0, step.node.keyword.as_str());
        let mut warn = |check, message: String| warnings.push(Warning::new(check, line, message));
        match &step.instruction {
            Instruction::Shell(_) => has_shell = true,
            Instruction::Maintainer(_) => {
                let message = "MAINTAINER is deprecated: use LABEL org.opencontainers.image.authors=";
                warn(Check::MaintainerDeprecated, message.into());
            }
            Instruction::Env(pairs) | Instruction::Label(pairs) => {
                if is_legacy(&step.node) {
                    let message = format!("write {keyword} NAME=VALUE, not {keyword} NAME VALUE");
                    warn(Check::LegacyKeyValueFormat, message);
                }
                if matches!(step.instruction, Instruction::Env(_)) {
                    for (name, _) in pairs.iter().filter(|(name, _)| is_secret(name)) {
                        warn(Check::SecretsUsedInArgOrEnv, exposed("ENV", name));
                    }
                }
            }
            Instruction::Arg(arguments) => {
                for (name, _) in arguments.iter().filter(|(name, _)| is_secret(name)) {
                    warn(Check::SecretsUsedInArgOrEnv, exposed("ARG", name));
                }
            }
            Instruction::Cmd(Command::Shell(_)) | Instruction::Entrypoint(Command::Shell(_))
                if !has_shell =>
            {
                let message = format!(
                    "write {keyword} [\"program\", \"argument\"]: in the other form a shell gets the signals"
                );
                warn(Check::JsonArgsRecommended, message);
            }
            _ => {}
        }
        if matches!(keyword, "CMD" | "ENTRYPOINT" | "HEALTHCHECK") {
            if seen.contains(&keyword) {
                let message = format!("several {keyword} in one stage: the last one counts");
                warn(Check::MultipleInstructionsDisallowed, message);
            }
            seen.push(keyword);
        }
    }
}

fn exposed(keyword: &str, name: &str) -> String {
    format!("{keyword} {name}: whoever has the image can read it; use RUN --mount=type=secret")
}

/// `ENV name value`: the first word has no `=`.
fn is_legacy(node: &Node) -> bool {
    node.rest.split_whitespace().next().is_some_and(|word| !word.contains('='))
}

/// A part of the name between underscores promises a secret, and none says that it is public.
fn is_secret(name: &str) -> bool {
    const SECRET: &[&str] = &[
        "apikey",
        "auth",
        "credential",
        "credentials",
        "key",
        "password",
        "pword",
        "passwd",
        "secret",
        "token",
    ];
    let lower = name.to_lowercase();
    lower.split('_').any(|part| SECRET.contains(&part)) && !lower.contains("public")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Wanted, plan};

    fn found(text: &str) -> Vec<(usize, &'static str)> {
        let mut wanted = Wanted::default();
        wanted.platform_arguments.insert("TARGETPLATFORM".into(), "linux/amd64".into());
        let plan = plan(text, &wanted).unwrap();
        plan.warnings.iter().map(|warning| (warning.line, warning.check.map_or("", Check::name))).collect()
    }

    #[test]
    fn each_check_finds_its_fault() {
        assert_eq!(found("FROM a\nENV a=b\nCMD [\"x\"]\nLABEL x=y\nARG PUBLIC_KEY KEYS\n"), []);
        assert_eq!(found("FROM a\nRUN x \\\n\n y\n"), [(2, "NoEmptyContinuation")]);
        assert_eq!(found("FROM a AS b\nFROM a AS b\n"), [(2, "DuplicateStageName")]);
        let from = "FROM --platform=$TARGETPLATFORM scratch\n";
        assert_eq!(found(from), [(1, "RedundantTargetPlatform")]);
        assert_eq!(found("FROM a\nMAINTAINER x\n"), [(2, "MaintainerDeprecated")]);
        assert_eq!(found("FROM a\nENV b c\n"), [(2, "LegacyKeyValueFormat")]);
        assert_eq!(found("FROM a\nCMD []\nCMD []\n"), [(3, "MultipleInstructionsDisallowed")]);
        assert_eq!(found("FROM a\nCMD x\n"), [(2, "JSONArgsRecommended")]);
        assert_eq!(found("FROM a\nSHELL [\"x\"]\nCMD x\n"), []);
        assert_eq!(found("FROM a\nENV API_TOKEN=x\n"), [(2, "SecretsUsedInArgOrEnv")]);
        assert_eq!(found("FROM a\nARG password\n"), [(2, "SecretsUsedInArgOrEnv")]);
    }

    #[test]
    fn the_directive_and_the_argument_choose() {
        const TEXT: &str = "FROM a\nMAINTAINER x\nCMD x\n";
        assert_eq!(found(&format!("# check=skip=all\n{TEXT}")), []);
        let one = format!("# check=skip=MaintainerDeprecated, FromAsCasing;error=true\n{TEXT}");
        assert_eq!(found(&one), [(4, "JSONArgsRecommended")]);
        assert!(plan(&one, &Wanted::default()).unwrap().checks.is_error);
        // Names of no check are told.
        assert_eq!(found("# check=skip=Nonsense\nFROM a\n"), [(1, "")]);
        let mut wanted = Wanted::default();
        wanted.arguments.insert("BUILDKIT_DOCKERFILE_CHECK".into(), "skip=all".into());
        let chosen = plan(&one, &wanted).unwrap();
        assert!(chosen.warnings.is_empty() && !chosen.checks.is_error);
        for bad in ["skip", "error=maybe", "other=x", "skip=all;"] {
            let error = plan(&format!("# check={bad}\n{TEXT}"), &Wanted::default()).unwrap_err();
            assert!(error.message.contains("invalid check option") && error.lines.0 == 1, "{bad}: {error}");
        }
    }
}
