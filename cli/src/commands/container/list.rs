//! `layerfs ps`, and filters of containers.

use std::process::ExitCode;

use clap::Args;
use layerfs_image::time;
use layerfs_network::Lease;
use layerfs_runner::monitor::health::Health;
use layerfs_runner::monitor::record::Status;
use serde_json::{Value, json};

use super::config::MountSpec;
use super::network;
use super::prune::disk_usage;
use super::store::{Container, Containers};
use crate::exit::Usage;
use crate::images::{human, listing};
use crate::ui::visible::visible;
use crate::{moment, ui};

/// List containers
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Only some: id, name, label, status, exited, ancestor, before, since, volume, network, health, publish, expose
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// `table`, `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// The last N made, in any state
    #[arg(short = 'n', long, value_name = "N", allow_negative_numbers = true)]
    last: Option<i64>,
    /// The last one made, in any state
    #[arg(short, long)]
    latest: bool,
    /// Do not cut
    #[arg(long)]
    no_trunc: bool,
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
    /// Also their sizes
    #[arg(short, long)]
    size: bool,
}

const HEADERS: [listing::Column; 10] = [
    ("CONTAINER ID", "ID"),
    ("IMAGE", "Image"),
    ("COMMAND", "Command"),
    ("CREATED", "RunningFor"),
    ("CREATED AT", "CreatedAt"),
    ("STATUS", "Status"),
    ("PORTS", "Ports"),
    ("NAMES", "Names"),
    ("SIZE", "Size"),
    ("LOCAL VOLUMES", "LocalVolumes"),
];

const KNOWN: [&str; 14] = [
    "id", "name", "label", "label!", "status", "exited", "ancestor", "before", "since", "volume", "network",
    "health", "publish", "expose",
];

