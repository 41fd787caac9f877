//! Signatures in an OCI layout, or beside it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::found::{SIGNATURES_MAX, SignatureImage, holds_bundle, parts};
use super::payload::PAYLOAD_MAX_BYTES;
use super::referrers::signature_referrers;
use super::sigstore::BUNDLE_MAX_BYTES;
use super::{Found, SIGNATURE_MANIFEST_MAX_BYTES, read_bounded};
use crate::bundle::Bundle;
use crate::digest::{Algorithm, Digest};
use crate::manifest::MANIFEST_MAX_BYTES;

/// Signature images of one layout that are looked at: those of a hundred images.
const IMAGES_MAX: usize = 128;

/// Small blobs of a layout that are looked at for bundles that its index does not name.
const UNLISTED_MAX: usize = 4096;
/// The manifest of a bundle has less than 2 KiB.
const UNLISTED_MAX_BYTES: u64 = 16 << 10;

/// What an index says where signatures are.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// Signature images, and bundles.
    pub(crate) manifests: Vec<Digest>,
    /// Lists of all that refers to an image.
    pub(crate) lists: Vec<Digest>,
}

/// All signatures that came with a layout, of whichever image they are: the payloads tell.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    images: Vec<SignatureImage>,
    problems: Vec<String>,
}

impl Gathered {
    /// Reads the signatures of a layout, and the files beside it.
    pub(crate) fn read(bundle: &Bundle, marks: &Marks) -> Self {
        let mut gathered = Self::default();
        let mut manifests = marks.manifests.clone();
        for list in marks.lists.iter().take(IMAGES_MAX) {
            match read_blob(bundle, list, MANIFEST_MAX_BYTES) {
                Ok(list) => {
                    let found = signature_referrers(&[list]);
                    manifests.extend(found.digests);
                    gathered.problems.extend(found.problems);
                }
                Err(problem) => gathered.problems.push(problem),
            }
        }
        manifests.extend(unlisted_bundles(bundle));
        let mut seen = BTreeSet::new();
        manifests.retain(|digest| seen.insert(digest.clone()));
        for digest in manifests.iter().take(IMAGES_MAX) {
            if let Err(problem) = gathered.add(bundle, digest) {
                gathered.problems.push(problem);
            }
        }
        for found in [payload_beside(bundle.path()), bundle_beside(bundle.path())] {
            match found {
                Ok(image) => gathered.images.extend(image),
                Err(problem) => gathered.problems.push(problem),
            }
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
        let manifest = read_blob(bundle, digest, SIGNATURE_MANIFEST_MAX_BYTES)?;
        let parts = parts(&manifest)?;
        let found: usize = self.images.iter().map(|image| image.signatures.len()).sum();
        if found + parts.len() > SIGNATURES_MAX + 1 {
            return Err("there are too many signatures".to_owned());
        }
        let contents = parts.iter().map(|part| match part.known() {
            Some(content) => Ok(content),
            None => read_blob(bundle, &part.digest, part.max_bytes),
        });
        let contents = contents.collect::<Result<_, _>>()?;
        let manifest = (digest.clone(), manifest);
        self.images
            .push(SignatureImage::new(manifest, &parts, contents));
        Ok(())
    }
}

/// Bundles that are in a layout without an entry in its index, as `cosign save` of cosign 3 writes them: only what they
/// refer to says whose they are.
fn unlisted_bundles(bundle: &Bundle) -> Vec<Digest> {
    let dir = format!("blobs/{}", Algorithm::Sha256.name());
    let mut found = Vec::new();
    for hex in bundle.small_files(&dir, UNLISTED_MAX_BYTES, UNLISTED_MAX) {
        let digest = format!("{}:{hex}", Algorithm::Sha256.name()).parse();
        let Ok(digest) = digest else { continue };
        let manifest = read_blob(bundle, &digest, UNLISTED_MAX_BYTES);
        if manifest.is_ok_and(|manifest| holds_bundle(&manifest)) {
            found.push(digest);
        }
    }
    found
}

fn read_blob(bundle: &Bundle, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>, String> {
    let name = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
    let content = bundle.read(&name, max_bytes).map_err(|e| e.to_string())?;
    match digest.matches(&content) {
        true => Ok(content),
        false => Err(format!("`{name}` is damaged or forged")),
    }
}

/// `PATH.sig` and `PATH.payload`.
fn payload_beside(path: &Path) -> Result<Option<SignatureImage>, String> {
    let (signature_path, payload_path) = (beside(path, ".sig"), beside(path, ".payload"));
    let payload = read_beside(&payload_path, PAYLOAD_MAX_BYTES)?;
    let base64 = read_beside(&signature_path, PAYLOAD_MAX_BYTES)?;
    let (payload, base64) = match (payload, base64) {
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

/// `PATH.sigstore.json`.
fn bundle_beside(path: &Path) -> Result<Option<SignatureImage>, String> {
    let bundle = read_beside(&beside(path, ".sigstore.json"), BUNDLE_MAX_BYTES)?;
    Ok(bundle.map(|bundle| SignatureImage::of_bundle(bundle, None)))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    // A directory may be given with a slash at its end.
    let mut name: OsString = path.components().collect::<PathBuf>().into();
    name.push(suffix);
    PathBuf::from(name)
}

fn read_beside(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, String> {
    match read_bounded(path, max_bytes) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("cannot read {}: {e}", path.display())),
    }
}
