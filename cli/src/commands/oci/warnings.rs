//! Warnings of the runtime's library, told to whoever called: the failed hook behind which everything went on, the cgroup
//! that could not be removed.
//!
//! A subscriber of its own, since the one that serves `--debug` takes longer to set up than many containers to start.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

/// Has `tell` called with the words of each warning and error from now on, in this process.
pub(super) fn tell(tell: impl Fn(&str) + Send + Sync + 'static) {
    // Only one can be, and there is none yet.
    tracing::subscriber::set_global_default(Warnings(tell)).ok();
}

struct Warnings<F>(F);

impl<F: Fn(&str) + 'static> Subscriber for Warnings<F>
where
    F: Send + Sync,
{
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match self.enabled(metadata) {
            true => Interest::always(),
            false => Interest::never(),
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::WARN
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::WARN)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut words = Words::default();
        event.record(&mut words);
        (self.0)(&format!("{}{}", words.message, words.fields));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The message, and behind it what else the event says.
#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        match field.name() {
            "message" => write!(self.message, "{value:?}").ok(),
            "error" => write!(self.fields, ": {value:?}").ok(),
            name => write!(self.fields, " ({name} {value:?})").ok(),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn regression_warnings_are_told_without_a_log() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&told);
        let warnings = Warnings(move |words: &str| to.lock().unwrap().push(words.to_owned()));
        tracing::subscriber::with_default(warnings, || {
            tracing::info!("nobody asked");
            tracing::warn!("run hooks.{}: {}", "poststop[0]", "exit status 1");
            tracing::warn!(error = %"busy", directory = %"/x", "a cgroup is left");
        });
        let told = told.lock().unwrap();
        assert_eq!(*told, ["run hooks.poststop[0]: exit status 1", "a cgroup is left: busy (directory /x)"]);
    }
}
