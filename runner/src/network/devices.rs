//! `linux.netDevices`: interfaces of the machine that become the container's.
//!
//! The parent knows their numbers and addresses before anything is made, and moves them when the container's namespace is
//! there; moving takes an interface down and its addresses away, which the first process gives back inside.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;

use super::netlink::{Address, Netlink};
use crate::config::{ConfigError, NetDevice};
use crate::step::{Doing, StepError};

/// Interfaces to be moved, as they are on the machine.
#[derive(Debug, Default)]
pub(crate) struct Devices(Vec<Device>);

#[derive(Debug)]
struct Device {
    name: String,
    inside: String,
    index: u32,
    addresses: Vec<Address>,
}

impl Devices {
    /// Finds them all, so that nothing is changed where one is missing.
    pub(crate) fn find(wanted: &[NetDevice]) -> Result<Self, ConfigError> {
        let mut devices = Vec::new();
        for NetDevice { name, inside } in wanted {
            let failed = |what: &str, error: io::Error| {
                ConfigError::new(format!("linux.netDevices[{name:?}]"), format!("{what}: {error}"))
            };
            let index = index_of(name).map_err(|error| failed("find the interface", error))?;
            let addresses = Netlink::open()
                .and_then(|netlink| netlink.addresses(index))
                .map_err(|error| failed("read its addresses", error))?;
            devices.push(Device { name: name.clone(), inside: inside.clone(), index, addresses });
        }
        Ok(Self(devices))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Moves them to the namespace that `namespace` is open on.
    pub(crate) fn move_to(&self, namespace: BorrowedFd<'_>) -> Result<(), StepError> {
        for device in &self.0 {
            let words = || {
                let Device { name, inside, .. } = device;
                format!("move linux.netDevices[{name:?}] to the container as {inside:?}")
            };
            Netlink::open()
                .and_then(|netlink| netlink.move_link(device.index, namespace, &device.inside))
                .doing(words)?;
        }
        Ok(())
    }

    /// Inside: gives them their addresses again, and brings them up.
    pub(crate) fn bring_up(&self) -> Result<(), StepError> {
        for device in &self.0 {
            let words = || format!("bring interface {:?} up", device.inside);
            let netlink = Netlink::open().doing(words)?;
            // Another number when the first one was taken here.
            let index = inside_index(&device.inside).doing(words)?;
            for address in &device.addresses {
                netlink
                    .add_address(index, address)
                    .doing(|| format!("give interface {:?} its address again", device.inside))?;
            }
            netlink.bring_up(index).doing(words)?;
        }
        Ok(())
    }
}

/// By the machine's /sys.
fn index_of(name: &str) -> io::Result<u32> {
    let text = fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// By the namespace, whatever the container's /sys is.
fn inside_index(name: &str) -> io::Result<u32> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    Ok(rustix::net::netdevice::name_to_index(socket, name)?)
}
