//! `layerfs apply`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, bail};
use clap::Args;
use layerfs_image::layer::apply::{Action, Plan, finished, plan, resume, run};
use layerfs_image::layer::drop_applied;
use layerfs_runner::runtime::time::rfc3339;
use rustix::fs::{AtFlags, CWD, StatxFlags};

use super::super::store::{Container, Containers};
use super::rest::{AtRest, at_rest};
use super::{Subject, choose, path_in, snapshots};
use crate::commands::run::store_root;
use crate::exit::{Hinted, Usage};
use crate::ui::{self, prompt, visible::visible};

/// What a killed apply has left to do, in the container's directory.
pub(crate) const JOURNAL: &str = "apply.json";

/// Write changes of a container down to the root filesystem that it was made on
///
/// For containers of `run --rootfs`; an image is never changed (see `layerfs commit`). What will change is shown first. A
/// path where the root filesystem is not any more what the container has changed is refused. Every file is replaced in one
/// step, and an apply that is killed is finished by the next. In a stopped container what was applied is no change any more.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct ApplyArgs {
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Also where the root filesystem has changed meanwhile: those changes are lost
    #[arg(short, long)]
    force: bool,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Only these files, and what is in these directories
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
}

const AFTER_HELP: &str = "\
Letters
  A  is new      C  is replaced      D  is removed      M  gets other attributes: owner, mode, times, xattrs

Examples
  Try something on this machine, look at it, keep a part of it:
    layerfs run --rootfs / --name try -it -- bash
    layerfs diff --patch try
    layerfs apply try /etc/nginx /usr/local/bin/tool
    layerfs rm try";

