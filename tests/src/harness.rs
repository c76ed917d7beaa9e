//! Runs one case on several filesystems at once and holds them against a plain directory.
//!
//! After each operation: same outcome, same tree by walk, same answers by direct lookup, inode numbers that
//! keep to their objects. At the end: the same after a remount, lowers untouched, `work` clean, and the upper
//! means the same to kernel overlayfs (and one written by the kernel the same to layerfs).

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::inodes::Inodes;
use crate::layers::{LayerSpec, Node};
use crate::model::Model;
use crate::mount::{FsKind, Mount, Stack};
use crate::ops::{
    Answer, Kept, Listing, Op, Opening, Outcome, Step, Target, listing, moves_the_root, probe_differences,
};
use crate::privilege::layerfs_binary;
use crate::snapshot::{Look, Snapshot};

/// A difference from a plain directory that is known and accepted.
#[derive(Debug)]
pub struct Departure {
    /// Whose.
    pub of: fn(&FsKind) -> bool,
    /// When.
    pub when: fn(&Seen<'_>) -> bool,
    /// True when the trees differ from then on: the subject leaves the case.
    pub diverges: bool,
    /// Why it is right, or not ours to change.
    pub reason: &'static str,
}

/// A difference in the tree that is known and accepted; the subject leaves the case where it shows.
#[derive(Debug)]
pub struct TreeDeparture {
    /// Whose.
    pub of: fn(&FsKind) -> bool,
    /// When: a line of the difference, and the layers of the case.
    pub when: fn(&str, &[LayerSpec]) -> bool,
    /// Why it is right, or not ours to change.
    pub reason: &'static str,
}

/// What a departure is decided on.
#[derive(Debug)]
pub struct Seen<'a> {
    /// What was done.
    pub step: &'a Step<PathBuf>,
    /// What the plain directory said.
    pub expected: &'a Outcome,
    /// What the subject said.
    pub outcome: &'a Outcome,
    /// How the descriptor in use was opened.
    pub opening: Option<Opening>,
}

/// What all cases of a suite share.
#[derive(Debug)]
pub struct Harness<'a> {
    /// Where directories are made; emptied after each case.
    pub home: &'a Path,
    /// The filesystems under test.
    pub kinds: Vec<FsKind>,
    /// Accepted differences.
    pub departures: &'a [Departure],
    /// Accepted differences of trees.
    pub tree_departures: &'a [TreeDeparture],
    /// Mount the result with kernel overlayfs too (possible for [`crate::generate::Marks::Kernel`] only).
    pub kernel_reads: bool,
}

/// One filesystem in a case.
struct Subject {
    /// Before `mount`: descriptors must be closed when that is dropped.
    kept: Kept,
    mount: Mount,
    inodes: Inodes,
    lowers_before: Vec<Snapshot>,
    gone: bool,
}

const LAYER_LOOK: Look =
    Look { mtime: true, atime: true, nlink: true, marks: true, ino: true, no_root: false };

