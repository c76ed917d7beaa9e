//! Where the log of a mount goes, and how much of it: `--log`, `--log-level`, `LAYERFS_LOG`, `LAYERFS_LOG_FILE`.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Context;
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    /// What went wrong.
    Error,
    /// Also what was done otherwise than asked (the default).
    Warn,
    /// Also what was decided at mount.
    Info,
    /// Also refused requests, and the FUSE library's own messages.
    Debug,
    /// Every request.
    Trace,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// The options of the command line; flattened into each command that mounts.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Log")]
pub(crate) struct LogArgs {
    /// Append the log of the mount process to FILE instead of stderr
    ///
    /// In the background stderr is closed once the mount answers: without a file the log ends there. The
    /// environment variable LAYERFS_LOG_FILE names a file too.
    #[arg(long = "log", value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// How much to log [default: warn]
    ///
    /// The environment variable LAYERFS_LOG takes the same words, or filters such as
    /// `warn,layerfs_unionfs=trace`.
    #[arg(long, value_name = "LEVEL", value_enum)]
    log_level: Option<Level>,
}

impl LogArgs {
    /// What was asked, with the environment filling the gaps.
    pub(crate) fn options(&self) -> LogOptions {
        let mut options = LogOptions::from_env();
        if let Some(file) = &self.log_file {
            options.file = Some(file.clone());
        }
        if let Some(level) = self.log_level {
            options.filter = level.word().to_owned();
        }
        options
    }
}

/// Destination and filter of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogOptions {
    /// Appended to; `None` is stderr.
    pub(crate) file: Option<PathBuf>,
    /// A level, or directives of `tracing`'s filter.
    pub(crate) filter: String,
}

impl LogOptions {
    /// From `LAYERFS_LOG` and `LAYERFS_LOG_FILE` alone, for callers that cannot pass options.
    pub(crate) fn from_env() -> Self {
        let set = |name| std::env::var_os(name).filter(|v| !v.is_empty());
        Self {
            file: set("LAYERFS_LOG_FILE").map(PathBuf::from),
            filter: set("LAYERFS_LOG")
                .and_then(|v| v.into_string().ok())
                .unwrap_or_else(|| "warn".to_owned()),
        }
    }

    /// As [`Self::from_env`], with debug messages when asked for by `-d` or `-o debug`.
    pub(crate) fn with_debug(mut self, debug: bool) -> Self {
        if debug && self.filter == "warn" {
            self.filter = Level::Debug.word().to_owned();
        }
        self
    }

    /// Starts logging in this process. Does nothing when a log was started already.
    ///
    /// # Errors
    /// When the file cannot be opened, or the filter has no meaning.
    pub(crate) fn start(&self) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(&self.filter)
            .with_context(|| format!("log filter {:?}: write a level such as info", self.filter))?;
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
        // Refused only where a log was started already.
        match &self.file {
            Some(path) => log.with_writer(Mutex::new(open_log(path)?)).try_init().ok(),
            None => log.with_writer(std::io::stderr).try_init().ok(),
        };
        Ok(())
    }
}

fn open_log(path: &Path) -> anyhow::Result<std::fs::File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
        .with_context(|| format!("open log file {path:?}"))
}
