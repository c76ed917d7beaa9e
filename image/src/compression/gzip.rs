//! gzip on all processors, with output that depends on input and level alone.
//!
//! The input is cut into pieces of [`PIECE`] bytes. Each is compressed by itself (RFC 1951) and ended at a byte boundary
//! with an empty stored block, as zlib's sync flush does; one after the other they are one stream in one member
//! (RFC 1952), which every reader takes, also those that read the first member of a file only. How many threads there
//! are, and how the input comes in, changes no byte.
//!
//! Must hold: memory is bounded. A stream has at most as many pieces in work as there are threads, and one more.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crc32fast::Hasher as Crc;
use sirocco::Format;
use sirocco::deflate::{Encoder, Flush, Level, compress_bound};

/// Bytes that are compressed by themselves. A match leads back at most 32 KiB, so little is lost at their borders.
const PIECE: usize = 512 * 1024;
/// The level of archives: the size of `gzip -6`, in half its time.
pub const DEFAULT_LEVEL: u32 = 4;
/// More threads would have more memory than work.
const MAX_THREADS: usize = 16;

/// Threads that compress, for any number of streams at the same time. They end when this is dropped.
#[derive(Debug)]
pub struct Compressors {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

/// A piece to be compressed.
struct Job {
    input: Vec<u8>,
    output: Vec<u8>,
    level: Level,
    is_last: bool,
    done: Sender<Piece>,
}

/// A piece that is compressed; its input is there to be used again.
struct Piece {
    input: Vec<u8>,
    output: Vec<u8>,
    crc: Crc,
}

impl Compressors {
    /// As many threads as this process may use processors. Where none can be started, the caller's does the work.
    pub fn new() -> Self {
        Self::with_threads(thread::available_parallelism().map_or(1, usize::from))
    }

    fn with_threads(count: usize) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let mut threads = Vec::new();
        for _ in 0..count.min(MAX_THREADS) {
            let queue = Arc::clone(&queue);
            match thread::Builder::new().name("compress".into()).spawn(move || serve(&queue)) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    tracing::debug!(%error, "start a thread that compresses");
                    break;
                }
            }
        }
        Self { jobs: Some(jobs), threads }
    }

    /// A stream that is compressed into `out`. `level` is 1 (fast) to 9 (small); values beyond are taken for the nearest.
    pub fn gzip<W: Write>(&self, out: W, level: u32) -> Gzip<'_, W> {
        let level = u8::try_from(level.clamp(1, 9)).unwrap_or(9);
        Gzip {
            compressors: self,
            out,
            level: Level::new(level),
            piece: Vec::new(),
            pending: VecDeque::new(),
            spare: Vec::new(),
            crc: Crc::new(),
            len: 0,
            has_header: false,
        }
    }
}

impl Default for Compressors {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Compressors {
    fn drop(&mut self) {
        // The queue ends, and with it the threads.
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // One that panicked has told its stream by leaving it without an answer.
            thread.join().ok();
        }
    }
}

fn serve(queue: &Mutex<Receiver<Job>>) {
    let mut encoder = None;
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let (done, piece) = job.compress(&mut encoder);
        // Nobody waits for it when its stream was given up.
        done.send(piece).ok();
    }
}

impl Job {
    fn compress(mut self, kept: &mut Option<Encoder>) -> (Sender<Piece>, Piece) {
        let mut encoder = match kept.take() {
            Some(encoder) if encoder.level() == self.level => encoder,
            Some(other) => Encoder::with_tables(Format::Deflate, self.level, other.into_tables()),
            None => Encoder::new(Format::Deflate, self.level),
        };
        // Another stream may have been given up in the middle of a piece.
        encoder.reset();
        // A flush adds an empty block to what a whole stream has at most.
        self.output.resize(compress_bound(Format::Deflate, self.input.len()) + 16, 0);
        let flush = if self.is_last { Flush::Finish } else { Flush::Sync };
        let mut len = 0;
        loop {
            let progress = encoder.compress(&self.input, &mut self.output[len..], flush);
            len += progress.output.len();
            if !progress.full {
                break;
            }
            self.output.resize(self.output.len() * 2, 0);
        }
        self.output.truncate(len);
        *kept = Some(encoder);
        let mut crc = Crc::new();
        crc.update(&self.input);
        (self.done, Piece { input: self.input, output: self.output, crc })
    }
}

/// A stream in the making. It is whole only after [`finish`](Self::finish).
#[derive(Debug)]
pub struct Gzip<'a, W> {
    compressors: &'a Compressors,
    out: W,
    level: Level,
    /// What came and is not yet being compressed.
    piece: Vec<u8>,
    /// In the order of the input.
    pending: VecDeque<Receiver<Piece>>,
    /// Memory to be used again.
    spare: Vec<(Vec<u8>, Vec<u8>)>,
    crc: Crc,
    /// Bytes of input so far.
    len: u64,
    has_header: bool,
}

