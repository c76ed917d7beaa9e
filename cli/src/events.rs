//! What happens to containers, images, volumes and networks, written down for `layerfs events`: a line of docker's JSON
//! each in `events.json` of the store, appended in one write. When it has grown long it becomes `events.json.1`, and the
//! one of that name goes.
//!
//! Nothing fails for want of an event: what cannot be written is noted in the log.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::commands::container::config::ContainerConfig;
use crate::commands::run::store_root;

/// Name of the file in the store.
pub(crate) const FILE: &str = "events.json";
/// Name of the one before.
pub(crate) const OLDER: &str = "events.json.1";
/// Bytes from which a new file is begun: some ten thousand events.
const LONG: u64 = 4 << 20;

/// Something about a container. Its labels are attributes too, as docker has it.
pub(crate) fn container(action: &str, config: &ContainerConfig, more: &[(&str, &str)]) {
    let mut attributes: Map<String, Value> =
        config.labels.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    attributes.insert("image".into(), json!(config.image_name));
    attributes.insert("name".into(), json!(config.name));
    attributes.extend(more.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
    let mut event = event("container", action, &config.id, attributes);
    event["status"] = json!(action);
    event["id"] = json!(config.id);
    event["from"] = json!(config.image_name);
    write(&event);
}

/// Something about a network and a container.
pub(crate) fn network(action: &str, id: &str, name: &str, container: &str) {
    let mut attributes = Map::new();
    attributes.insert("name".into(), json!(name));
    attributes.insert("type".into(), json!("bridge"));
    if !container.is_empty() {
        attributes.insert("container".into(), json!(container));
    }
    write(&event("network", action, id, attributes));
}

/// Something about an image; `id` is its name where it was called by it.
pub(crate) fn image(action: &str, id: &str, name: &str) {
    let mut attributes = Map::new();
    attributes.insert("name".into(), json!(name));
    let mut event = event("image", action, id, attributes);
    event["status"] = json!(action);
    event["id"] = json!(id);
    write(&event);
}

/// Something about a program that was executed in a container; `name` is docker's `execID`.
pub(crate) fn executed(action: &str, config: &ContainerConfig, name: &str, more: &[(&str, &str)]) {
    let mut attributes = vec![("execID", name)];
    attributes.extend(more);
    container(action, config, &attributes);
}

/// What was of no use was removed; so many bytes are free now.
pub(crate) fn prune(kind: &str, bytes: u64) {
    let mut attributes = Map::new();
    attributes.insert("reclaimed".into(), json!(bytes.to_string()));
    write(&event(kind, "prune", "", attributes));
}

/// Something about a volume.
pub(crate) fn volume(action: &str, name: &str) {
    volume_of(action, name, &[]);
}

/// Something about a volume and a container.
pub(crate) fn volume_of(action: &str, name: &str, more: &[(&str, &str)]) {
    let mut attributes = Map::new();
    attributes.insert("driver".into(), json!("local"));
    attributes.extend(more.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
    write(&event("volume", action, name, attributes));
}

fn event(kind: &str, action: &str, id: &str, attributes: Map<String, Value>) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "Type": kind,
        "Action": action,
        "Actor": { "ID": id, "Attributes": attributes },
        "scope": "local",
        "time": now.as_secs(),
        "timeNano": u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
    })
}

fn write(event: &Value) {
    let result = store_root()
        .map(|root| root.join(FILE))
        .and_then(|path| append(&path, &format!("{event}\n")).map_err(anyhow::Error::from));
    if let Err(error) = result {
        tracing::debug!("write an event: {error:#}");
    }
}

fn append(path: &Path, line: &str) -> std::io::Result<()> {
    let mut file = File::options().append(true).create(true).mode(0o600).open(path)?;
    let metadata = file.metadata()?;
    if metadata.len() > LONG {
        // One of those who see it so renames it; the others find another file at its name, or append to the old one.
        let flock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        let is_still = |now: fs::Metadata| now.ino() == metadata.ino();
        if rustix::fs::flock(&file, flock).is_ok() && fs::metadata(path).is_ok_and(is_still) {
            fs::rename(path, path.with_file_name(OLDER))?;
        }
        file = File::options().append(true).create(true).mode(0o600).open(path)?;
    }
    file.write_all(line.as_bytes())
}

/// The file, and the one before, whether they are there or not.
pub(crate) fn files() -> anyhow::Result<[PathBuf; 2]> {
    let root = store_root()?;
    Ok([root.join(OLDER), root.join(FILE)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        append(&path, "one\n").unwrap();
        File::options().write(true).open(&path).unwrap().set_len(LONG + 1).unwrap();
        append(&path, "two\n").unwrap();
        append(&path, "three\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\nthree\n");
        assert!(fs::metadata(dir.path().join(OLDER)).unwrap().len() > LONG);
    }
}
