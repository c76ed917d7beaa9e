//! Serving one busy caller on its own CPU.
//!
//! A request wakes a thread of this process, and its answer wakes the caller. The scheduler puts whoever is woken on an
//! idle CPU, so both wake-ups cross CPUs though the two never run at the same time: tens of microseconds each in a
//! virtual machine, several times what most requests take. When one caller alone asks in quick succession, one thread,
//! the leader, moves to the caller's CPU and takes all requests, while the others rest. While it answers it has the
//! policy `SCHED_IDLE`: its CPU counts as idle then, and the caller is woken where it was.
//!
//! What must hold: nobody waits because the leader does not run. The leader holds no lock while it answers. One of the
//! resting threads watches it by the clock ([`TICK`]) and ends all of this when the leader does not come on: it may be
//! waiting for a disk, or compete with somebody for the CPU. The same happens when several callers ask in turns, and
//! when nobody asks. See `docs/decisions/0010-own-transport.md`.
//!
//! Where there is one CPU only, one thread leads whoever asks: threads that take turns are wake-ups too. Nobody is moved
//! then, and policies stay.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Pid;
use rustix::thread::CpuSet;

use super::abi::Op;
use super::device::Device;
use super::request::Request;
use crate::sys::creds;
use crate::sys::schedule::{self, Policy};

/// Requests of one caller in a row that make a thread its leader.
const STREAK: i32 = 8;
/// How often the leader is looked at.
const TICK: Duration = Duration::from_millis(1);
/// Looks without progress at a leader that has a request, before the others help.
const STUCK: u32 = 2;
/// Looks without any request, before all wait for requests again.
const QUIET: u32 = 20;
/// Requests after which a caller is looked for again: it can move, and does several times a hundredth of a second where
/// the scheduler sees it and the leader on one CPU beside an idle one.
const FOLLOW: u32 = 16;
/// A caller on the leader's CPU has its next request ready when the leader comes back from the answer; one that took
/// longer than this runs elsewhere, or does something else in between.
const PROMPT: Duration = Duration::from_micros(8);
/// Such requests in a row after which the caller is looked for.
const APART: u32 = 4;
/// Weight of a request of somebody else than the last time, and how much of it ends the leading.
const FOREIGN: u32 = 3;
const MANY_FOREIGN: u32 = 24;
/// Requests before the next try after a leader was in the way; doubled each time that happens again, up to
/// [`LONGEST_PAUSE`]: somebody competes for the CPUs.
const PAUSE: i32 = 256;
const LONGEST_PAUSE: i32 = 1 << 16;
/// Requests after which a leader was good for something.
const WORTHWHILE: u64 = 4096;
/// Reads from here on are part of a stream that the kernel asks for ahead: they run beside the caller.
const STREAM: u32 = 64 << 10;

const CAP_SYS_NICE: u32 = 23;

/// What the threads share.
#[derive(Debug)]
pub(super) struct Near {
    cpus: Cpus,
    /// There is a leader, and the others rest.
    on: AtomicBool,
    /// The mount is gone.
    ended: AtomicBool,
    /// Who asked last, and how often in a row; below zero while there is a pause.
    last: AtomicU32,
    streak: AtomicI32,
    /// Thread id of the leader.
    leader: AtomicI32,
    /// Odd while the leader has a request.
    progress: AtomicU64,
    /// The leader is answering, and may be `SCHED_IDLE`.
    answering: AtomicBool,
    /// The pause after the next leader that is in the way.
    pause: AtomicI32,
    /// [`Self::progress`] when the leader began.
    began: AtomicU64,
    /// True while one of those that rest watches.
    watched: Mutex<bool>,
    wake: Condvar,
    device: Arc<Device>,
}

/// Where callers and threads of this process can be.
#[derive(Debug, Clone, Copy)]
enum Cpus {
    /// Leading is not possible, or not wanted.
    Unused,
    /// One, for all.
    One,
    /// Several, between which this process may move its threads.
    Several(CpuSet),
}

thread_local! {
    /// Set on the thread that leads.
    static LEADS: RefCell<Option<Arc<Near>>> = const { RefCell::new(None) };
}

