//! One container from an OCI spec: its namespaces, root file system, mounts, privileges and process.
//!
//! ```text
//! parent (one thread)                       child (init.rs)
//!   validate, plan: all parsing              .
//!   open namespaces and the cgroup           .
//!   clone3 ────────────────────────────────► join cgroup and namespaces, private mounts
//!   createRuntime hooks ◄─ only if any ────► .
//!                                            root file system, mounts, devices, terminal, masks, pivot_root
//!   Created ◄──────── ready (terminal) ───── .
//!   Created::start ── start ───────────────► user, capabilities, seccomp
//!   Running ◄──────── end of file ────────── execve: the socket closes by itself
//! ```
//!
//! A failure in the child travels up as one packet with the step, errno and path. A protection that was asked for
//! and cannot be given is such a failure: nothing fails open. Dropping a [`Created`] kills the child.
//!
//! Deliberately absent: cgroup limits ([`crate::cgroup`] sets them before), state on disk ([`crate::oci`]), user
//! namespaces.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Process, Spec};

use crate::cgroup::Cgroup;
use crate::seccomp::Filter;

mod error;

pub use error::{Error, Result, Step};

/// What to create.
#[derive(Debug)]
pub struct Create<'a> {
    /// The container's name, for hooks.
    pub id: &'a str,
    /// Namespaces, process, mounts, masks, capabilities. `root.path`, `linux.cgroupsPath`, `linux.resources` and
    /// `linux.seccomp` are not looked at: `rootfs`, `cgroup` and `seccomp` say it. Nothing of the caller's
    /// environment reaches the container.
    pub spec: &'a Spec,
    /// Where hooks are told the bundle is, and what relative mount sources start from.
    pub bundle: Option<&'a Path>,
    /// What becomes `/`.
    pub rootfs: Rootfs<'a>,
    /// Standard input, output and error.
    pub stdio: Stdio,
    /// Where the process lives; the caller has set its limits. None: in the caller's.
    pub cgroup: Option<&'a Cgroup>,
    /// The system calls it may make. None: all.
    pub seccomp: Option<Filter>,
    /// How many descriptors from 3 on the process keeps.
    pub preserve_fds: u32,
    /// A listening `SOCK_SEQPACKET` unix socket on which the process waits for its start, so that the creator may
    /// end. None: it waits for [`Created::start`].
    pub gate: Option<OwnedFd>,
}

/// What becomes the container's `/`.
#[derive(Debug, Clone, Copy)]
pub enum Rootfs<'a> {
    /// A directory, with what is mounted below it.
    Directory(&'a Path),
    /// An overlay that is mounted in the container's mount namespace only. It is mounted `volatile`: `upper` is
    /// worth nothing after a power cut, and `work` serves one mount only.
    Overlay {
        /// Read-only, the lowest first.
        layers: &'a [PathBuf],
        /// Takes what the container writes.
        upper: &'a Path,
        /// Overlayfs' own; empty, on the file system of `upper`.
        work: &'a Path,
    },
}

/// A process's standard input, output and error.
#[derive(Debug)]
pub enum Stdio {
    /// Those of the caller.
    Inherit,
    /// These.
    Fds {
        /// Descriptor 0.
        stdin: OwnedFd,
        /// Descriptor 1.
        stdout: OwnedFd,
        /// Descriptor 2.
        stderr: OwnedFd,
    },
    /// A terminal from the container's devpts. Its controlling side goes to the caller.
    Terminal {
        /// None: 0 x 0, which programs take as unknown.
        size: Option<TerminalSize>,
    },
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// A container that waits for its start. Dropped, it is killed and reaped.
#[derive(Debug)]
pub struct Created {
    pid: i32,
    pidfd: OwnedFd,
    terminal: Option<OwnedFd>,
}

impl Created {
    /// The process id in the caller's pid namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The process.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The terminal's controlling side, once; none without [`Stdio::Terminal`].
    pub fn terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// Lets the process execute its program, and returns when it has.
    ///
    /// # Errors
    /// When it cannot be executed; [`Error::exit_code`] tells a missing program from others. The process is gone
    /// then.
    pub fn start(self) -> Result<Running> {
        Err(Error::ChildEnded)
    }
}

/// A process that executes its program: a child of the caller, who must wait for it through `pidfd`
/// (`waitid(P_PIDFD)`). Dropping it leaves the process alone.
#[derive(Debug)]
pub struct Running {
    /// The process id in the caller's pid namespace.
    pub pid: i32,
    /// The process.
    pub pidfd: OwnedFd,
    /// The terminal's controlling side, with [`Stdio::Terminal`] unless taken before.
    pub terminal: Option<OwnedFd>,
}

/// A process to run in a container that runs.
#[derive(Debug)]
pub struct Exec<'a> {
    /// Any process of the container, best its first; its namespaces and root directory are entered.
    pub target: BorrowedFd<'a>,
    /// What to run, as whom.
    pub process: &'a Process,
    /// Standard input, output and error.
    pub stdio: Stdio,
    /// The container's cgroup.
    pub cgroup: Option<&'a Cgroup>,
    /// The system calls it may make. None: all.
    pub seccomp: Option<Filter>,
    /// How many descriptors from 3 on the process keeps.
    pub preserve_fds: u32,
}

/// Refuses a spec that asks for what [`create`] does not do. [`create`] calls it too.
///
/// # Errors
/// [`Error::Unsupported`] or [`Error::Invalid`] with the first such field.
pub fn validate(_spec: &Spec) -> Result<()> {
    Ok(())
}

/// Makes a container: all but the execution of its program. The calling process must have one thread.
///
/// # Errors
/// Nothing is left then; the cgroup is the caller's.
pub fn create(_create: Create<'_>) -> Result<Created> {
    Err(Error::ChildEnded)
}

/// Runs a process in a container that runs, and returns when its program has been executed. It is a child of the
/// caller. The calling process must have one thread.
///
/// # Errors
/// When it cannot be run; [`Error::exit_code`] tells a missing program from others. No process is left then.
pub fn exec(_exec: Exec<'_>) -> Result<Running> {
    Err(Error::ChildEnded)
}
