//! Finding the program, as a shell does.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, FileType};

use crate::channel::FailureKind;

/// Where programs are sought when the environment does not say, as with other runtimes.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why there is no program to execute.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoProgram {
    pub(super) kind: FailureKind,
    pub(super) words: String,
    pub(super) errno: Option<i32>,
}

/// The path to execute for `name`: itself when it has a slash, else the first executable of that name in the
/// directories of `PATH` in `environment`. Runs in the container, as its user, in its working directory.
pub(super) fn find(name: &CString, environment: &[CString]) -> Result<CString, NoProgram> {
    let text = OsStr::from_bytes(name.as_bytes());
    let refused =
        |kind, why: String, errno| Err(NoProgram { kind, words: format!("program {text:?}: {why}"), errno });
    if name.as_bytes().contains(&b'/') {
        return match executable(Path::new(text)) {
            Ok(()) => Ok(name.clone()),
            Err(error) => refused(kind_of(&error), error.to_string(), error.raw_os_error()),
        };
    }
    let mut denied = None;
    for directory in path_of(environment).split(|byte| *byte == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        let candidate = Path::new(OsStr::from_bytes(directory)).join(text);
        match executable(&candidate) {
            Ok(()) => {
                if let Ok(found) = CString::new(candidate.as_os_str().as_bytes()) {
                    return Ok(found);
                }
            }
            Err(error) if kind_of(&error) == FailureKind::NotExecutable => denied = Some(error),
            Err(_) => {}
        }
    }
    match denied {
        Some(error) => refused(FailureKind::NotExecutable, error.to_string(), error.raw_os_error()),
        None => {
            refused(FailureKind::NotFound, "executable file not found in $PATH".into(), Some(libc::ENOENT))
        }
    }
}

/// Whether a failed look-up or exec means that there is no such program.
pub(super) fn kind_of(error: &io::Error) -> FailureKind {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => FailureKind::NotFound,
        _ => FailureKind::NotExecutable,
    }
}

fn executable(path: &Path) -> io::Result<()> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?)
}

fn path_of(environment: &[CString]) -> &[u8] {
    environment.iter().find_map(|entry| entry.as_bytes().strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn c(text: impl AsRef<OsStr>) -> CString {
        CString::new(text.as_ref().as_bytes()).unwrap()
    }

    #[test]
    fn the_first_executable_in_path_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        for (directory, mode) in [(&first, 0o644), (&second, 0o755)] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("tool"), "").unwrap();
            fs::set_permissions(directory.join("tool"), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(second.join("directory")).unwrap();
        let environment = [c("X=1"), c(format!("PATH={}:{}", first.display(), second.display()))];
        assert_eq!(find(&c("tool"), &environment).unwrap(), c(second.join("tool")));
        assert_eq!(find(&c("missing"), &environment).unwrap_err().kind, FailureKind::NotFound);
        assert_eq!(find(&c("directory"), &environment).unwrap_err().kind, FailureKind::NotExecutable);
        assert_eq!(find(&c(first.join("tool")), &environment).unwrap_err().kind, FailureKind::NotExecutable);
        assert_eq!(find(&c(first.join("none")), &environment).unwrap_err().kind, FailureKind::NotFound);
        let only_first = [c(format!("PATH={}", first.display()))];
        assert_eq!(find(&c("tool"), &only_first).unwrap_err().kind, FailureKind::NotExecutable);
        assert_eq!(find(&c("tool"), &[]).unwrap_err().kind, FailureKind::NotFound);
    }
}
