//! The live view of a terminal: a few lines at its end that are drawn again and again, with finished lines above them.
//!
//! The terminal may change its size at any time. It is asked for its size at every drawing, and what was drawn before is taken
//! away by the rows that it takes now: where a terminal became narrower, long lines have become several rows.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::ui;

/// After so long it is looked whether there is something new to show. What has not changed is not drawn again: a drawing
/// that comes before the news of a narrower terminal leaves lines behind.
const TICK: Duration = Duration::from_millis(150);
const SPINNER: [char; 8] = ['⠋', '⠙', '⠸', '⠴', '⠦', '⠇', '⠏', '⠿'];

/// Size of the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    columns: usize,
    rows: usize,
}

impl Size {
    /// Of the terminal on standard error; of an old one where that does not tell.
    fn now() -> Self {
        let (columns, rows) = ui::stderr_size().unwrap_or((80, 24));
        Self { columns: columns.max(1), rows: rows.max(2) }
    }
}

/// Something that goes on.
#[derive(Debug)]
struct Running {
    name: String,
    started: Instant,
    /// What it wrote last.
    under: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    running: BTreeMap<usize, Running>,
    drawn: Frame,
    /// What that was made of.
    shown: Option<(Vec<String>, Size)>,
    /// So many want it to show nothing for now.
    hidden: usize,
    ended: bool,
}

/// What is on the terminal now, the cursor in the row after it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Frame {
    /// Columns of each line.
    widths: Vec<usize>,
}

impl Frame {
    /// Rows that it takes. Terminals that do not break lines anew cut them.
    fn rows(&self, columns: usize, reflows: bool) -> usize {
        let rows = |width: &usize| if reflows { width.div_ceil(columns).max(1) } else { 1 };
        self.widths.iter().map(rows).sum()
    }

    /// What puts `finished` (whole lines) and after it `lines`, each in one row, in its place.
    ///
    /// Lines are written over those before them, and what is left of these is erased at the end: there are terminals that take
    /// erasing all of the screen for a reason to keep its content in their history.
    fn redraw(&mut self, finished: &str, lines: &[String], size: Size, reflows: bool) -> String {
        let rows = self.rows(size.columns, reflows);
        let mut text = if rows == 0 { String::new() } else { format!("\r\x1b[{rows}A") };
        self.widths.clear();
        for line in finished.lines() {
            text.push_str(line);
            text.push_str("\x1b[K\n");
        }
        // The last row is the cursor's.
        let room = size.rows - 1;
        let (shown, more) = match lines.len() > room {
            true => (&lines[..room - 1], lines.len() + 1 - room),
            false => (lines, 0),
        };
        let more = (more > 0).then(|| format!("  and {more} more"));
        for line in shown.iter().chain(&more) {
            let line = cut(line, size.columns.saturating_sub(1));
            self.widths.push(line.width());
            text.push_str(&line);
            text.push_str("\x1b[K\n");
        }
        if rows > 0 {
            text.push_str("\x1b[J");
        }
        text
    }
}

/// As much of `text` as has room.
fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut left = columns.saturating_sub(1);
    let mut short = String::new();
    for letter in text.chars() {
        let width = letter.width().unwrap_or(0);
        if width > left {
            break;
        }
        left -= width;
        short.push(letter);
    }
    if columns > 0 {
        short.push('…');
    }
    short
}

/// `text` without what would move the cursor or colour the rest.
pub(super) fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\x1b' if letters.peek() == Some(&'[') => {
                letters.next();
                // Parameters, up to the letter that says what they are for.
                while letters.next().is_some_and(|letter| !('@'..='~').contains(&letter)) {}
            }
            '\t' => shown.push(' '),
            letter if letter.is_control() => {}
            letter => shown.push(letter),
        }
    }
    shown
}

impl State {
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for running in self.running.values() {
            let seconds = running.started.elapsed().as_secs();
            let turn = SPINNER[usize::try_from(seconds).unwrap_or(0) % SPINNER.len()];
            let time = match seconds / 60 {
                0 => format!("{seconds}s"),
                minutes => format!("{minutes}m{:02}s", seconds % 60),
            };
            lines.push(format!("{turn} {time:>4} {}", running.name));
            lines.extend(running.under.iter().map(|under| format!("       {under}")));
        }
        lines
    }

    /// Draws again, with `finished` above, in one write.
    fn show(&mut self, finished: &str, reflows: bool) {
        let lines = if self.hidden == 0 && !self.ended { self.lines() } else { Vec::new() };
        let now = (lines, Size::now());
        if finished.is_empty() && self.shown.as_ref() == Some(&now) {
            return;
        }
        let text = self.drawn.redraw(finished, &now.0, now.1, reflows);
        self.shown = Some(now);
        if !text.is_empty() {
            ui::draw(&text);
        }
    }
}

