//! A session adds to the store: it owns a directory below `tmp`, and protects from the collector what it relies on.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;

use super::disk::{self, LayerInfo, failed};
use super::inherit;
use super::{ImageStore, Record, StoreError, layout, record, replaced};
use crate::digest::Digest;
use crate::unpack::{Target, Unpacked};

/// Something that must stay in the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Held {
    /// A manifest, index, configuration or compressed layer.
    Blob(Digest),
    /// An unpacked layer, by diff ID.
    Layer(Digest),
}

impl Held {
    fn to_line(&self) -> String {
        match self {
            Self::Blob(digest) => format!("blob {digest}\n"),
            Self::Layer(digest) => format!("layer {digest}\n"),
        }
    }

    fn parse_line(line: &str) -> Option<Self> {
        match line.split_once(' ')? {
            ("blob", digest) => Some(Self::Blob(digest.parse().ok()?)),
            ("layer", digest) => Some(Self::Layer(digest.parse().ok()?)),
            _ => None,
        }
    }
}

/// A blob that is being written.
#[derive(Debug)]
pub(crate) struct NewBlob {
    path: PathBuf,
    file: File,
}

impl NewBlob {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn append(&mut self, piece: &[u8]) -> std::io::Result<()> {
        disk::append(&mut self.file, &self.path, piece)
    }

    /// The error of [`append`](Self::append).
    pub(crate) fn failed(&self, error: std::io::Error) -> StoreError {
        failed("write", &self.path)(error)
    }
}

/// One pull, load or build. Dropping it removes what it did not commit.
#[derive(Debug)]
pub(crate) struct Session {
    store: ImageStore,
    dir: PathBuf,
    /// Locked as long as the session lives.
    lease: Mutex<File>,
    next_file: AtomicU64,
}

impl Session {
    pub(crate) fn begin(store: &ImageStore) -> Result<Self, StoreError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let _lock = store.lock_shared()?;
        let tmp = store.dir().join("tmp");
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let dir = tmp.join(format!("{}-{number}", std::process::id()));
            match std::fs::create_dir(&dir) {
                Ok(()) => {}
                // Of a process in another pid namespace, or of a dead one.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(failed("create", &dir)(e)),
            }
            let lease = disk::lock(&dir.join("lease"), FlockOperation::LockExclusive)?;
            return Ok(Self {
                store: store.clone(),
                dir,
                lease: Mutex::new(lease),
                next_file: AtomicU64::new(0),
            });
        }
    }

    /// Protects these from the collector, whether they are here yet or not, until the session ends.
    pub(crate) fn hold(&self, items: &[Held]) -> Result<(), StoreError> {
        let _lock = self.store.lock_shared()?;
        let lines: String = items.iter().map(Held::to_line).collect();
        let mut lease = self.lease.lock().unwrap_or_else(|e| e.into_inner());
        lease
            .write_all(lines.as_bytes())
            .map_err(failed("write", &self.dir.join("lease")))
    }

    /// The store that it adds to.
    pub(crate) fn store(&self) -> &ImageStore {
        &self.store
    }

    /// A path for a file or directory of this session.
    pub(crate) fn temporary(&self) -> PathBuf {
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("f{number}"))
    }

    /// Adds a manifest or configuration that was checked against its digest.
    pub(crate) fn put_blob(&self, digest: &Digest, content: &[u8]) -> Result<(), StoreError> {
        self.hold(&[Held::Blob(digest.clone())])?;
        let path = disk::blob_path(self.store.dir(), digest);
        if disk::read_blob(self.store.dir(), digest).is_ok() {
            return Ok(());
        }
        disk::write_atomically(&path, &self.temporary(), content)
    }

    /// True when the layer is here. Hold it first.
    pub(crate) fn has_layer(&self, diff_id: &Digest) -> bool {
        disk::read_layer(self.store.dir(), diff_id).is_ok()
    }

    /// True when the blob is here, of this size; its content is not looked at. Hold it first.
    pub(crate) fn has_blob(&self, digest: &Digest, size: u64) -> bool {
        let found = std::fs::metadata(disk::blob_path(self.store.dir(), digest));
        found.is_ok_and(|found| found.len() == size)
    }

    /// Waits until no other session makes this layer. Then look again whether it is here.
    pub(crate) fn lock_layer(&self, diff_id: &Digest) -> Result<File, StoreError> {
        disk::lock_name(
            self.store.dir(),
            diff_id.hex(),
            FlockOperation::LockExclusive,
        )
    }

    /// Adds a layer, under its lock: `unpack` fills a directory and compares the digests, and writes the blob to
    /// `blob` if there is one, which is then kept.
    pub(crate) fn put_layer<E: From<StoreError>>(
        &self,
        diff_id: &Digest,
        blob: Option<&Path>,
        unpack: impl FnOnce(&Target) -> Result<Unpacked, E>,
    ) -> Result<Unpacked, E> {
        let temporary = self.temporary();
        let fs = temporary.join("fs");
        disk::create_temporary_dir(&fs)?;
        // The root directory of a container, unless the layer says otherwise; whatever our umask is.
        std::fs::set_permissions(&fs, Permissions::from_mode(0o755))
            .map_err(failed("set the mode of", &fs))?;
        let target = Target {
            fs,
            list: Some(temporary.join(disk::FILE_LIST)),
        };
        let unpacked = unpack(&target)?;
        let info = LayerInfo {
            file_bytes: unpacked.file_bytes,
            root_is_opaque: unpacked.root_is_opaque,
        };
        let info_path = temporary.join("layer.json");
        let text = serde_json::to_vec(&info).map_err(|e| failed("write", &info_path)(e.into()))?;
        std::fs::write(&info_path, text).map_err(failed("write", &info_path))?;
        inherit::write_list(&temporary, &unpacked.implied)?;
        // The blob, too.
        disk::sync_all(&temporary)?;
        if let Some(blob) = blob {
            self.keep_synced(blob, &unpacked.blob)?;
        }
        self.place_layer(&temporary, diff_id)?;
        Ok(unpacked)
    }

    /// Keeps a compressed layer that was written to `path` and compared with its digest.
    pub(crate) fn keep_blob(&self, path: &Path, digest: &Digest) -> Result<(), StoreError> {
        let file = File::open(path).map_err(failed("open", path))?;
        disk::sync_file(&file, path)?;
        self.keep_synced(path, digest)
    }

    /// Keeps a compressed layer even where blobs are not kept: at least as long as this session lives, then until the
    /// next [`ImageStore::gc`].
    pub(crate) fn lend_blob(&self, path: &Path, digest: &Digest) -> Result<(), StoreError> {
        let file = File::open(path).map_err(failed("open", path))?;
        disk::sync_file(&file, path)?;
        self.place_blob(path, digest)
    }

    fn keep_synced(&self, path: &Path, digest: &Digest) -> Result<(), StoreError> {
        if !self.store.keeps_blobs() {
            return disk::remove(path);
        }
        self.place_blob(path, digest)
    }

    fn place_blob(&self, path: &Path, digest: &Digest) -> Result<(), StoreError> {
        self.hold(&[Held::Blob(digest.clone())])?;
        disk::rename(path, &disk::blob_path(self.store.dir(), digest))
    }

    /// A file of this session for a blob that is to be kept; none if blobs are not kept.
    pub(crate) fn new_blob(&self) -> Result<Option<NewBlob>, StoreError> {
        if !self.store.keeps_blobs() {
            return Ok(None);
        }
        let path = self.temporary();
        let file = disk::open_to_append(&path)?;
        Ok(Some(NewBlob { path, file }))
    }

    /// Gives a whole layer its name. A damaged one that has it may be the lower layer of a running container, which
    /// must keep it: it is moved away in the same step, and stays until the collector finds it unused.
    fn place_layer(&self, whole: &Path, diff_id: &Digest) -> Result<(), StoreError> {
        let path = disk::layer_path(self.store.dir(), diff_id);
        if !path.exists() {
            return disk::rename(whole, &path);
        }
        let away = replaced::path(self.store.dir(), diff_id)?;
        disk::rename(whole, &away)?;
        disk::exchange(&away, &path)
    }

    /// Makes the images visible. All they need must be here, held by this session.
    pub(crate) fn commit(&self, records: &[Record]) -> Result<(), StoreError> {
        let _lock = self.store.lock_exclusive()?;
        for record in records {
            self.store.inherit(record)?;
            record.write(self.store.dir(), &self.temporary())?;
        }
        layout::update(self.store.dir())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(error) = disk::remove(&self.dir) {
            tracing::warn!(%error, "cannot remove a temporary directory of the image store");
        }
    }
}

