//! Option text against the description it should give, word by word and contradiction by contradiction.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::config::{IdRange, IoMode, LowerSpec, MarkNamespace, UpperSpec, Xino};

fn ok(text: &str) -> Parsed {
    parse(OsStr::new(text)).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn config(text: &str) -> Config {
    let parsed = ok(text);
    assert_eq!(parsed.warnings, Vec::<String>::new(), "{text}");
    parsed.config
}

fn refused(text: &str) -> OptionError {
    parse(OsStr::new(text)).expect_err(text)
}

fn paths(config: &Config) -> Vec<&Path> {
    config.lowers.iter().map(|l| l.path.as_path()).collect()
}

#[test]
fn layers_in_order_and_defaults() {
    let c = config("lowerdir=/a:b:../c");
    assert_eq!(paths(&c), [Path::new("/a"), Path::new("b"), Path::new("../c")]);
    assert_eq!(c.upper, None);
    assert!(c.flags.read_only);
    assert_eq!(c, Config::new(["/a", "b", "../c"].map(LowerSpec::plain).to_vec(), None));

    let c = config("lowerdir=l,upperdir=u,workdir=w");
    assert_eq!(c.upper, Some(UpperSpec { upper: "u".into(), work: "w".into() }));
    assert_eq!(c, Config::new(vec![LowerSpec::plain("l")], c.upper.clone()));
}

#[test]
fn layers_escaped_appended_replaced() {
    assert_eq!(paths(&config(r"lowerdir=/a\:b:/c\,d:/e\\f")), [r"/a:b", "/c,d", r"/e\f"].map(Path::new));
    assert_eq!(paths(&config("lowerdir=/x,lowerdir=/a:/b")), ["/a", "/b"].map(Path::new));
    assert_eq!(
        paths(&config("lowerdir=/a,lowerdir+=/b:c,lowerdir+=/d")),
        ["/a", "/b:c", "/d"].map(Path::new)
    );
    assert_eq!(paths(&config("lowerdir+=/a,lowerdir+=/b")), ["/a", "/b"].map(Path::new));
    let c = config(r"lowerdir=/l,upperdir=/u\,v:w,workdir=/w\\k");
    assert_eq!(c.upper, Some(UpperSpec { upper: "/u,v:w".into(), work: r"/w\k".into() }));
    // Names are bytes.
    let parsed = parse(OsStr::from_bytes(b"lowerdir=/\xff\xfe:/b")).unwrap();
    assert_eq!(parsed.config.lowers[0].path.as_os_str().as_bytes(), b"/\xff\xfe");
}

#[test]
fn up_to_500_layers() {
    let stack = |n: usize| {
        let layers: Vec<String> = (0..n).map(|i| format!("l/{i}")).collect();
        format!("lowerdir={}", layers.join(":"))
    };
    assert_eq!(config(&stack(MAX_LOWERS)).lowers.len(), 500);
    assert_eq!(refused(&stack(501)), OptionError::TooManyLowers { count: 501, max: 500 });
}

#[test]
fn a_caller_of_containers_storage() {
    let parsed = ok("lowerdir=l/AAA:l/BBB,upperdir=/s/diff,workdir=/s/work,nodev,fsync=0,volatile,\
                     context=\"system_u:object_r:container_file_t:s0:c1,c2\",\
                     uidmapping=0:1000:1:1:100000:65536,gidmapping=:0:1000:1,xattr_permissions=2");
    let c = parsed.config;
    assert_eq!(parsed.warnings, Vec::<String>::new());
    assert_eq!(paths(&c), ["l/AAA", "l/BBB"].map(Path::new));
    assert!(c.volatile && c.flags.nodev && c.xattr_permissions && !c.flags.read_only);
    assert_eq!(c.flags.context.as_deref(), Some("context=\"system_u:object_r:container_file_t:s0:c1,c2\""));
    let range = |disk, shown, length| IdRange { disk, shown, length };
    assert_eq!(c.uid_map.0, [range(0, 1000, 1), range(1, 100_000, 65_536)]);
    assert_eq!(c.gid_map.0, [range(0, 1000, 1)]);
    // buildah adds the propagation, mount(8) and mount.fuse3 their own.
    config("lowerdir=/l,upperdir=/u,workdir=/w,private");
    config("rw,lowerdir=/l,dev,suid,nofail,_netdev,x-systemd.automount,defaults");
}

#[test]
fn each_word_sets_its_field() {
    type Change = fn(&mut Config);
    let table: &[(&str, Change)] = &[
        ("metacopy=off", |c| c.metacopy = false),
        ("metacopy=on", |_| {}),
        ("redirect_dir=on", |_| {}),
        ("redirect_dir=follow", |c| (c.redirect_dir, c.metacopy) = (RedirectDir::Follow, false)),
        ("redirect_dir=off", |c| (c.redirect_dir, c.metacopy) = (RedirectDir::Off, false)),
        ("redirect_dir=nofollow", |c| (c.redirect_dir, c.metacopy) = (RedirectDir::NoFollow, false)),
        ("xino=auto", |_| {}),
        ("xino=on", |c| c.xino = Xino::On),
        ("xino=off", |c| c.xino = Xino::Off),
        ("userxattr", |c| {
            (c.marks, c.metacopy, c.redirect_dir) = (MarkNamespace::User, false, RedirectDir::NoFollow)
        }),
        ("userxattr,metacopy=off,redirect_dir=nofollow", |c| {
            (c.marks, c.metacopy, c.redirect_dir) = (MarkNamespace::User, false, RedirectDir::NoFollow)
        }),
        ("index=off", |_| {}),
        ("nfs_export=off", |_| {}),
        ("uuid=auto", |_| {}),
        ("uuid=null", |_| {}),
        ("uuid=off", |_| {}),
        ("verity=off", |_| {}),
        ("volatile", |c| c.volatile = true),
        ("fsync=0", |c| c.volatile = true),
        ("volatile,fsync=0", |c| c.volatile = true),
        ("fsync=1", |_| {}),
        ("fsync=auto", |_| {}),
        ("fsync=strict", |_| {}),
        ("fsync=volatile", |c| c.volatile = true),
        ("override_creds", |_| {}),
        ("volatile_lower", |c| c.volatile_lower = true),
        ("layer_index=off", |c| c.use_index = false),
        ("layer_index=off,layer_index=on", |_| {}),
        ("layer_index=trusted", |c| c.trust_index = true),
        ("layer_index=trusted,layer_index=on", |_| {}),
        ("squash_to_root", |c| (c.squash.uid, c.squash.gid) = (Some(0), Some(0))),
        ("squash_to_uid=7", |c| c.squash.uid = Some(7)),
        ("squash_to_gid=4294967294", |c| c.squash.gid = Some(4_294_967_294)),
        ("squash_to_uid=7,squash_to_root", |c| (c.squash.uid, c.squash.gid) = (Some(7), Some(0))),
        ("uidmapping=", |_| {}),
        ("xattr_permissions=0", |_| {}),
        ("xattr_permissions=2", |c| c.xattr_permissions = true),
        ("noacl", |c| c.acl = false),
        ("noacl,acl", |_| {}),
        ("static_nlink", |c| c.static_nlink = true),
        ("io=auto", |_| {}),
        ("io=passthrough", |c| c.io = IoMode::Passthrough),
        ("io=cached", |c| c.io = IoMode::Cached),
        ("io=writeback", |c| c.io = IoMode::Writeback),
        ("writeback_cache", |c| c.io = IoMode::Writeback),
        ("threads=8", |c| c.threads = 8),
        ("threads=0", |_| {}),
        ("same_cpu=off", |c| c.same_cpu = false),
        ("same_cpu=auto", |_| {}),
        ("timeout=0.5", |_| {}),
        ("ro", |c| c.flags.read_only = true),
        ("ro,rw", |_| {}),
        ("nodev,nosuid,noexec", |c| (c.flags.nodev, c.flags.nosuid, c.flags.noexec) = (true, true, true)),
        ("nodev,dev,nosuid,suid,noexec,exec", |_| {}),
        ("users,exec", |c| (c.flags.nodev, c.flags.nosuid) = (true, true)),
        ("owner", |c| (c.flags.nodev, c.flags.nosuid) = (true, true)),
        ("noatime", |c| c.flags.noatime = true),
        ("noatime,relatime", |_| {}),
        ("noatime,strictatime", |c| c.flags.strictatime = true),
        ("strictatime,noatime", |c| c.flags.noatime = true),
        ("nodiratime", |c| c.flags.nodiratime = true),
        ("lazytime", |c| c.flags.lazytime = true),
        ("sync", |c| c.flags.sync = true),
        ("dirsync", |c| c.flags.dirsync = true),
        ("nosymfollow", |c| c.flags.nosymfollow = true),
        ("allow_other", |_| {}),
        ("noallow_other", |c| c.flags.private = true),
        ("fsname=store", |c| c.flags.source = "store".into()),
        (r"fsname=a\,b", |c| c.flags.source = "a,b".into()),
        ("subtype=layerfs", |_| {}),
        ("context=u:r:t:s0", |c| c.flags.context = Some("context=\"u:r:t:s0\"".into())),
        ("fscontext=a,context=x,rootcontext=\"b:c1,c2\",context=z", |c| {
            c.flags.context = Some("fscontext=\"a\",rootcontext=\"b:c1,c2\",context=\"z\"".into())
        }),
        ("default_permissions,max_read=131072,nonempty,clone_fd", |_| {}),
        ("defaults,noauto,nofail,_netdev,x-systemd.requires=a,comment=c", |_| {}),
    ];
    for (words, change) in table {
        let base = "lowerdir=l,upperdir=u,workdir=w";
        let mut expected = config(base);
        change(&mut expected);
        assert_eq!(config(&format!("{base},{words}")), expected, "{words}");
        assert_eq!(config(&format!("{words},{base}")), expected, "{words} first");
    }
    assert!(ok("lowerdir=l,debug").debug);
}

#[test]
fn without_an_upper() {
    // Following is all that is left of the feature, so metadata-only copies stay readable.
    let c = config("lowerdir=l,redirect_dir=follow,metacopy=on");
    assert!(c.metacopy && c.flags.read_only);
    assert!(config("lowerdir=l,rw").flags.read_only);
    for (text, word) in [("lowerdir=l,volatile", "volatile"), ("lowerdir=l,fsync=0", "fsync=0")] {
        let parsed = ok(text);
        assert!(!parsed.config.volatile);
        assert_eq!(parsed.warnings, [format!("option `{word}` has no effect on a read-only mount")]);
    }
    let parsed = ok("lowerdir=l,upperdir=u,workdir=w,ro,volatile");
    assert!(!parsed.config.volatile && parsed.config.flags.read_only && parsed.config.upper.is_some());
    assert_eq!(parsed.warnings.len(), 1);
}

#[test]
fn unknown_words_are_told_once_and_not_fatal() {
    let parsed = ok("lowerdir=l,frobnicate,frobnicate,shiny=1:2,index=on,nfs_export=on,subtype=x,\
                     allow_root,auto_unmount,xattr_permissions=1,uuid=on");
    let known: Vec<_> = parsed.warnings.iter().filter(|w| !w.starts_with("unknown")).collect();
    assert_eq!(known.len(), 7, "{known:?}");
    let unknown: Vec<_> = parsed.warnings.iter().filter(|w| w.starts_with("unknown")).collect();
    assert_eq!(unknown, ["unknown option `frobnicate` is ignored", "unknown option `shiny=1:2` is ignored"]);
    // A comma that was not escaped leaves its rest as an unknown word; bytes that are no text do no harm.
    assert_eq!(ok("lowerdir=/a,b").warnings, ["unknown option `b` is ignored"]);
    let parsed = parse(OsStr::from_bytes(b"lowerdir=l,\xff=\xfe")).unwrap();
    assert_eq!(parsed.warnings.len(), 1);
}

#[test]
fn bad_values_name_the_option() {
    let table: &[(&str, &str)] = &[
        ("lowerdir", "option `lowerdir` needs a value: write `lowerdir=DIR[:DIR...]`"),
        ("upperdir=", "option `upperdir` needs a value: write `upperdir=DIR`"),
        ("lowerdir=l,ro=1", "option `ro` takes no value, but `ro=1` was given"),
        ("lowerdir=l,metacopy=yes", "option `metacopy=yes`: expected on or off"),
        ("lowerdir=l,io=fast", "option `io=fast`: expected auto, passthrough, cached or writeback"),
        (
            "lowerdir=l,redirect_dir",
            "option `redirect_dir` needs a value: write `redirect_dir=on, follow, off or nofollow`",
        ),
        (
            "lowerdir=l,threads=-1",
            "option `threads=-1`: expected a number of threads from 0 (as many as there are CPUs) to 512",
        ),
        (
            "lowerdir=l,threads=513",
            "option `threads=513`: expected a number of threads from 0 (as many as there are CPUs) to 512",
        ),
        ("lowerdir=l,timeout=soon", "option `timeout=soon`: expected a number of seconds"),
        ("lowerdir=l,timeout=inf", "option `timeout=inf`: expected a number of seconds"),
        (
            "lowerdir=l,squash_to_uid=4294967295",
            "option `squash_to_uid=4294967295`: expected an id from 0 to 4294967294",
        ),
        (
            "lowerdir=l,uidmapping=0:1",
            "option `uidmapping=0:1`: 2 numbers are not triples DISK:SHOWN:LENGTH joined by colons",
        ),
        (
            "lowerdir=l,verity=require",
            "option `verity=require` is not supported: digests of lower files are not checked; use kernel overlayfs, or verity=off",
        ),
    ];
    for (text, message) in table {
        assert_eq!(refused(text).to_string(), *message, "{text}");
    }
    assert!(matches!(refused("lowerdir=l,uidmapping=0:0:5,2:7:1"), OptionError::StrayIdRange { .. }));
    assert!(matches!(refused("lowerdir=l,context=\"open,ro"), OptionError::Quotes { .. }));
    assert!(matches!(refused("lowerdir=l,context=\"a\"b,ro"), OptionError::Quotes { .. }));
    assert!(matches!(refused("lowerdir=l,context=\"\""), OptionError::Quotes { .. }));
    assert!(matches!(refused(r"lowerdir=l\"), OptionError::DanglingEscape { .. }));
    assert!(matches!(
        parse(OsStr::from_bytes(b"lowerdir=a\0b")).unwrap_err(),
        OptionError::BadValue { option: "lowerdir", .. }
    ));
}

#[test]
fn contradictions_are_refused() {
    let l = "lowerdir=l,upperdir=u,workdir=w";
    let pair = |text: String| match refused(&text) {
        OptionError::Contradiction { first, second, .. } => (first, second),
        other => panic!("{text}: {other}"),
    };
    let table: &[(&str, &str, &str)] = &[
        ("metacopy=on,redirect_dir=off", "metacopy=on", "redirect_dir=off"),
        ("metacopy=on,redirect_dir=follow", "metacopy=on", "redirect_dir=follow"),
        ("redirect_dir=nofollow,metacopy=on", "metacopy=on", "redirect_dir=nofollow"),
        ("userxattr,metacopy=on", "userxattr", "metacopy=on"),
        ("userxattr,redirect_dir=on", "userxattr", "redirect_dir=on"),
        ("nfs_export=on,index=off", "nfs_export=on", "index=off"),
        ("nfs_export=on,metacopy=on", "nfs_export=on", "metacopy=on"),
        ("volatile,fsync=1", "volatile", "fsync=1"),
        ("io=passthrough,writeback_cache", "io=passthrough", "writeback_cache"),
        ("io=cached,writeback_cache", "io=cached", "writeback_cache"),
        ("io=writeback,volatile_lower", "io=writeback", "volatile_lower"),
        ("volatile_lower,writeback_cache", "writeback_cache", "volatile_lower"),
        ("volatile_lower,layer_index=trusted", "layer_index=trusted", "volatile_lower"),
    ];
    for (words, first, second) in table {
        assert_eq!(pair(format!("{l},{words}")), (*first, *second), "{words}");
    }
}

#[test]
fn layers_that_cannot_be_are_refused() {
    assert_eq!(refused(""), OptionError::NoLower);
    assert_eq!(refused("upperdir=u,workdir=w"), OptionError::NoLower);
    assert!(matches!(refused("lowerdir=a::b"), OptionError::DataOnlyLayer { option: "lowerdir", .. }));
    assert!(matches!(
        refused("lowerdir=a,datadir+=b"),
        OptionError::DataOnlyLayer { option: "datadir+", .. }
    ));
    assert!(matches!(refused("lowerdir=:a"), OptionError::EmptyLayer { .. }));
    assert!(matches!(refused("lowerdir=a:"), OptionError::EmptyLayer { .. }));
    assert!(matches!(refused("lowerdir=:"), OptionError::EmptyLayer { .. }));
    assert_eq!(refused("lowerdir=a:b:./a/"), OptionError::DuplicateLower { path: "./a/".into() });
    assert_eq!(refused("lowerdir=l,upperdir=u"), OptionError::UpperWithoutWork { upper: "u".into() });
    assert_eq!(refused("lowerdir=l,workdir=w"), OptionError::WorkWithoutUpper { work: "w".into() });
    for (upper, work) in [("/u", "/u"), ("/u", "/u/w"), ("/w/u", "/w"), ("u", "./u//"), ("/u", "/u/.")] {
        let text = format!("lowerdir=l,upperdir={upper},workdir={work}");
        assert!(matches!(refused(&text), OptionError::UpperOverlapsWork { .. }), "{text}");
    }
    config("lowerdir=l,upperdir=/u,workdir=/u2");
    assert!(matches!(
        refused("lowerdir=/l:/u/,upperdir=/u,workdir=/w"),
        OptionError::LowerIsWritable { role: "upperdir", .. }
    ));
    assert!(matches!(
        refused("lowerdir=/w,upperdir=/u,workdir=/w"),
        OptionError::LowerIsWritable { role: "workdir", .. }
    ));
    // An upper beneath a lower is how a machine's own root is tried out.
    config("lowerdir=/,upperdir=/var/u,workdir=/var/w");
}

#[test]
fn flags_of_the_command_line() {
    let mut builder = Builder::new();
    builder.lower("/a:b").lower("c,d").upper(r"u\x").work("w").source("img");
    builder.text(OsStr::new("ro")).unwrap().text(OsStr::new("noatime,metacopy=off")).unwrap();
    let c = builder.build().unwrap().config;
    assert_eq!(paths(&c), ["/a:b", "c,d"].map(Path::new));
    assert_eq!(c.upper, Some(UpperSpec { upper: r"u\x".into(), work: "w".into() }));
    assert!(c.flags.read_only && c.flags.noatime && !c.metacopy);
    assert_eq!(c.flags.source, "img");

    type Flag = fn(&mut Builder);
    let twice = |flag: Flag, text: &str| {
        let mut builder = Builder::new();
        builder.text(OsStr::new(text)).unwrap();
        flag(&mut builder);
        builder.build().unwrap_err()
    };
    let cases: [(Flag, &str); 3] = [
        (
            |b| {
                b.lower("x");
            },
            "lowerdir=l",
        ),
        (
            |b| {
                b.upper("x");
            },
            "lowerdir=l,upperdir=u,workdir=w",
        ),
        (
            |b| {
                b.work("x");
            },
            "lowerdir=l,upperdir=u,workdir=w",
        ),
    ];
    for (flag, text) in cases {
        assert!(matches!(twice(flag, text), OptionError::GivenTwice { .. }), "{text}");
    }
    let mut builder = Builder::new();
    builder.source("img").lower("l").text(OsStr::new("fsname=given")).unwrap();
    assert_eq!(builder.build().unwrap().config.flags.source, "given");
    let mut builder = Builder::new();
    builder.lower("");
    assert!(matches!(builder.build(), Err(OptionError::EmptyLayer { .. })));
}

#[test]
fn remount_is_no_mount() {
    let mut builder = Builder::new();
    builder.text(OsStr::new("remount,ro,noatime")).unwrap();
    let flags = builder.remount().unwrap();
    assert!(flags.read_only && flags.noatime);
    assert_eq!(builder.build().unwrap_err(), OptionError::Remount);
    assert_eq!(Builder::new().remount(), None);
}

/// Text made of the bytes and words that mean something, so that random cases get past the first comma.
fn option_text() -> impl Strategy<Value = OsString> {
    let piece = prop_oneof![
        Just(b",".to_vec()),
        Just(b":".to_vec()),
        Just(b"\\".to_vec()),
        Just(b"\"".to_vec()),
        Just(b"=".to_vec()),
        Just(b"lowerdir=".to_vec()),
        Just(b"lowerdir+=".to_vec()),
        Just(b",upperdir=u,workdir=w".to_vec()),
        Just(b",context=\"".to_vec()),
        Just(b",uidmapping=".to_vec()),
        Just(b"0:1:4294967295:".to_vec()),
        Just(b",userxattr,volatile,metacopy=on,redirect_dir=".to_vec()),
        Just(b",threads=".to_vec()),
        Just(b",timeout=".to_vec()),
        Just(b",fsname=".to_vec()),
        prop::collection::vec(any::<u8>(), 0..6),
        "[0-9a-z/.+-]{0,5}".prop_map(String::into_bytes),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| OsString::from_vec(pieces.concat()))
}

fn layer_name() -> impl Strategy<Value = PathBuf> {
    let byte = prop_oneof![
        3 => Just(b'\\'), 3 => Just(b':'), 3 => Just(b','), 1 => Just(b'"'), 1 => Just(b'='),
        4 => (1u8..=255).prop_filter("a name", |b| *b != b'/'),
    ];
    // A prefix keeps `.` and the empty name away, which are other spellings of other paths.
    prop::collection::vec(byte, 0..12).prop_map(|mut name| {
        name.insert(0, b'n');
        PathBuf::from(OsString::from_vec(name))
    })
}

proptest! {
    #[test]
    fn no_text_panics(text in option_text()) {
        if let Ok(parsed) = parse(&text) {
            let c = parsed.config;
            prop_assert!((1..=MAX_LOWERS).contains(&c.lowers.len()));
            prop_assert!(c.upper.is_some() || c.flags.read_only);
            for range in c.uid_map.0 {
                prop_assert!(range.length > 0 && range.shown.checked_add(range.length).is_some());
                prop_assert!(range.disk.checked_add(range.length).is_some());
            }
        }
    }

    #[test]
    fn escapes_round_trip(names in prop::collection::hash_set(layer_name(), 1..6), work in layer_name()) {
        let names: Vec<PathBuf> = names.into_iter().collect();
        let mut text = OsString::from("noatime,lowerdir=");
        for (i, name) in names.iter().enumerate() {
            if i > 0 {
                text.push(":");
            }
            text.push(escape_path(name));
        }
        text.push(",upperdir=");
        text.push(escape_path(&Path::new("up").join(&work)));
        text.push(",workdir=");
        text.push(escape_path(&Path::new("wk").join(&work)));
        text.push(",nodev");
        let parsed = parse(&text).unwrap();
        prop_assert_eq!(parsed.warnings.len(), 0);
        prop_assert!(parsed.config.flags.noatime && parsed.config.flags.nodev);
        let found: Vec<PathBuf> = parsed.config.lowers.into_iter().map(|l| l.path).collect();
        prop_assert_eq!(found, names);
        let upper = parsed.config.upper.unwrap();
        prop_assert_eq!(upper.upper, Path::new("up").join(&work));
        prop_assert_eq!(upper.work, Path::new("wk").join(&work));
    }
}
