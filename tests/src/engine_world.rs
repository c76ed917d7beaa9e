//! An engine beside a plain directory: each step is done to both, and everything visible must agree.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use layerfs_unionfs::config::MarkNamespace;
use rustix::fs::AtFlags;

use crate::engine::EngineFs;
use crate::harness::{left_in_work, say};
use crate::inodes::Inodes;
use crate::layers::LayerSpec;
use crate::model::Model;
use crate::mount::Stack;
use crate::ops::{Answer, Kept, Listing, NAMES, Op, Outcome, Special, Step, Who, listing, name};
use crate::snapshot::{Look, Snapshot};
use crate::sys;

/// In which namespace marks are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// `trusted.overlay.*`; needs root.
    Trusted,
    /// `user.overlay.*`; needs nothing.
    User,
}

impl Flavour {
    /// Those that this process can test.
    #[must_use]
    pub fn possible() -> &'static [Self] {
        if rustix::process::geteuid().is_root() { &[Self::User, Self::Trusted] } else { &[Self::User] }
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct EngineWorld {
    stack: Stack,
    engine: Option<EngineFs>,
    marks: MarkNamespace,
    remembers: bool,
    plain: PathBuf,
    look: Look,
    lowers_before: Vec<Snapshot>,
    inodes: Inodes,
    /// Names asked for in each directory, there or not.
    probes: Vec<OsString>,
}

const LAYER_LOOK: Look =
    Look { mtime: true, atime: true, nlink: true, marks: true, ino: true, no_root: false };

impl EngineWorld {
    /// A world below `home`, which does not exist yet. `upper` is what the upper holds already.
    pub fn new(
        home: &Path,
        flavour: Flavour,
        upper: &LayerSpec,
        lowers: &[LayerSpec],
        remembers: bool,
    ) -> Result<Self, String> {
        fs::create_dir_all(home).map_err(|e| e.to_string())?;
        let adapt = |layer: &LayerSpec| match flavour {
            Flavour::Trusted => layer.clone(),
            Flavour::User => layer.for_user(),
        };
        let layers: Vec<_> = std::iter::once(upper).chain(lowers).map(adapt).collect();
        let stack = Stack::make(home, lowers.len());
        layers[0].build(stack.upper());
        for (layer, path) in layers[1..].iter().zip(&stack.lowers) {
            layer.build(path);
        }
        let plain = home.join("plain");
        fs::create_dir(&plain).map_err(|e| e.to_string())?;
        let model = Model::merge(&layers);
        model.build(&plain);
        let lowers_before = stack.lowers.iter().map(|path| Snapshot::take(path, LAYER_LOOK)).collect();
        let marks = match flavour {
            Flavour::Trusted => MarkNamespace::Trusted,
            Flavour::User => MarkNamespace::User,
        };
        let engine = Some(EngineFs::open(&stack, marks, remembers)?);
        let look = Look { nlink: !model.has_partly_hidden_links(), ..Look::default() };
        let probes = (0..NAMES).map(name).collect();
        let mut world = Self {
            probes,
            stack,
            engine,
            marks,
            remembers,
            plain,
            look,
            lowers_before,
            inodes: Inodes::default(),
        };
        world.compare("freshly opened")?;
        Ok(world)
    }

