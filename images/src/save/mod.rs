//! Images to files: OCI archive, OCI layout directory, docker-archive.
//!
//! ```text
//!  records ─► chosen images ─┬─► oci-layout, index.json, blobs/…              as they came, byte for byte
//!                            └─► <config>.json, <diff id>.tar, manifest.json  layers uncompressed
//! ```
//! Every byte is compared with its digest as it is written, so a damaged store gives an error and never a damaged
//! archive. The same images give the same archive, byte for byte: entries in order, owner root, time 0.
//!
//! Signatures that came with an image go with it into an OCI layout. So do, if it is asked for, the images of all other
//! platforms of its index, and then the index itself stands in the layout: [`ImageStore::fetch_all_platforms`] brings them.
//!
//! What is saved is held against the collector until the end. Layers whose blobs are not here cannot be saved (a blob made
//! again of unpacked files would have another digest): [`ImageStore::fetch_missing_blobs`] brings them first.

mod docker;
mod layout;

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use crate::digest::{Digest, HashingReader};
use crate::manifest::{self, Descriptor, Document, ManifestError, OCI_INDEX, OCI_MANIFEST};
use crate::reference::Reference;
use crate::store::{Held, ImageStore, Record, Session, StoreError};
use crate::whole_index::{Walk, WholeIndex};

/// The kinds of archives that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// An OCI image layout in a tar: the same digests, for skopeo, podman, containerd and Docker since 25.
    Oci,
    /// What `docker save` made before Docker 25, for `docker load` of any age.
    Docker,
}

/// Which images of an index are saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Platforms {
    /// The one that is unpacked here.
    #[default]
    One,
    /// All that the index names, byte for byte, and what stands beside them. An image without an index is saved as it is.
    All,
}

/// What was saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedImage {
    /// Under which names.
    pub names: Vec<Reference>,
    /// The digest of its manifest, or with all platforms of its index.
    pub digest: Digest,
    /// The size of its compressed layers.
    pub blob_bytes: u64,
}

/// Images that cannot be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such image.
    #[error("there is no image {0} in the store")]
    NotFound(Box<Reference>),
    /// Its manifest cannot be used.
    #[error("cannot use the manifest of {reference}")]
    Manifest {
        /// The image.
        reference: Box<Reference>,
        /// Why not.
        #[source]
        source: ManifestError,
    },
    /// A layer is here only unpacked.
    #[error(
        "the compressed layer {layer} of {reference} is not here, only unpacked (see `images.keepBlobs`): let it be fetched, or load the image again"
    )]
    NotKept {
        /// The image.
        reference: Box<Reference>,
        /// The layer's blob.
        layer: Digest,
    },
    /// The image for another platform is not here.
    #[error(
        "{part}, which the index of {reference} names, is not here: let it be fetched, or save one platform"
    )]
    PlatformNotHere {
        /// The image.
        reference: Box<Reference>,
        /// A manifest, configuration or layer.
        part: Digest,
    },
    /// A docker-archive has no indexes.
    #[error("a docker-archive cannot hold several platforms: save them as OCI")]
    SinglePlatform,
    /// A blob is not what its name says.
    #[error(
        "the blob {0} is damaged: `podling images verify` mends the store, or tells what to load again"
    )]
    Damaged(Digest),
    /// A blob cannot be read.
    #[error("cannot read the blob {digest}")]
    Read {
        /// Its digest.
        digest: Digest,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("cannot write the archive")]
    Archive(#[source] io::Error),
    /// A file of a directory cannot be written.
    #[error("cannot {action} {path}")]
    Directory {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The directory holds something else.
    #[error("{path} is neither empty nor an OCI layout: name another directory")]
    NotALayout {
        /// The directory.
        path: PathBuf,
    },
    /// A docker-archive has only names with tags.
    #[error(
        "a docker-archive cannot hold the name {0}: give the image a tag (`podling images tag`), or save it as OCI"
    )]
    NoTag(Box<Reference>),
    /// An image cannot be named by nothing.
    #[error("no image was named")]
    Nothing,
}

/// An image to be saved, and all that it consists of.
struct Chosen {
    names: Vec<Reference>,
    record: Record,
    /// The manifest, as it came.
    manifest: Vec<u8>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    /// The index that goes with all it names.
    whole: Option<ChosenIndex>,
}

/// An index, and all that it names.
struct ChosenIndex {
    digest: Digest,
    json: Vec<u8>,
    parts: WholeIndex,
}

impl Chosen {
    fn first_name(&self) -> Box<Reference> {
        Box::new(self.names.first().unwrap_or(&self.record.reference).clone())
    }

    /// What stands for it in a layout: its digest, and the document.
    fn document(&self) -> (&Digest, &[u8]) {
        match &self.whole {
            Some(index) => (&index.digest, &index.json),
            None => (&self.record.manifest, &self.manifest),
        }
    }

