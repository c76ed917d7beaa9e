//! The meaning of each option word. One `match`, in the order of `docs/options.md`.
//!
//! Must hold: a word this module does not know never stops a mount (callers pass words of many filesystems),
//! but a known word with a value it cannot have does, and so does one whose silent loss would do harm.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::config::{IdMap, IoMode, MarkNamespace, RedirectDir, Xino};

use super::error::OptionError;
use super::text::{self, RawWord};
use super::{Builder, Mapping, idmap};

/// Upper bound of `threads=`; more only cost memory.
const MAX_THREADS: u64 = 512;

/// The largest id that means an owner; the one above it means "none" to every system call.
const MAX_ID: u64 = u32::MAX as u64 - 1;

const AUTO_OFF: [(&str, bool); 2] = [("auto", true), ("off", false)];
const ON_OFF: [(&str, bool); 2] = [("on", true), ("off", false)];

/// Words of mount(8), fstab, libfuse and fuse-overlayfs that are true here already or concern others: accepted
/// in silence, with or without a value.
const SILENT: &[&str] = &[
    // mount(8), fstab, systemd
    "defaults",
    "auto",
    "noauto",
    "nouser",
    "nofail",
    "_netdev",
    "comment",
    "uhelper",
    "helper",
    "loop",
    "group",
    "nogroup",
    "nousers",
    "noowner",
    "silent",
    "loud",
    "quiet",
    "nomand",
    "norelatime",
    "nolazytime",
    "iversion",
    "noiversion",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "shared",
    "rshared",
    "unbindable",
    "runbindable",
    "nostrictatime",
    // libfuse: tuning, and behaviour that this mount always has
    "default_permissions",
    "nonempty",
    "max_read",
    "max_write",
    "max_readahead",
    "max_background",
    "congestion_threshold",
    "big_writes",
    "large_read",
    "async_read",
    "sync_read",
    "atomic_o_trunc",
    "clone_fd",
    "max_idle_threads",
    "max_threads",
    "splice_read",
    "splice_write",
    "splice_move",
    "no_splice_read",
    "no_splice_write",
    "no_splice_move",
    "async_dio",
    "no_async_dio",
    "kernel_cache",
    "auto_cache",
    "noauto_cache",
    "use_ino",
    "readdir_ino",
    "hard_remove",
    "noforget",
    "remember",
    "intr",
    "intr_signal",
    "entry_timeout",
    "attr_timeout",
    "ac_attr_timeout",
    "negative_timeout",
    "no_remote_lock",
    "no_remote_posix_lock",
    "no_remote_flock",
    "posixacl",
    // Kernel overlayfs: the mount process acts with its own credentials, whoever asked for the mount
    "override_creds",
    "nooverride_creds",
    // fuse-overlayfs
    "threaded",
    "fast_ino",
];

/// Known words that change nothing here although their writer may expect it, and why.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("auto_unmount", "SIGTERM, SIGINT and SIGHUP unmount cleanly; after SIGKILL use `layerfs umount`"),
    ("direct_io", "an application asks for it itself with O_DIRECT"),
    ("umask", "owner and mode are those of the layers"),
    ("uid", "use squash_to_uid=N or uidmapping=DISK:SHOWN:LENGTH"),
    ("gid", "use squash_to_gid=N or gidmapping=DISK:SHOWN:LENGTH"),
    ("modules", "libfuse modules do not exist here"),
    ("fd", "the program opens /dev/fuse itself"),
    ("rootmode", "the program sets it itself"),
    ("user_id", "the program sets it itself"),
    ("group_id", "the program sets it itself"),
    ("blkdev", "there is no block device under this mount"),
    ("blksize", "there is no block device under this mount"),
    ("mand", "Linux has no mandatory locks any more"),
    ("casefold", "names are compared byte for byte"),
    ("plugins", "plugins of fuse-overlayfs are not loaded"),
    ("noxattrs", "extended attributes are always there"),
];

