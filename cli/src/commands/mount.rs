//! `layerfs mount`: both forms of it, and `--list`.

mod image_mount;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use layerfs_unionfs::config::parse::{Builder, Parsed};

use crate::exit::Usage;
use crate::logging::{LogArgs, LogOptions};
use crate::{mount_process, mounts, ui};

/// Mount a stack of directories as one tree
///
/// The lower layers are read only, the first one named on top. With an upper and a work directory (on one
/// filesystem) the mount is writable and the upper receives every change; without them it is read only.
///
/// The command returns when the mount answers, and leaves a process that serves it. SIGTERM, SIGINT or SIGHUP
/// to that process unmount.
#[derive(Debug, Args)]
#[command(
    override_usage = "layerfs mount -o lowerdir=LOWER[:LOWER...][,upperdir=UPPER,workdir=WORK][,OPTION...] MERGED\n       \
                      layerfs mount --lower LOWER [--lower LOWER...] [--upper UPPER --work WORK] MERGED\n       \
                      layerfs mount [--rw] IMAGE MERGED\n       \
                      layerfs mount --list [--format table|json]",
    after_long_help = AFTER_HELP
)]
pub(crate) struct MountArgs {
    /// An image, by name or id, if its layers are to be mounted; and where the tree is to be seen: a directory
    #[arg(value_name = "[IMAGE] MERGED", num_args = 0..=2)]
    places: Vec<PathBuf>,
    /// Options of the mount, separated by commas; may be repeated
    ///
    /// The words of kernel overlayfs, fuse-overlayfs and mount(8) where they mean something here; a word that
    /// nobody knows is told on stderr and ignored. A backslash takes the meaning from a comma or colon that is
    /// part of a path, and from a backslash.
    #[arg(short = 'o', long = "options", value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// A read-only layer; repeat for more, the top one first (the path as it is, without escapes)
    #[arg(long = "lower", value_name = "LOWER", help_heading = "Layers")]
    lowers: Vec<PathBuf>,
    /// The directory that receives changes
    #[arg(long, value_name = "UPPER", help_heading = "Layers")]
    upper: Option<PathBuf>,
    /// Scratch space: an empty directory on the filesystem of the upper, not inside it
    #[arg(long, value_name = "WORK", help_heading = "Layers")]
    work: Option<PathBuf>,
    /// Mount the image writable; changes go to a layer made for this mount, whose place is told
    #[arg(long)]
    rw: bool,
    /// Stay in the foreground, until the mount is unmounted
    #[arg(short, long)]
    foreground: bool,
    /// List the mounts that are there
    #[arg(long, conflicts_with_all = ["options", "lowers", "upper", "work", "foreground", "places"])]
    list: bool,
    /// Form of the list
    #[arg(long, value_name = "FORM", value_enum, default_value_t = Format::Table, requires = "list")]
    format: Format,
    #[command(flatten)]
    log: LogArgs,
}

const AFTER_HELP: &str = "\
Examples
  An image, read-only:
    layerfs mount debian:13 /mnt
  Two read-only layers under a writable one:
    layerfs mount -o lowerdir=top:base,upperdir=changes,workdir=work merged
  The same, with options of their own:
    layerfs mount --lower top --lower base --upper changes --work work merged
  A path with a comma and a colon in it:
    layerfs mount -o 'lowerdir=/srv/a\\,b\\:c' /mnt
  In the foreground, with every decision told:
    layerfs mount -f --log-level info -o lowerdir=base /mnt
  As the machine's mount command calls it:
    mount -t fuse.layerfs layerfs /mnt -o lowerdir=top:base

