//! Networks for ordinary users, who may not make bridges: a program carries packets between the container's namespace
//! and sockets of the user. `pasta` (Debian package passt) is preferred; else `slirp4netns`.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::ports::{PortMapping, Protocol};

/// How long a program may take to come up.
const PATIENCE: Duration = Duration::from_secs(10);

/// The program that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// pasta(1)
    Pasta(PathBuf),
    /// slirp4netns(1)
    Slirp(PathBuf),
}

/// A program that serves a container.
#[derive(Debug)]
pub enum Userland {
    /// It went to the background, and ends with the namespace.
    Pasta {
        /// Its process.
        pid: Pid,
        /// Where the namespace is mounted for it.
        mounted: PathBuf,
    },
    /// A child of this process.
    Slirp {
        /// It.
        child: Child,
        /// It ends when this is closed.
        exit: OwnedFd,
    },
}

impl Program {
    /// Finds one in the directories of `path` (`PATH`).
    ///
    /// # Errors
    /// Words for the user when there is none.
    pub fn find(path: Option<&std::ffi::OsStr>) -> Result<Self> {
        let place = |name: &str| {
            std::env::split_paths(path?).map(|directory| directory.join(name)).find(|file| file.is_file())
        };
        if let Some(pasta) = place("pasta") {
            return Ok(Self::Pasta(pasta));
        }
        place("slirp4netns").map(Self::Slirp).ok_or_else(|| {
            Error::Invalid(
                "a network for an ordinary user needs the program pasta (package passt) or slirp4netns: install one, or use --network none or host"
                    .into(),
            )
        })
    }

    /// Starts it for the network namespace at `namespace`: a path that means the same to another process (not
    /// below `/proc/self`).
    ///
    /// `directory` takes its process number or control socket, and for pasta a mount of the namespace: by the time it
    /// looks, it has given up the right to look into other processes. The caller has a mount namespace of its own, as
    /// ordinary users who mount do.
    ///
    /// # Errors
    /// When it does not come up; with its own words.
    pub fn start(&self, namespace: &Path, ports: &[PortMapping], directory: &Path) -> Result<Userland> {
        match self {
            Self::Pasta(program) => start_pasta(program, namespace, ports, directory),
            Self::Slirp(program) => start_slirp(program, namespace, ports, directory),
        }
    }
}

impl Userland {
    /// Its process, and what must stay open as long as it serves.
    #[must_use]
    pub fn into_parts(self) -> (Pid, Option<OwnedFd>) {
        match self {
            Self::Pasta { pid, .. } => (pid, None),
            Self::Slirp { child, exit } => (Pid::from_child(&child), Some(exit)),
        }
    }

    /// Ends it. One that is gone is no fault.
    pub fn stop(self) {
        match self {
            Self::Pasta { pid, mounted } => {
                if let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
                    // It has ended meanwhile.
                    rustix::process::pidfd_send_signal(process, Signal::TERM).ok();
                }
                unmount(&mounted);
            }
            Self::Slirp { mut child, exit } => {
                drop(exit);
                if child.wait().is_err() {
                    tracing::debug!("slirp4netns was waited for already");
                }
            }
        }
    }
}

/// `-t` and `-u` of pasta: `IP/HOST:CONTAINER`. Ports without a number cannot be asked for: the same number is taken.
fn pasta_ports(ports: &[PortMapping]) -> Result<Vec<OsString>> {
    let mut words: Vec<OsString> = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let option = if protocol == Protocol::Tcp { "-t" } else { "-u" };
        let mut any = false;
        for mapping in ports.iter().filter(|mapping| mapping.container.protocol == protocol) {
            let host = single(mapping)?;
            let ip = mapping.host_ip.filter(|ip| !ip.is_unspecified());
            let ip = ip.map_or(String::new(), |ip| format!("{ip}/"));
            words.push(option.into());
            words.push(format!("{ip}{host}:{}", mapping.container.port).into());
            any = true;
        }
        if !any {
            words.extend([option.into(), "none".into()]);
        }
    }
    Ok(words)
}

/// The one host port of a mapping.
fn single(mapping: &PortMapping) -> Result<u16> {
    match mapping.host {
        None => Ok(mapping.container.port),
        Some((first, last)) if first == last => Ok(first),
        Some((first, last)) => Err(Error::Invalid(format!(
            "port {} cannot be published on one of {first}-{last} by an ordinary user: name one",
            mapping.container
        ))),
    }
}

fn failed(program: &str, why: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("start {program}: {why}"))
}

fn start_pasta(
    program: &Path,
    namespace: &Path,
    ports: &[PortMapping],
    directory: &Path,
) -> Result<Userland> {
    let pid_file = directory.join("pasta.pid");
    let mounted = directory.join("netns");
    fs::write(&mounted, "").map_err(Error::io("make", &mounted))?;
    rustix::mount::mount_bind(namespace, &mounted)
        .map_err(Error::io("mount the network namespace on", &mounted))?;
    let started = pasta(program, &mounted, ports, &pid_file);
    if started.is_err() {
        unmount(&mounted);
    }
    Ok(Userland::Pasta { pid: started?, mounted })
}

/// Takes away what a program that has ended leaves in its `directory`.
pub fn forget(directory: &Path) {
    let mounted = directory.join("netns");
    if mounted.exists() {
        unmount(&mounted);
    }
    for name in ["pasta.pid", "slirp4netns.sock"] {
        let path = directory.join(name);
        if path.exists()
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::debug!(%error, path = %path.display(), "remove what a program has left");
        }
    }
}

