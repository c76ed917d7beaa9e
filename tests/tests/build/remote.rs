//! Steps and images that go to a registry and come from there, and caches in directories, between two stores.

use std::fs;

use serde_json::{Value, json};

use super::cache::cached;
use super::registry::{DockerRegistry, PASSWORD, USER};
use super::world::{Output, World};

/// Stages that depend on each other, steps of every kind, and one that changes nothing.
const STAGES: &str = "COPY a /a\nRUN cat /a /a > /b\nFROM scratch\nCOPY --from=0 /b /b\nWORKDIR /w\n";
const STEPS: usize = 4;
/// What is copied is the very layer that the program made.
const LAYERS: usize = 3;

fn built(output: &Output) -> usize {
    assert_eq!(output.code, 0, "{}", output.stderr);
    cached(&output.stderr)
}

/// A context on the image `box`, which the registry has.
fn context_on_box(world: &World, registry: &DockerRegistry) -> String {
    let base = format!("{}/box", registry.host());
    world.ok(&["tag", "box", &base]);
    world.ok(&["push", "-q", &base]);
    let text = format!("FROM {base}\n{STAGES}");
    let a = "1".repeat(10_000);
    world.context("remote", &[("Dockerfile", &text), ("a", &a)]).to_str().unwrap().to_owned()
}

fn manifest(registry: &DockerRegistry, world: &World, name: &str) -> Value {
    let text = world.ok(&["manifest", "inspect", &format!("{}/{name}", registry.host())]);
    serde_json::from_str(&text).unwrap()
}

#[test]
fn caches_in_registries_serve_other_stores() {
    let Some(world) = World::new() else { return };
    let Some(registry) = DockerRegistry::start(false, None) else { return };
    let host = registry.host();
    let context = context_on_box(&world, &registry);
    let second = |options: &[&str]| {
        let start = &["build", "--progress", "plain", "-t", "x"][..];
        world.run_in("second", &[start, options, &[&context]].concat())
    };
    let forget = || {
        assert_eq!(world.run_in("second", &["rmi", "-f", "x"]).code, 0);
        assert_eq!(world.run_in("second", &["builder", "prune", "-af"]).code, 0);
    };
    let image = "application/vnd.oci.image.manifest.v1+json";
    let list = "application/vnd.oci.image.index.v1+json";
    let docker_list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let forms = [
        ("", image, "layers"),
        (",image-manifest=false", list, "manifests"),
        (",oci-mediatypes=false", docker_list, "manifests"),
        (",mode=max,compression=zstd", image, "layers"),
        (",image-manifest=true,compression=uncompressed", image, "layers"),
    ];
    for (at, (form, media_type, layers)) in forms.into_iter().enumerate() {
        let name = format!("cache:{at}");
        let to = format!("type=registry,ref={host}/{name}{form}");
        world.ok(&["build", "-q", "-t", "x", "--cache-to", &to, &context]);
        let kept = manifest(&registry, &world, &name);
        assert_eq!(kept["mediaType"], media_type, "{form}: {kept}");
        // A list has its config among the blobs.
        let count = LAYERS + usize::from(layers == "manifests");
        assert_eq!(kept[layers].as_array().unwrap().len(), count, "{form}: {kept}");
        let output = second(&["--cache-from", &format!("type=registry,ref={host}/{name}")]);
        assert_eq!(built(&output), STEPS, "{form}: {}", output.stderr);
        assert_eq!(
            world.run_in("second", &["inspect", "-f", "{{.Id}}", "x"]).stdout,
            world.run(&["inspect", "-f", "{{.Id}}", "x"]).stdout,
            "{form}: the same image"
        );
        forget();
    }
    // The short form, and what came from a registry goes there again.
    let short = format!("{host}/cache:0");
    assert_eq!(built(&second(&["--cache-from", &short])), STEPS);
    let again = format!("{host}/again");
    assert_eq!(built(&second(&["--cache-to", &again])), STEPS);
    assert_eq!(
        manifest(&registry, &world, "again")["layers"],
        manifest(&registry, &world, "cache:0")["layers"]
    );
    forget();
    // Only what the result is made of: the stage that it copies from is carried out, and gives what is known.
    let to = format!("type=registry,ref={host}/cache:min,mode=min");
    world.ok(&["build", "-q", "--cache-to", &to, &context]);
    assert_eq!(manifest(&registry, &world, "cache:min")["layers"].as_array().unwrap().len(), 2);
    assert_eq!(built(&second(&["--cache-from", &format!("{host}/cache:min")])), 2);
    forget();
    // Other content is another step.
    fs::write(format!("{context}/a"), "2").unwrap();
    assert_eq!(built(&second(&["--cache-from", &short])), 0);
}

