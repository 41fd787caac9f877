//! Layers: any bytes become files below one directory, or an error. Nothing beside the directory is made or changed, and
//! the same bytes give the same result again.
//!
//! Checksums of headers are made right first, since otherwise nearly nothing would get beyond them.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use podling_images::Limits;
use podling_images::digest::Algorithm;
use podling_images::unpack::{Unpacked, unpack_layer};

const BLOCK: usize = 512;

fuzz_target!(|bytes: &[u8]| {
    let mut blob = bytes.to_vec();
    blob.chunks_exact_mut(BLOCK).for_each(fix_checksum);
    let first = unpack(&blob);
    let second = unpack(&blob);
    assert_eq!(first, second, "the same layer is not another one");
});

/// Where a block says that it is a header (all known kinds have this mark).
fn fix_checksum(block: &mut [u8]) {
    if &block[257..262] == b"ustar" {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
}

fn unpack(blob: &[u8]) -> Option<Unpacked> {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    std::fs::create_dir(&root).expect("the directory is new");
    std::fs::write(&outside, "untouched").expect("there is space");
    let limits = Limits {
        entries: 1000,
        layer_bytes: 16 << 20,
        ..Limits::default()
    };
    let algorithms = (Algorithm::Sha256, Algorithm::Sha256);
    let result = unpack_layer(blob, blob.len() as u64, &root, algorithms, &limits);
    check_outside(dir.path(), &outside);
    result.ok()
}

fn check_outside(dir: &Path, outside: &Path) {
    let names = std::fs::read_dir(dir).expect("it is there").count();
    assert_eq!(names, 2, "something was made beside the layer");
    let content = std::fs::read(outside).expect("it is there");
    assert_eq!(content, b"untouched");
}