/// Applies one word to the description being built.
pub(super) fn apply(builder: &mut Builder, raw: RawWord<'_>) -> Result<(), OptionError> {
    let Ok(name) = std::str::from_utf8(raw.name) else {
        builder.unknown(raw);
        return Ok(());
    };
    let flags = &mut builder.config.flags;
    match name {
        // Layers.
        "lowerdir" => builder.set_lowers(value(raw, "lowerdir", "DIR[:DIR...]")?)?,
        "lowerdir+" => {
            // As fsconfig(2) has it: one layer, in which a colon is a byte like any other.
            let path = path(raw, "lowerdir+", "DIR")?;
            builder.add_word_lower(path);
        }
        "datadir+" => {
            let value = text::shown(value(raw, "datadir+", "DIR")?);
            return Err(OptionError::DataOnlyLayer { option: "datadir+", value });
        }
        "upperdir" => builder.word_upper = Some(path(raw, "upperdir", "DIR")?),
        "workdir" => builder.word_work = Some(path(raw, "workdir", "DIR")?),

        // The union.
        "metacopy" => builder.metacopy = Some(choice(raw, "metacopy", "on or off", &ON_OFF)?),
        "redirect_dir" => {
            const CHOICES: [(&str, RedirectDir); 4] = [
                ("on", RedirectDir::On),
                ("follow", RedirectDir::Follow),
                ("off", RedirectDir::Off),
                ("nofollow", RedirectDir::NoFollow),
            ];
            let redirect = choice(raw, "redirect_dir", "on, follow, off or nofollow", &CHOICES)?;
            builder.redirect_dir = Some(redirect);
        }
        "xino" => {
            const CHOICES: [(&str, Xino); 3] = [("auto", Xino::Auto), ("on", Xino::On), ("off", Xino::Off)];
            builder.config.xino = choice(raw, "xino", "auto, on or off", &CHOICES)?;
        }
        "userxattr" => {
            bare(raw, "userxattr")?;
            builder.config.marks = MarkNamespace::User;
        }
        "index" => builder.index = Some(choice(raw, "index", "on or off", &ON_OFF)?),
        "nfs_export" => builder.nfs_export = Some(choice(raw, "nfs_export", "on or off", &ON_OFF)?),
        "uuid" => {
            const CHOICES: [(&str, bool); 4] =
                [("on", true), ("auto", false), ("null", false), ("off", false)];
            if choice(raw, "uuid", "auto, on, null or off", &CHOICES)? {
                builder.warn("option `uuid=on` has no effect: no identity is written into the upper");
            }
        }
        "verity" => {
            const CHOICES: [(&str, bool); 3] = [("off", false), ("on", true), ("require", true)];
            if choice(raw, "verity", "off, on or require", &CHOICES)? {
                let value = text::shown(raw.value.unwrap_or_default());
                let reason = "digests of lower files are not checked; use kernel overlayfs, or verity=off";
                return Err(OptionError::Unsupported { option: "verity", value, reason });
            }
        }
        "volatile" => {
            bare(raw, "volatile")?;
            builder.volatile = true;
        }
        "fsync" => {
            // Words are kernel overlayfs's. Where what is synced is decided, strict and auto promise the same.
            const CHOICES: [(&str, bool); 7] = [
                ("0", false),
                ("1", true),
                ("off", false),
                ("on", true),
                ("auto", true),
                ("strict", true),
                ("volatile", false),
            ];
            builder.fsync = Some(choice(raw, "fsync", "0, 1, auto, strict or volatile", &CHOICES)?);
        }
        "volatile_lower" => {
            bare(raw, "volatile_lower")?;
            builder.config.volatile_lower = true;
        }
        "layer_index" => {
            const CHOICES: [(&str, (bool, bool)); 3] =
                [("on", (true, false)), ("trusted", (true, true)), ("off", (false, false))];
            let (used, trusted) = choice(raw, "layer_index", "on, trusted or off", &CHOICES)?;
            (builder.config.use_index, builder.config.trust_index) = (used, trusted);
        }

        // Owners.
        "squash_to_root" => {
            bare(raw, "squash_to_root")?;
            builder.squash_to_root = true;
        }
        "squash_to_uid" => builder.config.squash.uid = Some(id(raw, "squash_to_uid", "UID")?),
        "squash_to_gid" => builder.config.squash.gid = Some(id(raw, "squash_to_gid", "GID")?),
        "uidmapping" => builder.config.uid_map = id_map(raw, Mapping::Uid)?,
        "gidmapping" => builder.config.gid_map = id_map(raw, Mapping::Gid)?,
        "xattr_permissions" => {
            const CHOICES: [(&str, u8); 3] = [("0", 0), ("1", 1), ("2", 2)];
            let kind = choice(raw, "xattr_permissions", "0, 1 or 2", &CHOICES)?;
            builder.config.xattr_permissions = kind != 0;
            if kind == 1 {
                builder.warn(
                    "option `xattr_permissions=1` is taken as 2: owner and mode are written to \
                     user.containers.override_stat (the privileged xattr is read where it is found)",
                );
            }
        }
        "noacl" => {
            bare(raw, "noacl")?;
            builder.config.acl = false;
        }
        "acl" => {
            bare(raw, "acl")?;
            builder.config.acl = true;
        }
        "static_nlink" => {
            bare(raw, "static_nlink")?;
            builder.config.static_nlink = true;
        }

        // Speed.
        "io" => {
            const CHOICES: [(&str, IoMode); 4] = [
                ("auto", IoMode::Auto),
                ("passthrough", IoMode::Passthrough),
                ("cached", IoMode::Cached),
                ("writeback", IoMode::Writeback),
            ];
            builder.config.io = choice(raw, "io", "auto, passthrough, cached or writeback", &CHOICES)?;
        }
        "writeback_cache" => {
            bare(raw, "writeback_cache")?;
            builder.writeback_cache = true;
        }
        "threads" => {
            let expected = "a number of threads from 0 (as many as there are CPUs) to 512";
            builder.config.threads = number(raw, "threads", "N", expected, MAX_THREADS)? as usize;
        }
        "same_cpu" => builder.config.same_cpu = choice(raw, "same_cpu", "auto or off", &AUTO_OFF)?,
        "timeout" => {
            // fuse-overlayfs: seconds for which names and attributes are cached. The kernel is told of every
            // change here, so there is no time to choose; the text is still checked.
            let seconds = value(raw, "timeout", "SECONDS")?;
            let valid = std::str::from_utf8(seconds).ok().and_then(|t| t.parse::<f64>().ok());
            if !valid.is_some_and(|s| s.is_finite() && s >= 0.0) {
                let expected = "a number of seconds";
                return Err(OptionError::BadValue {
                    option: "timeout",
                    value: text::shown(seconds),
                    expected,
                });
            }
        }

        // The mount itself.
        "ro" => {
            bare(raw, "ro")?;
            flags.read_only = true;
        }
        "rw" => {
            bare(raw, "rw")?;
            flags.read_only = false;
        }
        "nodev" => flags.nodev = bare(raw, "nodev")?,
        "dev" => flags.nodev = !bare(raw, "dev")?,
        "nosuid" => flags.nosuid = bare(raw, "nosuid")?,
        "suid" => flags.nosuid = !bare(raw, "suid")?,
        "noexec" => flags.noexec = bare(raw, "noexec")?,
        "exec" => flags.noexec = !bare(raw, "exec")?,
        "noatime" => {
            flags.noatime = bare(raw, "noatime")?;
            flags.strictatime = false;
        }
        "atime" => flags.noatime = !bare(raw, "atime")?,
        "relatime" => {
            flags.noatime = !bare(raw, "relatime")?;
            flags.strictatime = false;
        }
        "strictatime" => {
            flags.strictatime = bare(raw, "strictatime")?;
            flags.noatime = false;
        }
        "nodiratime" => flags.nodiratime = bare(raw, "nodiratime")?,
        "diratime" => flags.nodiratime = !bare(raw, "diratime")?,
        "lazytime" => flags.lazytime = bare(raw, "lazytime")?,
        "sync" => flags.sync = bare(raw, "sync")?,
        "async" => flags.sync = !bare(raw, "async")?,
        "dirsync" => flags.dirsync = bare(raw, "dirsync")?,
        "nosymfollow" => flags.nosymfollow = bare(raw, "nosymfollow")?,
        "symfollow" => flags.nosymfollow = !bare(raw, "symfollow")?,
        "user" | "users" => {
            // As mount(8): what a user may mount is harmless unless a later word says otherwise.
            (flags.nodev, flags.nosuid, flags.noexec) = (true, true, true);
        }
        "owner" => (flags.nodev, flags.nosuid) = (true, true),
        "remount" => builder.remount = bare(raw, "remount")?,
        "context" | "fscontext" | "defcontext" | "rootcontext" => builder.set_label(name, raw)?,
        "allow_other" => flags.private = !bare(raw, "allow_other")?,
        "noallow_other" => flags.private = bare(raw, "noallow_other")?,
        "allow_root" => {
            flags.private = bare(raw, "allow_root")?;
            builder.warn("option `allow_root` is taken as noallow_other: the mounting user alone has access");
        }
        "fsname" => {
            let value = value(raw, "fsname", "NAME")?;
            let name = unescaped(raw, "fsname", value)?;
            let expected = "a name in UTF-8";
            builder.fsname = Some(name.into_string().map_err(|value| OptionError::BadValue {
                option: "fsname",
                value,
                expected,
            })?);
        }
        "subtype" => {
            if value(raw, "subtype", "layerfs")? != b"layerfs" {
                builder.warn("option `subtype` has no effect: the type shown is always fuse.layerfs");
            }
        }
        "debug" => {
            bare(raw, "debug")?;
            builder.debug = true;
        }

        _ if name.starts_with("x-") || name.starts_with("X-") || SILENT.contains(&name) => {}
        _ => match WITHOUT_EFFECT.iter().find(|(word, _)| *word == name) {
            Some((word, why)) => builder.warn(format!("option `{word}` has no effect: {why}")),
            None if raw.value.is_none() && idmap::looks_like_range(raw.name) => {
                return Err(OptionError::StrayIdRange { word: name.to_owned() });
            }
            None => builder.unknown(raw),
        },
    }
    Ok(())
}

