//! Stages: which there are, what they are on, which are needed for the one that is wanted.

use std::collections::{BTreeMap, BTreeSet};

use crate::check::{self, Check, Checks, Warning};
use crate::error::LanguageError;
use crate::expand::Lexer;
use crate::instruction::{Instruction, MountKind, parse_mount, understand};
use crate::parse::{Document, Node, parse};

/// The build argument that is stronger than `# check=`.
const CHECK_ARGUMENT: &str = "BUILDKIT_DOCKERFILE_CHECK";

/// An instruction at its place.
#[derive(Debug, Clone)]
pub struct Step {
    /// As it is written.
    pub node: Node,
    /// What it means.
    pub instruction: Instruction,
}

/// What a stage is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    Scratch,
    /// An earlier stage.
    Stage(usize),
    /// A context with a name (`--build-context`).
    Context(String),
    /// An image.
    Image(String),
}

/// A stage.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// What it is on.
    pub base: Base,
    /// Platform of the image, variables replaced.
    pub platform: Option<String>,
    /// `FROM` itself.
    pub from: Node,
    /// What follows.
    pub steps: Vec<Step>,
}

/// What a build is asked for, as far as the stages depend on it.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// A stage by name or number; the last one without it.
    pub target: Option<String>,
    /// `--build-arg`
    pub arguments: BTreeMap<String, String>,
    /// Names of `--build-context`.
    pub contexts: BTreeSet<String>,
    /// `TARGETPLATFORM` and the like.
    pub platform_arguments: BTreeMap<String, String>,
}

/// A Dockerfile as stages.
#[derive(Debug, Clone)]
pub struct Plan {
    /// All, in the order of the text.
    pub stages: Vec<Stage>,
    /// The one that is wanted.
    pub target: usize,
    /// Those that it needs, itself among them, rising.
    pub needed: Vec<usize>,
    /// `ARG` before the first `FROM`, and the platform's.
    pub global: BTreeMap<String, String>,
    /// The escape character.
    pub escape: char,
    /// Unwise things, those that are not wanted left out.
    pub warnings: Vec<Warning>,
    /// Which checks are wanted.
    pub checks: Checks,
}

/// A source that a step names by `--from` or `from=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A stage by number.
    Stage(usize),
    /// A context by name.
    Context(String),
    /// An image.
    Image(String),
}

/// Reads a Dockerfile and finds out which of its stages are needed.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn plan(text: &str, wanted: &Wanted) -> Result<Plan, LanguageError> {
    let Document { nodes, directives, warnings } = parse(text)?;
    let escape = directives.escape;
    let mut checks = directives.check.unwrap_or_default();
    if let Some(text) = wanted.arguments.get(CHECK_ARGUMENT) {
        checks = Checks::parse(text)
            .map_err(|what| LanguageError::new((0, 0), format!("build argument {CHECK_ARGUMENT}: {what}")))?;
    }
    let mut plan = Plan {
        stages: Vec::new(),
        target: 0,
        needed: Vec::new(),
        global: wanted.platform_arguments.clone(),
        escape,
        warnings,
        checks,
    };
    if let Some(syntax) = directives.syntax.filter(|syntax| !syntax.contains("docker/dockerfile")) {
        let words = format!("the frontend {syntax} is not used: the file is read as docker/dockerfile:1");
        plan.warnings.push(Warning::note(1, words));
    }
    for node in nodes {
        let instruction = understand(&node, escape)?;
        match (instruction, plan.stages.last_mut()) {
            (Instruction::From { image, platform, name }, _) => {
                plan.begin(node, &image, platform, name, wanted)?
            }
            (Instruction::Arg(arguments), None) => {
                for (name, default) in arguments {
                    let value = match (wanted.arguments.get(&name), default) {
                        (Some(value), _) => Some(value.clone()),
                        (None, Some(text)) => Some(expanded(&text, &plan.global, escape, &node)?),
                        (None, None) => None,
                    };
                    if let Some(value) = value {
                        plan.global.insert(name, value);
                    }
                }
            }
            (_, None) => {
                return Err(LanguageError::new(node.lines, "no build stage in current context")
                    .mark(node.keyword.as_str())
                    .hint("begin with FROM; only ARG may come before"));
            }
            (instruction, Some(stage)) => stage.steps.push(Step { node, instruction }),
        }
    }
    if plan.stages.is_empty() {
        return Err(LanguageError::new((0, 0), "the file has no build stage").hint("begin with FROM IMAGE"));
    }
    plan.target = match &wanted.target {
        None => plan.stages.len() - 1,
        Some(target) => plan.stage_called(target, plan.stages.len()).ok_or_else(|| {
            let names: Vec<&str> = plan.stages.iter().filter_map(|stage| stage.name.as_deref()).collect();
            let there_are = if names.is_empty() {
                "its stages have no names".into()
            } else {
                format!("there are {}", names.join(", "))
            };
            LanguageError::new((0, 0), format!("target stage {target:?} could not be found")).hint(there_are)
        })?,
    };
    for stage in &plan.stages {
        check::look(stage, &mut plan.warnings);
    }
    for name in plan.checks.unknown() {
        let words = format!("there is no check {name:?}; names are written as in JSONArgsRecommended");
        plan.warnings.push(Warning::note(1, words));
    }
    plan.warnings.retain(|warning| plan.checks.wants(warning));
    plan.warnings.sort_by_key(|warning| warning.line);
    plan.needed = plan.needed_for(plan.target, wanted)?.into_iter().collect();
    Ok(plan)
}