Often used options (docs/options.md has all of them)
  lowerdir=DIR[:DIR...]            read-only layers, top first, up to 500
  upperdir=DIR,workdir=DIR         the writable layer and its scratch space
  ro nodev nosuid noexec noatime   as for any mount
  metacopy=on|off                  copy only metadata for chmod, chown, utimes and xattrs [on]
  redirect_dir=on|follow|off|nofollow
                                   rename directories of lower layers by a mark [on]
  volatile                         give up durability: fsync does nothing
  userxattr                        keep marks in user.overlay.* xattrs
  squash_to_root, squash_to_uid=N, squash_to_gid=N
                                   one owner for everything
  uidmapping=DISK:SHOWN:LENGTH[:...], gidmapping=...
                                   map ids on disk to ids shown
  io=auto|passthrough|cached|writeback
                                   how file data travels [auto]
  threads=N                        event-loop threads [as many as CPUs]

Exit codes
  0  mounted   1  wrong command line or options   32  the mount failed";

/// Form of `--list`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns that fit the terminal
    Table,
    /// An array of objects
    Json,
}

/// What is to be mounted, where, and how the process behaves.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) parsed: Parsed,
    pub(crate) target: PathBuf,
    pub(crate) foreground: bool,
    pub(crate) log: LogOptions,
}

pub(crate) fn mount(args: MountArgs) -> anyhow::Result<ExitCode> {
    if args.list {
        return mounts::list(args.format);
    }
    let mut builder = Builder::new();
    let names_layers = |text: &OsString| {
        let text = text.to_string_lossy();
        ["lowerdir", "upperdir", "workdir"].iter().any(|word| text.contains(&format!("{word}=")))
    };
    let layers_are_free = args.lowers.is_empty()
        && args.upper.is_none()
        && args.work.is_none()
        && !args.options.iter().any(names_layers);
    for text in &args.options {
        builder.text(text)?;
    }
    for lower in args.lowers {
        builder.lower(lower);
    }
    if let Some(upper) = args.upper {
        builder.upper(upper);
    }
    if let Some(work) = args.work {
        builder.work(work);
    }
    if let ([image, target], true) = (args.places.as_slice(), layers_are_free) {
        return image_mount::mount(builder, image, target, args.rw, args.foreground, &args.log.options());
    }
    if let ([image], true, None) = (args.places.as_slice(), layers_are_free, builder.remount())
        && args.options.is_empty()
    {
        return Err(Usage(format!(
            "no mountpoint is named: layerfs mount {0} MERGED shows the image {0}; a union of directories needs \
             -o lowerdir=LOWER[:LOWER...]",
            image.display()
        ))
        .into());
    }
    if args.rw {
        return Err(Usage("--rw is for images: name one, layerfs mount --rw IMAGE MERGED".into()).into());
    }
    let target = match <[PathBuf; 1]>::try_from(args.places) {
        Ok([target]) => target,
        Err(places) => return Err(no_single_target(&places).into()),
    };
    if let Some(flags) = builder.remount() {
        mounts::remount(&target, &flags)?;
        return Ok(ExitCode::SUCCESS);
    }
    let request =
        Request { parsed: builder.build()?, target, foreground: args.foreground, log: args.log.options() };
    carry_out(request)
}

fn no_single_target(places: &[PathBuf]) -> Usage {
    match places {
        [image, _] => Usage(format!(
            "{image:?} is an image, which has its own layers: leave out --lower, --upper, --work and lowerdir="
        )),
        _ => Usage(
            "no mountpoint is named: layerfs mount IMAGE MERGED, or layerfs mount -o lowerdir=LOWER[:LOWER...] MERGED"
                .to_owned(),
        ),
    }
}

/// Tells the warnings, mounts, and returns when the mount answers, or in the foreground when it is gone.
pub(crate) fn carry_out(request: Request) -> anyhow::Result<ExitCode> {
    let Request { parsed, target, foreground, log } = request;
    for warning in &parsed.warnings {
        ui::warn(warning);
    }
    let log = log.with_debug(parsed.debug);
    if foreground {
        mount_process::serve_here(&parsed.config, &target, &log)?;
    } else {
        mount_process::spawn(&parsed.config, &target, &log)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// True when a request for `parsed` on `target` is the mount that is there already.
pub(crate) fn is_there_already(parsed: &Parsed, target: &Path) -> bool {
    mounts::serves(target, &parsed.config)
}
