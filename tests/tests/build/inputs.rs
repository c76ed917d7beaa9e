//! Where contexts and Dockerfiles come from, and where results go.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::world::World;

#[test]
fn contexts_and_dockerfiles_from_everywhere() {
    let Some(world) = World::new() else { return };
    let context = world.context(
        "in",
        &[("Dockerfile", "FROM scratch\nCOPY a /a\n"), ("a", "1"), ("sub/D", "FROM scratch\nLABEL f=sub\n")],
    );
    let path = context.to_str().unwrap();
    let tar = |flags: &str| {
        let output = Command::new("tar").args(["-C", path, flags, "-", "."]).output().unwrap();
        assert!(output.status.success());
        output.stdout
    };
    for flags in ["-cf", "-czf"] {
        let output = world.with_input(&["build", "-t", "x", "-"], &tar(flags));
        assert_eq!(output.code, 0, "{flags}: {}", output.stderr);
    }
    // The Dockerfile alone, and one from elsewhere.
    let output = world.with_input(&["build", "-t", "y", "-"], b"FROM scratch\nLABEL a=1\n");
    assert_eq!(output.code, 0, "{}", output.stderr);
    let output = world.with_input(&["build", "-"], b"FROM scratch\nCOPY a /\n");
    assert!(output.code == 1 && output.stderr.contains("there is no build context"), "{output:?}");
    let output =
        world.with_input(&["build", "-t", "z", "-f", "-", path], b"FROM scratch\nCOPY a /from-stdin\n");
    assert_eq!(output.code, 0, "{}", output.stderr);
    world.ok(&["build", "-t", "f", "-f", &format!("{path}/sub/D"), path]);
    world.ok(&["build", "-t", "f", "-f", "sub/D", path]);
    assert_eq!(world.inspect("f")["Config"]["Labels"]["f"], "sub");
    for arguments in [
        &["build"][..],
        &["build", "/no/such"],
        &["build", "git@h:x"],
        &["build", "-f", "none", path],
        &["build", "-f", "-", "-"],
    ] {
        let output = world.run(arguments);
        assert_eq!(output.code, 1, "{arguments:?}: {}", output.stderr);
    }
    assert_eq!(world.with_input(&["build", "-"], b"").code, 1);
}

#[test]
fn several_outputs_are_made_of_one_build() {
    let Some(world) = World::new() else { return };
    let context = world.context("many", &[("Dockerfile", "FROM scratch\nCOPY a /d/a\n"), ("a", "1")]);
    let (directory, archive) = (world.path().join("dir"), world.path().join("a.tar"));
    let outputs =
        [format!("type=local,dest={}", directory.display()), format!("type=oci,dest={}", archive.display())];
    let path = context.to_str().unwrap();
    world.ok(&["build", "-t", "many", "-o", &outputs[0], "-o", &outputs[1], path]);
    assert_eq!(fs::read(directory.join("d/a")).unwrap(), b"1");
    assert!(fs::metadata(&archive).unwrap().len() > 1000);
    assert_eq!(world.run(&["image", "exists", "many"]).code, 1, "an archive alone leaves no image");
    world.ok(&["build", "-t", "many", "-o", &outputs[1], "-o", "type=docker", path]);
    world.inspect("many");
    let output = world.run(&["build", "-o", "-", "-o", "type=oci", path]);
    assert!(output.code == 1 && output.stderr.contains("standard output"), "{output:?}");
}

