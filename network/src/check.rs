//! What killed commands left behind: finding it, and removing it.

use std::fs;

use crate::document::Driver;
use crate::error::{Doing, Error, Result};
use crate::lease::Leases;
use crate::netlink::socket::Socket;
use crate::store::Networks;

/// Something that should not be as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// In words.
    pub what: String,
    /// Whether it was put right.
    pub mended: bool,
}

impl Networks {
    /// Looks for leases of containers that do not run, interfaces without a lease, and a packet filter that is not what it
    /// should be. With `repair` they are put right, and bridges without containers go too.
    ///
    /// `runs` says whether a container, by its id, is running.
    ///
    /// # Errors
    /// When documents cannot be read, or the kernel refuses.
    pub fn check(&self, repair: bool, runs: &dyn Fn(&str) -> bool) -> Result<Vec<Problem>> {
        let lock = self.lock()?;
        let networks = self.with_predefined(&lock)?;
        let mut leases = Leases::load(self.directory())?;
        let mut problems = Vec::new();
        let mut found = |what: String| problems.push(Problem { what, mended: repair });
        let known = |id: &str| networks.iter().any(|network| network.id == id);
        let dead = |container: &str, network: &str| !runs(container) || !known(network);
        for lease in leases.leases.iter().filter(|lease| dead(&lease.container, &lease.network)) {
            found(format!(
                "container {} has addresses in a network and does not run",
                lease.container.get(..12).unwrap_or(&lease.container)
            ));
        }
        let mut socket = Socket::route().doing(|| "open a socket for interfaces".into())?;
        let links = socket.links().doing(|| "list the host's interfaces".into())?;
        let prefix = self.interface_prefix();
        let mut stray = Vec::new();
        for link in &links {
            let ours = link.name.strip_prefix(&prefix).is_some_and(is_tag);
            if ours && !leases.leases.iter().any(|lease| lease.host_interface == link.name) {
                found(format!("interface {} belongs to no container", link.name));
                stray.push(link.name.clone());
            }
        }
        for network in networks.iter().filter(|network| network.driver == Driver::Bridge) {
            let used = leases.of_network(&network.id).any(|l| !dead(&l.container, &l.network));
            if !used && links.iter().any(|link| link.name == network.interface) {
                // It waits for the next container, and is no fault; a repair takes it away as any other leftover.
                stray.push(network.interface.clone());
            }
        }
        for beside in leftovers(self)? {
            found(format!("{} was not finished", beside.display()));
            if repair {
                fs::remove_file(&beside).map_err(Error::io("remove", &beside))?;
            }
        }
        if repair {
            self.take_out(&networks, &mut leases, |lease| dead(&lease.container, &lease.network))?;
            for name in stray {
                socket.delete_link(&name).doing(|| format!("remove interface {name:?}"))?;
            }
            if self.sync_firewall(&networks, &leases.leases)? {
                problems
                    .push(Problem { what: "the packet filter was not as it should be".into(), mended: true });
            }
        }
        Ok(problems)
    }
}

/// The digits behind the prefix of an interface's name.
fn is_tag(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn leftovers(networks: &Networks) -> Result<Vec<std::path::PathBuf>> {
    let directory = networks.directory();
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let path = entry.map_err(Error::io("list", directory))?.path();
        if path.extension().is_some_and(|extension| extension == "new") {
            found.push(path);
        }
    }
    Ok(found)
}
