//! The engine's networks, and their errors as this program tells them.

use std::ffi::OsString;
use std::path::Path;

use layerfs_network::{Error, Networks, Options};

use crate::commands::run::store_root;
use crate::exit::Hinted;

/// The root whose names of interfaces and of the packet filter's table have no mark.
const USUAL_ROOT: &str = "/var/lib/layerfs";

/// Opens the networks of this engine.
pub(crate) fn open() -> anyhow::Result<Networks> {
    let root = store_root()?;
    // By what it is and not by its path: a monitor is executed from a mount that only it has.
    let responder = ["/proc/self/exe", "network", "serve-names"].map(OsString::from).to_vec();
    let options =
        Options { instance: instance(&root), responder: Some(responder), now: layerfs_image::time::now };
    Networks::open(&root, options).map_err(told)
}

/// Four digits that tell this root from others of the machine.
fn instance(root: &Path) -> String {
    if root == Path::new(USUAL_ROOT) {
        return String::new();
    }
    // FNV-1a: the same in every version of this program, which the hash of the standard library is not.
    let mut hash = 0x811c_9dc5_u32;
    for byte in root.as_os_str().as_encoded_bytes() {
        hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    }
    format!("{:04x}", (hash >> 16) ^ (hash & 0xffff))
}

/// An error with its hint.
pub(crate) fn told(error: Error) -> anyhow::Error {
    match error.hint() {
        Some(hint) => {
            let message = error.to_string();
            anyhow::Error::new(error).context(Hinted { message, hint })
        }
        None => error.into(),
    }
}
