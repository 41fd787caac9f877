//! One layer on its way into the store: from the kept blob, from what an earlier pull left, or from the registry.
//!
//! ```text
//! partial blob in `ingest` ─┐
//!                           ├─► stream of unpack ═══► directory, by diff ID
//! registry ═► pieces ───────┘            └► the rest of the blob in `ingest` ─► `blobs`
//! ```
//! What was put together of several responses and has the wrong digest is fetched once more from its beginning, since
//! one of the parts may have been damaged on the disk or by a proxy. What came at once is not.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::complete::fetch_from;
use super::download::{Downloaded, download};
use super::{Progress, Pull, PullError, blocking};
use crate::digest::Digest;
use crate::image::LayerBlob;
use crate::manifest::Descriptor;
use crate::registry::RegistryError;
use crate::store::{Ingest, Session, StoreError};
use crate::unpack::{
    ARRIVED_WAITING, Keep, Limits, Pieces, Target, UnpackError, Unpacked, Wanted, pieces,
    unpack_stream,
};

/// What the threads that unpack need of a layer.
#[derive(Clone)]
struct Job {
    session: Arc<Session>,
    /// Some layer of this pull found no space: the others leave nothing, either.
    is_full: Arc<AtomicBool>,
    blob: Descriptor,
    diff_id: Digest,
    limits: Limits,
}

