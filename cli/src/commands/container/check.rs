//! What killed commands and monitors have left of containers: finding it, and mending it.
//!
//! Whoever works on a container holds its lock, and whoever makes or removes one the store's: what is looked at here under
//! these locks is nobody's work in progress.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use layerfs_image::layer::remove_tree;
use layerfs_runner::cgroup::Cgroup;
use layerfs_runner::monitor::record::{Record, Status};

use super::body::mount_process_of;
use super::layer::{Subject, fork, snapshots};
use super::store::{
    CONFIG, Container, Containers, Hidden, REMOVED, is_id, lock_path, read_for_monitor, try_lock_file,
};
use crate::ui;

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// What, in words.
    pub(crate) what: String,
    /// What was done about it.
    pub(crate) mended: Option<String>,
}

/// Looks at all containers; with `repair`, mends what it finds. Also the number of containers.
pub(crate) fn containers(repair: bool) -> anyhow::Result<(usize, Vec<Problem>)> {
    let containers = Containers::open()?;
    let mut checker = Checker { containers: &containers, repair, problems: Vec::new() };
    let mut count = 0;
    let mut entries: Vec<PathBuf> = fs::read_dir(containers.directory())
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| format!("list {}", containers.directory().display()))?;
    entries.sort();
    let mut stopped = BTreeSet::new();
    for path in entries {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if is_id(name) {
            let is_container = checker.container(name, &path, &mut stopped)?;
            count += usize::from(is_container);
        } else if name.starts_with(fork::UNFINISHED) || name.starts_with(REMOVED) {
            checker.hidden(&path);
        }
    }
    checker.names()?;
    checker.cgroups(&stopped)?;
    checker.mounts(&stopped)?;
    Ok((count, checker.problems))
}

