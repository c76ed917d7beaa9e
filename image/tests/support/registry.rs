//! A real registry (Debian's docker-registry) on loopback, for the length of a test.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// User of a registry with authentication.
pub(crate) const USER: &str = "tester";
/// Its password.
pub(crate) const PASSWORD: &str = "correct horse: battery";
/// bcrypt of [`PASSWORD`], the only hash that the registry takes.
const HTPASSWD: &str = "tester:$2b$04$abcdefghijklmnopqrstuuLWwnUiysqxaAvQXpJaPAchjKHrkmxwG\n";

/// Stops at the end.
#[derive(Debug)]
pub(crate) struct DockerRegistry {
    child: Child,
    address: SocketAddr,
    dir: tempfile::TempDir,
}

/// TLS files of a registry: certificate chain and key.
pub(crate) struct Tls<'a> {
    pub(crate) certificate: &'a Path,
    pub(crate) key: &'a Path,
}

impl DockerRegistry {
    /// Starts one; `None`, said aloud, where the program is missing. Where all privileges are promised, that fails.
    pub(crate) fn start(authenticated: bool, tls: Option<Tls<'_>>) -> Option<Self> {
        if !program_exists("docker-registry") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        // The program cannot say which port the system gave it: between finding one and its use another may take
        // it, and the registry ends at once.
        for _ in 0..5 {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            if let Some(child) = launch(dir.path(), address, authenticated, tls.as_ref()) {
                return Some(Self { child, address, dir });
            }
        }
        panic!("docker-registry does not start");
    }

    /// `127.0.0.1:PORT`
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// Where it keeps its blobs.
    pub(crate) fn storage(&self) -> std::path::PathBuf {
        self.dir.path().join("storage")
    }
}

fn launch(dir: &Path, address: SocketAddr, authenticated: bool, tls: Option<&Tls<'_>>) -> Option<Child> {
    let mut config = format!(
        "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {:?}}}, delete: {{enabled: true}}}}\n\
         http:\n  addr: {address}\n",
        dir.join("storage")
    );
    if let Some(tls) = tls {
        config.push_str(&format!("  tls: {{certificate: {:?}, key: {:?}}}\n", tls.certificate, tls.key));
    }
    if authenticated {
        fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
        config.push_str(&format!("auth: {{htpasswd: {{realm: tests, path: {:?}}}}}\n", dir.join("htpasswd")));
    }
    fs::write(dir.join("config.yml"), config).unwrap();
    let mut child = Command::new("docker-registry")
        .arg("serve")
        .arg(dir.join("config.yml"))
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(30) {
        if TcpStream::connect(address).is_ok() {
            // Its log must not fill the pipe.
            let log = child.stderr.take().unwrap();
            std::thread::spawn(move || BufReader::new(log).lines().for_each(drop));
            return Some(child);
        }
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Whether `name` can be run; says aloud that a test is skipped, and fails where CI promises all programs.
pub(crate) fn program_exists(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let exists = std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    if !exists {
        let promised = std::env::var_os("LAYERFS_TEST_ALL_PRIVILEGES").is_some_and(|value| value == "1");
        assert!(!promised, "{name} is missing, and LAYERFS_TEST_ALL_PRIVILEGES promises it");
        eprintln!("skipped: {name} is not installed");
    }
    exists
}
