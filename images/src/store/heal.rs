//! Makes whole what [`ImageStore::verify`] found damaged, with as little as possible: a layer is unpacked again from
//! its kept blob; a blob or document is fetched again; a record is made again from `index.json` and the manifest, or
//! moved aside; what then is still damaged is reported. Nothing else is touched.
//!
//! A damaged layer is replaced beside the running containers that use it: see replaced.rs. They go on with what they
//! have; their next start has the whole layer.

use std::fs::File;
use std::io;

use super::disk;
use super::record::{self, Record, RecordLayer};
use super::verify::{Part, Problem};
use super::{Held, ImageStore, Session, StoreError, layout};
use crate::digest::{Digest, Hasher};
use crate::image::LayerBlob;
use crate::reference::Reference;
use crate::unpack::{Limits, UnpackError, Wanted, pieces, unpack_stream};

/// All that was accepted once is accepted again: the digests say that it is the same.
const NO_LIMITS: Limits = Limits {
    entries: u64::MAX,
    layer_bytes: u64::MAX,
    ratio: u64::MAX,
    ratio_free_bytes: u64::MAX,
};

/// A blob or document that is damaged or missing here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// What is to be fetched.
    pub digest: Digest,
    /// Its size, where it is known: of layers.
    pub size_bytes: Option<u64>,
    /// It is the manifest, or the index, of the image; else one of its blobs.
    pub is_manifest: bool,
    /// An image that needs it.
    pub image: Reference,
}

/// Why something could not be fetched.
pub type FetchError = Box<dyn std::error::Error + Send + Sync>;

/// Fetches what was lost: gives its bytes, in order, to the second argument. They are compared with the digest
/// afterwards.
pub type Fetch<'a> =
    dyn Fn(&Lost, &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), FetchError> + 'a;

/// What [`ImageStore::heal`] did.
#[derive(Debug)]
pub enum Healed {
    /// The layer was unpacked again from its kept blob; nothing was fetched.
    Unpacked,
    /// The record was made again from what is here. The signatures that it named are not known any more.
    Rebuilt,
    /// It was fetched again.
    Fetched,
    /// The compressed layer cannot be fetched and is dropped. The image runs without it; to save or push it needs the
    /// registry. Where blobs are kept, [`ImageStore::verify`] goes on finding it until it was fetched.
    Dropped,
    /// Somebody else mended it, or no image needs it any more.
    Whole,
    /// It cannot be mended. The image must be loaded or pulled again.
    Broken(FetchError),
}

impl ImageStore {
    /// Mends what is damaged. Without `fetch` only what is here is used.
    ///
    /// # Errors
    /// When the store cannot be written; that something cannot be fetched is no error.
    pub fn heal(&self, problem: &Problem, fetch: Option<&Fetch<'_>>) -> Result<Healed, StoreError> {
        let session = Session::begin(self)?;
        let records = record::read_all(self.dir())?;
        let heal = Heal {
            session: &session,
            records: &records,
            fetch,
        };
        match &problem.part {
            Part::Record(name) => heal.record(name),
            Part::Document(digest) => heal.document(digest),
            Part::Layer(diff_id) => heal.layer(diff_id, problem),
            Part::Blob(digest) => heal.blob(digest),
        }
    }
}

struct Heal<'a> {
    session: &'a Session,
    records: &'a [Record],
    fetch: Option<&'a Fetch<'a>>,
}

