//! `layerfs events`: what has happened, and what happens.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify;
use serde_json::Value;

use crate::exit::Usage;
use crate::images::{human, template::Template};
use crate::moment;
use crate::{events, ui};

/// Show what happens to containers, images, volumes and networks
#[derive(Debug, Args)]
#[command(after_help = "\
Examples
  layerfs events                                        from now on
  layerfs events --since 10m --until 0s                 the last ten minutes, then end
  layerfs events --filter type=container --filter event=die
  layerfs events --format '{{.Action}} {{.Actor.ID}}'")]
pub(crate) struct EventsArgs {
    /// Also what was before: a time, or how long ago (42m)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// End then: a time, or how long ago
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only some: container, event, image, label, network, scope, type, volume
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// `json` or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

const FILTERS: [&str; 8] = ["container", "event", "image", "label", "network", "scope", "type", "volume"];

struct Wanted {
    since: i64,
    until: Option<i64>,
    filters: Vec<(String, Vec<String>)>,
    format: Format,
}

enum Format {
    Line,
    Json,
    Template(Template),
}

pub(crate) fn events(args: EventsArgs) -> anyhow::Result<ExitCode> {
    let wanted = wanted(&args)?;
    let [older, current] = events::files()?;
    let directory = current.parent().context("the store has a directory")?;
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    // Watched before it is read: nothing is missed between.
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .context("watch the events")?;
    let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_FROM;
    inotify::add_watch(&watch, directory, flags).context("watch the events")?;
    if args.since.is_some()
        && let Ok(file) = File::open(&older)
    {
        wanted.read(&mut BufReader::new(file))?;
    }
    let mut reader = File::open(&current).ok().map(BufReader::new);
    if args.since.is_none()
        && let Some(reader) = &mut reader
    {
        reader.seek(std::io::SeekFrom::End(0)).context("read the events")?;
    }
    loop {
        if let Some(reader) = &mut reader
            && !wanted.read(reader)?
        {
            return Ok(ExitCode::SUCCESS);
        }
        // A new file has taken its place when it had grown long. What came to the old one last was read just now.
        let is_other = match (&reader, std::fs::metadata(&current)) {
            (Some(reader), Ok(now)) => reader.get_ref().metadata().is_ok_and(|own| own.ino() != now.ino()),
            (None, Ok(_)) => true,
            (_, Err(_)) => false,
        };
        if is_other {
            reader = File::open(&current).ok().map(BufReader::new);
            continue;
        }
        let timeout = match wanted.until.map(|until| until - human::now()) {
            Some(left) if left <= 0 => return Ok(ExitCode::SUCCESS),
            Some(left) => Some(Timespec { tv_sec: left, tv_nsec: 0 }),
            None => None,
        };
        let mut fds = [PollFd::new(&watch, PollFlags::IN)];
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for events"),
        }
        rustix::io::read(&watch, &mut [0_u8; 4096]).ok();
    }
}

fn wanted(args: &EventsArgs) -> anyhow::Result<Wanted> {
    let time = |name: &str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => moment::parse(text).map(|(seconds, _)| Some(seconds)).ok_or_else(|| {
            anyhow::Error::from(Usage(format!("--{name} {text:?}: a time of RFC 3339, or how long ago: 10m")))
        }),
    };
    let mut filters: Vec<(String, Vec<String>)> = Vec::new();
    for text in &args.filter {
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| Usage(format!("bad format of filter {text:?} (expected name=value)")))?;
        if !FILTERS.contains(&name) {
            return Err(Usage(format!("invalid filter '{name}'; there are {}", FILTERS.join(", "))).into());
        }
        match filters.iter_mut().find(|(own, _)| own == name) {
            Some((_, values)) => values.push(value.to_owned()),
            None => filters.push((name.to_owned(), vec![value.to_owned()])),
        }
    }
    Ok(Wanted {
        since: time("since", &args.since)?.unwrap_or(0),
        until: time("until", &args.until)?,
        filters,
        format: match args.format.as_deref() {
            None => Format::Line,
            Some("json" | "{{json .}}") => Format::Json,
            Some(text) => Format::Template(Template::parse(text)?),
        },
    })
}

