//! A second process for tests: does one thing to a file, says what it saw on standard output.
//!
//! `layerfs-test-helper COMMAND FILE [ARGUMENT]`; commands that hold something print a line, then wait for the
//! end of standard input.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::PathBuf;

use rustix::fs::FlockOperation;

fn main() {
    let mut args = std::env::args_os().skip(1);
    let command = args.next().expect("a command").into_string().expect("a command in UTF-8");
    let path = PathBuf::from(args.next().expect("a file"));
    let argument = args.next().map(|text| text.into_string().expect("an argument in UTF-8"));
    let writable = || OpenOptions::new().read(true).write(true).open(&path).expect("open for writing");
    match command.as_str() {
        "append" => {
            let mut file = OpenOptions::new().append(true).open(&path).expect("open for appending");
            file.write_all(argument.expect("the text").as_bytes()).expect("append");
        }
        // Changes the first byte through a shared map.
        "poke" => {
            let mut map = layerfs_tests::sys::map_shared_mut(&writable()).expect("map");
            map[0] = argument.expect("the byte").as_bytes()[0];
            map.flush().expect("msync");
        }
        "flock" => {
            let file = File::open(&path).expect("open");
            hold(rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
        }
        "posix-lock" => {
            let file = writable();
            hold(rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
        }
        // Waits until the lock is free.
        "posix-lock-wait" => {
            let file = writable();
            rustix::fs::fcntl_lock(&file, FlockOperation::LockExclusive).expect("lock");
            hold(true);
        }
        other => panic!("unknown command {other:?}"),
    }
}

/// Says whether the lock was taken, and keeps it until standard input ends.
fn hold(taken: bool) {
    println!("{}", if taken { "locked" } else { "busy" });
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).expect("wait for the end of standard input");
}
