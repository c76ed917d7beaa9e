//! `layerfs network` and `layerfs volume` as users call them.
//!
//! Each test has a store and a network namespace of its own: commands run in that of a process that only waits. A
//! container is such a process too, with the documents that the commands read.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is test code: a broken expectation is a failed test"
)]

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use layerfs_tests::privilege;
use serde_json::{Value, json};

/// A process in a network namespace of its own; it ends when its input does, and that when this is dropped.
#[derive(Debug)]
struct Waiting(Child);

impl Waiting {
    /// `None`, loudly, where there can be none.
    fn start() -> Option<Self> {
        let child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; read x"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            privilege::skip("unshare (util-linux) cannot be executed");
            return None;
        };
        let mut said = [0; 6];
        if child.stdout.as_mut().unwrap().read_exact(&mut said).is_err() {
            child.wait().unwrap();
            privilege::skip("no network namespace can be made here");
            return None;
        }
        Some(Self(child))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().ok();
    }
}

/// A machine: a store, and the namespace in which commands run.
#[derive(Debug)]
struct World {
    root: tempfile::TempDir,
    host: Waiting,
    binary: PathBuf,
}

impl World {
    fn new() -> Option<Self> {
        let Some(binary) = privilege::layerfs_binary() else {
            privilege::skip("the layerfs binary is not built (cargo build -p layerfs-cli)");
            return None;
        };
        if !rustix::process::geteuid().is_root() {
            privilege::skip("this test needs root");
            return None;
        }
        let host = Waiting::start()?;
        Some(Self { root: tempfile::tempdir().unwrap(), host, binary })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.host.pid())).arg("--").arg(&self.binary);
        command.args(arguments).env("LAYERFS_ROOT", self.root.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a command that must succeed prints.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command that must fail says.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// A container that runs, as its documents say.
    fn container(&self, name: &str, mounts: &Value) -> (String, Waiting) {
        let process = Waiting::start().unwrap();
        let id: String = name.bytes().map(|b| format!("{b:02x}")).collect();
        let id = format!("{id:0<64}");
        let directory = self.root.path().join("containers").join(&id);
        fs::create_dir_all(&directory).unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
        let start: u64 =
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
        let write =
            |file: &str, document: Value| fs::write(directory.join(file), document.to_string()).unwrap();
        write(
            "config.json",
            json!({ "id": id, "name": name, "mounts": mounts, "network": { "named": "bridge" } }),
        );
        let own = json!({ "pid": process.pid(), "start_time": start });
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let state = json!({
            "id": id, "image": null, "rootfs": null, "args": [], "status": "running", "boot": boot.trim(),
            "monitor": own, "process": own, "mount": null, "cgroup": [], "started_at": "", "finished_at": "",
            "exit_code": 0, "oom_killed": false, "error": "", "restart_count": 0, "stopped_by_user": false,
        });
        write("state.json", state);
        let names = self.root.path().join("names");
        fs::create_dir_all(&names).unwrap();
        fs::remove_file(names.join(name)).ok();
        std::os::unix::fs::symlink(&id, names.join(name)).unwrap();
        (id, process)
    }

    /// Names of the host's interfaces.
    fn links(&self) -> Vec<String> {
        let text = fs::read_to_string(format!("/proc/{}/net/dev", self.host.pid())).unwrap();
        let names = text.lines().skip(2).filter_map(|line| line.split(':').next());
        names.map(|name| name.trim().to_owned()).collect()
    }
}

#[test]
fn networks_are_made_shown_and_removed() {
    let Some(world) = World::new() else { return };
    let id = world.ok(&["network", "create", "--subnet", "10.9.0.0/24", "--label", "tier=back", "back"]);
    assert_eq!(id.trim().len(), 64);
    let table = world.ok(&["network", "ls"]);
    let header = table.lines().next().unwrap();
    assert_eq!(header.split_whitespace().collect::<Vec<_>>(), ["NETWORK", "ID", "NAME", "DRIVER", "SCOPE"]);
    let names = world.ok(&["network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}"]);
    assert_eq!(names, "back bridge local\nbridge bridge local\nhost host local\nnone null local\n");
    assert_eq!(world.ok(&["network", "ls", "-q", "--no-trunc", "--filter", "label=tier=back"]), id);
    assert_eq!(world.ok(&["network", "ls", "-q", "--filter", "name=nothing"]), "");
    let gateway = ["network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", &id[..12]];
    assert_eq!(world.ok(&gateway), "10.9.0.1\n");
    assert!(world.refused(&["network", "create", "back"]).contains("network with name back already exists"));
    assert!(world.refused(&["network", "rm", "host"]).contains("is a pre-defined network"));
    assert!(world.refused(&["network", "rm", "no"]).contains("network no not found"));
    assert_eq!(world.ok(&["network", "rm", "-f", "no", "back"]), "back\n");
    world.ok(&["network", "create", "one"]);
    assert_eq!(world.ok(&["network", "prune", "-f"]), "Deleted Networks:\none\n\n");
}