#[test]
fn a_check_builds_nothing_and_scripts_of_docker_are_understood() {
    let Some(world) = World::new() else { return };
    let context = world.context(
        "check",
        &[
            ("Dockerfile", "FROM scratch AS x\nCOPY none /\n"),
            ("unwise", "FROM scratch\nENV key value\nCMD a b\n"),
        ],
    );
    let path = context.to_str().unwrap();
    // Nothing is built: what is missing is not met.
    let output = world.run(&["build", "--check", path]);
    assert!(output.code == 0 && output.stderr.contains("no warnings found"), "{output:?}");
    let unwise = format!("{path}/unwise");
    for arguments in [["--check", "-f", &unwise, path], ["--call=check", "-f", &unwise, path]] {
        let output = world.run(&[&["build"][..], &arguments].concat());
        assert!(output.code == 1 && output.stderr.contains("LegacyKeyValueFormat"), "{output:?}");
        assert!(output.stderr.contains("JSONArgsRecommended"), "{output:?}");
    }
    let output = world.run(&["build", "--call=outline", path]);
    assert!(output.code == 1 && output.stderr.contains("there are build and check"), "{output:?}");
    world.ok(&[
        "build",
        "--provenance=false",
        "--sbom=false",
        "--force-rm",
        "--rm=true",
        "--builder",
        "default",
        "--load",
        "--pull=false",
        "--no-cache=true",
        "-q",
        "-t",
        "x",
        "-t",
        "y",
        "--target",
        "none",
        "--target",
        "",
        "-f",
        &unwise,
        path,
    ]);
    world.inspect("y");
}

#[test]
fn results_go_where_they_are_wanted() {
    let Some(world) = World::new() else { return };
    let context = world.context("out", &[("Dockerfile", "FROM scratch\nCOPY a /d/a\n"), ("a", "1")]);
    let path = context.to_str().unwrap();
    let out = world.path().join("out");
    fs::create_dir_all(out.join("d")).unwrap();
    fs::write(out.join("d/mine"), "").unwrap();
    let out_text = out.to_str().unwrap();
    world.ok(&["build", "-o", out_text, path]);
    assert_eq!(fs::read_to_string(out.join("d/a")).unwrap(), "1");
    let names: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(out.join("d/mine").exists() && names.len() == 1, "{names:?}");
    for kind in ["oci", "docker"] {
        let archive = world.path().join(format!("{kind}.tar"));
        world.ok(&["build", "-t", "named:1", "-o", &format!("type={kind},dest={}", archive.display()), path]);
        assert_eq!(world.run(&["image", "inspect", "named:1"]).code, 1, "it is in the archive alone");
        world.ok(&["load", "-i", archive.to_str().unwrap()]);
        world.ok(&["rmi", "named:1"]);
    }
    let (id, metadata) = (world.path().join("id"), world.path().join("metadata"));
    let printed = world.ok(&[
        "build",
        "-q",
        "-t",
        "a:1",
        "-t",
        "b:2",
        "--iidfile",
        id.to_str().unwrap(),
        "--metadata-file",
        metadata.to_str().unwrap(),
        path,
    ]);
    assert_eq!(fs::read_to_string(id).unwrap(), printed);
    let metadata: serde_json::Value = serde_json::from_slice(&fs::read(metadata).unwrap()).unwrap();
    assert_eq!(metadata["containerimage.config.digest"], printed);
    assert_eq!(metadata["image.name"], "docker.io/library/a:1,docker.io/library/b:2");
    assert_eq!(
        (&world.inspect("a:1")["Id"], &world.inspect("b:2")["Id"]),
        (&printed.clone().into(), &printed.into())
    );
}

/// Answers so many requests with `body`.
fn serve(body: Vec<u8>, requests: usize) -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        for _ in 0..requests {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).unwrap() == 0 {
                    break;
                }
                head.extend(byte);
            }
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\nLast-Modified: Sun, 09 Sep 2001 01:46:40 GMT\r\n\r\n",
                body.len()
            );
            stream.write_all(answer.as_bytes()).unwrap();
            stream.write_all(&body).unwrap();
        }
    });
    (address, thread)
}

