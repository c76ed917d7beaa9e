//! Documents that make no sense: the field is named, and nothing is changed.

use layerfs_tests::bundle::Bundles;
use serde_json::{Value, json};

type Edit = fn(&mut Value);

#[test]
fn bad_documents_name_the_field_and_change_nothing() {
    let Some(bundles) = Bundles::own() else { return };
    let cases: [(&str, Edit); 30] = [
        ("ociVersion", |spec| spec["ociVersion"] = json!("2.0.0")),
        ("ociVersion", |spec| spec["ociVersion"] = json!("nonsense")),
        ("root", |spec| drop(spec.as_object_mut().unwrap().remove("root"))),
        ("root.path", |spec| spec["root"]["path"] = json!("/no/such/directory")),
        ("linux.uidMappings[0]", |spec| users(spec, json!([{"containerID": 0, "hostID": 5, "size": 0}]))),
        ("linux.uidMappings[1]", |spec| {
            users(
                spec,
                json!([{"containerID": 0, "hostID": 5, "size": 9}, {"containerID": 3, "hostID": 50, "size": 9}]),
            );
        }),
        ("process.user.uid", |spec| {
            users(spec, json!([{"containerID": 0, "hostID": 5, "size": 9}]));
            spec["process"]["user"]["uid"] = json!(77);
        }),
        ("linux.uidMappings", |spec| {
            spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 5, "size": 9}]);
        }),
        ("process.capabilities.bounding", |spec| {
            spec["process"]["capabilities"]["bounding"] = json!(["CAP_FLY"]);
        }),
        ("linux.seccomp.defaultAction", |spec| spec["linux"]["seccomp"] = json!({"defaultAction": "SHRUG"})),
        ("linux.seccomp.syscalls[0].args[0].index", |spec| {
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"],
                "action": "SCMP_ACT_ERRNO", "args": [{"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}]}]});
        }),
        ("linux.seccomp.listenerPath", |spec| {
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"],
                "action": "SCMP_ACT_NOTIFY"}]});
        }),
        ("process.args", |spec| spec["process"]["args"] = json!([])),
        ("process.cwd", |spec| spec["process"]["cwd"] = json!("here")),
        ("process.rlimits[0]", |spec| {
            spec["process"]["rlimits"] = json!([{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}]);
        }),
        ("process.apparmorProfile", |spec| spec["process"]["apparmorProfile"] = json!("none-such")),
        ("mounts[5].destination", |spec| {
            let mount = json!({"destination": "/a/../../b", "type": "tmpfs", "source": "t"});
            spec["mounts"].as_array_mut().unwrap().push(mount);
        }),
        ("hooks.poststop[0].path", |spec| spec["hooks"] = json!({"poststop": [{"path": "relative"}]})),
        ("linux.namespaces", |spec| spec["linux"]["namespaces"] = json!([{"type": "pid"}])),
        ("linux.namespaces[1].type", |spec| {
            spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "mount"}]);
        }),
        ("linux.intelRdt", |spec| spec["linux"]["intelRdt"] = json!({"closID": "x"})),
        ("process.user.uid", |spec| spec["process"]["user"]["uid"] = json!(u32::MAX)),
        ("process.user.gid", |spec| spec["process"]["user"]["gid"] = json!(1_u32 << 31)),
        ("process.user.additionalGids[1]", |spec| {
            spec["process"]["user"]["additionalGids"] = json!([1, u32::MAX]);
        }),
        ("linux.resources.devices[0].access", |spec| device_rule(spec, "access", json!("q"))),
        ("linux.resources.devices[0].major", |spec| device_rule(spec, "major", json!(-2))),
        ("linux.resources.devices[0].minor", |spec| device_rule(spec, "minor", json!(1_u64 << 32))),
        ("linux.sysctl[\"kernel.hostname\"]", |spec| {
            spec["linux"]["sysctl"] = json!({"kernel.hostname": "other"});
        }),
        ("linux.sysctl[\"kernel/domainname\"]", |spec| {
            spec["domainname"] = json!("one");
            spec["linux"]["sysctl"] = json!({"kernel/domainname": "other"});
        }),
        ("linux.cgroupsPath", |spec| spec["linux"]["cgroupsPath"] = json!("/a/../..")),
    ];
    for (field, edit) in cases {
        let id = bundles.id();
        let bundle = bundles.bundle(&id, "true", edit);
        let log = bundles.path().join("log.json");
        let output = bundles.call(&[
            "--log",
            log.to_str().unwrap(),
            "--log-format",
            "json",
            "create",
            "--bundle",
            bundle.to_str().unwrap(),
            &id,
        ]);
        // A machine with AppArmor takes the profile's name here, and fails later.
        if field == "process.apparmorProfile" && std::path::Path::new("/sys/module/apparmor").exists() {
            continue;
        }
        assert_eq!(output.code, 1, "{field}: {output:?}");
        assert!(output.stderr.contains(field), "{field}: {output:?}");
        let logged: Value =
            serde_json::from_str(std::fs::read_to_string(&log).unwrap().lines().last().unwrap()).unwrap();
        assert!(logged["msg"].as_str().unwrap().contains(field) && logged["level"] == "error", "{logged}");
        assert_eq!(
            std::fs::read_dir(bundles.state_directory()).unwrap().count(),
            0,
            "{field}: state is left"
        );
        assert_eq!(bundles.cgroups(&id).len(), 0, "{field}: a cgroup is left");
    }
}

fn device_rule(spec: &mut Value, field: &str, value: Value) {
    spec["linux"]["resources"]["devices"][0][field] = value;
}

fn users(spec: &mut Value, map: Value) {
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.push(json!({"type": "user"}));
    }
    spec["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 5, "size": 9}]);
    spec["linux"]["uidMappings"] = map;
}

#[test]
fn a_limit_without_its_controller_is_named() {
    let Some(bundles) = Bundles::own() else { return };
    let output = bundles.run("true", |spec| {
        spec["linux"]["resources"]["unified"] = json!({"nonsense.max": "1"});
    });
    assert_eq!(output.code, 125, "{output:?}");
    assert!(output.stderr.contains("linux.resources.unified[\"nonsense.max\"]"), "{output:?}");
}

#[test]
fn a_program_that_is_not_there_has_its_own_code_and_leaves_nothing() {
    let Some(bundles) = Bundles::own() else { return };
    let code = |args: Value| bundles.run("", |spec| spec["process"]["args"] = args).code;
    assert_eq!(code(json!(["nosuch"])), 127);
    assert_eq!(code(json!(["/data/file"])), 126);
    assert_eq!(code(json!(["/data"])), 126);
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let Some(bundles) = Bundles::own() else { return };
    for id in ["../x", "a/b", "..", ""] {
        for command in ["state", "delete", "start"] {
            let output = bundles.call(&[command, id]);
            assert_eq!(output.code, 1, "{command} {id:?}: {output:?}");
        }
    }
}
