//! Buffers of a mebibyte, of which only what is touched is memory, and which are given back when nothing comes for a while:
//! a container that once read a large file and sleeps since keeps none of it.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;

use memmap2::MmapMut;
use rustix::event::{PollFd, PollFlags, Timespec};

/// Bytes up to which what was touched is not worth a system call: what the kernel reads ahead as it comes.
const SMALL: usize = (128 << 10) + 4096;
/// Requests in a row that use little, after which what was used for more is given back without further waiting: to look
/// whether requests come costs a system call each time.
const FEW: u32 = 32;
/// How long a thread that has used much waits for the next request before it gives it back, in milliseconds.
const PATIENCE: i64 = 200;

/// Anonymous memory of a fixed size.
#[derive(Debug)]
pub(super) struct Buffer {
    /// `None`: not one byte was asked for since it was given back.
    memory: Option<MmapMut>,
    size: usize,
    is_large: bool,
    /// Waits since it was used for much.
    waits: u32,
}

impl Buffer {
    pub(super) const fn new(size: usize) -> Self {
        Self { memory: None, size, is_large: false, waits: 0 }
    }

    /// All of it. What is not written is zero, or from an earlier use.
    pub(super) fn space(&mut self) -> io::Result<&mut [u8]> {
        let memory = match self.memory.take() {
            Some(memory) => memory,
            None => MmapMut::map_anon(self.size)?,
        };
        Ok(self.memory.insert(memory))
    }

    /// The first `len` bytes of it.
    pub(super) fn filled(&self, len: usize) -> &[u8] {
        self.memory.as_deref().and_then(|memory| memory.get(..len)).unwrap_or_default()
    }

    /// Says that so many bytes from its beginning were touched.
    pub(super) fn touched(&mut self, len: usize) {
        if len > SMALL {
            self.is_large = true;
            self.waits = 0;
        }
    }

    /// Before a wait: true if it is to be given back when the wait is long.
    fn is_kept(&mut self) -> bool {
        self.waits += 1;
        if self.waits > FEW {
            self.give_back();
        }
        self.is_large
    }

    fn give_back(&mut self) {
        if self.is_large {
            self.memory = None;
            self.is_large = false;
        }
        self.waits = 0;
    }
}

thread_local! {
    /// What is read from files on its way to the kernel.
    static DATA: RefCell<Buffer> = const { RefCell::new(Buffer::new(super::session::MAX_TRANSFER as usize)) };
}

/// Does `work` with the first `size` bytes of this thread's buffer for data.
pub(super) fn with_data<T>(size: usize, work: impl FnOnce(io::Result<&mut [u8]>) -> T) -> T {
    DATA.with_borrow_mut(|buffer| {
        buffer.touched(size);
        let space = buffer.space().and_then(|space| {
            space.get_mut(..size).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
        });
        work(space)
    })
}

/// Called before a thread waits for its next request: when much of its buffers was touched, and no request comes from
/// `device` for a moment, they are given back.
pub(super) fn before_waiting(own: &mut Buffer, device: impl AsFd) {
    let data_is_kept = DATA.with_borrow_mut(Buffer::is_kept);
    if !own.is_kept() && !data_is_kept {
        return;
    }
    let patience = Timespec { tv_sec: 0, tv_nsec: PATIENCE * 1_000_000 };
    let mut wanted = [PollFd::new(&device, PollFlags::IN)];
    // Interrupted, or failed: the read that follows shows why.
    if matches!(rustix::event::poll(&mut wanted, Some(&patience)), Ok(0)) {
        own.give_back();
        DATA.with_borrow_mut(Buffer::give_back);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_large_is_given_back_when_much_that_is_small_follows() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&writer, b"x").unwrap();
        let mut own = Buffer::new(super::super::session::MAX_TRANSFER as usize);
        own.space().unwrap()[0] = 1;
        own.touched(SMALL + 1);
        for _ in 0..FEW {
            before_waiting(&mut own, &reader);
            own.touched(100);
        }
        assert_eq!(own.filled(1), [1], "not yet");
        before_waiting(&mut own, &reader);
        assert_eq!(own.filled(1), [0_u8; 0], "given back");
        own.space().unwrap()[0] = 2;
        for _ in 0..2 * FEW {
            before_waiting(&mut own, &reader);
        }
        assert_eq!(own.filled(1), [2], "what is small stays");
    }

    #[test]
    fn what_was_large_is_given_back_when_nothing_comes() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut own = Buffer::new(super::super::session::MAX_TRANSFER as usize);
        own.space().unwrap()[0] = 1;
        own.touched(SMALL);
        before_waiting(&mut own, &reader);
        assert_eq!(own.filled(1), [1], "little is kept");
        own.touched(SMALL + 1);
        rustix::io::write(&writer, b"x").unwrap();
        before_waiting(&mut own, &reader);
        assert_eq!(own.filled(1), [1], "kept while requests come");
        rustix::io::read(&reader, &mut [0; 1]).unwrap();
        with_data(SMALL + 1, |space| space.unwrap()[SMALL] = 1);
        before_waiting(&mut own, &reader);
        assert_eq!(own.filled(1), [0_u8; 0], "given back");
        assert_eq!(own.space().unwrap()[0], 0);
        with_data(SMALL + 1, |space| assert_eq!(space.unwrap()[SMALL], 0, "given back too"));
    }
}
