//! Parses manifests, indexes and configurations, and checks that they describe an image that can run here.

use std::collections::HashMap;

use oci_spec::image::{Descriptor as OciDescriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::artifact;
use crate::digest::{Digest, DigestError};
use crate::platform::Platform;

/// The largest manifest or index: registries refuse larger ones (distribution-spec, "Pushing Manifests").
pub(crate) const MANIFEST_MAX_BYTES: u64 = 4 << 20;
/// The largest configuration.
pub(crate) const CONFIG_MAX_BYTES: u64 = 8 << 20;
/// An index may point to an index; this deep.
pub(crate) const INDEX_DEPTH_MAX: usize = 4;
/// Overlayfs stacks at most this many layers (`OVL_MAX_STACK`).
const LAYERS_MAX: usize = 500;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// What `docker pull` of before 2016 made; also `v1+json` and `v1+prettyjws`.
const DOCKER_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+";
/// Of release candidates of image-spec 1.1; ORAS wrote it for a year.
const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
/// The configuration of what has none (image-spec, manifest.md, "Guidelines for Artifact Usage").
pub(crate) const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// The digest of the index that an image was chosen from, where the layout holds only that one image of it.
pub(crate) const INDEX_ANNOTATION: &str = "io.podling.image.index";
/// On entries of an index that tell of another entry.
const DOCKER_REFERENCE_TYPE: &str = "vnd.docker.reference.type";
const LAYER_PREFIXES: [&str; 4] = [
    OCI_LAYER,
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];
const LAYER_SUFFIXES: [&str; 5] = ["", "+gzip", "+zstd", ".gzip", ".zstd"];

/// A document that is no image, or none for this machine.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not the JSON it should be.
    #[error("the {what} is malformed")]
    Json {
        /// `manifest`, `index` or `configuration`.
        what: &'static str,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A digest in it is none.
    #[error("the {what} names a digest that cannot be used")]
    Digest {
        /// `manifest`, `index` or `configuration`.
        what: &'static str,
        /// Why.
        #[source]
        source: DigestError,
    },
    /// It is no image that can be used, for the reason given.
    #[error("{0}")]
    Unusable(String),
    /// The index has nothing for the platform.
    #[error("there is no image for {wanted}; there are images for {offered}")]
    NoPlatform {
        /// What was looked for.
        wanted: Platform,
        /// What there is.
        offered: String,
    },
}

/// A pointer to content.
#[derive(Debug, Clone)]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) platform: Option<Platform>,
    /// Set when it points to something else than an image (image-spec, descriptor.md).
    pub(crate) artifact_type: Option<String>,
    pub(crate) annotations: HashMap<String, String>,
}

/// A manifest or an index.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Box<Manifest>),
    Index(Vec<Descriptor>),
}

/// The parts of an image.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    /// The lowest first.
    pub(crate) layers: Vec<Descriptor>,
}

/// A configuration that fits its manifest.
#[derive(Debug)]
pub(crate) struct Configuration {
    /// The diff IDs of the layers, the lowest first.
    pub(crate) diff_ids: Vec<Digest>,
}

/// What tells the kinds of documents apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    schema_version: Option<u32>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    manifests: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

