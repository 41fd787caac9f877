//! Checks what is there, part by part: blobs by their digests, unpacked files by the list that was written with them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::collect::file_bytes;
use super::disk::{self, failed};
use super::record::{self, Record};
use super::{ImageStore, StoreError, layout};
use crate::digest::{Digest, DigestError};
use crate::reference::Reference;
use crate::unpack::compare;

/// A part of one or more images. The order is that in which they are checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The record of a name, by the name's digest.
    Record(Digest),
    /// A manifest, index, configuration or signature.
    Document(Digest),
    /// An unpacked layer, by diff ID.
    Layer(Digest),
    /// A compressed layer that is kept.
    Blob(Digest),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(name) => write!(f, "record {name}"),
            Self::Document(digest) => write!(f, "document {digest}"),
            Self::Layer(digest) => write!(f, "layer {digest}"),
            Self::Blob(digest) => write!(f, "blob {digest}"),
        }
    }
}

impl FromStr for Part {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (kind, digest) = text.split_once(' ').unwrap_or(("", text));
        let digest = digest.parse()?;
        Ok(match kind {
            "record" => Self::Record(digest),
            "layer" => Self::Layer(digest),
            "blob" => Self::Blob(digest),
            _ => Self::Document(digest),
        })
    }
}

/// Something [`ImageStore::verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is damaged: what [`ImageStore::heal`] mends.
    pub part: Part,
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
    /// The images that need it.
    pub images: Vec<Reference>,
}

impl ImageStore {
    /// Checks that all records can be read and all that they name is here, that blobs have their digests, and
    /// that the files of each layer are what was unpacked: names, kinds, modes, owners, sizes and contents. A
    /// layer without its list, as stores of before there were lists have, counts as damaged: to unpack it again
    /// makes the list. A compressed layer that is not kept is no problem.
    pub fn verify(&self) -> Result<Vec<Problem>, StoreError> {
        let mut problems = Vec::new();
        for (part, images) in self.parts_to_verify()? {
            problems.extend(self.verify_part(&part, &images, &mut |_| ()));
        }
        Ok(problems)
    }

    /// All parts that are to be checked, in order, with the images that need them.
    pub fn parts_to_verify(&self) -> Result<Vec<(Part, Vec<Reference>)>, StoreError> {
        let mut parts: BTreeMap<Part, Vec<Reference>> = BTreeMap::new();
        let records = record::scan(self.dir())?;
        let mut checked = records.whole;
        for record in records.unreadable {
            let found = layout::find(self.dir(), &record.name);
            let images = found.iter().map(|(reference, _)| reference.clone());
            parts.insert(Part::Record(record.name), images.collect());
            // What is made again is checked, too.
            let again = found.and_then(|(reference, manifest)| {
                record::rebuild(self.dir(), &reference, &manifest)
            });
            checked.extend(again);
        }
        for record in checked {
            for part in self.parts_of(&record) {
                let images = parts.entry(part).or_default();
                images.push(record.reference.clone());
            }
        }
        Ok(parts.into_iter().collect())
    }

    /// Checks one part. `pace` is told of bytes that are about to be read, or were: it may sleep, to read slowly.
    pub fn verify_part(
        &self,
        part: &Part,
        images: &[Reference],
        pace: &mut dyn FnMut(u64),
    ) -> Option<Problem> {
        let dir = self.dir();
        let (path, found) = match part {
            Part::Record(name) => {
                let path = record::path_of(dir, name);
                (path.clone(), check_record(dir, name, path))
            }
            Part::Document(digest) | Part::Blob(digest) => (
                disk::blob_path(dir, digest),
                disk::check_blob(dir, digest, pace).map(drop),
            ),
            Part::Layer(diff_id) => (
                disk::layer_path(dir, diff_id),
                self.check_layer(diff_id, pace),
            ),
        };
        let what = match found.err()? {
            _ if matches!(part, Part::Blob(digest) if self.is_dropped(digest)) => {
                "it was damaged and is removed, and could not be fetched again yet".to_owned()
            }
            // Without the path, which stands beside it, and the remedy, which may not be needed.
            StoreError::Damaged { path: file, what } => match file.strip_prefix(&path) {
                Ok(inside) if inside != Path::new("") && inside != Path::new("fs") => {
                    format!("{}: {what}", inside.display())
                }
                Ok(_) | Err(_) => what,
            },
            error => match std::error::Error::source(&error) {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            },
        };
        Some(Problem {
            part: part.clone(),
            path,
            what,
            images: images.to_vec(),
        })
    }

    /// What an image should have here: all of it, and those of its compressed layers that were kept, also if they were
    /// damaged and dropped since.
    fn parts_of(&self, record: &Record) -> Vec<Part> {
        let documents = record.documents().cloned().map(Part::Document);
        let layers = record.layers.iter();
        let layers = layers.map(|layer| Part::Layer(layer.diff_id.clone()));
        let kept = record.layers.iter().filter_map(|layer| {
            let digest = &layer.blob.as_ref()?.digest;
            let is_here = disk::blob_path(self.dir(), digest).exists();
            (is_here || self.is_dropped(digest)).then(|| Part::Blob(digest.clone()))
        });
        documents.chain(layers).chain(kept).collect()
    }

    fn check_layer(&self, diff_id: &Digest, pace: &mut dyn FnMut(u64)) -> Result<(), StoreError> {
        let info = disk::read_layer(self.dir(), diff_id)?;
        let path = disk::layer_path(self.dir(), diff_id);
        let (fs, list) = (path.join("fs"), path.join(disk::FILE_LIST));
        let damaged = |what| StoreError::Damaged {
            path: fs.clone(),
            what,
        };
        if !list.exists() {
            return Err(StoreError::Damaged {
                path: list,
                what: "it is missing, and without it the layer's files cannot be compared"
                    .to_owned(),
            });
        }
        match compare(&list, &fs, pace) {
            Ok(None) => {}
            Ok(Some(wrong)) => return Err(damaged(wrong)),
            Err(e) => return Err(failed("compare the layer with", &list)(e)),
        }
        let found = file_bytes(&fs)?;
        if found == info.file_bytes {
            return Ok(());
        }
        let expected = info.file_bytes;
        Err(damaged(format!(
            "its files hold {found} bytes instead of {expected}"
        )))
    }
}

fn check_record(dir: &Path, name: &Digest, path: PathBuf) -> Result<(), StoreError> {
    match record::unreadable(dir, name)? {
        Some(record) => Err(StoreError::Damaged {
            path,
            what: format!("the record of an image cannot be read: {}", record.what),
        }),
        None => Ok(()),
    }
}