pub(crate) fn apply(args: ApplyArgs) -> anyhow::Result<ExitCode> {
    let chosen = args.paths.iter().map(|path| path_in(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let containers = Containers::open_beside(&args.container)?;
    let container = containers.find(&args.container)?;
    let root = root_of(&container)?.to_owned();
    if container.directory.join(JOURNAL).exists() && !args.dry_run {
        let rest = at_rest(&containers, &args.container)?;
        let subject = Subject::of(rest.container.clone())?;
        if resume_killed(&subject, rest.is_stopped())? {
            ui::note("the last apply was killed; what it had begun is done now");
        }
    }
    let planned = look(&container, &root, &chosen)?;
    show(&planned, args.force)?;
    if planned.steps.is_empty() {
        ui::note("there is nothing to be done");
    }
    if !planned.conflicts.is_empty() && !args.force {
        bail!(Hinted {
            message: format!(
                "the root filesystem has changed meanwhile at {} of these places; nothing was done",
                planned.conflicts.len()
            ),
            hint: "name the paths to be applied, or use --force to lose what was changed there".into(),
        });
    }
    refuse_moves(&planned, !container.is_running(), &args.container)?;
    if args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    if !planned.steps.is_empty() && !args.yes {
        if !prompt::is_possible() {
            bail!(Usage("nobody can be asked here: use --yes to apply the changes without asking".into()));
        }
        let question = format!("Write these changes to {}? [y/N] ", root.display());
        if !matches!(prompt::line(&question)?.to_ascii_lowercase().as_str(), "y" | "yes") {
            return Ok(ExitCode::FAILURE);
        }
    }
    let rest = at_rest(&containers, &args.container)?;
    // What is done is what was shown.
    let mut now = look(&rest.container, &root, &chosen)?;
    if now != planned {
        bail!(Hinted {
            message: "the container or the root filesystem was changed while you looked; nothing was done"
                .into(),
            hint: "look again".into(),
        });
    }
    // Of a running container the layer stays, and what it does next is in it.
    refuse_moves(&now, rest.is_stopped(), &args.container)?;
    now.whole &= rest.is_stopped();
    let subject = Subject::of(rest.container.clone())?;
    if !now.steps.is_empty() {
        let journal = rest.container.directory.join(JOURNAL);
        run(&subject.stack, &now, &root, &journal, rest.container.short()).with_context(|| Hinted {
            message: format!("apply the changes to {}", root.display()),
            hint: "what was not applied is still in the container".into(),
        })?;
    }
    finish(&rest, &chosen, &now)?;
    // Only now: what was applied could be taken for changes of what it was applied to.
    finished(&rest.container.directory.join(JOURNAL)).context("finish the apply")?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses what can only be applied as a whole, and to a layer that stays as it is meanwhile.
fn refuse_moves(plan: &Plan, is_stopped: bool, name: &str) -> anyhow::Result<()> {
    if plan.moves && !is_stopped {
        bail!(Hinted {
            message: "what was renamed can only be applied while the container is stopped".into(),
            hint: format!("layerfs stop {name}"),
        });
    }
    if plan.moves && !plan.whole {
        bail!(Hinted {
            message: "what was renamed can only be applied together with all other changes".into(),
            hint: "discard what is not to be applied, and name no paths".into(),
        });
    }
    Ok(())
}

/// Refuses to work on a container whose last apply was killed: its layer is not what it seems.
pub(in crate::commands::container) fn refuse_unfinished(container: &Container) -> anyhow::Result<()> {
    if container.directory.join(JOURNAL).exists() {
        bail!(Hinted {
            message: format!(
                "container {} was being applied by a command that was killed",
                container.config.name
            ),
            hint: format!("finish that first: layerfs apply {}", container.config.name),
        });
    }
    Ok(())
}

/// Finishes an apply that was killed. The container's layer must be locked, and the container, if it is `stopped`. True
/// when there was one.
pub(in crate::commands::container) fn resume_killed(
    subject: &Subject,
    stopped: bool,
) -> anyhow::Result<bool> {
    let container = &subject.container;
    let journal = container.directory.join(JOURNAL);
    let resumed = resume(&subject.stack, root_of(container)?, &journal).context("finish the last apply")?;
    if resumed == Some(true) && stopped {
        snapshots::replace_upper(container, None)?;
        begin_anew(container)?;
    }
    finished(&journal).context("finish the last apply")?;
    Ok(resumed.is_some())
}

/// The root filesystem of a container that is on one.
fn root_of(container: &Container) -> anyhow::Result<&Path> {
    container.config.rootfs.as_deref().ok_or_else(|| {
        Hinted {
            message: format!("container {} is on an image, which is never changed", container.config.name),
            hint: format!("make a new image of it: layerfs commit {} NAME", container.config.name),
        }
        .into()
    })
}

fn look(container: &Container, root: &Path, chosen: &[Vec<u8>]) -> anyhow::Result<Plan> {
    let subject = Subject::of(container.clone())?;
    subject.flush()?;
    let (all, _) = subject.changes()?;
    // What a running container still has in its layer after it was applied is no change any more, but may be named.
    let upper = subject.upper();
    let is_applied = |path: &Vec<u8>| {
        let own = std::ffi::OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path));
        let beneath = |own: &[u8]| all.iter().any(|change| super::is_chosen(&change.path, &[own.to_vec()]));
        !beneath(path) && upper.join(own).symlink_metadata().is_ok()
    };
    let named: Vec<Vec<u8>> = chosen.iter().filter(|path| !is_applied(path)).cloned().collect();
    let wanted = if named.is_empty() && !chosen.is_empty() || all.is_empty() {
        Vec::new()
    } else {
        choose(all.clone(), &named)?
    };
    let store = store_in(root)?;
    if let Some(inside) = store.and_then(|store| {
        wanted.iter().find(|change| super::is_chosen(&change.path, std::slice::from_ref(&store))).cloned()
    }) {
        bail!(
            "{} is in the store of layerfs itself, and is never applied; name other paths",
            String::from_utf8_lossy(&inside.path)
        );
    }
    plan(&subject.stack, &all, &wanted, since(container)?).context("compare the container with what it is on")
}

/// Where the store is in a root filesystem.
fn store_in(root: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let store: PathBuf = std::fs::canonicalize(store_root()?).context("find the store")?;
    Ok(store.strip_prefix(root).ok().map(|path| [b"/", path.as_os_str().as_bytes()].concat()))
}

/// Since when its changes are made.
fn since(container: &Container) -> anyhow::Result<(i64, u32)> {
    let config = &container.config;
    if config.is_foreground {
        // Its state has seconds only.
        let stat = rustix::fs::statx(CWD, &container.directory, AtFlags::empty(), StatxFlags::BTIME)
            .context("look at the container's directory")?;
        if stat.stx_mask & StatxFlags::BTIME.bits() != 0 {
            return Ok((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec));
        }
    }
    let text = if config.lower_since.is_empty() { &config.created } else { &config.lower_since };
    layerfs_image::time::parse(text)
        .with_context(|| format!("container {}: {text:?} is no time", config.name))
}

fn show(plan: &Plan, force: bool) -> anyhow::Result<()> {
    let mut text = Vec::new();
    for step in &plan.steps {
        let letter = match step.action {
            Action::Put => step.kind.letter(),
            Action::Attributes => 'M',
            Action::Remove => 'D',
        };
        text.extend_from_slice(format!("{letter} ").as_bytes());
        text.extend_from_slice(&ui::visible::path(&step.path));
        text.push(b'\n');
    }
    ui::print(text)?;
    for conflict in &plan.conflicts {
        let path = String::from_utf8_lossy(&conflict.path);
        let words = format!("{} {}", visible(&path), conflict.why);
        if force { ui::warn(words) } else { ui::note(words) }
    }
    Ok(())
}

/// What was applied leaves the writable layer of a stopped container.
fn finish(rest: &AtRest, chosen: &[Vec<u8>], plan: &Plan) -> anyhow::Result<()> {
    let container = &rest.container;
    if !rest.is_stopped() {
        if !plan.steps.is_empty() {
            ui::note(format_args!(
                "container {} runs: the changes stay in its layer, too; `apply` again when it is stopped takes them out",
                container.config.name
            ));
        }
        return Ok(());
    }
    if plan.whole {
        snapshots::replace_upper(container, None)?;
        return begin_anew(container);
    }
    let subject = Subject::of(container.clone())?;
    let paths: Vec<Vec<u8>> =
        plan.steps.iter().map(|step| &step.path).chain(&plan.done).chain(chosen).cloned().collect();
    drop_applied(&subject.stack, &subject.upper(), &paths)
        .context("take what was applied out of the container")
}

/// Notes that the writable layer of a container on a root filesystem is empty: what changes below from now on is later.
pub(super) fn begin_anew(container: &Container) -> anyhow::Result<()> {
    if container.config.is_foreground || container.config.rootfs.is_none() {
        return Ok(());
    }
    let mut container = container.clone();
    container.config.lower_since = rfc3339(SystemTime::now());
    container.save_config()
}
