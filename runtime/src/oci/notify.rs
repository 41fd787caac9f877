//! Readiness of the container's program (sd_notify(3)), passed on to who asked this command for it.
//!
//! ```text
//! who started us                     this command                       container
//!   NOTIFY_SOCKET ◄── READY=1 ────── notify/notify.sock ◄── READY=1 ── /run/notify/notify.sock
//!                     MAINPID=…      (in the state directory, bound into the container)
//! ```
//!
//! `start` and `run --detach` return when the program is ready, or has ended; `run` passes on what it says as long as
//! it runs. As with runc, `create` makes the directory and `start` binds the socket. Only what is said of readiness and
//! state is passed on: pids are the container's, and stored descriptors are nobody's business.

use std::fs::{self, DirBuilder, Permissions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{MountBuilder, Spec};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::error::{Error, Result, file};
use super::gate::with_short_path;
use super::store::Entry;

/// Where the container finds its socket, as with runc.
const DIRECTORY_INSIDE: &str = "/run/notify";
/// The socket's name.
const NAME: &str = "notify.sock";
/// Longer than what systemd takes.
const MESSAGE_MAX_BYTES: usize = 4096;
/// What is passed on: sd_notify(3), "Well-known assignments".
const PASSED_ON: [&str; 8] = [
    "READY",
    "RELOADING",
    "STOPPING",
    "STATUS",
    "ERRNO",
    "MONOTONIC_USEC",
    "EXTEND_TIMEOUT_USEC",
    "WATCHDOG",
];

/// The container's socket, and where what it says goes.
#[derive(Debug)]
pub(super) struct Notify {
    inside: OwnedFd,
    outside: PathBuf,
}

/// Who wants to be told, from this process's environment.
fn asked_for() -> Option<PathBuf> {
    std::env::var_os("NOTIFY_SOCKET")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

/// Gives the container a place for its socket and tells it where, if readiness is asked for.
///
/// # Errors
/// When the directory cannot be made.
pub(super) fn prepare(entry: &Entry, spec: &mut Spec) -> Result<()> {
    if asked_for().is_none() {
        return Ok(());
    }
    let directory = entry.notify();
    DirBuilder::new()
        .mode(0o755)
        .create(&directory)
        .map_err(file("make", &directory))?;
    let mount = MountBuilder::default()
        .typ("bind")
        .source(directory)
        .destination(DIRECTORY_INSIDE)
        .options(["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned))
        .build()
        .map_err(|error| Error::Argument {
            argument: "NOTIFY_SOCKET",
            reason: error.to_string(),
        })?;
    spec.mounts_mut().get_or_insert_default().push(mount);
    if let Some(process) = spec.process_mut() {
        process
            .env_mut()
            .get_or_insert_default()
            .push(format!("NOTIFY_SOCKET={DIRECTORY_INSIDE}/{NAME}"));
    }
    Ok(())
}

/// Listens on the container's socket, before its program runs. None when nobody asked, now or when it was created.
///
/// # Errors
/// When the socket cannot be made.
pub(super) fn listen(entry: &Entry) -> Result<Option<Notify>> {
    let Some(outside) = asked_for() else {
        return Ok(None);
    };
    let path = entry.notify().join(NAME);
    if !entry.notify().exists() {
        return Ok(None);
    }
    let inside = bind(&path).map_err(file("listen on", path))?;
    Ok(Some(Notify { inside, outside }))
}

fn bind(path: &Path) -> std::io::Result<OwnedFd> {
    let socket = datagram_socket()?;
    with_short_path(path, |address| {
        rustix::net::bind(&socket, address).map_err(Into::into)
    })?;
    // For every user of the container.
    fs::set_permissions(path, Permissions::from_mode(0o777))?;
    Ok(socket)
}

fn datagram_socket() -> std::io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

impl Notify {
    /// Readable when the program has said something.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.inside.as_fd()
    }

    /// Waits until the program is ready or has ended, and says so with its pid: it is the service's process now.
    pub(super) fn await_ready(&self, process: BorrowedFd<'_>, pid: i32) {
        loop {
            let mut sources = [
                PollFd::new(&self.inside, PollFlags::IN),
                PollFd::from_borrowed_fd(process, PollFlags::IN),
            ];
            if let Err(error) =
                rustix::io::retry_on_intr(|| rustix::event::poll(&mut sources, None))
            {
                tracing::warn!(%error, "cannot wait for the program's readiness");
                return;
            }
            if !sources[0].revents().is_empty() && self.pass_on(Some(pid)) {
                return;
            }
            if !sources[1].revents().is_empty() {
                return;
            }
        }
    }

    /// Passes one message on; true when it said that the program is ready. Who asked may be gone: a warning.
    pub(super) fn pass_on(&self, main_pid: Option<i32>) -> bool {
        let mut bytes = [0; MESSAGE_MAX_BYTES];
        let received = rustix::net::recv(&self.inside, &mut bytes, RecvFlags::DONTWAIT);
        let Ok((_, length)) = received else {
            return false;
        };
        let message = String::from_utf8_lossy(&bytes[..length.min(MESSAGE_MAX_BYTES)]);
        let (passed, is_ready) = passed_on(&message, main_pid);
        if !passed.is_empty()
            && let Err(error) = send(&self.outside, passed.as_bytes())
        {
            tracing::warn!(
                %error,
                path = %self.outside.display(),
                "cannot tell NOTIFY_SOCKET of the program's state"
            );
        }
        is_ready
    }
}

/// What is passed on of a message, and whether it says that the program is ready.
fn passed_on(message: &str, main_pid: Option<i32>) -> (String, bool) {
    let mut lines: Vec<String> = message
        .lines()
        .filter(|line| {
            line.split_once('=')
                .is_some_and(|(name, _)| PASSED_ON.contains(&name))
        })
        .map(str::to_owned)
        .collect();
    let is_ready = lines.iter().any(|line| line == "READY=1");
    if let Some(pid) = main_pid.filter(|_| is_ready) {
        lines.push(format!("MAINPID={pid}"));
    }
    (lines.join("\n"), is_ready)
}

/// To a path, or with `@` in front to an abstract name.
fn send(to: &Path, message: &[u8]) -> std::io::Result<()> {
    let socket = datagram_socket()?;
    let send = |address: &SocketAddrUnix| {
        rustix::net::sendto(&socket, message, SendFlags::NOSIGNAL, address)
            .map(drop)
            .map_err(std::io::Error::from)
    };
    match to.to_str().and_then(|path| path.strip_prefix('@')) {
        Some(name) => send(&SocketAddrUnix::new_abstract_name(name.as_bytes())?),
        None => with_short_path(to, send),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_brings_the_hosts_pid_and_nothing_of_the_containers() {
        let said = "STATUS=up\nREADY=1\nMAINPID=1\nFDSTORE=1\nNOTIFYACCESS=all\nrubbish";
        assert_eq!(
            passed_on(said, Some(42)),
            ("STATUS=up\nREADY=1\nMAINPID=42".to_owned(), true)
        );
        assert_eq!(
            passed_on(said, None),
            ("STATUS=up\nREADY=1".to_owned(), true)
        );
        assert_eq!(
            passed_on("STATUS=wait", Some(42)),
            ("STATUS=wait".to_owned(), false)
        );
        assert_eq!(passed_on("MAINPID=7", Some(42)), (String::new(), false));
    }
}
