//! A store, a home and a configuration of a test's own, and the program in them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use layerfs_tests::privilege::{layerfs_binary, skip};

pub(crate) struct World {
    binary: PathBuf,
    dir: tempfile::TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// The words of a success.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// A command line that is refused before anything is done.
    #[track_caller]
    pub(crate) fn refused_by_clap(self) {
        assert!(self.code != 0 && self.stderr.starts_with("error: "), "{self:?}");
    }

    /// The words of a failure with exit code 1.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        assert_eq!(self.code, 1, "{self:?}");
        assert!(self.stderr.starts_with("layerfs: "), "{self:?}");
        self.stderr
    }
}

impl World {
    pub(crate) fn new() -> Option<Self> {
        let Some(binary) = layerfs_binary() else {
            skip("the layerfs binary is not built");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("registries.conf"), "").unwrap();
        Some(Self { binary, dir })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        command
            .env("LAYERFS_ROOT", self.path("root"))
            .env("HOME", self.path("home"))
            .env("DOCKER_CONFIG", self.path("docker"))
            .env("CONTAINERS_REGISTRIES_CONF", self.path("registries.conf"))
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Outcome {
        self.run_with(arguments, "")
    }

    /// With `input` on standard input.
    pub(crate) fn run_with(&self, arguments: &[&str], input: &str) -> Outcome {
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // One that reads nothing may have closed it.
        child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
        let output = child.wait_with_output().unwrap();
        Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The archive of a root filesystem with one file.
    pub(crate) fn archive(&self, name: &str, content: &str) -> PathBuf {
        let tree = self.path(&format!("{name}.tree"));
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::write(tree.join("etc/content"), content).unwrap();
        let archive = self.path(&format!("{name}.tar"));
        let mut tar = Command::new("tar");
        tar.args(["--numeric-owner", "-cf"]).arg(&archive).arg("-C").arg(&tree).arg(".");
        assert!(tar.status().unwrap().success());
        archive
    }

    /// Makes an image; gives its id.
    pub(crate) fn import(&self, name: &str, content: &str, options: &[&str]) -> String {
        let archive = self.archive("import", content);
        let mut arguments = vec!["import"];
        arguments.extend(options);
        arguments.extend([text(&archive), name]);
        self.run(&arguments).ok().trim().to_owned()
    }

    /// Names and tags of all images, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let listed = self.run(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok();
        let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
        names.sort();
        names
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Header and rows of a table, by columns that are at least two spaces apart.
pub(crate) fn table(text: &str) -> Vec<Vec<&str>> {
    let cells = |line| str::split(line, "  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    text.lines().map(cells).collect()
}
