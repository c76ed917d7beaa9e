//! `layerfs commit`, `layerfs diff` and `layerfs export`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use layerfs_image::commit::{Base, CommitOptions, commit as make};
use layerfs_image::layer::{Layer, Stack, changes, pack_merged};
use layerfs_image::store::{Image, Store};
use serde_json::json;

use crate::commands::container::pause;
use crate::exit::Usage;
use crate::images::containers::{self, ContainerBase, ContainerFiles};
use crate::images::{self, listing};
use crate::ui;

/// Make an image of a container
///
/// What the container changed becomes one layer on those of its image. A container on a root filesystem becomes an image
/// of one layer.
#[derive(Debug, Args)]
pub(crate) struct CommitArgs {
    /// Who made the image
    #[arg(short, long, value_name = "TEXT")]
    author: Option<String>,
    /// Words about it
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Change the image's config by an instruction of a Dockerfile
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Pause the container meanwhile
    #[arg(short, long, value_name = "true|false", default_value_t = true, default_missing_value = "true",
          num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set)]
    pause: bool,
    /// Say nothing but the id
    #[arg(short, long)]
    quiet: bool,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
}

/// Show what a container changed: A for added, C for changed, D for deleted
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// Write all files of a container to an archive
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The archive, if not standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

fn image_of(store: &Store, container: &ContainerFiles) -> anyhow::Result<Option<Image>> {
    match &container.base {
        ContainerBase::Image(id) => {
            let words = || format!("find the image of container {}", container.id);
            Ok(Some(images::find(store, id).with_context(words)?))
        }
        ContainerBase::Directory(_) => Ok(None),
    }
}

/// The container's changes on top of what it is on.
fn stack_of(store: &Store, container: &ContainerFiles) -> anyhow::Result<Stack> {
    let mut paths = vec![container.upper.clone()];
    match (image_of(store, container)?, &container.base) {
        (Some(image), _) => {
            images::with_session(store, |session| Ok(store.ensure_layers(session, &image)?))?;
            paths.extend(image.diff_ids().iter().rev().map(|diff_id| store.layer_tree(diff_id)));
        }
        (None, ContainerBase::Directory(rootfs)) => paths.push(rootfs.clone()),
        (None, ContainerBase::Image(_)) => {}
    }
    let open = |path: &PathBuf| Layer::open(path).with_context(|| format!("open {}", path.display()));
    Ok(Stack::new(paths.iter().map(open).collect::<anyhow::Result<_>>()?))
}

pub(crate) fn commit(args: CommitArgs) -> anyhow::Result<ExitCode> {
    let name = args.name.as_deref().map(images::parse_tag).transpose()?;
    let container = containers::find(&args.container)?;
    let store = images::open_store()?;
    let image = image_of(&store, &container)?;
    // Until the layer is made.
    let _held = if args.pause { pause::hold(&args.container)? } else { None };
    let base = match (&image, &container.base) {
        (Some(image), _) => Base::Image(image),
        (None, ContainerBase::Directory(rootfs)) => {
            if rootfs == Path::new("/") {
                return Err(Usage(
                    "a container on / is this whole machine, /proc and all: run it on a directory, or use \
                     `layerfs diff` to see what it changed"
                        .into(),
                )
                .into());
            }
            Base::Directory(rootfs)
        }
        (None, ContainerBase::Image(id)) => return Err(layerfs_image::Error::NoSuchImage(id.clone()).into()),
    };
    let options = CommitOptions {
        name,
        author: args.author,
        message: args.message,
        changes: args.change,
        command: container.command.clone(),
    };
    images::with_session(&store, |session| {
        let id = make(&store, session, &container.upper, &base, &options).context("commit the container")?;
        ui::print(format!("{id}\n"))?;
        Ok(ExitCode::SUCCESS)
    })
}

pub(crate) fn diff(args: DiffArgs) -> anyhow::Result<ExitCode> {
    let container = containers::find(&args.container)?;
    let store = images::open_store()?;
    let stack = stack_of(&store, &container)?;
    let found = changes(&stack).context("compare the container with what it is on")?;
    if let Some(format) = &args.format {
        let rows: Vec<_> = found
            .iter()
            .map(|change| {
                let path = String::from_utf8_lossy(&change.path).into_owned();
                json!({ "Type": change.kind.letter().to_string(), "Path": path, "Kind": change.kind.number() })
            })
            .collect();
        listing::print(&rows, &[("CHANGE TYPE", "Type"), ("PATH", "Path")], &[], Some(format))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = Vec::new();
    for change in found {
        out.extend_from_slice(format!("{} ", change.kind.letter()).as_bytes());
        out.extend_from_slice(&change.path);
        out.push(b'\n');
    }
    ui::print(out)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn export(args: ExportArgs) -> anyhow::Result<ExitCode> {
    let output = args.output.filter(|path| path != Path::new("-"));
    if output.is_none() && std::io::stdout().is_terminal() {
        return Err(
            Usage("the archive would go to the terminal: name a file with -o, or redirect".into()).into()
        );
    }
    let container = containers::find(&args.container)?;
    let store = images::open_store()?;
    let stack = stack_of(&store, &container)?;
    super::save::to_output(output.as_deref(), |out| {
        pack_merged(&stack, out, false).context("export the container")?;
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}
