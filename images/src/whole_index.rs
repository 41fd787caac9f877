//! All that an index names, for who copies it whole: the images for all platforms, and what stands beside them, such as
//! attestations.
//!
//! Nothing of it is judged or unpacked here, so whatever has the form of a manifest will do, also of kinds that cannot
//! run. Documents are found one after the other, since each tells of the next:
//!
//! ```text
//! index ─► read (from the store, or a registry) ─► index below ─► read ─► …
//!                                               └► manifest ─► configuration, layers: blobs
//! ```

use std::collections::{HashSet, VecDeque};

use serde::Deserialize;

use crate::digest::Digest;
use crate::image::LayerBlob;
use crate::manifest::{INDEX_DEPTH_MAX, ManifestError};

/// An index has one or two for each platform; of those of Docker Hub the largest have thirty.
const DOCUMENTS_MAX: usize = 1000;
/// As many as a thousand images of average size have.
const BLOBS_MAX: usize = 20_000;

/// What was found.
#[derive(Debug, Clone, Default)]
pub(crate) struct WholeIndex {
    /// The index itself, then indexes and manifests below it, each once.
    pub(crate) documents: Vec<Digest>,
    /// Configurations and layers, each once.
    pub(crate) blobs: Vec<LayerBlob>,
}

/// The way through an index.
#[derive(Debug)]
pub(crate) struct Walk {
    todo: VecDeque<(Digest, usize)>,
    seen: HashSet<Digest>,
    found: WholeIndex,
}

/// An index or a manifest, of whatever is in it.
#[derive(Deserialize)]
struct AnyDocument {
    manifests: Option<Vec<Named>>,
    config: Option<Named>,
    layers: Option<Vec<Named>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
}

impl Walk {
    /// Begins with an index.
    pub(crate) fn new(index: Digest) -> Self {
        Self {
            seen: HashSet::from([index.clone()]),
            todo: VecDeque::from([(index, 0)]),
            found: WholeIndex::default(),
        }
    }

    /// The document that is to be read next; none when all is found.
    pub(crate) fn next(&self) -> Option<&Digest> {
        self.todo.front().map(|(digest, _)| digest)
    }

    /// Takes the content of the next document, which must have its digest.
    ///
    /// # Errors
    /// When it is neither an index nor a manifest, or names more than any honest one.
    pub(crate) fn take(&mut self, json: &[u8]) -> Result<(), ManifestError> {
        let Some((digest, depth)) = self.todo.pop_front() else {
            return Ok(());
        };
        let document: AnyDocument =
            serde_json::from_slice(json).map_err(|source| ManifestError::Json {
                what: "manifest",
                source,
            })?;
        match document {
            AnyDocument {
                manifests: Some(below),
                config: None,
                layers: None,
            } => self.descend(below, depth + 1)?,
            AnyDocument {
                manifests: None,
                config: Some(config),
                layers,
            } => self.note(std::iter::once(config).chain(layers.unwrap_or_default()))?,
            _ => return unusable(format!("{digest} is neither clearly an image nor an index")),
        }
        self.found.documents.push(digest);
        Ok(())
    }

    /// All that was found.
    pub(crate) fn finish(self) -> WholeIndex {
        self.found
    }

    fn descend(&mut self, below: Vec<Named>, depth: usize) -> Result<(), ManifestError> {
        if depth > INDEX_DEPTH_MAX {
            return unusable("indexes are nested too deep".to_owned());
        }
        for named in below {
            if self.seen.insert(named.digest.clone()) {
                self.todo.push_back((named.digest, depth));
            }
        }
        match self.todo.len() + self.found.documents.len() > DOCUMENTS_MAX {
            true => unusable(format!("the index names more than {DOCUMENTS_MAX} images")),
            false => Ok(()),
        }
    }

    fn note(&mut self, blobs: impl Iterator<Item = Named>) -> Result<(), ManifestError> {
        for blob in blobs {
            if self.seen.insert(blob.digest.clone()) {
                self.found.blobs.push(LayerBlob {
                    digest: blob.digest,
                    media_type: blob.media_type,
                    size_bytes: blob.size,
                });
            }
        }
        match self.found.blobs.len() > BLOBS_MAX {
            true => unusable(format!(
                "the index's images have more than {BLOBS_MAX} parts"
            )),
            false => Ok(()),
        }
    }
}

fn unusable<T>(reason: String) -> Result<T, ManifestError> {
    Err(ManifestError::Unusable(reason))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn named(content: &[u8]) -> Value {
        json!({"mediaType": "any", "digest": Digest::sha256(content).to_string(), "size": content.len()})
    }

    fn manifest(parts: &[&[u8]]) -> Vec<u8> {
        let layers: Vec<_> = parts[1..].iter().map(|part| named(part)).collect();
        json!({"config": named(parts[0]), "layers": layers})
            .to_string()
            .into_bytes()
    }

    fn index(documents: &[&[u8]]) -> Vec<u8> {
        let manifests: Vec<_> = documents.iter().map(|document| named(document)).collect();
        json!({"manifests": manifests}).to_string().into_bytes()
    }

    fn walk(documents: &[&[u8]]) -> Result<WholeIndex, ManifestError> {
        let mut walk = Walk::new(Digest::sha256(documents[0]));
        while let Some(digest) = walk.next() {
            let json = documents.iter().find(|json| digest.matches(json)).unwrap();
            walk.take(json)?;
        }
        Ok(walk.finish())
    }

    #[test]
    fn all_documents_and_blobs_are_found_once() {
        let (one, two) = (
            manifest(&[b"c1", b"base"]),
            manifest(&[b"c2", b"base", b"top"]),
        );
        let below = index(&[&two, &one]);
        let top = index(&[&one, &below, &one]);
        let found = walk(&[&top, &below, &one, &two]).unwrap();
        let digests = |all: &[&[u8]]| all.iter().map(|c| Digest::sha256(c)).collect::<Vec<_>>();
        assert_eq!(found.documents, digests(&[&top, &one, &below, &two]));
        let blobs: Vec<_> = found.blobs.into_iter().map(|blob| blob.digest).collect();
        assert_eq!(blobs, digests(&[b"c1", b"base", b"c2", b"top"]));
    }

    #[test]
    fn an_index_nested_too_deep_or_of_too_many_images_is_refused() {
        let mut all = vec![manifest(&[b"c"])];
        for _ in 0..=INDEX_DEPTH_MAX {
            let top = index(&[all.last().unwrap()]);
            all.push(top);
        }
        let all: Vec<&[u8]> = all.iter().rev().map(Vec::as_slice).collect();
        let error = walk(&all).unwrap_err().to_string();
        assert!(error.contains("too deep"), "{error}");
        assert_eq!(walk(&all[1..]).unwrap().blobs.len(), 1);

        let many: Vec<_> = (0..=DOCUMENTS_MAX).map(|i| i.to_string()).collect();
        let many: Vec<_> = many.iter().map(|text| text.as_bytes()).collect();
        let error = walk(&[&index(&many)]).unwrap_err().to_string();
        assert!(error.contains("more than 1000 images"), "{error}");
    }

    #[test]
    fn what_may_be_both_or_is_neither_is_refused() {
        for json in [
            json!({}),
            json!({"manifests": [], "layers": []}),
            json!({"manifests": [], "config": named(b"c")}),
            json!({"layers": [named(b"l")]}),
        ] {
            let json = json.to_string();
            let error = walk(&[json.as_bytes()]).unwrap_err().to_string();
            assert!(error.contains("neither clearly"), "{json}: {error}");
        }
    }
}