#[test]
fn caches_that_are_not_there() {
    let Some(world) = World::new() else { return };
    let Some(registry) = DockerRegistry::start(true, None) else { return };
    let host = registry.host();
    let context = world.context("none", &[("Dockerfile", "FROM scratch\nCOPY a /a\n"), ("a", "1")]);
    let context = context.to_str().unwrap();
    let build = |options: &[&str]| world.run(&[&["build", "--no-cache"], options, &[context]].concat());
    let cache = format!("{host}/team/cache");
    // Without credentials: for a source a warning, for a target an error with its remedy.
    let output = world.run(&["build", "--cache-from", &cache, context]);
    assert!(output.code == 0 && output.stderr.contains(&format!("warning: cache {cache}")), "{output:?}");
    let output = build(&["-t", "not", "--cache-to", &cache]);
    assert!(output.code == 1 && output.stderr.contains(&format!("layerfs login {host}")), "{output:?}");
    assert_eq!(world.run(&["image", "inspect", "not"]).code, 1, "a failed build gives no image");
    let ignored = format!("type=registry,ref={cache},ignore-error=true");
    let output = build(&["--cache-to", &ignored]);
    assert!(output.code == 0 && output.stderr.contains("not written"), "{output:?}");
    let login = ["login", "-u", USER, "--password-stdin", &host];
    assert_eq!(world.with_input(&login, PASSWORD.as_bytes()).code, 0);
    let output = world.run_in("second", &["build", "--cache-from", &cache, context]);
    assert!(output.code == 0 && output.stderr.contains("not found"), "{output:?}");
    assert_eq!(build(&["--cache-to", &cache]).code, 0);
    let from = ["build", "--progress", "plain", "--cache-from", &cache, context];
    world.run_in("second", &["builder", "prune", "-af"]);
    assert_eq!(built(&world.run_in("second", &from)), 1);
    // An image that carries no steps, and a blob that is gone.
    world.ok(&["build", "-t", &format!("{host}/image"), "--push", context]);
    let output = world.run_in("third", &["build", "--cache-from", &format!("{host}/image"), context]);
    assert!(output.code == 0 && output.stderr.contains("has no steps"), "{output:?}");
    fs::remove_dir_all(registry.storage().join("docker/registry/v2/blobs")).unwrap();
    let output = world.run_in("fourth", &from);
    assert!(output.code == 0 && output.stderr.contains("goes on without it"), "{output:?}");
    // A server that is not there at all.
    drop(registry);
    let output = world.run_in("fifth", &from);
    assert!(output.code == 0 && output.stderr.contains("cannot reach"), "{output:?}");
    for text in ["type=gha", "type=registry", "type=registry,ref=x,mode=all", "A b"] {
        let output = world.run(&["build", "--cache-to", text, context]);
        assert!(output.code == 1 && output.stderr.contains(text), "{output:?}");
    }
}

#[test]
fn images_carry_their_own_steps() {
    let Some(world) = World::new() else { return };
    let Some(registry) = DockerRegistry::start(false, None) else { return };
    let context = context_on_box(&world, &registry);
    let name = format!("{}/carries", registry.host());
    world.ok(&["build", "-t", &name, "--push", "--cache-to", "type=inline", "--target", "0", &context]);
    let from = ["build", "--progress", "plain", "--cache-from", &name, "--target", "0", "-t", "x", &context];
    assert_eq!(built(&world.run_in("second", &from)), 2);
    // What is built on it has the steps of nobody else.
    let above = world.context("above", &[("Dockerfile", &format!("FROM {name}\nLABEL a=b\n"))]);
    let id = world.ok(&["build", "-q", above.to_str().unwrap()]);
    assert_eq!(world.config(&id)["org.layerfs.steps"], Value::Null);
    let id = world.ok(&["build", "-q", "--build-arg", "BUILDKIT_INLINE_CACHE=1", &context]);
    assert_eq!(world.config(&id)["org.layerfs.steps"].as_array().unwrap().len(), 2);
}

