//! Mounts that are there: asking them what they are, listing them, changing their flags.
//!
//! A mount answers through an extended attribute of its root. Nothing else of it is touched, and with a deadline
//! where many are asked, since a mount whose process is dead or stopped answers badly or never.

mod table;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use layerfs_unionfs::config::{Config, MountFlags};
use layerfs_unionfs::mount::{FS_TYPE, REPORT_XATTR};
use rustix::io::Errno;
use serde::Serialize;
use serde_json::Value;

use crate::commands::mount::Format;
use crate::exit::Hinted;
use crate::mountinfo::{MountEntry, MountTable, table_path};
use crate::ui;

/// How long a mount may take to answer when it is listed or unmounted.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers of one mount.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// Its report.
    Report(Value),
    /// Its process is gone.
    Dead,
    /// It did not answer in time.
    Silent,
    /// The kernel or the mount refused.
    Refused(Errno),
}

/// Asks the mount at `target`, waiting as long as it takes.
pub(crate) fn ask(target: &Path) -> Answer {
    let mut room = vec![0u8; 64 * 1024];
    match rustix::fs::getxattr(target, REPORT_XATTR, &mut room[..]) {
        Ok(length) => match serde_json::from_slice(room.get(..length).unwrap_or_default()) {
            Ok(report) => Answer::Report(report),
            Err(_) => Answer::Refused(Errno::BADMSG),
        },
        Err(Errno::NOTCONN | Errno::CONNABORTED) => Answer::Dead,
        Err(errno) => Answer::Refused(errno),
    }
}

/// Asks the mount at `target`, but not for ever. Leaves a thread behind when it stays silent.
pub(crate) fn ask_with_patience(target: &Path) -> Answer {
    let (sender, receiver) = mpsc::channel();
    let target = target.to_owned();
    let asking = std::thread::Builder::new().name("ask".to_owned()).spawn(move || {
        // Nobody listens any more when the patience ended first.
        sender.send(ask(&target)).ok();
    });
    match asking {
        Ok(_) => receiver.recv_timeout(PATIENCE).unwrap_or(Answer::Silent),
        Err(_) => Answer::Silent,
    }
}

/// True when the mount on top of `target` serves just what `config` describes.
pub(crate) fn serves(target: &Path, config: &Config) -> bool {
    let Ok((path, table)) = table_path(target).and_then(|p| Ok((p, MountTable::read()?))) else {
        // Whatever is wrong here, mounting will say it in its own words.
        return false;
    };
    if table.on_top(&path).is_none_or(|mount| mount.fs_type != FS_TYPE) {
        return false;
    }
    let Answer::Report(report) = ask(&path) else { return false };
    let absolute = |p: &PathBuf| std::path::absolute(p).unwrap_or_else(|_| p.clone());
    let lowers: Vec<PathBuf> = config.lowers.iter().map(|l| absolute(&l.path)).collect();
    let upper = config.upper.as_ref().map(|u| absolute(&u.upper));
    report::lowers(&report).is_some_and(|found| found == lowers) && report::upper(&report) == upper
}

/// What is read from a report. A report is written by the version of the program that mounted, so each field may
/// be missing or of another form.
pub(crate) mod report {
    use super::{Path, PathBuf, Value};

    /// The lower layers, top first.
    pub(crate) fn lowers(report: &Value) -> Option<Vec<PathBuf>> {
        report.get("lowers")?.as_array()?.iter().map(|l| l.as_str().map(PathBuf::from)).collect()
    }

    /// The upper.
    pub(crate) fn upper(report: &Value) -> Option<PathBuf> {
        report.get("upper")?.as_str().map(|u| Path::new(u).to_owned())
    }

    /// The mount's process, as its own pid namespace numbers it.
    pub(crate) fn pid(report: &Value) -> Option<i32> {
        report.get("pid")?.as_i64()?.try_into().ok()
    }

    /// How file data travels.
    pub(crate) fn io(report: &Value) -> Option<&str> {
        report.get("io")?.as_str()
    }
}

/// One mount of the list.
#[derive(Debug, Serialize)]
struct Row {
    target: String,
    /// `ok`, `dead`, `silent`, `covered` or `unknown`.
    state: &'static str,
    source: String,
    options: String,
    /// What the mount tells of itself; null when it is not `ok`.
    report: Option<Value>,
}

