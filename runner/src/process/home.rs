//! `HOME`, for programs whose description does not have it: from the container's own `/etc/passwd`, as with other runtimes.

use std::borrow::Cow;
use std::ffi::CString;
use std::fs::File;
use std::io::Read;

use rustix::fs::{Mode, OFlags};

use crate::config::Process;

/// Longest user file that is read.
const FILE_MAX: u64 = 16 << 20;
/// The home of users that have none.
const DEFAULT: &[u8] = b"/";

/// The environment of the program, with `HOME`. Runs in the container's root, before the user is changed: who may not read
/// the file has a home all the same.
pub(super) fn environment(process: &Process) -> Cow<'_, [CString]> {
    let is_home =
        |entry: &CString| entry.as_bytes().strip_prefix(b"HOME=").is_some_and(|home| !home.is_empty());
    if process.env.iter().any(is_home) {
        return Cow::Borrowed(&process.env);
    }
    let text = passwd().inspect_err(|error| tracing::debug!(%error, "read /etc/passwd")).unwrap_or_default();
    let home = of_user(&text, process.user.uid).unwrap_or(DEFAULT);
    let mut env: Vec<CString> =
        process.env.iter().filter(|entry| !entry.as_bytes().starts_with(b"HOME=")).cloned().collect();
    env.extend(CString::new([b"HOME=", home].concat()));
    Cow::Owned(env)
}

/// Its content. An image may have anything there: what is no file is not read, nor waited for.
fn passwd() -> std::io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open("/etc/passwd", flags, Mode::empty())?);
    let mut text = Vec::new();
    if file.metadata()?.is_file() {
        file.take(FILE_MAX).read_to_end(&mut text)?;
    }
    Ok(text)
}

/// The sixth field of the first line with this id (`passwd(5)`); `None` where it is missing or empty.
fn of_user(text: &[u8], uid: u32) -> Option<&[u8]> {
    let is_its = |fields: &Vec<&[u8]>| {
        let id = fields.get(2).and_then(|id| std::str::from_utf8(id).ok());
        id.and_then(|id| id.parse().ok()) == Some(uid)
    };
    let mut lines = text.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b':').collect());
    let fields: Vec<&[u8]> = lines.find(is_its)?;
    fields.get(5).copied().filter(|home| !home.is_empty() && !home.contains(&0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_home_is_that_of_the_first_line_with_the_id() {
        let text = b"\nroot:x:0:0:root:/root:/bin/sh\nshort:x:7\nme:x:1000:1000::/home/me:/bin/sh\nu:x:1000:0::/u:\nn:x:8:8:::\n";
        assert_eq!(of_user(text, 0), Some(&b"/root"[..]));
        assert_eq!(of_user(text, 1000), Some(&b"/home/me"[..]));
        for uid in [7, 8, 9] {
            assert_eq!(of_user(text, uid), None, "{uid}");
        }
    }
}
