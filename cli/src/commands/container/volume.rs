//! Anonymous volumes: directories of the container's own, filled from the image at the first start.

use std::fs;
use std::path::Path;

use anyhow::Context;

use super::store::Container;

/// Copies what the image has at `target` into the volume, once: an empty one that has never been used.
pub(super) fn fill(
    container: &Container,
    directory: &str,
    target: &str,
    merged: &Path,
) -> anyhow::Result<()> {
    let volume = container.directory.join("volumes").join(directory);
    let mark = container.directory.join("volumes").join(format!("{directory}.filled"));
    if mark.exists() {
        return Ok(());
    }
    let words = || format!("fill the volume at {target}");
    layerfs_runner::host::copy_beneath(merged, Path::new(target), &volume).with_context(words)?;
    fs::write(&mark, "").with_context(words)
}
