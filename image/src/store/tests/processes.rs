//! Several processes on one store, and processes that are killed. The processes are this test program, told by its
//! environment to do one thing.

use std::env;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{add, content};
use crate::archive::{SaveFormat, Source, load, load_by, save};
use crate::commit::{Base, CommitOptions, commit};
use crate::error::Error;
use crate::layer::{IndexFailure, IndexedObject, LayerIndexBuilder, LayerIndexer, WithoutIndex};
use crate::reference::Reference;
use crate::store::Store;

const ROLE: &str = "LAYERFS_TEST_ROLE";
const DIR: &str = "LAYERFS_TEST_DIR";
const KILL_AT: &str = "LAYERFS_TEST_KILL_AT";
/// When it is set, the long variants run.
const LONG: &str = "LAYERFS_TEST_LONG";

/// Kills its process at one of the steps of indexing, which lie between all others of a layer.
#[derive(Debug)]
struct Killer {
    left: AtomicU64,
}

impl Killer {
    fn step(&self) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        }
    }
}

struct Steps(Arc<Killer>);

impl LayerIndexBuilder for Steps {
    fn insert(&mut self, _path: &[&[u8]], _object: IndexedObject<'_>) -> Result<(), IndexFailure> {
        self.0.step();
        Ok(())
    }

    fn finish(self: Box<Self>, _out: &Path) -> Result<(), IndexFailure> {
        self.0.step();
        Ok(())
    }
}

impl LayerIndexer for Arc<Killer> {
    fn begin(&self, _root: IndexedObject<'_>) -> Result<Box<dyn LayerIndexBuilder>, IndexFailure> {
        self.step();
        Ok(Box::new(Steps(self.clone())))
    }

    fn build(&self, _tree: &Path, _index: &Path) -> Result<(), IndexFailure> {
        self.step();
        Ok(())
    }

    fn check(&self, _tree: &Path, _index: &Path) -> Result<(), IndexFailure> {
        Ok(())
    }
}

#[test]
#[ignore = "it is what the processes of the other tests run"]
fn worker() {
    let (Ok(role), Some(dir)) = (env::var(ROLE), env::var_os(DIR).map(PathBuf::from)) else { return };
    let at = env::var(KILL_AT).ok().and_then(|at| at.parse().ok()).unwrap_or(u64::MAX);
    let killer = Arc::new(Killer { left: AtomicU64::new(at) });
    let store = Store::open(&dir.join("store"), Arc::new(killer)).unwrap();
    match role.as_str() {
        "load" => {
            let session = store.session().unwrap();
            let source = Source::open(&dir.join("image.tar"), session.path()).unwrap();
            // By one thread where a step is named: what is finished at that step does not depend on who is faster.
            match at {
                u64::MAX => load(&store, &session, &source).unwrap(),
                _ => load_by(&store, &session, &source, 1).unwrap(),
            };
        }
        "remove" => {
            for name in ["image", "committed"] {
                match store.find(name) {
                    Ok(image) => store.forget(&image.named.manifest).unwrap(),
                    // docker's answer too.
                    Err(Error::NoSuchImage(_)) => {}
                    Err(error) => panic!("find {name}: {error}"),
                }
            }
            store.collect().unwrap();
        }
        "commit" => {
            let session = store.session().unwrap();
            let image = match store.find("image") {
                Ok(image) => image,
                Err(Error::NoSuchImage(_)) => return,
                Err(error) => panic!("find image: {error}"),
            };
            let upper = dir.join("upper");
            let name = Some(Reference::parse("committed").unwrap());
            let options = CommitOptions { name, ..CommitOptions::default() };
            commit(&store, &session, &upper, &Base::Image(&image), &options).unwrap();
        }
        role => panic!("no such role: {role}"),
    }
}

fn start(role: &str, dir: &Path, kill_at: Option<u64>) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "store::tests::processes::worker", "--ignored", "--nocapture"]);
    command.env(ROLE, role).env(DIR, dir).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some(at) = kill_at {
        command.env(KILL_AT, at.to_string());
    }
    command.spawn().unwrap()
}

/// Waits for the end of a process. Answers whether it was killed; any other failure ends the test with its words.
fn is_killed(mut child: Child, what: &str) -> bool {
    let mut words = String::new();
    child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success() || status.signal() == Some(9), "{what}: {status}\n{words}");
    !status.success()
}

fn open(dir: &Path) -> Store {
    Store::open(&dir.join("store"), Arc::new(WithoutIndex)).unwrap()
}