/// The view, and the thread that keeps it up.
#[derive(Debug)]
pub(super) struct Live {
    shared: Arc<(Mutex<State>, Condvar)>,
    /// The terminal breaks lines anew when it becomes narrower.
    reflows: bool,
    thread: Option<JoinHandle<()>>,
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    pub(super) fn new() -> Self {
        let shared = Arc::new((Mutex::new(State::default()), Condvar::new()));
        // Of those in use, these two do not.
        let reflows = std::env::var_os("XTERM_VERSION").is_none() && std::env::var_os("STY").is_none();
        let theirs = shared.clone();
        let tick = move || {
            let (state, changed) = &*theirs;
            let mut state = locked(state);
            while !state.ended {
                if !state.running.is_empty() && state.hidden == 0 {
                    state.show("", reflows);
                }
                state = changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
            }
        };
        // Without it the view changes only with what happens.
        let thread = std::thread::Builder::new().name("progress".into()).spawn(tick).ok();
        Self { shared, reflows, thread }
    }

    /// A line for something that begins.
    pub(super) fn begin(&self, number: usize, name: &str) {
        let mut state = locked(&self.shared.0);
        let running = Running { name: plain(name), started: Instant::now(), under: None };
        state.running.insert(number, running);
        state.show("", self.reflows);
    }

    /// What it wrote last. It shows with the next drawing.
    pub(super) fn under(&self, number: usize, text: &str) {
        if let Some(running) = locked(&self.shared.0).running.get_mut(&number) {
            running.under = Some(plain(text)).filter(|text| !text.trim().is_empty());
        }
    }

    /// It ended: what is to be said of it stays. `line` makes that from the columns that there are.
    pub(super) fn end(&self, number: usize, line: impl FnOnce(usize) -> String) {
        let mut state = locked(&self.shared.0);
        state.running.remove(&number);
        let line = line(Size::now().columns);
        state.show(&format!("{line}\n"), self.reflows);
    }

    /// Shows nothing while `work` writes to the terminal.
    pub(super) fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        let change = |by: isize| {
            let mut state = locked(&self.shared.0);
            state.hidden = state.hidden.saturating_add_signed(by);
            state.show("", self.reflows);
        };
        change(1);
        let result = work();
        change(-1);
        result
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        {
            let mut state = locked(&self.shared.0);
            state.ended = true;
            state.show("", self.reflows);
            self.shared.1.notify_all();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A terminal that breaks lines anew, as far as this needs one: logical lines, the cursor in the row after the last.
    struct Terminal {
        lines: Vec<String>,
        columns: usize,
    }

    impl Terminal {
        fn write(&mut self, text: &str) {
            let mut rest = text;
            if let Some((rows, after)) = rest.strip_prefix("\r\x1b[").and_then(|rest| rest.split_once('A')) {
                let mut rows: usize = rows.parse().unwrap();
                while rows > 0 {
                    let line = self.lines.pop().expect("the cursor is above the beginning");
                    rows = rows
                        .checked_sub(line.width().div_ceil(self.columns).max(1))
                        .expect("a line is cut through");
                }
                rest = after.strip_suffix("\x1b[J").expect("what is left is erased");
            }
            for line in rest.lines() {
                let line = line.strip_suffix("\x1b[K").expect("what was to its right is erased");
                assert!(!line.contains('\x1b'), "{line:?}");
                self.lines.push(line.to_owned());
            }
        }
    }

    #[test]
    fn no_line_stays_when_the_terminal_changes_its_size() {
        let mut terminal = Terminal { lines: vec!["$ layerfs build .".into()], columns: 80 };
        let mut frame = Frame::default();
        let lines = ["short".to_owned(), "x".repeat(200), "漢字".repeat(40), String::new()];
        let mut above = terminal.lines.clone();
        for columns in [80, 30, 7, 120, 1, 2, 60, 59, 200] {
            terminal.columns = columns;
            let finished = format!("=> {columns}\n");
            terminal.write(&frame.redraw(&finished, &lines, Size { columns, rows: 24 }, true));
            above.push(finished.trim_end().to_owned());
            let (first, shown) = terminal.lines.split_at(above.len());
            assert_eq!(first, above);
            assert!(
                shown.len() == 4 && shown.iter().all(|line| line.width() < columns),
                "{columns}: {shown:?}"
            );
        }
        // One that cuts lines has as many rows as there are lines.
        assert_eq!(frame.rows(10, false), 4);
        assert!(frame.rows(10, true) > 4);
        terminal.columns = 40;
        terminal.write(&frame.redraw("", &[], Size { columns: 40, rows: 24 }, true));
        assert_eq!(terminal.lines, above);
        assert_eq!(frame.redraw("", &[], Size { columns: 40, rows: 24 }, true), "");
    }

    #[test]
    fn more_lines_than_rows_are_counted() {
        let lines: Vec<String> = (0..10).map(|at| at.to_string()).collect();
        let shown = |count: usize, rows: usize| {
            let text = Frame::default().redraw("", &lines[..count], Size { columns: 80, rows }, true);
            text.replace("\x1b[K", "")
        };
        assert_eq!(shown(10, 4), "0\n1\n  and 8 more\n");
        assert_eq!(shown(3, 4), "0\n1\n2\n");
        assert_eq!(shown(10, 2), "  and 10 more\n");
    }

    #[test]
    fn what_programs_write_moves_no_cursor() {
        assert_eq!(plain("\x1b[1;32mok\x1b[0m\tdone\r\x07\x1b[2K"), "ok done");
        assert_eq!(plain("\x1b[31"), "");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("漢字漢字", 6), "漢字…");
        assert_eq!((cut("abc", 0), cut("abc", 3)), (String::new(), "abc".into()));
    }
}