impl Wanted {
    /// Prints what is there of it. False when an event after the end was seen.
    fn read(&self, reader: &mut impl BufRead) -> anyhow::Result<bool> {
        let mut line = Vec::new();
        loop {
            line.clear();
            reader.read_until(b'\n', &mut line).context("read the events")?;
            if line.is_empty() {
                return Ok(true);
            }
            // What a killed process has half written is no event.
            let Ok(event) = serde_json::from_slice::<Value>(&line) else { continue };
            let time = event["time"].as_i64().unwrap_or(0);
            if self.until.is_some_and(|until| time > until) {
                return Ok(false);
            }
            if time >= self.since && self.admits(&event) {
                self.print(&event)?;
            }
        }
    }

    fn admits(&self, event: &Value) -> bool {
        self.filters.iter().all(|(name, values)| {
            // All labels, one of the others.
            if name == "label" {
                return values.iter().all(|value| admits(event, name, value));
            }
            values.iter().any(|value| admits(event, name, value))
        })
    }

    fn print(&self, event: &Value) -> anyhow::Result<()> {
        let line = match &self.format {
            Format::Line => line(event),
            Format::Json => event.to_string(),
            Format::Template(template) => template.render(&fields(event))?,
        };
        ui::print(format!("{line}\n"))?;
        Ok(())
    }
}

fn admits(event: &Value, name: &str, value: &str) -> bool {
    let kind = event["Type"].as_str().unwrap_or_default();
    let action = event["Action"].as_str().unwrap_or_default();
    let id = event["Actor"]["ID"].as_str().unwrap_or_default();
    let attribute = |name: &str| event["Actor"]["Attributes"][name].as_str();
    let is_named =
        || id == value || (value.len() >= 2 && id.starts_with(value)) || attribute("name") == Some(value);
    match name {
        "type" => kind == value,
        "event" => action == value || action.split(':').next() == Some(value),
        "scope" => event["scope"] == value,
        "container" | "network" | "volume" if kind == name => is_named(),
        "container" => attribute("container").is_some_and(|id| id == value || id.starts_with(value)),
        "image" => {
            let is = |name: &str| name == value || name.split(':').next() == Some(value);
            attribute("image").is_some_and(is)
                || (kind == "image" && (is_named() || attribute("name").is_some_and(is)))
        }
        "label" => match value.split_once('=') {
            Some((name, value)) => attribute(name) == Some(value),
            None => attribute(value).is_some(),
        },
        _ => false,
    }
}

/// The fields of a template. Those that docker has in small letters in JSON begin with a capital in Go.
fn fields(event: &Value) -> Value {
    let mut fields = event.clone();
    if let Some(fields) = fields.as_object_mut() {
        for (name, known) in [
            ("Status", "status"),
            ("ID", "id"),
            ("From", "from"),
            ("Scope", "scope"),
            ("Time", "time"),
            ("TimeNano", "timeNano"),
        ] {
            let value = event.get(known).cloned().unwrap_or_else(|| "".into());
            fields.insert(name.to_owned(), value);
        }
    }
    fields
}

/// Docker's line: time, kind, action, id and attributes.
fn line(event: &Value) -> String {
    let nanoseconds = event["timeNano"].as_u64().unwrap_or(0);
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(nanoseconds);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let attributes = event["Actor"]["Attributes"].as_object();
    let attributes: Vec<String> =
        attributes.into_iter().flatten().map(|(name, value)| format!("{name}={}", text(value))).collect();
    let words = [
        layerfs_runner::runtime::time::rfc3339(time),
        text(&event["Type"]),
        text(&event["Action"]),
        text(&event["Actor"]["ID"]),
    ];
    format!("{} ({})", words.join(" "), attributes.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn filters_are_dockers() {
        let event = json!({"Type": "container", "Action": "health_status: healthy", "scope": "local",
            "Actor": {"ID": "abcdef", "Attributes": {"image": "busybox:1", "name": "web", "role": "db"}}});
        for (name, value, expected) in [
            ("type", "container", true),
            ("type", "image", false),
            ("event", "health_status", true),
            ("event", "start", false),
            ("container", "web", true),
            ("container", "abc", true),
            ("container", "other", false),
            ("image", "busybox", true),
            ("image", "alpine", false),
            ("label", "role=db", true),
            ("label", "role", true),
            ("label", "role=web", false),
            ("network", "web", false),
        ] {
            assert_eq!(admits(&event, name, value), expected, "{name}={value}");
        }
    }
}
