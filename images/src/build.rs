//! Images made from files of the host.
//!
//! The same files and configuration give the same digest on every machine: owner root, time 0, entries in the given
//! order, JSON with sorted keys.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use oci_spec::image::Config;
use serde_json::{Map, Value, json};

use crate::digest::{Algorithm, Digest};
use crate::image::Image;
use crate::manifest::{self, Descriptor, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::{Held, ImageStore, Record, Session, StoreError};
use crate::unpack::{Limits, UnpackError, Wanted, pieces, unpack_stream};

/// A file of an image to be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFile {
    /// Where it goes in the image, such as `/podling`. Parent directories are made.
    pub path: PathBuf,
    /// Permission bits, such as 0o755.
    pub mode: u32,
    /// Where it comes from.
    pub source: FileSource,
}

/// Where a file's content comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileSource {
    /// This file of the host.
    Host(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
    /// A directory.
    Directory,
    /// A symbolic link to this target.
    Symlink(PathBuf),
}

/// An image that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file cannot be put into the layer.
    #[error("cannot put {path} into the image")]
    File {
        /// The host's file, or the image's where there is none.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The layer cannot be written.
    #[error("cannot write the layer to {path}")]
    Layer {
        /// The temporary file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The layer cannot be unpacked.
    #[error("cannot unpack the layer")]
    Unpack(#[from] UnpackError),
    /// The configuration cannot be written as JSON.
    #[error("cannot write the configuration")]
    Config(#[source] serde_json::Error),
    /// The image was built, and is gone.
    #[error("the image {0} vanished from the store while it was being built")]
    Vanished(Reference),
}

impl ImageStore {
    /// Makes an image of one layer from files of the host. The same files and configuration give the same digest.
    pub fn build_from_files(
        &self,
        reference: &Reference,
        files: &[ImageFile],
        config: &Config,
    ) -> Result<Image, BuildError> {
        let session = Session::begin(self)?;
        let (diff_id, size) = put_layer(&session, files)?;
        let platform = Platform::current();
        let config = json!({
            "architecture": platform.architecture,
            "os": platform.os,
            "created": "1970-01-01T00:00:00Z",
            "config": serde_json::to_value(config).map_err(BuildError::Config)?,
            "rootfs": {"type": "layers", "diff_ids": [diff_id.to_string()]},
        });
        let config = sorted(config).to_string().into_bytes();
        let config_digest = Digest::sha256(&config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": OCI_CONFIG,
                "digest": config_digest.to_string(),
                "size": config.len(),
            },
            "layers": [
                {"mediaType": OCI_LAYER, "digest": diff_id.to_string(), "size": size},
            ],
        });
        let manifest = sorted(manifest).to_string().into_bytes();
        let digest = Digest::sha256(&manifest);
        session.put_blob(&config_digest, &config)?;
        session.put_blob(&digest, &manifest)?;
        let parsed = manifest::Manifest {
            config: descriptor(OCI_CONFIG, config_digest, config.len() as u64),
            layers: vec![descriptor(OCI_LAYER, diff_id.clone(), size)],
        };
        let record = Record::new(reference, (digest, &parsed), None, vec![diff_id]);
        session.commit(&[record])?;
        self.resolve(reference)?
            .ok_or_else(|| BuildError::Vanished(reference.clone()))
    }
}

/// Puts the layer of these files into the store, and gives its digest and size in bytes.
fn put_layer(session: &Session, files: &[ImageFile]) -> Result<(Digest, u64), BuildError> {
    let path = session.temporary();
    let written = write_tar(&path, files)?;
    let hashed = crate::digest::HashingReader::new(&written, Algorithm::Sha256).finish();
    let (diff_id, size) = hashed.map_err(layer_error(&path))?;
    session.hold(&[Held::Layer(diff_id.clone())])?;
    let _lock = session.lock_layer(&diff_id)?;
    if session.has_layer(&diff_id) {
        session.keep_blob(&path, &diff_id)?;
    } else {
        let wanted = (Wanted::Digest(&diff_id), Wanted::Digest(&diff_id));
        let tar = pieces(File::open(&path).map_err(layer_error(&path))?);
        session.put_layer(&diff_id, Some(&path), |target| -> Result<_, BuildError> {
            let limits = Limits::default();
            let keep = |_: &[u8]| Ok(());
            Ok(unpack_stream(tar, keep, size, target, wanted, &limits)?)
        })?;
    }
    Ok((diff_id, size))
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        platform: None,
        annotations: HashMap::new(),
        artifact_type: None,
    }
}

/// Writes the layer, and gives the file, back at its start.
fn write_tar(path: &Path, files: &[ImageFile]) -> Result<File, BuildError> {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(layer_error(path))?;
    let mut tar = tar::Builder::new(BufWriter::with_capacity(128 * 1024, file));
    for file in files {
        append(&mut tar, file)?;
    }
    let mut file = tar
        .into_inner()
        .and_then(|buffered| buffered.into_inner().map_err(|e| e.into_error()))
        .map_err(layer_error(path))?;
    file.seek(SeekFrom::Start(0)).map_err(layer_error(path))?;
    Ok(file)
}

fn append(tar: &mut tar::Builder<impl Write>, file: &ImageFile) -> Result<(), BuildError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| BuildError::File { path, source }
    };
    let mut header = tar::Header::new_gnu();
    header.set_mode(file.mode & 0o7777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    let name = file.path.strip_prefix("/").unwrap_or(&file.path);
    match &file.source {
        FileSource::Host(host) => {
            let content = File::open(host).map_err(failed(host))?;
            let size = content.metadata().map_err(failed(host))?.len();
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(size);
            let mut content = Exact {
                inner: content,
                left: size,
            };
            tar.append_data(&mut header, name, &mut content)
                .map_err(failed(host))
        }
        FileSource::Bytes(bytes) => {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, bytes.as_slice())
                .map_err(failed(&file.path))
        }
        FileSource::Directory => {
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, name, io::empty())
                .map_err(failed(&file.path))
        }
        FileSource::Symlink(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, name, target)
                .map_err(failed(&file.path))
        }
    }
}

/// Gives exactly the bytes announced, or an error: a file may change while it is read.
struct Exact<R> {
    inner: R,
    left: u64,
}

impl<R: io::Read> io::Read for Exact<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = self.left.min(buffer.len() as u64) as usize;
        let n = self.inner.read(&mut buffer[..want])?;
        if n == 0 && want > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it became shorter while it was read",
            ));
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// The same value with the keys of all objects in order, whatever order serde_json's maps keep.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            let sorted: Map<_, _> = entries.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            Value::Object(sorted)
        }
        Value::Array(values) => Value::Array(values.into_iter().map(sorted).collect()),
        other => other,
    }
}

fn layer_error(path: &Path) -> impl FnOnce(io::Error) -> BuildError + use<> {
    let path = path.to_owned();
    move |source| BuildError::Layer { path, source }
}
