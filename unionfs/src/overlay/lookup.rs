//! From a name to a node: merging the layers' parts, following marks, numbering.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::{Overlay, Reply};
use crate::attr::{Attr, Kind};
use crate::config::RedirectDir;
use crate::error::{Errno, OpError, OpResult, os_name};
use crate::layer::Layers;
use crate::layer::dir::{LayerDir, LayerNo, UPPER};
use crate::layer::mark_io::DirMarks;
use crate::layer::object::Object;
use crate::layer::upper::whiteout_file_name;
use crate::listing::Entry;
use crate::marks::{Opaque, Redirect};
use crate::node::{Node, Parts, Place, UpperObject};

/// What one layer has under a name, when asked about that name alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InLayer {
    Absent,
    Hidden,
    Dir,
    Other,
}

/// A directory sought by path in one layer.
struct Walked {
    /// It, if the layer has it.
    dir: Option<Arc<LayerDir>>,
    /// The layers below still count: not after a whiteout, an opaque directory or a non-directory on the way.
    go_on: bool,
    /// The path by which they have it.
    path: Vec<u8>,
}

fn push_component(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// Where the layers below are searched next.
enum Search {
    /// In the parts of the parent, under this name.
    Name(Arc<[u8]>),
    /// From the layers' roots, from this layer on.
    Path(Vec<u8>, LayerNo),
    /// No further.
    Stop,
}

impl Overlay {
    /// The object called `name` in a directory; `None` when nothing shows there.
    ///
    /// # Errors
    /// ENAMETOOLONG, ENOTDIR, and what reading the layers fails with.
    pub fn lookup(&self, dir: &Arc<Node>, name: &[u8]) -> OpResult<Option<Reply>> {
        match self.entry(dir, name)? {
            Some(entry) if entry.is_visible() => match self.resolve(dir, &entry) {
                // Removed or renamed since the entry was read: the names know by now.
                Err(e) if e.errno() == Errno::NOENT || e.errno() == Errno::STALE => {
                    match self.entry(dir, name)? {
                        Some(entry) if entry.is_visible() => self.resolve(dir, &entry).map(Some),
                        _ => Ok(None),
                    }
                }
                other => other.map(Some),
            },
            _ => Ok(None),
        }
    }

    /// The node behind a visible entry, with its attributes.
    pub(super) fn resolve(&self, dir: &Arc<Node>, entry: &Entry) -> OpResult<Reply> {
        let known = if entry.ino == 0 { None } else { self.table.get(entry.ino) };
        if let Some(node) = known.filter(|n| n.is_at(dir, &entry.name)) {
            let attr = self.getattr(&node)?;
            return Ok(Reply { node, attr });
        }
        let node = if entry.is_dir { self.resolve_dir(dir, entry)? } else { self.resolve_other(dir, entry)? };
        if entry.ino != node.0.ino {
            self.hint(dir, &entry.name, node.0.ino);
        }
        let (node, attr) = node;
        let attr = match attr {
            Some(attr) => self.show(&node, attr)?,
            None => self.getattr(&node)?,
        };
        Ok(Reply { node, attr })
    }

    /// The node alone, without asking for attributes where it is in use already.
    pub(super) fn resolve_node(&self, dir: &Arc<Node>, entry: &Entry) -> OpResult<Arc<Node>> {
        let known = if entry.ino == 0 { None } else { self.table.get(entry.ino) };
        match known.filter(|n| n.is_at(dir, &entry.name)) {
            Some(node) => Ok(node),
            None => Ok(self.resolve(dir, entry)?.node),
        }
    }

    fn resolve_other(&self, dir: &Arc<Node>, entry: &Entry) -> OpResult<(Arc<Node>, Option<Attr>)> {
        let parts = dir.parts();
        if entry.upper.object {
            let upper = parts.upper.as_ref().ok_or(Errno::NOENT)?;
            return self.resolve_upper(dir, upper, &parts, &entry.name);
        }
        let part = entry.lower.and_then(|n| parts.lowers.get(usize::from(n))).ok_or(Errno::NOENT)?;
        self.resolve_lower(dir, part, &parts, entry)
    }

    fn resolve_lower(
        &self,
        dir: &Arc<Node>,
        part: &Arc<LayerDir>,
        parts: &Parts,
        entry: &Entry,
    ) -> OpResult<(Arc<Node>, Option<Attr>)> {
        let name = &entry.name;
        let mut attr = self.layers.stat(part, name)?;
        if attr.kind() == Kind::Dir {
            return Err(Errno::STALE.into());
        }
        let number = self.inos.number(attr.dev, attr.ino);
        let object = Object { dir: part.clone(), name: name.clone() };
        let place = Place { parent: Some(dir.clone()), name: name.clone(), upper: None, lower: Some(object) };
        if self.may_be_metacopy(part, &attr) {
            // The copy's data is further down; its attributes are this layer's.
            if let Some(data) = self.metacopy_data(part, name, parts)? {
                attr.blocks = self.layers.stat_raw(&data.dir, &data.name)?.blocks;
            }
        }
        let place_again = place.clone();
        let (mut node, mut made) = self.table.intern(number, attr.kind(), false, || (place.clone(), None));
        if !made && (node.claimed || node.kind != attr.kind()) {
            let number = self.inos.displace(attr.dev, attr.ino);
            (node, made) = self.table.intern(number, attr.kind(), false, || (place, None));
        }
        if made {
            if let Some(lost) = self.lost_links.get(&number).filter(|_| attr.nlink > 1) {
                node.link_bias.store(*lost, std::sync::atomic::Ordering::Relaxed);
            }
            return Ok((node, Some(attr)));
        }
        let mut known = node.place.write();
        if known.upper.is_some() {
            // Another name of an object that was copied up under the first.
            return Ok((node.clone(), None));
        }
        if known.parent.is_none() {
            // The name by which it was known was removed: this is one that is left.
            *known = place_again;
        }
        drop(known);
        Ok((node, Some(attr)))
    }

    fn resolve_upper(
        &self,
        dir: &Arc<Node>,
        upper: &Arc<LayerDir>,
        parts: &Parts,
        name: &Arc<[u8]>,
    ) -> OpResult<(Arc<Node>, Option<Attr>)> {
        let mut attr = self.layers.stat(upper, name)?;
        if attr.kind() == Kind::Dir {
            return Err(Errno::STALE.into());
        }
        let natural = self.inos.number(attr.dev, attr.ino);
        let origin = self.origin_number(upper, name, &attr)?;
        let mut lower = None;
        let mut dataless = false;
        if self.may_be_metacopy(upper, &attr) {
            lower = match self.metacopy_data(upper, name, parts) {
                // It is there, can be looked at and removed; only its data cannot be had.
                Err(e @ OpError::NoData { .. }) => {
                    tracing::error!("{e}");
                    dataless = true;
                    None
                }
                other => other?,
            };
        }
        if let Some(data) = &lower {
            attr.blocks = self.layers.stat_raw(&data.dir, &data.name)?.blocks;
        }
        let object = Box::new(UpperObject {
            ino: attr.ino,
            metacopy: lower.is_some() || dataless,
            has_origin: origin.is_some(),
            held: None,
        });
        let place = Place { parent: Some(dir.clone()), name: name.clone(), upper: Some(object), lower };
        let wanted = origin.unwrap_or(natural);
        let claimed = wanted != natural;
        let (node, made) = self.table.intern(wanted, attr.kind(), claimed, || (place.clone(), None));
        if made || node.kind == attr.kind() && self.adopt(&node, &place, attr.ino) {
            return Ok((node, Some(attr)));
        }
        // The number is another object's: a copy of the file with its marks, or layers put in another order.
        if wanted != natural {
            let (node, made) = self.table.intern(natural, attr.kind(), false, || (place.clone(), None));
            if made || node.kind == attr.kind() && self.adopt(&node, &place, attr.ino) {
                return Ok((node, Some(attr)));
            }
        }
        let (node, _) = self.table.intern(self.inos.fresh(), attr.kind(), false, || (place, None));
        Ok((node, Some(attr)))
    }

    /// Takes `place` for a known node where it is the same upper object, or a lower one that was copied up under
    /// another name. False when it is another object.
    fn adopt(&self, node: &Arc<Node>, seen: &Place, real: u64) -> bool {
        let is_published = self.publishing.get(&real).is_some_and(|number| *number == node.ino);
        if seen.upper.is_none() || node.kind == Kind::Dir {
            return false;
        }
        let mut place = node.place.write();
        match &place.upper {
            Some(upper) if upper.ino != real => false,
            Some(upper) => {
                // Its name was removed and only the descriptor was left: here is another name.
                if upper.held.is_some() || place.parent.is_none() {
                    let (metacopy, has_origin) = (upper.metacopy, upper.has_origin);
                    let lower = place.lower.clone();
                    *place = seen.clone();
                    place.lower = lower;
                    if let Some(upper) = &mut place.upper {
                        upper.metacopy = metacopy;
                        upper.has_origin = has_origin;
                    }
                }
                true
            }
            None if is_published => {
                *place = seen.clone();
                drop(place);
                node.forget_file();
                true
            }
            None => false,
        }
    }

    /// The number that an upper object had before it was copied up.
    fn origin_number(&self, upper: &Arc<LayerDir>, name: &[u8], attr: &Attr) -> OpResult<Option<u64>> {
        if !self.unmarked_origins.is_empty()
            && let Some(number) = self.unmarked_origins.get(&attr.ino)
        {
            return Ok(Some(*number));
        }
        if !upper.is_impure() {
            return Ok(None);
        }
        let ino_mark = &self.layers.names.ino;
        let value = match self.layers.with_xattrs(upper, name, |x| x.get(ino_mark)) {
            // A mounter without capabilities may not read it where the mode forbids reading.
            Err(Errno::ACCESS) => None,
            other => other?,
        };
        let number = value.and_then(|v| v.try_into().ok().map(u64::from_le_bytes));
        Ok(number.filter(|n| *n > crate::ino::ROOT_INO && *n < 1 << 63))
    }

    fn may_be_metacopy(&self, dir: &LayerDir, attr: &Attr) -> bool {
        // A metadata-only copy is a hole of the data's size in a directory marked impure. Layers that were copied
        // without that mark are known by the hole alone.
        attr.kind() == Kind::File && attr.size > 0 && (dir.is_impure() || attr.blocks * 512 < attr.size)
    }

    /// The data of a metadata-only copy at `name` in `dir`; `None` when it has its own.
    pub(super) fn metacopy_data(
        &self,
        dir: &Arc<LayerDir>,
        name: &[u8],
        parts: &Parts,
    ) -> OpResult<Option<Object>> {
        let names = &self.layers.names;
        let read = self.layers.with_xattrs(dir, name, |x| {
            if x.get(&names.metacopy)?.is_none() {
                return Ok(None);
            }
            Ok(Some(x.get(&names.redirect)?))
        });
        let read = match read {
            Err(Errno::ACCESS) => None,
            other => other?,
        };
        let Some(redirect) = read else { return Ok(None) };
        let no_data = || OpError::NoData { name: os_name(name) };
        let redirect = match redirect {
            Some(value) => Some(Redirect::parse(&value).ok_or_else(|| corrupt("redirect", name, dir.layer))?),
            None => None,
        };
        let below = |layer: LayerNo| if layer == UPPER { 0 } else { layer + 1 };
        let found = match redirect {
            Some(Redirect::Absolute(path)) => self.find_data(&path, below(dir.layer))?,
            other => {
                let wanted: Arc<[u8]> = match other {
                    Some(Redirect::Name(n)) => Arc::from(n),
                    _ => Arc::from(name),
                };
                let mut found = None;
                for part in parts.lowers.iter().filter(|p| dir.layer == UPPER || p.layer > dir.layer) {
                    match self.in_layer(part, &wanted)? {
                        InLayer::Other => {
                            found = Some(Object { dir: part.clone(), name: wanted.clone() });
                            break;
                        }
                        InLayer::Absent => {}
                        InLayer::Hidden | InLayer::Dir => break,
                    }
                }
                found
            }
        };
        let found = found.ok_or_else(no_data)?;
        // The data may itself be behind a metadata-only copy in a lower layer. Layers rise each time: it ends.
        let deeper = {
            let attr = self.layers.stat(&found.dir, &found.name)?;
            if attr.kind() != Kind::File {
                return Err(no_data());
            }
            if self.may_be_metacopy(&found.dir, &attr) {
                let same_dir: Vec<_> = self.sibling_parts(&found.dir, parts)?;
                self.metacopy_data(&found.dir, &found.name, &Parts { upper: None, lowers: same_dir })?
            } else {
                None
            }
        };
        Ok(Some(deeper.unwrap_or(found)))
    }

    /// The directories below `dir`'s layer that merge with it, for data found by path.
    fn sibling_parts(&self, dir: &Arc<LayerDir>, parts: &Parts) -> OpResult<Vec<Arc<LayerDir>>> {
        if parts.lowers.iter().any(|p| Arc::ptr_eq(p, dir)) {
            return Ok(parts.lowers.iter().filter(|p| p.layer > dir.layer).cloned().collect());
        }
        let mut path = dir.path();
        let mut found = Vec::new();
        for layer in dir.layer + 1..self.layers.lowers.len() as LayerNo {
            let walked = self.walk(layer, &path)?;
            found.extend(walked.dir);
            path = walked.path;
            if !walked.go_on {
                break;
            }
        }
        Ok(found)
    }

    pub(super) fn find_data(&self, path: &[u8], from: LayerNo) -> OpResult<Option<Object>> {
        let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], path),
        };
        let mut parent = parent.to_vec();
        for layer in from..self.layers.lowers.len() as LayerNo {
            let walked = self.walk(layer, &parent)?;
            if let Some(dir) = walked.dir {
                match self.in_layer(&dir, name)? {
                    InLayer::Other => return Ok(Some(Object { dir, name: Arc::from(name) })),
                    InLayer::Absent => {}
                    InLayer::Hidden | InLayer::Dir => return Ok(None),
                }
            }
            parent = walked.path;
            if !walked.go_on {
                break;
            }
        }
        Ok(None)
    }

    /// The directory at `path` in one layer. A redirect on a component before the last says where the layers below
    /// have that component.
    fn walk(&self, layer: LayerNo, path: &[u8]) -> OpResult<Walked> {
        let mut walked = Walked { dir: None, go_on: false, path: path.to_vec() };
        let Some(lower) = self.layers.lower(layer) else { return Ok(walked) };
        let mut dir = lower.root.clone();
        walked.go_on = dir.opaque() != Opaque::Yes;
        let names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|c| !c.is_empty()).collect();
        // What the components so far are called in the layers below.
        let mut below: Vec<u8> = Vec::new();
        for (at, name) in names.iter().enumerate() {
            walked.go_on &= !self.has_opaque_entry(&dir)?;
            let here = self.in_layer(&dir, name)?;
            let mut redirect = None;
            if here == InLayer::Dir {
                let (child, marks) = self.layers.open_child(&dir, &Arc::from(*name))?;
                walked.go_on &= marks.opaque != Opaque::Yes;
                if at + 1 < names.len() && self.layers.config.redirect_dir != RedirectDir::NoFollow {
                    redirect = marks
                        .redirect
                        .map(|v| Redirect::parse(&v).ok_or_else(|| corrupt("redirect", name, layer)));
                }
                dir = child;
            }
            match redirect.transpose()? {
                Some(Redirect::Absolute(path)) => below = path,
                Some(Redirect::Name(new)) => push_component(&mut below, &new),
                None => push_component(&mut below, name),
            }
            match here {
                InLayer::Dir => {}
                InLayer::Absent => {
                    names.iter().skip(at + 1).for_each(|n| push_component(&mut below, n));
                    walked.path = below;
                    return Ok(walked);
                }
                InLayer::Hidden | InLayer::Other => {
                    walked.go_on = false;
                    return Ok(walked);
                }
            }
        }
        walked.dir = Some(dir);
        walked.path = below;
        Ok(walked)
    }

    /// `.wh..wh..opq` is in the directory.
    pub(super) fn has_opaque_entry(&self, dir: &Arc<LayerDir>) -> OpResult<bool> {
        match self.layers.stat_raw(dir, crate::marks::OPAQUE_ENTRY) {
            Ok(_) => Ok(!dir.has_plain_names()),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// What one directory of one layer has under a name, without listing it.
    fn in_layer(&self, dir: &Arc<LayerDir>, name: &[u8]) -> OpResult<InLayer> {
        match self.layers.stat_raw(dir, name) {
            Ok(attr) if attr.is_whiteout_device() => Ok(InLayer::Hidden),
            Ok(attr) if attr.kind() == Kind::Dir => Ok(InLayer::Dir),
            Ok(attr) => {
                if dir.opaque() == Opaque::XattrWhiteouts && attr.kind() == Kind::File && attr.size == 0 {
                    let marked = self.layers.with_xattrs(dir, name, |x| {
                        Ok(x.get(c"trusted.overlay.whiteout")?.is_some()
                            || x.get(c"user.overlay.whiteout")?.is_some())
                    })?;
                    if marked {
                        return Ok(InLayer::Hidden);
                    }
                }
                Ok(InLayer::Other)
            }
            Err(Errno::NOENT) => {
                if !dir.has_plain_names() && name.len() + 4 <= super::NAME_MAX {
                    match self.layers.stat_raw(dir, &whiteout_file_name(name)) {
                        Ok(_) => return Ok(InLayer::Hidden),
                        Err(Errno::NOENT) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                Ok(InLayer::Absent)
            }
            Err(e) => Err(e.into()),
        }
    }

    fn resolve_dir(&self, dir: &Arc<Node>, entry: &Entry) -> OpResult<(Arc<Node>, Option<Attr>)> {
        let parts = self.merge_dirs(&dir.parts(), entry)?;
        let top = parts.lowers.first().or(parts.upper.as_ref()).ok_or(Errno::NOENT)?;
        let natural = self.inos.number(top.dev, top.ino);
        let place =
            || Place { parent: Some(dir.clone()), name: entry.name.clone(), upper: None, lower: None };
        let (node, made) = self.table.intern(natural, Kind::Dir, false, || (place(), Some(parts.clone())));
        if made && parts.upper.is_some() {
            self.note_redirected(dir, &node, &parts);
        }
        if made || node.is_at(dir, &entry.name) {
            return Ok((node, None));
        }
        // The same directory shows at two places (a bind mount inside a layer, a copied mark): the kernel must not
        // take them for one. If it was only renamed meanwhile, the names know by now.
        if !self.entry(dir, &entry.name)?.is_some_and(|now| now.is_visible() && now.is_dir) {
            return Err(Errno::NOENT.into());
        }
        let key = (dir.ino, entry.name.clone());
        let number = *self.aliases.entry(key.clone()).or_insert_with(|| self.inos.fresh());
        let (mut node, made) = self.table.intern(number, Kind::Dir, false, || (place(), Some(parts.clone())));
        if !made && !node.is_at(dir, &entry.name) {
            // That one was renamed, and another took its place.
            let number = self.inos.fresh();
            self.aliases.insert(key, number);
            node = self.table.intern(number, Kind::Dir, false, || (place(), Some(parts))).0;
        }
        Ok((node, None))
    }

    /// Remembers a directory whose lower parts have another path than its place says.
    pub(super) fn note_redirected(&self, dir: &Node, node: &Arc<Node>, parts: &Parts) {
        let above: Vec<_> = dir.parts().lowers.iter().map(|d| (d.layer, d.path())).collect();
        let name = node.place.read().name.clone();
        for part in &parts.lowers {
            let path = part.path();
            let expected = above.iter().find(|(layer, _)| *layer == part.layer).map(|(_, parent)| {
                let mut path = parent.clone();
                push_component(&mut path, &name);
                path
            });
            if expected.as_ref() != Some(&path) {
                self.redirected.insert((part.layer, path), node.clone());
            }
        }
    }

    /// The layer directories that merge into the directory `entry` of a directory made of `parents`.
    fn merge_dirs(&self, parents: &Parts, entry: &Entry) -> OpResult<Parts> {
        let mut parts = Parts::default();
        let mut search = Search::Name(entry.name.clone());
        if entry.upper.object {
            let parent = parents.upper.as_ref().ok_or(Errno::NOENT)?;
            let (dir, marks) = self.layers.open_child(parent, &entry.name)?;
            search = self.next_search(search, &marks, UPPER, &entry.name)?;
            parts.upper = Some(dir);
            if entry.upper.whiteout_file && matches!(search, Search::Name(_)) {
                search = Search::Stop;
            }
        }
        let plain = matches!(&search, Search::Name(n) if *n == entry.name);
        if plain {
            // The listing knows which parts have the name, until a mark leads elsewhere.
            let listed = entry.lower.filter(|_| entry.lower_is_dir).into_iter();
            for number in listed.chain(entry.deeper.iter().flat_map(|d| d.iter().copied())) {
                let Some(part) = parents.lowers.get(usize::from(number)) else { break };
                let (dir, marks) = self.layers.open_child(part, &entry.name)?;
                search = self.next_search(search, &marks, dir.layer, &entry.name)?;
                parts.lowers.push(dir);
                if !matches!(&search, Search::Name(n) if *n == entry.name) {
                    break;
                }
            }
        }
        if !plain || !matches!(&search, Search::Name(n) if *n == entry.name) {
            self.search_on(parents, search, &mut parts)?;
        }
        Ok(parts)
    }

    /// The parts that an absolute redirect to `path` written in the upper leads to.
    pub(super) fn search_path(&self, path: &[u8], parts: &mut Parts) -> OpResult<()> {
        self.search_on(&Parts::default(), Search::Path(path.to_vec(), 0), parts)
    }

    /// Goes on where marks led away from the listed name.
    fn search_on(&self, parents: &Parts, mut search: Search, parts: &mut Parts) -> OpResult<()> {
        loop {
            let below = parts.lowers.last().map_or(0, |d| d.layer + 1);
            match search {
                Search::Stop => return Ok(()),
                Search::Name(name) => {
                    search = Search::Stop;
                    for part in parents.lowers.iter().filter(|p| p.layer >= below) {
                        match self.in_layer(part, &name)? {
                            InLayer::Absent => {}
                            InLayer::Hidden | InLayer::Other => return Ok(()),
                            InLayer::Dir => {
                                let (dir, marks) = self.layers.open_child(part, &name)?;
                                search =
                                    self.next_search(Search::Name(name.clone()), &marks, dir.layer, &name)?;
                                parts.lowers.push(dir);
                                break;
                            }
                        }
                    }
                }
                Search::Path(path, from) => {
                    search = Search::Stop;
                    let mut path = path;
                    for layer in from.max(below)..self.layers.lowers.len() as LayerNo {
                        let walked = self.walk(layer, &path)?;
                        path = walked.path;
                        if let Some(dir) = walked.dir {
                            // `walk` has opened it; its marks say how to go on.
                            let marks = self.marks_of(&dir)?;
                            let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
                            let here = Search::Path(path.clone(), layer + 1);
                            let go_on = walked.go_on && !self.has_opaque_entry(&dir)?;
                            search = if go_on {
                                self.next_search(here, &marks, layer, name)?
                            } else {
                                Search::Stop
                            };
                            parts.lowers.push(dir);
                            break;
                        }
                        if !walked.go_on {
                            break;
                        }
                    }
                }
            }
        }
    }

    fn marks_of(&self, dir: &Arc<LayerDir>) -> OpResult<DirMarks> {
        let read = |x: &dyn crate::layer::mark_io::XattrSource| {
            crate::layer::mark_io::dir_marks(x, &self.layers.names, dir.layer != UPPER)
        };
        if let (Some(index), Some(id)) = (self.layers.immutable_index(dir.layer), dir.index)
            && let Ok(entry) = index.entry(id)
        {
            return Ok(read(&entry)?);
        }
        let fd = self.fd(dir)?;
        Ok(read(&crate::sys::xattr::Target::Fd(fd.as_fd()))?)
    }

    /// How the search below a directory with these marks goes on.
    fn next_search(&self, now: Search, marks: &DirMarks, layer: LayerNo, name: &[u8]) -> OpResult<Search> {
        if marks.opaque == Opaque::Yes {
            return Ok(Search::Stop);
        }
        let Some(value) = &marks.redirect else { return Ok(now) };
        if self.layers.config.redirect_dir == RedirectDir::NoFollow {
            return Ok(Search::Stop);
        }
        match Redirect::parse(value) {
            None => Err(corrupt("redirect", name, layer)),
            Some(Redirect::Absolute(path)) => {
                Ok(Search::Path(path, if layer == UPPER { 0 } else { layer + 1 }))
            }
            Some(Redirect::Name(new)) => match now {
                Search::Path(path, from) => {
                    let parent = path.iter().rposition(|b| *b == b'/').map_or(&b""[..], |at| &path[..=at]);
                    Ok(Search::Path([parent, &new].concat(), from))
                }
                _ => Ok(Search::Name(Arc::from(new))),
            },
        }
    }
}

fn corrupt(mark: &'static str, name: &[u8], layer: LayerNo) -> OpError {
    OpError::CorruptMark { mark, name: os_name(name), layer: Layers::number(layer) }
}
