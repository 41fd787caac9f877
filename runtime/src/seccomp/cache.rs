//! Compiled filters on disk: compiling the default profile takes several milliseconds, reading it back a fraction of
//! one.
//!
//! ```text
//! <cache dir>/<sha256 of format, libseccomp's version, architecture and profile>.bpf    0600, owned by the caller
//!     sha256 (32 bytes) of the file's name and what follows | flags (4 bytes) | instructions (8 bytes each)
//! ```
//!
//! A file is written beside its place and renamed into it. One that is torn (power loss), foreign or open to others
//! is not used but made anew; so is one that was a good file under another name: the filter of another profile. The cache is only ever a shortcut: that it cannot be written keeps no container from
//! starting.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use oci_spec::runtime::LinuxSeccomp;
use sha2::{Digest, Sha256};

use super::compile::Compiled;

/// Changes with the format and with how profiles are compiled.
const FORMAT: &str = "podling seccomp cache 5";

/// No program is longer: 4096 instructions, flags and hash.
const MAX_BYTES: u64 = 4096 * 8 + 4 + 32;

/// The profile's file.
pub(super) fn path(dir: &Path, profile: &LinuxSeccomp) -> Option<PathBuf> {
    let version = libseccomp::ScmpVersion::current().ok()?;
    let mut hash = Sha256::new();
    hash.update(FORMAT);
    hash.update(format!(
        " {}.{}.{} {} ",
        version.major,
        version.minor,
        version.micro,
        std::env::consts::ARCH
    ));
    hash.update(serde_json::to_vec(profile).ok()?);
    Some(dir.join(format!("{}.bpf", hex::encode(hash.finalize()))))
}

/// Reads a filter back; `None` when there is none that can be trusted.
pub(super) fn read(path: &Path) -> Option<Compiled> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let metadata = file.metadata().ok()?;
    let is_ours = metadata.is_file()
        && metadata.uid() == rustix::process::geteuid().as_raw()
        && metadata.mode() & 0o077 == 0
        && metadata.len() <= MAX_BYTES;
    if !is_ours {
        return None;
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    parse(path, &bytes)
}

fn parse(path: &Path, bytes: &[u8]) -> Option<Compiled> {
    let (hash, content) = bytes.split_at_checked(32)?;
    if digest(path, content).as_slice() != hash {
        return None;
    }
    let (flags, program) = content.split_first_chunk::<4>()?;
    if program.is_empty() || program.len() % 8 != 0 {
        return None;
    }
    Some(Compiled {
        flags: u32::from_le_bytes(*flags),
        program: program.to_vec(),
    })
}

/// Binds what a file holds to its name, which says whose filter it is.
fn digest(path: &Path, content: &[u8]) -> Vec<u8> {
    let name = path.file_name().unwrap_or_default();
    Sha256::new()
        .chain_update(name.as_bytes())
        .chain_update([0])
        .chain_update(content)
        .finalize()
        .to_vec()
}

/// Keeps a filter.
pub(super) fn write(path: &Path, compiled: &Compiled) -> io::Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let dir = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let content = [&compiled.flags.to_le_bytes()[..], &compiled.program].concat();
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let digest = digest(path, &content);
    let temporary = path.with_extension(format!("{}-{number}.tmp", std::process::id()));
    let written =
        write_new(&temporary, &digest, &content).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // What is left of a failed try; it may not even have been made.
        fs::remove_file(&temporary).ok();
    }
    written
}

fn write_new(path: &Path, digest: &[u8], content: &[u8]) -> io::Result<()> {
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(digest)?;
    file.write_all(content)
}
