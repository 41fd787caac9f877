//! Signatures in an OCI layout, or beside it.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::found::{SIGNATURE_IMAGES_MAX, SIGNATURES_MAX, SignatureImage, parts};
use super::payload::PAYLOAD_MAX_BYTES;
use super::{Found, SIGNATURE_MANIFEST_MAX_BYTES, read_bounded};
use crate::bundle::Bundle;
use crate::digest::Digest;

/// All signatures that came with a layout, of whichever image they are: the payloads tell.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    images: Vec<SignatureImage>,
    problems: Vec<String>,
}

impl Gathered {
    /// Reads the signature images of a layout, and the files beside it.
    pub(crate) fn read(bundle: &Bundle, manifests: &[Digest]) -> Self {
        let mut gathered = Self::default();
        for digest in manifests.iter().take(SIGNATURE_IMAGES_MAX) {
            if let Err(problem) = gathered.add(bundle, digest) {
                gathered.problems.push(problem);
            }
        }
        match beside(bundle.path()) {
            Ok(None) => {}
            Ok(Some(image)) => gathered.images.push(image),
            Err(problem) => gathered.problems.push(problem),
        }
        gathered
    }

    pub(crate) fn images(&self) -> &[SignatureImage] {
        &self.images
    }

    pub(crate) fn found(&self) -> Found<'_> {
        Found::in_images(&self.images, &self.problems)
    }

    fn add(&mut self, bundle: &Bundle, digest: &Digest) -> Result<(), String> {
        let read = |digest: &Digest, max_bytes| {
            let name = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
            let content = bundle.read(&name, max_bytes).map_err(|e| e.to_string())?;
            match digest.matches(&content) {
                true => Ok(content),
                false => Err(format!("`{name}` is damaged or forged")),
            }
        };
        let manifest = read(digest, SIGNATURE_MANIFEST_MAX_BYTES)?;
        let parts = parts(&manifest)?;
        let found: usize = self.images.iter().map(|image| image.signatures.len()).sum();
        if found + parts.len() > SIGNATURES_MAX + 1 {
            return Err("there are too many signatures".to_owned());
        }
        let contents = parts.iter().map(|part| read(&part.digest, part.max_bytes));
        let contents = contents.collect::<Result<_, _>>()?;
        let manifest = (digest.clone(), manifest);
        self.images
            .push(SignatureImage::new(manifest, &parts, contents));
        Ok(())
    }
}

/// `PATH.sig` and `PATH.payload`.
fn beside(path: &Path) -> Result<Option<SignatureImage>, String> {
    let file = |suffix: &str| {
        // A directory may be given with a slash at its end.
        let mut name: OsString = path.components().collect::<PathBuf>().into();
        name.push(suffix);
        PathBuf::from(name)
    };
    let read = |path: &Path| match read_bounded(path, PAYLOAD_MAX_BYTES) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("cannot read {}: {e}", path.display())),
    };
    let (signature_path, payload_path) = (file(".sig"), file(".payload"));
    let (payload, base64) = match (read(&payload_path)?, read(&signature_path)?) {
        (None, None) => return Ok(None),
        (Some(payload), Some(base64)) => (payload, base64),
        (None, Some(_)) => return Err(format!("{} is not there", payload_path.display())),
        (Some(_), None) => return Err(format!("{} is not there", signature_path.display())),
    };
    let base64 = String::from_utf8(base64)
        .map_err(|_| format!("{} is not base64", signature_path.display()))?;
    Ok(Some(SignatureImage::of_files(
        payload,
        base64.trim().to_owned(),
    )))
}