/// A layer that could not be unpacked, and what had arrived of it.
enum Failure {
    Store(StoreError),
    Unpack(UnpackError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Pull<'_> {
    /// Brings one layer into the store, unless it is there.
    pub(super) async fn layer(&self, blob: &Descriptor, diff_id: &Digest) -> Result<(), PullError> {
        let job = Job {
            session: Arc::clone(&self.session),
            is_full: Arc::clone(&self.is_full),
            blob: blob.clone(),
            diff_id: diff_id.clone(),
            limits: self.options.limits.clone(),
        };
        let lock_job = job.clone();
        // May wait for another pull that is making this layer.
        let lock = blocking(move || {
            let lock = lock_job.session.lock_layer(&lock_job.diff_id)?;
            Ok((!lock_job.session.has_layer(&lock_job.diff_id)).then_some(lock))
        });
        if let Some(lock) = lock.await? {
            // The threads hold the lock, too: they may go on when this future is dropped.
            let lock = Arc::new(lock);
            if !self.unpack_kept(&job, &lock).await? {
                self.fetch(&job, &lock).await?;
            }
        } else if self.session.store().is_dropped(&blob.digest) {
            self.bring_back(blob).await;
        }
        self.report(|| Progress::Done {
            layer: blob.digest.clone(),
        });
        Ok(())
    }

    /// Fetches the blob of a layer that is here, which was damaged and dropped. The image runs without it, so that this
    /// failing is no failure of the pull: the blob stays noted.
    async fn bring_back(&self, blob: &Descriptor) {
        let layer = LayerBlob {
            digest: blob.digest.clone(),
            media_type: blob.media_type.clone(),
            size_bytes: blob.size,
        };
        if let Err(error) = fetch_from(&self.session, &self.repository, &layer).await {
            tracing::warn!(layer = %layer.digest, %error, "a dropped layer cannot be fetched again yet");
        }
    }

    /// Unpacks the layer from its blob in the store. False if it is not there, or damaged: then it is gone.
    async fn unpack_kept(&self, job: &Job, lock: &Arc<std::fs::File>) -> Result<bool, PullError> {
        let (job, lock) = (job.clone(), Arc::clone(lock));
        let refused = self.refused(&job.blob);
        blocking(move || {
            let _lock = lock;
            match job.unpack_kept() {
                Ok(found) => Ok(found),
                Err(Failure::Store(e)) => Err(e.into()),
                Err(Failure::Unpack(e)) => Err(refused(e)),
            }
        })
        .await
    }

    async fn fetch(&self, job: &Job, lock: &Arc<std::fs::File>) -> Result<(), PullError> {
        let mut may_start_over = true;
        loop {
            let opening = job.clone();
            // May wait for another pull that is receiving this blob.
            let ingest = blocking(move || {
                let (digest, size) = (&opening.blob.digest, opening.blob.size);
                Ok(opening.session.receive(digest, size)?)
            });
            let ingest = ingest.await?;
            let is_resumed = ingest.before() > 0;
            let (unpacked, downloaded) = self.stream(job, lock, ingest).await?;
            let failure = match (unpacked, downloaded) {
                (Ok(()), _) => return Ok(()),
                // A partial blob stays.
                (Err(_), Err(e)) => return Err(e),
                (Err(Failure::Store(e)), Ok(_)) => return Err(e.into()),
                (Err(Failure::Unpack(e)), Ok(downloaded)) => {
                    let in_parts = is_resumed || downloaded == Downloaded::InParts;
                    let is_damaged = matches!(e, UnpackError::WrongDigest { .. });
                    if !(in_parts && is_damaged && may_start_over) {
                        return Err(self.refused(&job.blob)(e));
                    }
                    e
                }
            };
            tracing::warn!(
                layer = %job.blob.digest,
                error = %failure,
                "what was put together of several parts is damaged; fetching it from its beginning"
            );
            may_start_over = false;
        }
    }

    /// Receives and unpacks at once. Gives what became of both.
    async fn stream(
        &self,
        job: &Job,
        lock: &Arc<std::fs::File>,
        ingest: Ingest,
    ) -> Result<(Result<(), Failure>, Result<Downloaded, PullError>), PullError> {
        let (sender, receiver) = mpsc::channel(ARRIVED_WAITING);
        let offset = ingest.before();
        let (unpacking, lock) = (job.clone(), Arc::clone(lock));
        let unpacking = blocking(move || {
            let _lock = lock;
            Ok(unpacking.unpack_received(ingest, receiver))
        });
        let downloading = async {
            let report = |bytes| {
                self.report(|| Progress::Downloading {
                    layer: job.blob.digest.clone(),
                    bytes,
                    total_bytes: job.blob.size,
                });
            };
            let downloaded = download(&self.repository, &job.blob, offset, &sender, report).await;
            // The end of the blob, or of what can be had of it.
            drop(sender);
            self.report(|| Progress::Unpacking {
                layer: job.blob.digest.clone(),
            });
            downloaded
        };
        let (unpacked, downloaded) = tokio::join!(unpacking, downloading);
        Ok((unpacked?, downloaded.map_err(PullError::from)))
    }

    /// Why a layer is not taken.
    fn refused(&self, blob: &Descriptor) -> impl FnOnce(UnpackError) -> PullError + use<> {
        let registry = self.repository.registry().to_owned();
        let reference = Box::new(self.reference.clone());
        let layer = blob.digest.clone();
        move |error| match error {
            UnpackError::WrongDigest { expected, actual }
            | UnpackError::WrongDiffId { expected, actual } => {
                PullError::Registry(RegistryError::Mismatch {
                    registry,
                    what: "a layer",
                    expected,
                    actual,
                })
            }
            source => PullError::Layer {
                reference,
                layer,
                source,
            },
        }
    }
}

impl Job {
    /// Unpacks the layer from its blob in the store. A damaged blob is removed.
    fn unpack_kept(&self) -> Result<bool, Failure> {
        let store = self.session.store();
        if !self.session.has_blob(&self.blob.digest, self.blob.size) {
            return Ok(false);
        }
        let Some(file) = store.open_blob(&self.blob.digest)? else {
            return Ok(false);
        };
        let unpacked = self.session.put_layer(&self.diff_id, None, |target| {
            self.unpack(pieces(file), |_| Ok(()), target)
        });
        match unpacked {
            Ok(_) => Ok(true),
            Err(Failure::Unpack(error @ UnpackError::WrongDigest { .. })) => {
                tracing::warn!(layer = %self.blob.digest, %error, "a kept layer is damaged; fetching it again");
                store.remove_blob(&self.blob.digest)?;
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Unpacks what is here of a blob and what comes. A blob that cannot be right is forgotten, and so is all of it
    /// when there is no space left.
    fn unpack_received(
        &self,
        mut ingest: Ingest,
        mut receiver: mpsc::Receiver<Bytes>,
    ) -> Result<(), Failure> {
        let before = ingest.pieces_before()?;
        let mut missing = self.blob.size - ingest.before();
        let coming = std::iter::from_fn(move || match receiver.blocking_recv() {
            Some(piece) => {
                missing = missing.saturating_sub(piece.len() as u64);
                Some(Ok(piece))
            }
            // The download has failed, or the pull was given up.
            None if missing > 0 => Some(Err(io::ErrorKind::UnexpectedEof.into())),
            None => None,
        });
        let path = ingest.path().to_owned();
        let unpacked = self
            .session
            .put_layer(&self.diff_id, Some(&path), |target| {
                self.unpack(before.chain(coming), |piece| ingest.keep(piece), target)
            });
        match unpacked {
            Ok(_) => Ok(()),
            Err(e) => {
                if e.is_out_of_space() {
                    self.is_full.store(true, Ordering::SeqCst);
                }
                if e.condemns_blob() || self.is_full.load(Ordering::SeqCst) {
                    ingest.discard()?;
                }
                Err(e)
            }
        }
    }

    fn unpack(
        &self,
        source: impl Pieces,
        keep: impl Keep,
        target: &Target,
    ) -> Result<Unpacked, Failure> {
        let wanted = (
            Wanted::Digest(&self.blob.digest),
            Wanted::Digest(&self.diff_id),
        );
        unpack_stream(source, keep, self.blob.size, target, wanted, &self.limits)
            .map_err(Failure::Unpack)
    }
}

impl Failure {
    fn is_out_of_space(&self) -> bool {
        match self {
            Self::Store(e) => e.is_out_of_space(),
            Self::Unpack(e) => e.is_out_of_space(),
        }
    }

    /// True when all of the blob had arrived, and is of no use.
    fn condemns_blob(&self) -> bool {
        matches!(
            self,
            Self::Unpack(
                UnpackError::WrongDigest { .. }
                    | UnpackError::WrongDiffId { .. }
                    | UnpackError::Tar(_)
                    | UnpackError::Decompress(_)
            )
        )
    }
}