/// What one thread knows.
#[derive(Debug, Default)]
pub(super) struct Place {
    lead: Option<Lead>,
}

#[derive(Debug)]
struct Lead {
    caller: u32,
    /// The caller's `/proc/PID/stat`.
    stat: Option<File>,
    requests: u32,
    foreign: u32,
    cpu: Option<usize>,
    /// When the last answer was given.
    answered: Option<Instant>,
    /// Requests in a row that were not prompt.
    apart: u32,
    /// How many make the caller be looked for.
    patience: u32,
}

/// Runs `send`, which wakes the caller: on this CPU, when this thread leads.
pub(super) fn answering<T>(send: impl FnOnce() -> T) -> T {
    LEADS.with_borrow(|near| match near {
        Some(near) if near.moves() && near.on.load(Ordering::Relaxed) => near.answer(send),
        _ => send(),
    })
}

/// Starts a thread that may run everywhere: threads begin with the CPUs of the one that starts them.
pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let cpus = LEADS.with_borrow(|near| near.as_ref().and_then(|near| near.several()));
    let thread = std::thread::Builder::new().name(name.to_owned());
    let started = thread.spawn(move || {
        if let Some(cpus) = cpus
            && let Err(e) = rustix::thread::sched_setaffinity(None, &cpus)
        {
            tracing::debug!("CPUs of a new thread: {e}");
        }
        work();
    });
    started.map(drop)
}

impl Near {
    pub(super) fn new(wanted: bool, threads: usize, device: Arc<Device>) -> Self {
        Self {
            cpus: if wanted && threads > 1 { usable_cpus() } else { Cpus::Unused },
            on: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            last: AtomicU32::new(0),
            streak: AtomicI32::new(0),
            leader: AtomicI32::new(0),
            progress: AtomicU64::new(0),
            answering: AtomicBool::new(false),
            pause: AtomicI32::new(PAUSE),
            began: AtomicU64::new(0),
            watched: Mutex::new(false),
            wake: Condvar::new(),
            device,
        }
    }

    /// True where callers can be followed from CPU to CPU.
    pub(super) fn moves(&self) -> bool {
        self.several().is_some()
    }

    fn several(&self) -> Option<CpuSet> {
        match self.cpus {
            Cpus::Several(cpus) => Some(cpus),
            Cpus::Unused | Cpus::One => None,
        }
    }

    fn is_unused(&self) -> bool {
        matches!(self.cpus, Cpus::Unused)
    }

    /// Before a thread waits for a request: it rests as long as another one leads.
    pub(super) fn before_request(&self, place: &mut Place) {
        if self.is_unused() {
            return;
        }
        if let Some(lead) = &mut place.lead {
            self.progress.fetch_add(1, Ordering::Release);
            if self.on.load(Ordering::Acquire) {
                if self.moves() {
                    lead.answered = Some(Instant::now());
                }
                return;
            }
            self.step_down(place);
        }
        if self.on.load(Ordering::Acquire) {
            self.rest();
        }
    }