#[test]
fn caches_in_directories_serve_other_stores() {
    let Some(world) = World::new() else { return };
    let text = "FROM scratch AS one\nCOPY a /a\nFROM scratch\nCOPY --from=one a /b\n";
    let context = world.context("far", &[("Dockerfile", text), ("a", "1")]);
    let context = context.to_str().unwrap();
    let place = world.path().join("far-cache");
    let to = format!("type=local,dest={}", place.display());
    let from = format!("type=local,src={}", place.display());
    let second = || {
        let output =
            world.run_in("second", &["build", "--progress", "plain", "--cache-from", &from, context]);
        assert_eq!(world.run_in("second", &["builder", "prune", "-af"]).code, 0);
        output
    };
    assert_eq!(built(&second()), 0, "there is no such directory yet");
    world.ok(&["build", "--cache-to", &format!("{to},mode=min"), context]);
    assert_eq!(built(&second()), 1);
    world.ok(&["build", "--cache-to", &to, context]);
    assert_eq!(built(&second()), 2);
    // A damaged layer is not taken.
    let blob = fs::read_dir(place.join("blobs/sha256")).unwrap().next().unwrap().unwrap().path();
    fs::write(&blob, vec![0; fs::metadata(&blob).unwrap().len().try_into().unwrap()]).unwrap();
    let output = second();
    assert!(built(&output) < 2 && output.stderr.contains("goes on without it"), "{output:?}");
}

#[test]
fn builds_are_pushed() {
    let Some(world) = World::new() else { return };
    let Some(registry) = DockerRegistry::start(false, None) else { return };
    let host = registry.host();
    let a = "1".repeat(10_000);
    let context = world.context("pushed", &[("Dockerfile", "FROM scratch\nCOPY a /a\n"), ("a", &a)]);
    let context = context.to_str().unwrap();
    let (id_file, metadata_file) = (world.path().join("id"), world.path().join("metadata"));
    let build = |options: &[&str]| {
        let files =
            ["--iidfile", id_file.to_str().unwrap(), "--metadata-file", metadata_file.to_str().unwrap()];
        let id = world.ok(&[&["build", "-q"], &files[..], options, &[context]].concat());
        assert_eq!(fs::read_to_string(&id_file).unwrap(), id, "all that -q prints is the id");
        let metadata: Value = serde_json::from_slice(&fs::read(&metadata_file).unwrap()).unwrap();
        assert_eq!(metadata["containerimage.config.digest"], id);
        metadata
    };
    let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
    let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
    let (one, two, three) = (format!("{host}/one:1"), format!("{host}/two"), format!("{host}/three:x"));
    let of_registry = format!("type=registry,name={two},compression=zstd");
    let of_image = format!("type=image,name={three},push=true");
    for (options, name, layer) in [
        (&["-t", &one, "--push"][..], &one, gzip),
        (&["-o", &of_registry][..], &two, zstd),
        (&["-o", &of_image, "-t", &one][..], &three, gzip),
    ] {
        let metadata = build(options);
        let kept: Value = serde_json::from_str(&world.ok(&["manifest", "inspect", name])).unwrap();
        assert_eq!(kept["layers"][0]["mediaType"], layer, "{options:?}: {kept}");
        assert_eq!(kept["config"]["digest"], metadata["containerimage.config.digest"]);
        let names = metadata["image.name"].as_str().unwrap();
        assert!(names.split(',').any(|pushed| pushed.starts_with(name.as_str())), "{names}");
        // What is said is what the registry has: it is pulled by that digest.
        let digest = metadata["containerimage.digest"].as_str().unwrap();
        assert_eq!(metadata["containerimage.descriptor"]["digest"], json!(digest));
        let repository = name.trim_end_matches(":1").trim_end_matches(":x");
        let pulled = world.run_in("second", &["pull", "-q", &format!("{repository}@{digest}")]);
        assert_eq!(pulled.code, 0, "{}", pulled.stderr);
        world.ok(&["image", "inspect", name]);
    }
    // Nothing is pushed without being asked to.
    build(&["-t", &format!("{host}/four"), "-o", "type=image,push=false"]);
    assert_eq!(world.run(&["manifest", "inspect", &format!("{host}/four")]).code, 1);
    assert_eq!(world.run(&["build", "--push", context]).code, 1, "a name is needed");
    drop(registry);
    let output = world.run(&["build", "-t", &one, "--push", context]);
    assert!(output.code == 1 && output.stderr.contains("cannot reach"), "{output:?}");
}