    fn media_type(&self) -> String {
        match &self.whole {
            Some(index) => media_type(&index.json, OCI_INDEX),
            None => media_type(&self.manifest, OCI_MANIFEST),
        }
    }

    fn summary(&self) -> SavedImage {
        SavedImage {
            names: self.names.clone(),
            digest: self.document().0.clone(),
            blob_bytes: match &self.whole {
                Some(index) => index.parts.blobs.iter().map(|blob| blob.size_bytes).sum(),
                None => self.layers.iter().map(|layer| layer.size).sum(),
            },
        }
    }
}

impl ImageStore {
    /// Writes an archive with these images, each under the names given.
    ///
    /// # Errors
    /// When an image or one of its blobs is not here or is damaged, or `output` fails. What was written then is to be
    /// thrown away.
    pub fn save(
        &self,
        references: &[Reference],
        platforms: Platforms,
        format: ArchiveFormat,
        output: impl Write,
    ) -> Result<Vec<SavedImage>, SaveError> {
        if (platforms, format) == (Platforms::All, ArchiveFormat::Docker) {
            return Err(SaveError::SinglePlatform);
        }
        let session = self.begin_to_save()?;
        let chosen = self.choose_to_save(session.as_ref(), references, platforms)?;
        let mut archive = Archive {
            tar: tar::Builder::new(output),
        };
        match format {
            ArchiveFormat::Oci => layout::write_archive(self, &chosen, &mut archive)?,
            ArchiveFormat::Docker => docker::write_archive(self, &chosen, &mut archive)?,
        }
        let mut output = archive.tar.into_inner().map_err(SaveError::Archive)?;
        output.flush().map_err(SaveError::Archive)?;
        Ok(chosen.iter().map(Chosen::summary).collect())
    }

    /// Adds these images to an OCI layout in a directory, which is made if it is not there. Blobs that are there are
    /// not written again; other images of the layout stay, except those of the same names.
    ///
    /// # Errors
    /// When an image or one of its blobs is not here or is damaged, or the directory cannot be written. The layout is
    /// then as it was, with some more blobs.
    pub fn save_layout(
        &self,
        references: &[Reference],
        platforms: Platforms,
        dir: &Path,
    ) -> Result<Vec<SavedImage>, SaveError> {
        let session = self.begin_to_save()?;
        let chosen = self.choose_to_save(session.as_ref(), references, platforms)?;
        layout::write_directory(self, &chosen, dir)?;
        Ok(chosen.iter().map(Chosen::summary).collect())
    }

    /// A session to hold what is saved; none for a store on a disk that cannot be written to, of which nobody removes
    /// anything.
    fn begin_to_save(&self) -> Result<Option<Session>, StoreError> {
        match Session::begin(self) {
            Err(e) if e.is_read_only() => Ok(None),
            session => session.map(Some),
        }
    }

    /// Finds the images, those of several names once, and holds all that they consist of.
    fn choose_to_save(
        &self,
        session: Option<&Session>,
        references: &[Reference],
        platforms: Platforms,
    ) -> Result<Vec<Chosen>, SaveError> {
        let mut chosen: Vec<Chosen> = Vec::new();
        for reference in references {
            let not_found = || SaveError::NotFound(Box::new(reference.clone()));
            let record = self.find_record(reference)?.ok_or_else(not_found)?;
            if let Some(session) = session {
                session.hold(&record.held(true))?;
            }
            // It may have been removed and collected before it was held.
            if self.find_record(reference)?.as_ref() != Some(&record) {
                return Err(not_found());
            }
            let name = reference.canonical();
            let same = chosen
                .iter_mut()
                .find(|c| c.record.manifest == record.manifest);
            match same {
                Some(known) if known.names.contains(&name) => {}
                Some(known) => known.names.push(name),
                None => {
                    let mut image = self.read_chosen(name, record)?;
                    if platforms == Platforms::All {
                        image.whole = self.whole_index(session, &image)?;
                    }
                    chosen.push(image);
                }
            }
        }
        match chosen.is_empty() {
            true => Err(SaveError::Nothing),
            false => Ok(chosen),
        }
    }

    fn read_chosen(&self, name: Reference, record: Record) -> Result<Chosen, SaveError> {
        let json = self.read_blob(&record.manifest)?;
        let unusable = |source| SaveError::Manifest {
            reference: Box::new(name.clone()),
            source,
        };
        let manifest = match manifest::parse_document(&json).map_err(unusable)? {
            Document::Manifest(manifest) => *manifest,
            Document::Index(_) => {
                let reason = "it is an index".to_owned();
                return Err(unusable(ManifestError::Unusable(reason)));
            }
        };
        Ok(Chosen {
            manifest: json,
            names: vec![name],
            record,
            config: manifest.config,
            layers: manifest.layers,
            whole: None,
        })
    }