    /// Asks for these names in each directory from now on, instead of those of random operations.
    #[must_use]
    pub fn probing(mut self, names: &[&str]) -> Self {
        self.probes = names.iter().map(OsString::from).collect();
        self
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &EngineFs {
        self.engine.as_ref().expect("open between two steps")
    }

    /// The directories.
    #[must_use]
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// What exists, for choosing targets.
    #[must_use]
    pub fn listing(&self) -> Listing {
        listing(&Snapshot::take(&self.plain, Look::default()))
    }

    /// Does the same to both. `Ok(false)`: the operation is nothing for an engine without a kernel.
    pub fn step(&mut self, op: &Op<PathBuf>, umask: u32) -> Result<bool, String> {
        if *op == Op::Remount {
            self.reopen()?;
            return Ok(true);
        }
        let Some(op) = possible(op) else { return Ok(false) };
        let Some(seen) = self.engine().apply(&op, umask) else { return Ok(false) };
        let step = Step { who: Who::Root, umask, op };
        let expected = apply_aside(&step, &self.plain);
        if self.blur(&expected) != self.blur(&seen) {
            return Err(format!("{:?}: {}, a plain directory says {}", step.op, say(&seen), say(&expected)));
        }
        self.compare(&format!("after {:?}", step.op))?;
        Ok(true)
    }

    /// Link counts that no overlay can know are not compared.
    fn blur(&self, outcome: &Outcome) -> Outcome {
        match outcome {
            Ok(Answer::Stat { mode, uid, gid, size, rdev, .. }) if !self.look.nlink => {
                Ok(Answer::Stat { mode: *mode, uid: *uid, gid: *gid, size: *size, nlink: 0, rdev: *rdev })
            }
            other => other.clone(),
        }
    }

    /// Compares by walk, by lookup and by inode numbers.
    fn compare(&mut self, when: &str) -> Result<(), String> {
        let expected = Snapshot::take(&self.plain, Look { ino: true, ..self.look });
        let seen = self.engine().snapshot(Look { ino: true, ..self.look });
        let numbers = expected
            .records
            .iter()
            .filter_map(|(path, a)| Some((path.clone(), a.ino?, seen.records.get(path)?.ino?)))
            .collect();
        let mut faults = self.inodes.check_numbers(numbers);
        faults.extend(without_numbers(expected.clone()).differences(&without_numbers(seen)));
        for dir in expected.records.iter().filter(|(_, record)| record.kind == 'd').map(|(path, _)| path) {
            for name in &self.probes {
                let path = dir.join(name);
                let plain =
                    rustix::fs::statat(rustix::fs::CWD, self.plain.join(&path), AtFlags::SYMLINK_NOFOLLOW);
                let (plain, seen) = (plain.map(|_| ()), self.engine().ask(&path).map(|_| ()));
                if plain != seen {
                    faults.push(format!("{}: looked up directly: {plain:?} / {seen:?}", path.display()));
                }
            }
        }
        if faults.is_empty() {
            return Ok(());
        }
        faults.truncate(30);
        Err(format!("{when} (plain directory / engine):\n  {}", faults.join("\n  ")))
    }

    /// Closes the engine and opens the same layers again.
    pub fn reopen(&mut self) -> Result<(), String> {
        let timed = Look { mtime: true, ..self.look };
        let before = self.engine().snapshot(timed);
        self.engine = None;
        self.engine = Some(EngineFs::open(&self.stack, self.marks, self.remembers)?);
        let after = self.engine().snapshot(timed);
        if self.marks == MarkNamespace::User {
            // User xattrs cannot be set on other types, so nothing remembers their number.
            let forgets =
                |path: &PathBuf| !matches!(before.records.get(path).map(|r| r.kind), Some('f' | 'd'));
            self.inodes.forget(forgets);
        }
        let differences = before.differences(&after);
        if !differences.is_empty() {
            return Err(format!("before and after opening again:\n  {}", differences.join("\n  ")));
        }
        self.compare("after opening again")
    }

    /// What must hold at the end.
    pub fn finish(mut self) -> Result<(), String> {
        self.reopen()?;
        self.engine = None;
        for (path, before) in self.stack.lowers.iter().zip(&self.lowers_before) {
            let differences = before.differences(&Snapshot::take(path, LAYER_LOOK));
            if !differences.is_empty() {
                return Err(format!("lower {} was changed:\n  {}", path.display(), differences.join("\n  ")));
            }
        }
        let left = left_in_work(self.stack.work());
        if left.is_empty() { Ok(()) } else { Err(format!("left in work: {left:?}")) }
    }
}

/// Applies a step on a thread of its own: the engine expects that nobody but itself changes the file mode
/// creation mask of the thread that it works on.
fn apply_aside(step: &Step<PathBuf>, root: &Path) -> Outcome {
    std::thread::scope(|scope| {
        let work = || {
            sys::unshare_thread(rustix::thread::UnshareFlags::FS).expect("unshare");
            step.apply(root, &mut Kept::default())
        };
        scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn without_numbers(mut snapshot: Snapshot) -> Snapshot {
    for record in snapshot.records.values_mut() {
        record.ino = None;
    }
    snapshot
}

/// The operation as this process may do it; `None` where it may not.
fn possible(op: &Op<PathBuf>) -> Option<Op<PathBuf>> {
    if rustix::process::geteuid().is_root() {
        return Some(op.clone());
    }
    let usable = |mode: u32| mode & 0o1777 | 0o700;
    match op {
        Op::Chown { .. } | Op::Mknod { kind: Special::CharNull | Special::Block | Special::CharZero, .. } => {
            None
        }
        Op::SetXattr { name, .. } | Op::GetXattr { name, .. } | Op::RemoveXattr { name, .. }
            if !name.starts_with("user.") =>
        {
            None
        }
        Op::Chmod { at, mode } => Some(Op::Chmod { at: at.clone(), mode: usable(*mode) }),
        Op::Create { at, mode, exclusive } => {
            Some(Op::Create { at: at.clone(), mode: usable(*mode), exclusive: *exclusive })
        }
        Op::Mkdir { at, mode } => Some(Op::Mkdir { at: at.clone(), mode: usable(*mode) }),
        Op::Mknod { at, kind, mode } => Some(Op::Mknod { at: at.clone(), kind: *kind, mode: usable(*mode) }),
        other => Some(other.clone()),
    }
}