#[test]
fn contexts_come_from_urls() {
    let Some(world) = World::new() else { return };
    let context = world.context("url", &[("Dockerfile", "FROM scratch\nCOPY d/a /a\n"), ("d/a", "1")]);
    let tar = |flags: &str| {
        let output = Command::new("tar").arg("-C").arg(&context).args([flags, "-", "."]).output().unwrap();
        assert!(output.status.success());
        output.stdout
    };
    for (content, name) in [(tar("-cf"), "x.tar"), (tar("-czf"), "x.tar.gz"), (tar("-cJf"), "archive")] {
        let (address, server) = serve(content, 1);
        let output = world.run(&["build", "-o", "-", &format!("{address}/{name}")]);
        assert_eq!(output.code, 0, "{name}: {}", output.stderr);
        server.join().unwrap();
        assert_eq!(world.tree(&output.stdout)["a"], "f 644 0:0 a 1", "{name}");
    }
    // The Dockerfile alone has no context.
    let (address, server) = serve(b"FROM scratch\nLABEL from=url\n".to_vec(), 1);
    world.ok(&["build", "-t", "x", &format!("{address}/Dockerfile")]);
    server.join().unwrap();
    assert_eq!(world.inspect("x")["Config"]["Labels"]["from"], "url");
    let (address, server) = serve(b"FROM scratch\nCOPY a /\n".to_vec(), 1);
    let output = world.run(&["build", &format!("{address}/Dockerfile")]);
    server.join().unwrap();
    assert!(output.code == 1 && output.stderr.contains("there is no build context"), "{output:?}");
    let output = world.run(&["build", &address]);
    assert!(output.code == 1 && output.stderr.contains(&address), "{output:?}");
}

