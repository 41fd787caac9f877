//! The messages between a pod supervisor and whoever holds its socket.
//!
//! `<pod dir>/supervisor.sock` is a `SOCK_SEQPACKET` unix socket of mode 0600; each packet is one JSON object.
//! A connection sends [`Request`]s and gets one [`Reply`] for each, in order; after [`Request::Subscribe`] it also
//! gets a [`Reply::Snapshot`] at once and after every change. Descriptors travel as `SCM_RIGHTS` with the packet
//! that speaks of them, so that the bytes of an exec never pass through the supervisor.
//!
//! ```text
//! <run-dir>/pods/<uid>/            the pod directory
//!     plan.json                    written by the agent, atomically
//!     taken.json                   the plan that the supervisor took last
//!     state.json                   the supervisor's crash-safe record
//!     supervisor.sock
//! ```

use serde::{Deserialize, Serialize};

use super::snapshot::Snapshot;

/// The largest packet, in bytes; below the kernel's default send buffer (`net.core.wmem_default`, 212,992).
pub const MAX_PACKET_BYTES: usize = 192 * 1024;

/// The plan's file name in the pod directory.
pub const PLAN_FILE: &str = "plan.json";
/// The plan that the supervisor took last: that of [`PLAN_FILE`], unless it refuses it.
pub const TAKEN_PLAN_FILE: &str = "taken.json";
/// The supervisor's record in the pod directory.
pub const STATE_FILE: &str = "state.json";
/// The socket's name in the pod directory.
pub const SOCKET_FILE: &str = "supervisor.sock";

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Send a snapshot now and after every change.
    Subscribe,
    /// Read `plan.json` again.
    Reload,
    /// End the pod: preStop hooks, stop signals, then SIGKILL after the grace period. Asked again with a shorter
    /// grace, the shorter one counts.
    Terminate {
        /// In seconds; 0 kills at once.
        grace_secs: u64,
        /// Shown in the log.
        reason: String,
    },
    /// Leave: the supervisor ends if the pod has ended, having removed its cgroups; refused otherwise.
    Release,
    /// Run a command in a container. The reply [`Reply::ExecStarted`] brings descriptors: with `tty` the pty's
    /// controlling side; else, in this order, the writing end of stdin (if asked for), the reading ends of stdout
    /// and stderr. The command has the environment and the rights that the container was started with.
    /// [`Reply::ExecExited`] follows on the same connection. When the connection is closed before, the command and
    /// its process group get SIGHUP, with and without a terminal: a client that is gone is a line that hangs up.
    Exec {
        /// Which container.
        container: String,
        /// Program and arguments, no shell.
        command: Vec<String>,
        /// Give it a terminal.
        tty: bool,
        /// Give it a standard input.
        stdin: bool,
        /// The terminal's size, columns and rows.
        size: Option<(u16, u16)>,
    },
    /// Send a signal to the commands that this connection started, and their process groups. [`Reply::Ok`], also
    /// when they have ended meanwhile.
    Signal {
        /// Its number.
        signal: i32,
    },
    /// The descriptors of a running container's terminal or standard input; output goes on to the log.
    Attach {
        /// Which container.
        container: String,
    },
}

/// What the supervisor answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Ok,
    /// The pod as it is.
    Snapshot(Box<Snapshot>),
    /// The command runs; descriptors come with this packet.
    ExecStarted,
    /// The command does not run.
    ExecRefused {
        /// As a shell would have it: 127 for a program that is not there, 126 for one that cannot be executed.
        exit_code: i32,
        /// Why, with its causes.
        message: String,
    },
    /// The command has ended.
    ExecExited {
        /// 128 + the signal's number for a signal.
        exit_code: i32,
    },
    /// The descriptors come with this packet.
    Attached,
    /// Refused or failed.
    Error {
        /// The error with its causes.
        message: String,
    },
}
