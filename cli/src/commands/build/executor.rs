//! Stages carried out: each in a thread of its own that waits for those it needs; each step found in the cache, or done.
//!
//! Layers that are made stay in the session's directory until they are published: together, with one sync, at the end, after
//! a failure, or when a step took long. Records for the cache are written after that.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use layerfs_build::check::Check;
use layerfs_build::config::{Action, StageState};
use layerfs_build::context::{HashCache, SourceTree};
use layerfs_build::parse::{Node, parse_one};
use layerfs_build::plan::{Base, Plan, Source, Step, Wanted, plan};
use layerfs_image::config::{History, digest_of};
use layerfs_image::digest::{ChainId, DiffId, Digest};
use layerfs_image::layer::Stack;
use layerfs_image::media_type;
use layerfs_image::store::{Image, Session, StagedStep, StepRecord, Store};
use layerfs_runner::attach::Signals;
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal};

use super::input::Input;
use super::options::{ContextSource, Request};
use super::progress::{End, Progress};
use super::ssh::Agents;
use super::{at_step, copy, explained, remote, run};
use crate::commands::container::config::ContainerConfig;
use crate::commands::container::step::StepOptions;
use crate::exit::Hinted;

/// What is made is published at once after a step that took so long.
const WORTH_KEEPING: Duration = Duration::from_secs(2);

/// A layer of an image in the making.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) diff_id: DiffId,
    pub(super) blob: (Digest, u64),
    pub(super) media_type: String,
    /// Where it is until it is published.
    staged: Option<PathBuf>,
}

impl Layer {
    /// One that is in the store.
    pub(super) fn published(diff_id: DiffId, blob: (Digest, u64)) -> Self {
        Self { diff_id, blob, media_type: media_type::OCI_LAYER.to_owned(), staged: None }
    }
}

/// A stage that is built, or an image.
#[derive(Debug, Clone)]
pub(super) struct Built {
    pub(super) state: StageState,
    /// The lowest first.
    pub(super) layers: Vec<Layer>,
    /// How many of them were there before.
    pub(super) inherited: usize,
    /// Entries of the history that were there before.
    pub(super) inherited_history: usize,
    /// All steps of the build, once it is done.
    pub(super) steps: Vec<StepRecord>,
}

impl Built {
    pub(super) fn diff_ids(&self) -> Vec<DiffId> {
        self.layers.iter().map(|layer| layer.diff_id).collect()
    }

    pub(super) fn chain(&self) -> Option<ChainId> {
        ChainId::chain(&self.diff_ids()).last().copied()
    }
}

#[derive(Debug, Default)]
struct Pending {
    steps: Vec<StagedStep>,
    records: Vec<StepRecord>,
}

/// Another stage failed, or the user asked to stop: it is told there.
#[derive(Debug, thiserror::Error)]
#[error("stopped")]
struct Stopped;

#[derive(Debug)]
enum Outcome {
    Built(Arc<Built>),
    Failed,
}

/// A build while it goes on.
pub(super) struct Executor<'a> {
    pub(super) request: &'a Request,
    pub(super) input: &'a Input,
    pub(super) plan: &'a Plan,
    pub(super) wanted: &'a Wanted,
    pub(super) store: &'a Store,
    pub(super) session: &'a Session,
    pub(super) progress: &'a Progress,
    pub(super) root: &'a Path,
    pub(super) agents: &'a Agents,
    pub(super) hashes: HashCache,
    base_config: OnceLock<ContainerConfig>,
    pending: Mutex<Pending>,
    /// Read while trees are used by their paths, written while layers are put in their places.
    pub(super) in_place: RwLock<()>,
    results: Mutex<BTreeMap<usize, Outcome>>,
    changed: Condvar,
    stopped: AtomicBool,
    children: Mutex<Vec<Pid>>,
    images: Mutex<HashMap<String, Arc<Built>>>,
    used: Mutex<Vec<StepRecord>>,
    elsewhere: remote::Sources<'a>,
    numbers: Mutex<u64>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The plan, and what it was made for. What is unwise in it has been told.
