//! Programs that the document wants run at points of a container's life.

use std::ffi::CString;
use std::time::Duration;

use oci_spec::runtime::Spec;

use super::ConfigError;

/// One program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Absolute path.
    pub path: CString,
    /// Its arguments, the name first.
    pub args: Vec<CString>,
    /// `NAME=VALUE` each; nothing else is in its environment.
    pub env: Vec<CString>,
    /// It is killed after so long.
    pub timeout: Option<Duration>,
}

/// All six kinds (specification, "POSIX-platform Hooks").
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hooks {
    /// Deprecated; before `create_runtime`.
    pub prestart: Vec<Hook>,
    /// In the runtime's namespaces, when the container's exist.
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces, before its root is entered; paths are the runtime's.
    pub create_container: Vec<Hook>,
    /// In the container, before its program; paths are the container's.
    pub start_container: Vec<Hook>,
    /// In the runtime's namespaces, when the program has begun.
    pub poststart: Vec<Hook>,
    /// In the runtime's namespaces, when the container is deleted.
    pub poststop: Vec<Hook>,
}

impl Hooks {
    /// Validates the document's hooks.
    ///
    /// # Errors
    /// A path that is not absolute, a timeout below 1, or a zero byte.
    #[allow(deprecated)]
    pub fn from_spec(spec: &Spec) -> Result<Self, ConfigError> {
        let Some(hooks) = spec.hooks() else { return Ok(Self::default()) };
        let list = |list: &Option<Vec<oci_spec::runtime::Hook>>, name: &str| {
            let entries = list.iter().flatten().enumerate();
            let hooks: Result<Vec<Hook>, ConfigError> =
                entries.map(|(index, entry)| hook(entry, &format!("hooks.{name}[{index}]"))).collect();
            hooks
        };
        Ok(Self {
            prestart: list(hooks.prestart(), "prestart")?,
            create_runtime: list(hooks.create_runtime(), "createRuntime")?,
            create_container: list(hooks.create_container(), "createContainer")?,
            start_container: list(hooks.start_container(), "startContainer")?,
            poststart: list(hooks.poststart(), "poststart")?,
            poststop: list(hooks.poststop(), "poststop")?,
        })
    }

    /// True when something is to be run between the making of the namespaces and entering the root.
    #[must_use]
    pub fn at_creation(&self) -> bool {
        !(self.prestart.is_empty() && self.create_runtime.is_empty() && self.create_container.is_empty())
    }
}

fn hook(entry: &oci_spec::runtime::Hook, field: &str) -> Result<Hook, ConfigError> {
    let text = |word: &str, name: &str| {
        CString::new(word).map_err(|_| ConfigError::new(format!("{field}.{name}"), "contains a zero byte"))
    };
    if !entry.path().is_absolute() {
        let problem = format!("{} is not absolute", entry.path().display());
        return Err(ConfigError::new(format!("{field}.path"), problem));
    }
    let path = text(&entry.path().to_string_lossy(), "path")?;
    let words = |list: &Option<Vec<String>>, name: &str| -> Result<Vec<CString>, ConfigError> {
        list.iter().flatten().map(|word| text(word, name)).collect()
    };
    let mut args = words(entry.args(), "args")?;
    if args.is_empty() {
        args.push(path.clone());
    }
    let timeout = match entry.timeout() {
        None => None,
        Some(seconds) => match u64::try_from(seconds) {
            Ok(seconds) if seconds > 0 => Some(Duration::from_secs(seconds)),
            _ => {
                return Err(ConfigError::new(
                    format!("{field}.timeout"),
                    format!("{seconds} is not above 0"),
                ));
            }
        },
    };
    Ok(Hook { path, args, env: words(entry.env(), "env")?, timeout })
}