#[test]
fn a_running_container_is_connected_and_answered_by_name() {
    let Some(world) = World::new() else { return };
    world.ok(&["network", "create", "back"]);
    let (_, web) = world.container("web", &json!([]));
    let (id, client) = world.container("client", &json!([]));
    world.ok(&["network", "connect", "--alias", "www", "back", "web"]);
    world.ok(&["network", "connect", "back", &id[..8]]);
    let document: Value = serde_json::from_str(&world.ok(&["network", "inspect", "back"])).unwrap();
    assert_eq!(document[0]["Containers"].as_object().unwrap().len(), 2);
    let gateway = document[0]["IPAM"]["Config"][0]["Gateway"].as_str().unwrap();
    // The question for www, asked in the client's namespace; the answer ends with the address.
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3];
    question.extend_from_slice(b"www\0\0\x01\0\x01");
    let mut asking = Command::new("nsenter")
        .arg(format!("--net=/proc/{}/ns/net", client.pid()))
        .args(["bash", "-c", "exec 3<>/dev/udp/$0/53; cat >&3; dd bs=2048 count=1 status=none <&3", gateway])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    asking.stdin.take().unwrap().write_all(&question).unwrap();
    let answer = asking.wait_with_output().unwrap().stdout;
    let address = document[0]["Containers"].as_object().unwrap().values();
    let address = address.map(|c| c["IPv4Address"].as_str().unwrap().to_owned()).min().unwrap();
    let octets: Vec<u8> = address.split(['.', '/']).take(4).map(|part| part.parse().unwrap()).collect();
    assert!(answer.ends_with(&octets), "{answer:?}, not {address}");
    assert!(world.refused(&["network", "rm", "back"]).contains("has active endpoints"));
    world.ok(&["network", "disconnect", "back", "web"]);
    world.ok(&["network", "disconnect", "-f", "back", "client"]);
    assert!(world.refused(&["network", "disconnect", "back", "web"]).contains("is not connected"));
    // The bridge waits for the next container.
    assert_eq!(world.links().len(), 2);
    world.ok(&["network", "prune", "-f", "--filter", "label=none"]);
    assert_eq!(world.links(), ["lo"]);
    drop(web);
    // The name server goes by itself: its lock is free then.
    let lock = fs::read_dir(world.root.path().join("networks")).unwrap();
    let lock = lock.map(|e| e.unwrap().path()).find(|p| p.extension().is_some_and(|e| e == "dns")).unwrap();
    rustix::fs::flock(fs::File::open(lock).unwrap(), rustix::fs::FlockOperation::LockExclusive).unwrap();
    // One that does not run is in the network from its next start on.
    world.ok(&["network", "connect", "back", "web"]);
    assert!(world.ok(&["inspect", "-f", "{{json .NetworkSettings.Networks}}", "web"]).contains("\"back\""));
    assert_eq!(world.links(), ["lo"]);
}

/// Commands are killed at points spread over their work; what they leave is found and removed.
#[test]
fn killed_commands_leave_nothing_that_prune_does_not_remove() {
    let Some(world) = World::new() else { return };
    world.ok(&["network", "create", "--ipv6", "back"]);
    let rounds =
        std::env::var("LAYERFS_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(12_u32);
    for round in 0..rounds {
        let (_, process) = world.container("victim", &json!([]));
        let arguments = match round % 3 {
            0 | 1 => ["network", "connect", "back", "victim"],
            _ => {
                world.ok(&["network", "connect", "back", "victim"]);
                ["network", "disconnect", "back", "victim"]
            }
        };
        let mut command = world.command(&arguments).stderr(Stdio::null()).spawn().unwrap();
        // Not waiting for something: where in its work it is hit is what is varied.
        std::thread::sleep(Duration::from_micros(u64::from(round) * 1300 % 23_000));
        command.kill().unwrap();
        command.wait().unwrap();
        drop(process);
        world.ok(&["network", "prune", "-f", "--filter", "label=none"]);
        assert_eq!(world.links(), ["lo"], "round {round}");
        let leases = fs::read_to_string(world.root.path().join("networks/leases.json")).unwrap_or_default();
        assert!(leases.is_empty() || leases.contains("\"leases\":[]"), "round {round}: {leases}");
    }
    // And it works after all that.
    let (_, process) = world.container("victim", &json!([]));
    world.ok(&["network", "connect", "back", "victim"]);
    drop(process);
    assert_eq!(world.ok(&["network", "prune", "-f"]), "Deleted Networks:\nback\n\n");
    assert_eq!(world.links(), ["lo"]);
}

#[test]
fn volumes_are_made_shown_and_removed() {
    let Some(world) = World::new() else { return };
    assert_eq!(world.ok(&["volume", "create", "--label", "a=b", "data"]), "data\n");
    assert_eq!(world.ok(&["volume", "create", "data"]), "data\n");
    let anonymous = world.ok(&["volume", "create"]);
    assert_eq!(anonymous.trim().len(), 64);
    assert_eq!(world.ok(&["volume", "ls", "-q", "--filter", "label=a"]), "data\n");
    let place = world.ok(&["volume", "inspect", "--format", "{{.Mountpoint}}", "data"]);
    assert!(place.trim_end().ends_with("volumes/data/_data") && Path::new(place.trim_end()).is_dir());
    assert!(world.refused(&["volume", "inspect", "no"]).contains("get no: no such volume"));
    let mounts = json!([{ "type": "volume", "name": "data", "target": "/data" }]);
    let (id, process) = world.container("user", &mounts);
    drop(process);
    assert!(
        world.refused(&["volume", "rm", "data"]).contains(&format!("remove data: volume is in use - [{id}]"))
    );
    assert_eq!(world.ok(&["volume", "ls", "-q", "--filter", "dangling=false"]), "data\n");
    let pruned = world.ok(&["volume", "prune", "-f"]);
    assert_eq!(pruned, format!("Deleted Volumes:\n{}\n\nTotal reclaimed space: 0B\n", anonymous.trim()));
    fs::remove_dir_all(world.root.path().join("containers").join(id)).unwrap();
    assert_eq!(world.ok(&["volume", "rm", "data"]), "data\n");
    assert!(world.refused(&["volume", "create", "-o", "size=1g", "x1"]).contains("invalid option"));
}
