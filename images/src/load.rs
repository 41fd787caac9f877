//! Images from files: OCI layout directory, OCI archive, docker-archive.
//!
//! They are told apart by content: `oci-layout` and `index.json` make an OCI layout, `manifest.json` a docker-archive
//! (`docker save`, `podman save`). An archive that is both (Docker since 25) is read as an OCI layout, which keeps the
//! true digest of the manifest. Archives may be compressed.
//!
//! Names come from the annotations `io.containerd.image.name` and `org.opencontainers.image.ref.name`, or from
//! `RepoTags`, or from the caller. A name that is only a tag (as umoci writes it) is not enough.

mod error;
mod layer;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::bundle::{Bundle, BundleError};
use crate::compression::Compression;
use crate::digest::Digest;
use crate::image::Image;
use crate::manifest::{
    self, CONFIG_MAX_BYTES, Descriptor, Document, INDEX_ANNOTATION, INDEX_DEPTH_MAX,
    MANIFEST_MAX_BYTES, Manifest, ManifestError, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST,
};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::{Held, IMAGE_NAME, ImageStore, REF_NAME, Record, Session};
use crate::trust::{
    Distrust, EntryKind, Gathered, Marks, Origin, Policy, PublicKey, Rules, SignatureImage,
    Subject, Trust, Verdict, entry_kind,
};
use crate::unpack::Limits;

pub use error::LoadError;

/// A decompressed copy of a compressed archive may hold this many layers of the largest size allowed.
const ARCHIVE_LAYERS: u64 = 4;
/// What an archive from a pipe is called.
const STREAM: &str = "/dev/stdin";
const NAME_ANNOTATIONS: [&str; 2] = [IMAGE_NAME, REF_NAME];

/// How to load.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The name to give to the image, instead of those in the archive. The archive must then hold one image.
    pub reference: Option<Reference>,
    /// Take images of this platform instead of this machine's.
    pub platform: Option<Platform>,
    /// What a layer may ask for.
    pub limits: Limits,
    /// Which images may come; without one, all.
    pub policy: Option<Arc<Policy>>,
    /// Ask for a signature whatever the policy says of files: by one of these keys, for the repository of the image; with
    /// none, by those that the policy has for the image's registry.
    pub require_signature: Option<Vec<PublicKey>>,
    /// Of the signatures by these keys, take one that names no image, too.
    pub accept_unnamed: bool,
}

impl ImageStore {
    /// Loads the images of an OCI layout directory, an OCI archive or a docker-archive, told apart by content.
    pub fn load(&self, path: &Path, options: &LoadOptions) -> Result<Vec<Image>, LoadError> {
        let loaded = self.load_path(path, options);
        loaded.map_err(|e| e.or_no_space(path, self.dir()))
    }

    fn load_path(&self, path: &Path, options: &LoadOptions) -> Result<Vec<Image>, LoadError> {
        let session = Session::begin(self)?;
        let bundle = Bundle::open(path, &session.temporary(), archive_max_bytes(options))?;
        let absolute = path.canonicalize().map_err(|source| BundleError::Io {
            action: "find",
            path: path.to_owned(),
            source,
        })?;
        self.load_bundle(&session, &bundle, absolute, options)
    }

    /// Loads the images of an archive that comes from a pipe. The policy knows it by the path `/dev/stdin`.
    ///
    /// # Errors
    /// As with [`load`](Self::load).
    pub fn load_stream(
        &self,
        input: impl Read,
        options: &LoadOptions,
    ) -> Result<Vec<Image>, LoadError> {
        let path = Path::new(STREAM);
        let load = || {
            let session = Session::begin(self)?;
            let max_bytes = archive_max_bytes(options);
            let bundle = Bundle::open_stream(path, input, &session.temporary(), max_bytes)?;
            self.load_bundle(&session, &bundle, path.to_owned(), options)
        };
        load().map_err(|e: LoadError| e.or_no_space(path, self.dir()))
    }

