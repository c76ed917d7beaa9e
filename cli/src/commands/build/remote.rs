//! Steps kept elsewhere, by builds of other machines and for them (`--cache-from`, `--cache-to`): in a directory, at a
//! registry, in the image itself.

mod local;

use std::collections::HashSet;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use layerfs_image::digest::{ChainId, DiffId, Digest};
use layerfs_image::store::{Session, StepRecord, Store};
use layerfs_image::transfer::{RemoteSteps, Silent, push_steps};

use super::executor::Built;
use super::options::{CachePlace, CacheSource, CacheTarget, Request};
use super::progress::{End, Progress};
use crate::commands::registry::{RegistryArgs, explained};
use crate::ui;

/// Where steps are looked for that the store has not.
pub(super) struct Sources<'a> {
    request: &'a Request,
    progress: &'a Progress,
    sources: Vec<Source<'a>>,
}

struct Source<'a> {
    place: &'a CacheSource,
    /// What a registry has, once it was asked; `None` when it has nothing to give.
    remote: OnceLock<Option<RemoteSteps>>,
    /// It failed, which has been told.
    is_broken: AtomicBool,
}

impl<'a> Sources<'a> {
    pub(super) fn new(request: &'a Request, progress: &'a Progress) -> Self {
        let source = |place| Source { place, remote: OnceLock::new(), is_broken: AtomicBool::new(false) };
        Self { request, progress, sources: request.cache_from.iter().map(source).collect() }
    }

    /// Takes the step with this key from the first that has it, if its layer goes on `below`.
    pub(super) fn fetch(
        &self,
        key: &Digest,
        below: &[DiffId],
        store: &Store,
        session: &Session,
    ) -> Option<StepRecord> {
        for source in &self.sources {
            if source.is_broken.load(Ordering::Relaxed) {
                continue;
            }
            let (name, found) = match source.place {
                CacheSource::Local(directory) => {
                    (directory.display().to_string(), local::fetch(directory, key, below, store, session))
                }
                CacheSource::Registry(reference) => {
                    let steps = source.remote.get_or_init(|| self.read(source));
                    let Some(steps) = steps else { continue };
                    (reference.familiar(), steps.take(store, session, key, below).map_err(explained))
                }
            };
            match found {
                Ok(Some(record)) => return Some(record),
                Ok(None) => {}
                // A cache that is no use is no reason to stop.
                Err(error) => self.give_up(source, &name, &error),
            }
        }
        None
    }

    fn read(&self, source: &Source<'_>) -> Option<RemoteSteps> {
        let CacheSource::Registry(reference) = source.place else { return None };
        let name = reference.familiar();
        let number = self.progress.begin(&format!("importing cache from {name}"));
        let read = RegistryArgs::default().client().and_then(|client| {
            RemoteSteps::read(&client, reference, &self.request.platform).map_err(explained)
        });
        self.progress.end(number, if read.is_ok() { End::Done } else { End::Failed });
        match read {
            Ok(steps) => {
                if steps.is_empty() {
                    self.progress.warn(format_args!("cache {name}: it has no steps of this program"));
                }
                tracing::debug!(name, steps = steps.len(), "cache");
                Some(steps)
            }
            Err(error) => {
                self.give_up(source, &name, &error);
                None
            }
        }
    }

    fn give_up(&self, source: &Source<'_>, name: &str, error: &anyhow::Error) {
        // Stages ask at the same time; it is told once.
        if !source.is_broken.swap(true, Ordering::Relaxed) {
            self.progress
                .warn(format_args!("cache {name}: {}; the build goes on without it", ui::chain(error)));
        }
    }
}

/// Those steps that made layers of the result.
fn of_result(built: &Built) -> Vec<StepRecord> {
    let diff_ids = built.diff_ids();
    let chain = ChainId::chain(&diff_ids);
    let below = |at: usize| at.checked_sub(1).and_then(|below| chain.get(below)).copied();
    let makes = |record: &StepRecord| {
        diff_ids.iter().enumerate().any(|(at, layer)| *layer == record.layer && below(at) == record.parent)
    };
    built.steps.iter().filter(|record| makes(record)).cloned().collect()
}

/// Writes the steps of what was built (once for each platform) into each of `targets`.
pub(super) fn export(
    targets: &[CacheTarget],
    built: &[Built],
    store: &Store,
    session: &Session,
    progress: &Progress,
) -> anyhow::Result<()> {
    for target in targets {
        let mut seen = HashSet::new();
        let mut records: Vec<StepRecord> = Vec::new();
        for built in built {
            let steps = match target.only_result {
                true => of_result(built),
                false => built.steps.clone(),
            };
            records.extend(steps.into_iter().filter(|step| seen.insert(step.key)));
        }
        let name = match &target.place {
            CachePlace::Local(directory) => directory.display().to_string(),
            CachePlace::Registry(reference, _) => reference.familiar(),
            // It comes into the image's config, when that is made.
            CachePlace::Inline => continue,
        };
        if records.is_empty() {
            progress.warn(format_args!("cache {name}: not written: no step of the build made a layer"));
            continue;
        }
        let number = progress.begin(&format!("exporting cache to {name}"));
        let written = match &target.place {
            CachePlace::Local(directory) => local::export(directory, &records, store),
            CachePlace::Registry(reference, form) => RegistryArgs::default().client().and_then(|client| {
                push_steps(store, session, &client, reference, &records, *form, &Silent)
                    .map(drop)
                    .map_err(explained)
            }),
            CachePlace::Inline => Ok(()),
        };
        progress.end(number, if written.is_ok() { End::Done } else { End::Failed });
        match written {
            Err(error) if target.ignore_error => {
                progress.warn(format_args!("cache {name}: not written: {}", ui::chain(&error)));
            }
            other => other.with_context(|| format!("write the cache {name}"))?,
        }
    }
    Ok(())
}
