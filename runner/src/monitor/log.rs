//! A container's log in docker's json-file form: one JSON object per line with `log`, `stream` and `time`, in files that
//! are rotated by size and count.
//!
//! A line of the program is one object. Where a program writes without ends of lines, an object has at most
//! [`LINE_MAX`] bytes of it, and no end of line in `log` says that it goes on in the next.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use crate::runtime::time::rfc3339;

/// So many bytes of a line are one object, as with docker.
pub const LINE_MAX: usize = 16 * 1024;

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output, and a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// When a file is full, and how many are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rotation {
    /// Bytes of one file; `None` lets it grow.
    pub max_size: Option<u64>,
    /// Files, the one that is written to included; 0 and 1 keep no other.
    pub max_files: u32,
}

/// The log, open for writing.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    rotation: Rotation,
    /// What has come of a line that is not at its end, by stream.
    partial: [Vec<u8>; 2],
}

#[derive(Serialize)]
struct Entry<'a> {
    log: &'a str,
    stream: Stream,
    time: &'a str,
}

impl Log {
    /// Opens the log at `path`, behind what is in it.
    ///
    /// # Errors
    /// Of the filesystem.
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, rotation, partial: [Vec::new(), Vec::new()] })
    }

    /// Takes what a stream has given; whole lines are written at once.
    ///
    /// # Errors
    /// Of the filesystem.
    pub fn take(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let mut rest = part;
            while !rest.is_empty() {
                let held = self.held(stream).len();
                let (now, later) = rest.split_at(rest.len().min(LINE_MAX.saturating_sub(held)));
                self.held(stream).extend_from_slice(now);
                rest = later;
                if now.ends_with(b"\n") || self.held(stream).len() >= LINE_MAX {
                    self.write_held(stream)?;
                }
            }
        }
        Ok(())
    }

    /// Writes what is held back of lines without an end: the streams are at theirs.
    ///
    /// # Errors
    /// Of the filesystem.
    pub fn finish(&mut self) -> io::Result<()> {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !self.held(stream).is_empty() {
                self.write_held(stream)?;
            }
        }
        Ok(())
    }

    fn held(&mut self, stream: Stream) -> &mut Vec<u8> {
        let [out, err] = &mut self.partial;
        match stream {
            Stream::Stdout => out,
            Stream::Stderr => err,
        }
    }

    fn write_held(&mut self, stream: Stream) -> io::Result<()> {
        let line = std::mem::take(self.held(stream));
        let time = rfc3339(SystemTime::now());
        // The form has text only: other bytes become the replacement character, as with docker.
        let log = String::from_utf8_lossy(&line);
        let mut text = serde_json::to_vec(&Entry { log: &log, stream, time: &time })?;
        text.push(b'\n');
        let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
        let is_full = self.rotation.max_size.is_some_and(|max| self.size > 0 && self.size + length > max);
        if is_full {
            self.rotate()?;
        }
        // In one write: a reader never sees half an object, and a full disk is noticed here.
        self.file.write_all(&text)?;
        self.size += length;
        Ok(())
    }

    /// `log` becomes `log.1`, that `log.2`, and the last goes.
    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        let last = self.rotation.max_files.saturating_sub(1);
        for number in (0..last).rev() {
            let from = if number == 0 { self.path.clone() } else { numbered(number) };
            match fs::rename(from, numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if last == 0 {
            fs::remove_file(&self.path)?;
        }
        self.file = open(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(path: &Path) -> Vec<(String, String)> {
        let text = fs::read_to_string(path).unwrap();
        let parse = |line: &str| -> (String, String) {
            let entry: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(entry["time"].as_str().unwrap().ends_with('Z'));
            (entry["stream"].as_str().unwrap().to_owned(), entry["log"].as_str().unwrap().to_owned())
        };
        text.lines().map(parse).collect()
    }

    #[test]
    fn lines_are_whole_and_streams_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::open(&path, Rotation::default()).unwrap();
        log.take(Stream::Stdout, b"one\ntw").unwrap();
        log.take(Stream::Stderr, b"error\n").unwrap();
        log.take(Stream::Stdout, b"o\nno end").unwrap();
        log.finish().unwrap();
        let of = |stream: &str, text: &str| (stream.to_owned(), text.to_owned());
        let expected =
            [of("stdout", "one\n"), of("stderr", "error\n"), of("stdout", "two\n"), of("stdout", "no end")];
        assert_eq!(entries(&path), expected);
        let mut log = Log::open(&path, Rotation::default()).unwrap();
        log.take(Stream::Stdout, b"later\n").unwrap();
        assert_eq!(entries(&path).len(), 5);
    }

    #[test]
    fn a_line_without_end_is_cut_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::open(&path, Rotation::default()).unwrap();
        log.take(Stream::Stdout, &vec![b'x'; LINE_MAX + 10]).unwrap();
        log.take(Stream::Stdout, b"\n").unwrap();
        let entries = entries(&path);
        let lengths: Vec<_> = entries.iter().map(|(_, text)| text.len()).collect();
        assert_eq!(lengths, [LINE_MAX, 11]);
    }

    #[test]
    fn files_are_rotated_by_size_and_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let rotation = Rotation { max_size: Some(300), max_files: 3 };
        let mut log = Log::open(&path, rotation).unwrap();
        for number in 0..40 {
            log.take(Stream::Stdout, format!("line {number}\n").as_bytes()).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        let (second, first) = (dir.path().join("log.1"), dir.path().join("log.2"));
        let all: Vec<_> = [first, second, path].iter().flat_map(|path| entries(path)).collect();
        assert_eq!(all.last().unwrap().1, "line 39\n");
        let numbers: Vec<u32> = all.iter().map(|(_, text)| text.trim()[5..].parse().unwrap()).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
        for file in fs::read_dir(dir.path()).unwrap() {
            assert!(file.unwrap().metadata().unwrap().len() <= 300);
        }
    }

    #[test]
    fn one_file_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::open(&path, Rotation { max_size: Some(150), max_files: 1 }).unwrap();
        for _ in 0..10 {
            log.take(Stream::Stderr, b"a line\n").unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(fs::metadata(&path).unwrap().len() <= 150);
    }
}
