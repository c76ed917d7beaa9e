//! Any bytes are unpacked or refused. Whatever they say, nothing beside the tree is touched, and what was unpacked is
//! packed again.
#![no_main]

use std::cell::RefCell;
use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;

use layerfs_image::compression::decompress;
use layerfs_image::layer::{Limits, Marks, Stack, WithoutIndex, pack_merged, remove_tree, unpack};
use libfuzzer_sys::fuzz_target;

const CANARY: &[u8] = b"nobody writes here";

struct Place {
    _dir: tempfile::TempDir,
    path: PathBuf,
    marks: Marks,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().to_owned();
        fs::write(path.join("canary"), CANARY).expect("the canary");
        let marks = Marks::probe(fs::File::open(&path).expect("opened").as_fd()).expect("probed");
        Self { _dir: dir, path, marks }
    }
}

thread_local! {
    static PLACE: RefCell<Place> = RefCell::new(Place::new());
}

fuzz_target!(|bytes: &[u8]| {
    let Ok((_, plain)) = decompress(bytes) else { return };
    PLACE.with_borrow(|place| {
        let tree = place.path.join("tree");
        fs::create_dir(&tree).expect("the tree's directory");
        let limits = Limits { entries: 200, bytes: 1 << 20, file_size: 1 << 20, ..Limits::default() };
        let root = fs::File::open(&tree).expect("opened").into();
        if let Ok(mut unpacked) = unpack(plain, root, place.marks, limits)
            && unpacked.finish(&Stack::new(Vec::new()), &WithoutIndex, &place.path.join("index")).is_ok()
        {
            let stack = Stack::open(&[&tree]).expect("a tree that was unpacked");
            // Names that no layer can have, and sockets, may be in the way of packing.
            let _ = pack_merged(&stack, Vec::new(), false);
        }
        remove_tree(&tree).expect("removed");
        let _ = fs::remove_file(place.path.join("index"));
        assert_eq!(fs::read(place.path.join("canary")).expect("still there"), CANARY);
        assert_eq!(fs::read_dir(&place.path).expect("listed").count(), 1, "something beside the tree");
    });
});
