//! Compressed streams: recognised by their first bytes, whatever a media type says.

mod gzip;

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use crate::media_type;

pub use gzip::{Compressors, DEFAULT_LEVEL as GZIP_LEVEL, Gzip};

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
}

/// As much as is needed to recognise a compression.
const MAGIC_LEN: usize = 6;

impl Compression {
    /// Recognises a stream by how it begins.
    pub fn sniff(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame in front, as zstd:chunked and pzstd write it.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::None,
        }
    }

    /// What a layer so compressed is called in a manifest; `None` for what manifests have no name for.
    pub fn layer_media_type(self) -> Option<&'static str> {
        match self {
            Self::None => Some(media_type::OCI_LAYER),
            Self::Gzip => Some(media_type::OCI_LAYER_GZIP),
            Self::Zstd => Some(media_type::OCI_LAYER_ZSTD),
            Self::Bzip2 | Self::Xz => None,
        }
    }
}

/// Bytes that are decompressed at once.
const BUFFER: usize = 256 * 1024;

/// Memory of the xz decoder in KiB: a dictionary of 128 MiB (`xz -9` uses 64) and what the decoder needs beside it.
const XZ_MEMORY_KIB: u32 = 129 << 10;

/// The uncompressed stream of `input`, and how it was compressed.
///
/// # Errors
/// Those of reading the first bytes, and of preparing the decoder.
pub fn decompress<'a, R: BufRead + 'a>(input: R) -> io::Result<(Compression, Box<dyn BufRead + 'a>)> {
    let input = Peeked::new(input)?;
    let compression = Compression::sniff(input.start());
    let decoded: Box<dyn BufRead + 'a> = match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(input))),
        Compression::Zstd => {
            // 128 MiB, the greatest window that decoders must support without being asked.
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(27)?;
            Box::new(BufReader::with_capacity(BUFFER, decoder))
        }
        Compression::Bzip2 => {
            Box::new(BufReader::with_capacity(BUFFER, bzip2::bufread::MultiBzDecoder::new(input)))
        }
        Compression::Xz => {
            let decoder = lzma_rust2::XzReader::new_mem_limit(input, true, XZ_MEMORY_KIB);
            Box::new(BufReader::with_capacity(BUFFER, decoder))
        }
    };
    Ok((compression, decoded))
}

/// A stream whose first bytes were looked at.
struct Peeked<R> {
    start: [u8; MAGIC_LEN],
    len: usize,
    taken: usize,
    input: R,
}

impl<R: BufRead> Peeked<R> {
    fn new(mut input: R) -> io::Result<Self> {
        let mut start = [0; MAGIC_LEN];
        let mut len = 0;
        while len < MAGIC_LEN {
            match input.read(&mut start[len..]) {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { start, len, taken: 0, input })
    }

    fn start(&self) -> &[u8] {
        &self.start[..self.len]
    }
}

impl<R: BufRead> Read for Peeked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.len {
            return self.input.read(buffer);
        }
        let mut rest = &self.start[self.taken..self.len];
        let len = rest.read(buffer)?;
        self.taken += len;
        Ok(len)
    }
}

impl<R: BufRead> BufRead for Peeked<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken < self.len {
            return Ok(&self.start[self.taken..self.len]);
        }
        self.input.fill_buf()
    }

    fn consume(&mut self, len: usize) {
        if self.taken < self.len {
            self.taken += len;
        } else {
            self.input.consume(len);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn decoded(bytes: &[u8]) -> io::Result<(Compression, Vec<u8>)> {
        let (compression, mut reader) = decompress(bytes)?;
        let mut all = Vec::new();
        reader.read_to_end(&mut all)?;
        Ok((compression, all))
    }

    fn gzipped(text: &[u8]) -> Vec<u8> {
        let compressors = Compressors::new();
        let mut out = compressors.gzip(Vec::new(), GZIP_LEVEL);
        out.write_all(text).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn every_compression_is_recognised_and_undone() {
        let text = b"some text that is long enough".repeat(1000);
        let mut bz = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bz.write_all(&text).unwrap();
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::default()).unwrap();
        xz.write_all(&text).unwrap();
        for (expected, bytes) in [
            (Compression::None, text.clone()),
            (Compression::Gzip, gzipped(&text)),
            (Compression::Zstd, zstd::encode_all(&*text, 1).unwrap()),
            (Compression::Bzip2, bz.finish().unwrap()),
            (Compression::Xz, xz.finish().unwrap()),
        ] {
            assert_eq!(decoded(&bytes).unwrap(), (expected, text.clone()));
            if expected != Compression::None {
                assert!(decoded(&bytes[..bytes.len() - 9]).is_err(), "{expected:?} cut short");
                let twice = [bytes.clone(), bytes].concat();
                assert_eq!(decoded(&twice).unwrap().1, text.repeat(2), "{expected:?}, two streams");
            }
        }
    }

    /// A dictionary of up to 4 GiB was allocated on the word of a header of a few bytes.
    #[test]
    fn regression_xz_dictionaries_beyond_128_mib_are_refused() {
        let mut out = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::default()).unwrap();
        out.write_all(b"text").unwrap();
        let good = out.finish().unwrap();
        // The block's header follows the stream's 12 bytes (xz file format, 3.1): size, flags, filter LZMA2, length of its
        // properties, the dictionary's size as `(2 | n & 1) << (n / 2 + 11)`.
        assert_eq!(good[14..16], [0x21, 1]);
        let with_dictionary = |n: u8| {
            let mut bytes = good.clone();
            bytes[16] = n;
            let end = 12 + usize::from(bytes[12]) * 4;
            let mut crc = flate2::Crc::new();
            crc.update(&bytes[12..end]);
            bytes[end..end + 4].copy_from_slice(&crc.sum().to_le_bytes());
            bytes
        };
        assert_eq!(decoded(&with_dictionary(30)).unwrap().1, b"text", "128 MiB");
        for n in [31, 40] {
            let error = decoded(&with_dictionary(n)).unwrap_err();
            assert!(error.to_string().contains("memory"), "{n}: {error}");
        }
    }

    #[test]
    fn short_and_empty_streams_are_plain() {
        for text in [&b""[..], b"a", b"\x1f\x8b"] {
            assert_eq!(decoded(text).unwrap(), (Compression::None, text.to_vec()));
        }
    }
}
