//! The table of `cases.txt`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use serde_json::Value;

use super::world::World;

#[derive(Debug, Default)]
struct Case {
    name: String,
    sections: Vec<(String, String)>,
}

impl Case {
    fn section(&self, name: &str) -> Option<&str> {
        self.sections.iter().find(|(found, _)| found == name).map(|(_, text)| text.as_str())
    }
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in include_str!("cases.txt").lines() {
        if let Some(name) = line.strip_prefix("=== ") {
            let name = name.split(" no-buildah").next().unwrap();
            cases.push(Case { name: name.to_owned(), ..Case::default() });
        } else if let Some(case) = cases.last_mut() {
            match line.strip_prefix("--- ") {
                Some(section) => case.sections.push((section.to_owned(), String::new())),
                None => {
                    let (_, text) = case.sections.last_mut().unwrap();
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
    }
    cases
}

fn lay(context: &Path, case: &Case) {
    for (section, text) in &case.sections {
        let words: Vec<&str> = section.split(' ').collect();
        match words[..] {
            ["Dockerfile"] => fs::write(context.join("Dockerfile"), text).unwrap(),
            ["file", ref rest @ ..] => {
                let mode =
                    rest.last().and_then(|word| u32::from_str_radix(word, 8).ok()).filter(|_| rest.len() > 1);
                let names = if mode.is_some() { &rest[..rest.len() - 1] } else { rest };
                let path = context.join(names.join(" "));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, text).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(mode.unwrap_or(0o644))).unwrap();
            }
            ["link", path, target] => symlink(target, context.join(path)).unwrap(),
            _ => {}
        }
    }
}

fn check(world: &World, case: &Case) -> Result<(), String> {
    let context = world.context(&case.name, &[]);
    lay(&context, case);
    let context = context.to_str().unwrap();
    let options: Vec<String> = case
        .section("options")
        .unwrap_or_default()
        .lines()
        .map(|word| word.replace("CONTEXT", context))
        .collect();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let output =
        world.run(&[&["build", "--progress", "plain"][..], &options, &["-t", "result", context]].concat());
    if let Some(words) = case.section("error") {
        let missing = words.lines().find(|line| !output.stderr.contains(line));
        return match (output.code, missing) {
            (1, None) => Ok(()),
            (code, missing) => Err(format!("code {code}, missing {missing:?}: {}", output.stderr)),
        };
    }
    if output.code != 0 {
        return Err(output.stderr);
    }
    let inspected = world.inspect("result");
    let config = world.config(inspected["Id"].as_str().unwrap());
    if let Some(text) = case.section("config") {
        let wanted: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        for (key, value) in wanted.as_object().unwrap() {
            if config["config"][key] != *value {
                return Err(format!("config {key}: {} instead of {value}", config["config"][key]));
            }
        }
    }
    let history: Vec<String> = config["history"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| {
            let kind = if entry["empty_layer"] == true { "E" } else { "L" };
            format!("{kind} {}", entry["created_by"].as_str().unwrap())
        })
        .collect();
    if let Some(text) = case.section("history")
        && history.join("\n") != text.trim_end()
    {
        return Err(format!("history:\n{}", history.join("\n")));
    }
    let layers = history.iter().filter(|entry| entry.starts_with('L')).count();
    if layers != config["rootfs"]["diff_ids"].as_array().unwrap().len() {
        return Err(format!("{layers} layers in the history, {}", config["rootfs"]));
    }
    let wanted =
        |name: &str| case.section(name).map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
    let (all, some, absent) = (wanted("tree"), wanted("has"), wanted("not"));
    if all.is_none() && some.is_none() && absent.is_none() {
        return Ok(());
    }
    // Of the cache: nothing is built again.
    let archive = world.run(&[&["build"][..], &options, &["-o", "type=tar", context]].concat());
    if archive.code != 0 {
        return Err(archive.stderr);
    }
    if archive.stderr.contains("DONE")
        && archive.stderr.contains("] RUN")
        && !archive.stderr.contains("CACHED")
    {
        return Err(format!("a step was carried out again: {}", archive.stderr));
    }
    let tree = world.tree(&archive.stdout);
    if let Some(all) = all {
        let found: Vec<&String> = tree.values().collect();
        if found != all.iter().collect::<Vec<_>>() {
            return Err(format!("tree: {found:#?}"));
        }
    }
    for line in some.unwrap_or_default() {
        if !tree.values().any(|found| *found == line) {
            return Err(format!("{line:?} is missing in {tree:#?}"));
        }
    }
    match absent.unwrap_or_default().iter().find(|path| tree.contains_key(*path)) {
        Some(path) => Err(format!("{path} is there")),
        None => Ok(()),
    }
}

#[test]
fn dockerfiles_and_what_comes_of_them() {
    let Some(world) = World::new() else { return };
    let cases = cases();
    assert!(cases.len() >= 80, "{} cases", cases.len());
    let only = std::env::var("BUILD_CASE").unwrap_or_default();
    let mut failed = Vec::new();
    for case in cases.iter().filter(|case| case.name.contains(&only)) {
        if let Err(words) = check(&world, case) {
            failed.push(format!("{}: {words}", case.name));
        }
    }
    assert!(failed.is_empty(), "{} of {} failed:\n{}", failed.len(), cases.len(), failed.join("\n\n"));
}
