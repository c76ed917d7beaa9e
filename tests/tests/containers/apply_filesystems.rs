//! Changes written down to root filesystems that are not on ext4, and to what is mounted in them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use layerfs_tests::scratch::Scratch;
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use super::world::World;

/// `user::rw-,user:7:r--,group::r--,mask::r--,other::---` (version 2 of the kernel's form).
const ACL: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 7, 0, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16,
    0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];
/// `cap_net_raw+ep` (revision 2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Changes things beneath `place` that are not in what it is on.
fn change(place: &Path) {
    fs::write(place.join("changed"), "after\n").unwrap();
    fs::create_dir_all(place.join("new/dir")).unwrap();
    fs::write(place.join("new/dir/file"), vec![7; 100_000]).unwrap();
    fs::hard_link(place.join("new/dir/file"), place.join("new/link")).unwrap();
    fs::remove_dir_all(place.join("gone")).unwrap();
    let set = |name: &str, attribute: &str, value: &[u8]| {
        rustix::fs::setxattr(place.join(name), attribute, value, XattrFlags::empty()).unwrap();
    };
    set("changed", "user.colour", b"red");
    set("changed", "system.posix_acl_access", &ACL);
    set("new/dir", "system.posix_acl_default", &ACL);
    set("new/dir/file", "security.capability", &CAPABILITY);
    set("kept", "trusted.note", b"only an attribute");
    for (name, kind, number) in
        [("new/null", FileType::CharacterDevice, (1, 3)), ("new/disk", FileType::BlockDevice, (7, 200))]
    {
        let device = rustix::fs::makedev(number.0, number.1);
        rustix::fs::mknodat(CWD, place.join(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    }
    std::os::unix::fs::chown(place.join("new/null"), Some(7), Some(8)).unwrap();
}

fn prepare(place: &Path) {
    fs::write(place.join("changed"), "before\n").unwrap();
    fs::write(place.join("kept"), "data\n").unwrap();
    fs::create_dir_all(place.join("gone/in")).unwrap();
    fs::write(place.join("gone/in/file"), "gone\n").unwrap();
}

fn assert_changed(place: &Path) {
    assert_eq!(fs::read_to_string(place.join("changed")).unwrap(), "after\n");
    assert_eq!(fs::read(place.join("new/dir/file")).unwrap(), vec![7; 100_000]);
    assert_eq!(fs::metadata(place.join("new/link")).unwrap().nlink(), 2);
    assert!(!place.join("gone").exists());
    let get = |name: &str, attribute: &str| {
        let mut value = [0_u8; 100];
        let length = rustix::fs::getxattr(place.join(name), attribute, &mut value[..])
            .unwrap_or_else(|error| panic!("{attribute} of {name} in {}: {error}", place.display()));
        value[..length].to_vec()
    };
    assert_eq!(get("changed", "user.colour"), b"red");
    assert_eq!(get("changed", "system.posix_acl_access"), ACL);
    assert_eq!(get("new/dir", "system.posix_acl_default"), ACL);
    assert_eq!(get("new/dir/file", "security.capability"), CAPABILITY);
    assert_eq!(get("kept", "trusted.note"), b"only an attribute");
    let null = fs::metadata(place.join("new/null")).unwrap();
    assert_eq!((null.rdev(), null.uid(), null.gid()), (rustix::fs::makedev(1, 3), 7, 8));
    assert_eq!(null.mode() & 0o7777, 0o640);
    assert_eq!(fs::metadata(place.join("new/disk")).unwrap().rdev(), rustix::fs::makedev(7, 200));
    for entry in fs::read_dir(place).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(!name.to_string_lossy().starts_with(".layerfs-"), "{name:?} is left");
    }
}

/// xfs, with a btrfs in it: each change goes to the filesystem that it belongs to, with all that it has.
#[test]
fn everything_is_applied_on_xfs_and_on_a_btrfs_that_is_mounted_in_it() {
    let Some(world) = World::new() else { return };
    let (Some(outer), Some(inner)) = (Scratch::of_kind("xfs"), Scratch::of_kind("btrfs")) else { return };
    let root = outer.path().join("root");
    let copied =
        std::process::Command::new("cp").arg("-a").arg(world.path().join("rootfs")).arg(&root).status();
    assert!(copied.unwrap().success());
    let mounted = root.join("mounted");
    for directory in ["proc", "sys", "dev", "mounted", "own"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    prepare(inner.path());
    prepare(&root.join("own"));
    rustix::mount::mount_bind(inner.path(), &mounted).unwrap();
    let shown = root.to_str().unwrap();
    world.ok(&["run", "-d", "--rootfs", shown, "--name", "c", "sleep", "1000"]);
    let pid = world.inspect("c", "{{.State.Pid}}");
    // Through the container's own view, by somebody who may make devices.
    let view = Path::new("/proc").join(pid).join("root");
    change(&view.join("own"));
    change(&view.join("mounted"));
    assert_eq!(fs::read_to_string(root.join("own/changed")).unwrap(), "before\n");
    world.ok(&["stop", "-t", "0", "c"]);
    world.ok(&["apply", "-y", "c"]);
    assert_changed(&root.join("own"));
    assert_changed(inner.path());
    assert_eq!(world.ok(&["diff", "c"]), "");
    // Nothing of the inner one's was put on the outer one, below the mount.
    rustix::mount::unmount(&mounted, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(fs::read_dir(&mounted).unwrap().count(), 0);
    world.ok(&["rm", "c"]);
}