#[test]
fn add_unpacks_archives_and_downloads() {
    let Some(world) = World::new() else { return };
    let inner = world.context("inner", &[("lib/x", "1"), ("b", "2")]);
    symlink("b", inner.join("l")).unwrap();
    let context = world.context("add", &[("plain", "text")]);
    for (name, flags) in [("a.tar", "-cf"), ("a.tgz", "-czf"), ("a.txz", "-cJf")] {
        let status =
            Command::new("tar").arg("-C").arg(&inner).arg(flags).arg(context.join(name)).arg(".").status();
        assert!(status.unwrap().success());
    }
    let archive = fs::read(context.join("a.tgz")).unwrap();
    let (address, server) = serve(archive, 2);
    let text = format!(
        "FROM box\nRUN mkdir -p /one/real && ln -s real /one/lib\nADD a.tar /one/\nADD --chown=5:6 a.tgz /two\nADD a.txz plain /three/\n\
         ADD --unpack=false a.tar /four/\nADD {address}/p/f.tgz?x=1 /five/\nADD --unpack=true {address}/f.tgz /six/\n"
    );
    fs::write(context.join("Dockerfile"), text).unwrap();
    let path = context.to_str().unwrap();
    let output = world.run(&["build", "-o", "type=tar", path]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    server.join().unwrap();
    let tree = world.tree(&output.stdout);
    for line in [
        // The archive's directory is a link in the image: it is followed, as tar does.
        "f 644 0:0 one/real/x 1",
        "l one/lib real",
        "l one/l b",
        "f 644 5:6 two/lib/x 1",
        "f 644 0:0 three/b 2",
        "f 644 0:0 three/plain text",
        "f 644 0:0 six/b 2",
    ] {
        assert!(tree.values().any(|found| found == line), "{line} is missing: {tree:#?}");
    }
    assert!(tree["four/a.tar"].starts_with("f 644") && tree["five/f.tgz"].starts_with("f 600"), "{tree:#?}");
    let (address, server) = serve(b"data".to_vec(), 2);
    let digest = "sha256:3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7";
    fs::write(context.join("Dockerfile"), format!("FROM scratch\nADD --checksum={digest} {address}/f /f\n"))
        .unwrap();
    world.ok(&["build", path]);
    let wrong = digest.replace("3a6e", "0000");
    fs::write(context.join("Dockerfile"), format!("FROM scratch\nADD --checksum={wrong} {address}/f /f\n"))
        .unwrap();
    let output = world.run(&["build", path]);
    assert!(output.code == 1 && output.stderr.contains(digest), "{output:?}");
    server.join().unwrap();
}

#[test]
fn squashed_images_show_the_same_on_the_same_base() {
    let Some(world) = World::new() else { return };
    let base = "FROM box\nRUN mkdir -p /d/sub /gone/x /moved/in /file2dir_ && echo 1 > /d/a && echo 1 > /d/b && echo 1 > /d/sub/c \
                && echo 1 > /gone/x/y && echo m > /moved/in/m && echo 1 > /turns && mkdir /dir && touch /dir/x && echo h > /h\n";
    let base = world.context("base", &[("Dockerfile", base)]);
    world.ok(&["build", "-t", "base", base.to_str().unwrap()]);
    let text = "FROM base\nRUN echo 2 > /d/a && rm /d/b && busybox chmod 600 /d/sub/c && echo new > /made\n\
                RUN rm /made && rm -r /gone && mkdir /gone && echo 2 > /gone/z && busybox mv /moved /elsewhere\n\
                RUN rm /turns && mkdir /turns && touch /turns/t && rm -r /dir && echo f > /dir && ln /h /h2 && ln -s h /l\n\
                RUN rm -r /gone && mkdir /moved && echo n > /moved/n && echo over > /elsewhere/in/o && busybox chown 5:6 /d\n\
                USER me\nRUN true\n";
    let context = world.context("squash", &[("Dockerfile", text)]);
    let context = context.to_str().unwrap();
    let tree = |options: &[&str]| {
        let output = world.run(&[&["build", "-o", "type=tar"], options, &[context]].concat());
        assert_eq!(output.code, 0, "{}", output.stderr);
        world.tree(&output.stdout)
    };
    assert_eq!(tree(&["--squash"]), tree(&[]));
    world.ok(&["build", "-t", "x", "--squash", context]);
    let (squashed, base) = (world.inspect("x"), world.inspect("base"));
    let layers = |image: &serde_json::Value| image["RootFS"]["Layers"].as_array().unwrap().clone();
    let (own, below) = (layers(&squashed), layers(&base));
    assert_eq!((&own[..below.len()], own.len()), (&below[..], below.len() + 1));
    let config = world.config(squashed["Id"].as_str().unwrap());
    let history = config["history"].as_array().unwrap();
    let with_layers = history.iter().filter(|entry| entry["empty_layer"] != true).count();
    assert_eq!(with_layers, own.len(), "{history:?}");
    // What one step made and another removed is not in it.
    let archive = world.path().join("squashed.tar");
    world.ok(&["save", "-o", archive.to_str().unwrap(), "x"]);
    let mut names = Command::new("tar");
    let layer = own.last().unwrap().as_str().unwrap().replace(':', "/");
    names.arg("-xOf").arg(&archive).arg(format!("blobs/{layer}"));
    let names = names.output().unwrap().stdout;
    let mut list = Command::new("tar")
        .arg("-tf")
        .arg("-")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    list.stdin.take().unwrap().write_all(&names).unwrap();
    let names = String::from_utf8(list.wait_with_output().unwrap().stdout).unwrap();
    assert!(names.lines().any(|name| name == ".wh.gone") && !names.contains("made"), "{names}");
    let seen =
        world.ok(&["run", "--rm", "--network", "none", "x", "ls", "/elsewhere/in", "/moved", "/turns"]);
    assert_eq!(seen, "/elsewhere/in:\nm\no\n\n/moved:\nn\n\n/turns:\nt");
    world.ok(&["store", "check"]);
}

#[test]
fn stages_run_at_the_same_time() {
    let Some(world) = World::new() else { return };
    // Each waits for the other through a directory that both see: one after the other, they would wait for ever.
    let wait = |mine: &str, other: &str| {
        format!(
            "RUN --mount=type=cache,target=/c touch /c/{mine}; i=0; until test -e /c/{other}; do i=$((i+1)); test $i -lt 600 || exit 1; \
             sleep 0.05; done; touch /{mine}"
        )
    };
    let text = format!(
        "FROM box AS a\n{}\nFROM box AS b\n{}\nFROM scratch\nCOPY --from=a /one /\nCOPY --from=b /two /\n",
        wait("one", "two"),
        wait("two", "one")
    );
    let context = world.context("parallel", &[("Dockerfile", &text)]);
    world.ok(&["build", context.to_str().unwrap()]);
}
