//! `layerfs logs`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use layerfs_runner::monitor::connection::Connection;
use layerfs_runner::monitor::protocol::Request;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::inotify;
use serde::Deserialize;

use super::store::{Container, Containers, LOG};
use crate::exit::Usage;
use crate::moment::{self, Moment};
use crate::ui;

/// Show what a container has written
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Only what was written since: a time, or how long ago (42m)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only what was written before: a time, or how long ago (42m)
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N", default_value = "all", allow_hyphen_values = true)]
    tail: String,
    /// With the time of each line
    #[arg(short, long)]
    timestamps: bool,
    /// With labels: there are none
    #[arg(long, hide = true)]
    details: bool,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// A line of the log.
#[derive(Debug, Deserialize)]
struct Entry {
    log: String,
    stream: String,
    time: String,
}

struct Reader {
    since: Option<Moment>,
    until: Option<Moment>,
    timestamps: bool,
}

pub(crate) fn logs(args: LogsArgs) -> anyhow::Result<ExitCode> {
    let time = |text: &Option<String>, name: &str| match text.as_deref() {
        None => Ok(None),
        Some(text) => moment::parse(text)
            .map(Some)
            .ok_or_else(|| Usage(format!("invalid value for \"{name}\": {text}"))),
    };
    let reader = Reader {
        since: time(&args.since, "since")?,
        until: time(&args.until, "until")?,
        timestamps: args.timestamps,
    };
    // As with docker, what is no number shows all.
    let tail = args.tail.parse::<usize>().ok();
    let containers = Containers::open()?;
    let container = containers.find(&args.container)?;
    if container.config.log_driver != "json-file" {
        bail!("configured logging driver does not support reading");
    }
    let path = container.directory.join(LOG);
    // Watched before it is read, so that nothing is missed between.
    let watch = match args.follow && container.record.is_watched() {
        true => watch(&container)?,
        false => None,
    };
    let mut file = reader.old(&path, tail)?;
    let Some((inotify, mut monitor)) = watch else { return Ok(ExitCode::SUCCESS) };
    let mut rest = Vec::new();
    let mut is_over = false;
    loop {
        reader.more(&path, &mut file, &mut rest)?;
        if is_over {
            return Ok(ExitCode::SUCCESS);
        }
        let mut wanted =
            [PollFd::new(&inotify, PollFlags::IN), PollFd::from_borrowed_fd(monitor.as_fd(), PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut wanted, None)).context("wait for more")?;
        let ended = !wanted[1].revents().is_empty();
        rustix::io::read(&inotify, &mut [0_u8; 4096]).ok();
        if ended {
            monitor.next_event().ok();
            is_over = true;
        }
    }
}

/// The directory of the log, and the monitor, which tells the end.
fn watch(container: &Container) -> anyhow::Result<Option<(std::os::fd::OwnedFd, Connection)>> {
    let Some(monitor) = container.connect()? else { return Ok(None) };
    if monitor.ask(Request::Wait { each: false }, None).is_err() {
        return Ok(None);
    }
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .context("watch the log")?;
    // The directory: the log may be replaced by a rotation, or not be there yet.
    let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE;
    inotify::add_watch(&fd, &container.directory, flags).context("watch the log")?;
    Ok(Some((fd, monitor)))
}

impl Reader {
    /// Shows what is there; the newest file at its end.
    fn old(&self, path: &Path, tail: Option<usize>) -> anyhow::Result<Option<BufReader<File>>> {
        let mut files: Vec<PathBuf> = (1..)
            .map(|number| {
                let mut name = path.as_os_str().to_owned();
                name.push(format!(".{number}"));
                PathBuf::from(name)
            })
            .take_while(|path| path.exists())
            .collect();
        files.reverse();
        files.push(path.to_owned());
        let mut last: VecDeque<Entry> = VecDeque::new();
        let mut ends = 0;
        let mut newest = None;
        for path in files {
            let file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                result => result.with_context(|| format!("open {}", path.display()))?,
            };
            let mut file = BufReader::new(file);
            let mut line = Vec::new();
            loop {
                let length = file.read_until(b'\n', &mut line).context("read the log")?;
                if length == 0 || !line.ends_with(b"\n") {
                    // Written in one piece: an end in the middle is the writer's, in the moment of it.
                    let back = i64::try_from(line.len()).unwrap_or(0);
                    file.seek_relative(-back).context("read the log")?;
                    break;
                }
                if let Some(entry) = self.entry(&line) {
                    match tail {
                        None => self.show(&entry)?,
                        Some(0) => {}
                        Some(most) => {
                            // Parts of one line count once.
                            ends += usize::from(entry.log.ends_with('\n'));
                            last.push_back(entry);
                            while ends > most {
                                let first = last.pop_front();
                                ends -= usize::from(first.is_some_and(|entry| entry.log.ends_with('\n')));
                            }
                        }
                    }
                }
                line.clear();
            }
            newest = Some(file);
        }
        for entry in &last {
            self.show(entry)?;
        }
        Ok(newest)
    }

    /// Shows what has come since.
    fn more(
        &self,
        path: &Path,
        file: &mut Option<BufReader<File>>,
        rest: &mut Vec<u8>,
    ) -> anyhow::Result<()> {
        loop {
            if let Some(file) = file.as_mut() {
                while file.read_until(b'\n', rest).context("read the log")? > 0 && rest.ends_with(b"\n") {
                    if let Some(entry) = self.entry(rest) {
                        self.show(&entry)?;
                    }
                    rest.clear();
                }
            }
            let same = |open: &File, there: &File| -> io::Result<bool> {
                use std::os::unix::fs::MetadataExt;
                Ok(open.metadata()?.ino() == there.metadata()?.ino())
            };
            match File::open(path) {
                Ok(there) => match file.as_ref() {
                    Some(open) if same(open.get_ref(), &there).context("look at the log")? => return Ok(()),
                    // A rotation; the old file was read to its end above.
                    _ => *file = Some(BufReader::new(there)),
                },
                Err(_) => return Ok(()),
            }
        }
    }

    /// A line that is to be shown.
    fn entry(&self, line: &[u8]) -> Option<Entry> {
        let entry: Entry = serde_json::from_slice(line).ok()?;
        let time = layerfs_image::time::parse(&entry.time).unwrap_or_default();
        let is_wanted =
            self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time <= until);
        is_wanted.then_some(entry)
    }

    fn show(&self, entry: &Entry) -> anyhow::Result<()> {
        let mut text = String::new();
        if self.timestamps {
            text.push_str(&entry.time);
            text.push(' ');
        }
        text.push_str(&entry.log);
        match ui::pass_on(entry.stream == "stderr", text.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            result => result.context("print the log"),
        }
    }
}
