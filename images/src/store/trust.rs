//! Judges images that are here, by the signatures that came with them.

use super::disk;
use super::{ImageStore, Record, StoreError};
use crate::digest::Digest;
use crate::reference::Reference;
use crate::trust::{
    Distrust, Found, Origin, Policy, SignatureImage, StoredSignatures, Subject, Verdict, parts,
};

/// An image that is here and may not be used, or of which that is not known.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not allowed.
    #[error(transparent)]
    Distrust(#[from] Distrust),
}

impl ImageStore {
    /// Judges an image that is here by a policy of today, under the name that it is asked for by. Nothing is fetched: its
    /// signatures are those that came with it. None if it is not here.
    ///
    /// # Errors
    /// When the policy does not allow it, or the store cannot be read.
    pub fn judge(
        &self,
        reference: &Reference,
        policy: &Policy,
    ) -> Result<Option<Verdict>, JudgeError> {
        let Some(record) = self.find_record(reference)? else {
            return Ok(None);
        };
        let origin = record
            .trust
            .as_ref()
            .map_or(&Origin::Docker, |trust| &trust.origin);
        let rules = policy.rules(origin, reference);
        let subject = Subject {
            image: reference,
            manifest: &record.manifest,
            index: record.index.as_ref(),
        };
        let (images, problems) = match rules.need_signatures() {
            true => self.signatures(&record),
            false => (Vec::new(), Vec::new()),
        };
        let found = Found::in_images(&images, &problems);
        Ok(Some(rules.judge(subject, &found)?))
    }

    /// The signatures that came with an image; damaged ones are told as problems.
    pub(crate) fn signatures(&self, record: &Record) -> (Vec<SignatureImage>, Vec<String>) {
        let (mut images, mut problems) = (Vec::new(), Vec::new());
        for stored in record.trust.iter().flat_map(|trust| &trust.signatures) {
            match self.read_signatures(stored) {
                Ok(image) => images.push(image),
                Err(problem) => problems.push(problem),
            }
        }
        (images, problems)
    }

    fn read_signatures(&self, stored: &StoredSignatures) -> Result<SignatureImage, String> {
        let read = |digest: &Digest| {
            disk::read_blob(self.dir(), digest)
                .map_err(|e| format!("its signatures are damaged: {e}"))
        };
        let manifest = read(&stored.manifest)?;
        let parts = parts(&manifest)?;
        let contents = parts.iter().map(|part| read(&part.digest));
        let contents = contents.collect::<Result<_, _>>()?;
        Ok(SignatureImage::new(
            (stored.manifest.clone(), manifest),
            &parts,
            contents,
        ))
    }
}