fn expanded(
    text: &str,
    variables: &BTreeMap<String, String>,
    escape: char,
    node: &Node,
) -> Result<String, LanguageError> {
    Lexer::new(escape)
        .word(text, variables)
        .map_err(|error| LanguageError::new(node.lines, format!("process {text:?}: {error}")).mark(text))
}

impl Plan {
    fn begin(
        &mut self,
        node: Node,
        image: &str,
        platform: Option<String>,
        name: Option<String>,
        wanted: &Wanted,
    ) -> Result<(), LanguageError> {
        let base = expanded(image, &self.global, self.escape, &node)?;
        if base.trim().is_empty() {
            return Err(LanguageError::new(node.lines, format!("base name ({image}) should not be blank"))
                .mark(image)
                .hint("give the variable a value before FROM, with ARG or --build-arg"));
        }
        let platform = platform.map(|text| expanded(&text, &self.global, self.escape, &node)).transpose()?;
        if platform.as_deref().is_some_and(|text| text.trim().is_empty()) {
            return Err(LanguageError::new(node.lines, "the platform is empty").mark("--platform"));
        }
        let lower = base.to_lowercase();
        let base = match self.stages.iter().rposition(|stage| stage.name.as_deref() == Some(&lower)) {
            Some(stage) => Base::Stage(stage),
            None if wanted.contexts.contains(&base) => Base::Context(base),
            None if base == "scratch" => Base::Scratch,
            None => Base::Image(base),
        };
        if name.is_some() && self.stages.iter().any(|stage| stage.name == name) {
            let name = name.clone().unwrap_or_default();
            let words = format!("two stages are called {name:?}: later steps mean the last one");
            self.warnings.push(Warning::new(Check::DuplicateStageName, node.lines.0, words));
        }
        self.stages.push(Stage { name, base, platform, from: node, steps: Vec::new() });
        Ok(())
    }

    /// The stage before `before` with this name or number.
    fn stage_called(&self, name: &str, before: usize) -> Option<usize> {
        let earlier = self.stages.get(..before)?;
        let lower = name.to_lowercase();
        let named = earlier.iter().rposition(|stage| stage.name.as_deref() == Some(&lower));
        named.or_else(|| name.parse().ok().filter(|number| *number < before))
    }

    /// What `--from=NAME` means in the stage with this number.
    ///
    /// # Errors
    /// A number of a stage that does not come before.
    pub fn source(
        &self,
        name: &str,
        stage: usize,
        contexts: &BTreeSet<String>,
        node: &Node,
    ) -> Result<Source, LanguageError> {
        if let Some(found) = self.stage_called(name, stage) {
            return Ok(Source::Stage(found));
        }
        if contexts.contains(name) {
            return Ok(Source::Context(name.to_owned()));
        }
        let is_later =
            self.stages.iter().skip(stage).any(|stage| stage.name.as_deref() == Some(&name.to_lowercase()));
        if name.parse::<usize>().is_ok() || is_later {
            return Err(LanguageError::new(
                node.lines,
                format!("stage {name:?} does not come before this one"),
            )
            .mark(name)
            .hint("a step takes from earlier stages only"));
        }
        Ok(Source::Image(name.to_owned()))
    }

