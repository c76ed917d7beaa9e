//! Containers as the commands for images see them: what they are on, and which images they use.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use layerfs_image::digest::Digest;
use serde_json::Value;

use crate::commands::run::store_root;

/// A container as lists have it.
#[derive(Debug)]
pub(crate) struct ListedContainer {
    /// Its id.
    pub(crate) id: String,
    /// Its name, if it has one.
    pub(crate) name: Option<String>,
    /// What it changed.
    pub(crate) upper: PathBuf,
    /// Its snapshots.
    pub(crate) snapshots: Vec<PathBuf>,
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
            snapshots: crate::commands::container::layer::snapshots::trees(&path),
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
