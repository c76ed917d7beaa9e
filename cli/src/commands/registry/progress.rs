//! One progress bar for each layer on a terminal; elsewhere a line when a layer is done.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use layerfs_image::digest::Digest;
use layerfs_image::transfer::{LayerEnd, Progress};

use crate::ui;

/// The bars of one transfer.
#[derive(Debug)]
pub(super) struct Bars {
    all: MultiProgress,
    is_terminal: bool,
    verb: &'static str,
    layers: Mutex<HashMap<usize, (ProgressBar, String)>>,
}

impl Bars {
    pub(super) fn new(quiet: bool, verb: &'static str) -> Self {
        let is_terminal = !quiet && ui::width().is_some();
        let target = if is_terminal { ProgressDrawTarget::stdout() } else { ProgressDrawTarget::hidden() };
        Self { all: MultiProgress::with_draw_target(target), is_terminal, verb, layers: Mutex::default() }
    }

    /// Leaves the bars as they are.
    pub(super) fn finish(&self) {
        for (bar, _) in self.layers.lock().unwrap_or_else(PoisonError::into_inner).values() {
            bar.abandon();
        }
    }
}

impl Progress for Bars {
    fn begin(&self, at: usize, digest: &Digest, size: u64) {
        let bar = self.all.add(ProgressBar::new(size));
        let template = "{prefix}: {msg:<12} [{bar:40}] {bytes}/{total_bytes}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(digest.short());
        bar.set_message("Waiting");
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.insert(at, (bar, digest.short()));
    }

    fn advance(&self, at: usize, bytes: u64) {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((bar, _)) = layers.get(&at) {
            if bar.position() == 0 {
                bar.set_message(self.verb);
            }
            bar.set_position(bytes);
        }
    }

    fn end(&self, at: usize, how: LayerEnd) {
        let words = match (how, self.verb) {
            (LayerEnd::Known, "Pushing") => "Layer already exists",
            (LayerEnd::Known, _) => "Already exists",
            (LayerEnd::Mounted, _) => "Mounted from another repository",
            (LayerEnd::Transferred, "Pushing") => "Pushed",
            (LayerEnd::Transferred, _) => "Pull complete",
        };
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((bar, digest)) = layers.get(&at) else { return };
        if self.is_terminal {
            if let Ok(style) = ProgressStyle::with_template("{prefix}: {msg}") {
                bar.set_style(style);
            }
            bar.set_message(words);
            bar.finish();
        } else {
            // A reader that went away is no reason to stop.
            ui::print(format!("{digest}: {words}\n")).ok();
        }
    }
}