struct Checker<'a> {
    containers: &'a Containers,
    repair: bool,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    /// Notes a problem; with `repair` it is mended by `mend`, whose failure is part of the problem.
    fn found(&mut self, what: String, done: &str, mend: impl FnOnce() -> anyhow::Result<()>) {
        let (what, mended) = match self.repair.then(mend) {
            None => (what, None),
            Some(Ok(())) => (what, Some(done.to_owned())),
            Some(Err(error)) => (format!("{what} ({})", ui::chain(&error)), None),
        };
        self.problems.push(Problem { what, mended });
    }

    /// True when there is a container.
    fn container(&mut self, id: &str, path: &Path, stopped: &mut BTreeSet<String>) -> anyhow::Result<bool> {
        let short = crate::commands::run::short(id);
        // Its monitor, or a command that is at it: all is well as far as anybody can tell.
        let Ok(Some(lock)) = try_lock_file(&lock_path(path)) else { return Ok(path.exists()) };
        let Ok(container) = read_for_monitor(path) else {
            // A directory that was made is locked until it can be read; but the lock may be younger than the directory.
            let _store = self.containers.lock()?;
            if !path.exists() || read_for_monitor(path).is_ok() {
                return Ok(false);
            }
            self.found(format!("{short} was never finished, or not removed as a whole"), "removed", || {
                super::store::remove_files(path)
            });
            return Ok(false);
        };
        let name = container.config.name.clone();
        let is_settled = !container.record.is_abandoned();
        // Its own run would hold the lock; its program may be about to end, for that.
        if container.config.is_foreground && container.record.status != Status::Exited {
            drop(lock);
            let what = format!("container {name}: its run was killed, or the machine stopped while it ran");
            self.found(what, "ended", crate::commands::run::settle_killed);
            if self.repair && path.exists() {
                stopped.insert(id.to_owned());
            }
            return Ok(path.exists());
        }
        if !is_settled {
            let what =
                format!("container {name}: its monitor was killed, or the machine stopped while it ran");
            self.found(what, "settled as ended", || super::store::settle(path));
        }
        let status = Record::load(path).map(|record| record.status);
        if matches!(status, Ok(Status::Removing | Status::Dead)) {
            let containers = self.containers;
            self.found(format!("container {name} was not removed as a whole"), "removed", || {
                container.remove(containers)
            });
            return Ok(false);
        }
        if is_settled || self.repair {
            stopped.insert(id.to_owned());
            self.leftovers(&container)?;
        }
        drop(lock);
        Ok(true)
    }

    /// What a stopped container does not need.
    fn leftovers(&mut self, container: &Container) -> anyhow::Result<()> {
        let (name, directory) = (&container.config.name, &container.directory);
        if let Some(process) = mount_process_of(directory).filter(|process| process.is_alive()) {
            let what = format!("container {name} does not run, and the process of its mount is left");
            self.found(what, "ended", || {
                process.kill().with_context(|| format!("kill process {}", process.pid))
            });
        }
        for record in ["oci", "bundle"] {
            let path = directory.join(record);
            if path.exists() {
                self.found(format!("container {name}: the runtime's {record} is left"), "removed", || {
                    Ok(remove_tree(&path)?)
                });
            }
        }
        let Ok(Some(_layer)) = try_lock_file(&directory.join(super::layer::LAYER_LOCK)) else {
            return Ok(());
        };
        for path in snapshots::leftovers(directory, false)? {
            let what = format!("container {name}: {} was not finished", path.display());
            self.found(what, "removed", || Ok(remove_tree(&path)?));
        }
        if directory.join(super::layer::apply::JOURNAL).exists() {
            let what =
                format!("container {name}: writing its changes down to the root filesystem was not finished");
            self.found(what, "finished", || {
                let subject = Subject::of(container.clone())?;
                super::layer::apply::resume_killed(&subject, true).map(drop)
            });
        }
        Ok(())
    }

    fn hidden(&mut self, path: &Path) {
        if Hidden::is_left(path) {
            let what = format!("{} was not finished, or not removed as a whole", path.display());
            self.found(what, "removed", || Ok(remove_tree(path)?));
        }
    }

    /// Each name leads to a container of that name, and each container's name to it.
    fn names(&mut self) -> anyhow::Result<()> {
        let containers = self.containers;
        let _store = containers.lock()?;
        let words = || format!("list {}", containers.names().display());
        let mut named = BTreeSet::new();
        for entry in fs::read_dir(containers.names()).with_context(words)? {
            let path = entry.with_context(words)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let id = fs::read_link(&path).ok().and_then(|id| id.into_os_string().into_string().ok());
            let fits = id.as_ref().is_some_and(|id| {
                read_for_monitor(&containers.path(id)).is_ok_and(|container| container.config.name == name)
            });
            match id.filter(|_| fits) {
                Some(id) => {
                    named.insert(id);
                }
                None => self.found(format!("the name {name} is no container's"), "freed", || {
                    fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
                }),
            }
        }
        for id in containers.ids()? {
            let Ok(container) = read_for_monitor(&containers.path(&id)) else { continue };
            if !container.config.is_foreground
                && !named.contains(&id)
                && container.directory.join(CONFIG).exists()
            {
                let name = container.config.name;
                self.found(format!("container {name} is not found by its name"), "named again", || {
                    containers.take_name(&name, &id)
                });
            }
        }
        Ok(())
    }

    /// Cgroups of containers that do not run.
    fn cgroups(&mut self, stopped: &BTreeSet<String>) -> anyhow::Result<()> {
        let table = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
        let mut found = Vec::new();
        for line in table.lines() {
            let Some((fields, rest)) = line.split_once(" - ") else { continue };
            if rest.starts_with("cgroup")
                && let Some(path) = fields.split(' ').nth(4)
            {
                named_beneath(Path::new(path), stopped, 0, &mut found);
            }
        }
        found.sort();
        found.dedup();
        for path in found {
            let what = format!("cgroup {} is that of a container that does not run", path.display());
            self.found(what, "removed with its processes", || {
                Ok(Cgroup::from_directories(vec![path.clone()]).remove()?)
            });
        }
        Ok(())
    }

    /// Mounts in directories of containers that do not run: those that run have theirs in namespaces of their own.
    fn mounts(&mut self, stopped: &BTreeSet<String>) -> anyhow::Result<()> {
        let root = fs::canonicalize(self.containers.directory()).context("find the containers")?;
        let table = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
        for line in table.lines().rev() {
            let Some(path) = line.split(' ').nth(4).map(PathBuf::from) else { continue };
            let Ok(inside) = path.strip_prefix(&root) else { continue };
            let id = inside.iter().next().and_then(|id| id.to_str()).unwrap_or_default();
            if stopped.contains(id) {
                self.found(format!("{} is still mounted", path.display()), "unmounted", || {
                    Ok(rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH)?)
                });
            }
        }
        Ok(())
    }
}

/// Cgroups nest deeply, but containers are made near the top.
const MAX_DEPTH: u32 = 8;

fn named_beneath(path: &Path, ids: &BTreeSet<String>, depth: u32, found: &mut Vec<PathBuf>) {
    // A cgroup that goes meanwhile is none that is left.
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix("layerfs-"));
        if id.is_some_and(|id| ids.contains(id)) {
            found.push(entry.path());
        } else if depth < MAX_DEPTH {
            named_beneath(&entry.path(), ids, depth + 1, found);
        }
    }
}
