//! One container from an OCI spec: its namespaces, root file system, mounts, privileges and process.
//!
//! ```text
//! parent (one thread)                       child (init.rs)
//!   validate, plan: all parsing              .
//!   open namespaces and the cgroup           .
//!   clone3 ────────────────────────────────► network namespace, cgroup, namespaces to join
//!   cgroup_is_made ◄─ only if planned ─────► .
//!   createRuntime hooks ◄─ only if any ────► .
//!                                            root file system, mounts, devices, terminal, masks, pivot_root
//!   Created ◄──────── ready (terminal) ───── .
//!   Created::start ── start ───────────────► user, capabilities, seccomp
//!   Running ◄──────── end of file ────────── execve: the socket closes by itself
//! ```
//!
//! A failure in the child travels up as one packet with the step, errno and path. A protection that was asked for
//! and cannot be given is such a failure: nothing fails open. Dropping a [`Created`] kills the child. The parent need
//! not wait in between: several containers can be at any stage at once (`stages`).
//!
//! With a user namespace the parent opens the host's side of root file system and mounts, which the namespace's root
//! may not reach, and writes the id maps; other namespaces by path, and time offsets, take a forerunner
//! ([`namespaces`]).
//!
//! Deliberately absent: cgroup limits ([`crate::cgroup`] sets them before), state on disk ([`crate::oci`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{ContainerState, LinuxNamespaceType, Process, Spec, State};

use crate::cgroup::{Cgroup, Joiner};
use crate::seccomp::{self, Filter};
use crate::sys;

mod agent;
mod cgroup_mounts;
mod channel;
mod child;
pub mod config;
mod copy_up;
mod detached;
mod devices;
mod error;
mod exec;
mod forerunner;
mod given_nodes;
mod guest;
pub mod hooks;
mod id_mapped;
mod id_maps;
mod init;
mod inside;
mod masks;
mod mount_label;
mod mount_options;
mod mount_plan;
mod mounts;
mod namespaces;
mod net_devices;
mod no_pivot;
mod places;
mod process;
mod procfs;
pub mod protect;
pub mod resctrl;
mod rootfs;
mod stages;
mod sysctls;
mod terminal;
mod time_offsets;
mod user_namespace;
mod validate;

use agent::Agent;
use channel::Channel;
use child::Child;
use init::{InitPlan, Joining};
use stages::Told;

pub use devices::with_device_rules;
pub use error::{Error, Result, Step};
pub use exec::exec;
pub(crate) use init::KEEP_GROUPS;
pub use mount_plan::is_bind;
pub use places::make_mount_places;
pub use stages::{Created, Creating, Executing};
pub use validate::validate;

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
    /// Where the process lives.
    pub home: Home<'a>,
    /// The system calls it may make. None: all.
    pub seccomp: Option<Filter>,
    /// How many descriptors from 3 on the process keeps, after those of `listen_fds`.
    pub preserve_fds: u32,
    /// Descriptors from 3 on that are the program's by socket activation.
    pub listen_fds: Option<ListenFds>,
    /// It gets a session keyring of its own; without, it has the caller's, and reads the keys in it.
    pub new_keyring: bool,
    /// The root file system covers the host's root directory, for want of pivot_root(2) on an initial RAM disk.
    pub no_pivot: bool,
    /// A listening `SOCK_SEQPACKET` unix socket on which the process waits for its start, so that the creator may
    /// end. None: it waits for [`Created::start`].
    pub gate: Option<OwnedFd>,
}

/// The cgroup of a container's process.
#[derive(Debug, Clone, Copy)]
pub enum Home<'a> {
    /// That of the caller.
    Callers,
    /// This one; the caller has set its limits.
    In(&'a Cgroup),
    /// This one of v1, which the caller makes with its limits after [`begin`], while the process makes its network
    /// namespace, and says so by [`Creating::cgroup_is_made`]. Not for [`create`], which waits at once, nor for containers
    /// with a user namespace, which could not join it.
    InPlanned(&'a Cgroup),
}

impl<'a> Home<'a> {
    fn cgroup(self) -> Option<&'a Cgroup> {
        match self {
            Self::Callers => None,
            Self::In(cgroup) | Self::InPlanned(cgroup) => Some(cgroup),
        }
    }
}

/// Descriptors that the program is told of as sd_listen_fds(3) has it: `LISTEN_FDS`, `LISTEN_PID` and
/// `LISTEN_FDNAMES`, with the pid that it has in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenFds {
    /// How many.
    pub count: u32,
    /// Their names, with colons between.
    pub names: Option<String>,
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