fn planned(request: &Request, input: &Input, progress: &Progress) -> anyhow::Result<(Plan, Wanted)> {
    let wanted = Wanted {
        target: request.target.clone(),
        arguments: request.arguments.clone(),
        contexts: request.contexts.keys().cloned().collect(),
        platform_arguments: platform_arguments(request),
    };
    let plan = plan(&input.text, &wanted).map_err(|error| explained(&error, &input.file, &input.text))?;
    for warning in &plan.warnings {
        progress.warn(format_args!("{}:{}: {warning}", input.file, warning.line));
    }
    Ok((plan, wanted))
}

/// Tells what is unwise, and builds nothing. False when there is something.
pub(super) fn check(request: &Request, input: &Input, progress: &Progress) -> anyhow::Result<bool> {
    let (plan, _) = planned(request, input, progress)?;
    Ok(plan.warnings.iter().all(|warning| warning.check.is_none()))
}

/// Carries the plan out. What was done until a failure is kept.
#[allow(clippy::too_many_arguments, reason = "all that a build works with, once")]
pub(super) fn execute(
    request: &Request,
    input: &Input,
    store: &Store,
    session: &Session,
    progress: &Progress,
    signals: &Signals,
    root: &Path,
    agents: &Agents,
) -> anyhow::Result<Built> {
    let (plan, wanted) = planned(request, input, progress)?;
    refuse_violations(&plan)?;
    let executor = Executor {
        request,
        input,
        plan: &plan,
        wanted: &wanted,
        store,
        session,
        progress,
        root,
        agents,
        hashes: HashCache::open(&root.join("hashes")),
        base_config: OnceLock::new(),
        pending: Mutex::default(),
        in_place: RwLock::new(()),
        results: Mutex::default(),
        changed: Condvar::new(),
        stopped: AtomicBool::new(false),
        children: Mutex::default(),
        images: Mutex::default(),
        used: Mutex::default(),
        elsewhere: remote::Sources::new(request, progress),
        numbers: Mutex::default(),
    };
    let result = executor.all(signals);
    executor.hashes.save();
    let flushed = executor.flush(true);
    let built = result?;
    flushed?;
    executor.note_unused_arguments();
    let mut built = built;
    built.steps = distinct(executor.used.into_inner().unwrap_or_else(PoisonError::into_inner));
    Ok(built)
}

/// Each step once: several stages may have taken the same.
fn distinct(steps: Vec<StepRecord>) -> Vec<StepRecord> {
    let mut seen = HashSet::new();
    steps.into_iter().filter(|step| seen.insert(step.key)).collect()
}

/// With `# check=error=true`, what the checks find is a mistake.
fn refuse_violations(plan: &Plan) -> anyhow::Result<()> {
    let mut names: Vec<&str> =
        plan.warnings.iter().filter_map(|warning| warning.check).map(Check::name).collect();
    names.sort_unstable();
    names.dedup();
    if !plan.checks.is_error || names.is_empty() {
        return Ok(());
    }
    bail!(Hinted {
        message: format!("lint violation found for rules: {}", names.join(", ")),
        hint: "mend what the warnings say, or leave rules out with # check=skip=NAME,NAME;error=true".into(),
    })
}

fn platform_arguments(request: &Request) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let host = layerfs_image::registry::Platform::host();
    for (prefix, platform) in [("BUILD", &host), ("TARGET", &request.platform)] {
        for (name, value) in [
            ("PLATFORM", platform.to_string()),
            ("OS", platform.os.clone()),
            ("ARCH", platform.architecture.clone()),
            ("VARIANT", platform.variant.clone()),
        ] {
            all.insert(format!("{prefix}{name}"), value);
        }
    }
    all.insert("TARGETSTAGE".into(), request.target.clone().unwrap_or_else(|| "default".into()));
    all
}

