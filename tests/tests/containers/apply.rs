//! Changes of a container on a root filesystem: written down to it, and forgotten.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::inotify;

use super::world::World;

/// What a tree is, by path: everything but times of access and change, and inode numbers.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    fn walk(root: &Path, at: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let kind = metadata.file_type();
            let content = match () {
                () if kind.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
                () if kind.is_file() => format!("{:?}", fs::read(&path).unwrap()),
                () if kind.is_fifo() => "fifo".into(),
                () if kind.is_char_device() => format!("device {}", metadata.rdev()),
                () => String::new(),
            };
            let links = if kind.is_dir() { 0 } else { metadata.nlink() };
            let text = format!(
                "{:o} {}:{} {} links, {}.{} {content}",
                metadata.mode(),
                metadata.uid(),
                metadata.gid(),
                links,
                metadata.mtime(),
                metadata.mtime_nsec()
            );
            found.insert(path.strip_prefix(root).unwrap().to_owned(), text);
            if kind.is_dir() {
                walk(root, &path, found);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

/// A root filesystem with something of every kind.
fn rootfs(world: &World) -> PathBuf {
    let root = world.path().join("root");
    let copied =
        std::process::Command::new("cp").arg("-a").arg(world.path().join("rootfs")).arg(&root).status();
    assert!(copied.unwrap().success());
    for directory in ["proc", "sys", "dev", "old/deep/er", "swap/a", "swap/b", "opaque/sub", "gone/in"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    for (file, text) in [
        ("etc/hosts", ""),
        ("etc/hostname", ""),
        ("etc/resolv.conf", ""),
        ("old/deep/er/file", "moved along\n"),
        ("swap/a/one", "1\n"),
        ("swap/b/two", "2\n"),
        ("opaque/sub/x", "x\n"),
        ("gone/in/file", "gone\n"),
        ("data/changed", "before\n"),
        ("data/mode", "mode\n"),
        ("data/kind", "a file\n"),
        ("data/link1", "linked\n"),
    ] {
        fs::write(root.join(file), text).unwrap();
    }
    fs::hard_link(root.join("data/link1"), root.join("data/link2")).unwrap();
    symlink("/etc", root.join("data/out")).unwrap();
    root
}

const SCRIPT: &str = "set -e; cd /data
echo after > changed; chmod 4750 mode; chown 7:8 mode; rm kind; mkdir -p kind/now; echo x > kind/now/f
echo more >> link1; mkdir -p new/dir; echo y > new/dir/f; ln new/dir/f new/g; ln -s nowhere new/l; mkfifo new/fifo
mv /old /renamed; echo z > /renamed/deep/added; rm /renamed/deep/er/file
mv /swap/a /swap/c; mv /swap/b /swap/a; mv /swap/c /swap/b
rm -r /opaque; mkdir /opaque; echo again > /opaque/y
rm -r /gone; echo replaced > tmp; mv tmp /srv/plain; rm out; echo safe > out; touch -d 2001-02-03 new/dir";

fn run(world: &World, root: &Path, script: &str) {
    world.ok(&["run", "--rootfs", root.to_str().unwrap(), "--name", "c", "sh", "-c", script]);
}

fn merged(world: &World) -> PathBuf {
    let archive = world.path().join("merged.tar");
    let to = world.path().join("merged");
    fs::create_dir(&to).unwrap();
    world.ok(&["export", "-o", archive.to_str().unwrap(), "c"]);
    let arguments = ["-C", to.to_str().unwrap(), "-xpf", archive.to_str().unwrap()];
    assert!(std::process::Command::new("tar").args(arguments).status().unwrap().success());
    to
}

fn nothing_is_left(root: &Path) {
    for path in tree(root).keys() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(!name.starts_with(".layerfs-"), "{path:?} is left");
    }
}

#[test]
fn an_applied_container_changes_nothing_any_more_and_its_root_is_as_it_was_seen() {
    let Some(world) = World::new() else { return };
    let root = rootfs(&world);
    let untouched = fs::metadata(root.join("data/mode")).unwrap().ino();
    run(&world, &root, SCRIPT);
    let seen = tree(&merged(&world));
    let listed = world.ok(&["apply", "--dry-run", "c"]);
    assert!(listed.contains("\nM /data/mode\n") && listed.contains("\nD /gone\n"), "{listed}");
    let before = tree(&root);
    let output = world.layerfs(&["apply", "c"]);
    assert!(output.code == 1 && output.stderr.contains("--yes"), "{output:?}");
    assert_eq!(tree(&root), before);
    world.ok(&["apply", "-y", "c"]);
    let mut applied = tree(&root);
    let mut seen: BTreeMap<_, _> = seen;
    // What an archive does not keep: nanoseconds; the link count of what is in it is the same.
    let whole = |text: &mut String| {
        let (head, rest) = text.split_once(" links, ").unwrap();
        let (seconds, rest) = rest.split_once('.').unwrap();
        let content = rest.split_once(' ').unwrap().1;
        *text = format!("{head} {seconds} {content}");
    };
    applied.values_mut().for_each(whole);
    seen.values_mut().for_each(whole);
    for (path, now) in &applied {
        assert_eq!(seen.get(path), Some(now), "{path:?}");
    }
    assert_eq!(
        applied.len(),
        seen.len(),
        "{:?}",
        seen.keys().filter(|p| !applied.contains_key(*p)).collect::<Vec<_>>()
    );
    assert_eq!(fs::metadata(root.join("data/mode")).unwrap().ino(), untouched, "data was moved");
    assert_eq!(fs::metadata(root.join("data/link2")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(root.join("data/new/g")).unwrap().nlink(), 2);
    nothing_is_left(&root);
    assert_eq!(world.ok(&["diff", "c"]), "");
    assert_eq!(world.ok(&["apply", "-y", "c"]), "");
    // And it goes on from there.
    world.ok(&["rm", "c"]);
    run(&world, &root, "rm /renamed/deep/added; echo 2 > /data/changed");
    world.ok(&["apply", "-y", "c"]);
    assert_eq!(fs::read_to_string(root.join("data/changed")).unwrap(), "2\n");
    assert!(!root.join("renamed/deep/added").exists());
}

#[test]
fn what_others_have_changed_meanwhile_is_refused() {
    let Some(world) = World::new() else { return };
    let root = rootfs(&world);
    run(&world, &root, SCRIPT);
    let conflicts = |path: &str, why: &str| {
        let output = world.layerfs(&["apply", "--dry-run", "c", path]);
        assert_eq!(output.code, 1, "{path}: {output:?}");
        assert!(output.stderr.contains(&format!("{path} {why}")), "{path}: {}", output.stderr);
    };
    // Content, and only attributes; the times are put back.
    let times = fs::metadata(root.join("data/changed")).unwrap().modified().unwrap();
    fs::write(root.join("data/changed"), "theirs\n").unwrap();
    fs::File::open(root.join("data/changed")).unwrap().set_modified(times).unwrap();
    conflicts("/data/changed", "was changed");
    fs::set_permissions(root.join("data/mode"), fs::Permissions::from_mode(0o640)).unwrap();
    conflicts("/data/mode", "was changed");
    // Made where something was made.
    fs::create_dir(root.join("data/new")).unwrap();
    fs::write(root.join("data/new/g"), "theirs\n").unwrap();
    conflicts("/data/new/g", "was made or changed");
    // Something in what was removed.
    fs::write(root.join("gone/in/later"), "").unwrap();
    conflicts("/gone", "has something that was made or changed meanwhile: /gone/in");
    // Old files in a directory that has taken another's place.
    fs::rename(root.join("data"), root.join("data.old")).unwrap();
    assert!(
        std::process::Command::new("cp")
            .arg("-a")
            .arg(root.join("data.old"))
            .arg(root.join("data"))
            .status()
            .unwrap()
            .success()
    );
    conflicts("/data/link1", "is in /data, which was replaced");
    let before = tree(&root);
    assert_eq!(world.layerfs(&["apply", "-y", "c"]).code, 1);
    assert_eq!(tree(&root), before);
    let output = world.layerfs(&["apply", "-y", "c", "/old"]);
    assert!(output.code == 1 && output.stderr.contains("renamed"), "{output:?}");
    // What is not touched by that can be applied, and leaves the container; and all of it by force.
    world.ok(&["apply", "-y", "c", "/srv/plain"]);
    assert_eq!(fs::read_to_string(root.join("srv/plain")).unwrap(), "replaced\n");
    assert!(!world.ok(&["diff", "c"]).contains("/srv"));
    world.ok(&["apply", "-y", "--force", "c"]);
    assert_eq!(fs::read_to_string(root.join("data/changed")).unwrap(), "after\n");
    assert!(!root.join("gone").exists());
    nothing_is_left(&root);
}

#[test]
fn chosen_changes_are_applied_also_while_it_runs() {
    let Some(world) = World::new() else { return };
    let root = rootfs(&world);
    let script = "mkdir -p /data/n/m; echo 1 > /data/n/m/f; echo 2 > /data/n/g; rm /srv/plain; chmod 600 /etc/passwd; touch /data/ready; sleep 1000";
    world.ok(&["run", "-d", "--rootfs", root.to_str().unwrap(), "--name", "c", "sh", "-c", script]);
    while world.layerfs(&["exec", "c", "test", "-e", "/data/ready"]).code != 0 {}
    world.ok(&["apply", "-y", "c", "/data/n/m/f", "/srv/plain", "/etc"]);
    assert_eq!(fs::read_to_string(root.join("data/n/m/f")).unwrap(), "1\n");
    assert!(!root.join("data/n/g").exists() && !root.join("srv/plain").exists());
    assert_eq!(fs::metadata(root.join("etc/passwd")).unwrap().mode() & 0o777, 0o600);
    assert_eq!(world.ok(&["exec", "c", "cat", "/data/n/m/f", "/data/n/g"]), "1\n2");
    world.ok(&["stop", "-t", "0", "c"]);
    world.ok(&["apply", "-y", "c", "/data/n/m/f", "/srv/plain", "/etc"]);
    assert_eq!(world.ok(&["diff", "c"]), "C /data\nC /data/n\nA /data/n/g\nA /data/ready");
    // Images are never changed.
    world.ok(&["create", "--name", "i", "box"]);
    let output = world.layerfs(&["apply", "-y", "i"]);
    assert!(output.code == 1 && output.stderr.contains("commit"), "{output:?}");
}

#[test]
fn discarded_changes_are_gone() {
    let Some(world) = World::new() else { return };
    let root = rootfs(&world);
    run(&world, &root, SCRIPT);
    let before = tree(&root);
    world.ok(&["discard", "-y", "c", "/data/changed", "/data/kind", "/opaque", "/gone"]);
    let diff = world.ok(&["diff", "c"]);
    assert!(
        !diff.contains("changed")
            && !diff.contains("kind")
            && !diff.contains("opaque")
            && !diff.contains("gone")
    );
    assert_eq!(world.layerfs(&["discard", "c"]).code, 1);
    let output = world.layerfs(&["discard", "-y", "c", "/renamed"]);
    assert!(output.code == 0 && output.stderr.contains("discard /old"), "{output:?}");
    world.ok(&["discard", "-y", "c", "/old"]);
    assert!(!world.ok(&["diff", "c"]).contains("/old"));
    world.ok(&["discard", "--yes", "c"]);
    assert_eq!(world.ok(&["diff", "c"]), "");
    assert_eq!(tree(&root), before);
}

/// Killed at any moment, an apply is finished by the next.
#[test]
fn a_killed_apply_can_be_run_again() {
    let Some(world) = World::new() else { return };
    let root = rootfs(&world);
    run(&world, &root, SCRIPT);
    world.ok(&["apply", "-y", "c"]);
    let wanted: Vec<_> = tree(&root).into_keys().collect();
    world.ok(&["rm", "c"]);
    for number in 1..=5 {
        fs::remove_dir_all(&root).unwrap();
        let root = rootfs(&world);
        run(&world, &root, SCRIPT);
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
        for directory in ["", "data", "data/kind", "srv", "swap"] {
            // What is no directory yet is not watched.
            let flags =
                inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVE | inotify::WatchFlags::ONLYDIR;
            inotify::add_watch(&watch, root.join(directory), flags).ok();
        }
        let mut child = world.command(&["apply", "-y", "c"]).stdout(Stdio::null()).spawn().unwrap();
        // In the middle: after so many names were made or moved.
        let mut buffer = [std::mem::MaybeUninit::uninit(); 512];
        let mut events = inotify::Reader::new(&watch, &mut buffer);
        for _ in 0..number * 7 {
            events.next().unwrap();
        }
        child.kill().ok();
        child.wait().unwrap();
        world.ok(&["apply", "-y", "c"]);
        assert_eq!(tree(&root).into_keys().collect::<Vec<_>>(), wanted, "killed in step {number}");
        nothing_is_left(&root);
        assert_eq!(world.ok(&["diff", "c"]), "");
        world.ok(&["rm", "c"]);
    }
}

#[test]
fn regression_a_new_link_is_applied_without_the_rest() {
    let Some(world) = World::new() else { return };
    let root = rootfs(&world);
    let script = "ln /data/changed /data/h; echo x > /n";
    world.ok(&["run", "--rootfs", root.to_str().unwrap(), "--name", "q", "--", "sh", "-c", script]);
    let shown = world.ok(&["apply", "--dry-run", "q", "/data"]);
    assert!(shown.contains("/data/h"), "{shown}");
    world.ok(&["apply", "--yes", "q", "/data"]);
    assert_eq!(fs::read_to_string(root.join("data/h")).unwrap(), "before\n");
    assert!(!root.join("n").exists());
    // What is refused is said before it is tried.
    let script = "mv /old /elsewhere; echo x > /data/y";
    world.ok(&["run", "--rootfs", root.to_str().unwrap(), "--name", "r", "--", "sh", "-c", script]);
    let output = world.layerfs(&["apply", "--dry-run", "r", "/elsewhere"]);
    assert!(output.code != 0 && output.stderr.contains("together with all other changes"), "{output:?}");
}