impl Stdio {
    /// What will be 0, 1 and 2; those of the caller stand in for a terminal.
    fn fds(&self) -> [BorrowedFd<'_>; 3] {
        match self {
            Self::Fds {
                stdin,
                stdout,
                stderr,
            } => [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            Self::Inherit | Self::Terminal { .. } => [
                rustix::stdio::stdin(),
                rustix::stdio::stdout(),
                rustix::stdio::stderr(),
            ],
        }
    }
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// Starts the container that waits at a gate, and returns when it has executed its program. `connection` is connected
/// to the gate's address; `agent` gets the listener of its filter, unless it has got it when the container was created
/// ([`Created::agent_is_told`]).
///
/// # Errors
/// When it cannot be executed, or its seccomp agent cannot be reached. The process ends then.
pub fn start_at_gate(
    connection: OwnedFd,
    container: &Container<'_>,
    agent: Option<&seccomp::Agent>,
) -> Result<()> {
    let agent = agent
        .map(|agent| Agent::connect(agent, container.state()))
        .transpose()?;
    let process = match &agent {
        Some(_) => Some(
            sys::pidfd::open(container.pid).map_err(|source| Error::Process {
                pid: container.pid,
                source,
            })?,
        ),
        None => None,
    };
    let channel = Channel::connected(connection)?;
    let started = stages::say_start(&channel)
        .and_then(|()| stages::hear_executed(&channel, container.pid, agent));
    started.inspect_err(|_| {
        // It must not go on without its agent. One that failed by itself has ended.
        if let Some(process) = process
            && let Err(error) = sys::pidfd::send_signal(process.as_fd(), libc::SIGKILL)
        {
            tracing::debug!(%error, pid = container.pid, "the process had ended already");
        }
    })
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

/// A container that is there, as hooks and seccomp agents are told of it.
#[derive(Debug, Clone, Copy)]
pub struct Container<'a> {
    /// Its name.
    pub id: &'a str,
    /// Its spec.
    pub spec: &'a Spec,
    /// Its bundle.
    pub bundle: Option<&'a Path>,
    /// Its first process, in the caller's pid namespace.
    pub pid: i32,
}

impl Container<'_> {
    fn state(&self) -> State {
        let running = ContainerState::Running;
        hooks::state(self.id, self.spec, self.bundle, running, Some(self.pid))
    }
}

/// A process to run in a container that runs.
#[derive(Debug)]
pub struct Exec<'a> {
    /// Any process of the container, best its first; its namespaces and root directory are entered.
    pub target: BorrowedFd<'a>,
    /// What to run, as whom.
    pub process: &'a Process,
    /// The container: its spec tells whether there is a user or a time namespace to enter, its personality and memory
    /// policy hold for all of its processes, and its seccomp agent is told of it. None: the caller's namespaces,
    /// personality and policy, and no filter that notifies.
    pub container: Option<Container<'a>>,
    /// Standard input, output and error.
    pub stdio: Stdio,
    /// The container's cgroup.
    pub cgroup: Option<&'a Cgroup>,
    /// The system calls it may make. None: all.
    pub seccomp: Option<Filter>,
    /// How many descriptors from 3 on the process keeps.
    pub preserve_fds: u32,
}

/// Makes a container: all but the execution of its program. The calling process must have one thread, and have
/// called [`protect::seal`].
///
/// # Errors
/// Nothing is left then; the cgroup is the caller's.
pub fn create(create: Create<'_>) -> Result<Created> {
    begin(create)?.wait()
}

