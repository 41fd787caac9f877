//! System call filters: OCI profiles compiled to BPF, and put on the container's process.
//!
//! ```text
//! default_profile(capabilities) ─┐
//! OCI linux.seccomp ─────────────┴─► compile() ──► Filter ──► load() in the child, just before exec
//!                                      │
//!                      rules by name ──┴─► numbers by architecture ─► program: a search by number, then conditions
//! ```
//!
//! The compiler is Podling's own. libseccomp, which the other runtimes have, takes 10 ms and a megabyte for a profile like
//! Docker's, which was the most of a node's first pod, makes filters that allow too much of some rules (2.5.4 allows
//! `socket(_, 0, 7)` where only `arg1 & 1 == 0 && arg2 < 1` and `arg1 > 0` are allowed), and never comes back from others.
//! Where it can be trusted, tests hold this compiler to what it says.
//!
//! A filter with `SCMP_ACT_NOTIFY` gives a listener when it is loaded, which goes to the profile's [`Agent`]
//! ([`crate::container`] brings it there). A profile that cannot be applied as it is written is an error, and the
//! container does not start.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};

mod action;
mod architecture;
mod bpf;
mod compile;
mod conditions;
mod default;
mod error;
mod program;
mod sys;
mod verdict;

pub use default::default_profile;
pub use error::{Error, Result};

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    flags: u32,
    program: Vec<u8>,
    agent: Option<Agent>,
}

/// Who decides about the calls of a filter with `SCMP_ACT_NOTIFY` (runtime-spec config-linux.md#seccomp).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// The host's path of a stream socket on which the agent listens (`listenerPath`).
    pub socket: PathBuf,
    /// Passed on as it is (`listenerMetadata`).
    pub metadata: Option<String>,
}

impl Agent {
    /// The profile's agent. None when nothing of the profile notifies: then its path is ignored, as the
    /// specification says.
    pub fn of(profile: &LinuxSeccomp) -> Option<Self> {
        let socket = profile.listener_path().clone()?;
        notifies(profile).then(|| Self {
            socket,
            metadata: profile.listener_metadata().clone(),
        })
    }
}

/// True when a rule or the default of the profile is `SCMP_ACT_NOTIFY`.
fn notifies(profile: &LinuxSeccomp) -> bool {
    profile
        .syscalls()
        .iter()
        .flatten()
        .map(oci_spec::runtime::LinuxSyscall::action)
        .chain([profile.default_action()])
        .any(|action| action == LinuxSeccompAction::ScmpActNotify)
}

/// Compiles a profile.
///
/// # Errors
/// When the profile asks for what is not supported; then the container must not start.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    let compiled = compile::compile(profile)?;
    Ok(Filter {
        flags: compiled.flags,
        program: compiled.program,
        agent: Agent::of(profile),
    })
}

impl Filter {
    /// Who gets the listener, for a filter that gives one.
    pub fn agent(&self) -> Option<&Agent> {
        self.agent.as_ref()
    }

    /// Puts the filter on the calling thread. Async-signal-safe: one system call, no allocation. It takes
    /// CAP_SYS_ADMIN in the thread's user namespace or no_new_privs: without no_new_privs call it before capabilities
    /// are dropped. With [`Filter::agent`] it gives the listener, close-on-exec: as long as somebody holds it, calls
    /// that notify wait for an answer; after that they fail with ENOSYS.
    ///
    /// # Errors
    /// When the kernel refuses it; then the container must not start.
    pub fn load(&self) -> io::Result<Option<OwnedFd>> {
        sys::set_filter(self.flags, &self.program)
    }

    /// True when a process may have this filter while it waits for its start: what it calls from then to its program
    /// (with what its allocator calls) is allowed.
    pub(crate) fn lets_wait(&self) -> bool {
        const CALLS: [i64; 13] = [
            libc::SYS_sendmsg,
            libc::SYS_accept4,
            libc::SYS_recvmsg,
            libc::SYS_close,
            libc::SYS_restart_syscall,
            libc::SYS_brk,
            libc::SYS_mmap,
            libc::SYS_mremap,
            libc::SYS_munmap,
            libc::SYS_madvise,
            libc::SYS_futex,
            libc::SYS_execve,
            libc::SYS_exit_group,
        ];
        CALLS
            .iter()
            .all(|&number| compile::allows(&self.program, number))
    }

    /// The number of BPF instructions.
    pub fn instructions(&self) -> usize {
        self.program.len() / 8
    }
}

#[cfg(test)]
mod tests;