    /// A thread has a request.
    pub(super) fn on_request(self: &Arc<Self>, place: &mut Place, request: &Request<'_>) {
        if self.is_unused() {
            return;
        }
        let caller = request.header.pid;
        if let Some(lead) = &mut place.lead {
            self.progress.fetch_add(1, Ordering::Release);
            if !self.moves() || caller == 0 || !counts(request.header.op) {
                return;
            }
            if is_stream(request) {
                return self.leave(PAUSE, "a stream is read");
            }
            if lead.caller == caller {
                lead.requests += 1;
                lead.foreign = lead.foreign.saturating_sub(1);
                let prompt = lead.answered.is_none_or(|at| at.elapsed() < PROMPT);
                lead.apart = if prompt { 0 } else { lead.apart + 1 };
                if lead.apart >= lead.patience {
                    lead.apart = 0;
                    // A caller that was here all the time only takes its time.
                    lead.patience = if self.follow(lead) { APART } else { FOLLOW };
                } else if lead.requests == 2 || lead.requests.is_multiple_of(FOLLOW) {
                    self.follow(lead);
                }
            } else {
                lead.foreign += FOREIGN;
                (lead.caller, lead.requests, lead.stat) = (caller, 1, None);
                if lead.foreign > MANY_FOREIGN {
                    self.leave(PAUSE, "several callers");
                }
            }
            return;
        }
        if caller == 0 || !counts(request.header.op) || self.on.load(Ordering::Relaxed) {
            return;
        }
        if !self.moves() {
            if self.streak.fetch_add(1, Ordering::Relaxed) >= STREAK {
                self.lead(place, caller);
            }
        } else if is_stream(request) {
            self.streak.store(-PAUSE, Ordering::Relaxed);
        } else if self.last.load(Ordering::Relaxed) != caller {
            self.last.store(caller, Ordering::Relaxed);
            self.streak.fetch_min(0, Ordering::Relaxed);
        } else if self.streak.fetch_add(1, Ordering::Relaxed) >= STREAK {
            self.lead(place, caller);
        }
    }

    /// This thread becomes the leader, unless another one just did.
    fn lead(self: &Arc<Self>, place: &mut Place, caller: u32) {
        // The last leader must have stepped down: there is one place for its number.
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        if self.leader.compare_exchange(0, thread, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return;
        }
        self.streak.store(0, Ordering::Relaxed);
        let mut lead = Lead {
            caller,
            stat: None,
            requests: 1,
            foreign: 0,
            cpu: None,
            answered: None,
            apart: 0,
            patience: APART,
        };
        // It has the request that made it the leader.
        let began = self.progress.fetch_or(1, Ordering::Release);
        self.began.store(began, Ordering::Relaxed);
        self.on.store(true, Ordering::Release);
        LEADS.set(Some(self.clone()));
        self.set_policy(Policy::Batch);
        if self.moves() {
            self.follow(&mut lead);
        }
        place.lead = Some(lead);
    }

    /// Moves to the caller's CPU. True when that is another one than before.
    fn follow(&self, lead: &mut Lead) -> bool {
        let Some(cpu) = lead.cpu_of_caller() else {
            self.leave(PAUSE, "the caller is not seen");
            return false;
        };
        if lead.cpu == Some(cpu) {
            return false;
        }
        let mut set = CpuSet::new();
        if cpu >= CpuSet::MAX_CPU || !self.several().is_some_and(|cpus| cpus.is_set(cpu)) {
            self.leave(PAUSE, "the caller's CPU is not for this process");
            return false;
        }
        set.set(cpu);
        match rustix::thread::sched_setaffinity(None, &set) {
            Ok(()) => lead.cpu = Some(cpu),
            Err(_) => self.leave(PAUSE, "the CPU cannot be chosen"),
        }
        true
    }

    /// Ends the leading: the others wake up at once, the leader sees it before its next request.
    fn leave(&self, pause: i32, why: &'static str) {
        tracing::debug!(pause, "no longer near: {why}");
        self.streak.store(-pause, Ordering::Relaxed);
        self.on.store(false, Ordering::Release);
        // Taken so that nobody who is about to rest misses it.
        drop(self.watched.lock());
        self.wake.notify_all();
    }

    /// Of this thread.
    fn set_policy(&self, policy: Policy) {
        if let Err(e) = schedule::set_policy(0, policy) {
            tracing::debug!(?policy, "policy: {e}");
        }
    }

    fn step_down(&self, place: &mut Place) {
        place.lead = None;
        LEADS.set(None);
        self.release(None);
        self.leader.store(0, Ordering::Release);
    }

    /// Gives a thread its CPUs and its policy back.
    fn release(&self, thread: Option<Pid>) {
        let number = thread.map_or(0, |t| t.as_raw_nonzero().get());
        if let Err(e) = schedule::set_policy(number, Policy::Other) {
            tracing::debug!("policy of thread {number}: {e}");
        }
        if let Some(cpus) = self.several()
            && let Err(e) = rustix::thread::sched_setaffinity(thread, &cpus)
        {
            tracing::debug!("CPUs of thread {number}: {e}");
        }
    }

