//! Compressed layers that were damaged and could not be fetched again at once. The damaged file goes, so that nobody takes
//! it for the layer; a note stays, so that the layer comes back as soon as its registry can be reached.
//!
//! The note is needed since a layer without its blob is no damage by itself: its files may have come in another
//! compression. It counts only while the blob is not here and blobs are kept; the collector removes what does not count.

use std::path::PathBuf;

use super::disk;
use super::{ImageStore, Session, StoreError};
use crate::digest::Digest;

/// Below the directory of the store.
const DIR: &str = "dropped";

impl ImageStore {
    /// True when this compressed layer was dropped as damaged, and is to be fetched again.
    pub fn is_dropped(&self, digest: &Digest) -> bool {
        self.keeps_blobs()
            && self.dropped_path(digest).exists()
            && !disk::blob_path(self.dir(), digest).exists()
    }

    /// The notes that count no more: of layers that are here again, or that nobody needs.
    pub(super) fn idle_drop_notes(
        &self,
        is_needed: impl Fn(&Digest) -> bool,
    ) -> Result<Vec<PathBuf>, StoreError> {
        let dir = self.dir().join(DIR);
        let names = disk::names(&dir)?.into_iter();
        let counts = |name: &str| {
            let digest = name.replacen('-', ":", 1).parse::<Digest>();
            digest.is_ok_and(|digest| is_needed(&digest) && self.is_dropped(&digest))
        };
        let idle = names.filter(|name| !counts(name));
        Ok(idle.map(|name| dir.join(name)).collect())
    }

    fn dropped_path(&self, digest: &Digest) -> PathBuf {
        let name = format!("{}-{}", digest.algorithm().name(), digest.hex());
        self.dir().join(DIR).join(name)
    }
}

impl Session {
    /// Removes a damaged compressed layer that an image needs, and remembers that it is to come back. The note is first:
    /// a power cut in between leaves the damaged blob, which is found again.
    pub(super) fn drop_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        let store = self.store();
        disk::write_atomically(&store.dropped_path(digest), &self.temporary(), b"")?;
        store.remove_blob(digest)
    }
}
