//! Agents for `RUN --mount=type=ssh`: those that run, and those that are started for keys in files.
//!
//! Keys are read by OpenSSH's own programs: they know every form that a key file has, and the agent holds what it has
//! read as safely as the user's. It ends with the build, also where that is killed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

use super::options::SshSource;
use crate::exit::Hinted;

/// The agents of a build, by the ids that steps know them by.
#[derive(Debug, Default)]
pub(super) struct Agents {
    sockets: BTreeMap<String, PathBuf>,
    /// Those of the build's own.
    own: Vec<KeyAgent>,
}

impl Agents {
    /// Starts those that are needed.
    pub(super) fn start(sources: &BTreeMap<String, SshSource>) -> anyhow::Result<Self> {
        let mut agents = Self::default();
        for (id, source) in sources {
            let socket = match source {
                SshSource::Socket(path) => path.clone(),
                SshSource::Keys(keys) => {
                    let agent = KeyAgent::start().with_context(|| format!("ssh agent {id:?}"))?;
                    for key in keys {
                        agent.add(key).with_context(|| format!("ssh agent {id:?}: key {}", key.display()))?;
                    }
                    let socket = agent.socket.clone();
                    agents.own.push(agent);
                    socket
                }
            };
            agents.sockets.insert(id.clone(), socket);
        }
        Ok(agents)
    }

    /// The socket of the agent with this id.
    pub(super) fn socket(&self, id: &str) -> Option<&Path> {
        self.sockets.get(id).map(PathBuf::as_path)
    }
}

/// What stays with the agent until this program has ended or wants it to: then its standard input ends. Keys at the terminal are
/// for this program.
const KEEPER: &str = r#"trap '' INT TERM HUP QUIT; echo; cat; kill "$SSH_AGENT_PID"; rm -rf -- "$0""#;

/// An `ssh-agent` with a directory of its own.
#[derive(Debug)]
struct KeyAgent {
    keeper: Child,
    socket: PathBuf,
}

fn missing(program: &str, error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => Hinted {
            message: format!("a key in a file needs the program {program}, which is not installed"),
            hint: "install OpenSSH's client (openssh-client), or name the socket of an agent that runs"
                .into(),
        }
        .into(),
        _ => anyhow::Error::from(error).context(format!("start {program}")),
    }
}

impl KeyAgent {
    fn start() -> anyhow::Result<Self> {
        // Not in the store: the names of sockets have to be short.
        let directory = tempfile::Builder::new()
            .prefix("layerfs-ssh-")
            .tempdir()
            .context("make a directory for its socket")?;
        let socket = directory.path().join("agent");
        let mut keeper = Command::new("ssh-agent")
            .arg("-a")
            .arg(&socket)
            .args(["sh", "-c", KEEPER])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| missing("ssh-agent", error))?;
        let mut line = String::new();
        if let Some(out) = keeper.stdout.take() {
            BufReader::new(out).read_line(&mut line).context("wait for the agent")?;
        }
        if line.is_empty() {
            let mut words = String::new();
            if let Some(mut stderr) = keeper.stderr.take() {
                stderr.read_to_string(&mut words).ok();
            }
            keeper.wait().context("wait for the agent")?;
            bail!("ssh-agent does not start: {}", words.trim());
        }
        // The keeper removes it, whatever becomes of this program.
        let _kept = directory.keep();
        Ok(Self { keeper, socket })
    }

    fn add(&self, key: &Path) -> anyhow::Result<()> {
        let file = std::fs::File::open(key).context("open it")?;
        // From standard input: who else may read the file does not matter here.
        let added = Command::new("ssh-add")
            .args(["-q", "-"])
            .env("SSH_AUTH_SOCK", &self.socket)
            .stdin(file)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .and_then(std::process::Child::wait_with_output)
            .map_err(|error| missing("ssh-add", error))?;
        if !added.status.success() {
            let words = String::from_utf8_lossy(&added.stderr).trim().replace('\n', "; ");
            let words = if words.is_empty() { added.status.to_string() } else { words };
            bail!(Hinted {
                message: format!("ssh-add does not take it: {words}"),
                hint: "name the file of a private key, or the socket of an agent that has it".into(),
            });
        }
        Ok(())
    }
}

impl Drop for KeyAgent {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        if let Err(error) = self.keeper.wait() {
            tracing::warn!(%error, "wait for the agent to end");
        }
    }
}
