//! What is found again, what is not, what stays secret, and when two builds are the same to the bit.

use std::fs;
use std::path::Path;

use super::world::World;

pub(crate) fn cached(stderr: &str) -> usize {
    stderr.matches("CACHED").count()
}

#[test]
fn steps_are_found_as_long_as_nothing_changes() {
    let Some(world) = World::new() else { return };
    let text = "FROM box\nARG used=1\nCOPY a /a\nRUN cat /a > /b\nLABEL l=1\nRUN --mount=type=cache,target=/c echo $used > /d\n";
    let context = world.context("cache", &[("Dockerfile", text), ("a", "1")]);
    let context_text = context.to_str().unwrap();
    let build = |more: &[&str]| {
        let output =
            world.run(&[&["build", "--progress", "plain", "-t", "x"][..], more, &[context_text]].concat());
        assert_eq!(output.code, 0, "{}", output.stderr);
        output.stderr
    };
    assert_eq!(cached(&build(&[])), 0);
    let id = world.inspect("x")["Id"].clone();
    assert_eq!(cached(&build(&[])), 3);
    assert_eq!(world.inspect("x")["Id"], id, "a build of the cache alone makes the same image");
    // A time is no content.
    fs::File::options()
        .write(true)
        .open(context.join("a"))
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
    assert_eq!(cached(&build(&[])), 3);
    assert_eq!(cached(&build(&["--build-arg", "used=2"])), 1);
    assert_eq!(cached(&build(&["--no-cache"])), 0);
    assert_eq!(cached(&build(&["--no-cache-filter", "stage-0"])), 0);
    fs::write(context.join("a"), "2").unwrap();
    assert_eq!(cached(&build(&[])), 0);
    fs::write(context.join("a"), "1").unwrap();
    assert_eq!(cached(&build(&[])), 3);
    // Images go, steps stay until they are pruned.
    world.ok(&["rmi", "-f", "x"]);
    world.ok(&["image", "prune", "-f"]);
    assert_eq!(cached(&build(&[])), 3);
    assert!(world.ok(&["builder", "du"]).contains("cachemount"));
    world.ok(&["rmi", "-f", "x"]);
    world.ok(&["builder", "prune", "-f"]);
    assert_eq!(cached(&build(&[])), 0);
    world.ok(&["builder", "prune", "-af"]);
    let left = world.ok(&["builder", "du", "--format", "{{.Type}}"]);
    assert_eq!(left, "", "all is gone");
    world.ok(&["run", "--rm", "--network", "none", "x", "cat", "/b"]);
}

#[test]
fn the_build_cache_is_part_of_the_system() {
    let Some(world) = World::new() else { return };
    let text = "FROM box\nRUN --mount=type=cache,target=/c echo x > /c/f && echo y > /y\n";
    let context = world.context("system", &[("Dockerfile", text)]);
    world.ok(&["build", "-t", "x", context.to_str().unwrap()]);
    let row = || {
        let rows =
            world.ok(&["system", "df", "--format", "{{.Type}}: {{.TotalCount}} {{.Active}} {{.Size}}"]);
        rows.lines().find_map(|row| row.strip_prefix("Build Cache: ")).unwrap().to_owned()
    };
    // The step of the box, the other one, and the directory, which alone is no image's.
    let with_images = row();
    assert!(with_images.starts_with("3 0 ") && !with_images.ends_with(" 0B"), "{with_images}");
    let verbose = world.ok(&["system", "df", "-v"]);
    assert!(verbose.contains("Build cache usage: ") && verbose.contains("cachemount"), "{verbose}");
    world.ok(&["rmi", "-f", "x"]);
    assert_eq!(world.ok(&["system", "prune", "-f", "--filter", "label=x"]), "Total reclaimed space: 0B");
    assert!(row().starts_with("3 0 "));
    let pruned = world.ok(&["system", "prune", "-f"]);
    assert!(pruned.contains("Deleted build cache objects:\n"), "{pruned}");
    assert!(row().starts_with("2 0 "), "what the image box has, and the directory: {}", row());
    world.ok(&["system", "prune", "-af"]);
    assert_eq!(row(), "0 0 0B");
}