/// True, for a word that stands alone; refuses a value.
fn bare(raw: RawWord<'_>, option: &'static str) -> Result<bool, OptionError> {
    match raw.value {
        None => Ok(true),
        Some(value) => Err(OptionError::UnexpectedValue { option, value: text::shown(value) }),
    }
}

/// The value as written; refuses a missing or empty one.
fn value<'a>(raw: RawWord<'a>, option: &'static str, form: &'static str) -> Result<&'a [u8], OptionError> {
    match raw.value {
        Some(value) if !value.is_empty() => Ok(value),
        _ => Err(OptionError::MissingValue { option, form }),
    }
}

fn unescaped(
    raw: RawWord<'_>,
    option: &'static str,
    value: &[u8],
) -> Result<std::ffi::OsString, OptionError> {
    text::unescape(value).ok_or_else(|| OptionError::DanglingEscape {
        option,
        value: text::shown(raw.value.unwrap_or_default()),
    })
}

fn path(raw: RawWord<'_>, option: &'static str, form: &'static str) -> Result<PathBuf, OptionError> {
    layer_path(raw, option, value(raw, option, form)?)
}

/// One path of the option: escapes off, and nothing in it that no path can hold.
pub(super) fn layer_path(
    raw: RawWord<'_>,
    option: &'static str,
    text: &[u8],
) -> Result<PathBuf, OptionError> {
    let path = unescaped(raw, option, text)?;
    if path.as_bytes().contains(&0) {
        let expected = "a path, which has no NUL byte";
        return Err(OptionError::BadValue { option, value: text::shown(text), expected });
    }
    Ok(PathBuf::from(path))
}

