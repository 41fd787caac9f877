//! Makes archives and images for tests, also hostile ones that no honest tool would write.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use sha2::Digest as _;
use tar::{EntryType, Header};

/// A tar archive under construction. Files belong to the caller, so that unpacking needs no root.
#[derive(Clone)]
pub struct Tar {
    pub bytes: Vec<u8>,
    pub owner: (u64, u64),
}

impl Tar {
    pub fn new() -> Self {
        Self {
            bytes: Vec::new(),
            owner: (
                rustix::process::getuid().as_raw().into(),
                rustix::process::getgid().as_raw().into(),
            ),
        }
    }

    pub fn owned_by(mut self, uid: u64, gid: u64) -> Self {
        self.owner = (uid, gid);
        self
    }

    /// Any entry; the name is written as it is.
    pub fn entry(self, name: &str, kind: EntryType, mode: u32, link: &str, content: &[u8]) -> Self {
        self.entry_of_size(name, kind, mode, link, content, content.len() as u64)
    }

    pub fn entry_of_size(
        mut self,
        name: &str,
        kind: EntryType,
        mode: u32,
        link: &str,
        content: &[u8],
        size: u64,
    ) -> Self {
        let mut header = Header::new_gnu();
        for (field, text) in [("path", name), ("linkpath", link)] {
            if text.len() > 100 {
                self = self.pax(&[(field, text.as_bytes())]);
            }
        }
        let old = header.as_old_mut();
        let put = |field: &mut [u8], text: &str| {
            let len = text.len().min(field.len());
            field[..len].copy_from_slice(&text.as_bytes()[..len]);
        };
        put(&mut old.name, name);
        put(&mut old.linkname, link);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(1_000_000_000);
        header.set_size(size);
        header.set_cksum();
        self.raw(&header, content)
    }

    pub fn device(mut self, name: &str, kind: EntryType, major: u32, minor: u32) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o660);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header.set_cksum();
        self = self.raw(&header, b"");
        self
    }

    fn raw(mut self, header: &Header, content: &[u8]) -> Self {
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// PAX records for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut all = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut len = rest + 1;
            while len != rest + len.to_string().len() {
                len = rest + len.to_string().len();
            }
            all.extend(format!("{len} {key}=").bytes());
            all.extend(*value);
            all.push(b'\n');
        }
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..3].copy_from_slice(b"pax");
        header.set_entry_type(EntryType::XHeader);
        header.set_size(all.len() as u64);
        header.set_cksum();
        self.raw(&header, &all)
    }

    pub fn dir(self, name: &str) -> Self {
        self.entry(name, EntryType::Directory, 0o755, "", b"")
    }

    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(name, EntryType::Regular, 0o644, "", content)
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(name, EntryType::Symlink, 0o777, target, b"")
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(name, EntryType::Link, 0o644, target, b"")
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend([0; 1024]);
        self.bytes
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// So many bytes that do not compress, the same each time; others for another `seed`.
pub fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    // Xorshift.
    let mut state = 88_172_645_463_325_252 + seed;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(bytes)
    .collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

/// An image of uncompressed tars.
#[derive(Clone)]
pub struct TestImage {
    /// The tars, the lowest first.
    pub tars: Vec<Vec<u8>>,
    /// The blobs, made of the tars.
    pub blobs: Vec<Vec<u8>>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

impl TestImage {
    pub fn new(tars: Vec<Vec<u8>>) -> Self {
        Self::with_config(tars, json!({"Entrypoint": ["/bin/app"], "Env": ["A=b"]}))
    }

    pub fn with_config(tars: Vec<Vec<u8>>, config: Value) -> Self {
        let architecture = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        };
        let diff_ids: Vec<_> = tars.iter().map(|tar| sha256(tar)).collect();
        let config = json!({
            "os": "linux", "architecture": architecture, "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let blobs: Vec<_> = tars.iter().map(|tar| gzip(tar)).collect();
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        Self::assemble(tars, blobs, media_type, &config)
    }

    /// The same layers with blobs that are not compressed: other digests, the same diff IDs.
    pub fn uncompressed(&self) -> Self {
        let config = serde_json::from_slice(&self.config).unwrap();
        let media_type = "application/vnd.oci.image.layer.v1.tar";
        Self::assemble(self.tars.clone(), self.tars.clone(), media_type, &config)
    }

    /// The same image for another processor.
    pub fn of_architecture(&self, architecture: &str) -> Self {
        let mut config: Value = serde_json::from_slice(&self.config).unwrap();
        config["architecture"] = json!(architecture);
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        Self::assemble(self.tars.clone(), self.blobs.clone(), media_type, &config)
    }

    fn assemble(tars: Vec<Vec<u8>>, blobs: Vec<Vec<u8>>, media_type: &str, config: &Value) -> Self {
        let config = config.to_string().into_bytes();
        let layers: Vec<_> = blobs
            .iter()
            .map(|blob| descriptor(media_type, blob))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers,
        })
        .to_string()
        .into_bytes();
        Self {
            tars,
            blobs,
            config,
            manifest,
        }
    }

    pub fn all_blobs(&self) -> impl Iterator<Item = &Vec<u8>> {
        [&self.manifest, &self.config]
            .into_iter()
            .chain(&self.blobs)
    }

    /// An OCI layout directory with one image of this name.
    pub fn write_layout(&self, dir: &Path, name: &str) {
        write_layout(dir, &[(self, Some(name))]);
    }

    /// The files of a docker-archive.
    pub fn docker_archive(&self, names: &[&str]) -> Tar {
        let config_name = format!("{}.json", sha256(&self.config).replace("sha256:", ""));
        let mut tar = Tar::new().file(&config_name, &self.config);
        let mut layers = Vec::new();
        for (i, layer) in self.tars.iter().enumerate() {
            let name = format!("{i}/layer.tar");
            tar = tar.file(&name, layer);
            layers.push(name);
        }
        let manifest = json!([{"Config": config_name, "RepoTags": names, "Layers": layers}]);
        tar.file("manifest.json", manifest.to_string().as_bytes())
    }
}

pub fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": sha256(content), "size": content.len()})
}

pub fn write_layout(dir: &Path, images: &[(&TestImage, Option<&str>)]) {
    let mut entries = Vec::new();
    for (image, name) in images {
        let mut entry = descriptor(
            "application/vnd.oci.image.manifest.v1+json",
            &image.manifest,
        );
        if let Some(name) = name {
            entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        entries.push(entry);
        for blob in image.all_blobs() {
            write_blob(dir, blob);
        }
    }
    write_index(dir, entries);
}

pub fn write_index(dir: &Path, entries: Vec<Value>) {
    let index = json!({"schemaVersion": 2, "manifests": entries});
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

pub fn write_blob(dir: &Path, blob: &[u8]) {
    let path = dir.join("blobs").join(sha256(blob).replace(':', "/"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, blob).unwrap();
}

/// Packs a directory, as `tar -C dir -cf - .` does.
pub fn pack(dir: &Path) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all(".", dir).unwrap();
    builder.into_inner().unwrap()
}
