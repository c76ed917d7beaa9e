//! `layerfs network serve-names`: the name server of a network. Started by who attaches; not for people.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use layerfs_network::dns;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sys::{self, Fork};

/// Answer for the names of a network's containers
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Where networks are kept
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
    /// The network's id
    #[arg(value_name = "NETWORK")]
    network: String,
}

pub(crate) fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    // Who waits for this process waits for this one only; the server is init's.
    match sys::fork().context("leave the caller")? {
        Fork::Parent(_) => return Ok(ExitCode::SUCCESS),
        Fork::Child => {}
    }
    rustix::process::setsid().context("leave the caller's session")?;
    let null = File::options().read(true).write(true).open("/dev/null").context("open /dev/null")?;
    sys::close_all(&sys::open_descriptors(std::os::fd::AsFd::as_fd(&null)));
    leave_mounts(&args.directory);
    dns::serve(&args.directory, &args.network, Path::new("/etc/resolv.conf"), || {
        let mut out = std::io::stdout();
        // Who started this may have gone; the network needs its names all the same.
        out.write_all(dns::READY.as_bytes()).and_then(|()| out.flush()).ok();
        rustix::stdio::dup2_stdout(&null).ok();
        rustix::stdio::dup2_stderr(&null).ok();
    })
    .map_err(super::open::told)?;
    Ok(ExitCode::SUCCESS)
}

/// The caller may have a mount namespace of its own, with the mounts of a container, which must not live as long as
/// this process does: goes to that of process 1, if the networks are the same there.
fn leave_mounts(directory: &Path) {
    let place = |path: &Path| rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino));
    let before = place(directory);
    let (Ok(own), Ok(first)) = (File::open("/proc/self/ns/mnt"), File::open("/proc/1/ns/mnt")) else {
        return;
    };
    let go = |to: &File| {
        move_into_link_name_space(std::os::fd::AsFd::as_fd(to), Some(LinkNameSpaceType::Mount)).is_ok()
    };
    // Without the privilege it stays; nothing but the time of an unmount depends on it.
    if go(&first) && place(directory) != before {
        go(&own);
    }
}
