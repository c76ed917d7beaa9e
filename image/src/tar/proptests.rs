//! What holds for any entry and for any bytes.

use proptest::collection::vec;
use proptest::prelude::*;

use super::{Entry, EntryKind, TarLimits, TarReader, TarWriter};

fn name() -> impl Strategy<Value = Vec<u8>> {
    vec(1_u8..=255, 1..300).prop_map(|mut name| {
        // A slash at the end says "directory", whatever the kind.
        if name.ends_with(b"/") {
            name.push(b'x');
        }
        name
    })
}

fn entry() -> impl Strategy<Value = Entry> {
    let numbers = (0_u32..=0o7777, any::<u32>(), any::<u32>(), any::<i32>(), 0_u32..1_000_000_000);
    let xattrs = vec((vec(b'a'..=b'z', 1..20), vec(any::<u8>(), 0..100)), 0..4);
    (name(), vec(1_u8..=255, 1..200), numbers, xattrs, 0_u64..2000, 0_usize..3).prop_map(
        |(path, link, (mode, uid, gid, seconds, nanoseconds), mut xattrs, size, kind)| {
            let kind = [EntryKind::File, EntryKind::Symlink, EntryKind::HardLink][kind];
            xattrs.sort();
            xattrs.dedup_by(|a, b| a.0 == b.0);
            let mut entry = Entry::new(path, kind);
            entry.link = if kind == EntryKind::File { Vec::new() } else { link };
            (entry.mode, entry.uid, entry.gid) = (mode, uid, gid);
            entry.mtime = (seconds.into(), nanoseconds);
            entry.size = if kind == EntryKind::File { size } else { 0 };
            entry.xattrs = xattrs;
            entry
        },
    )
}

proptest! {
    #[test]
    fn any_entries_are_read_as_they_were_written(entries in vec(entry(), 0..5)) {
        let mut writer = TarWriter::new(Vec::new());
        for entry in &entries {
            writer.header(entry).unwrap();
            if entry.kind == EntryKind::File {
                writer.data(&mut std::io::repeat(7), entry.size).unwrap();
            }
        }
        let archive = writer.finish().unwrap();
        let mut reader = TarReader::new(&*archive, TarLimits::default());
        for entry in &entries {
            prop_assert_eq!(&reader.next_entry().unwrap().unwrap(), entry);
            prop_assert_eq!(reader.read_data(1 << 20).unwrap().len() as u64, entry.size);
        }
        prop_assert!(reader.next_entry().unwrap().is_none());
    }

    #[test]
    fn any_bytes_end_in_an_error_or_in_their_end(bytes in vec(any::<u8>(), 0..3000)) {
        let mut reader = TarReader::new(&*bytes, TarLimits::default());
        while let Ok(Some(_)) = reader.next_entry() {}
    }
}
