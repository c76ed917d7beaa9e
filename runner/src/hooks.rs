//! Running hooks: the state on standard input, an end to their time, and their words in the error.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::process::{WaitId, WaitIdOptions};

use crate::config::Hook;
use crate::step::{Doing, StepError};
use crate::sys::{self, process::Forked};

/// So much of what a failed hook wrote is told.
const WORDS_MAX: u64 = 1024;

/// Runs `hooks` in order; `name` is their kind.
///
/// # Errors
/// The first one that cannot be run, does not end in time, or ends with another status than 0.
pub(crate) fn run_all(name: &str, hooks: &[Hook], state: &[u8]) -> Result<(), StepError> {
    for (index, hook) in hooks.iter().enumerate() {
        let doing = || format!("run hooks.{name}[{index}] {:?}", hook.path);
        run(hook, state).doing(doing)?;
    }
    Ok(())
}

/// Runs all of `hooks` in order, where a failure is only worth a warning (specification, "Lifecycle", of poststart and
/// poststop): "the remaining hooks and lifecycle continue as if the hook had succeeded".
pub(crate) fn run_each(name: &str, hooks: &[Hook], state: &[u8]) {
    for (index, hook) in hooks.iter().enumerate() {
        if let Err(error) = run(hook, state) {
            tracing::warn!("run hooks.{name}[{index}] {:?}: {error}", hook.path);
        }
    }
}

/// The state with the number of this process as it sees itself, which is how the container does: for hooks that run in
/// its namespaces.
pub(crate) fn seen_from_inside(state: &[u8]) -> Vec<u8> {
    let Ok(mut document) = serde_json::from_slice::<serde_json::Value>(state) else { return state.to_vec() };
    match document.get_mut("pid") {
        Some(pid) => *pid = rustix::process::getpid().as_raw_nonzero().get().into(),
        None => return state.to_vec(),
    }
    document.to_string().into_bytes()
}

/// A file in memory, open for reading from its beginning.
pub(crate) fn memory_file(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create(c"state", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

fn run(hook: &Hook, state: &[u8]) -> io::Result<()> {
    let input = memory_file(state)?;
    let mut output = memory_file(b"")?;
    let pidfd = match sys::process::fork_into(0)? {
        Forked::Parent { pidfd, .. } => pidfd,
        Forked::Child => {
            let error = become_hook(hook, &input, &output);
            output.write_all(error.to_string().as_bytes()).ok();
            sys::process::exit_now(127);
        }
    };
    if !ends_in_time(&pidfd, hook)? {
        sys::signal::send(&pidfd, libc::SIGKILL)?;
        wait(&pidfd)?;
        let seconds = hook.timeout.unwrap_or_default().as_secs();
        return Err(io::Error::other(format!("it did not end within {seconds} s and was killed")));
    }
    let how = match wait(&pidfd)? {
        (Some(0), _) => return Ok(()),
        (Some(status), _) => format!("exit status {status}"),
        (None, signal) => format!("killed by signal {}", signal.unwrap_or(0)),
    };
    let mut words = Vec::new();
    output.rewind()?;
    output.take(WORDS_MAX).read_to_end(&mut words)?;
    let words = String::from_utf8_lossy(&words);
    match words.trim() {
        "" => Err(io::Error::other(how)),
        words => Err(io::Error::other(format!("{how}: {words}"))),
    }
}

fn become_hook(hook: &Hook, input: &File, output: &File) -> io::Error {
    let prepared = (|| {
        sys::signal::reset_actions();
        sys::signal::unblock_all()?;
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        rustix::stdio::dup2_stdin(input)?;
        rustix::stdio::dup2_stdout(output)?;
        rustix::stdio::dup2_stderr(output)?;
        sys::process::set_close_on_exec_from(3)
    })();
    match prepared {
        Ok(()) => sys::process::exec(&hook.path, &hook.args, &hook.env),
        Err(error) => error,
    }
}

fn ends_in_time(pidfd: &OwnedFd, hook: &Hook) -> io::Result<bool> {
    let until = hook.timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        match rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(ready) => return Ok(ready > 0),
            Err(error) => return Err(error.into()),
        }
    }
}

fn wait(pidfd: &OwnedFd) -> io::Result<(Option<i32>, Option<i32>)> {
    let status = rustix::io::retry_on_intr(|| {
        rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
    })?;
    Ok(status.map_or((None, None), |status| (status.exit_status(), status.terminating_signal())))
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::time::Duration;

    use super::*;

    fn shell(script: &str, timeout: Option<u64>) -> Hook {
        let args = ["sh", "-c", script].map(|word| CString::new(word).unwrap()).to_vec();
        Hook {
            path: c"/bin/sh".into(),
            args,
            env: vec![c"PATH=/usr/bin:/bin".into(), c"A=1".into()],
            timeout: timeout.map(Duration::from_secs),
        }
    }

    #[test]
    fn the_state_is_on_standard_input() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("seen");
        let script = format!("cat > {0}; echo $A >> {0}", to.display());
        run(&shell(&script, None), b"{\"id\":\"x\"}").unwrap();
        assert_eq!(std::fs::read_to_string(to).unwrap(), "{\"id\":\"x\"}1\n");
    }

    #[test]
    fn a_failure_has_the_hooks_words() {
        let error = run_all("poststop", &[shell("echo no such thing >&2; exit 3", None)], b"{}").unwrap_err();
        let words = error.words();
        assert!(
            words.contains("hooks.poststop[0]") && words.contains("exit status 3: no such thing"),
            "{words}"
        );
        let missing = Hook { path: c"/no/such/hook".into(), ..shell("", None) };
        assert!(run(&missing, b"").unwrap_err().to_string().contains("No such file"));
    }

    #[test]
    fn regression_hooks_behind_a_failed_late_one_run() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("seen");
        let second = shell(&format!("cat > {}", to.display()), None);
        run_each("poststart", &[shell("exit 1", None), second], b"{}");
        assert_eq!(std::fs::read_to_string(to).unwrap(), "{}");
    }

    #[test]
    fn a_hook_that_does_not_end_is_killed() {
        let begun = Instant::now();
        let error = run(&shell("exec sleep 100", Some(1)), b"").unwrap_err();
        assert!(error.to_string().contains("within 1 s"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}
