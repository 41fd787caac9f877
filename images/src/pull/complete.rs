//! Fetches what images consist of and is not here, for who needs the blobs themselves: to save or to push.
//!
//! A layer is here without its blob when blobs are not kept (`images.keepBlobs`), or when the same files had come before
//! in another compression: then the pull fetched nothing, since an image needs nothing more to run. Of an index for several
//! platforms only one image is here, as only one runs.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::download::download;
use super::{PullError, PullOptions, blocking, no_space};
use crate::digest::{Digest, Hasher};
use crate::image::LayerBlob;
use crate::manifest::Descriptor;
use crate::reference::Reference;
use crate::registry::{Access, Purpose, RegistryError, Repository};
use crate::store::{Held, ImageStore, Ingest, Session, StoreError};
use crate::unpack::ARRIVED_WAITING;
use crate::whole_index::Walk;

/// Blobs that were fetched. As long as this lives nobody collects them, also where blobs are not kept.
#[derive(Debug)]
pub struct FetchedBlobs {
    _session: Arc<Session>,
    /// What was fetched.
    pub blobs: Vec<LayerBlob>,
}

impl ImageStore {
    /// The compressed layers of these images that are not here, each once. Images that are not here have none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn missing_blobs(&self, images: &[Reference]) -> Result<Vec<LayerBlob>, StoreError> {
        let mut missing = Vec::new();
        for image in images {
            missing.extend(self.missing_of(image)?.into_iter().map(|(blob, _)| blob));
        }
        let mut seen = HashSet::new();
        missing.retain(|blob: &LayerBlob| seen.insert(blob.digest.clone()));
        Ok(missing)
    }

    /// Fetches the compressed layers of these images that are not here, from the registries that the images' names
    /// tell, or their mirrors. A download that broke is gone on with, and dropping the future leaves what has come for
    /// the next time.
    ///
    /// # Errors
    /// When the store cannot be written, or a layer is at none of the registries: then the error of the first.
    pub async fn fetch_missing_blobs(
        &self,
        images: &[Reference],
        options: &PullOptions,
    ) -> Result<FetchedBlobs, PullError> {
        let store = self.clone();
        let session = Arc::new(blocking(move || Ok(Session::begin(&store)?)).await?);
        let access = options.access();
        let mut blobs = Vec::new();
        for image in images {
            let (store, image, holding) = (self.clone(), image.clone(), Arc::clone(&session));
            let missing = blocking(move || {
                let missing = store.missing_of(&image)?;
                let held = missing
                    .iter()
                    .map(|(blob, _)| Held::Blob(blob.digest.clone()));
                holding.hold(&held.collect::<Vec<_>>())?;
                Ok(missing)
            });
            for (blob, names) in missing.await? {
                if blobs.contains(&blob) {
                    continue;
                }
                let fetched = fetch_blob(&session, &names, &access, &blob).await;
                fetched.map_err(|e| no_space(e, self, &names[0]))?;
                blobs.push(blob);
            }
        }
        Ok(FetchedBlobs {
            _session: session,
            blobs,
        })
    }

    /// Fetches what the indexes of these images name and is not here: the images for all platforms, and what stands
    /// beside them. Images without an index have nothing more. It is neither judged nor unpacked, and no name means it:
    /// it stays as long as what is returned.
    ///
    /// # Errors
    /// As with [`fetch_missing_blobs`](Self::fetch_missing_blobs), and when an index cannot be read.
    pub async fn fetch_all_platforms(
        &self,
        images: &[Reference],
        options: &PullOptions,
    ) -> Result<FetchedBlobs, PullError> {
        let store = self.clone();
        let session = Arc::new(blocking(move || Ok(Session::begin(&store)?)).await?);
        let access = options.access();
        let mut fetched = Vec::new();
        for image in images {
            let (store, name) = (self.clone(), image.clone());
            let Some(found) = blocking(move || Ok(store.resolve(&name)?)).await? else {
                continue;
            };
            let Some(index) = found.index else { continue };
            let names: Vec<_> = std::iter::once(image.canonical())
                .chain(found.references)
                .collect();
            let done = fetch_index(&session, &names, &access, index).await;
            fetched.extend(done.map_err(|e| no_space(e, self, image))?);
        }
        Ok(FetchedBlobs {
            _session: session,
            blobs: fetched,
        })
    }

    /// The missing layers of one image, each with the names of images that have it: that which was asked for first.
    fn missing_of(
        &self,
        image: &Reference,
    ) -> Result<Vec<(LayerBlob, Vec<Reference>)>, StoreError> {
        let Some(found) = self.resolve(image)? else {
            return Ok(Vec::new());
        };
        let mut names = vec![image.canonical()];
        names.extend(found.references);
        let mut missing = Vec::new();
        for blob in found.parts.into_iter().filter_map(|layer| layer.blob) {
            if self.open_blob(&blob.digest)?.is_none() {
                missing.push((blob, names.clone()));
            }
        }
        Ok(missing)
    }
}