impl Heal<'_> {
    fn record(&self, name: &Digest) -> Result<Healed, StoreError> {
        let store = self.session.store();
        let dir = store.dir();
        let _lock = store.lock_exclusive()?;
        let Some(unreadable) = record::unreadable(dir, name)? else {
            return Ok(Healed::Whole);
        };
        if unreadable.is_newer {
            let reason =
                "a later version of podling wrote it: use that, or pull or load the image again";
            return Ok(Healed::Broken(reason.into()));
        }
        let found = layout::find(dir, name);
        if let Some(record) = found.and_then(|(name, image)| record::rebuild(dir, &name, &image)) {
            record.write(dir, &self.session.temporary())?;
            layout::update(dir)?;
            return Ok(Healed::Rebuilt);
        }
        let aside = unreadable.path(dir).with_extension("damaged");
        disk::rename(&unreadable.path(dir), &aside)?;
        layout::update(dir)?;
        let reason = format!(
            "it is moved to {}; its image has to be pulled or loaded again",
            aside.display()
        );
        Ok(Healed::Broken(reason.into()))
    }

    fn document(&self, digest: &Digest) -> Result<Healed, StoreError> {
        let needs = |record: &&Record| record.documents().any(|d| d == digest);
        let Some(record) = self.records.iter().find(needs) else {
            return Ok(Healed::Whole);
        };
        let lost = Lost {
            digest: digest.clone(),
            size_bytes: None,
            is_manifest: record.manifest == *digest || record.index.as_ref() == Some(digest),
            image: record.reference.clone(),
        };
        let mut content = Vec::new();
        let fetched = self.fetch(&lost, &mut |piece| {
            content.extend_from_slice(piece);
            Ok(())
        });
        if let Err(e) = fetched {
            return Ok(Healed::Broken(e));
        }
        if !digest.matches(&content) {
            return Ok(Healed::Broken("what was fetched has another digest".into()));
        }
        self.session.put_blob(digest, &content)?;
        let store = self.session.store();
        let _lock = store.lock_exclusive()?;
        layout::update(store.dir())?;
        Ok(Healed::Fetched)
    }

    fn layer(&self, diff_id: &Digest, problem: &Problem) -> Result<Healed, StoreError> {
        let Some((record, layer)) = self.find(|layer| layer.diff_id == *diff_id) else {
            return Ok(Healed::Whole);
        };
        let Some(blob) = &layer.blob else {
            let reason =
                "the manifest that says which layer it is, is damaged, too: mend that first";
            return Ok(Healed::Broken(reason.into()));
        };
        self.hold(diff_id, blob)?;
        let _lock = self.session.lock_layer(diff_id)?;
        let store = self.session.store();
        if store
            .verify_part(&problem.part, &problem.images, &mut |_| ())
            .is_none()
        {
            return Ok(Healed::Whole);
        }
        if let Some(file) = store.open_blob(&blob.digest)? {
            match self.unpack(file, diff_id, blob)? {
                Ok(()) => {
                    store.inherit(record)?;
                    return Ok(Healed::Unpacked);
                }
                Err(UnpackError::WrongDigest { .. }) => store.remove_blob(&blob.digest)?,
                Err(e) => return Ok(Healed::Broken(Box::new(e))),
            }
        }
        let fetched = match self.fetch_blob(record, blob)? {
            Ok(file) => file,
            Err(e) => return Ok(Healed::Broken(e)),
        };
        match self.unpack(fetched, diff_id, blob)? {
            Ok(()) => {
                store.inherit(record)?;
                Ok(Healed::Fetched)
            }
            Err(e) => Ok(Healed::Broken(Box::new(e))),
        }
    }

    fn blob(&self, digest: &Digest) -> Result<Healed, StoreError> {
        let store = self.session.store();
        let is_it = |layer: &RecordLayer| layer.blob.as_ref().is_some_and(|b| b.digest == *digest);
        if let Some((record, layer)) = self.find(is_it)
            && let Some(blob) = &layer.blob
            && store.keeps_blobs()
        {
            self.hold(&layer.diff_id, blob)?;
            if disk::check_blob(store.dir(), digest, &mut |_| ()).is_ok() {
                return Ok(Healed::Whole);
            }
            if self.fetch_blob(record, blob)?.is_ok() {
                return Ok(Healed::Fetched);
            }
            self.session.drop_blob(digest)?;
            return Ok(Healed::Dropped);
        }
        store.remove_blob(digest)?;
        Ok(Healed::Dropped)
    }

    fn find(&self, is_it: impl Fn(&RecordLayer) -> bool) -> Option<(&Record, &RecordLayer)> {
        self.records.iter().find_map(|record| {
            let layer = record.layers.iter().find(|layer| is_it(layer))?;
            Some((record, layer))
        })
    }

    fn hold(&self, diff_id: &Digest, blob: &LayerBlob) -> Result<(), StoreError> {
        let held = [
            Held::Layer(diff_id.clone()),
            Held::Blob(blob.digest.clone()),
        ];
        self.session.hold(&held)
    }

    /// Unpacks beside, and exchanges. A layer that cannot be unpacked is the inner error.
    fn unpack(
        &self,
        file: File,
        diff_id: &Digest,
        blob: &LayerBlob,
    ) -> Result<Result<(), UnpackError>, StoreError> {
        enum Failure {
            Store(StoreError),
            Unpack(UnpackError),
        }
        impl From<StoreError> for Failure {
            fn from(error: StoreError) -> Self {
                Self::Store(error)
            }
        }
        let unpacked = self.session.put_layer(diff_id, None, |target| {
            let wanted = (Wanted::Digest(&blob.digest), Wanted::Digest(diff_id));
            let (size, keep) = (blob.size_bytes, |_: &[u8]| Ok(()));
            unpack_stream(pieces(file), keep, size, target, wanted, &NO_LIMITS)
                .map_err(Failure::Unpack)
        });
        match unpacked {
            Ok(_) => Ok(Ok(())),
            Err(Failure::Unpack(e)) => Ok(Err(e)),
            Err(Failure::Store(e)) => Err(e),
        }
    }

    /// Fetches a compressed layer, keeps it if such are kept, and opens it.
    fn fetch_blob(
        &self,
        record: &Record,
        blob: &LayerBlob,
    ) -> Result<Result<File, FetchError>, StoreError> {
        let lost = Lost {
            digest: blob.digest.clone(),
            size_bytes: Some(blob.size_bytes),
            is_manifest: false,
            image: record.reference.clone(),
        };
        let path = self.session.temporary();
        let mut file = disk::open_to_append(&path)?;
        let mut hasher = Hasher::new(blob.digest.algorithm());
        let fetched = self.fetch(&lost, &mut |piece| {
            hasher.update(piece);
            disk::append(&mut file, &path, piece)
        });
        if let Err(e) = fetched {
            return Ok(Err(e));
        }
        if hasher.finish() != blob.digest {
            return Ok(Err("what was fetched has another digest".into()));
        }
        let opened = File::open(&path).map_err(disk::failed("open", &path))?;
        self.session.keep_blob(&path, &blob.digest)?;
        Ok(Ok(opened))
    }

    fn fetch(
        &self,
        lost: &Lost,
        take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), FetchError> {
        match self.fetch {
            Some(fetch) => fetch(lost, take),
            None => Err("it is not here, and nothing is to be fetched".into()),
        }
    }
}