impl ImageStore {
    pub(super) fn lock_shared(&self) -> Result<File, StoreError> {
        disk::lock(&self.dir().join("lock"), FlockOperation::LockShared)
    }

    pub(super) fn lock_exclusive(&self) -> Result<File, StoreError> {
        disk::lock(&self.dir().join("lock"), FlockOperation::LockExclusive)
    }

    /// What died with the process that made it is removed, and `index.json` made what the records say.
    pub(super) fn repair(&self) -> Result<(), StoreError> {
        let _lock = self.lock_exclusive()?;
        self.living_leases()?;
        layout::repair(self.dir())?;
        for record in record::scan(self.dir())?.unreadable {
            let (path, what) = (record.path(self.dir()), record.what);
            tracing::warn!(
                path = %path.display(),
                what,
                "the record of an image cannot be read: the image is left out, and nothing is freed; \
                 `podling images verify` mends it"
            );
        }
        Ok(())
    }

    /// What living sessions hold. Removes dead ones on the way; `lock` must be held exclusively.
    pub(super) fn living_leases(&self) -> Result<BTreeSet<Held>, StoreError> {
        let tmp = self.dir().join("tmp");
        let mut held = BTreeSet::new();
        for name in disk::names(&tmp)? {
            let dir = tmp.join(name);
            let lease = dir.join("lease");
            match File::open(&lease) {
                Ok(mut file) => {
                    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                        Ok(()) => remove_dead(&dir)?,
                        Err(rustix::io::Errno::WOULDBLOCK) => {
                            let mut text = String::new();
                            file.read_to_string(&mut text)
                                .map_err(failed("read", &lease))?;
                            held.extend(text.lines().filter_map(Held::parse_line));
                        }
                        Err(e) => return Err(failed("lock", &lease)(e.into())),
                    }
                }
                // Made and locked under `lock`: without a lease it died in between, or is being removed.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => remove_dead(&dir)?,
                Err(e) => return Err(failed("open", &lease)(e)),
            }
        }
        Ok(held)
    }
}

/// What an ordinary user may not remove stays, until a command in the user namespace opens the store: it is in nobody's
/// way.
fn remove_dead(dir: &Path) -> Result<(), StoreError> {
    match disk::remove(dir) {
        Err(error @ StoreError::OthersFiles { .. }) => {
            tracing::warn!("{error}");
            Ok(())
        }
        removed => removed,
    }
}
