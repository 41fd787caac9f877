//! One layer of what is loaded, on its way into the store.

use std::io::{BufReader, Read};

use super::{Load, LoadError};
use crate::bundle::BundleError;
use crate::compression::Compression;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::unpack::{UnpackError, Wanted, pieces, unpack_stream};

impl Load<'_> {
    /// Adds the layer unless it is here. Gives digest, size and compression of the blob.
    pub(super) fn add_layer(
        &self,
        name: &str,
        expected: Option<&Digest>,
        diff_id: &Digest,
    ) -> Result<(Digest, u64, Compression), LoadError> {
        let (file, size) = self.bundle.file(name)?;
        let mut file = BufReader::with_capacity(128 * 1024, file);
        let start = std::io::BufRead::fill_buf(&mut file).map_err(self.unreadable(name))?;
        let compression = Compression::detect(start).map_err(self.unreadable(name))?;
        let _lock = self.session.lock_layer(diff_id)?;
        if self.session.has_layer(diff_id) {
            let (digest, size) = self.keep_blob(file, size, expected, name)?;
            return Ok((digest, size, compression));
        }
        let mut blob = self.session.new_blob()?;
        let path = blob.as_ref().map(|blob| blob.path().to_owned());
        let unpacked = self.session.put_layer(diff_id, path.as_deref(), |target| {
            let wanted = (wanted(expected), Wanted::Digest(diff_id));
            let keep = |piece: &[u8]| blob.as_mut().map_or(Ok(()), |blob| blob.append(piece));
            let limits = &self.options.limits;
            unpack_stream(pieces(file), keep, size, target, wanted, limits)
                .map_err(|source| self.unpack_error(source, diff_id, name))
        })?;
        Ok((unpacked.blob, unpacked.blob_bytes, compression))
    }

    /// Keeps the blob of a layer that is unpacked already, unless it is here. Gives its digest and size.
    fn keep_blob(
        &self,
        file: impl Read + Send,
        size: u64,
        expected: Option<&Digest>,
        name: &str,
    ) -> Result<(Digest, u64), LoadError> {
        if let Some(expected) = expected
            && (!self.session.store().keeps_blobs() || self.session.has_blob(expected, size))
        {
            return Ok((expected.clone(), size));
        }
        let mut blob = self.session.new_blob()?;
        let mut hasher = Hasher::new(expected.map_or(Algorithm::Sha256, Digest::algorithm));
        let mut bytes = 0;
        for piece in pieces(file) {
            let piece = piece.map_err(self.unreadable(name))?;
            hasher.update(&piece);
            bytes += piece.len() as u64;
            if let Some(blob) = &mut blob {
                blob.append(&piece).map_err(|e| blob.failed(e))?;
            }
        }
        let digest = hasher.finish();
        if let Some(expected) = expected
            && *expected != digest
        {
            return Err(self.mismatch(name, expected.clone(), digest));
        }
        if let Some(blob) = blob {
            self.session.keep_blob(blob.path(), &digest)?;
        }
        Ok((digest, bytes))
    }

    fn unreadable(&self, name: &str) -> impl FnOnce(std::io::Error) -> BundleError + use<> {
        let path = self.bundle.path().join(name);
        move |source| BundleError::Io {
            action: "read",
            path,
            source,
        }
    }

    fn unpack_error(&self, source: UnpackError, diff_id: &Digest, name: &str) -> LoadError {
        match source {
            UnpackError::WrongDigest { expected, actual }
            | UnpackError::WrongDiffId { expected, actual } => {
                self.mismatch(name, expected, actual)
            }
            UnpackError::Source(source) => self.unreadable(name)(source).into(),
            source => LoadError::Layer {
                path: self.bundle.path().to_owned(),
                layer: diff_id.clone(),
                source,
            },
        }
    }
}

/// What is known of a blob: its digest, or nothing.
fn wanted(expected: Option<&Digest>) -> Wanted<'_> {
    expected.map_or(Wanted::Any(Algorithm::Sha256), Wanted::Digest)
}
