//! All names of a hard-linked object of a plain lower, found by walking the layer once.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::dir::{LayerDir, stat_at};
use super::scan::ObjectKind;
use super::{Layers, Lower};
use crate::attr::Attr;
use crate::error::Errno;

/// Paths from the layer's root of every object with more than one name.
#[derive(Debug, Default)]
pub struct HardLinks(HashMap<(u64, u64), Vec<Vec<u8>>>);

impl Layers {
    /// Every name in `lower` of the object with these attributes, as paths from the layer's root. A layer without
    /// a usable index is walked at the first call that does not find all names in `near`, the directory where one
    /// is known to be.
    ///
    /// # Errors
    /// What reading a directory can fail with.
    pub fn hard_links(
        &self,
        lower: &Lower,
        near: &Arc<LayerDir>,
        name: &[u8],
        attr: &Attr,
    ) -> Result<Vec<Vec<u8>>, Errno> {
        let key = (attr.dev, attr.ino);
        if let (Some(index), Some(dir)) = (lower.index(), near.index) {
            let found = index.lookup(dir, name).and_then(|id| match id {
                Some(id) => {
                    index.hard_links(id)?.into_iter().map(|id| index.path(id)).collect::<Result<Vec<_>, _>>()
                }
                None => Ok(Vec::new()),
            });
            match found {
                Ok(paths) if !paths.is_empty() => return Ok(paths),
                Ok(_) => lower.distrust_index(&"a file in the directory is not in the index"),
                Err(e) => lower.distrust_index(&e),
            }
        }
        if let Some(known) = lower.hard_links.get() {
            return Ok(known.0.get(&key).cloned().unwrap_or_default());
        }
        let mut here = HardLinks::default();
        self.collect(near, &near.path(), &mut here)?;
        if let Some(paths) = here.0.remove(&key)
            && paths.len() >= attr.nlink as usize
        {
            return Ok(paths);
        }
        let mut all = HardLinks::default();
        let mut pending = vec![(lower.root.clone(), Vec::new())];
        while let Some((dir, path)) = pending.pop() {
            let below = match self.collect(&dir, &path, &mut all) {
                // Names in a directory that may not be read cannot be used either.
                Err(Errno::ACCESS) => continue,
                other => other?,
            };
            for name in below {
                let (child, _) = self.open_child(&dir, &name)?;
                pending.push((child, join(&path, &name)));
            }
        }
        let paths = all.0.get(&key).cloned().unwrap_or_default();
        // Two threads may have walked at once; both found the same.
        drop(lower.hard_links.set(all));
        Ok(paths)
    }

    /// Notes the hard-linked objects of one directory; returns its subdirectories.
    fn collect(
        &self,
        dir: &Arc<LayerDir>,
        path: &[u8],
        into: &mut HardLinks,
    ) -> Result<Vec<Arc<[u8]>>, Errno> {
        let scan = self.scan(dir)?;
        let fd = dir.fd(&self.context)?;
        let mut directories = Vec::new();
        for (name, found) in scan.entries {
            match found.object {
                Some(ObjectKind::Dir) => directories.push(name),
                Some(ObjectKind::Other) => {
                    let attr = stat_at(fd.as_fd(), &name)?;
                    if attr.nlink > 1 {
                        into.0.entry((attr.dev, attr.ino)).or_default().push(join(path, &name));
                    }
                }
                None => {}
            }
        }
        Ok(directories)
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}
