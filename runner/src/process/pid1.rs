//! An init of this runtime's own: process 1 of a container whose program does not care for orphans.
//!
//! The program is its child. It passes signals on, waits for whoever dies, and ends as the program ended, which ends
//! every process of its pid namespace.

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags};
use rustix::process::WaitOptions;

use crate::config::Process;
use crate::step::{Doing, StepError};
use crate::sys::process::Forked;
use crate::sys::signal::SignalFd;
use crate::{capabilities, sys};

/// Not passed on: they are about this process, cannot be caught, or stop and continue a job.
const OWN: [i32; 8] = [
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGCHLD,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGABRT,
];

/// Makes the program's process. Returns there; the caller stays behind as init.
pub(super) fn fork_program(process: &Process) -> Result<(), StepError> {
    let signals: Vec<i32> = (1..=64).filter(|signal| !OWN.contains(signal)).chain([libc::SIGCHLD]).collect();
    sys::signal::block(&signals).doing(|| "block signals".into())?;
    match sys::process::fork_into(0).doing(|| "make the program's process".into())? {
        Forked::Child => {
            let words = || "begin a process group".to_owned();
            rustix::process::setpgid(None, None).doing(words)?;
            if process.terminal.is_some() {
                // Blocked SIGTTOU lets a background process do so.
                rustix::termios::tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpgrp())
                    .doing(words)?;
            }
            sys::signal::unblock_all().doing(words)
        }
        Forked::Parent { pidfd, pid } => {
            // As little as the program has.
            let rights =
                capabilities::apply(&process.capabilities).and_then(|()| match process.no_new_privileges {
                    true => rustix::thread::set_no_new_privs(true).doing(|| "set no_new_privs".into()),
                    false => Ok(()),
                });
            rustix::thread::set_name(c"init").ok();
            // What the runtime was called with, its paths on the machine among it, is nothing for the container to read.
            sys::process::replace_arguments(b"init").ok();
            // The channel must close when the program runs, and no descriptor of the parent may stay.
            if rights.is_err() || sys::process::close_from_except(3, &[pidfd.as_fd()]).is_err() {
                sys::process::exit_now(125);
            }
            let status = match SignalFd::new(&signals) {
                Ok(signals) => serve(&signals, &pidfd, pid),
                Err(_) => 125,
            };
            sys::process::exit_now(status)
        }
    }
}

fn serve(signals: &SignalFd, program: &std::os::fd::OwnedFd, pid: rustix::process::Pid) -> i32 {
    loop {
        let mut wanted = [PollFd::new(signals, PollFlags::IN)];
        match rustix::event::poll(&mut wanted, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return 125,
        }
        while let Ok(Some(signal)) = signals.next() {
            if signal == libc::SIGCHLD {
                continue;
            }
            // It may have died this moment.
            sys::signal::send(program, signal).ok();
        }
        while let Ok(Some((who, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if who == pid {
                return match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => code,
                    (None, signal) => 128 + signal.unwrap_or(0),
                };
            }
        }
    }
}
