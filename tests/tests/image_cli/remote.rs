//! Commands that speak to registries and other servers.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::server::fault::{FaultServer, Reply};
use crate::server::registry::{DockerRegistry, PASSWORD, USER};
use crate::world::{World, table, text};

/// One request over http; gives status line and headers.
fn put(host: &str, path: &str, media_type: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(host).unwrap();
    let head =
        format!("PUT {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {media_type}\r\nConnection: close\r\n");
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Lines whose order is the store's or the registry's.
fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn login_push_pull_search_and_logout() {
    let Some(world) = World::new() else { return };
    let Some(registry) = DockerRegistry::start(true, None) else { return };
    let host = registry.host();
    let name = format!("{host}/team/tool");
    let id = world.import(&format!("{name}:1"), "one", &[]);
    world.import(&format!("{name}:2"), "two", &[]);

    let denied = world.run(&["push", &format!("{name}:1")]).refused();
    assert!(denied.contains(&format!("layerfs login {host}")), "{denied}");
    assert!(world.run(&["login", &host]).refused().contains("--password-stdin"));
    let wrong = world.run_with(&["login", "-u", USER, "--password-stdin", &host], "wrong\n").refused();
    assert!(wrong.contains("denied"), "{wrong}");
    let login = world.run_with(&["login", "-u", USER, "--password-stdin", &host], &format!("{PASSWORD}\n"));
    assert!(
        login.code == 0 && login.stdout == "Login Succeeded\n" && login.stderr.contains("unencrypted"),
        "{login:?}"
    );
    // With what is kept, nothing is asked.
    assert!(world.run(&["login", &host]).ok().contains("Login Succeeded"));

    let pushed = world.run(&["push", &format!("{name}:1")]).ok();
    let lines: Vec<&str> = pushed.lines().collect();
    assert_eq!(lines[0], format!("The push refers to repository [{name}]"));
    assert!(lines[1].ends_with(": Pushed") && lines[2].starts_with("1: digest: sha256:"), "{pushed}");
    assert!(lines[2].contains(" size: ") && lines.len() == 3, "{pushed}");
    assert!(world.run(&["push", &format!("{name}:1")]).ok().contains(": Layer already exists\n"));
    let both = [format!("{name}:1"), format!("{name}:2")];
    assert_eq!(sorted(&world.run(&["push", "-q", "-a", &name]).ok()), both);
    assert!(world.run(&["push", "absent"]).refused().contains("No such image: absent"));

    let digest = world.run(&["inspect", "-f", "{{index .RepoDigests 0}}", &format!("{name}:1")]).ok();
    world.run(&["rmi", "-af"]).ok();
    let pulled = world.run(&["pull", &format!("{name}:1")]).ok();
    let lines: Vec<&str> = pulled.lines().collect();
    assert_eq!(lines[0], "1: Pulling from team/tool");
    assert!(lines[1].ends_with(": Pull complete"), "{pulled}");
    assert_eq!(lines[2], format!("Digest: {}", digest.trim().split_once('@').unwrap().1));
    assert_eq!(lines[3], format!("Status: Downloaded newer image for {name}:1"));
    assert_eq!(lines[4], format!("{name}:1"));
    assert!(!pulled.contains('\u{1b}'), "no terminal, no control sequences: {pulled:?}");
    let again = world.run(&["pull", &format!("{name}:1")]).ok();
    assert!(
        again.contains(": Already exists\n") && again.contains("Status: Image is up to date for"),
        "{again}"
    );
    assert_eq!(world.run(&["inspect", "-f", "{{.Id}}", &format!("{name}:1")]).ok(), format!("{id}\n"));
    // By digest: no tag.
    world.run(&["rmi", "-af"]).ok();
    world.run(&["pull", "-q", digest.trim()]).ok();
    assert_eq!(world.names(), [format!("{name}:<none>")]);
    assert_eq!(sorted(&world.run(&["pull", "-q", "-a", &name]).ok()), both);
    assert_eq!(world.names(), both);
    world.run(&["pull", "-a", &format!("{name}:1")]).refused();
    let absent = world.run(&["pull", &format!("{name}:none")]).refused();
    assert!(absent.contains("not found") && absent.contains(&host), "{absent}");

    // A registry without an index is searched by its catalogue.
    let found = world.run(&["search", &format!("{host}/tool")]).ok();
    assert_eq!(table(&found), [vec!["NAME", "DESCRIPTION", "STARS", "OFFICIAL"], vec![name.as_str(), "0"]]);
    assert_eq!(world.run(&["logout", &host]).ok(), format!("Removing login credentials for {host}\n"));
    assert_eq!(world.run(&["logout", &host]).ok(), format!("Not logged in to {host}\n"));
    world.run(&["pull", &format!("{name}:1")]).refused();
}

/// What a layer became when it was compressed is remembered: where the registry has it, nothing is compressed.
#[test]
fn a_layer_is_compressed_for_its_first_push_only() {
    let Some(world) = World::new() else { return };
    let Some(registry) = DockerRegistry::start(false, None) else { return };
    let name = format!("{}/tool:1", registry.host());
    world.import(&name, &"words that are said again and again\n".repeat(40_000), &[]);
    let layer = world.run(&["inspect", "-f", "{{index .RootFS.Layers 0}}", &name]).ok();
    let pushed = world.run(&["push", &name]).ok();
    assert!(pushed.contains(": Pushed\n"), "{pushed}");
    // Nothing is left to compress. (What is not in the store cannot be read, whatever is remembered of it.)
    let blob = world.path("root/images/blobs/sha256").join(layer.trim().strip_prefix("sha256:").unwrap());
    let kept = fs::read(&blob).unwrap();
    fs::remove_file(&blob).unwrap();
    let again = world.run(&["push", &name]).ok();
    assert!(again.contains(": Layer already exists\n"), "{again}");
    assert_eq!(again.lines().last(), pushed.lines().last(), "the same manifest");
    let other = format!("{}/other:1", registry.host());
    world.run(&["tag", &name, &other]).ok();
    let mounted = world.run(&["push", &other]).ok();
    assert!(mounted.contains(": Mounted"), "{mounted}");
    // Another level is another blob, and so is what a registry without it needs.
    let refused = world.run(&["push", "--compression-level", "9", &name]).refused();
    assert!(refused.contains(layer.trim()), "{refused}");
    fs::write(&blob, kept).unwrap();
    world.run(&["push", "--compression-level", "9", &name]).ok();
    let Some(elsewhere) = DockerRegistry::start(false, None) else { return };
    let there = format!("{}/tool:1", elsewhere.host());
    world.run(&["tag", &name, &there]).ok();
    let sent = world.run(&["push", &there]).ok();
    assert!(sent.contains(": Pushed\n"), "{sent}");
    assert_eq!(sent.lines().last(), pushed.lines().last(), "the same manifest everywhere");
    world.run(&["rmi", "-af"]).ok();
    world.run(&["pull", "-q", &there]).ok();
}

#[test]
fn an_image_of_several_platforms() {
    let Some(world) = World::new() else { return };
    let Some(registry) = DockerRegistry::start(false, None) else { return };
    let (host, name) = (registry.host(), format!("{}/multi", registry.host()));
    let mut manifests = Vec::new();
    let mut ids = Vec::new();
    for (architecture, variant) in [("arm64", "v8"), ("s390x", "")] {
        let platform = format!("linux/{architecture}/{variant}");
        let image = format!("{name}:{architecture}");
        ids.push(world.import(&image, architecture, &["--platform", platform.trim_end_matches('/')]));
        world.run(&["push", "-q", &image]).ok();
        let manifest = world.run(&["manifest", "inspect", "-v", &image]).ok();
        let manifest: Value = serde_json::from_str(&manifest).unwrap();
        assert_eq!(manifest["Descriptor"]["platform"]["architecture"], architecture, "{manifest}");
        let mut descriptor = manifest["Descriptor"].clone();
        descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
        manifests.push(descriptor);
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
    let answer = put(&host, "/v2/multi/manifests/all", media_type, &index.to_string());
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    world.run(&["rmi", "-af"]).ok();

    let name = format!("{name}:all");
    let error = world.run(&["pull", "--platform", "linux/riscv64", &name]).refused();
    assert!(error.contains("no matching manifest for linux/riscv64"), "{error}");
    assert!(error.contains("linux/arm64") && error.contains("linux/s390x"), "{error}");
    world.run(&["pull", "--platform", "a/b/c/d", &name]).refused();
    world.run(&["pull", "-q", "--platform", "linux/arm64", &name]).ok();
    let about = world.run(&["inspect", "-f", "{{.Id}} {{.Architecture}}", &name]).ok();
    assert_eq!(about, format!("{} arm64\n", ids[0]));
    // The other takes its name.
    world.run(&["pull", "-q", "--platform", "s390x", &name]).ok();
    assert_eq!(world.run(&["inspect", "-f", "{{.Id}}", &name]).ok(), format!("{}\n", ids[1]));

    let shown: Value = serde_json::from_str(&world.run(&["manifest", "inspect", &name]).ok()).unwrap();
    assert_eq!(shown["manifests"].as_array().unwrap().len(), 2);
    let verbose: Value =
        serde_json::from_str(&world.run(&["manifest", "inspect", "-v", &name]).ok()).unwrap();
    assert_eq!(verbose[1]["Descriptor"]["platform"]["architecture"], "s390x");
    assert!(verbose[1]["OCIManifest"]["layers"].is_array(), "{verbose}");
    assert!(verbose[0]["Ref"].as_str().unwrap().starts_with(&format!("{name}@sha256:")), "{verbose}");
    let missing = world.run(&["manifest", "inspect", &format!("{host}/multi:none")]).refused();
    assert!(missing.contains("no such manifest: ") && missing.contains("/multi:none"), "{missing}");
    // What was never pushed is shown where it is asked for.
    world.import(&format!("{host}/multi:mine"), "mine", &[]);
    let refusal = world.run(&["manifest", "inspect", &format!("{host}/multi:mine")]).refused();
    assert!(refusal.contains("hint: ") && refusal.contains("--local"), "{refusal}");
    world.run(&["manifest", "inspect", "--local", &format!("{host}/multi:mine")]).ok();
}

#[test]
fn an_archive_is_imported_from_a_url() {
    let Some(world) = World::new() else { return };
    let archive = fs::read(world.archive("served", "from afar")).unwrap();
    let server = FaultServer::start(move |request| match request.target.as_str() {
        "/moved.tar" => Some(Reply::new(302).header("Location", "/root.tar")),
        "/root.tar" => Some(Reply::new(200).body(&archive)),
        "/cut.tar" => Some(Reply::new(200).body(&archive).cut(5000)),
        _ => None,
    });
    let url = |path: &str| format!("http://{}{path}", server.host());
    let id = world.run(&["import", &url("/moved.tar"), "served:1"]).ok();
    assert_eq!(world.run(&["images", "-q", "--no-trunc"]).ok(), id);
    let history = world.run(&["history", "--no-trunc", "--format", "{{.Comment}}", "served:1"]).ok();
    assert_eq!(history, format!("Imported from {}\n", url("/moved.tar")));
    let absent = world.run(&["import", &url("/none.tar")]).refused();
    assert!(absent.contains("not found"), "{absent}");
    let cut = world.run(&["import", &url("/cut.tar"), "cut:1"]).refused();
    assert!(cut.contains("/cut.tar"), "{cut}");
    assert_eq!(world.names(), ["served:1"]);
    assert!(world.run(&["store", "check"]).ok().contains("all is well"));
}

#[test]
fn search_shows_what_an_index_answers() {
    let Some(world) = World::new() else { return };
    let server = FaultServer::start(|request| {
        let results = json!({ "results": [
            { "name": "debian", "description": format!("{}\u{1b}[2J", "d".repeat(60)), "star_count": 4000,
              "is_official": true, "is_automated": false },
            { "name": "me/debian", "description": "mine", "star_count": 1, "is_official": false },
        ]});
        request.target.starts_with("/v1/search?q=deb&n=").then(|| Reply::new(200).body(results.to_string()))
    });
    let term = format!("{}/deb", server.host());
    let found = world.run(&["search", &term]).ok();
    let rows = table(&found);
    assert_eq!(rows[0], ["NAME", "DESCRIPTION", "STARS", "OFFICIAL"]);
    let short = format!("{}…", "d".repeat(44));
    assert_eq!(rows[1][1..], [short.as_str(), "4000", "[OK]"]);
    assert_eq!(rows[2][1..], ["mine", "1"]);
    assert!(!found.contains('\u{1b}'));
    let some = |filter: &str| world.run(&["search", "-f", filter, "--format", "{{.StarCount}}", &term]).ok();
    assert_eq!((some("stars=100"), some("is-official=false")), ("4000\n".into(), "1\n".into()));
    assert!(world.run(&["search", "--no-trunc", &term]).ok().contains(&"d".repeat(60)));
    world.run(&["search", "--limit", "0", &term]).refused_by_clap();
    world.run(&["search", "-f", "stars=many", &term]).refused();
}

#[test]
fn registries_conf_moves_mirrors_and_blocks() {
    let Some(world) = World::new() else { return };
    let Some(registry) = DockerRegistry::start(false, None) else { return };
    let host = registry.host();
    world.import(&format!("{host}/mirror/library/tool:1"), "mirrored", &[]);
    world.run(&["push", "-q", &format!("{host}/mirror/library/tool:1")]).ok();
    world.run(&["rmi", "-af"]).ok();
    let conf = format!(
        r#"unqualified-search-registries = ["quay.io"]
        [[registry]]
        prefix = "docker.io"
        location = "127.0.0.1:1"
        [[registry.mirror]]
        location = "{host}/mirror"
        [[registry]]
        prefix = "example.com/moved"
        location = "{host}/mirror"
        [[registry]]
        location = "blocked.example"
        blocked = true
        "#
    );
    fs::write(world.path("registries.conf"), conf).unwrap();
    // A short name is docker's; its mirror has it, and the image keeps the name by which it was asked for.
    world.run(&["pull", "-q", "tool:1"]).ok();
    world.run(&["pull", "-q", "example.com/moved/library/tool:1"]).ok();
    assert_eq!(world.names(), ["example.com/moved/library/tool:1", "tool:1"]);
    let blocked = world.run(&["pull", "blocked.example/x"]).refused();
    assert!(blocked.contains("blocked.example is blocked by registries.conf"), "{blocked}");
    // The mirror lacks it, and so the registry itself is told of.
    let absent = world.run(&["pull", "absent"]).refused();
    assert!(absent.contains("127.0.0.1:1"), "{absent}");
    // As an option, for docker's registry.
    fs::write(world.path("registries.conf"), "").unwrap();
    world.run(&["rmi", "-af"]).ok();
    world.run(&["pull", "-q", "--registry-mirror", &format!("http://{host}/mirror"), "tool:1"]).ok();
    fs::write(world.path("registries.conf"), "[[registry]]").unwrap();
    let malformed = world.run(&["pull", "tool:1"]).refused();
    assert!(malformed.contains(text(&world.path("registries.conf"))), "{malformed}");
}

/// A helper has the password, and only for the host it is named for.
#[test]
fn credential_helpers_are_asked_and_told() {
    let Some(world) = World::new() else { return };
    let Some(registry) = DockerRegistry::start(true, None) else { return };
    let host = registry.host();
    let helper = world.path("bin/docker-credential-test");
    fs::create_dir_all(world.path("bin")).unwrap();
    fs::create_dir_all(world.path("docker")).unwrap();
    let kept = world.path("kept");
    let script = format!(
        "#!/bin/sh\nset -e\ncase $1 in\nstore) cat >{kept} ;;\nget) cat {kept} 2>/dev/null || {{ echo credentials not found in \
         native keychain; exit 1; }} ;;\nerase) rm -f {kept} ;;\nlist) echo '{{}}' ;;\nesac\n",
        kept = text(&kept)
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let config = json!({ "credHelpers": { &host: "test" }, "HttpHeaders": { "kept": "yes" } });
    fs::write(world.path("docker/config.json"), config.to_string()).unwrap();
    let path = format!("{}:{}", text(&world.path("bin")), std::env::var("PATH").unwrap());
    let run = |arguments: &[&str], input: &str| {
        let file = world.path("input");
        fs::write(&file, input).unwrap();
        let mut command = world.command();
        command.args(arguments).env("PATH", &path).stdin(fs::File::open(file).unwrap());
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let login = run(&["login", "-u", USER, "--password-stdin", &host], PASSWORD);
    assert_eq!(login, (0, "Login Succeeded\n".to_owned()));
    let stored: Value = serde_json::from_str(&fs::read_to_string(&kept).unwrap()).unwrap();
    assert_eq!((&stored["Username"], &stored["Secret"]), (&json!(USER), &json!(PASSWORD)));
    let config = fs::read_to_string(world.path("docker/config.json")).unwrap();
    assert!(!config.contains("auth\"") && config.contains("HttpHeaders"), "{config}");
    let name = format!("{host}/tool:1");
    world.import(&name, "x", &[]);
    assert_eq!(run(&["push", "-q", &name], "").0, 0);
    assert_eq!(run(&["logout", &host], "").0, 0);
    assert!(!kept.exists());
    assert_eq!(run(&["pull", &name], "").0, 1);
}

/// A push compresses layers, so that the registry has another manifest of the same image; a pull brings it.
#[test]
fn regression_an_image_that_was_pushed_and_pulled_is_one_image() {
    let Some(world) = World::new() else { return };
    let Some(registry) = DockerRegistry::start(false, None) else { return };
    let remote = format!("{}/team/s", registry.host());
    let id = world.import("bb:1", &"compressible ".repeat(2000), &[]);
    world.run(&["tag", "bb:1", &format!("{remote}:latest")]).ok();
    let pushed = world.run(&["push", &remote]).ok();
    assert!(pushed.starts_with("Using default tag: latest\n"), "{pushed}");
    let other = world.run(&["pull", "--platform", "linux/s390x", &remote]);
    assert!(other.stderr.contains("does not match the specified platform (linux/s390x)"), "{other:?}");
    world.run(&["pull", "--platform", "nonsense", &remote]).refused();
    let repo_digest = world.run(&["inspect", "-f", "{{index .RepoDigests 0}}", "bb:1"]).ok();
    let repo_digest = repo_digest.trim();
    for name in ["bb:1", &remote, &id[7..19]] {
        let names = world.run(&["inspect", "-f", "{{json .RepoTags}}", name]).ok();
        let mut names: Vec<String> = serde_json::from_str(&names).unwrap();
        names.sort_unstable();
        assert_eq!(names, [format!("{remote}:latest"), "bb:1".into()], "{name}");
    }
    assert_eq!(world.names(), [format!("{remote}:latest"), "bb:1".into()]);
    assert!(world.run(&["rmi", &id[7..19]]).refused().contains("referenced in multiple repositories"));
    assert!(!world.run(&["image", "prune", "-f"]).ok().contains("deleted"), "a second image was there");
    assert_eq!(world.run(&["rmi", "bb:1"]).ok(), "Untagged: bb:1\n");
    // By digest it has a repository and no tag.
    world.run(&["rmi", &remote]).ok();
    assert_eq!(world.names(), Vec::<String>::new());
    world.run(&["pull", "-q", repo_digest]).ok();
    for pattern in [remote.clone(), remote.replace("team", "t*")] {
        let row = world.run(&["images", "--format", "{{.Repository}}:{{.Tag}}", &pattern]).ok();
        assert_eq!(row, format!("{remote}:<none>\n"), "{pattern}");
    }
    assert!(world.run(&["images", "-q", "t*"]).ok().is_empty(), "a star does not cross a slash");
    let gone = world.run(&["rmi", repo_digest]).ok();
    assert!(gone.starts_with(&format!("Untagged: {repo_digest}\nDeleted: {id}\n")), "{gone}");
}
