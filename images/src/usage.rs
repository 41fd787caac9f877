//! What the images take on disk, and what of it no image needs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::reference::Reference;
use crate::store::{Held, ImageStore, Record, StoreError, disk};

/// What the store takes on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Image by image.
    pub images: Vec<ImageUsage>,
    /// Unpacked layers.
    pub layers: Usage,
    /// Manifests, configurations and compressed layers.
    pub blobs: Usage,
    /// Downloads that have not come to their end; a pull goes on with them.
    pub partial: Usage,
    /// Damaged layers that were replaced, and that containers may still have below them. [`ImageStore::gc`] takes those
    /// that none has.
    pub replaced: Usage,
    /// The layers and blobs that no name needs, and the downloads that nobody went on with for a week: what
    /// [`ImageStore::gc`] could free. Downloads only, while a record cannot be read.
    pub unneeded: Usage,
}

/// How many, and how large.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What an image takes on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUsage {
    /// Its names, sorted, as in [`Image::references`](crate::Image::references).
    pub names: Vec<Reference>,
    /// The digest of its manifest.
    pub digest: Digest,
    /// Files and blobs that other images use too.
    pub shared_bytes: u64,
    /// Files and blobs that are of no other image: what its removal frees.
    pub unique_bytes: u64,
}

impl ImageStore {
    /// Adds up what the store takes on disk.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn disk_usage(&self) -> Result<DiskUsage, StoreError> {
        let sizes = self.part_sizes()?;
        let images = self.list()?;
        let records = self.records()?;
        let all_known = self.records_are_whole()?;
        let mut users: BTreeMap<PathBuf, usize> = BTreeMap::new();
        let mut parts_of = Vec::new();
        for image in &images {
            let of_image = records.iter().filter(|r| r.manifest == image.digest);
            let parts: BTreeSet<_> = of_image.flat_map(|record| self.parts(record)).collect();
            for part in &parts {
                *users.entry(part.clone()).or_default() += 1;
            }
            parts_of.push(parts);
        }
        let size = |part: &PathBuf| sizes.get(part).copied().unwrap_or_default();
        let mut usage = DiskUsage::default();
        for (image, parts) in images.into_iter().zip(&parts_of) {
            let (unique, shared): (Vec<_>, Vec<_>) =
                parts.iter().partition(|part| users.get(*part) == Some(&1));
            usage.images.push(ImageUsage {
                names: image.references,
                digest: image.digest,
                shared_bytes: shared.into_iter().map(size).sum(),
                unique_bytes: unique.into_iter().map(size).sum(),
            });
        }
        for (path, bytes) in &sizes {
            let kind = path
                .strip_prefix(self.dir())
                .ok()
                .and_then(|p| p.components().next())
                .map(|c| c.as_os_str().to_owned());
            match kind.as_deref().and_then(|kind| kind.to_str()) {
                Some("layers") => usage.layers.add(*bytes),
                _ => usage.blobs.add(*bytes),
            }
            if all_known && !users.contains_key(path) {
                usage.unneeded.add(*bytes);
            }
        }
        for partial in self.partial_downloads()? {
            usage.partial.add(partial.bytes);
            if partial.is_given_up {
                usage.unneeded.add(partial.bytes);
            }
        }
        for bytes in self.replaced_sizes()? {
            usage.replaced.add(bytes);
        }
        Ok(usage)
    }

    /// The layers and blobs in the store, by path, with their sizes.
    fn part_sizes(&self) -> Result<BTreeMap<PathBuf, u64>, StoreError> {
        let mut sizes = BTreeMap::new();
        for kind in ["blobs", "layers"] {
            let dir = self.dir().join(kind);
            for algorithm in disk::names(&dir)? {
                let dir = dir.join(algorithm);
                for name in disk::names(&dir)? {
                    let path = dir.join(name);
                    // One without a record is damaged; `verify` tells.
                    let size = match kind {
                        "blobs" => file_len(&path),
                        _ => disk::read_json::<disk::LayerInfo>(&path.join("layer.json"))
                            .map_or(0, |info| info.file_bytes),
                    };
                    sizes.insert(path, size);
                }
            }
        }
        Ok(sizes)
    }

    /// The paths of all that a name needs: what [`ImageStore::gc`] leaves for it.
    fn parts(&self, record: &Record) -> impl Iterator<Item = PathBuf> {
        let held = record.held(self.keeps_blobs()).into_iter();
        held.map(|held| match held {
            Held::Blob(digest) => disk::blob_path(self.dir(), &digest),
            Held::Layer(diff_id) => disk::layer_path(self.dir(), &diff_id),
        })
    }
}

impl Usage {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// What is gone by now takes nothing.
fn file_len(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |metadata| metadata.len())
}
