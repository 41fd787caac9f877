//! Unpacking a blob that is in memory's cache, against decompressing it and nothing else.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use podling_images::Limits;
use podling_images::digest::Algorithm;
use podling_images::unpack::unpack_file;

use crate::disk::Disk;
use crate::measure::{Turns, part, run};
use crate::table::{Budget, Table};
use crate::{Effort, generate};

pub(crate) fn measure(effort: Effort, table: &mut Table) {
    let generated = generate::layout(effort.mib);
    let nginx = generate::images().join("nginx-light");
    let what = format!("unpack {} MiB of gzip, 50,000 files", effort.mib);
    one(effort, table, &what, &generated);
    if nginx.exists() {
        one(effort, table, "unpack the largest layer of nginx", &nginx);
    } else {
        table.note(
            "nginx: made by images/tests/comparison.rs with PODLING_COMPARE_PACKAGES=nginx-light",
        );
    }
}

fn one(effort: Effort, table: &mut Table, what: &str, layout: &Path) {
    let blob = generate::largest_blob(layout);
    let blob = blob.to_str().unwrap();
    let (mut unpacked, mut decompressed) = (Turns::default(), Turns::default());
    for look in effort.looks() {
        let disk = Disk::new();
        let target = disk.directory("layer");
        let words = [blob, &target];
        // First, while the kernel still has the pages of the last turn's disk: a hypervisor may take free memory away
        // after two seconds, and getting it back would be measured.
        unpacked.push(&run(look, &mut [part("unpack", &words)], &[]));
        decompressed.push(&run(look, &mut [part("decompress", &words)], &[]));
    }
    let alone = ("decompressor alone", decompressed.secs());
    table.row(what, unpacked.secs(), "s", &[alone], Budget::Ratio(1.1));
    let memory = format!("{what}, peak memory");
    table.row(
        &memory,
        unpacked.peak_mib,
        "MiB",
        &[],
        Budget::Absolute(22.0),
    );
}

/// `unpack BLOB DIRECTORY`
pub(crate) fn unpack(words: &[String]) {
    let file = File::open(&words[0]).unwrap();
    let algorithms = (Algorithm::Sha256, Algorithm::Sha256);
    unpack_file(file, Path::new(&words[1]), algorithms, &Limits::default()).unwrap();
}

/// `decompress BLOB`: with the same library.
pub(crate) fn decompress(words: &[String]) {
    let file = BufReader::with_capacity(256 * 1024, File::open(&words[0]).unwrap());
    let mut plain = flate2::bufread::MultiGzDecoder::new(file);
    let mut buffer = vec![0; 256 * 1024];
    while plain.read(&mut buffer).unwrap() > 0 {}
}
