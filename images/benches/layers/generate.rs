//! The layer that is measured: 50,000 files, of which gzip makes about half.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const FILES: usize = 50_000;

/// Where layers are kept.
pub(crate) fn images() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("target/images")
}

/// An OCI layout with this layer alone, tagged `latest`. Made if it is not there yet.
pub(crate) fn layout(mib: usize) -> PathBuf {
    let layout = images().join(format!("generated-{mib}"));
    if !layout.exists() {
        let unfinished = layout.with_extension("tmp");
        drop(std::fs::remove_dir_all(&unfinished));
        std::fs::create_dir_all(&unfinished).unwrap();
        let tar = unfinished.join("layer.tar");
        write_tar(&tar, mib << 20);
        let oci = unfinished.join("layout").display().to_string();
        let image = format!("{oci}:latest");
        for words in [
            &["init", "--layout", &oci][..],
            &["new", "--image", &image],
            &["raw", "add-layer", "--image", &image, tar.to_str().unwrap()],
            &["gc", "--layout", &oci],
        ] {
            crate::support::run("umoci", words).expect("umoci is needed: apt-get install umoci");
        }
        std::fs::rename(unfinished.join("layout"), &layout).unwrap();
        std::fs::remove_dir_all(&unfinished).unwrap();
    }
    layout
}

/// The largest blob of a layout: its lowest layer.
pub(crate) fn largest_blob(layout: &Path) -> PathBuf {
    let blobs = std::fs::read_dir(layout.join("blobs/sha256")).unwrap();
    let blobs = blobs.map(|entry| entry.unwrap().path());
    blobs
        .max_by_key(|path| std::fs::metadata(path).unwrap().len())
        .unwrap()
}

fn write_tar(path: &Path, compressed_bytes: usize) {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let file = BufWriter::new(std::fs::File::create(path).unwrap());
    let mut tar = tar::Builder::new(file);
    let mut header = tar::Header::new_gnu();
    header.set_mtime(1_700_000_000);
    header.set_uid(0);
    header.set_gid(0);
    // Twice as much as compressed: random words, each followed by one of few.
    let average = 2 * compressed_bytes / FILES;
    for i in 0..FILES {
        if i % 40 == 0 {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            let name = format!("usr/share/package{}", i / 40);
            tar.append_data(&mut header, name, &b""[..]).unwrap();
        }
        let size = average / 2 + next() as usize % average;
        let mut content = Vec::with_capacity(size + 16);
        while content.len() < size {
            content.extend(next().to_le_bytes());
            content.extend(b"content of files");
            content.truncate(content.len() - 8);
        }
        content.truncate(size);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(size as u64);
        let name = format!("usr/share/package{}/file{i}", i / 40);
        tar.append_data(&mut header, name, &content[..]).unwrap();
    }
    tar.into_inner().unwrap().flush().unwrap();
}