/// Fetches one blob into the store, from the first of the images' repositories that has it. It stays at least as long as
/// the session.
pub(crate) async fn fetch_blob(
    session: &Arc<Session>,
    images: &[Reference],
    access: &Access,
    blob: &LayerBlob,
) -> Result<(), PullError> {
    let mut first_error = None;
    let mut asked = HashSet::new();
    for image in images {
        if !asked.insert((image.registry(), image.repository())) {
            continue;
        }
        let repository = Arc::new(Repository::open(image, access, Purpose::Pull)?);
        match fetch_from(session, &repository, blob).await {
            Ok(()) => return Ok(()),
            Err(e @ PullError::Registry(_)) => first_error = first_error.or(Some(e)),
            Err(e) => return Err(e),
        }
    }
    Err(first_error.unwrap_or(PullError::Cancelled))
}

/// Fetches all that an index names and is not here; gives the blobs that came.
async fn fetch_index(
    session: &Arc<Session>,
    images: &[Reference],
    access: &Access,
    index: Digest,
) -> Result<Vec<LayerBlob>, PullError> {
    let mut walk = Walk::new(index);
    while let Some(digest) = walk.next() {
        let json = fetch_document(session, images, access, digest).await?;
        walk.take(&json).map_err(|source| PullError::Manifest {
            reference: Box::new(images[0].clone()),
            source,
        })?;
    }
    let blobs = walk.finish().blobs;
    let (holding, held) = (Arc::clone(session), blobs.clone());
    let missing = blocking(move || {
        let all = held.iter().map(|blob| Held::Blob(blob.digest.clone()));
        holding.hold(&all.collect::<Vec<_>>())?;
        let is_missing = |blob: &LayerBlob| !holding.has_blob(&blob.digest, blob.size_bytes);
        Ok(held.into_iter().filter(is_missing).collect::<Vec<_>>())
    });
    let missing = missing.await?;
    for blob in &missing {
        fetch_blob(session, images, access, blob).await?;
    }
    Ok(missing)
}

/// A manifest or an index: from the store, else from the first of the images' repositories that has it, into the store.
async fn fetch_document(
    session: &Arc<Session>,
    images: &[Reference],
    access: &Access,
    digest: &Digest,
) -> Result<Vec<u8>, PullError> {
    let (reading, wanted) = (Arc::clone(session), digest.clone());
    let here = blocking(move || {
        reading.hold(&[Held::Blob(wanted.clone())])?;
        Ok(reading.store().read_blob(&wanted).ok())
    });
    if let Some(json) = here.await? {
        return Ok(json);
    }
    let mut first_error = None;
    for image in images {
        let repository = Repository::open(image, access, Purpose::Pull)?;
        match repository.manifest(Some(digest)).await {
            Ok((digest, json)) => {
                let writing = Arc::clone(session);
                let put = blocking(move || {
                    writing.put_blob(&digest, &json)?;
                    Ok(json)
                });
                return put.await;
            }
            Err(e) => first_error = first_error.or(Some(e)),
        }
    }
    Err(first_error.map_or(PullError::Cancelled, PullError::Registry))
}