    fn answer<T>(&self, send: impl FnOnce() -> T) -> T {
        self.answering.store(true, Ordering::Release);
        let idle = schedule::set_policy(0, Policy::Idle).is_ok();
        if !self.on.load(Ordering::Acquire) {
            self.release(None);
        }
        let sent = send();
        if idle && let Err(e) = schedule::set_policy(0, Policy::Batch) {
            tracing::error!("take the usual scheduling policy back: {e}");
            self.leave(i32::MAX, "the policy cannot be taken back");
        }
        self.answering.store(false, Ordering::Release);
        sent
    }

    /// Until nobody leads any more.
    fn rest(&self) {
        let mut watched = self.watched.lock();
        while self.on.load(Ordering::Acquire) && !self.ended.load(Ordering::Acquire) {
            if *watched {
                self.wake.wait(&mut watched);
                continue;
            }
            *watched = true;
            let (mut seen, mut looks) = (self.progress.load(Ordering::Acquire), 0);
            while self.on.load(Ordering::Acquire) && !self.ended.load(Ordering::Acquire) {
                if !self.wake.wait_for(&mut watched, TICK).timed_out() {
                    continue;
                }
                let now = self.progress.load(Ordering::Acquire);
                if now != seen {
                    (seen, looks) = (now, 0);
                    continue;
                }
                looks += 1;
                let has_request = now % 2 == 1;
                if has_request && looks >= STUCK || looks >= QUIET {
                    // A caller that only thinks is no reason for a pause; one that waits in vain is.
                    let in_vain = has_request && self.requests_wait();
                    let pause = if in_vain { self.next_pause(now) } else { 0 };
                    tracing::debug!(pause, has_request, "no longer near");
                    self.streak.store(-pause, Ordering::Relaxed);
                    self.on.store(false, Ordering::Release);
                    self.wake.notify_all();
                }
            }
            *watched = false;
            // Another one may have begun to rest meanwhile.
            self.wake.notify_all();
        }
        drop(watched);
        self.free_leader();
    }

    /// How long to leave it be after a leader that was in the way at `progress`.
    fn next_pause(&self, progress: u64) -> i32 {
        // Two steps for each request.
        let served = progress.saturating_sub(self.began.load(Ordering::Relaxed)) / 2;
        let pause = if served >= WORTHWHILE { PAUSE } else { self.pause.load(Ordering::Relaxed) };
        self.pause.store((pause * 2).min(LONGEST_PAUSE), Ordering::Relaxed);
        pause
    }

    /// A leader that was in the middle of an answer has a policy under which it may not run for long.
    fn free_leader(&self) {
        for _ in 0..50 {
            let Some(leader) = Pid::from_raw(self.leader.load(Ordering::Acquire)) else { return };
            if !self.answering.load(Ordering::Acquire) || self.on.load(Ordering::Acquire) {
                return;
            }
            self.release(Some(leader));
            std::thread::sleep(TICK);
        }
    }