impl<W: Write> Gzip<'_, W> {
    /// Writes the end of the stream and gives `out` back.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(mut self) -> io::Result<W> {
        self.compress(true)?;
        while !self.pending.is_empty() {
            self.take_oldest()?;
        }
        self.out.write_all(&self.crc.finalize().to_le_bytes())?;
        // Its length modulo 2^32, by the format.
        #[expect(clippy::cast_possible_truncation, reason = "the format has it so")]
        self.out.write_all(&(self.len as u32).to_le_bytes())?;
        Ok(self.out)
    }

    /// Hands over what is there.
    fn compress(&mut self, is_last: bool) -> io::Result<()> {
        if self.pending.len() > self.compressors.threads.len() {
            self.take_oldest()?;
        }
        let (input, output) = self.spare.pop().unwrap_or_default();
        let input = std::mem::replace(&mut self.piece, input);
        let (done, result) = mpsc::channel();
        let job = Job { input, output, level: self.level, is_last, done };
        match &self.compressors.jobs {
            Some(jobs) if !self.compressors.threads.is_empty() => jobs.send(job).map_err(|_| ended())?,
            _ => {
                let (done, piece) = job.compress(&mut None);
                done.send(piece).map_err(|_| ended())?;
            }
        }
        self.pending.push_back(result);
        Ok(())
    }

    /// Waits for the oldest piece and writes it.
    fn take_oldest(&mut self) -> io::Result<()> {
        let Some(oldest) = self.pending.pop_front() else { return Ok(()) };
        let Piece { mut input, output, crc } = oldest.recv().map_err(|_| ended())?;
        if !self.has_header {
            self.has_header = true;
            self.out.write_all(&header(self.level))?;
        }
        self.out.write_all(&output)?;
        self.crc.combine(&crc);
        self.len += input.len() as u64;
        input.clear();
        self.spare.push((input, output));
        Ok(())
    }
}

/// No name, no time, no system.
fn header(level: Level) -> [u8; 10] {
    let extra = match level.get() {
        9 => 2,
        1 => 4,
        _ => 0,
    };
    [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, extra, 255]
}

fn ended() -> io::Error {
    io::Error::other("a thread that compresses ended early")
}

impl<W: Write> Write for Gzip<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() == PIECE && !bytes.is_empty() {
            self.compress(false)?;
        }
        self.piece.reserve_exact(PIECE - self.piece.len());
        let len = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    /// Leaves the pieces as they are: where the stream is cut must depend on its content alone.
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    /// Text and noise in turns, as in programs.
    fn mixed(len: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if (out.len() / 5000).is_multiple_of(2) {
                out.extend_from_slice(["alpha ", "beta ", "gamma\n"][(state >> 60) as usize % 3].as_bytes());
            } else {
                out.extend_from_slice(&(state ^ state >> 31).to_le_bytes());
            }
        }
        out.truncate(len);
        out
    }

    fn compressed(threads: usize, level: u32, input: &[u8], step: usize) -> Vec<u8> {
        let compressors = Compressors::with_threads(threads);
        let mut gzip = compressors.gzip(Vec::new(), level);
        for bytes in input.chunks(step) {
            gzip.write_all(bytes).unwrap();
            gzip.flush().unwrap();
        }
        gzip.finish().unwrap()
    }

    /// Reads the first member alone, and says what follows it.
    fn first_member(bytes: &[u8]) -> (Vec<u8>, usize) {
        let mut decoder = flate2::bufread::GzDecoder::new(bytes);
        let mut out = Vec::new();
        decoder.read_to_end(&mut out).unwrap();
        (out, decoder.into_inner().len())
    }

    #[test]
    fn all_lengths_around_a_piece_are_one_member() {
        for len in [0, 1, 5000, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 77] {
            let input = mixed(len);
            let out = compressed(2, DEFAULT_LEVEL, &input, 100_000);
            assert!(first_member(&out) == (input, 0), "{len} bytes");
        }
    }

    #[test]
    fn threads_and_writes_change_no_byte() {
        let input = mixed(3 * PIECE + 12_345);
        for level in [1, DEFAULT_LEVEL, 9] {
            let expected = compressed(1, level, &input, usize::MAX);
            for (threads, step) in [(0, 70_001), (1, 4096), (2, PIECE), (5, 1 << 20)] {
                let found = compressed(threads, level, &input, step);
                assert!(found == expected, "{threads} threads, {step} bytes a write, level {level}");
            }
            assert_eq!(expected[4..8], [0; 4], "no time");
        }
    }

    #[test]
    fn noise_hardly_grows() {
        let noise: Vec<u8> = mixed(4 * PIECE).chunks(5000).skip(1).step_by(2).flatten().copied().collect();
        let out = compressed(2, 9, &noise, 1 << 20);
        assert!(out.len() < noise.len() + noise.len() / 1000 + 64, "{} from {}", out.len(), noise.len());
    }

    #[test]
    fn several_streams_share_the_threads() {
        let compressors = Compressors::with_threads(2);
        thread::scope(|scope| {
            for n in 1..=4_u32 {
                let compressors = &compressors;
                scope.spawn(move || {
                    let input = mixed(PIECE * n as usize);
                    let mut gzip = compressors.gzip(Vec::new(), 1 + n % 2);
                    gzip.write_all(&input).unwrap();
                    let mut out = Vec::new();
                    GzDecoder::new(&*gzip.finish().unwrap()).read_to_end(&mut out).unwrap();
                    assert!(out == input);
                });
            }
            // Given up in the middle: the others are not disturbed.
            compressors.gzip(io::sink(), 4).write_all(&mixed(2 * PIECE)).unwrap();
        });
    }

    #[test]
    fn what_cannot_be_written_is_told() {
        #[derive(Debug)]
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let compressors = Compressors::with_threads(2);
        let error = compressors.gzip(Full, 4).finish().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