/// What became of the bytes that came.
enum Received {
    Whole,
    /// Some are missing; those that came stay.
    Part,
    /// They are not those of the blob, and are forgotten.
    Wrong(PullError),
}

/// A blob that was put together of several parts and is wrong is fetched once more from its beginning.
pub(super) async fn fetch_from(
    session: &Arc<Session>,
    repository: &Arc<Repository>,
    blob: &LayerBlob,
) -> Result<(), PullError> {
    let descriptor = Descriptor {
        media_type: blob.media_type.clone(),
        digest: blob.digest.clone(),
        size: blob.size_bytes,
        platform: None,
        annotations: Default::default(),
        artifact_type: None,
    };
    loop {
        let (opening, wanted) = (Arc::clone(session), blob.clone());
        // May wait for another that is receiving this blob.
        let ingest = blocking(move || {
            if opening.has_blob(&wanted.digest, wanted.size_bytes) {
                return Ok(None);
            }
            let ingest = opening.receive(&wanted.digest, wanted.size_bytes)?;
            let came_meanwhile = opening.has_blob(&wanted.digest, wanted.size_bytes);
            Ok((!came_meanwhile).then_some(ingest))
        });
        let Some(ingest) = ingest.await? else {
            return Ok(());
        };
        let offset = ingest.before();
        let (sender, receiver) = mpsc::channel(ARRIVED_WAITING);
        let (writing, wanted) = (Arc::clone(session), blob.clone());
        let registry = repository.registry().to_owned();
        let writing = blocking(move || receive(&writing, &wanted, registry, ingest, receiver));
        let downloading = async {
            let downloaded = download(repository, &descriptor, offset, &sender, |_| ()).await;
            drop(sender);
            downloaded
        };
        let (received, downloaded) = tokio::join!(writing, downloading);
        match (received?, downloaded) {
            (Received::Whole, _) => return Ok(()),
            (Received::Wrong(_), Ok(_)) if offset > 0 => {}
            (Received::Wrong(e), _) => return Err(e),
            (Received::Part, Err(e)) => return Err(e.into()),
            (Received::Part, Ok(_)) => return Err(PullError::Cancelled),
        }
    }
}

/// Writes what is here of a blob and what comes, and places it when it has its digest.
fn receive(
    session: &Session,
    blob: &LayerBlob,
    registry: String,
    mut ingest: Ingest,
    mut coming: mpsc::Receiver<Bytes>,
) -> Result<Received, PullError> {
    let path = ingest.path().to_owned();
    let io = |action| {
        let path = path.clone();
        move |source| StoreError::Io {
            action,
            path,
            source,
        }
    };
    let mut hasher = Hasher::new(blob.digest.algorithm());
    let mut bytes = 0;
    for piece in ingest.pieces_before()? {
        let piece = piece.map_err(io("read"))?;
        hasher.update(&piece);
        ingest.keep(&piece).map_err(io("read"))?;
        bytes += piece.len() as u64;
    }
    while let Some(piece) = coming.blocking_recv() {
        hasher.update(&piece);
        if let Err(e) = ingest.keep(&piece).map_err(io("write")) {
            if e.is_out_of_space() {
                ingest.discard()?;
            }
            return Err(e.into());
        }
        bytes += piece.len() as u64;
    }
    if bytes < blob.size_bytes {
        return Ok(Received::Part);
    }
    let actual = hasher.finish();
    if actual == blob.digest {
        session.lend_blob(&path, &blob.digest)?;
        return Ok(Received::Whole);
    }
    ingest.discard()?;
    Ok(Received::Wrong(PullError::Registry(
        RegistryError::Mismatch {
            registry,
            what: "a layer",
            expected: blob.digest.clone(),
            actual,
        },
    )))
}
