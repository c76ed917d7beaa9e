//! The container's first process, from its birth to the program.
//!
//! Runs on a copy of the parent's memory, and must never return into the parent's code. Each step's error
//! goes to the parent whole. Nothing of the machine stays open or mounted when the program begins.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::Path;

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::process::{Resource, Signal};
use rustix::pty::OpenptFlags;
use rustix::thread::CapabilitySets;

use super::parent::Stdio;
use super::program;
use crate::cgroup::Hierarchies;
use crate::channel::{Channel, Failure, FailureKind, Message, Received, Stage};
use crate::config::{Config, Process, Rlimit, TerminalSize};
use crate::namespaces::Namespaces;
use crate::rootfs::{self, resolve};
use crate::step::{Doing, StepError};
use crate::{capabilities, network, sys};

/// Exit status of an init that failed; the parent knows why from its message.
const FAILED: i32 = 125;

/// Everything from here on happens in the child.
pub(super) fn run(config: &Config, hierarchies: &Hierarchies, stdio: Stdio, channel: Channel) -> ! {
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let Err(failure) = become_program(config, hierarchies, stdio, &channel);
        // Without a parent there is nobody to tell.
        channel.send(&Message::Failed(failure), None).ok();
    }));
    drop(outcome);
    sys::process::exit_now(FAILED)
}

trait At<T> {
    fn at(self, stage: Stage) -> Result<T, Failure>;
}

impl<T> At<T> for Result<T, StepError> {
    fn at(self, stage: Stage) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            stage,
            kind: FailureKind::Setup,
            words: error.words(),
            errno: error.errno(),
        })
    }
}

fn become_program(
    config: &Config,
    hierarchies: &Hierarchies,
    stdio: Stdio,
    channel: &Channel,
) -> Result<Infallible, Failure> {
    begin(stdio, channel).at(Stage::Cgroup)?;
    expect(channel, &Message::Placed).at(Stage::Cgroup)?;
    if config.namespaces.contains(Namespaces::CGROUP) {
        sys::process::unshare(libc::CLONE_NEWCGROUP)
            .doing(|| "make a cgroup namespace".into())
            .at(Stage::Cgroup)?;
    }

    // Modes of what is made here are meant as they are.
    rustix::process::umask(Mode::empty());
    let root = rootfs::take_root(&config.root, config.root_no_devices).at(Stage::Root)?;
    rootfs::mount_all(&root, &config.mounts, hierarchies).at(Stage::Mounts)?;
    rootfs::make_devices(&root, &config.devices).at(Stage::Devices)?;
    let terminal = match config.process.terminal {
        Some(size) => Some(open_terminal(&root, size, &config.process).at(Stage::Terminal)?),
        None => None,
    };
    rootfs::enter_root(&root, config.root_read_only).at(Stage::Pivot)?;
    prepare_environment(&root, config).at(Stage::Environment)?;
    make_working_directory(&root, &config.process.cwd).at(Stage::Environment)?;
    drop(root);

    let master = match terminal {
        Some(terminal) => Some(terminal.make_controlling().at(Stage::Terminal)?),
        None => None,
    };
    become_user(&config.process).at(Stage::Privileges)?;
    let path = find_program(&config.process)?;
    channel
        .send(&Message::Ready, master.as_ref().map(AsFd::as_fd))
        .doing(|| "report to the parent".into())
        .at(Stage::Exec)?;
    // A master left open here would keep the terminal from ever hanging up.
    drop(master);
    expect(channel, &Message::Start).at(Stage::Exec)?;

    confine(config).at(Stage::Privileges)?;
    sys::process::set_close_on_exec_from(3).doing(|| "close descriptors".into()).at(Stage::Exec)?;
    let error = sys::process::exec(&path, &config.process.args, &config.process.env);
    let name = path.to_string_lossy();
    Err(Failure {
        stage: Stage::Exec,
        kind: program::kind_of(&error),
        words: format!("program {name:?}: {error}"),
        errno: error.raw_os_error(),
    })
}

