//! The only place that prints. Results go to stdout, all else to stderr; a reader that went away is no error.

pub(crate) mod prompt;
pub(crate) mod visible;

use std::io::{self, IsTerminal, Write};

use crate::exit::Hinted;

/// Writes a result. True when it was taken; false when the reader has closed the pipe, and the command may end.
///
/// # Errors
/// Any other failure to write, such as a full disk behind a redirection.
pub(crate) fn print(text: impl AsRef<[u8]>) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// Standard output, for results that are written as they come.
#[derive(Debug)]
pub(crate) struct Output;

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stdout().lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().lock().flush()
    }
}

/// Writes what a container's program has written, to standard output or standard error.
///
/// # Errors
/// Of writing: `BrokenPipe` when the reader has gone.
pub(crate) fn pass_on(to_stderr: bool, bytes: &[u8]) -> io::Result<()> {
    if to_stderr {
        return io::stderr().lock().write_all(bytes);
    }
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush())
}

/// Asks at the terminal: no newline, and not where results go.
pub(crate) fn ask(question: &str) {
    // A closed stderr leaves nobody to ask; the answer is read all the same.
    io::stderr().lock().write_all(question.as_bytes()).ok();
}

/// Tells of something that was done otherwise than asked.
pub(crate) fn warn(text: impl std::fmt::Display) {
    tell(format_args!("layerfs: warning: {text}"));
}

/// Tells of something worth knowing that is no fault.
pub(crate) fn note(text: impl std::fmt::Display) {
    tell(format_args!("layerfs: {text}"));
}

/// Writes a line of a report on work that goes on.
pub(crate) fn line(text: impl std::fmt::Display) {
    tell(format_args!("{text}"));
}

/// Tells of a failure: the chain of causes on one line, then the hint where one is known.
pub(crate) fn error(error: &anyhow::Error) {
    tell(format_args!("layerfs: {}", chain(error)));
    if let Some(hinted) = error.downcast_ref::<Hinted>() {
        tell(format_args!("hint: {}", hinted.hint));
    }
}

/// The causes in order. Many errors name their own cause already; it is not said twice.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut words = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if words.is_empty() {
            words = cause;
        } else if !words.contains(&cause) {
            words.push_str(": ");
            words.push_str(&cause);
        }
    }
    words
}

fn tell(line: std::fmt::Arguments<'_>) {
    // One write, so that lines of parent and mount process do not mix. A closed stderr leaves nobody to tell.
    let line = format!("{line}\n");
    io::stderr().lock().write_all(line.as_bytes()).ok();
}

/// Columns of the terminal on stdout; `None` when it is no terminal (then nothing is cut).
pub(crate) fn width() -> Option<usize> {
    columns(io::stdout())
}

/// Columns and rows of the terminal on stderr; `None` when it is none, or does not know.
pub(crate) fn stderr_size() -> Option<(usize, usize)> {
    size(io::stderr())
}

fn columns(stream: impl IsTerminal + std::os::fd::AsFd) -> Option<usize> {
    size(stream).map(|(columns, _)| columns)
}

fn size(stream: impl IsTerminal + std::os::fd::AsFd) -> Option<(usize, usize)> {
    if !stream.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    (size.ws_col > 0).then(|| (usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// Writes to the terminal on stderr what moves its cursor, as it is.
pub(crate) fn draw(text: &str) {
    io::stderr().lock().write_all(text.as_bytes()).ok();
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn no_cause_is_told_twice() {
        let error = anyhow!("no such file").context("open \"/x\"").context("mount: open \"/x\"");
        assert_eq!(chain(&error), "mount: open \"/x\": no such file");
        assert_eq!(chain(&anyhow!("alone")), "alone");
    }
}