impl Executor<'_> {
    /// All stages that are needed, at the same time as far as they can be.
    fn all(&self, signals: &Signals) -> anyhow::Result<Built> {
        let (reader, writer) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("make a pipe")?;
        let mut interrupted = None;
        let errors: Mutex<Vec<anyhow::Error>> = Mutex::default();
        std::thread::scope(|scope| -> anyhow::Result<()> {
            for stage in self.plan.needed.iter().copied() {
                // Its end closes the pipe: the last one wakes the thread that waits.
                let alive = writer.try_clone().context("make a pipe")?;
                let errors = &errors;
                let work = move || {
                    let result = self.stage(stage);
                    let outcome = match result {
                        Ok(built) => Outcome::Built(Arc::new(built)),
                        Err(error) => {
                            if !error.is::<Stopped>() {
                                locked(errors).push(error);
                            }
                            self.stop();
                            Outcome::Failed
                        }
                    };
                    locked(&self.results).insert(stage, outcome);
                    self.changed.notify_all();
                    drop(alive);
                };
                std::thread::Builder::new()
                    .name(format!("stage-{stage}"))
                    .spawn_scoped(scope, work)
                    .context("start a thread")?;
            }
            drop(writer);
            loop {
                let mut wanted = [PollFd::new(signals, PollFlags::IN), PollFd::new(&reader, PollFlags::IN)];
                rustix::io::retry_on_intr(|| rustix::event::poll(&mut wanted, None))
                    .context("wait for the stages")?;
                if !wanted[1].revents().is_empty() {
                    return Ok(());
                }
                if let Some(signal) = signals.interrupted().context("read a signal")? {
                    interrupted = Some(signal);
                    self.stop();
                }
            }
        })?;
        if let Some(signal) = interrupted {
            bail!("the build was interrupted by signal {signal}; finished steps are kept");
        }
        if let Some(error) = locked(&errors).drain(..).next() {
            return Err(error);
        }
        match locked(&self.results).get(&self.plan.target) {
            Some(Outcome::Built(built)) => Ok(Built::clone(built)),
            _ => bail!("the build stopped"),
        }
    }

    /// Ends what runs; nothing new begins.
    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        for pid in locked(&self.children).iter() {
            // It may have ended by itself; it is a child not yet waited for, and its number is still its own.
            rustix::process::kill_process(*pid, Signal::KILL).ok();
        }
        self.changed.notify_all();
    }

    /// Notes a process that is to end with the build.
    pub(super) fn watch(&self, pid: Pid) {
        let mut children = locked(&self.children);
        children.push(pid);
        if self.stopped.load(Ordering::SeqCst) {
            rustix::process::kill_process(pid, Signal::KILL).ok();
        }
    }

    /// It is about to be waited for: its number may be another's then.
    pub(super) fn unwatch(&self, pid: Pid) {
        locked(&self.children).retain(|other| *other != pid);
    }

    pub(super) fn check_stopped(&self) -> anyhow::Result<()> {
        match self.stopped.load(Ordering::SeqCst) {
            true => Err(Stopped.into()),
            false => Ok(()),
        }
    }

    /// Waits for another stage.
    pub(super) fn wait(&self, stage: usize) -> anyhow::Result<Arc<Built>> {
        let mut results = locked(&self.results);
        loop {
            match results.get(&stage) {
                Some(Outcome::Built(built)) => return Ok(built.clone()),
                Some(Outcome::Failed) => return Err(Stopped.into()),
                None => {}
            }
            self.check_stopped()?;
            if !self.plan.needed.contains(&stage) {
                bail!("stage {stage} is not built: nothing but a trigger of the base image refers to it");
            }
            results = self.changed.wait(results).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What the container of every step begins with.
    pub(super) fn base_config(&self) -> anyhow::Result<ContainerConfig> {
        if let Some(config) = self.base_config.get() {
            return Ok(config.clone());
        }
        let config = StepOptions { options: self.request.options.clone() }.config()?;
        Ok(self.base_config.get_or_init(|| config).clone())
    }

    /// A directory of the session, for one step.
    pub(super) fn step_directory(&self) -> anyhow::Result<PathBuf> {
        let number = {
            let mut numbers = locked(&self.numbers);
            *numbers += 1;
            *numbers
        };
        let path = self.session.path().join(format!("step-{number}"));
        std::fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    }

    fn stage(&self, index: usize) -> anyhow::Result<Built> {
        let stage = self.plan.stages.get(index).context("a stage")?;
        let failed =
            |error: anyhow::Error| at_step(&error, &self.input.file, &self.input.text, stage.from.lines);
        let base = match &stage.base {
            Base::Scratch => {
                let platform = match &stage.platform {
                    Some(text) => text.parse().map_err(|error| failed(anyhow!("{error}")))?,
                    None => self.request.platform.clone(),
                };
                let state = StageState::scratch(
                    &platform.os,
                    &platform.architecture,
                    Some(&platform.variant),
                    self.plan.escape,
                );
                Built { state, layers: Vec::new(), inherited: 0, inherited_history: 0, steps: Vec::new() }
            }
            Base::Stage(other) => Built::clone(&*self.wait(*other)?),
            Base::Image(name) => Built::clone(&*self.image(name, stage.platform.as_deref()).map_err(failed)?),
            Base::Context(name) => match self.request.contexts.get(name) {
                Some(ContextSource::Image(image)) => {
                    Built::clone(&*self.image(image, stage.platform.as_deref()).map_err(failed)?)
                }
                _ => {
                    return Err(failed(
                        Hinted {
                            message: format!("context {name:?} is a directory: a stage cannot begin with it"),
                            hint: "give --build-context an image (docker-image://NAME), or copy --from it"
                                .into(),
                        }
                        .into(),
                    ));
                }
            },
        };
        let mut built = Built { state: StageState::new(base.state.config, self.plan.escape), ..base };
        let triggers = built.state.take_triggers();
        let mut steps = Vec::new();
        for text in triggers {
            let trigger = self.trigger(&text, &stage.from);
            steps.push(trigger.map_err(|error| {
                let error = error.hint(format!("the base image left the trigger {text:?}"));
                explained(&error, &self.input.file, &self.input.text)
            })?);
        }
        steps.extend(stage.steps.iter().cloned());
        let name = stage.name.clone().unwrap_or_else(|| format!("stage-{index}"));
        let count = steps.iter().filter(|step| makes_layer(step)).count();
        let mut number = 0;
        for step in &steps {
            self.check_stopped()?;
            number += usize::from(makes_layer(step));
            let shown = format!("[{}{name} {number}/{count}] {}", self.prefix(), step.node.text());
            self.step(index, &name, step, &shown, &mut built).map_err(|error| self.located(error, step))?;
        }
        Ok(built)
    }

    /// Which of several platforms it is for.
    fn prefix(&self) -> String {
        match self.request.platforms.len() {
            0 | 1 => String::new(),
            _ => format!("{} ", self.request.platform),
        }
    }

    fn located(&self, error: anyhow::Error, step: &Step) -> anyhow::Error {
        match error.is::<Stopped>() || error.is::<super::Shown>() {
            true => error,
            false => at_step(&error, &self.input.file, &self.input.text, step.node.lines),
        }
    }

    fn trigger(&self, text: &str, from: &Node) -> Result<Step, layerfs_build::LanguageError> {
        let mut node =
            parse_one(text).map_err(|error| layerfs_build::LanguageError { lines: from.lines, ..error })?;
        node.lines = from.lines;
        let instruction = layerfs_build::instruction::understand(&node, self.plan.escape)?;
        Ok(Step { node, instruction })
    }

    fn step(
        &self,
        stage: usize,
        stage_name: &str,
        step: &Step,
        shown: &str,
        built: &mut Built,
    ) -> anyhow::Result<()> {
        let evaluated = built
            .state
            .evaluate(step, self.plan, &self.request.arguments)
            .map_err(|error| explained(&error, &self.input.file, &self.input.text))?;
        let made = match &evaluated.action {
            Action::None | Action::Config => None,
            action => Some(self.layer(stage, stage_name, step, action, shown, built)?),
        };
        let created = match &made {
            Some(record) => record.created.clone(),
            None => last_time(built),
        };
        if let Some(text) = evaluated.history {
            built.state.config.history.push(History {
                created: Some(created),
                created_by: Some(text),
                comment: Some("layerfs.dockerfile.v0".into()),
                empty_layer: made.is_none(),
                ..History::default()
            });
        }
        Ok(())
    }

    /// The layer of a step: found, or made.
    fn layer(
        &self,
        stage: usize,
        stage_name: &str,
        step: &Step,
        action: &Action,
        shown: &str,
        built: &mut Built,
    ) -> anyhow::Result<StepRecord> {
        let prepared = match action {
            Action::Run(action) => Prepared::Run(run::prepare(self, stage, action, &step.node, built)?),
            Action::Copy(action) => Prepared::Copy(copy::prepare(self, stage, action, &step.node, built)?),
            Action::Directory { path, user } => {
                Prepared::Copy(copy::directory(self, path, user.as_deref(), built)?)
            }
            Action::None | Action::Config => bail!("a step without a layer"),
        };
        let (key, kind) = match &prepared {
            Prepared::Run(run) => (run.key, "run"),
            Prepared::Copy(copy) => (copy.key, "copy"),
        };
        let number = self.progress.begin(shown);
        let is_off = self.request.no_cache
            || self.request.no_cache_filter.contains(stage_name)
            || self.request.no_cache_filter.contains(&stage.to_string());
        let found = match is_off {
            true => None,
            false => self
                .store
                .find_step(&key, built.chain())
                .or_else(|| self.elsewhere.fetch(&key, &built.diff_ids(), self.store, self.session)),
        };
        if let Some(record) = found {
            self.progress.end(number, End::Cached);
            self.add(built, &record, None);
            return Ok(record);
        }
        let started = Instant::now();
        let made = match prepared {
            Prepared::Run(prepared) => run::execute(self, prepared, built, number),
            Prepared::Copy(prepared) => copy::execute(self, prepared, built),
        };
        let staged = match made {
            Ok(staged) => staged,
            Err(error) => {
                let canceled = self.stopped.load(Ordering::SeqCst);
                self.progress.end(number, if canceled { End::Canceled } else { End::Failed });
                return Err(if canceled { Stopped.into() } else { error });
            }
        };
        let record = StepRecord {
            key,
            layer: staged.diff_id,
            blob: (staged.diff_id.0, staged.size),
            media_type: media_type::OCI_LAYER.to_owned(),
            parent: built.chain(),
            created: self.time(),
            description: step.node.text().chars().take(300).collect(),
            kind: kind.to_owned(),
        };
        self.add(built, &record, Some(staged.directory.clone()));
        {
            let mut pending = locked(&self.pending);
            pending.steps.push(staged);
            pending.records.push(record.clone());
        }
        self.progress.end(number, End::Done);
        if started.elapsed() > WORTH_KEEPING {
            self.flush(false)?;
        }
        Ok(record)
    }

    fn add(&self, built: &mut Built, record: &StepRecord, staged: Option<PathBuf>) {
        built.layers.push(Layer {
            diff_id: record.layer,
            blob: record.blob,
            media_type: record.media_type.clone(),
            staged,
        });
        built.state.config.rootfs.diff_ids.push(record.layer);
        locked(&self.used).push(record.clone());
    }

    /// Publishes what was made. When others use trees by their paths just now, a later one does it, unless `wait`.
    fn flush(&self, wait: bool) -> anyhow::Result<()> {
        let _guard = match wait {
            true => self.in_place.write().unwrap_or_else(PoisonError::into_inner),
            false => match self.in_place.try_write() {
                Ok(guard) => guard,
                Err(_) => return Ok(()),
            },
        };
        let Pending { mut steps, records } = std::mem::take(&mut *locked(&self.pending));
        self.store.publish_steps(self.session, &mut steps, &records).context("keep the layers")
    }

    /// The directory of a layer: `tree` and its index.
    pub(super) fn directory_of(&self, layer: &Layer) -> PathBuf {
        match &layer.staged {
            Some(staged) if staged.is_dir() => staged.clone(),
            _ => self.store.layer_path(&layer.diff_id),
        }
    }

    /// The trees of layers, the topmost first.
    pub(super) fn trees(&self, layers: &[Layer]) -> Vec<PathBuf> {
        layers.iter().rev().map(|layer| self.directory_of(layer).join("tree")).collect()
    }

    /// Layers as a stack to read from.
    pub(super) fn stack(&self, layers: &[Layer]) -> anyhow::Result<Stack> {
        Stack::open(&self.trees(layers)).context("open the layers below")
    }

    /// What `--from` names, as a tree to copy from.
    pub(super) fn source_tree(
        &self,
        name: &str,
        stage: usize,
        node: &Node,
    ) -> anyhow::Result<Arc<SourceTree>> {
        match self.source(name, stage, node)? {
            SourceOf::Layers(built) => {
                Ok(Arc::new(SourceTree::layers(self.stack(&built.layers)?, format!("{name:?}"))))
            }
            SourceOf::Directory(tree, _) => Ok(tree),
        }
    }

    /// What `--from` names.
    pub(super) fn source(&self, name: &str, stage: usize, node: &Node) -> anyhow::Result<SourceOf> {
        let source = self
            .plan
            .source(name, stage, &self.wanted.contexts, node)
            .map_err(|error| explained(&error, &self.input.file, &self.input.text))?;
        Ok(match source {
            Source::Stage(stage) => SourceOf::Layers(self.wait(stage)?),
            Source::Image(image) => SourceOf::Layers(self.image(&image, None)?),
            Source::Context(name) => match (self.request.contexts.get(&name), self.input.named.get(&name)) {
                (Some(ContextSource::Image(image)), _) => SourceOf::Layers(self.image(image, None)?),
                (_, Some((tree, path))) => SourceOf::Directory(tree.clone(), path.clone()),
                _ => bail!("context {name:?} is not known"),
            },
        })
    }

    /// An image of the store, or pulled.
    fn image(&self, name: &str, platform: Option<&str>) -> anyhow::Result<Arc<Built>> {
        let asked = platform
            .map(str::to_owned)
            .or_else(|| self.request.has_platform.then(|| self.request.platform.to_string()));
        let known = format!("{name} {}", asked.as_deref().unwrap_or_default());
        // Held: two stages that want the same image pull it once.
        let mut images = locked(&self.images);
        if let Some(built) = images.get(&known) {
            return Ok(built.clone());
        }
        let number = self.progress.begin(&format!("[internal] load image {name}"));
        let pull = if self.request.pull { "always" } else { "missing" };
        // A pull has a progress of its own.
        let image = self.progress.aside(|| {
            crate::commands::container::create::image_of(self.store, name, pull, asked.as_deref(), false)
        });
        let image = image.and_then(|image| {
            self.store.ensure_layers(self.session, &image)?;
            Ok(image)
        });
        self.progress.end(number, if image.is_ok() { End::Done } else { End::Failed });
        let built = Arc::new(of_image(&image?, self.plan.escape)?);
        images.insert(known, built.clone());
        Ok(built)
    }

    /// The time of what is made now.
    pub(super) fn time(&self) -> String {
        match self.request.timestamp {
            Some(time) => layerfs_image::time::format(time, 0),
            None => layerfs_image::time::now(),
        }
    }

    fn note_unused_arguments(&self) {
        let mut unused: Vec<&str> = self
            .request
            .arguments
            .keys()
            .filter(|name| {
                let name = name.as_str();
                !layerfs_build::config::PREDEFINED.contains(&name)
                    && !matches!(
                        name,
                        "SOURCE_DATE_EPOCH" | "BUILDKIT_INLINE_CACHE" | "BUILDKIT_DOCKERFILE_CHECK"
                    )
                    && !self
                        .input
                        .text
                        .lines()
                        .any(|line| line.to_uppercase().contains("ARG") && line.contains(name))
            })
            .map(String::as_str)
            .collect();
        unused.sort_unstable();
        if !unused.is_empty() {
            self.progress.warn(format_args!("no ARG takes these build arguments: {}", unused.join(", ")));
        }
    }
}

/// What a step takes from.
pub(super) enum SourceOf {
    Layers(Arc<Built>),
    Directory(Arc<SourceTree>, PathBuf),
}

enum Prepared {
    Run(run::PreparedRun),
    Copy(copy::PreparedCopy),
}

fn makes_layer(step: &Step) -> bool {
    matches!(step.node.keyword.as_str(), "RUN" | "COPY" | "ADD" | "WORKDIR")
}

/// The time of the step before: what changes no file is as old as what it is on.
fn last_time(built: &Built) -> String {
    let times = built.state.config.history.iter().rev().filter_map(|history| history.created.clone());
    times
        .into_iter()
        .next()
        .or_else(|| built.state.config.created.clone())
        .unwrap_or_else(|| "1970-01-01T00:00:00Z".into())
}

fn of_image(image: &Image, escape: char) -> anyhow::Result<Built> {
    let mut layers = Vec::new();
    for (diff_id, descriptor) in image.diff_ids().iter().zip(image.manifest.layers()) {
        layers.push(Layer {
            diff_id: *diff_id,
            blob: (digest_of(descriptor)?, descriptor.size()),
            // A manifest of ours names layers in OCI's words.
            media_type: media_type::of_oci(descriptor.media_type().as_ref()).to_owned(),
            staged: None,
        });
    }
    let inherited = layers.len();
    let inherited_history = image.config.history.len();
    let state = StageState::new(image.config.clone(), escape);
    Ok(Built { state, layers, inherited, inherited_history, steps: Vec::new() })
}