    fn load_bundle(
        &self,
        session: &Session,
        bundle: &Bundle,
        path: PathBuf,
        options: &LoadOptions,
    ) -> Result<Vec<Image>, LoadError> {
        let load = Load {
            path,
            session,
            bundle,
            options,
            platform: options.platform.clone().unwrap_or_else(Platform::current),
        };
        let records = if bundle.has("oci-layout") && bundle.has("index.json") {
            load.oci_layout()?
        } else if bundle.has("manifest.json") {
            load.docker_archive()?
        } else {
            return Err(LoadError::UnknownFormat {
                path: bundle.path().to_owned(),
            });
        };
        // All images are here and whole before the first becomes visible.
        session.commit(&records)?;
        let mut images = Vec::new();
        for record in &records {
            let Some(mut image) = self.resolve(&record.reference)? else {
                continue;
            };
            let is_loaded = |name: &Reference| records.iter().any(|r| r.reference == *name);
            image.references.retain(is_loaded);
            if images.iter().all(|old: &Image| old.digest != image.digest) {
                images.push(image);
            }
        }
        Ok(images)
    }
}

fn archive_max_bytes(options: &LoadOptions) -> u64 {
    options.limits.layer_bytes.saturating_mul(ARCHIVE_LAYERS)
}

/// One run of [`ImageStore::load`].
struct Load<'a> {
    /// Absolute and without symbolic links, for the policy.
    path: PathBuf,
    session: &'a Session,
    bundle: &'a Bundle,
    options: &'a LoadOptions,
    platform: Platform,
}

