//! Names for containers that were given none.

use std::io::Read;

use anyhow::Context;

use super::store::Containers;

const FIRST: [&str; 24] = [
    "amber", "brisk", "calm", "clear", "clever", "cool", "eager", "fair", "gentle", "glad", "grand", "keen",
    "kind", "lively", "lucid", "mellow", "merry", "noble", "quick", "quiet", "steady", "sunny", "warm",
    "witty",
];
const SECOND: [&str; 24] = [
    "alder", "aspen", "badger", "birch", "cedar", "crane", "elm", "falcon", "finch", "heron", "ibex", "lark",
    "linden", "lynx", "maple", "marten", "oak", "otter", "pine", "plover", "rowan", "seal", "swift",
    "willow",
];

/// Takes a name that is free. The lock of the store must be held.
pub(super) fn take(containers: &Containers, id: &str) -> anyhow::Result<String> {
    let mut random = std::fs::File::open("/dev/urandom").context("make up a name")?;
    for attempt in 0..200_u32 {
        let mut bytes = [0_u8; 4];
        random.read_exact(&mut bytes).context("make up a name")?;
        let [a, b, c, d] = bytes;
        let word = |list: &'static [&str], byte: u8| list.get(usize::from(byte) % list.len()).copied();
        let mut name = [word(&FIRST, a), word(&SECOND, b)].map(Option::unwrap_or_default).join("_");
        if attempt >= 4 {
            name.push_str(&u16::from_be_bytes([c, d]).to_string());
        }
        if containers.take_name(&name, id).is_ok() {
            return Ok(name);
        }
    }
    anyhow::bail!("no free name was found; give one with --name")
}