    /// Other stages that one refers to.
    fn references(&self, stage: usize, wanted: &Wanted) -> Result<Vec<usize>, LanguageError> {
        let Some(found) = self.stages.get(stage) else { return Ok(Vec::new()) };
        let mut references = Vec::new();
        if let Base::Stage(base) = found.base {
            references.push(base);
        }
        for step in &found.steps {
            for name in sources_of(&step.instruction) {
                if let Source::Stage(other) = self.source(&name, stage, &wanted.contexts, &step.node)? {
                    references.push(other);
                }
            }
        }
        Ok(references)
    }

    fn needed_for(&self, target: usize, wanted: &Wanted) -> Result<BTreeSet<usize>, LanguageError> {
        let (mut needed, mut open) = (BTreeSet::new(), vec![target]);
        while let Some(stage) = open.pop() {
            if needed.insert(stage) {
                open.extend(self.references(stage, wanted)?);
            }
        }
        Ok(needed)
    }
}

/// Names that an instruction takes something from.
pub fn sources_of(instruction: &Instruction) -> Vec<String> {
    match instruction {
        Instruction::Copy(copy) => copy.from.iter().cloned().collect(),
        Instruction::Run(run) => {
            let from = |text: &String| match parse_mount(text).ok()?.kind {
                MountKind::Bind { from, .. } | MountKind::Cache { from, .. } => from,
                _ => None,
            };
            run.mounts.iter().filter_map(from).collect()
        }
        Instruction::OnBuild(_) => Vec::new(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "ARG V=1\nARG W=${V}x\nFROM img:$W AS a\nRUN x\nFROM scratch AS unused\nFROM a AS b\nCOPY --from=0 x y\n\
                        FROM --platform=$P c:1\nCOPY --from=B x y\nCOPY --from=other:1 x y\nRUN --mount=from=ctx,target=/x y\n";

    fn wanted() -> Wanted {
        Wanted {
            contexts: BTreeSet::from(["ctx".to_owned()]),
            platform_arguments: [("P".to_owned(), "linux/amd64".to_owned())].into(),
            ..Wanted::default()
        }
    }

    #[test]
    fn unneeded_stages_are_left_out() {
        let plan = plan(TEXT, &wanted()).unwrap();
        assert_eq!(plan.needed, [0, 2, 3]);
        assert_eq!(plan.stages[0].base, Base::Image("img:1x".into()));
        assert_eq!(plan.stages[2].base, Base::Stage(0));
        assert_eq!(plan.stages[3].platform.as_deref(), Some("linux/amd64"));
        let target = |target: &str| super::plan(TEXT, &Wanted { target: Some(target.into()), ..wanted() });
        assert_eq!(target("UNUSED").unwrap().needed, [1]);
        assert_eq!(target("0").unwrap().needed, [0]);
        assert!(target("nothing").unwrap_err().hint.unwrap().contains("a, unused, b"));
        let arguments = [("V".to_owned(), "2".to_owned())].into();
        let plan = super::plan(TEXT, &Wanted { arguments, ..wanted() }).unwrap();
        assert_eq!(plan.stages[0].base, Base::Image("img:2x".into()));
    }

    #[test]
    fn order_is_checked() {
        for (text, words) in [
            ("RUN x\nFROM a", "no build stage"),
            ("FROM $X", "should not be blank"),
            ("ARG a", "no build stage"),
            ("FROM a AS z\nCOPY --from=b x y\nFROM z AS b", "does not come before"),
            ("FROM a\nCOPY --from=0 x y", "does not come before"),
            ("FROM a$", ""),
        ] {
            match plan(text, &Wanted::default()) {
                Err(error) => assert!(error.message.contains(words) && !words.is_empty(), "{text}: {error}"),
                Ok(_) => assert!(words.is_empty(), "{text}"),
            }
        }
        assert_eq!(plan("FROM a AS x\nFROM b AS x\nFROM x", &Wanted::default()).unwrap().needed, [1, 2]);
    }
}
