//! `state.json`: what a supervisor needs to know when it was killed and is started again. It is replaced atomically,
//! and written before what it says is done.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::pod::lifecycle::{Lifecycle, Process};
use crate::pod::protocol::STATE_FILE;

const VERSION: u32 = 1;
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// The record.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    boot_id: String,
    pub(super) sequence: u64,
    pub(super) lifecycle: Lifecycle,
    /// Process 1 of the shared pid namespace.
    pub(super) pid_init: Option<Process>,
    /// Leave once the pod has ended.
    pub(super) leave_when_ended: bool,
}

/// Why a record could not be read or written.
#[derive(Debug, Error)]
pub enum RecordError {
    /// The file.
    #[error("cannot {attempt} {}", path.display())]
    File {
        /// `read`, `write`, …
        attempt: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is in it.
    #[error("{} is not a record of this version", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// What there is to borrow for a record.
#[derive(Serialize)]
pub(super) struct RecordRef<'a> {
    pub(super) version: u32,
    pub(super) boot_id: &'a str,
    pub(super) sequence: u64,
    pub(super) lifecycle: &'a Lifecycle,
    pub(super) pid_init: Option<Process>,
    pub(super) leave_when_ended: bool,
}

/// Tells this run of the machine from others.
pub(super) fn boot_id() -> Result<String, RecordError> {
    let text = fs::read_to_string(BOOT_ID_FILE).map_err(|source| RecordError::File {
        attempt: "read",
        path: BOOT_ID_FILE.into(),
        source,
    })?;
    Ok(text.trim().to_owned())
}

/// The record of an earlier supervisor of this pod since the machine started.
pub(super) fn load(dir: &Path, boot_id: &str) -> Result<Option<Record>, RecordError> {
    let path = dir.join(STATE_FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(RecordError::File {
                attempt: "read",
                path,
                source,
            });
        }
    };
    let record: Record =
        serde_json::from_slice(&bytes).map_err(|source| RecordError::Content { path, source })?;
    Ok(Some(record).filter(|r| r.version == VERSION && r.boot_id == boot_id))
}

impl RecordRef<'_> {
    pub(super) const VERSION: u32 = VERSION;

    /// Replaces the record.
    pub(super) fn save(&self, dir: &Path) -> Result<(), RecordError> {
        let path = dir.join(STATE_FILE);
        let new = dir.join(format!("{STATE_FILE}.new"));
        let bytes = serde_json::to_vec(self).map_err(|source| RecordError::Content {
            path: path.clone(),
            source,
        })?;
        fs::write(&new, bytes)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|source| RecordError::File {
                attempt: "write",
                path,
                source,
            })
    }
}