/// Gives up what came from the parent: its signals, its session, its descriptors, its keys.
fn begin(stdio: Stdio, channel: &Channel) -> Result<(), StepError> {
    // For people who look at processes; without it all works.
    rustix::thread::set_name(c"layerfs:init").ok();
    die_with_parent()?;
    sys::signal::reset_actions();
    sys::signal::unblock_all().doing(|| "unblock signals".into())?;
    stdio.install().doing(|| "set the standard streams".into())?;
    sys::process::close_from_except(3, channel).doing(|| "close descriptors".into())?;
    rustix::process::setsid().doing(|| "begin a session".into())?;
    // Other processes of this user may look at nothing here until the program runs.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .doing(|| "forbid core dumps".into())?;
    // Kernels without keys have none to share; where the quota of keys is used up, the calls that would use
    // the shared ones are refused by the default filter.
    sys::process::new_session_keyring().ok();
    Ok(())
}

/// A killed runtime must not leave its container running.
fn die_with_parent() -> Result<(), StepError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .doing(|| "ask to be killed with the parent".into())
}

/// Waits for one message; the parent's end is an order to stop.
fn expect(channel: &Channel, wanted: &Message) -> Result<(), StepError> {
    let words = || "hear from the parent".to_owned();
    match channel.receive().doing(words)? {
        Received { message: Some(message), .. } if message == *wanted => Ok(()),
        Received { message: None, .. } => Err(StepError::refused(words(), "it is gone")),
        Received { message: Some(message), .. } => {
            Err(StepError::refused(words(), format!("{message:?} instead of {wanted:?}")))
        }
    }
}

struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
}

/// A pseudo terminal of the container's own instance, shown as its console.
fn open_terminal(root: &OwnedFd, size: TerminalSize, process: &Process) -> Result<Terminal, StepError> {
    let words = || "open a terminal in the container's /dev/pts".to_owned();
    let path = Path::new("/dev/pts/ptmx");
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = resolve::open(root, path, flags, resolve::Links::Refuse).doing(words)?;
    rustix::pty::unlockpt(&master).doing(words)?;
    // By descriptor: a name in the container may be anything.
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).doing(words)?;
    let mut window = rustix::termios::tcgetwinsize(&slave).doing(words)?;
    (window.ws_row, window.ws_col) = (size.rows, size.columns);
    rustix::termios::tcsetwinsize(&slave, window).doing(|| "set the terminal's size".into())?;
    rustix::fs::fchown(&slave, Some(Uid::from_raw(process.user.uid)), None)
        .doing(|| "give the terminal to the user".into())?;
    rootfs::bind_console(root, &slave)?;
    Ok(Terminal { master, slave })
}

impl Terminal {
    /// Makes it the session's terminal and the standard streams; the master is what is left.
    fn make_controlling(self) -> Result<OwnedFd, StepError> {
        rustix::process::ioctl_tiocsctty(&self.slave).doing(|| "take the terminal".into())?;
        rustix::stdio::dup2_stdin(&self.slave)
            .and_then(|()| rustix::stdio::dup2_stdout(&self.slave))
            .and_then(|()| rustix::stdio::dup2_stderr(&self.slave))
            .doing(|| "set the standard streams".into())?;
        Ok(self.master)
    }
}

/// What is set through the new root's own /proc and /sys, before parts of them are closed.
fn prepare_environment(root: &OwnedFd, config: &Config) -> Result<(), StepError> {
    if let Some(name) = &config.hostname {
        rustix::system::sethostname(name.as_encoded_bytes()).doing(|| format!("set host name {name:?}"))?;
    }
    if let Some(name) = &config.domainname {
        rustix::system::setdomainname(name.as_encoded_bytes())
            .doing(|| format!("set domain name {name:?}"))?;
    }
    if config.namespaces.contains(Namespaces::NETWORK) {
        network::bring_loopback_up()?;
    }
    for (name, value) in &config.sysctl {
        write_proc(root, &format!("/proc/sys/{}", name.replace('.', "/")), value)?;
    }
    if let Some(adjustment) = config.process.oom_score_adj {
        write_proc(root, "/proc/self/oom_score_adj", &adjustment.to_string())?;
    }
    rootfs::make_paths_read_only(root, &config.read_only_paths)?;
    rootfs::cover_paths(root, &config.masked_paths)
}