pub(crate) fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let filters = Filters::parse(&args.filter, &KNOWN)?;
    let containers = Containers::open()?;
    let all = containers.all()?;
    let last = if args.latest { Some(1) } else { args.last.filter(|count| *count >= 0) };
    let shows_all = args.all || last.is_some() || filters.is_about_state();
    let wanted = all.iter().filter(|container| {
        (shows_all || matches!(container.record.status, Status::Running | Status::Restarting))
            && filters.admit(container, &all)
    });
    let most = last.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    let found: Vec<&Container> = wanted.take(most).collect();
    if args.quiet && args.format.is_none() {
        let id = |container: &&Container| {
            format!("{}\n", if args.no_trunc { container.id() } else { container.short() })
        };
        ui::print(found.iter().map(id).collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let wants_size = args.size || args.format.as_deref().is_some_and(|format| format.contains(".Size"));
    let leases = network::all_leases();
    let rows: Vec<Value> =
        found.iter().map(|container| row(container, &leases, args.no_trunc, wants_size)).collect();
    let mut columns = vec![
        ("CONTAINER ID", "ID"),
        ("IMAGE", "Image"),
        ("COMMAND", "Command"),
        ("CREATED", "RunningFor"),
        ("STATUS", "Status"),
        ("PORTS", "Ports"),
        ("NAMES", "Names"),
    ];
    if args.size {
        columns.push(("SIZE", "Size"));
    }
    listing::print(&rows, &columns, &HEADERS, args.format.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

fn row(container: &Container, leases: &[Lease], whole: bool, wants_size: bool) -> Value {
    let config = &container.config;
    let created = seconds(&config.created);
    let quoted = |word: String| if word.contains(' ') { format!("'{word}'") } else { word };
    let command = config.args().into_iter().map(quoted).collect::<Vec<_>>().join(" ");
    let command = match whole || command.chars().count() <= 20 {
        true => command,
        false => format!("{}…", command.chars().take(19).collect::<String>()),
    };
    let command = visible(&command);
    let labels: Vec<String> = config.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let size = match wants_size {
        true => human::size(disk_usage(&container.directory.join("upper"))),
        false => "0B".into(),
    };
    let mount = |mount: &MountSpec| {
        let name = match mount {
            MountSpec::Bind { source, .. } => source.display().to_string(),
            MountSpec::Volume { name, .. } => name.clone(),
            MountSpec::Image { name, .. } => name.clone(),
            MountSpec::Tmpfs { .. } => return None,
        };
        Some(match whole || name.chars().count() <= 15 {
            true => name,
            false => format!("{}…", name.chars().take(14).collect::<String>()),
        })
    };
    let mounts: Vec<String> = config.mounts.iter().filter_map(mount).collect();
    let volumes = config.mounts.iter().filter(|mount| matches!(mount, MountSpec::Volume { .. })).count();
    let ports = match container.record.status {
        Status::Running => super::ports_column::ports_column(config, leases),
        _ => String::new(),
    };
    let mut networks = vec![config.network.word()];
    networks.extend(config.networking.others.keys().cloned());
    json!({
        "ID": if whole { container.id() } else { container.short() },
        "Names": config.name,
        "Image": config.image_name,
        "Command": format!("\"{command}\""),
        "CreatedAt": human::date(created),
        "RunningFor": human::since(created),
        "Status": status(container),
        "State": container.word(),
        "Ports": ports,
        "Size": size,
        "Labels": labels.join(","),
        "Mounts": mounts.join(","),
        "LocalVolumes": volumes.to_string(),
        "Networks": networks.join(","),
    })
}

/// Seconds since 1970 of a time in a document.
pub(super) fn seconds(text: &str) -> i64 {
    time::parse(text).map_or(0, |(seconds, _)| seconds)
}

/// `Up 3 minutes`, in docker's words.
fn status(container: &Container) -> String {
    let record = &container.record;
    let ago = |text: &str| human::duration(human::now().saturating_sub(seconds(text)).max(0));
    match record.status {
        Status::Running if container.is_paused() => format!("Up {} (Paused)", ago(&record.started_at)),
        Status::Running => {
            let health = match record.health.as_ref().map(|health| health.status) {
                None => "",
                Some(Health::Starting) => " (health: starting)",
                Some(Health::Healthy) => " (healthy)",
                Some(Health::Unhealthy) => " (unhealthy)",
            };
            format!("Up {}{health}", ago(&record.started_at))
        }
        Status::Restarting => format!("Restarting ({}) {} ago", record.exit_code, ago(&record.finished_at)),
        Status::Exited => format!("Exited ({}) {} ago", record.exit_code, ago(&record.finished_at)),
        Status::Created => "Created".into(),
        Status::Removing => "Removal In Progress".into(),
        Status::Dead => "Dead".into(),
    }
}

/// `--filter`: values of one name are alternatives, names are all required.
#[derive(Debug, Default)]
pub(super) struct Filters(Vec<(String, Vec<String>)>);

impl Filters {
    pub(super) fn parse(texts: &[String], known: &[&str]) -> anyhow::Result<Self> {
        let mut filters = Self::default();
        for text in texts {
            let (name, value) = text
                .split_once('=')
                .ok_or_else(|| Usage(format!("bad format of filter {text:?} (expected name=value)")))?;
            if !known.contains(&name) {
                return Err(Usage(format!("invalid filter '{name}'; there are {}", known.join(", "))).into());
            }
            let states = ["created", "running", "paused", "restarting", "removing", "exited", "dead"];
            match name {
                "status" if !states.contains(&value) => {
                    return Err(Usage(format!("invalid filter 'status={value}'")).into());
                }
                "health" if !["starting", "healthy", "unhealthy", "none"].contains(&value) => {
                    return Err(Usage(format!("invalid filter 'health={value}'")).into());
                }
                "exited" if value.parse::<u8>().is_err() => {
                    return Err(Usage(format!("invalid filter 'exited={value}'")).into());
                }
                "until" if moment::parse(value).is_none() => {
                    return Err(Usage(format!(
                        "filter until={value}: a time of RFC 3339, or how long ago: 24h"
                    ))
                    .into());
                }
                _ => {}
            }
            match filters.0.iter_mut().find(|(own, _)| own == name) {
                Some((_, values)) => values.push(value.to_owned()),
                None => filters.0.push((name.to_owned(), vec![value.to_owned()])),
            }
        }
        Ok(filters)
    }

    fn is_about_state(&self) -> bool {
        self.0.iter().any(|(name, _)| matches!(name.as_str(), "status" | "exited"))
    }

    pub(super) fn admit(&self, container: &Container, all: &[Container]) -> bool {
        self.0.iter().all(|(name, values)| match name.as_str() {
            // All of them.
            "label" => values.iter().all(|value| has_label(container, value)),
            "label!" => values.iter().all(|value| !has_label(container, value)),
            name => values.iter().any(|value| admits(name, value, container, all)),
        })
    }
}

fn has_label(container: &Container, text: &str) -> bool {
    let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
    container.config.labels.get(name).is_some_and(|own| value.is_none_or(|value| value == own))
}

fn admits(name: &str, value: &str, container: &Container, all: &[Container]) -> bool {
    let config = &container.config;
    let created_of = |name: &str| {
        let other = all.iter().find(|other| other.config.name == name || other.id().starts_with(name));
        other.map(|other| other.config.created.clone()).unwrap_or_default()
    };
    match name {
        "id" => config.id.starts_with(value),
        "name" => {
            let (start, value) = match value.strip_prefix('^') {
                Some(value) => (true, value.strip_prefix('/').unwrap_or(value)),
                None => (false, value.strip_prefix('/').unwrap_or(value)),
            };
            match (start, value.strip_suffix('$')) {
                (true, Some(value)) => config.name == value,
                (true, None) => config.name.starts_with(value),
                (false, Some(value)) => config.name.ends_with(value),
                (false, None) => config.name.contains(value),
            }
        }
        "status" => container.word() == value,
        "exited" => {
            container.record.status == Status::Exited && container.record.exit_code.to_string() == value
        }
        "ancestor" => {
            let id = config.image.as_deref().unwrap_or_default();
            let hex = id.split_once(':').map_or(id, |(_, hex)| hex);
            config.image_name == value
                || config.image_name == format!("{value}:latest")
                || id == value
                || (value.len() >= 4 && hex.starts_with(value))
        }
        "before" => config.created < created_of(value),
        "since" => config.created > created_of(value) && !created_of(value).is_empty(),
        "volume" => config.mounts.iter().any(|mount| match mount {
            MountSpec::Bind { source, target, .. } => target == value || source.as_os_str() == value,
            MountSpec::Volume { name, target, .. } => target == value || name == value,
            other => other.target() == value,
        }),
        "network" => config.network.word() == value || config.networking.others.contains_key(value),
        "health" => {
            let health = container.record.health.as_ref().filter(|_| container.is_running());
            health.map_or("none", |health| health.status.word()) == value
        }
        "publish" => {
            config.networking.ports.iter().any(|mapping| is_port(value, &mapping.container.to_string()))
        }
        "expose" => config.exposed.iter().any(|port| is_port(value, port)),
        "until" => moment::parse(value)
            .is_some_and(|until| time::parse(&config.created).is_some_and(|time| time < until)),
        _ => false,
    }
}

/// Whether a port (`80/tcp`) is the one that a filter names, or in its range: `80`, `80/udp`, `8000-8080/tcp`.
fn is_port(wanted: &str, port: &str) -> bool {
    let (wanted, protocol) = wanted.split_once('/').unwrap_or((wanted, "tcp"));
    let (first, last) = wanted.split_once('-').unwrap_or((wanted, wanted));
    let (number, own_protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let parsed = |text: &str| text.parse::<u16>().ok();
    match (parsed(first), parsed(last), parsed(number)) {
        (Some(first), Some(last), Some(number)) => {
            (first..=last).contains(&number) && protocol == own_protocol
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::ContainerConfig;
    use super::*;
    use layerfs_runner::monitor::record::Record;

    fn container(name: &str, created: &str) -> Container {
        let config = ContainerConfig {
            id: format!("{name:0<64}"),
            name: name.into(),
            created: created.into(),
            image_name: "busybox:latest".into(),
            labels: [("role".to_owned(), "db".to_owned())].into(),
            ..ContainerConfig::default()
        };
        Container { directory: "/nowhere".into(), record: Record::new(&config.id), config }
    }

    #[test]
    fn filters_are_dockers() {
        let all = [container("one", "2026-01-01T00:00:00Z"), container("two", "2026-01-02T00:00:00Z")];
        let admitted = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            let filters = Filters::parse(&texts, &KNOWN).unwrap();
            all.iter().filter(|c| filters.admit(c, &all)).map(|c| c.config.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(admitted(&[]), ["one", "two"]);
        assert_eq!(admitted(&["name=^on"]), ["one"]);
        assert_eq!(admitted(&["name=one", "name=two"]), ["one", "two"]);
        assert_eq!(admitted(&["label=role=db", "status=created"]), ["one", "two"]);
        assert_eq!(admitted(&["label=role=web"]), [""; 0]);
        assert_eq!(admitted(&["before=two"]), ["one"]);
        assert_eq!(admitted(&["since=one"]), ["two"]);
        assert_eq!(admitted(&["ancestor=busybox"]), ["one", "two"]);
        for wrong in ["x", "what=1", "status=odd", "exited=x"] {
            assert!(Filters::parse(&[wrong.to_owned()], &KNOWN).is_err(), "{wrong}");
        }
    }
}
