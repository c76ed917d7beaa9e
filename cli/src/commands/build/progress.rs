//! What is told while a build goes on: plain lines, a terminal's live view, or JSON events. On standard error, but for
//! results.

mod live;

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::json;

use self::live::Live;
use super::options::ProgressArg;
use crate::ui;

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Done,
    Cached,
    Failed,
    Canceled,
}

/// Hears of steps from several threads.
#[derive(Debug)]
pub(super) struct Progress {
    how: ProgressArg,
    state: Mutex<State>,
    /// On a terminal.
    live: Option<Live>,
}

#[derive(Debug, Default)]
struct State {
    last: usize,
    steps: HashMap<usize, Running>,
}

#[derive(Debug)]
struct Running {
    name: String,
    started: Instant,
    /// Output that has no end of line yet.
    open: Vec<u8>,
    /// What it wrote last, told again when it fails and nothing of it was shown.
    tail: Vec<String>,
}

/// Lines of a failed step that are shown where its output was not.
const TAIL: usize = 40;
/// A line without an end is told after so many bytes.
const LONG: usize = 8192;

/// `name`, cut so that it has its line of the terminal with `beside` other columns.
fn fitting(name: &str, columns: Option<usize>, beside: usize) -> String {
    let most = columns.map_or(usize::MAX, |columns| columns.saturating_sub(beside).max(20));
    match name.chars().count() > most {
        true => name.chars().take(most - 1).chain(['…']).collect(),
        false => name.to_owned(),
    }
}

impl Progress {
    pub(super) fn new(how: ProgressArg) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let how = match how {
            ProgressArg::Auto if is_terminal => ProgressArg::Tty,
            ProgressArg::Auto => ProgressArg::Plain,
            other => other,
        };
        Self { how, state: Mutex::default(), live: (how == ProgressArg::Tty).then(Live::new) }
    }

    /// Nothing but the result is wanted.
    pub(super) fn is_quiet(&self) -> bool {
        self.how == ProgressArg::Quiet
    }

    /// A step begins. The answer is its number.
    pub(super) fn begin(&self, name: &str) -> usize {
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        let name: String = name.lines().next().unwrap_or_default().chars().take(200).collect();
        match self.how {
            ProgressArg::Plain | ProgressArg::Auto => ui::line(format_args!("#{number} {name}")),
            ProgressArg::Rawjson => {
                let event = json!({ "vertex": number, "name": name, "started": layerfs_image::time::now() });
                ui::line(event);
            }
            ProgressArg::Tty | ProgressArg::Quiet => {}
        }
        if let Some(live) = &self.live {
            live.begin(number, &name);
        }
        let (open, tail) = (Vec::new(), Vec::new());
        let running = Running { name, started: Instant::now(), open, tail };
        state.steps.insert(number, running);
        number
    }

    /// The step wrote something.
    pub(super) fn output(&self, number: usize, bytes: &[u8]) {
        let mut state = self.lock();
        let Some(running) = state.steps.get_mut(&number) else { return };
        running.open.extend_from_slice(bytes);
        while let Some(end) = running.open.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = running.open.drain(..=end).collect();
            self.tell(number, running, &line[..end]);
        }
        if running.open.len() > LONG {
            let line = std::mem::take(&mut running.open);
            self.tell(number, running, &line);
        }
    }

    fn tell(&self, number: usize, running: &mut Running, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end_matches('\r');
        let time = running.started.elapsed().as_secs_f64();
        match self.how {
            ProgressArg::Plain | ProgressArg::Auto => ui::line(format_args!("#{number} {time:.3} {text}")),
            ProgressArg::Rawjson => ui::line(json!({ "vertex": number, "time": time, "log": text })),
            ProgressArg::Tty | ProgressArg::Quiet => {
                running.tail.push(text.to_owned());
                if running.tail.len() > TAIL {
                    running.tail.remove(0);
                }
                if let Some(live) = &self.live {
                    live.under(number, text);
                }
            }
        }
    }

    /// It ended.
    pub(super) fn end(&self, number: usize, how: End) {
        let mut state = self.lock();
        let Some(mut running) = state.steps.remove(&number) else { return };
        if !running.open.is_empty() {
            let line = std::mem::take(&mut running.open);
            self.tell(number, &mut running, &line);
        }
        let time = running.started.elapsed().as_secs_f64();
        let words = match how {
            End::Done => format!("DONE {time:.1}s"),
            End::Cached => "CACHED".to_owned(),
            End::Failed => "ERROR".to_owned(),
            End::Canceled => "CANCELED".to_owned(),
        };
        match self.how {
            ProgressArg::Plain | ProgressArg::Auto => ui::line(format_args!("#{number} {words}\n")),
            ProgressArg::Rawjson => ui::line(json!({
                "vertex": number,
                "completed": layerfs_image::time::now(),
                "cached": how == End::Cached,
                "error": how == End::Failed,
                "seconds": time,
            })),
            ProgressArg::Tty | ProgressArg::Quiet => {
                let tail = if how == End::Failed { std::mem::take(&mut running.tail) } else { Vec::new() };
                if let Some(live) = &self.live {
                    live.end(number, |columns| {
                        let name = fitting(&running.name, Some(columns), words.len() + 4);
                        let tail = tail.iter().map(|line| format!("\n   {line}"));
                        format!("=> {name} {words}{}", tail.collect::<String>())
                    });
                } else {
                    tail.iter().for_each(|line| ui::line(format_args!("   {line}")));
                }
            }
        }
    }

    /// One step from beginning to end.
    pub(super) fn step<T>(&self, name: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let number = self.begin(name);
        let result = work();
        self.end(number, if result.is_ok() { End::Done } else { End::Failed });
        result
    }

    /// Something worth knowing.
    pub(super) fn warn(&self, text: impl std::fmt::Display) {
        if self.how != ProgressArg::Quiet {
            self.aside(|| ui::warn(text));
        }
    }

    /// Does what writes to the terminal itself.
    pub(super) fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.live {
            Some(live) => live.aside(work),
            None => work(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_line() {
        assert_eq!(fitting("a short name", Some(80), 10), "a short name");
        assert_eq!(fitting(&"x".repeat(100), None, 10).len(), 100);
        let cut = fitting(&"é".repeat(100), Some(60), 14);
        assert_eq!(cut.chars().count() + 14, 60);
        assert!(cut.ends_with("é…"), "{cut}");
        assert_eq!(fitting(&"x".repeat(100), Some(0), 14).chars().count(), 20);
    }
}