/// Reads a manifest or an index, and checks that it can be used.
pub(crate) fn parse_document(json: &[u8]) -> Result<Document, ManifestError> {
    let probe: Probe = parse("manifest", json)?;
    let media_type = probe.media_type.as_deref();
    if probe.schema_version == Some(1)
        || probe.fs_layers.is_some()
        || media_type.is_some_and(|t| t.starts_with(DOCKER_SCHEMA_1))
    {
        return Err(unusable(
            "the image has a manifest of Docker's old schema 1, which names no configuration; convert it once with \
             `skopeo copy --format v2s2 docker://OLD docker://NEW`, or push it again with a current tool",
        ));
    }
    if media_type == Some(OCI_ARTIFACT) {
        let kind = probe.artifact_type.as_deref().unwrap_or(OCI_ARTIFACT);
        return Err(ManifestError::Unusable(artifact::refusal(kind)));
    }
    let is_index = probe.manifests.is_some();
    let is_manifest = probe.config.is_some() || probe.layers.is_some();
    let kind_fits = match media_type {
        None => is_index != is_manifest,
        Some(OCI_INDEX | DOCKER_INDEX) => is_index && !is_manifest,
        Some(OCI_MANIFEST | DOCKER_MANIFEST) => is_manifest && !is_index,
        Some(other) => {
            return Err(ManifestError::Unusable(match artifact::name(other) {
                Some(_) => artifact::refusal(other),
                None => {
                    format!("the manifest has the media type `{other}`, which is not supported")
                }
            }));
        }
    };
    // A document that can be read both ways could name one image to us and another to a scanner (CVE-2021-41190).
    if !kind_fits {
        return Err(unusable(
            "the manifest is neither clearly an image nor clearly an index",
        ));
    }
    if is_index {
        let index: ImageIndex = parse("index", json)?;
        let entries = index.manifests().iter().map(|d| descriptor("index", d));
        return Ok(Document::Index(entries.collect::<Result<_, _>>()?));
    }
    let manifest: ImageManifest = parse("manifest", json)?;
    let manifest = Manifest {
        config: descriptor("manifest", manifest.config())?,
        layers: manifest
            .layers()
            .iter()
            .map(|d| descriptor("manifest", d))
            .collect::<Result<_, _>>()?,
    };
    check_manifest(&manifest, probe.artifact_type.as_deref())?;
    Ok(Document::Manifest(Box::new(manifest)))
}

fn check_manifest(manifest: &Manifest, artifact_type: Option<&str>) -> Result<(), ManifestError> {
    let config = &manifest.config;
    let is_config = |media_type: &str| matches!(media_type, OCI_CONFIG | DOCKER_CONFIG);
    // What the author calls it says most; then what only such artifacts hold.
    let config_type = Some(config.media_type.as_str()).filter(|t| *t != OCI_EMPTY);
    let layer_types = manifest.layers.iter().map(|l| l.media_type.as_str());
    let named_layer = layer_types.clone().find(|t| artifact::name(t).is_some());
    let other = artifact_type
        .or(config_type)
        .filter(|t| !is_config(t))
        .or(named_layer)
        .or_else(|| (!is_config(&config.media_type)).then_some(OCI_EMPTY));
    if let Some(kind) = other {
        return Err(ManifestError::Unusable(artifact::refusal(kind)));
    }
    if config.size > CONFIG_MAX_BYTES {
        return Err(unusable("the configuration is larger than 8 MiB"));
    }
    if manifest.layers.is_empty() || manifest.layers.len() > LAYERS_MAX {
        return Err(ManifestError::Unusable(format!(
            "the image has {} layers; 1 to {LAYERS_MAX} are supported",
            manifest.layers.len()
        )));
    }
    let is_layer = |media_type: &str| {
        LAYER_PREFIXES.iter().any(|prefix| {
            media_type
                .strip_prefix(prefix)
                .is_some_and(|suffix| LAYER_SUFFIXES.contains(&suffix))
        })
    };
    match manifest.layers.iter().find(|l| !is_layer(&l.media_type)) {
        Some(layer) => Err(ManifestError::Unusable(format!(
            "layer {} has the media type `{}`, which is not supported{}",
            layer.digest,
            layer.media_type,
            match layer.media_type.ends_with("+encrypted") {
                true =>
                    "; decrypt the image first, such as with `skopeo copy --decryption-key KEY`",
                false => "",
            }
        ))),
        None => Ok(()),
    }
}

/// The entry of an index that fits best. An entry without a platform fits if it is the only one. Signatures,
/// attestations and other artifacts that stand beside the images are passed over.
pub(crate) fn choose<'a>(
    entries: &'a [Descriptor],
    wanted: &Platform,
) -> Result<&'a Descriptor, ManifestError> {
    let images: Vec<_> = entries.iter().filter(|e| is_image_entry(e)).collect();
    if let [only] = images[..]
        && only.platform.is_none()
    {
        return Ok(only);
    }
    if let ([], Some(first)) = (&images[..], entries.first()) {
        let kind = first.artifact_type.as_ref().unwrap_or(&first.media_type);
        return Err(ManifestError::Unusable(artifact::refusal(kind)));
    }
    let ranked = images.iter().filter_map(|entry| {
        let rank = wanted.rank(entry.platform.as_ref()?)?;
        Some((rank, *entry))
    });
    // The first of equals.
    let best = ranked.reduce(|best, next| if next.0 < best.0 { next } else { best });
    best.map(|(_, entry)| entry).ok_or_else(|| {
        let mut offered: Vec<_> = images
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .map(Platform::to_string)
            .collect();
        offered.sort();
        offered.dedup();
        ManifestError::NoPlatform {
            wanted: wanted.clone(),
            offered: if offered.is_empty() {
                "no named platform".to_owned()
            } else {
                offered.join(", ")
            },
        }
    })
}

