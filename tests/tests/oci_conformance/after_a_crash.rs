//! What is known of a container when its record is older than the machine's present run, or than the process that has its
//! number now.

use std::fs;
use std::process::Command;

use layerfs_tests::bundle::Bundles;
use serde_json::{Value, json};

/// Changes what is written down of a container.
fn rewrite(bundles: &Bundles, id: &str, edit: impl FnOnce(&mut Value)) {
    let path = bundles.state_directory().join(id).join("state.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut record);
    fs::write(&path, record.to_string()).unwrap();
}

/// All that can be said and done of a container that does not run.
fn is_gone(bundles: &Bundles, id: &str) {
    let state = bundles.state(id);
    assert_eq!(state["status"], "stopped", "{state}");
    assert!(state["pid"].as_i64().unwrap_or(0) == 0, "{state}");
    for command in [&["kill", id, "KILL"][..], &["exec", id, "true"], &["pause", id], &["start", id]] {
        let output = bundles.call(command);
        assert!(output.code != 0 && output.stderr.contains("stopped"), "{command:?}: {output:?}");
    }
    let list: Value = serde_json::from_str(&bundles.well(&["list", "--format", "json"])).unwrap();
    assert_eq!(list[0]["status"], "stopped", "{list}");
}

#[test]
fn after_a_reboot_nothing_runs() {
    let Some(bundles) = Bundles::own() else { return };
    let (id, pid) = bundles.start("sleep 1000", |_| {});
    // The process of that number and start time is another one's, in another run of the kernel.
    rewrite(&bundles, &id, |record| record["boot"] = json!("00000000-0000-0000-0000-000000000000"));
    is_gone(&bundles, &id);
    bundles.well(&["kill", "--all", &id, "KILL"]);
    rewrite(&bundles, &id, |record| record["cgroup"] = json!([]));
    bundles.well(&["delete", &id]);
    assert!(fs::exists(format!("/proc/{pid}/ns")).unwrap(), "another's process was killed");
    let killed = Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
    assert!(killed.success());
    while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z")) {
        std::thread::yield_now();
    }
    for directory in bundles.cgroups(&id) {
        while fs::remove_dir(&directory).is_err_and(|error| error.kind() != std::io::ErrorKind::NotFound) {
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_number_that_another_process_has_by_now_is_left_alone() {
    let Some(bundles) = Bundles::own() else { return };
    let (id, _) = bundles.start("sleep 1000", |_| {});
    bundles.well(&["kill", &id, "KILL"]);
    let mut another = Command::new("sleep").arg("1000").spawn().unwrap();
    rewrite(&bundles, &id, |record| record["process"]["pid"] = json!(another.id()));
    is_gone(&bundles, &id);
    bundles.well(&["delete", "--force", &id]);
    assert!(another.try_wait().unwrap().is_none(), "another's process was killed");
    another.kill().unwrap();
    another.wait().unwrap();
}
