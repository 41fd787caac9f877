//! Parses manifests, indexes and configurations, and checks that they describe an image that can run here.

use std::collections::HashMap;

use oci_spec::image::{Descriptor as OciDescriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde::de::IgnoredAny;

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
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
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
    pub(crate) annotations: HashMap<String, String>,
}

/// A manifest or an index.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
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
    manifests: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

pub(crate) fn parse_document(json: &[u8]) -> Result<Document, ManifestError> {
    let probe: Probe = parse("manifest", json)?;
    if probe.schema_version == Some(1) || probe.fs_layers.is_some() {
        return Err(unusable(
            "the image has a manifest of Docker's old schema 1; push it again with a current tool",
        ));
    }
    let is_index = probe.manifests.is_some();
    let is_manifest = probe.config.is_some() || probe.layers.is_some();
    let kind_fits = match probe.media_type.as_deref() {
        None => is_index != is_manifest,
        Some(OCI_INDEX | DOCKER_INDEX) => is_index && !is_manifest,
        Some(OCI_MANIFEST | DOCKER_MANIFEST) => is_manifest && !is_index,
        Some(other) => {
            return Err(ManifestError::Unusable(format!(
                "the manifest has the media type `{other}`, which is not supported"
            )));
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
    check_manifest(&manifest)?;
    Ok(Document::Manifest(manifest))
}

fn check_manifest(manifest: &Manifest) -> Result<(), ManifestError> {
    let config = &manifest.config;
    if !matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
        return Err(ManifestError::Unusable(format!(
            "this is not a container image: its configuration has the media type `{}`",
            config.media_type
        )));
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
            "layer {} has the media type `{}`, which is not supported",
            layer.digest, layer.media_type
        ))),
        None => Ok(()),
    }
}

/// The entry of an index that fits best. An entry without a platform fits if it is the only one.
pub(crate) fn choose<'a>(
    entries: &'a [Descriptor],
    wanted: &Platform,
) -> Result<&'a Descriptor, ManifestError> {
    if let [only] = entries
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let ranked = entries.iter().filter_map(|entry| {
        let rank = wanted.rank(entry.platform.as_ref()?)?;
        Some((rank, entry))
    });
    // The first of equals.
    let best = ranked.reduce(|best, next| if next.0 < best.0 { next } else { best });
    best.map(|(_, entry)| entry).ok_or_else(|| {
        let mut offered: Vec<_> = entries
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .map(Platform::to_string)
            .filter(|name| name != "unknown/unknown")
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
    if (&offered.os, &offered.architecture) != (&wanted.os, &wanted.architecture) {
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
        annotations: oci.annotations().clone().unwrap_or_default(),
    })
}

fn unusable(reason: &str) -> ManifestError {
    ManifestError::Unusable(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn entry(media_type: &str, platform: Option<Value>) -> Value {
        let digest = Digest::sha256(platform.clone().unwrap_or_default().to_string().as_bytes());
        let mut entry = json!({"mediaType": media_type, "digest": digest.to_string(), "size": 2});
        if let Some(platform) = platform {
            entry["platform"] = platform;
        }
        entry
    }

    fn manifest() -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": entry(OCI_CONFIG, None),
            "layers": [entry("application/vnd.oci.image.layer.v1.tar+gzip", None)],
        })
    }

    fn index(platforms: &[(&str, &str)]) -> Vec<Descriptor> {
        let entries: Vec<_> = platforms
            .iter()
            .map(|(os, architecture)| {
                entry(
                    OCI_MANIFEST,
                    Some(json!({"os": os, "architecture": architecture})),
                )
            })
            .collect();
        let json = json!({"schemaVersion": 2, "manifests": entries}).to_string();
        match parse_document(json.as_bytes()).unwrap() {
            Document::Index(entries) => entries,
            Document::Manifest(_) => panic!("an index was read as a manifest"),
        }
    }

    fn refusal(document: &Value) -> String {
        let error = parse_document(document.to_string().as_bytes()).unwrap_err();
        error.to_string()
    }

    #[test]
    fn chooses_the_platform_and_says_what_there_is() {
        let entries = index(&[
            ("unknown", "unknown"),
            ("linux", "arm64"),
            ("linux", "amd64"),
        ]);
        let amd64 = "linux/amd64".parse().unwrap();
        let chosen = choose(&entries, &amd64).unwrap();
        assert_eq!(chosen.platform.as_ref(), Some(&amd64));
        let error = choose(&entries, &"linux/s390x".parse().unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no image for linux/s390x; there are images for linux/amd64, linux/arm64"
        );
    }

    #[test]
    fn a_document_that_is_both_manifest_and_index_is_refused() {
        let mut both = manifest();
        both["manifests"] = json!([]);
        assert!(refusal(&both).contains("neither clearly"));
        both["mediaType"] = Value::Null;
        assert!(refusal(&both).contains("neither clearly"));
    }

    #[test]
    fn what_is_no_image_is_refused_with_the_reason() {
        let mut artifact = manifest();
        artifact["config"]["mediaType"] = json!("application/vnd.example+json");
        assert!(refusal(&artifact).contains("not a container image"));
        let mut encrypted = manifest();
        encrypted["layers"][0]["mediaType"] =
            json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
        assert!(refusal(&encrypted).contains("+encrypted"));
        let mut empty = manifest();
        empty["layers"] = json!([]);
        assert!(refusal(&empty).contains("0 layers"));
        assert!(refusal(&json!({"schemaVersion": 1, "fsLayers": []})).contains("schema 1"));
        assert!(refusal(&json!({"schemaVersion": 2})).contains("neither"));
    }

    #[test]
    fn a_configuration_must_fit_its_manifest_and_the_machine() {
        let config = json!({
            "os": "linux", "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(b"").to_string()]},
        })
        .to_string();
        let amd64 = "linux/amd64".parse().unwrap();
        assert!(parse_config(config.as_bytes(), 1, &amd64).is_ok());
        let error = parse_config(config.as_bytes(), 2, &amd64).unwrap_err();
        assert!(error.to_string().contains("2 layers"));
        assert!(parse_config(config.as_bytes(), 1, &"linux/arm64".parse().unwrap()).is_err());
    }

    proptest! {
        /// Any damage to a manifest, index or configuration gives a document or an error.
        #[test]
        fn damaged_documents_end_in_peace(
            which in 0_usize..3,
            damage in proptest::collection::vec((0_usize..1000, any::<u8>()), 1..6),
            cut in 0_usize..1000,
        ) {
            let index = json!({"schemaVersion": 2, "manifests": [manifest()["config"]]});
            let config = json!({
                "os": "linux", "architecture": "amd64", "created": "2026-01-01T00:00:00Z",
                "config": {"User": "a:b", "ExposedPorts": {"80/tcp": {}}, "Labels": {"a": "b"}},
                "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(b"").to_string()]},
            });
            let mut json = [manifest(), index, config][which].to_string().into_bytes();
            for (at, byte) in damage {
                let at = at % json.len();
                json[at] = byte;
            }
            json.truncate(cut.max(10));
            drop(parse_document(&json));
            drop(parse_config(&json, 1, &Platform::current()));
        }
    }
}