#[test]
fn images_for_several_platforms() {
    let Some(world) = World::new() else { return };
    let Some(registry) = DockerRegistry::start(false, None) else { return };
    let host = registry.host();
    let text = "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /arch\nLABEL a=$TARGETARCH\n";
    let context = world.context(
        "platforms",
        &[("Dockerfile", text), ("amd64", "for amd64"), ("arm64", "for arm64"), ("riscv64", "for riscv64")],
    );
    let context = context.to_str().unwrap();
    let both = ["--platform", "linux/amd64,linux/arm64"];
    let (name, cache) = (format!("{host}/multi:1"), format!("{host}/multi:cache"));
    let metadata_file = world.path().join("metadata");
    let pushed = [
        &["build", "-q", "-t", &name, "--push", "--cache-to", &cache, "--metadata-file"][..],
        &[metadata_file.to_str().unwrap()],
        &both,
        &[context],
    ];
    let id = world.ok(&pushed.concat());
    let metadata: Value = serde_json::from_slice(&fs::read(&metadata_file).unwrap()).unwrap();
    let list = manifest(&registry, &world, "multi:1");
    let platforms: Vec<&Value> = list["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| &entry["platform"]["architecture"])
        .collect();
    assert_eq!(platforms, ["amd64", "arm64"], "{list}");
    assert_eq!(metadata["containerimage.descriptor"]["mediaType"], list["mediaType"]);
    // Here it is this machine's, and it stays whole: pushed again, it is for both.
    assert_eq!(world.inspect(&name)["Id"], json!(id));
    let other = format!("{host}/other");
    world.ok(&["push", &name, &other]);
    assert_eq!(manifest(&registry, &world, "other:latest")["manifests"], list["manifests"]);
    for architecture in ["amd64", "arm64"] {
        let platform = format!("linux/{architecture}");
        let pulled = world.run_in("second", &["pull", "-q", "--platform", &platform, &other]);
        assert_eq!(pulled.code, 0, "{}", pulled.stderr);
        let format = "{{.Architecture}} {{.Config.Labels.a}}";
        let shown = world.run_in("second", &["inspect", "-f", format, &other]);
        assert_eq!(String::from_utf8_lossy(&shown.stdout).trim(), format!("{architecture} {architecture}"));
    }
    // The cache has the steps of both.
    let from = [&["build", "--progress", "plain", "--cache-from", &cache][..], &both, &[context]].concat();
    let output = world.run_in("third", &from);
    assert_eq!(built(&output), 2);
    assert!(output.stderr.contains("[linux/arm64 stage-0 1/1]"), "{}", output.stderr);
    // As files, each has a directory.
    let out = world.path().join("out");
    world.ok(&[&["build", "-o", out.to_str().unwrap()][..], &both, &[context]].concat());
    assert_eq!(fs::read_to_string(out.join("linux_arm64/arch")).unwrap(), "for arm64");
    // What has nothing for this machine can be pushed and not be kept.
    let foreign = ["--platform", "linux/riscv64,linux/ppc64le", context];
    fs::write(format!("{context}/ppc64le"), "").unwrap();
    let output = world.run(&[&["build", "-t", "x"][..], &foreign].concat());
    assert!(output.code == 1 && output.stderr.contains("for this machine"), "{output:?}");
    let foreign_name = format!("{host}/foreign");
    world.ok(&[&["build", "-t", &foreign_name, "--push"][..], &foreign].concat());
    assert_eq!(manifest(&registry, &world, "foreign:latest")["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(world.run(&["image", "inspect", &foreign_name]).code, 1);
    let output = world.run(&[&["build", "-o", "type=oci,dest=x.tar"][..], &both, &[context]].concat());
    assert!(output.code == 1 && output.stderr.contains("one platform"), "{output:?}");
    // Nothing of it stays behind.
    world.ok(&["rmi", &name]);
    world.ok(&["store", "check"]);
    world.ok(&["system", "prune", "-af"]);
    let blobs = fs::read_dir(world.store().join("images/blobs/sha256")).unwrap().count();
    assert_eq!(blobs, 0, "blobs are left");
}
