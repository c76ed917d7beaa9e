//! Writing an archive whose bytes depend on its entries alone.

use std::io::{self, Read, Write};

use super::header::{Fields, MAX_LONG, MAX_SHORT, split_path};
use super::pax::{append, timestamp_text};
use super::{BLOCK, Entry, EntryKind};

/// A writer of archives: ustar, with a PAX header in front of what ustar cannot say.
#[derive(Debug)]
pub struct TarWriter<W> {
    out: W,
}

impl<W: Write> TarWriter<W> {
    /// Writes to `out`, which should be buffered.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Writes the header of `entry`; for a file, [`data`](Self::data) must follow. `sparse` is not written as such.
    ///
    /// # Errors
    /// Those of writing.
    pub fn header(&mut self, entry: &Entry) -> io::Result<()> {
        let mut path = entry.path.clone();
        if entry.kind == EntryKind::Directory && !path.ends_with(b"/") {
            path.push(b'/');
        }
        let size = if entry.kind == EntryKind::File { entry.size } else { 0 };
        let records = pax_records(entry, &path, size);
        if !records.is_empty() {
            let extension = Fields {
                path: b"PaxHeaders.0/entry",
                link: b"",
                type_flag: b'x',
                mode: 0o644,
                uid: 0,
                gid: 0,
                size: records.len() as u64,
                mtime: 0,
                device: (0, 0),
            };
            self.out.write_all(&extension.encode())?;
            self.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        let fields = Fields {
            path: &path,
            link: &entry.link,
            type_flag: match entry.kind {
                EntryKind::File => b'0',
                EntryKind::HardLink => b'1',
                EntryKind::Symlink => b'2',
                EntryKind::CharDevice => b'3',
                EntryKind::BlockDevice => b'4',
                EntryKind::Directory => b'5',
                EntryKind::Fifo => b'6',
            },
            mode: entry.mode & 0o7777,
            uid: entry.uid,
            gid: entry.gid,
            size,
            mtime: entry.mtime.0,
            device: entry.device,
        };
        self.out.write_all(&fields.encode())
    }

    /// Writes exactly `size` bytes of `data`, and what fills the last block.
    ///
    /// # Errors
    /// Those of reading and writing; `UnexpectedEof` when `data` is too short.
    pub fn data(&mut self, data: &mut impl Read, size: u64) -> io::Result<()> {
        let copied = io::copy(&mut data.take(size), &mut self.out)?;
        if copied != size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("a file became shorter while it was read: {copied} of {size} bytes"),
            ));
        }
        self.pad(size)
    }

    /// Header and data of a small file.
    ///
    /// # Errors
    /// Those of writing.
    pub fn file(&mut self, path: &str, mut content: &[u8]) -> io::Result<()> {
        let mut entry = Entry::new(path, EntryKind::File);
        entry.mode = 0o644;
        entry.size = content.len() as u64;
        let size = entry.size;
        self.header(&entry)?;
        self.data(&mut content, size)
    }

    /// Writes what fills the last block after `size` bytes of data that were written to
    /// [`out`](Self::out) directly.
    ///
    /// # Errors
    /// Those of writing.
    pub fn pad(&mut self, size: u64) -> io::Result<()> {
        let len = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        self.out.write_all(&[0; BLOCK][..len as usize])
    }

    /// What is written to.
    pub fn out(&mut self) -> &mut W {
        &mut self.out
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

fn pax_records(entry: &Entry, path: &[u8], size: u64) -> Vec<u8> {
    let mut records = Vec::new();
    if split_path(path).is_none() {
        append(&mut records, b"path", path);
    }
    if entry.link.len() > 100 {
        append(&mut records, b"linkpath", &entry.link);
    }
    if size > MAX_LONG {
        append(&mut records, b"size", size.to_string().as_bytes());
    }
    for (key, id) in [(&b"uid"[..], entry.uid), (b"gid", entry.gid)] {
        if u64::from(id) > MAX_SHORT {
            append(&mut records, key, id.to_string().as_bytes());
        }
    }
    let seconds = u64::try_from(entry.mtime.0);
    if entry.mtime.1 != 0 || seconds.map_or(true, |seconds| seconds > MAX_LONG) {
        append(&mut records, b"mtime", timestamp_text(entry.mtime).as_bytes());
    }
    if let Some(atime) = entry.atime {
        append(&mut records, b"atime", timestamp_text(atime).as_bytes());
    }
    for (key, number) in [(&b"SCHILY.devmajor"[..], entry.device.0), (b"SCHILY.devminor", entry.device.1)] {
        if u64::from(number) > MAX_SHORT {
            append(&mut records, key, number.to_string().as_bytes());
        }
    }
    for (name, value) in &entry.xattrs {
        append(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    records
}

#[cfg(test)]
mod tests {
    use super::super::{TarLimits, TarReader};
    use super::*;

    fn round(entry: &Entry, data: &[u8]) -> (Entry, Vec<u8>) {
        let mut writer = TarWriter::new(Vec::new());
        writer.header(entry).unwrap();
        if entry.kind == EntryKind::File {
            writer.data(&mut &*data, entry.size).unwrap();
        }
        let archive = writer.finish().unwrap();
        let mut reader = TarReader::new(&*archive, TarLimits::default());
        let read = reader.next_entry().unwrap().unwrap();
        let data = reader.read_data(1 << 20).unwrap();
        assert!(reader.next_entry().unwrap().is_none());
        (read, data)
    }

    #[test]
    fn what_is_written_is_read() {
        let mut entry = Entry::new("dir/file", EntryKind::File);
        entry.mode = 0o4755;
        entry.size = 700;
        entry.mtime = (1_700_000_000, 123_456_789);
        entry.uid = 0o7777777;
        entry.gid = 3_000_000_000;
        entry.xattrs =
            vec![(b"security.capability".to_vec(), vec![0, 1, b'\n', 255]), (b"user.a".to_vec(), vec![])];
        assert_eq!(round(&entry, &[7; 700]), (entry.clone(), vec![7; 700]));
        entry.path = [b"\xff/".repeat(200), b"n".repeat(255)].concat();
        entry.mtime = (-5, 1);
        assert_eq!(round(&entry, &[7; 700]).0, entry);
        let mut link = Entry::new("l", EntryKind::Symlink);
        link.link = vec![b't'; 4000];
        link.mode = 0o777;
        assert_eq!(round(&link, b"").0, link);
        let mut device = Entry::new("d", EntryKind::BlockDevice);
        device.device = (0xfff, 0xf_ffff);
        assert_eq!(round(&device, b"").0, device);
        let mut directory = Entry::new("dir", EntryKind::Directory);
        directory.mode = 0o1777;
        assert_eq!(round(&directory, b"").0.path, b"dir/");
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let mut writer = TarWriter::new(Vec::new());
        assert_eq!(writer.data(&mut &b"abc"[..], 4).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
