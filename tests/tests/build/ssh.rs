//! `RUN --mount=type=ssh` with a real agent, asked by a real client in the step.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::registry::program_exists;
use super::world::World;

/// An agent of the test's own.
struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(directory: &Path) -> Self {
        let socket = directory.join("agent");
        let mut child = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It tells where it is when it listens.
        let mut line = [0; 1];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        Self { child, socket }
    }

    fn add(&self, key: &Path) {
        let status = Command::new("ssh-add").arg(key).env("SSH_AUTH_SOCK", &self.socket).output().unwrap();
        assert!(status.status.success(), "{status:?}");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn key(path: &Path, kind: &[&str]) -> String {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-N", "", "-C", "of the test"])
        .args(kind)
        .arg("-f")
        .arg(path)
        .output();
    let made = made.unwrap();
    assert!(made.status.success(), "{made:?}");
    let shown = Command::new("ssh-keygen").arg("-lf").arg(path).output().unwrap();
    // Bits, fingerprint, comment, kind.
    String::from_utf8(shown.stdout).unwrap().split_whitespace().nth(1).unwrap().to_owned()
}

/// `ssh-add` with what it is linked with.
fn client(context: &Path) {
    let listed = Command::new("ldd").arg("/usr/bin/ssh-add").output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain(["/usr/bin/ssh-add"]) {
        let to = context.join("root").join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn keys_in_files_have_an_agent_for_the_build() {
    let Some(world) = World::new() else { return };
    if !["ssh-agent", "ssh-add", "ssh-keygen"].into_iter().all(program_exists) {
        return;
    }
    let text = "FROM box\nCOPY root /\nRUN --mount=type=ssh ssh-add -l > /seen\n";
    let context = world.context("keys", &[("Dockerfile", text)]);
    client(&context);
    let outside = tempfile::tempdir().unwrap();
    let (new, old) = (outside.path().join("new"), outside.path().join("old"));
    let fingerprints = [key(&new, &["-t", "ed25519"]), key(&old, &["-t", "rsa", "-b", "2048", "-m", "PEM"])];
    // Others may read it: that is the user's affair, as with BuildKit.
    fs::set_permissions(&old, fs::Permissions::from_mode(0o644)).unwrap();
    let build = |keys: &str| {
        let mut command = world.command(&["build", "-t", "x", "--ssh", keys, context.to_str().unwrap()]);
        command.env("TMPDIR", outside.path());
        let output = super::world::finish(command.stdout(Stdio::piped()), b"");
        super::killed::wait_for_the_end(&world);
        let left = fs::read_dir(outside.path()).unwrap().flatten();
        assert_eq!(left.filter(|entry| entry.path().is_dir()).count(), 0, "an agent's directory is left");
        output
    };
    let output = build(&format!("default={},{}", new.display(), old.display()));
    assert_eq!(output.code, 0, "{}", output.stderr);
    let seen = world.ok(&["run", "--rm", "--network", "none", "x", "cat", "/seen"]);
    assert!(fingerprints.iter().all(|print| seen.contains(print)), "{seen}");
    fs::write(outside.path().join("text"), "no key\n").unwrap();
    let output = build(&format!("default={}", outside.path().join("text").display()));
    assert!(output.code == 1 && output.stderr.contains("does not take it"), "{output:?}");
    let output = build(&format!("default={}", outside.path().join("nowhere").display()));
    assert!(output.code == 1 && output.stderr.contains("nowhere"), "{output:?}");
}

#[test]
fn steps_reach_agents() {
    let Some(world) = World::new() else { return };
    if !["ssh-agent", "ssh-add", "ssh-keygen"].into_iter().all(program_exists) {
        return;
    }
    let text = "FROM box\nCOPY root /\nRUN --mount=type=ssh ssh-add -l > /default\n\
                RUN --mount=type=ssh,id=other,target=/run/other,required=true test $SSH_AUTH_SOCK = /run/other && ssh-add -L > /other\n\
                RUN test -z \"$SSH_AUTH_SOCK\" && test ! -e /run/other\n";
    let context = world.context("ssh", &[("Dockerfile", text)]);
    client(&context);
    let outside = tempfile::tempdir().unwrap();
    let key_file = outside.path().join("key");
    let fingerprint = key(&key_file, &["-t", "ed25519"]);
    let agent = Agent::start(outside.path());
    agent.add(&key_file);
    let socket = agent.socket.to_str().unwrap();
    let mut command = world.command(&[
        "build",
        "-t",
        "x",
        "--ssh",
        "default",
        "--ssh",
        &format!("other={socket}"),
        context.to_str().unwrap(),
    ]);
    command.env("SSH_AUTH_SOCK", socket).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = super::world::finish(&mut command, b"");
    assert_eq!(output.code, 0, "{}", output.stderr);
    let seen = world.ok(&["run", "--rm", "--network", "none", "x", "cat", "/default"]);
    assert!(seen.contains(&fingerprint), "{seen}");
    let seen = world.ok(&["run", "--rm", "--network", "none", "x", "cat", "/other"]);
    assert_eq!(seen, fs::read_to_string(key_file.with_extension("pub")).unwrap().trim_end());
    // What is required and not given, given and not there, given and no agent.
    let output =
        world.run(&["build", "--no-cache", "--ssh", &format!("default={socket}"), context.to_str().unwrap()]);
    assert!(output.code == 1 && output.stderr.contains("--ssh other"), "{output:?}");
    let output = world.run(&["build", "--ssh", "default", context.to_str().unwrap()]);
    assert!(output.code == 1 && output.stderr.contains("SSH_AUTH_SOCK is not set"), "{output:?}");
    let nowhere = outside.path().join("nowhere");
    let output =
        world.run(&["build", "--ssh", &format!("x={}", nowhere.display()), context.to_str().unwrap()]);
    assert!(output.code == 1 && output.stderr.contains(nowhere.to_str().unwrap()), "{output:?}");
}
