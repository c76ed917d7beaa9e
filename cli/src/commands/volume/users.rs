//! Which containers have a volume, running or not: their documents say so.

use std::fs;

use serde_json::Value;

use crate::commands::run::store_root;

/// The ids of the containers whose mounts name the volume. What cannot be read is being made or removed just now.
pub(crate) fn of(name: &str) -> Vec<String> {
    let Ok(root) = store_root() else { return Vec::new() };
    let Ok(entries) = fs::read_dir(root.join("containers")) else { return Vec::new() };
    let uses = |id: &String| {
        if id.starts_with(".gone-") {
            return false;
        }
        let text = fs::read(root.join("containers").join(id).join("config.json")).ok();
        let document: Option<Value> = text.and_then(|text| serde_json::from_slice(&text).ok());
        document.is_some_and(|document| has(&document, name))
    };
    let mut found: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).filter(uses).collect();
    found.sort();
    found
}

fn has(document: &Value, name: &str) -> bool {
    let is = |mount: &Value| mount["type"] == "volume" && mount["name"] == name;
    document["mounts"].as_array().is_some_and(|mounts| mounts.iter().any(is))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_volumes_of_that_name() {
        let document = json!({ "mounts": [
            { "type": "bind", "name": "a" }, { "type": "volume", "name": "b", "target": "/a" }, { "type": "volume" },
        ] });
        assert!(has(&document, "b") && !has(&document, "a") && !has(&json!({}), "b"));
    }
}