/// An entry of docker-archive's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Load<'_> {
    fn oci_layout(&self) -> Result<Vec<Record>, LoadError> {
        let index = self.bundle.read("index.json", MANIFEST_MAX_BYTES)?;
        let entries = match manifest::parse_document(&index).map_err(self.unusable())? {
            Document::Index(entries) => entries,
            Document::Manifest(_) => {
                let reason = "`index.json` is a manifest instead of an index".to_owned();
                return Err(self.unusable()(ManifestError::Unusable(reason)));
            }
        };
        let (entries, signatures) = tell_apart(entries);
        let signatures = Gathered::read(self.bundle, &signatures);
        // One image may stand there once for each platform, under one name.
        let mut by_name: BTreeMap<Option<String>, Vec<Descriptor>> = BTreeMap::new();
        for entry in entries {
            let name = NAME_ANNOTATIONS
                .iter()
                .find_map(|key| entry.annotations.get(*key));
            by_name.entry(name.cloned()).or_default().push(entry);
        }
        self.check_count(by_name.len())?;
        let mut records = Vec::new();
        for (name, entries) in by_name {
            let reference = self.oci_name(name)?;
            let entry = manifest::choose(&entries, &self.platform).map_err(self.unusable())?;
            records.push(self.oci_image(&reference, entry, &signatures)?);
        }
        Ok(records)
    }

    fn check_count(&self, count: usize) -> Result<(), LoadError> {
        let path = self.bundle.path().to_owned();
        match count {
            0 => Err(LoadError::Empty { path }),
            1 => Ok(()),
            _ if self.options.reference.is_some() => Err(LoadError::SeveralImages { path, count }),
            _ => Ok(()),
        }
    }

    fn oci_name(&self, name: Option<String>) -> Result<Reference, LoadError> {
        if let Some(reference) = &self.options.reference {
            return Ok(reference.clone());
        }
        match name {
            Some(name) if name.contains(['/', ':', '@']) => self.parse_name(&name),
            tag => Err(LoadError::NoName {
                path: self.bundle.path().to_owned(),
                tag,
            }),
        }
    }

    fn parse_name(&self, name: &str) -> Result<Reference, LoadError> {
        Reference::parse(name).map_err(|source| LoadError::Name {
            path: self.bundle.path().to_owned(),
            source,
        })
    }

    fn oci_image(
        &self,
        reference: &Reference,
        entry: &Descriptor,
        signatures: &Gathered,
    ) -> Result<Record, LoadError> {
        let (json, manifest, digest, index) = self.find_manifest(entry)?;
        let index = match index {
            None => self.original_index(entry)?,
            index => index,
        };
        let trust = self.judge(reference, &digest, index.as_ref(), signatures)?;
        let config = self.blob(&manifest.config, CONFIG_MAX_BYTES)?;
        let diff_ids = self.diff_ids(&config, manifest.layers.len())?;
        self.hold(&diff_ids)?;
        for (layer, diff_id) in manifest.layers.iter().zip(&diff_ids) {
            let name = blob_name(&layer.digest);
            self.check_size(&name, layer.size, self.bundle.file(&name)?.1)?;
            self.add_layer(&name, Some(&layer.digest), diff_id)?;
        }
        self.session.put_blob(&digest, &json)?;
        self.session.put_blob(&manifest.config.digest, &config)?;
        for (digest, content) in signatures.images().iter().flat_map(|image| &image.blobs) {
            self.session.put_blob(digest, content)?;
        }
        let record = Record::new(reference, (digest, &manifest), index, diff_ids);
        Ok(record.trusted(trust))
    }

    /// Judges an image by the policy and by what the command asks, before any of its layers is unpacked.
    fn judge(
        &self,
        reference: &Reference,
        manifest: &Digest,
        index: Option<&Digest>,
        signatures: &Gathered,
    ) -> Result<Trust, LoadError> {
        let path = self.path.clone();
        let origin = match self.bundle.is_directory() {
            true => Origin::Oci { path },
            false => Origin::OciArchive { path },
        };
        let subject = Subject {
            image: reference,
            manifest,
            index,
        };
        let mut verdict = Verdict::Unchecked {};
        for rules in self.rules(&origin, reference)? {
            verdict = rules.judge(subject, &signatures.found())?;
        }
        let signatures = signatures.images().iter();
        Ok(Trust {
            origin,
            verdict,
            signatures: signatures.filter_map(SignatureImage::stored).collect(),
        })
    }

    /// The rules that an image must fulfil, those of the command last.
    fn rules(&self, origin: &Origin, reference: &Reference) -> Result<Vec<Rules>, Distrust> {
        let policy = self.options.policy.as_deref();
        let mut rules: Vec<_> = policy
            .map(|p| p.rules(origin, reference))
            .into_iter()
            .collect();
        match &self.options.require_signature {
            None => {}
            Some(keys) if !keys.is_empty() => {
                let accept_unnamed = self.options.accept_unnamed;
                rules.push(Rules::of_keys(reference, keys.clone(), accept_unnamed));
            }
            Some(_) => {
                let of_registry = policy.map(|p| p.rules(&Origin::Docker, reference));
                let of_registry = of_registry.filter(Rules::need_signatures);
                rules.push(of_registry.ok_or_else(|| Distrust::NoKey {
                    image: Box::new(reference.clone()),
                })?);
            }
        }
        Ok(rules)
    }

    /// The index that the image was chosen from before it was saved, if the file says so.
    fn original_index(&self, entry: &Descriptor) -> Result<Option<Digest>, LoadError> {
        let Some(text) = entry.annotations.get(INDEX_ANNOTATION) else {
            return Ok(None);
        };
        let what = "annotation";
        let digest: Digest = text
            .parse()
            .map_err(|source| self.unusable()(ManifestError::Digest { what, source }))?;
        let name = blob_name(&digest);
        let json = self.bundle.read(&name, MANIFEST_MAX_BYTES)?;
        if !digest.matches(&json) {
            return Err(self.mismatch(&name, digest, Digest::sha256(&json)));
        }
        // A name with this digest will mean the image: the index must say so itself.
        match manifest::parse_document(&json).map_err(self.unusable())? {
            Document::Index(entries) if entries.iter().any(|e| e.digest == entry.digest) => {
                self.session.put_blob(&digest, &json)?;
                Ok(Some(digest))
            }
            _ => {
                let reason = format!(
                    "the index {digest} does not hold the image {}",
                    entry.digest
                );
                Err(self.unusable()(ManifestError::Unusable(reason)))
            }
        }
    }

    /// Follows indexes down to the manifest for the platform. Gives its JSON, its digest, and that of the first index.
    fn find_manifest(
        &self,
        entry: &Descriptor,
    ) -> Result<(Vec<u8>, Manifest, Digest, Option<Digest>), LoadError> {
        let mut entry = entry.clone();
        let mut index = None;
        for _ in 0..=INDEX_DEPTH_MAX {
            let json = self.blob(&entry, MANIFEST_MAX_BYTES)?;
            match manifest::parse_document(&json).map_err(self.unusable())? {
                Document::Manifest(manifest) => return Ok((json, *manifest, entry.digest, index)),
                Document::Index(entries) => {
                    self.session.put_blob(&entry.digest, &json)?;
                    index.get_or_insert(entry.digest);
                    entry = manifest::choose(&entries, &self.platform)
                        .map_err(self.unusable())?
                        .clone();
                }
            }
        }
        let reason = "indexes are nested too deep".to_owned();
        Err(self.unusable()(ManifestError::Unusable(reason)))
    }

    fn docker_archive(&self) -> Result<Vec<Record>, LoadError> {
        let json = self.bundle.read("manifest.json", MANIFEST_MAX_BYTES)?;
        let images: Vec<DockerImage> =
            serde_json::from_slice(&json).map_err(|source| LoadError::DockerManifest {
                path: self.bundle.path().to_owned(),
                source,
            })?;
        self.check_count(images.len())?;
        let mut records = Vec::new();
        for image in images {
            let references = match &self.options.reference {
                Some(reference) => vec![reference.clone()],
                None => image
                    .repo_tags
                    .iter()
                    .flatten()
                    .map(|name| self.parse_name(name))
                    .collect::<Result<_, _>>()?,
            };
            let Some(first) = references.first() else {
                return Err(LoadError::NoName {
                    path: self.bundle.path().to_owned(),
                    tag: None,
                });
            };
            let record = self.docker_image(first, &image)?;
            records.extend(references.iter().map(|name| record.renamed(name)));
        }
        Ok(records)
    }

    /// The format has no manifest: it is written here, of the parts.
    fn docker_image(
        &self,
        reference: &Reference,
        image: &DockerImage,
    ) -> Result<Record, LoadError> {
        let origin = Origin::DockerArchive {
            path: self.path.clone(),
        };
        let mut verdict = Verdict::Unchecked {};
        for rules in self.rules(&origin, reference)? {
            verdict = rules.judge_unsignable()?;
        }
        let (config, config_digest) = self.docker_config(image)?;
        let diff_ids = self.diff_ids(&config, image.layers.len())?;
        self.hold(&diff_ids)?;
        let layers = self.docker_layers(image, &diff_ids)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": OCI_CONFIG,
                "digest": config_digest.to_string(),
                "size": config.len(),
            },
            "layers": layers,
        })
        .to_string();
        // Checks what the schema asks for, such as the number of layers.
        let parsed = manifest::parse_document(manifest.as_bytes()).map_err(self.unusable())?;
        let Document::Manifest(parsed) = parsed else {
            return Err(LoadError::UnknownFormat {
                path: self.bundle.path().to_owned(),
            });
        };
        let digest = Digest::sha256(manifest.as_bytes());
        self.session.put_blob(&digest, manifest.as_bytes())?;
        self.session.put_blob(&config_digest, &config)?;
        let record = Record::new(reference, (digest, &parsed), None, diff_ids);
        Ok(record.trusted(Trust {
            origin,
            verdict,
            signatures: Vec::new(),
        }))
    }

    /// The configuration. Its file is called by its digest, or by something else.
    fn docker_config(&self, image: &DockerImage) -> Result<(Vec<u8>, Digest), LoadError> {
        let config = self.bundle.read(&image.config, CONFIG_MAX_BYTES)?;
        let digest = Digest::sha256(&config);
        let file_name = image.config.rsplit('/').next().unwrap_or_default();
        let stem = file_name.strip_suffix(".json").unwrap_or(file_name);
        if let Ok(expected) = format!("sha256:{stem}").parse::<Digest>()
            && expected != digest
        {
            return Err(self.mismatch(&image.config, expected, digest));
        }
        Ok((config, digest))
    }

    /// Adds the layers, and gives the manifest's entries of them.
    fn docker_layers(
        &self,
        image: &DockerImage,
        diff_ids: &[Digest],
    ) -> Result<Vec<Value>, LoadError> {
        let mut layers = Vec::new();
        for (name, diff_id) in image.layers.iter().zip(diff_ids) {
            let (digest, size, compression) = self.add_layer(name, None, diff_id)?;
            let suffix = match compression {
                Compression::None => "",
                Compression::Gzip => "+gzip",
                Compression::Zstd => "+zstd",
            };
            layers.push(json!({
                "mediaType": format!("{OCI_LAYER}{suffix}"),
                "digest": digest.to_string(),
                "size": size,
            }));
        }
        Ok(layers)
    }

    fn diff_ids(&self, config: &[u8], layer_count: usize) -> Result<Vec<Digest>, LoadError> {
        let config = manifest::parse_config(config, layer_count, &self.platform);
        Ok(config.map_err(self.unusable())?.diff_ids)
    }

    fn hold(&self, diff_ids: &[Digest]) -> Result<(), LoadError> {
        let held: Vec<_> = diff_ids.iter().cloned().map(Held::Layer).collect();
        Ok(self.session.hold(&held)?)
    }

    /// Reads a small blob and checks it.
    fn blob(&self, descriptor: &Descriptor, max_bytes: u64) -> Result<Vec<u8>, LoadError> {
        let name = blob_name(&descriptor.digest);
        let content = self.bundle.read(&name, max_bytes)?;
        if descriptor.digest.matches(&content) {
            self.check_size(&name, descriptor.size, content.len() as u64)?;
            return Ok(content);
        }
        let actual = Digest::sha256(&content);
        Err(self.mismatch(&name, descriptor.digest.clone(), actual))
    }

    fn check_size(&self, name: &str, expected: u64, actual: u64) -> Result<(), LoadError> {
        if expected == actual {
            return Ok(());
        }
        Err(LoadError::Size {
            path: self.bundle.path().to_owned(),
            name: name.to_owned(),
            expected,
            actual,
        })
    }

    fn mismatch(&self, name: &str, expected: Digest, actual: Digest) -> LoadError {
        LoadError::Mismatch {
            path: self.bundle.path().to_owned(),
            name: name.to_owned(),
            expected,
            actual,
        }
    }

    fn unusable(&self) -> impl FnOnce(ManifestError) -> LoadError + use<> {
        let path = self.bundle.path().to_owned();
        move |source| LoadError::Manifest { path, source }
    }
}

/// The images of a layout, and where signatures are in it. What else refers to an image, such as a bill of materials, is
/// passed over where there is an image.
fn tell_apart(entries: Vec<Descriptor>) -> (Vec<Descriptor>, Marks) {
    let (mut images, mut others, mut marks) = (Vec::new(), Vec::new(), Marks::default());
    for entry in entries {
        let is_named = || {
            NAME_ANNOTATIONS
                .iter()
                .any(|key| entry.annotations.contains_key(*key))
        };
        match entry_kind(&entry) {
            EntryKind::Image if entry.artifact_type.is_some() && !is_named() => others.push(entry),
            EntryKind::Image => images.push(entry),
            EntryKind::Signatures => marks.manifests.push(entry.digest),
            EntryKind::Referrers => marks.lists.push(entry.digest),
            EntryKind::Other => {}
        }
    }
    match images.is_empty() {
        // Refused by what it is.
        true => (others, marks),
        false => (images, marks),
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

#[cfg(test)]
mod tests;