impl Harness<'_> {
    /// Runs generated steps.
    pub fn run(&self, layers: &[LayerSpec], steps: &[Step<Target>]) -> Result<(), String> {
        self.run_resolved(layers, steps, |step, listing| step.resolve(listing))
    }

    /// Runs steps that name their paths.
    pub fn run_paths(&self, layers: &[LayerSpec], steps: &[Step<PathBuf>]) -> Result<(), String> {
        self.run_resolved(layers, steps, |step, _| step.clone())
    }

    fn run_resolved<S>(
        &self,
        layers: &[LayerSpec],
        steps: &[S],
        resolve: impl Fn(&S, &Listing) -> Step<PathBuf>,
    ) -> Result<(), String> {
        let mut trace = String::new();
        for (number, layer) in layers.iter().enumerate() {
            write!(trace, "layer {number}:\n{layer}").expect("write to a string");
        }
        let case = tempfile::TempDir::with_prefix_in("case-", self.home).map_err(|e| e.to_string())?;
        fs::set_permissions(case.path(), fs::Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
        let result = self.run_traced(case.path(), layers, steps, resolve, &mut trace);
        case.close().map_err(|e| format!("remove the case's directory: {e}"))?;
        result.map_err(|fault| readable(&format!("{fault}\n--- the case:\n{trace}")))
    }

    fn run_traced<S>(
        &self,
        case: &Path,
        layers: &[LayerSpec],
        steps: &[S],
        resolve: impl Fn(&S, &Listing) -> Step<PathBuf>,
        trace: &mut String,
    ) -> Result<(), String> {
        let model = Model::merge(layers);
        let exact_links = !model.has_partly_hidden_links();
        let look = Look { nlink: exact_links, no_root: false, ..Look::default() };
        let reference = case.join("reference");
        fs::create_dir_all(&reference).map_err(|e| e.to_string())?;
        model.build(&reference);
        let mut subjects = self.subjects(case, layers)?;
        let mut reference_kept = Kept::default();
        let mut tree = Snapshot::take(&reference, look);
        let check = Check { harness: self, layers, reference: &reference, look };
        check.all(&mut subjects, &tree, "freshly mounted")?;
        for step in steps {
            let step = resolve(step, &listing(&tree));
            if moves_the_root(&step.op) {
                continue;
            }
            writeln!(trace, "{step:?}").expect("write to a string");
            let opening = opening_of(&step.op, &reference_kept);
            // Subjects first: one may refuse a rename that the reference then must not do.
            let mut outcomes = Vec::new();
            for subject in subjects.iter_mut().filter(|s| !s.gone) {
                outcomes.push(subject.apply(&step));
            }
            let refused = subjects.iter().filter(|s| !s.gone).zip(&outcomes).any(|(subject, outcome)| {
                matches!(step.op, Op::Rename { .. })
                    && *outcome == Err(Errno::XDEV)
                    && renames_by_mark_are_off(subject.mount.kind())
            });
            if refused {
                continue;
            }
            let expected = step.apply(&reference, &mut reference_kept);
            for (subject, outcome) in subjects.iter_mut().filter(|s| !s.gone).zip(outcomes) {
                let (expected, outcome) = (blur(expected.clone(), exact_links), blur(outcome, exact_links));
                if expected == outcome {
                    continue;
                }
                let seen = Seen { step: &step, expected: &expected, outcome: &outcome, opening };
                let kind = subject.mount.kind();
                match self.departures.iter().find(|d| (d.of)(kind) && (d.when)(&seen)) {
                    Some(departure) => subject.gone |= departure.diverges,
                    None => {
                        return Err(format!(
                            "{kind:?}: {:?}: {}, a plain directory says {}{}",
                            step.op,
                            say(&outcome),
                            say(&expected),
                            words_of(&subject.mount)
                        ));
                    }
                }
            }
            tree = Snapshot::take(&reference, look);
            check.all(&mut subjects, &tree, "after the step")?;
        }
        drop(reference_kept);
        for subject in &mut subjects {
            if !subject.gone {
                check.finish(subject, case, &tree)?;
            }
        }
        Ok(())
    }

    fn subjects(&self, case: &Path, layers: &[LayerSpec]) -> Result<Vec<Subject>, String> {
        let mut subjects = Vec::new();
        for (number, kind) in self.kinds.iter().enumerate() {
            let stack = Stack::make(&case.join(format!("subject{number}")), layers.len());
            for (layer, path) in layers.iter().zip(&stack.lowers) {
                layer.build(path);
            }
            let lowers_before = stack.lowers.iter().map(|path| Snapshot::take(path, LAYER_LOOK)).collect();
            let mount = Mount::try_new(kind.clone(), stack)?;
            subjects.push(Subject {
                mount,
                kept: Kept::default(),
                inodes: Inodes::default(),
                lowers_before,
                gone: false,
            });
        }
        Ok(subjects)
    }
}