fn choice<T: Copy>(
    raw: RawWord<'_>,
    option: &'static str,
    expected: &'static str,
    choices: &[(&'static str, T)],
) -> Result<T, OptionError> {
    let value = value(raw, option, expected)?;
    choices
        .iter()
        .find(|(word, _)| word.as_bytes() == value)
        .map(|(_, meaning)| *meaning)
        .ok_or_else(|| OptionError::BadValue { option, value: text::shown(value), expected })
}

fn number(
    raw: RawWord<'_>,
    option: &'static str,
    form: &'static str,
    expected: &'static str,
    max: u64,
) -> Result<u64, OptionError> {
    let value = value(raw, option, form)?;
    idmap::decimal(value).filter(|n| *n <= max).ok_or_else(|| OptionError::BadValue {
        option,
        value: text::shown(value),
        expected,
    })
}

fn id(raw: RawWord<'_>, option: &'static str, form: &'static str) -> Result<u32, OptionError> {
    let expected = "an id from 0 to 4294967294";
    // MAX_ID fits, so the conversion does.
    number(raw, option, form, expected, MAX_ID).map(|n| n as u32)
}

fn id_map(raw: RawWord<'_>, mapping: Mapping) -> Result<IdMap, OptionError> {
    let option = mapping.option();
    // An empty mapping occurs (an engine without a user namespace) and means what it says: no ranges.
    let value = raw.value.ok_or(OptionError::MissingValue { option, form: "DISK:SHOWN:LENGTH[:...]" })?;
    idmap::parse(value).map_err(|fault| OptionError::IdMap { option, value: text::shown(value), fault })
}

/// The word as written, for a message.
pub(super) fn as_written(raw: RawWord<'_>) -> String {
    let mut word = raw.name.to_vec();
    if let Some(value) = raw.value {
        word.push(b'=');
        word.extend_from_slice(value);
    }
    OsStr::from_bytes(&word).display().to_string()
}