/// A leftover is in the way of nobody: it goes with the mount namespace and the container's directory.
fn unmount(mounted: &Path) {
    let gone = rustix::mount::unmount(mounted, rustix::mount::UnmountFlags::DETACH);
    if let Err(error) = gone.map_err(std::io::Error::from).and_then(|()| fs::remove_file(mounted)) {
        tracing::debug!(%error, "remove the mount of a network namespace");
    }
}

fn pasta(program: &Path, namespace: &Path, ports: &[PortMapping], pid_file: &Path) -> Result<Pid> {
    let output = Command::new(program)
        .args(["--config-net", "--quiet", "--no-map-gw", "-T", "none", "-U", "none", "--pid"])
        .arg(pid_file)
        .args(pasta_ports(ports)?)
        .arg("--netns")
        .arg(namespace)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed("pasta", error))?;
    // It goes to the background when it is ready.
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed("pasta", said.trim()));
    }
    let text = fs::read_to_string(pid_file).map_err(Error::io("read", pid_file))?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| failed("pasta", "it did not tell its process number"))
}

fn start_slirp(
    program: &Path,
    namespace: &Path,
    ports: &[PortMapping],
    directory: &Path,
) -> Result<Userland> {
    let pipe = || {
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| failed("slirp4netns", error))
    };
    let ((ready, ready_there), (exit_there, exit)) = (pipe()?, pipe()?);
    for inherited in [&ready_there, &exit_there] {
        rustix::io::fcntl_setfd(inherited, rustix::io::FdFlags::empty())
            .map_err(|error| failed("slirp4netns", error))?;
    }
    let socket = directory.join("slirp4netns.sock");
    let child = Command::new(program)
        .args(["--configure", "--mtu=65520", "--disable-host-loopback", "--netns-type=path"])
        .arg(format!("--ready-fd={}", ready_there.as_raw_fd()))
        .arg(format!("--exit-fd={}", exit_there.as_raw_fd()))
        .arg("--api-socket")
        .arg(&socket)
        .arg(namespace)
        .arg("tap0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed("slirp4netns", error))?;
    drop((ready_there, exit_there));
    let mut userland = Userland::Slirp { child, exit };
    let mut said = [0; 1];
    let heard = rustix::io::retry_on_intr(|| rustix::io::read(&ready, &mut said));
    let published = match heard {
        Ok(1) => ports.iter().try_for_each(|mapping| forward(&socket, mapping)),
        _ => {
            let mut complaint = String::new();
            if let Userland::Slirp { child, .. } = &mut userland
                && let Some(stderr) = &mut child.stderr
            {
                // It has ended, and so has what it says.
                stderr.take(4096).read_to_string(&mut complaint).ok();
            }
            Err(failed("slirp4netns", complaint.trim()))
        }
    };
    match published {
        Ok(()) => Ok(userland),
        Err(error) => {
            userland.stop();
            Err(error)
        }
    }
}

/// Asks slirp4netns by its socket: one question for each connection.
fn forward(socket: &Path, mapping: &PortMapping) -> Result<()> {
    let question = json!({ "execute": "add_hostfwd", "arguments": {
        "proto": mapping.container.protocol.to_string(),
        "host_addr": mapping.host_ip.map_or_else(|| "0.0.0.0".to_owned(), |ip| ip.to_string()),
        "host_port": single(mapping)?,
        "guest_port": mapping.container.port,
    } });
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(question.to_string().as_bytes())?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(Error::io("ask slirp4netns by", socket))?;
    let answer: Value =
        serde_json::from_slice(&answer).map_err(|source| Error::Json { path: socket.to_owned(), source })?;
    match answer.get("error") {
        None => Ok(()),
        Some(error) => {
            let why = error["desc"].as_str().unwrap_or("refused");
            Err(failed("slirp4netns", format_args!("publish port {}: {why}", mapping.container)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::parse_publish;

    #[test]
    fn ports_as_pasta_wants_them() {
        let words = |texts: &[&str]| {
            let ports: Vec<PortMapping> =
                texts.iter().flat_map(|t| parse_publish(t).unwrap_or_else(|e| panic!("{e}"))).collect();
            let words = pasta_ports(&ports).map_err(|e| e.to_string());
            words.map(|words| words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(words(&[]).as_deref(), Ok("-t none -u none"));
        assert_eq!(
            words(&["8080:80", "127.0.0.1:5353:53/udp", "90"]).as_deref(),
            Ok("-t 8080:80 -t 90:90 -u 127.0.0.1/5353:53")
        );
        assert!(words(&["8080-8090:80"]).is_err_and(|e| e.contains("name one")));
    }

    #[test]
    fn without_a_program_there_are_words() {
        let none = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let found = Program::find(Some(none.path().as_os_str())).err().map(|e| e.to_string());
        assert!(found.is_some_and(|words| words.contains("passt")));
        fs::write(none.path().join("slirp4netns"), "").unwrap_or_else(|e| panic!("{e}"));
        assert!(matches!(Program::find(Some(none.path().as_os_str())), Ok(Program::Slirp(_))));
        fs::write(none.path().join("pasta"), "").unwrap_or_else(|e| panic!("{e}"));
        assert!(matches!(Program::find(Some(none.path().as_os_str())), Ok(Program::Pasta(_))));
    }
}