#[test]
fn two_builds_are_the_same_to_the_bit() {
    let Some(world) = World::new() else { return };
    let text = "FROM box\nCOPY a /x/y/a\nWORKDIR /w\nRUN touch /now && mkdir /d && rm /etc/group\n";
    let context = world.context("same", &[("Dockerfile", text), ("a", "1")]);
    let context = context.to_str().unwrap();
    let build = |options: &[&str]| {
        let id = world.ok(&[&["build", "-q", "--no-cache"][..], options, &[context]].concat());
        assert!(id.starts_with("sha256:") && !id.contains('\n'), "{id}");
        id
    };
    let one = build(&["--timestamp", "1000000000"]);
    assert_eq!(one, build(&["--timestamp", "1000000000"]));
    assert_eq!(one, build(&["--build-arg", "SOURCE_DATE_EPOCH=1000000000"]));
    assert_ne!(one, build(&["--timestamp", "1000000001"]));
    let config = world.config(&one);
    assert_eq!(config["created"], "2001-09-09T01:46:40Z");
}

/// No file below `root` has the text.
fn assert_nowhere(root: &Path, text: &str) {
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            assert_nowhere(&path, text);
        } else if metadata.is_file() {
            let bytes = fs::read(&path).unwrap();
            let found = bytes.windows(text.len()).any(|window| window == text.as_bytes());
            assert!(!found, "{} has the secret", path.display());
        }
    }
}

#[test]
fn secrets_stay_secret() {
    const SECRET: &str = "correct-horse-battery-staple";
    let Some(world) = World::new() else { return };
    let text = "FROM box\nRUN --mount=type=secret,id=s test \"$(cat /run/secrets/s)\" = correct-horse-battery-sta\"\"ple\n\
                RUN --mount=type=secret,id=s,env=S test -n \"$S\" && test ! -e /run/secrets/s\n\
                RUN --mount=type=secret,id=s,target=/k,mode=0440,uid=1000 ls -ln /k > /seen\n\
                RUN --mount=type=secret,id=s --mount=type=cache,target=/c test -f /run/secrets/s\n\
                RUN --mount=type=secret,id=other test ! -e /run/secrets/other\n";
    let context = world.context("secret", &[("Dockerfile", text)]);
    let outside = tempfile::tempdir().unwrap();
    let file = outside.path().join("s");
    fs::write(&file, SECRET).unwrap();
    let secret = format!("id=s,src={}", file.display());
    let output = world.run(&[
        "build",
        "-t",
        "x",
        "--progress",
        "rawjson",
        "--secret",
        &secret,
        context.to_str().unwrap(),
    ]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(!output.stderr.contains(SECRET), "{}", output.stderr);
    assert_nowhere(&world.store(), SECRET);
    let seen = world.ok(&["run", "--rm", "--network", "none", "x", "cat", "/seen"]);
    assert!(seen.starts_with("-r--r-----    1 1000     0"), "{seen}");
    // Another value is no other step.
    fs::write(&file, "x").unwrap();
    let output = world.run(&["build", "--progress", "plain", "--secret", &secret, context.to_str().unwrap()]);
    assert_eq!(cached(&output.stderr), 5, "{}", output.stderr);
    // A failing step tells nothing either.
    fs::write(&file, SECRET).unwrap();
    fs::write(context.join("Dockerfile"), "FROM box\nRUN --mount=type=secret,id=s,env=S false\n").unwrap();
    let output = world.run(&["build", "--secret", &secret, context.to_str().unwrap()]);
    assert!(output.code == 1 && !output.stderr.contains(SECRET), "{output:?}");
    assert_nowhere(&world.store(), SECRET);
}

#[test]
fn cache_directories_are_found_again_and_locked() {
    let Some(world) = World::new() else { return };
    let text = "FROM box\nARG n\nRUN --mount=type=cache,id=c,target=/c,sharing=locked,uid=1000,mode=0700 \
                echo $n >> /c/log; ls -ldn /c > /seen; cat /c/log > /all\n";
    let context = world.context("mounts", &[("Dockerfile", text)]);
    let context = context.to_str().unwrap();
    std::thread::scope(|scope| {
        for n in 0..3 {
            let (world, argument) = (&world, format!("n={n}"));
            scope.spawn(move || world.ok(&["build", "--build-arg", &argument, context]));
        }
    });
    world.ok(&["build", "-t", "x", "--build-arg", "n=last", context]);
    let all = world.ok(&["run", "--rm", "--network", "none", "x", "cat", "/all"]);
    assert_eq!((all.lines().count(), all.lines().last()), (4, Some("last")), "{all}");
    let seen = world.ok(&["run", "--rm", "--network", "none", "x", "cat", "/seen"]);
    assert!(seen.starts_with("drwx------    2 1000     0"), "{seen}");
}
