//! Questions to a person at a terminal.

use std::io::{self, IsTerminal, Read};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};

/// Longer answers are none.
const MAX_ANSWER: usize = 64 << 10;

/// True when there is somebody to ask.
pub(crate) fn is_possible() -> bool {
    io::stdin().is_terminal()
}

/// Asks, and reads a line.
///
/// # Errors
/// Those of the terminal; `UnexpectedEof` when it is closed.
pub(crate) fn line(question: &str) -> io::Result<String> {
    super::ask(question);
    let mut answer = String::new();
    if io::stdin().read_line(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer.trim().to_owned())
}

/// Asks whether `what` is to be removed, in docker's words.
///
/// # Errors
/// When there is nobody to ask.
pub(crate) fn confirmed(what: &str) -> anyhow::Result<bool> {
    if !is_possible() {
        return Err(crate::exit::Usage("nobody to ask: use --force to remove without asking".into()).into());
    }
    let question = format!("WARNING! This will remove {what}.\nAre you sure you want to continue? [y/N] ");
    let answer = match line(&question) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        answer => answer?,
    };
    Ok(matches!(answer.as_str(), "y" | "Y" | "yes"))
}

/// Asks, and reads a line that is not shown. Ctrl-C gives up like Ctrl-D: the terminal must not stay silent.
///
/// # Errors
/// Those of the terminal; `UnexpectedEof` when the user gives up.
pub(crate) fn secret(question: &str) -> io::Result<String> {
    super::ask(question);
    let answer = {
        let _silence = Silence::begin()?;
        typed(&mut io::stdin().lock())
    };
    // The line end was not shown either.
    super::ask("\n");
    answer
}

/// What is typed up to the end of the line; erasing works.
fn typed(input: &mut impl Read) -> io::Result<String> {
    let mut answer = Vec::new();
    let mut byte = [0];
    while answer.len() < MAX_ANSWER && input.read(&mut byte)? == 1 {
        match byte[0] {
            b'\r' | b'\n' => {
                return String::from_utf8(answer)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
            }
            // Ctrl-C, Ctrl-D
            3 | 4 => break,
            // Backspace, delete
            8 | 127 => while answer.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            // Ctrl-U
            21 => answer.clear(),
            byte => answer.push(byte),
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// The terminal shows nothing, and gives each byte at once, until this goes.
struct Silence(Termios);

impl Silence {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        silent.special_codes[SpecialCodeIndex::VMIN] = 1;
        silent.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        tcsetattr(io::stdin(), OptionalActions::Now, &self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_can_be_corrected_while_it_is_typed() {
        let table: [(&[u8], Option<&str>); 6] = [
            (b"pass\n", Some("pass")),
            (b"pax\x7fss\r", Some("pass")),
            ("pé\x7f\x7fq\n".as_bytes(), Some("q")),
            (b"wrong\x15right\n", Some("right")),
            (b"half\x03", None),
            (b"end", None),
        ];
        for (mut typed_bytes, expected) in table {
            assert_eq!(typed(&mut typed_bytes).ok().as_deref(), expected);
        }
    }
}
