//! Containers as the commands for images see them: what they are on, and which images they use.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use layerfs_image::digest::{Algorithm, Digest};
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

/// What is in the directory of containers, by name.
fn entries() -> anyhow::Result<Vec<(String, PathBuf)>> {
    let directory = store_root()?.join("containers");
    let words = || format!("list {}", directory.display());
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>().with_context(words)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(words),
    };
    let named = |entry: fs::DirEntry| Some((entry.file_name().into_string().ok()?, entry.path()));
    Ok(entries.into_iter().filter_map(named).collect())
}

fn all() -> anyhow::Result<Vec<(String, PathBuf, Value)>> {
    let mut found = Vec::new();
    for (id, path) in entries()? {
        let Ok(text) = fs::read(path.join("state.json")) else { continue };
        let Ok(state) = serde_json::from_slice::<Value>(&text) else { continue };
        found.push((id, path, state));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// A container that is on the image `id` or has it mounted, and whether it runs; running ones first.
pub(crate) fn user_of(id: &Digest) -> anyhow::Result<Option<(String, bool)>> {
    let mut users: Vec<(String, bool)> = uses()?
        .into_iter()
        .filter(|used| used.images.contains(id))
        .map(|used| (used.container, used.running))
        .collect();
    users.sort_by_key(|(_, running)| !running);
    Ok(users.into_iter().next())
}

/// Ids of all images that a container is on or has mounted.
pub(crate) fn images_in_use() -> anyhow::Result<HashSet<Digest>> {
    Ok(uses()?.into_iter().flat_map(|used| used.images).collect())
}

/// What one container uses.
struct Uses {
    container: String,
    running: bool,
    images: Vec<Digest>,
}

/// Of all containers, those too whose state cannot be read: what they are on must not go.
fn uses() -> anyhow::Result<Vec<Uses>> {
    let mut found = Vec::new();
    for (container, path) in entries()? {
        let document = |name: &str| -> Value {
            let text = fs::read(path.join(name)).unwrap_or_default();
            serde_json::from_slice(&text).unwrap_or_default()
        };
        let (state, config) = (document("state.json"), document("config.json"));
        let mounted = config["mounts"].as_array().into_iter().flatten();
        let texts =
            [&state["image"], &config["image"]].into_iter().chain(mounted.map(|mount| &mount["image"]));
        let mut images: Vec<Digest> = texts.filter_map(Value::as_str).filter_map(digest_of).collect();
        images.dedup();
        found.push(Uses { container, running: state["status"] == "running", images });
    }
    found.sort_by(|a, b| a.container.cmp(&b.container));
    Ok(found)
}

/// Ids are written with their algorithm, and were without it once.
fn digest_of(text: &str) -> Option<Digest> {
    Digest::parse(text).ok().or_else(|| Digest::from_hex(Algorithm::Sha256, text))
}

/// Number of containers, and how many run.
pub(crate) fn count() -> anyhow::Result<(usize, usize)> {
    let all = all()?;
    let running = all.iter().filter(|(_, _, state)| state["status"].as_str() == Some("running")).count();
    Ok((all.len(), running))
}