/// Buildkit's attestations stand in the index as images of an unknown platform.
pub(crate) fn is_image_entry(entry: &Descriptor) -> bool {
    let is_unknown = |p: &Platform| p.os == "unknown" && p.architecture == "unknown";
    let kinds = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX];
    entry.artifact_type.is_none()
        && kinds.contains(&entry.media_type.as_str())
        && !entry.platform.as_ref().is_some_and(is_unknown)
        && !entry.annotations.contains_key(DOCKER_REFERENCE_TYPE)
}

/// Reads a configuration, and checks that it fits its manifest and can run on the platform.
pub(crate) fn parse_config(
    json: &[u8],
    layer_count: usize,
    wanted: &Platform,
) -> Result<Configuration, ManifestError> {
    let config: ImageConfiguration = parse("configuration", json)?;
    let offered = Platform {
        os: config.os().to_string(),
        architecture: config.architecture().to_string(),
        variant: config.variant().clone(),
    };
    if !wanted.runs(&offered) {
        return Err(ManifestError::NoPlatform {
            wanted: wanted.clone(),
            offered: offered.to_string(),
        });
    }
    let diff_ids: Vec<Digest> = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()
        .map_err(|source| ManifestError::Digest {
            what: "configuration",
            source,
        })?;
    if diff_ids.len() != layer_count {
        return Err(ManifestError::Unusable(format!(
            "the manifest has {layer_count} layers, but the configuration has {}",
            diff_ids.len()
        )));
    }
    Ok(Configuration { diff_ids })
}

/// What a document of a registry or a layout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentKind {
    /// The manifest of an image that can be used, with this many layers.
    Image(usize),
    /// An index with this many entries.
    Index(usize),
}

/// Tells what a document is, without fetching or loading anything.
///
/// # Errors
/// When it is neither an image nor an index that can be used here: the same error with which a pull or a load ends.
pub fn check_document(json: &[u8]) -> Result<DocumentKind, ManifestError> {
    Ok(match parse_document(json)? {
        Document::Manifest(manifest) => DocumentKind::Image(manifest.layers.len()),
        Document::Index(entries) => {
            choose(&entries, &Platform::current())?;
            DocumentKind::Index(entries.len())
        }
    })
}

/// Tells whether a configuration fits a manifest with so many layers, and runs on a platform.
///
/// # Errors
/// When it does not: the same error with which a pull or a load ends.
pub fn check_config(json: &[u8], layers: usize, platform: &Platform) -> Result<(), ManifestError> {
    parse_config(json, layers, platform).map(drop)
}

fn parse<T: for<'de> Deserialize<'de>>(
    what: &'static str,
    json: &[u8],
) -> Result<T, ManifestError> {
    serde_json::from_slice(json).map_err(|source| ManifestError::Json { what, source })
}

fn descriptor(what: &'static str, oci: &OciDescriptor) -> Result<Descriptor, ManifestError> {
    let digest = oci.digest().to_string().parse();
    Ok(Descriptor {
        media_type: oci.media_type().to_string(),
        digest: digest.map_err(|source| ManifestError::Digest { what, source })?,
        size: oci.size(),
        platform: oci.platform().as_ref().map(|platform| Platform {
            os: platform.os().to_string(),
            architecture: platform.architecture().to_string(),
            variant: platform.variant().clone(),
        }),
        artifact_type: oci.artifact_type().as_ref().map(ToString::to_string),
        annotations: oci.annotations().clone().unwrap_or_default(),
    })
}

fn unusable(reason: &str) -> ManifestError {
    ManifestError::Unusable(reason.to_owned())
}

#[cfg(test)]
mod tests;
