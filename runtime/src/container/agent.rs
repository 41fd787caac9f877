//! The seccomp agent of a container: a program of the host's that decides about calls that notify
//! (`SCMP_ACT_NOTIFY`). It is sent the filter's listener and the state of the process.
//!
//! ```text
//! child                                 parent                          agent
//!   loads its filter: a listener         .                               listens at listenerPath
//!   L ─────────────────────────────────► .
//!   goes on; calls that notify wait      state (JSON) and listener ────► decides
//! ```
//!
//! Source: runtime-spec config-linux.md#seccomp and #containerprocessstate. The agent is told when the container is
//! created if the filter lets it wait for its start, else when it starts; it is connected to before the process may go
//! on: without one, it does not start.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{ContainerProcessStateBuilder, SECCOMP_FD_NAME, State};
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};

use super::error::{Error, Result};
use crate::seccomp;

/// A connection to the agent, for one process.
#[derive(Debug)]
pub(super) struct Agent {
    socket: OwnedFd,
    path: PathBuf,
    metadata: Option<String>,
    state: State,
}

impl Agent {
    /// Connects to the agent. `state` is the container's.
    pub(super) fn connect(agent: &seccomp::Agent, state: State) -> Result<Self> {
        let socket = connect(&agent.socket).map_err(failed("connect to", &agent.socket))?;
        Ok(Self {
            socket,
            path: agent.socket.clone(),
            metadata: agent.metadata.clone(),
            state,
        })
    }

    /// Gives the agent the listener of a process, by its pid in this process's pid namespace. One connection carries
    /// one state.
    pub(super) fn hand_over(self, pid: i32, listener: BorrowedFd<'_>) -> Result<()> {
        let mut told = ContainerProcessStateBuilder::default()
            .version(self.state.version().clone())
            .fds([SECCOMP_FD_NAME.to_owned()])
            .pid(pid)
            .state(self.state);
        if let Some(metadata) = self.metadata {
            told = told.metadata(metadata);
        }
        told.build()
            .map_err(io::Error::other)
            .and_then(|told| serde_json::to_vec(&told).map_err(io::Error::other))
            .and_then(|text| send(self.socket.as_fd(), &text, listener))
            .map_err(failed("hand the listener to", &self.path))
    }
}

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Agent {
        attempt,
        path: path.to_owned(),
        source,
    }
}

/// By way of a descriptor: an address holds 107 bytes, a path may be longer.
fn connect(path: &Path) -> io::Result<OwnedFd> {
    let target = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let short = format!("/proc/self/fd/{}", target.as_raw_fd());
    rustix::net::connect(&socket, &SocketAddrUnix::new(short)?)?;
    Ok(socket)
}

/// The descriptor goes with the first bytes.
fn send(socket: BorrowedFd<'_>, text: &[u8], listener: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let fds = [listener];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let mut sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            socket,
            &[IoSlice::new(text)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
    })?;
    while sent < text.len() {
        sent += rustix::io::retry_on_intr(|| {
            rustix::net::send(socket, &text[sent..], SendFlags::NOSIGNAL)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{ContainerProcessState, StateBuilder};
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_agent_gets_one_state_and_the_end_of_the_stream() {
        let directory = tempfile::tempdir().expect("directory");
        let socket = directory.path().join("a".repeat(120)).join("agent.sock");
        std::fs::create_dir(socket.parent().expect("parent")).expect("directory");
        // Bound under a short name: std knows no long one.
        let short = directory.path().join("s");
        let server = UnixListener::bind(&short).expect("binds");
        std::fs::rename(&short, &socket).expect("renames");
        let agent = seccomp::Agent {
            socket,
            metadata: Some("m".to_owned()),
        };
        let state = StateBuilder::default()
            .version("1.3.0")
            .id("c")
            .build()
            .expect("builds");
        let agent = Agent::connect(&agent, state).expect("connects");
        let file = std::fs::File::open("/dev/null").expect("opens");
        agent.hand_over(42, file.as_fd()).expect("hands over");
        let mut text = String::new();
        let (mut connection, _) = server.accept().expect("accepts");
        connection
            .read_to_string(&mut text)
            .expect("reads to the end");
        let told: ContainerProcessState = serde_json::from_str(&text).expect("JSON");
        assert_eq!((*told.pid(), told.metadata().as_deref()), (42, Some("m")));
        assert_eq!(told.fds(), &["seccompFd"]);
        assert_eq!(told.state().id(), "c");
    }

    #[test]
    fn an_agent_that_is_not_there_is_an_error_with_its_path() {
        let agent = seccomp::Agent {
            socket: "/nowhere/agent.sock".into(),
            metadata: None,
        };
        let error = Agent::connect(&agent, State::default()).expect_err("not there");
        assert_eq!(
            error.to_string(),
            "cannot connect to the seccomp agent at /nowhere/agent.sock"
        );
    }
}