/// Begins to make a container, as [`create`] does, and does not wait for it: several can be made side by side.
///
/// # Errors
/// As [`create`].
pub fn begin(create: Create<'_>) -> Result<Creating> {
    protect::ensure_sealed()?;
    validate(create.spec)?;
    let spec = create.spec;
    let agent = create.seccomp.as_ref().and_then(Filter::agent).cloned();
    let is_told = has_runtime_hooks(spec) || agent.is_some() || resctrl::is_asked(spec);
    let told = is_told.then(|| Told::new(&create));
    let (directory, joining) = match create.home {
        Home::InPlanned(_) => (None, Joining::Awaited),
        home => {
            let (directory, joiner) = cgroup_entry(home.cgroup())?;
            (directory, joiner.map_or(Joining::Nothing, Joining::With))
        }
    };
    let mut plan = InitPlan::new(create, joining)?;
    let mapping = plan.namespaces.user.mapping();
    prepare(&mut plan)?;
    let patient = spec.hooks().is_some();
    let (parent, child_end) = Channel::pair(patient)?;
    let own_user_namespace = plan.namespaces.has_user_namespace();
    plan.limit_capabilities(own_user_namespace)?;
    let has_forerunner = plan.namespaces.needs_forerunner();
    let flags = match has_forerunner {
        true => 0,
        false => plan.namespaces.clone_flags,
    };

    let pid_namespace = plan.namespaces.take_pid_namespace();
    let parent_number = parent.as_raw_fd();

    let mut child_plan = Some((plan, child_end));
    let child = namespaces::with_pid_namespace(pid_namespace.as_ref(), || {
        clone_into(flags, directory.as_ref(), || {
            // The parent's end, inherited: with it open here, the parent's death would go unnoticed.
            sys::process::close_number(parent_number);
            match child_plan.take() {
                Some((plan, channel)) if has_forerunner => plan.run_forerunner(channel),
                Some((plan, channel)) => plan.run(channel),
                None => 1,
            }
        })
    })?;
    drop(child_plan);

    Ok(Creating {
        child,
        channel: parent,
        mapping,
        devices: net_devices::plan(spec)?,
        agent,
        told,
        has_forerunner,
        moved: None,
        agent_is_told: false,
    })
}

/// What only the caller may do, or may not.
fn prepare(plan: &mut InitPlan) -> Result<()> {
    let own_user_namespace = plan.namespaces.has_user_namespace();
    let ids_mapped = plan.has_mapped_mounts();
    let is_root = rustix::process::geteuid().is_root();
    if is_root && !own_user_namespace && !ids_mapped {
        return Ok(());
    }
    let refused = |field: &str, reason: &str| {
        Err(Error::Invalid {
            field: field.to_owned(),
            reason: reason.to_owned(),
        })
    };
    let is_privileged = user_namespace::is_privileged()?;
    if !is_privileged && ids_mapped {
        return refused("mounts", "only root maps the ids of a mount");
    }
    if !is_privileged && !own_user_namespace {
        return refused(
            "linux.namespaces",
            "an ordinary user's container needs a user namespace (see the command spec --rootless)",
        );
    }
    if ids_mapped {
        plan.map_mounts()?;
    }
    if is_privileged && own_user_namespace {
        plan.open_as_caller()?;
    }
    Ok(())
}

/// The v2 directory for clone3, or what a child joins a v1 cgroup with.
fn cgroup_entry(cgroup: Option<&Cgroup>) -> Result<(Option<OwnedFd>, Option<Joiner>)> {
    let Some(cgroup) = cgroup else {
        return Ok((None, None));
    };
    if let Some(directory) = cgroup.clone_target().map_err(Error::Cgroup)? {
        return Ok((Some(directory), None));
    }
    Ok((None, Some(cgroup.joiner().map_err(Error::Cgroup)?)))
}

fn clone_into(flags: u64, cgroup: Option<&OwnedFd>, child: impl FnOnce() -> i32) -> Result<Child> {
    match sys::clone::clone_child(flags, cgroup.map(AsFd::as_fd), child) {
        Ok(child) => Ok(Child::new(child)),
        Err(error) => match sys::clone::thread_count() {
            Ok(threads) if threads != 1 => Err(Error::Threads { threads }),
            _ => Err(Error::Clone(error)),
        },
    }
}

fn has_runtime_hooks(spec: &Spec) -> bool {
    spec.hooks().as_ref().is_some_and(|hooks| {
        let some = |list: Option<&Vec<_>>| list.is_some_and(|l| !l.is_empty());
        some(hooks::prestart(hooks).as_ref()) || some(hooks.create_runtime().as_ref())
    })
}

/// How many mounts the spec's are, planned as [`create`] does for a bundle at `/`, without a container: for who checks
/// configurations.
///
/// # Errors
/// When one of them is wrong or not supported.
pub fn plan_mounts(spec: &Spec) -> Result<usize> {
    mount_plan::plan(spec, Some(Path::new("/")), None).map(|plans| plans.len())
}

/// True when the spec has a user namespace, new or by path.
pub fn has_user_namespace(spec: &Spec) -> bool {
    namespaces::how(spec, LinuxNamespaceType::User) == namespaces::Had::Own
}

fn process_of(spec: &Spec) -> Result<&Process> {
    spec.process().as_ref().ok_or_else(|| Error::Invalid {
        field: "process".to_owned(),
        reason: "is missing".to_owned(),
    })
}
