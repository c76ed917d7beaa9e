//! Any bytes are read as an archive to its end or to an error, decompressed first where they ask for it. What is read
//! again after it was written is the same.
#![no_main]

use layerfs_image::compression::decompress;
use layerfs_image::tar::{TarLimits, TarReader, TarWriter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok((_, plain)) = decompress(bytes) else { return };
    let mut reader = TarReader::new(plain, TarLimits::default());
    while let Ok(Some(entry)) = reader.next_entry() {
        if entry.sparse.is_some() || reader.read_data(1 << 20).is_err() {
            continue;
        }
        let mut writer = TarWriter::new(Vec::new());
        if writer.header(&entry).is_ok() {
            let archive = writer.finish().expect("a vector takes all");
            let mut again = TarReader::new(&*archive, TarLimits::default());
            let read = again.next_entry().expect("what was written is read").expect("an entry");
            assert_eq!((read.mode, read.uid, read.mtime), (entry.mode, entry.uid, entry.mtime));
        }
    }
});
