//! The merged view of a layer stack, computed from descriptions alone.
//!
//! Small on purpose, and independent of the filesystem under test: layers are laid over each other from the
//! bottom up, exactly as the rules read. The result can be made on disk as a plain directory, which then is
//! the reference for everything that follows.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::layers::{Entry, LayerSpec, Meta, Node};

/// An object of one layer, or of the merged view.
#[derive(Debug, Clone)]
enum Tree {
    /// A name of lower layers is gone.
    Gone,
    /// A directory; `opaque` hides what lies below it.
    Dir { opaque: bool, meta: Meta, children: BTreeMap<OsString, Tree> },
    /// Anything else. Leaves of one `identity` are hard links of each other.
    Leaf { node: Node, meta: Meta, identity: (usize, PathBuf) },
}

/// The merged view.
#[derive(Debug, Clone)]
pub struct Model {
    root: BTreeMap<OsString, Tree>,
    /// Paths per lower object, before anything was hidden.
    links: BTreeMap<(usize, PathBuf), usize>,
}

impl Model {
    /// Merges layers, top first.
    #[must_use]
    pub fn merge(layers: &[LayerSpec]) -> Self {
        let mut links = BTreeMap::new();
        let mut merged = BTreeMap::new();
        for (number, layer) in layers.iter().enumerate().rev() {
            merged = lay_over(single(number, layer, &mut links), merged);
        }
        Self { root: merged, links }
    }

    /// Makes the merged view as a plain directory at `root`, which exists and is empty.
    pub fn build(&self, root: &Path) {
        self.as_layer().build(root);
    }

    /// The merged view as the description of a single layer without marks.
    #[must_use]
    pub fn as_layer(&self) -> LayerSpec {
        let mut entries = Vec::new();
        let mut first = BTreeMap::new();
        flatten(&self.root, Path::new(""), &mut first, &mut entries);
        LayerSpec { entries }
    }

    /// True when some hard link of a visible object is hidden by a layer above: no overlay can count the
    /// links of such an object without reading whole layers.
    #[must_use]
    pub fn has_partly_hidden_links(&self) -> bool {
        let mut visible = BTreeMap::new();
        count_links(&self.root, &mut visible);
        visible.iter().any(|(identity, count)| self.links.get(identity).is_some_and(|all| all != count))
    }
}

/// The tree of one layer by itself, marks included.
fn single(
    number: usize,
    layer: &LayerSpec,
    links: &mut BTreeMap<(usize, PathBuf), usize>,
) -> BTreeMap<OsString, Tree> {
    let mut root = BTreeMap::new();
    for Entry { path, node, meta } in &layer.entries {
        let tree = match node {
            Node::Whiteout(_) => Tree::Gone,
            Node::Dir(opaque) => {
                Tree::Dir { opaque: opaque.is_some(), meta: meta.clone(), children: BTreeMap::new() }
            }
            Node::Link(target) => find(&root, target).clone(),
            _ => Tree::Leaf { node: node.clone(), meta: meta.clone(), identity: (number, path.clone()) },
        };
        if let Tree::Leaf { identity, .. } = &tree {
            *links.entry(identity.clone()).or_insert(0) += 1;
        }
        insert(&mut root, path, tree);
    }
    root
}

fn find<'a>(root: &'a BTreeMap<OsString, Tree>, path: &Path) -> &'a Tree {
    let mut level = root;
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        match level.get(part.as_os_str()) {
            Some(tree) if parts.peek().is_none() => return tree,
            Some(Tree::Dir { children, .. }) => level = children,
            other => panic!("{}: no such entry in this layer ({other:?})", path.display()),
        }
    }
    panic!("a hard link to the root")
}

fn insert(root: &mut BTreeMap<OsString, Tree>, path: &Path, tree: Tree) {
    let mut level = root;
    let parts: Vec<_> = path.components().map(|part| part.as_os_str().to_os_string()).collect();
    let (name, parents) = parts.split_last().expect("an entry has a path");
    for part in parents {
        let parent = level.entry(part.clone()).or_insert_with(|| Tree::Dir {
            opaque: false,
            meta: Meta::default(),
            children: BTreeMap::new(),
        });
        let Tree::Dir { children, .. } = parent else { panic!("{}: parent is no directory", path.display()) };
        level = children;
    }
    match (level.get_mut(name), tree) {
        // A parent that was implied first and described later keeps its children.
        (Some(Tree::Dir { opaque, meta, .. }), Tree::Dir { opaque: now, meta: described, .. }) => {
            *opaque = now;
            *meta = described;
        }
        (_, tree) => {
            level.insert(name.clone(), tree);
        }
    }
}