/// What the trees of one case are compared by.
struct Check<'a> {
    harness: &'a Harness<'a>,
    layers: &'a [LayerSpec],
    reference: &'a Path,
    look: Look,
}

impl Check<'_> {
    fn all(&self, subjects: &mut [Subject], tree: &Snapshot, when: &str) -> Result<(), String> {
        subjects.iter_mut().filter(|s| !s.gone).try_for_each(|s| self.one(s, tree, when))
    }

    /// Compares by walk, by direct lookup and by inode numbers.
    fn one(&self, subject: &mut Subject, tree: &Snapshot, when: &str) -> Result<(), String> {
        let root = subject.mount.path();
        let mut faults = probe_differences(&listing(tree), self.reference, root);
        let seen = Snapshot::take(root, self.look);
        faults.extend(tree.differences(&seen));
        faults.extend(subject.inodes.check(tree.records.keys(), self.reference, root));
        let kind = subject.mount.kind();
        let accepted = |line: &String| {
            self.harness.tree_departures.iter().any(|d| (d.of)(kind) && (d.when)(line, self.layers))
        };
        if faults.is_empty() {
            return Ok(());
        }
        if faults.iter().all(accepted) {
            subject.gone = true;
            return Ok(());
        }
        let words = words_of(&subject.mount);
        Err(format!("{kind:?}: {when} (plain directory / subject):\n  {}{words}", first_lines(&faults)))
    }

    /// What must hold at the end of a case.
    fn finish(&self, subject: &mut Subject, case: &Path, tree: &Snapshot) -> Result<(), String> {
        let look = self.look;
        let kind = subject.mount.kind().clone();
        subject.kept.clear();
        let timed = Look { mtime: true, ..look };
        let before = Snapshot::take(subject.mount.path(), timed);
        subject.mount.remount();
        self.one(subject, tree, "after the final remount")?;
        if subject.gone {
            return Ok(());
        }
        let after = Snapshot::take(subject.mount.path(), timed);
        must_be_same(&kind, &before, &after, "times before and after the final remount")?;
        subject.mount.down();
        for (path, before) in subject.mount.stack().lowers.iter().zip(&subject.lowers_before) {
            let now = Snapshot::take(path, LAYER_LOOK);
            must_be_same(&kind, before, &now, &format!("lower {} before and after", path.display()))?;
        }
        if let Some((_, work)) = &subject.mount.stack().upper {
            let left = left_in_work(work);
            if !left.is_empty() {
                return Err(format!("{kind:?}: left in work: {left:?}"));
            }
        }
        let reader = match kind {
            FsKind::Layerfs(_) if self.harness.kernel_reads => FsKind::reading_kernel_overlay(),
            // Hard links that the kernel kept together are together in its index only, which is not portable.
            FsKind::KernelOverlay(_) if layerfs_binary().is_some() && !has_links(self.layers) => {
                FsKind::layerfs()
            }
            _ => return Ok(()),
        };
        let mut stack = subject.mount.stack().clone();
        if let Some((_, work)) = &mut stack.upper {
            *work = work.with_extension("reader");
            fs::create_dir(&*work).map_err(|e| e.to_string())?;
        }
        stack.merged = case.join("reader");
        fs::create_dir_all(&stack.merged).map_err(|e| e.to_string())?;
        let reader_words = format!("the upper of {kind:?}, read by {reader:?}");
        let mut mount = Mount::try_new(reader, stack).map_err(|e| format!("{reader_words}: {e}"))?;
        // Link counts of copied-up files need the index, which a portable upper does not have.
        let look = Look { nlink: false, mtime: true, ..look };
        let (mut before, mut seen) = (after, Snapshot::take(mount.path(), look));
        // Nor do listings of the kernel know the numbers of renamed directories without its own `impure` mark.
        seen.faults.retain(|fault| !fault.contains("in the listing"));
        for record in before.records.values_mut() {
            record.nlink = None;
        }
        mount.down();
        must_be_same(&kind, &before, &seen, &reader_words)
    }
}

