//! A store with the image `box`, and contexts.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use layerfs_tests::privilege::{layerfs_binary, require_fuse, require_root, skip};
use layerfs_tests::scratch::Scratch;

/// See the module's text.
pub(crate) struct World {
    scratch: Scratch,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl World {
    /// `None` where the machine does not allow it, which has been said.
    pub(crate) fn new() -> Option<Self> {
        if !require_root() || !require_fuse() {
            return None;
        }
        let path = ["/bin/busybox", "/usr/bin/busybox"].iter().map(Path::new).find(|path| path.is_file());
        let is_static = |path: &Path| {
            let bytes = fs::read(path).unwrap();
            !bytes[..bytes.len().min(4096)].windows(8).any(|window| window == b"ld-linux")
        };
        let Some(busybox) = path.filter(|path| is_static(path)) else {
            skip("no static busybox is installed (Debian package busybox-static)");
            return None;
        };
        let world = Self { scratch: Scratch::plain() };
        let context = world.context(
            "box",
            &[("Dockerfile", "FROM scratch\nCOPY . /\n"), (".dockerignore", "Dockerfile\n.dockerignore\n")],
        );
        for directory in ["bin", "etc", "real", "root", "srv", "tmp"] {
            fs::create_dir_all(context.join(directory)).unwrap();
        }
        fs::set_permissions(context.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::copy(busybox, context.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "cat", "cp", "echo", "env", "id", "ln", "ls", "mkdir", "pwd", "rm", "sleep", "test",
            "touch", "true",
        ] {
            symlink("busybox", context.join("bin").join(applet)).unwrap();
        }
        symlink("real", context.join("linked")).unwrap();
        fs::write(context.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nme:x:1000:100::/home/me:/bin/sh\n")
            .unwrap();
        fs::write(context.join("etc/group"), "root:x:0:\nusers:x:100:\naudio:x:29:me\n").unwrap();
        world.ok(&["build", "-t", "box", context.to_str().unwrap()]);
        Some(world)
    }

    pub(crate) fn path(&self) -> &Path {
        self.scratch.path()
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path().join("store")
    }

    /// A context with these files.
    pub(crate) fn context(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let context =
            self.path().join("contexts").join(name.replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
        fs::create_dir_all(&context).unwrap();
        for (file, content) in files {
            let path = context.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        context
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(layerfs_binary().unwrap());
        // Stores of tests that run at the same time would want the same addresses.
        let network = if arguments.first() == Some(&"build") { &["--network", "none"][..] } else { &[] };
        let (name, rest) = arguments.split_at(1.min(arguments.len()));
        command
            .args(name)
            .args(network)
            .args(rest)
            .env("LAYERFS_ROOT", self.store())
            // Credentials are looked for there.
            .env("HOME", self.path())
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("SSH_AUTH_SOCK")
            .env_remove("SOURCE_DATE_EPOCH")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.with_input(arguments, b"")
    }

    /// With another store: as on another machine.
    pub(crate) fn run_in(&self, store: &str, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        command.env("LAYERFS_ROOT", self.path().join(store));
        finish(&mut command, b"")
    }

    pub(crate) fn with_input(&self, arguments: &[&str], input: &[u8]) -> Output {
        finish(&mut self.command(arguments), input)
    }

    /// What a command that succeeds prints, without the last end of line.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.code, 0, "{arguments:?}: {}", output.stderr);
        String::from_utf8(output.stdout).unwrap().trim_end_matches('\n').to_owned()
    }

    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// What `image inspect` says.
    pub(crate) fn inspect(&self, image: &str) -> serde_json::Value {
        let text = self.ok(&["image", "inspect", image]);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()[0].take()
    }

    /// The config document of an image, as its blob has it.
    pub(crate) fn config(&self, id: &str) -> serde_json::Value {
        let hex = id.strip_prefix("sha256:").unwrap();
        let blob = self.store().join("images/blobs/sha256").join(hex);
        serde_json::from_slice(&fs::read(blob).unwrap()).unwrap()
    }

    /// All of an image's files, as the cases describe them, by path.
    pub(crate) fn tree(&self, archive: &[u8]) -> BTreeMap<String, String> {
        let directory = self.path().join("unpacked");
        fs::create_dir(&directory).unwrap();
        let mut tar = Command::new("tar")
            .args(["--numeric-owner", "-xpf", "-", "-C"])
            .arg(&directory)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        tar.stdin.take().unwrap().write_all(archive).unwrap();
        assert!(tar.wait().unwrap().success());
        let mut found = BTreeMap::new();
        walk(&directory, "", &mut found);
        fs::remove_dir_all(&directory).unwrap();
        found
    }
}

/// Runs it to its end.
pub(crate) fn finish(command: &mut Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // The command may end without reading it.
        scope.spawn(move || stdin.write_all(input).ok());
        let output = child.wait_with_output().unwrap();
        Output {
            code: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    })
}

fn walk(root: &Path, path: &str, found: &mut BTreeMap<String, String>) {
    use std::os::unix::fs::MetadataExt;
    for entry in fs::read_dir(root.join(path)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = if path.is_empty() { name } else { format!("{path}/{name}") };
        let metadata = entry.metadata().unwrap();
        let (mode, owner) = (metadata.mode() & 0o7777, format!("{}:{}", metadata.uid(), metadata.gid()));
        let line = if metadata.is_dir() {
            walk(root, &path, found);
            format!("d {mode:o} {owner} {path}")
        } else if metadata.is_symlink() {
            format!("l {path} {}", fs::read_link(entry.path()).unwrap().display())
        } else {
            let content = if metadata.len() > 4096 {
                String::new()
            } else {
                String::from_utf8_lossy(&fs::read(entry.path()).unwrap()).into_owned()
            };
            let content = content.trim_end_matches('\n').replace('\n', "\\n");
            format!("f {mode:o} {owner} {path} {content}").trim_end().to_owned()
        };
        found.insert(path, line);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for store in ["store", "second"] {
            let steps = self.path().join(store).join("build/steps");
            assert!(!steps.exists() || fs::read_dir(steps).unwrap().next().is_none(), "a step is left");
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(self.path().to_str().unwrap()), "a mount is left");
    }
}
