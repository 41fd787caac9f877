//! Which image a container runs: noted in the annotations of the OCI spec that it is started with, which its supervisor
//! tells as long as it runs. What the image's name means now may be another one.

use std::collections::{BTreeMap, HashMap};

use podling_images::{Image, Reference};

const NAME: &str = "podling.io/image";
const ID: &str = "podling.io/image-id";

/// The image a container runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    /// The reference, normalised.
    pub image: String,
    /// `<repository>@sha256:…`.
    pub image_id: String,
}

impl ImageFacts {
    /// Those of an image that a manifest calls by this name.
    #[must_use]
    pub fn of(name: &str, image: &Image) -> Self {
        let pinned = image.pinned_reference();
        Self {
            image: Reference::parse(name)
                .map_or_else(|_| name.to_owned(), |reference| reference.to_string()),
            image_id: pinned.map_or_else(
                || image.digest.to_string(),
                |reference| reference.to_string(),
            ),
        }
    }

    /// As a spec has them.
    #[must_use]
    pub fn annotations(self) -> HashMap<String, String> {
        HashMap::from([
            (NAME.to_owned(), self.image),
            (ID.to_owned(), self.image_id),
        ])
    }

    /// Those that a container was started with; none if it never was, or by an agent that did not note them.
    #[must_use]
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Option<Self> {
        Some(Self {
            image: annotations.get(NAME)?.clone(),
            image_id: annotations.get(ID)?.clone(),
        })
    }
}