    fn requests_wait(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut device = [PollFd::from_borrowed_fd(self.device.as_fd(), PollFlags::IN)];
        rustix::event::poll(&mut device, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// The mount is gone: nobody rests any more.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.on.store(false, Ordering::Release);
        drop(self.watched.lock());
        self.wake.notify_all();
    }
}

/// Requests for which nobody waits say nothing about a caller.
fn counts(op: Option<Op>) -> bool {
    !matches!(op, None | Some(Op::Forget | Op::BatchForget | Op::Release | Op::ReleaseDir | Op::Interrupt))
}

fn is_stream(request: &Request<'_>) -> bool {
    let mut fields = request.fields();
    // fh, offset, size
    request.header.op == Some(Op::Read)
        && fields.skip(16).and_then(|()| fields.u32()).is_ok_and(|size| size >= STREAM)
}

/// The CPUs of this process, and what it may do with them.
fn usable_cpus() -> Cpus {
    let Ok(cpus) = rustix::thread::sched_getaffinity(None) else { return Cpus::Unused };
    if cpus.count() == 1 {
        return Cpus::One;
    }
    // Going back from SCHED_IDLE takes the capability in the first user namespace (`user_check_sched_setscheduler`).
    let may = creds::has_capability(CAP_SYS_NICE)
        && creds::in_initial_user_namespace()
        && schedule::has_default_policy(0);
    if may { Cpus::Several(cpus) } else { Cpus::Unused }
}

impl Lead {
    /// The CPU that the caller ran on last: field 39 of /proc/PID/stat (proc(5)).
    fn cpu_of_caller(&mut self) -> Option<usize> {
        let file = match self.stat.take() {
            Some(file) => file,
            None => File::open(format!("/proc/{}/stat", self.caller)).ok()?,
        };
        // Fifty numbers and a name of 15 bytes.
        let mut text = [0; 1024];
        let len = file.read_at(&mut text, 0).ok()?;
        self.stat = Some(file);
        cpu_in(text.get(..len)?)
    }
}

fn cpu_in(stat: &[u8]) -> Option<usize> {
    // The name in parentheses can hold anything; the third field is the first behind it.
    let behind = stat.iter().rposition(|b| *b == b')')? + 1;
    let rest = std::str::from_utf8(stat.get(behind..)?).ok()?;
    rest.split_ascii_whitespace().nth(39 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lead_of(caller: u32) -> Lead {
        Lead { caller, stat: None, requests: 0, foreign: 0, cpu: None, answered: None, apart: 0, patience: 0 }
    }

    #[test]
    fn the_cpu_is_found_behind_any_name() {
        let numbers: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
        for name in ["cat", "a b", "x) 1 2 (y", ")"] {
            let stat = format!("12 ({name}) S {}\n", numbers.join(" "));
            assert_eq!(cpu_in(stat.as_bytes()), Some(39), "{name}");
        }
        assert_eq!(cpu_in(b"12 (cat) S 1 2"), None);
        assert_eq!(cpu_in(b""), None);
        let mut lead = lead_of(std::process::id());
        assert!(lead.cpu_of_caller().is_some() && lead.cpu_of_caller().is_some(), "also when it is open");
        assert_eq!(lead_of(0).cpu_of_caller(), None);
    }

    #[test]
    fn regression_threads_started_by_the_leader_may_run_everywhere() {
        let all = rustix::thread::sched_getaffinity(None).unwrap();
        let Some(first) = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)) else { panic!("no CPU") };
        let device = Arc::new(Device::new(std::fs::File::open("/dev/null").unwrap().into()));
        let near = Near { cpus: Cpus::Several(all), ..Near::new(false, 1, device) };
        let (seen, told) = std::sync::mpsc::channel();
        let leader = std::thread::spawn(move || {
            LEADS.set(Some(Arc::new(near)));
            let mut one = CpuSet::new();
            one.set(first);
            rustix::thread::sched_setaffinity(None, &one).unwrap();
            spawn("copy-up", move || seen.send(rustix::thread::sched_getaffinity(None).unwrap()).unwrap())
                .unwrap();
        });
        assert_eq!(told.recv().unwrap().count(), all.count());
        leader.join().unwrap();
    }

    #[test]
    fn pauses_grow_while_leaders_are_in_the_way_and_shrink_after_one_that_was_not() {
        let device = Arc::new(Device::new(std::fs::File::open("/dev/null").unwrap().into()));
        let near = Near::new(false, 1, device);
        assert_eq!([near.next_pause(10), near.next_pause(10), near.next_pause(10)], [256, 512, 1024]);
        for _ in 0..10 {
            near.next_pause(10);
        }
        assert_eq!(near.next_pause(10), LONGEST_PAUSE);
        assert_eq!(near.next_pause(2 * WORTHWHILE), PAUSE);
        near.began.store(100, Ordering::Relaxed);
        assert_eq!(near.next_pause(2 * WORTHWHILE), 2 * PAUSE, "it served less than it looks");
    }

    #[test]
    fn nobody_answers_for_nobody() {
        assert_eq!(answering(|| 7), 7);
    }
}