    /// The image's index with all that it names, held; none for an image without an index.
    fn whole_index(
        &self,
        session: Option<&Session>,
        image: &Chosen,
    ) -> Result<Option<ChosenIndex>, SaveError> {
        let Some(index) = &image.record.index else {
            return Ok(None);
        };
        let mut walk = Walk::new(index.clone());
        while let Some(digest) = walk.next() {
            let json = self.held_part(session, image, digest, |store| store.read_blob(digest))?;
            walk.take(&json).map_err(|source| SaveError::Manifest {
                reference: image.first_name(),
                source,
            })?;
        }
        let parts = walk.finish();
        // What is missing of the image that is unpacked here has an error of its own.
        let is_own = |blob: &Digest| image.layers.iter().any(|layer| layer.digest == *blob);
        for blob in parts.blobs.iter().filter(|blob| !is_own(&blob.digest)) {
            self.held_part(session, image, &blob.digest, |_| Ok(()))?;
        }
        Ok(Some(ChosenIndex {
            digest: index.clone(),
            json: self.read_blob(index)?,
            parts,
        }))
    }

    /// Holds a blob that an index names, and reads it if it is here.
    fn held_part<T>(
        &self,
        session: Option<&Session>,
        image: &Chosen,
        part: &Digest,
        read: impl FnOnce(&Self) -> Result<T, StoreError>,
    ) -> Result<T, SaveError> {
        if let Some(session) = session {
            session.hold(&[Held::Blob(part.clone())])?;
        }
        match self.open_blob(part)? {
            Some(_) => Ok(read(self)?),
            None => Err(SaveError::PlatformNotHere {
                reference: image.first_name(),
                part: part.clone(),
            }),
        }
    }

    /// A blob that is kept, and its size. Whoever reads it compares it with its digest.
    fn blob_to_save(&self, chosen: &Chosen, digest: &Digest) -> Result<(File, u64), SaveError> {
        let file = self.open_blob(digest)?.ok_or_else(|| SaveError::NotKept {
            reference: chosen.first_name(),
            layer: digest.clone(),
        })?;
        let metadata = file.metadata().map_err(|source| SaveError::Read {
            digest: digest.clone(),
            source,
        })?;
        Ok((file, metadata.len()))
    }
}

/// What a manifest or an index calls itself; those of OCI need not.
fn media_type(json: &[u8], usual: &str) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Named {
        media_type: Option<String>,
    }
    let named: Option<Named> = serde_json::from_slice(json).ok();
    named
        .and_then(|named| named.media_type)
        .unwrap_or_else(|| usual.to_owned())
}

/// A tar whose entries depend on nothing but their names and content.
struct Archive<W: Write> {
    tar: tar::Builder<W>,
}

impl<W: Write> Archive<W> {
    fn directory(&mut self, name: &str) -> Result<(), SaveError> {
        let mut header = header(0, 0o755);
        header.set_entry_type(tar::EntryType::Directory);
        self.tar
            .append_data(&mut header, name, io::empty())
            .map_err(SaveError::Archive)
    }

    fn bytes(&mut self, name: &str, content: &[u8]) -> Result<(), SaveError> {
        self.tar
            .append_data(&mut header(content.len() as u64, 0o644), name, content)
            .map_err(SaveError::Archive)
    }

    /// A file of this length and digest, whose content comes from a blob.
    fn checked(
        &mut self,
        name: &str,
        content: impl Read,
        bytes: u64,
        expected: &Digest,
        blob: &Digest,
    ) -> Result<(), SaveError> {
        let damaged = || SaveError::Damaged(blob.clone());
        let mut reader = Pump {
            inner: HashingReader::new(content, expected.algorithm()),
            left: bytes,
            failed: false,
        };
        let appended = self
            .tar
            .append_data(&mut header(bytes, 0o644), name, &mut reader);
        // What cannot be read to its end is told apart from what cannot be written.
        if reader.failed {
            return Err(damaged());
        }
        appended.map_err(SaveError::Archive)?;
        match reader.inner.finish() {
            Ok((digest, read)) if digest == *expected && read == bytes => Ok(()),
            _ => Err(damaged()),
        }
    }
}

fn header(bytes: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes);
    header
}

/// Reads exactly as much as a tar header promises, and notes a failure.
struct Pump<R> {
    inner: R,
    left: u64,
    failed: bool,
}

impl<R: Read> Read for Pump<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = self.left.min(buffer.len() as u64) as usize;
        let n = self
            .inner
            .read(&mut buffer[..want])
            .inspect_err(|_| self.failed = true)?;
        if n == 0 && want > 0 {
            self.failed = true;
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

fn buffered(file: File) -> BufReader<File> {
    BufReader::with_capacity(128 * 1024, file)
}

#[cfg(test)]
mod tests;
