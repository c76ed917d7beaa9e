//! Containers as the commands for images see them: what they are on, and which images they use.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use layerfs_image::digest::Digest;
use serde_json::Value;

use crate::commands::run::store_root;
use crate::exit::Hinted;

/// A container's directory.
#[derive(Debug)]
pub(crate) struct ContainerFiles {
    /// Its id.
    pub(crate) id: String,
    /// What it changed.
    pub(crate) upper: PathBuf,
    /// What it is on.
    pub(crate) base: ContainerBase,
    /// Its command, as far as its state tells.
    pub(crate) command: Option<String>,
}

/// A container as lists have it.
#[derive(Debug)]
pub(crate) struct ListedContainer {
    /// Its id.
    pub(crate) id: String,
    /// Its name, if it has one.
    pub(crate) name: Option<String>,
    /// What it changed.
    pub(crate) upper: PathBuf,
    /// Its command.
    pub(crate) command: Option<String>,
    /// As its state has it.
    pub(crate) status: String,
    /// Whether it runs now.
    pub(crate) running: bool,
    image: Option<String>,
    rootfs: Option<String>,
}

impl ListedContainer {
    /// Whether it is on the image `id`.
    pub(crate) fn is_on(&self, id: &Digest) -> bool {
        self.image.as_ref().is_some_and(|image| *image == id.to_string() || *image == id.hex())
    }

    /// What it is on, for people: the beginning of an image's id, or a path.
    pub(crate) fn base_words(&self) -> String {
        match (&self.image, &self.rootfs) {
            (Some(image), _) => image.strip_prefix("sha256:").unwrap_or(image).chars().take(12).collect(),
            (None, rootfs) => rootfs.clone().unwrap_or_default(),
        }
    }
}

/// All containers, by their ids.
pub(crate) fn all_files() -> anyhow::Result<Vec<ListedContainer>> {
    let listed = |(id, path, state): (String, PathBuf, Value)| {
        let text = |key: &str| state[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        ListedContainer {
            id,
            name: text("name"),
            upper: path.join("upper"),
            command: command_of(&state),
            status: text("status").unwrap_or_default(),
            running: state["status"] == "running",
            image: text("image"),
            rootfs: text("rootfs"),
        }
    };
    Ok(all()?.into_iter().map(listed).collect())
}

fn command_of(state: &Value) -> Option<String> {
    let args = state["args"].as_array()?;
    Some(args.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "))
}

/// What a container is on.
#[derive(Debug)]
pub(crate) enum ContainerBase {
    /// An image, by its id.
    Image(String),
    /// A root filesystem.
    Directory(PathBuf),
}

fn all() -> anyhow::Result<Vec<(String, PathBuf, Value)>> {
    let directory = store_root()?.join("containers");
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("list {}", directory.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", directory.display()))?.path();
        let Some(id) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else { continue };
        let Ok(text) = fs::read(path.join("state.json")) else { continue };
        let Ok(state) = serde_json::from_slice::<Value>(&text) else { continue };
        found.push((id, path, state));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// The id of the container with this name.
fn named(name: &str) -> anyhow::Result<Option<String>> {
    let name = name.strip_prefix('/').unwrap_or(name);
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Ok(None);
    }
    let target = fs::read_link(store_root()?.join("names").join(name)).ok();
    Ok(target.and_then(|target| target.into_os_string().into_string().ok()))
}

/// The container with this id, name, or beginning of an id.
pub(crate) fn find(name: &str) -> anyhow::Result<ContainerFiles> {
    // A name is one container's; the beginning of an id may be that of several.
    let named = named(name)?;
    let mut found: Vec<(String, PathBuf, Value)> = all()?
        .into_iter()
        .filter(|(id, _, _)| match &named {
            Some(named) => id == named,
            None => !name.is_empty() && id.starts_with(name),
        })
        .collect();
    match found.len() {
        0 => bail!(Hinted {
            message: format!("No such container: {name}"),
            hint: "a container is kept when `layerfs run` was not given --rm; its id was told at the end"
                .into(),
        }),
        1 => {}
        _ => bail!("container id {name:?} is ambiguous"),
    }
    let (id, path, state) = found.swap_remove(0);
    let base = match (state["image"].as_str(), state["rootfs"].as_str()) {
        (Some(image), _) if !image.is_empty() => ContainerBase::Image(image.to_owned()),
        (_, Some(rootfs)) => ContainerBase::Directory(Path::new(rootfs).to_owned()),
        _ => bail!("container {id}: its state does not tell what it is on"),
    };
    Ok(ContainerFiles { upper: path.join("upper"), id, base, command: command_of(&state) })
}

/// A container that uses the image `id`, and whether it runs.
pub(crate) fn user_of(id: &Digest) -> anyhow::Result<Option<(String, bool)>> {
    let text = id.to_string();
    let uses =
        |state: &Value| state["image"].as_str().is_some_and(|image| image == text || image == id.hex());
    let mut users: Vec<(String, bool)> = all()?
        .into_iter()
        .filter(|(_, _, state)| uses(state))
        .map(|(container, _, state)| (container, state["status"].as_str() == Some("running")))
        .collect();
    users.sort_by_key(|(_, running)| !running);
    Ok(users.into_iter().next())
}

/// Number of containers, and how many run.
pub(crate) fn count() -> anyhow::Result<(usize, usize)> {
    let all = all()?;
    let running = all.iter().filter(|(_, _, state)| state["status"].as_str() == Some("running")).count();
    Ok((all.len(), running))
}