/// Puts an archive of an image of five layers at `dir/image.tar`, and an upper beside it.
fn prepare(dir: &Path) {
    let upper = dir.join("upper");
    fs::create_dir(&upper).unwrap();
    let first = Store::open(&dir.join("first"), Arc::new(WithoutIndex)).unwrap();
    add(&first, "image", "base");
    // More than are taken in at once: the first are finished before the last begin.
    for content in ["second", "third", "fourth", "fifth"] {
        fs::write(upper.join(content), content).unwrap();
        let session = first.session().unwrap();
        let image = first.find("image").unwrap();
        let name = Some(Reference::parse("image").unwrap());
        let options = CommitOptions { name, ..CommitOptions::default() };
        commit(&first, &session, &upper, &Base::Image(&image), &options).unwrap();
    }
    let images = [(first.find("image").unwrap(), vec![Reference::parse("image").unwrap()])];
    let archive = save(&first, &images, SaveFormat::Docker, Vec::new()).unwrap();
    fs::write(dir.join("image.tar"), archive).unwrap();
}

#[test]
fn processes_that_load_remove_and_commit_at_once_leave_a_clean_store() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let rounds = if env::var_os(LONG).is_some() { 100 } else { 4 };
    for round in 0..rounds {
        let roles = ["load", "commit", "remove", "load", "commit", "remove"];
        let processes = roles.map(|role| start(role, dir.path(), None));
        for (role, process) in roles.into_iter().zip(processes) {
            assert!(!is_killed(process, role), "{role} was killed by somebody");
        }
        let store = open(dir.path());
        assert_eq!(store.check().unwrap().problems, [], "round {round}");
    }
    let store = open(dir.path());
    // Commits took the name from one another.
    for named in store.named().unwrap() {
        store.forget(&named.manifest).unwrap();
    }
    store.collect().unwrap();
    assert_eq!(content(&store), 0, "what no image leads to was not removed");
}

/// Whatever the moment: nothing shows, the store is clean, and what was finished is not made again.
#[test]
fn a_load_that_is_killed_shows_nothing_and_its_finished_blobs_are_used_again() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let (mut kills, mut reused) = (0, 0);
    for at in 1.. {
        let store = open(dir.path());
        let killed = is_killed(start("load", dir.path(), Some(at)), "load");
        assert_eq!(store.find("image").is_ok(), !killed, "killed at step {at}");
        assert_eq!(store.check().unwrap().problems, [], "killed at step {at}");
        if !killed {
            break;
        }
        kills += 1;
        let finished = inodes(&store);
        assert!(!is_killed(start("load", dir.path(), None), "load"));
        let again = inodes(&store);
        for blob in &finished {
            assert!(again.contains(blob), "killed at step {at}: {blob:?} was made again");
        }
        reused += finished.len();
        assert_eq!(store.check().unwrap().problems, [], "loaded after step {at}");
        fs::remove_dir_all(dir.path().join("store")).unwrap();
    }
    assert!(kills > 5, "only {kills} kills");
    assert!(reused > 0, "no blob was ever finished before");
    if env::var_os(LONG).is_some() {
        random_kills(dir.path());
    }
}

fn random_kills(dir: &Path) {
    fs::remove_dir_all(dir.join("store")).unwrap();
    let started = std::time::Instant::now();
    assert!(!is_killed(start("load", dir, None), "load"));
    let whole = u64::try_from(started.elapsed().as_micros()).unwrap();
    for round in 0..20_u64 {
        fs::remove_dir_all(dir.join("store")).unwrap();
        let mut child = start("load", dir, None);
        let part = round.wrapping_mul(7_368_787) % 20;
        std::thread::sleep(std::time::Duration::from_micros(whole * part / 20));
        child.kill().unwrap();
        let killed = is_killed(child, "load");
        let store = open(dir);
        assert_eq!(store.check().unwrap().problems, [], "part {part}, killed: {killed}");
        assert!(!is_killed(start("load", dir, None), "load"));
        assert_eq!(store.check().unwrap().problems, [], "part {part}");
        assert!(store.find("image").is_ok());
    }
}

/// Names and inode numbers of the blobs.
fn inodes(store: &Store) -> Vec<(String, u64)> {
    let blobs = fs::read_dir(store.root().join("blobs/sha256")).unwrap();
    blobs
        .map(|blob| blob.unwrap())
        .map(|blob| (blob.file_name().into_string().unwrap(), blob.metadata().unwrap().ino()))
        .filter(|(name, _)| !name.starts_with('.'))
        .collect()
}
