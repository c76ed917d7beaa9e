//! The runtime killed at any moment: `delete --force` leaves nothing.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use layerfs_tests::bundle::Bundles;

const CYCLES: usize = 200;
const AT_ONCE: usize = 20;

/// Moments spread over the length of a creation, by a generator of fixed seed.
struct Moments(u64);

impl Moments {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

#[test]
fn a_runtime_killed_at_any_moment_leaves_nothing_behind() {
    let Some(bundles) = Bundles::own() else { return };
    let mut moments = Moments(7);
    let mut survived = 0;
    for round in 0..CYCLES / AT_ONCE {
        let ids: Vec<_> = (0..AT_ONCE).map(|_| bundles.id()).collect();
        let mut creators: Vec<_> = ids
            .iter()
            .map(|id| {
                let bundle = bundles.bundle(id, "exec sleep 1000", |_| {});
                let mut command = bundles.command(&["create", "--bundle", bundle.to_str().unwrap(), id]);
                command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
            })
            .collect();
        for creator in &mut creators {
            // The one place where a test waits for a time: the moment of the kill is what is varied.
            std::thread::sleep(Duration::from_micros(moments.next(8_000)));
            creator.kill().unwrap();
            creator.wait().unwrap();
        }
        for id in &ids {
            let mut starter = bundles.command(&["start", id]).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_micros(moments.next(4_000)));
            starter.kill().unwrap();
            starter.wait().unwrap();
            survived += usize::from(bundles.call(&["state", id]).code == 0);
            let mut deleter =
                bundles.command(&["delete", "--force", id]).stderr(Stdio::null()).spawn().unwrap();
            if moments.next(2) == 0 {
                std::thread::sleep(Duration::from_micros(moments.next(4_000)));
                deleter.kill().unwrap();
            }
            deleter.wait().unwrap();
        }
        for id in &ids {
            let output = bundles.call(&["delete", "--force", id]);
            assert_eq!(output.code, 0, "round {round}: {output:?}");
            assert!(bundles.cgroups(id).is_empty(), "round {round}: a cgroup of {id} is left");
        }
        assert_eq!(
            fs::read_dir(bundles.state_directory()).unwrap().count(),
            0,
            "round {round}: state is left"
        );
        let rootfs = bundles.rootfs().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(rootfs), "round {round}: a mount is left");
    }
    assert!(survived > 0, "every creation was killed before it had done anything");
    // The last first processes see their maker's end as soon as they are scheduled.
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while !processes_of(&bundles).is_empty() {
        assert!(std::time::Instant::now() < until, "processes are left: {:?}", processes_of(&bundles));
        std::thread::yield_now();
    }
}

/// Processes whose command line is a creation of this test's.
fn processes_of(bundles: &Bundles) -> Vec<String> {
    let state = bundles.state_directory().as_os_str().as_encoded_bytes();
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| entry.ok());
    entries
        .filter_map(|entry| {
            let text = fs::read(entry.path().join("cmdline")).ok()?;
            text.windows(state.len())
                .any(|part| part == state)
                .then(|| String::from_utf8_lossy(&text).into_owned())
        })
        .collect()
}
