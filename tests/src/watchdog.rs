//! Bounded waits: a deadlock must become a failed test, not a hung one.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// Runs `work` on a thread of its own and waits for its end, no longer than `limit`.
///
/// When the limit passes, `on_timeout` is called (it should break whatever the threads wait for, such as by
/// killing the filesystem's process) and the test fails. The new thread shares the caller's mount namespace,
/// as namespaces are inherited.
pub fn bounded<T: Send>(
    limit: Duration,
    what: &str,
    on_timeout: impl FnOnce(),
    work: impl FnOnce() -> T + Send,
) -> T {
    std::thread::scope(|scope| {
        let (done, wait) = mpsc::channel();
        let name = std::thread::current().name().unwrap_or("bounded").to_owned();
        let worker = std::thread::Builder::new()
            .name(name)
            .spawn_scoped(scope, move || {
                let result = work();
                // The receiver is gone only after the time limit; the failure is reported there.
                let _gone = done.send(());
                result
            })
            .expect("start a thread");
        match wait.recv_timeout(limit) {
            // Disconnected means that the worker panicked: join reports it.
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {}
            Err(RecvTimeoutError::Timeout) => {
                on_timeout();
                panic!("{what}: not finished after {limit:?}: deadlock?");
            }
        }
        match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