impl Row {
    fn of(mount: &MountEntry, table: &MountTable) -> Self {
        let (state, report) = if table.is_covered(mount) {
            // A path leads into what covers it.
            ("covered", None)
        } else {
            match ask_with_patience(&mount.target) {
                Answer::Report(report) => ("ok", Some(report)),
                Answer::Dead => ("dead", None),
                Answer::Silent => ("silent", None),
                Answer::Refused(_) => ("unknown", None),
            }
        };
        let text = |s: &OsStr| s.to_string_lossy().into_owned();
        Self {
            target: text(mount.target.as_os_str()),
            state,
            source: text(&mount.source),
            options: text(&mount.options),
            report,
        }
    }
}

/// `layerfs mount --list`.
///
/// # Errors
/// When the mount table cannot be read or stdout not be written.
pub(crate) fn list(format: Format) -> anyhow::Result<ExitCode> {
    let table = MountTable::read()?;
    let rows: Vec<Row> =
        table.0.iter().filter(|m| m.fs_type == FS_TYPE).map(|m| Row::of(m, &table)).collect();
    match format {
        Format::Json => {
            let mut text = serde_json::to_string_pretty(&rows).context("write the list as JSON")?;
            text.push('\n');
            ui::print(text)?;
        }
        Format::Table => {
            ui::print(table::render(&rows, ui::width()))?;
        }
    }
    for row in &rows {
        let words = match row.state {
            "dead" => "is dead, its process is gone",
            "silent" => "does not answer",
            _ => continue,
        };
        ui::note(format_args!("{} {words}; remove it with: layerfs umount --lazy {0}", row.target));
    }
    Ok(ExitCode::SUCCESS)
}

/// The layerfs mount that a lookup of `target` arrives in, under the name the table has for it.
///
/// # Errors
/// In words, when nothing is mounted there or something else is.
pub(crate) fn find(target: &Path) -> anyhow::Result<PathBuf> {
    let path = table_path(target)?;
    let table = MountTable::read()?;
    match table.on_top(&path) {
        Some(mount) if mount.fs_type == FS_TYPE => Ok(path),
        Some(mount) if table.0.iter().any(|m| m.target == path && m.fs_type == FS_TYPE) => {
            let kind = mount.fs_type.display();
            Err(Hinted {
                message: format!("{path:?} is covered by a mount of type {kind}"),
                hint: format!("unmount that first: umount {}", path.display()),
            }
            .into())
        }
        Some(mount) => bail!("{path:?} is a mount of type {}, not a layerfs mount", mount.fs_type.display()),
        None => bail!("{path:?} is not a layerfs mount: nothing is mounted there"),
    }
}

/// `-o remount`: gives the mount at `target` new flags.
///
/// # Errors
/// When there is no such mount, it cannot become writable, or the kernel refuses.
pub(crate) fn remount(target: &Path, flags: &MountFlags) -> anyhow::Result<()> {
    use rustix::mount::MountFlags as Kernel;
    let path = find(target)?;
    if !flags.read_only
        && let Answer::Report(report) = ask(&path)
        && report::upper(&report).is_none()
    {
        return Err(Hinted {
            message: format!("{path:?} cannot become writable, it has no upper"),
            hint: "unmount it, and mount it with upperdir= and workdir=".to_owned(),
        }
        .into());
    }
    let kernel = [
        (flags.read_only, Kernel::RDONLY),
        (flags.nodev, Kernel::NODEV),
        (flags.nosuid, Kernel::NOSUID),
        (flags.noexec, Kernel::NOEXEC),
        (flags.noatime, Kernel::NOATIME),
        (flags.nodiratime, Kernel::NODIRATIME),
        (flags.strictatime, Kernel::STRICTATIME),
        (!flags.noatime && !flags.strictatime, Kernel::RELATIME),
        (flags.lazytime, Kernel::LAZYTIME),
        (flags.sync, Kernel::SYNCHRONOUS),
        (flags.dirsync, Kernel::DIRSYNC),
        (flags.nosymfollow, Kernel::from_bits_retain(MS_NOSYMFOLLOW)),
    ]
    .into_iter()
    .filter(|(wanted, _)| *wanted)
    .fold(Kernel::empty(), |all, (_, flag)| all | flag);
    rustix::mount::mount_remount(&path, kernel, "").with_context(|| format!("remount {path:?}"))
}

/// `MS_NOSYMFOLLOW` of mount(2), Linux 5.10.
const MS_NOSYMFOLLOW: u32 = 256;