impl Subject {
    fn apply(&mut self, step: &Step<PathBuf>) -> Outcome {
        if step.op == Op::Remount {
            self.kept.clear();
            self.mount.remount();
        }
        step.apply(self.mount.path(), &mut self.kept)
    }
}

fn has_links(layers: &[LayerSpec]) -> bool {
    layers.iter().flat_map(|layer| &layer.entries).any(|entry| matches!(entry.node, Node::Link(_)))
}

fn must_be_same(kind: &FsKind, a: &Snapshot, b: &Snapshot, what: &str) -> Result<(), String> {
    let differences = a.differences(b);
    if differences.is_empty() {
        return Ok(());
    }
    Err(format!("{kind:?}: {what}:\n  {}", differences.join("\n  ")))
}

/// The first faults of a list that may be very long.
fn first_lines(faults: &[String]) -> String {
    let mut text = faults.iter().take(30).cloned().collect::<Vec<_>>().join("\n  ");
    if faults.len() > 30 {
        write!(text, "\n  and {} more", faults.len() - 30).expect("write to a string");
    }
    text
}

/// An outcome with the errno by name.
#[must_use]
pub fn say(outcome: &Outcome) -> String {
    match outcome {
        Ok(answer) => format!("{answer:?}"),
        Err(errno) => errno.to_string(),
    }
}

/// Shortens the names that are long on purpose.
#[must_use]
pub fn readable(text: &str) -> String {
    text.replace(&"n".repeat(255), "LONGEST").replace(&"t".repeat(256), "TOO_LONG")
}

fn words_of(mount: &Mount) -> String {
    let log = mount.log();
    if log.is_empty() { log } else { format!("\n--- the server wrote:\n{log}") }
}

fn renames_by_mark_are_off(kind: &FsKind) -> bool {
    match kind {
        FsKind::KernelOverlay(options) | FsKind::Layerfs(options) => {
            ["off", "follow", "nofollow"].iter().any(|word| options.contains(&format!("redirect_dir={word}")))
        }
        _ => false,
    }
}

fn opening_of(op: &Op<PathBuf>, kept: &Kept) -> Option<Opening> {
    match op {
        Op::KeptRead { slot, .. }
        | Op::KeptWrite { slot, .. }
        | Op::KeptStat { slot }
        | Op::KeptTruncate { slot, .. }
        | Op::KeptChmod { slot, .. }
        | Op::KeptSetXattr { slot, .. }
        | Op::KeptList { slot }
        | Op::KeptCreate { slot, .. }
        | Op::KeptSync { slot } => kept.get(*slot).map(|kept| kept.how),
        _ => None,
    }
}

/// Takes out what no overlay can know.
fn blur(outcome: Outcome, exact_links: bool) -> Outcome {
    match outcome {
        Ok(Answer::Stat { mode, uid, gid, size, rdev, .. }) if !exact_links => {
            Ok(Answer::Stat { mode, uid, gid, size, nlink: 0, rdev })
        }
        other => other,
    }
}

/// Everything in a `work` directory that a clean unmount should have taken away: all but the directories
/// `work`, `index` and `incompat` themselves, and what the kernel keeps in its index.
#[must_use]
pub fn left_in_work(work: &Path) -> Vec<PathBuf> {
    let tree = Snapshot::take(work, Look::default());
    tree.records
        .into_iter()
        .filter(|(path, record)| {
            let top = path.components().next().map(|part| part.as_os_str().to_owned());
            let frame = record.kind == 'd' && path.components().count() <= 1;
            !frame && top.is_none_or(|name| name != "index")
        })
        .map(|(path, _)| path)
        .collect()
}
