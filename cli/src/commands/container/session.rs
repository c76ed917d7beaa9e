//! Being with a program through its monitor: streams, terminal, signals, detaching.

use std::io::ErrorKind;
use std::os::fd::AsFd;

use anyhow::Context;
use layerfs_runner::attach::Signals;
use layerfs_runner::monitor::connection::{Connection, Message};
use layerfs_runner::monitor::protocol::{Event, Streams};
use layerfs_runner::{FailureKind, terminal};
use rustix::event::{PollFd, PollFlags};

use crate::exit::Usage;
use crate::ui;

/// Keys that leave a terminal, if no others are asked for.
pub(super) const DETACH_KEYS: &str = "ctrl-p,ctrl-q";

/// How a session goes.
#[derive(Debug)]
pub(super) struct Manner {
    /// Standard input is passed on.
    pub(super) stdin: bool,
    /// The program has a terminal.
    pub(super) tty: bool,
    /// Signals are passed on.
    pub(super) passes_signals: bool,
    /// Keys that leave it.
    pub(super) detach_keys: DetachKeys,
}

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The program did.
    Exited(u8),
    /// The user left.
    Detached,
    /// Nobody reads what the program writes. It goes on.
    Unread,
    /// The program could not be run.
    Failed { kind: FailureKind, words: String },
    /// The monitor is gone, and did not say how the program ended.
    Lost,
}

impl Manner {
    /// The streams to ask for.
    pub(super) fn streams(&self, whole: bool) -> Streams {
        Streams { stdin: self.stdin, stdout: true, stderr: true, whole }
    }
}

/// Stays with the program at the other end of `connection`, which was asked for.
pub(super) fn stay(mut connection: Connection, manner: Manner, signals: &Signals) -> anyhow::Result<Ending> {
    let Manner { stdin, tty, passes_signals, mut detach_keys } = manner;
    let mut reads = stdin;
    let is_terminal = rustix::termios::isatty(rustix::stdio::stdin());
    let _raw = match tty && stdin && is_terminal {
        true => Some(terminal::RawMode::enter(rustix::stdio::stdin()).context("use the terminal")?),
        false => None,
    };
    if tty {
        follow_size(&connection);
    }
    let mut buffer = [0_u8; 4096];
    let mut unwritten: Option<(bool, std::io::Error)> = None;
    loop {
        let (own, from, keys) = {
            let mut wanted = vec![
                PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(connection.as_fd(), PollFlags::IN),
            ];
            if reads {
                wanted.push(PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN));
            }
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut wanted, None))
                .context("wait for the program")?;
            let is_ready = |at: usize| wanted.get(at).is_some_and(|fd| !fd.revents().is_empty());
            (is_ready(0), is_ready(1), is_ready(2))
        };
        if own {
            while let Some(signal) = signals.next().context("take signals")? {
                if signal == libc::SIGWINCH {
                    if tty {
                        follow_size(&connection);
                    }
                } else if passes_signals {
                    // A monitor that is gone shows below.
                    connection.signal(signal).ok();
                } else {
                    return Ok(Ending::Detached);
                }
            }
        }
        if from {
            match connection.receive().context("hear from the monitor")? {
                message @ (Message::Output(bytes) | Message::Error(bytes)) => {
                    let to_stderr = matches!(message, Message::Error(_));
                    match ui::pass_on(to_stderr, bytes) {
                        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                            connection.detach().ok();
                            return Ok(Ending::Unread);
                        }
                        // A full disk. The program is not held up by it, and its end is awaited.
                        Err(error) => drop(unwritten.get_or_insert((to_stderr, error))),
                        Ok(()) => {}
                    }
                }
                Message::End => return Ok(Ending::Lost),
                Message::Event(Event::Exited { code }) => {
                    let Some((to_stderr, error)) = unwritten else { return Ok(Ending::Exited(code)) };
                    let stream = if to_stderr { "standard error" } else { "standard output" };
                    let words = format!(
                        "the program ended with {code}, and not all of its output could be written: {stream}"
                    );
                    return Err(anyhow::Error::from(error).context(words));
                }
                Message::Event(Event::Failed { kind, words }) => return Ok(Ending::Failed { kind, words }),
                Message::Event(Event::Refused { words }) => anyhow::bail!("{words}"),
                Message::Event(Event::Missed { bytes }) => {
                    ui::warn(format_args!("{bytes} bytes of output came too fast and were missed"));
                }
                Message::Event(Event::Started { .. } | Event::Done) => {}
            }
        }
        if keys {
            match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
                Ok(0) => {
                    reads = false;
                    connection.end_input().ok();
                }
                Ok(length) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    if !(tty && is_terminal) {
                        connection.send_input(bytes).ok();
                        continue;
                    }
                    let (bytes, leaves) = detach_keys.filter(bytes);
                    connection.send_input(&bytes).ok();
                    if leaves {
                        connection.detach().context("detach")?;
                        return Ok(Ending::Detached);
                    }
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(_) => {
                    reads = false;
                    connection.end_input().ok();
                }
            }
        }
    }
}

fn follow_size(connection: &Connection) {
    let size =
        terminal::size_of(rustix::stdio::stdout()).or_else(|| terminal::size_of(rustix::stdio::stdin()));
    if let Some(size) = size {
        connection.resize(size).ok();
    }
}

/// A sequence of keys that leaves a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DetachKeys {
    keys: Vec<u8>,
    matched: usize,
}

impl DetachKeys {
    /// Reads `ctrl-p,ctrl-q`: letters, and `ctrl-` with a letter or one of `@[\]^_`.
    pub(super) fn parse(text: &str) -> Result<Self, Usage> {
        let key = |word: &str| -> Option<u8> {
            if let Some(letter) = word.strip_prefix("ctrl-") {
                return match letter.as_bytes() {
                    [letter] if letter.is_ascii_alphabetic() || b"@[\\]^_".contains(letter) => {
                        Some(letter.to_ascii_uppercase() & 0x1f)
                    }
                    _ => None,
                };
            }
            match word.as_bytes() {
                [letter] => Some(*letter),
                _ => None,
            }
        };
        if text.is_empty() {
            return Ok(Self { keys: Vec::new(), matched: 0 });
        }
        let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
        match keys {
            Some(keys) => Ok(Self { keys, matched: 0 }),
            None => Err(Usage(format!("invalid detach keys provided: {text:?}"))),
        }
    }

    /// What of `bytes` goes to the program, and whether the sequence is complete. A beginning of it is held back.
    fn filter(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(bytes.len());
        for byte in bytes {
            if self.keys.get(self.matched) == Some(byte) {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.matched = 0;
                    return (out, true);
                }
                continue;
            }
            out.extend(self.keys.iter().take(self.matched));
            self.matched = usize::from(self.keys.first() == Some(byte));
            if self.matched == 0 {
                out.push(*byte);
            } else if self.matched == self.keys.len() {
                self.matched = 0;
                return (out, true);
            }
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_held_back_until_it_is_clear() {
        let mut keys = DetachKeys::parse(DETACH_KEYS).unwrap();
        assert_eq!(keys.filter(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.filter(b"x"), (b"\x10x".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10\x11rest"), (b"\x10".to_vec(), true));
        let mut one = DetachKeys::parse("q").unwrap();
        assert_eq!(one.filter(b"aq"), (b"a".to_vec(), true));
        let mut none = DetachKeys::parse("").unwrap();
        assert_eq!(none.filter(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
        assert!(DetachKeys::parse("ctrl-").is_err() && DetachKeys::parse("ctrl-1").is_err());
    }
}