/// What is seen when `upper` lies over `lower`.
fn lay_over(upper: BTreeMap<OsString, Tree>, lower: BTreeMap<OsString, Tree>) -> BTreeMap<OsString, Tree> {
    let mut merged = lower;
    for (name, tree) in upper {
        let below = merged.remove(&name);
        match (tree, below) {
            (Tree::Gone, _) => {}
            (
                Tree::Dir { opaque: false, meta, children },
                Some(Tree::Dir { opaque, children: under, .. }),
            ) => {
                let children = lay_over(children, under);
                merged.insert(name, Tree::Dir { opaque, meta, children });
            }
            (Tree::Dir { opaque, meta, children }, _) => {
                // Whiteouts in a directory that covers nothing still are no entries.
                let children = lay_over(children, BTreeMap::new());
                merged.insert(name, Tree::Dir { opaque, meta, children });
            }
            (leaf, _) => {
                merged.insert(name, leaf);
            }
        }
    }
    merged
}

fn flatten(
    level: &BTreeMap<OsString, Tree>,
    at: &Path,
    first: &mut BTreeMap<(usize, PathBuf), PathBuf>,
    entries: &mut Vec<Entry>,
) {
    for (name, tree) in level {
        let path = at.join(name);
        match tree {
            Tree::Gone => {}
            Tree::Dir { meta, children, .. } => {
                entries.push(Entry { path: path.clone(), node: Node::Dir(None), meta: meta.clone() });
                flatten(children, &path, first, entries);
            }
            Tree::Leaf { node, meta, identity } => {
                let node = match first.get(identity) {
                    Some(other) => Node::Link(other.clone()),
                    None => {
                        first.insert(identity.clone(), path.clone());
                        node.clone()
                    }
                };
                entries.push(Entry { path, node, meta: meta.clone() });
            }
        }
    }
}

fn count_links(level: &BTreeMap<OsString, Tree>, visible: &mut BTreeMap<(usize, PathBuf), usize>) {
    for tree in level.values() {
        match tree {
            Tree::Gone => {}
            Tree::Dir { children, .. } => count_links(children, visible),
            Tree::Leaf { identity, .. } => *visible.entry(identity.clone()).or_insert(0) += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(layers: &[&str]) -> Vec<String> {
        let layers: Vec<_> = layers.iter().map(|text| LayerSpec::parse(text)).collect();
        let view = Model::merge(&layers).as_layer();
        view.entries.iter().map(|e| format!("{} {:?}", e.path.display(), e.node)).collect()
    }

    #[test]
    fn a_file_hides_lower_directories_and_stops_the_merge() {
        let view = merged(&["d a\nf a/x", "f a", "d a\nf a/y"]);
        assert_eq!(view, ["a Dir(None)", "a/x File([])"]);
    }

    #[test]
    fn whiteouts_and_opaque_marks_hide_and_do_not_show() {
        let view = merged(&["d a\nw a/x\no b\nf b/new", "d a\nf a/x\nf a/y\nd b\nf b/old"]);
        assert_eq!(view, ["a Dir(None)", "a/y File([])", "b Dir(None)", "b/new File([])"]);
    }

    #[test]
    fn an_opaque_directory_hides_layers_below_the_next_too() {
        let view = merged(&["d a", "o a\nf a/m", "d a\nf a/l"]);
        assert_eq!(view, ["a Dir(None)", "a/m File([])"]);
    }

    #[test]
    fn hard_links_stay_links_and_hidden_ones_are_noticed() {
        let layers = ["w y", "f x =1\nh y x\nh z x"].map(LayerSpec::parse);
        let model = Model::merge(&layers);
        assert!(model.has_partly_hidden_links());
        assert_eq!(model.as_layer().entries[1].node, Node::Link("x".into()));
    }
}
