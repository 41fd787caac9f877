//! The gate: the socket on which a container's first process waits from `create` to `start`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::error::{Result, file};
use super::store::Entry;

/// The gate's socket, bound by way of its directory's descriptor: an address holds 107 bytes, a path may be longer.
pub(super) fn listen(entry: &Entry) -> Result<OwnedFd> {
    let path = entry.gate();
    let gate = socket().and_then(|socket| {
        with_short_path(&path, |address| {
            rustix::net::bind(&socket, address).map_err(Into::into)
        })?;
        rustix::net::listen(&socket, 1)?;
        Ok(socket)
    });
    gate.map_err(file("make", path))
}

/// Connects to it.
///
/// # Errors
/// When nobody listens.
pub(super) fn connect(entry: &Entry) -> Result<OwnedFd> {
    let path = entry.gate();
    let connection = socket().and_then(|socket| {
        with_short_path(&path, |address| {
            rustix::net::connect(&socket, address).map_err(Into::into)
        })?;
        Ok(socket)
    });
    connection.map_err(file("connect to", path))
}

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Calls with an address below the directory's descriptor: an address holds 107 bytes, a path may be longer.
pub(super) fn with_short_path(
    path: &Path,
    f: impl FnOnce(&SocketAddrUnix) -> io::Result<()>,
) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = rustix::fs::open(
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    f(&SocketAddrUnix::new(&short)?)
}