/// Writes to a file that must be the kernel's: an image may have put another one there.
fn write_proc(root: &OwnedFd, path: &str, value: &str) -> Result<(), StepError> {
    let words = || format!("write {value:?} to {path}");
    // "self" is a symlink of /proc itself.
    let links = resolve::Links::Follow;
    let file = resolve::open(root, Path::new(path), OFlags::WRONLY, links).doing(words)?;
    let magic = rustix::fs::fstatfs(&file).doing(words)?.f_type;
    if magic != rootfs::PROC_MAGIC {
        return Err(StepError::refused(words(), "it is not on /proc"));
    }
    rustix::io::write(&file, value.as_bytes()).doing(words)?;
    Ok(())
}

fn make_working_directory(root: &OwnedFd, path: &Path) -> Result<(), StepError> {
    let words = || format!("make working directory {}", path.display());
    match resolve::find(root, path, resolve::Links::Follow) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            resolve::find_or_make_directory(root, path, resolve::Links::Follow).doing(words)?;
            Ok(())
        }
        Err(error) => Err(error).doing(words),
    }
}

/// Limits, groups, user, working directory. Capabilities stay permitted until [`confine`].
fn become_user(process: &Process) -> Result<(), StepError> {
    for Rlimit { resource, soft, hard } in &process.rlimits {
        set_limit(*resource, *soft, *hard)?;
    }
    capabilities::limit_bounding_set(process.capabilities.bounding)?;
    rustix::thread::set_keep_capabilities(true).doing(|| "keep capabilities".into())?;
    let user = &process.user;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let groups: Vec<Gid> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        // A user namespace made without newgidmap forbids it, and then the groups are the caller's own.
        Err(rustix::io::Errno::PERM) if groups.is_empty() => {}
        result => result.doing(|| format!("set supplementary groups {:?}", user.groups))?,
    }
    rustix::thread::set_thread_res_gid(gid, gid, gid).doing(|| format!("become group {}", user.gid))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).doing(|| format!("become user {}", user.uid))?;
    rustix::thread::set_keep_capabilities(false).doing(|| "give up capabilities".into())?;
    // Changing the user has cleared it.
    die_with_parent()?;
    rustix::process::umask(Mode::from_raw_mode(user.umask.unwrap_or(0o022)));
    let words = || format!("change to working directory {}", process.cwd.display());
    rustix::process::chdir(&process.cwd).doing(words)?;
    // The kernel says "(unreachable)" of a directory outside of the root.
    let reached = rustix::process::getcwd(Vec::new()).doing(words)?;
    match reached.as_bytes().first() {
        Some(b'/') => Ok(()),
        _ => Err(StepError::refused(words(), "it is outside of the container's root")),
    }
}

fn set_limit(resource: Resource, soft: Option<u64>, hard: Option<u64>) -> Result<(), StepError> {
    let limit = rustix::process::Rlimit { current: soft, maximum: hard };
    rustix::process::setrlimit(resource, limit).doing(|| {
        format!("set limit {resource:?} to {soft:?}:{hard:?} (raising a hard limit needs CAP_SYS_RESOURCE)")
    })
}

fn find_program(process: &Process) -> Result<CString, Failure> {
    let empty = CString::default();
    let name = process.args.first().unwrap_or(&empty);
    program::find(name, &process.env).map_err(|error| Failure {
        stage: Stage::Exec,
        kind: error.kind,
        words: error.words,
        errno: error.errno,
    })
}

/// Capabilities and system call filters: last, as they forbid what the steps before need.
fn confine(config: &Config) -> Result<(), StepError> {
    let process = &config.process;
    if process.no_new_privileges {
        capabilities::apply(&process.capabilities)?;
        rustix::thread::set_no_new_privs(true).doing(|| "set no_new_privs".into())?;
        return install_filters(config);
    }
    // Without no_new_privs a filter needs CAP_SYS_ADMIN, which another user than root has to be lent again.
    if !config.seccomp.is_empty() {
        let have = rustix::thread::capabilities(None).doing(|| "read the capabilities".into())?;
        let raised = CapabilitySets { effective: have.permitted, ..have };
        rustix::thread::set_capabilities(None, raised).doing(|| "raise the capabilities".into())?;
        install_filters(config)?;
    }
    capabilities::apply(&process.capabilities)
}

fn install_filters(config: &Config) -> Result<(), StepError> {
    for filter in &config.seccomp {
        sys::seccomp::install(filter.program()).doing(|| "install the system call filter".into())?;
    }
    Ok(())
}
