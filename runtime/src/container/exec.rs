//! A process in a container that runs: the child enters the namespaces of the container's first process.
//!
//! Where the container has a user namespace of its own, only that gives rights in the others, and a process becomes a
//! member of a pid namespace at its birth: the [forerunner](super::forerunner) enters all of them and makes the process.
//! So it does where the caller could not come back from the container's pid namespace. Such a caller, in rootless
//! podman's user namespace, has no rights either in what the container shares with the host: that is not entered.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::{LinuxNamespaceType, Spec, State};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::agent::Agent;
use super::channel::{Channel, Word};
use super::child::Child;
use super::error::{At, Error, Failure, Result, Step};
use super::init::report;
use super::inside::Inside;
use super::namespaces::{self, Had, OwnPidNamespace, how};
use super::process::{Affinity, ProcessPlan};
use super::terminal::{self, Terminal};
use super::{
    Container, Exec, Running, Stdio, forerunner, guest, process, procfs, protect, user_namespace,
};
use crate::cgroup::Joiner;
use crate::seccomp::{self, Filter};
use crate::sys;

type Done = std::result::Result<(), Failure>;

/// Everything that the child does, parsed.
#[derive(Debug)]
struct ExecPlan<'a> {
    process: ProcessPlan,
    cgroup: Option<Joiner>,
    affinity: &'a Affinity,
    stdio: Stdio,
    target: BorrowedFd<'a>,
    /// The container has a user namespace of its own.
    user_namespace: bool,
    /// The container has a time namespace of its own.
    time_namespace: bool,
    /// A forerunner enters the pid namespace too.
    has_forerunner: bool,
    /// Namespaces that this process is in already, and need not have the rights to enter.
    shared: ThreadNameSpaceType,
    /// The container's root directory, where its mount namespace does not tell it.
    root: Option<OwnedFd>,
    /// The host's `/proc`, for a child that a forerunner makes where that is out of reach.
    proc: Option<OwnedFd>,
}

/// Runs a process in a container that runs, and returns when its program has been executed. It is a child of the
/// caller, who must have one thread, and is in the pid namespace of `target` as well as in all its others.
///
/// # Errors
/// When it cannot be run; [`Error::exit_code`] tells a missing program from others. No process is left then.
pub fn exec(exec: Exec<'_>) -> Result<Running> {
    protect::ensure_sealed()?;
    let agent = agent_of(exec.seccomp.as_ref(), exec.container)?;
    let affinity = Affinity::new(exec.process)?;
    let (directory, cgroup) = super::cgroup_entry(exec.cgroup)?;
    let own_pid = OwnPidNamespace::hold()?;
    let plan = ExecPlan::new(exec, cgroup, &affinity, own_pid.is_some())?;
    let agent = agent
        .map(|(agent, state)| Agent::connect(&agent, state))
        .transpose()?;
    let (parent, child_end) = Channel::pair(false)?;
    let child = plan.make_child(directory.as_ref(), own_pid, &parent, child_end)?;
    finish(parent, child, agent)
}

/// The agent that the filter wants, and what it is told of the container.
fn agent_of(
    filter: Option<&Filter>,
    container: Option<Container<'_>>,
) -> Result<Option<(seccomp::Agent, State)>> {
    let Some(agent) = filter.and_then(Filter::agent) else {
        return Ok(None);
    };
    let container = container.ok_or_else(|| Error::Unsupported {
        field: "linux.seccomp".to_owned(),
        reason: "SCMP_ACT_NOTIFY needs the container's state for its agent".to_owned(),
    })?;
    Ok(Some((agent.clone(), container.state())))
}

/// True when the container has a user namespace that is not the caller's: the kernel refuses to enter that one.
fn has_user_namespace(spec: &Spec) -> Result<bool> {
    if how(spec, LinuxNamespaceType::User) == Had::Shared {
        return Ok(false);
    }
    match namespaces::path_of(spec, LinuxNamespaceType::User) {
        // Gone, it was not the caller's.
        Some(path) if path.exists() => {
            let joined = namespaces::open(LinuxNamespaceType::User, path)?;
            Ok(!namespaces::is_own(&joined, "user")?)
        }
        _ => Ok(true),
    }
}

/// Hears the child out. End of file: it has executed its program.
fn finish(parent: Channel, mut child: Child, mut agent: Option<Agent>) -> Result<Running> {
    let mut terminal: Option<OwnedFd> = None;
    loop {
        match parent.hear()? {
            Word::Terminal(control) => terminal = Some(control),
            Word::Born(pid, pidfd) => forerunner::succeed(&mut child, pid, pidfd)?,
            Word::Listener(listener) => {
                let agent = agent.take().ok_or(Error::NoListener)?;
                agent.hand_over(child.pid(), listener.as_fd())?;
            }
            Word::End if agent.is_some() => return Err(Error::NoListener),
            Word::End => break,
            Word::IdMaps | Word::Devices(_) | Word::Hooks | Word::Ready(_) => {
                return Err(Error::Channel(std::io::ErrorKind::InvalidData.into()));
            }
        }
    }
    child.release(terminal).map_err(Error::Channel)
}

impl<'a> ExecPlan<'a> {
    /// `comes_back`: the caller can enter the container's pid namespace and come back to its own.
    fn new(
        exec: Exec<'a>,
        cgroup: Option<Joiner>,
        affinity: &'a Affinity,
        comes_back: bool,
    ) -> Result<Self> {
        let spec = exec.container.map(|container| container.spec);
        let linux = spec.and_then(|spec| spec.linux().as_ref());
        process::validate(exec.process, linux)?;
        let mut process = ProcessPlan::new(exec.process, linux, exec.seccomp, exec.preserve_fds)?;
        let user_namespace = spec.map_or(Ok(false), has_user_namespace)?;
        process.limit_capabilities(user_namespace)?;
        let own_time = |spec| how(spec, LinuxNamespaceType::Time) == Had::Own;
        Ok(Self {
            process,
            cgroup,
            affinity,
            stdio: exec.stdio,
            target: exec.target,
            user_namespace,
            time_namespace: spec.is_some_and(own_time),
            has_forerunner: user_namespace || !comes_back,
            shared: match exec.container {
                Some(container) if !comes_back => {
                    let pid = container.pid;
                    namespaces::shared_with(pid).map_err(|source| Error::Process { pid, source })?
                }
                _ => ThreadNameSpaceType::empty(),
            },
            root: match spec {
                Some(spec) if guest::is_guest(spec) => {
                    guest::check_capabilities(exec.process)?;
                    Some(guest::root_of(exec.target)?)
                }
                _ => None,
            },
            proc: None,
        })
    }

    /// Makes the process that does all this, or its forerunner.
    fn make_child(
        self,
        cgroup: Option<&OwnedFd>,
        own_pid: Option<OwnPidNamespace>,
        parent: &Channel,
        child_end: Channel,
    ) -> Result<Child> {
        let (affinity, target) = (self.affinity, self.target);
        let has_forerunner = self.has_forerunner;
        let parent_number = parent.as_raw_fd();
        let mut child_plan = Some((self, child_end));
        let child = || {
            // The parent's end, inherited: with it open here, the parent's death would go unnoticed.
            sys::process::close_number(parent_number);
            match child_plan.take() {
                Some((plan, channel)) if has_forerunner => plan.run_forerunner(channel),
                Some((plan, channel)) => plan.run(channel),
                None => 1,
            }
        };
        let clone = || affinity.around(|| super::clone_into(0, cgroup, child));
        match own_pid {
            Some(own) if !has_forerunner => {
                let pid = ThreadNameSpaceType::PROCESS_ID;
                own.outside(|| Ok(move_into_thread_name_spaces(target, pid)?), clone)
            }
            _ => clone(),
        }
    }

    /// Runs in the forerunner, and returns its exit code; the parent is told what fails.
    fn run_forerunner(mut self, parent: Channel) -> i32 {
        match self.enter() {
            Ok(()) => forerunner::hand_over(0, parent, |parent| self.run_inside(parent)),
            Err(failure) => report(&parent, &failure),
        }
    }

    /// Runs in the child: all steps.
    fn run(mut self, parent: Channel) -> i32 {
        match self.enter() {
            Ok(()) => self.run_inside(parent),
            Err(failure) => report(&parent, &failure),
        }
    }

    /// Into the cgroup and the namespaces; the pid namespace is the child's from birth.
    fn enter(&mut self) -> Done {
        sys::process::reset_signals().at(Step::ResetSignals, "")?;
        if let Some(cgroup) = &self.cgroup {
            cgroup.join().at(Step::JoinCgroup, "")?;
        }
        self.affinity.settle()?;
        self.process.write_oom_score_adj()?;
        if self.has_forerunner {
            self.proc = Some(procfs::root().at(Step::SetLabel, "(/proc)")?);
        } else {
            self.process.open_label_files()?;
            self.process.label_keyring()?;
        }
        let mut all = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::CONTROL_GROUP;
        if self.has_forerunner {
            all |= ThreadNameSpaceType::PROCESS_ID;
        }
        if self.user_namespace {
            all |= ThreadNameSpaceType::USER;
        }
        if self.time_namespace {
            all |= ThreadNameSpaceType::TIME;
        }
        move_into_thread_name_spaces(self.target, all.difference(self.shared))
            .at(Step::JoinNamespace, "of the container")?;
        if let Some(root) = &self.root {
            guest::change_to(root.as_fd())?;
        }
        if self.user_namespace && user_namespace::become_root(0, 0)? {
            self.process.keep_groups();
        }
        Ok(())
    }

    fn run_inside(mut self, channel: Channel) -> i32 {
        if let Err(failure) = self.settle(&channel) {
            return report(&channel, &failure);
        }
        let plan = &mut self.process;
        let channel = match plan.close_descriptors(channel, [None, None]) {
            Ok((channel, _)) => channel,
            Err(failure) => return failure.exit_code(),
        };
        plan.add_home();
        let ready = plan
            .find_program()
            .and_then(|()| plan.set_limits())
            .and_then(|()| plan.set_tight_limits())
            .and_then(|()| plan.give_up_privileges(&channel, || Ok(())));
        let code = match ready {
            Ok(()) => report(&channel, &plan.execute()),
            Err(failure) => report(&channel, &failure),
        };
        // Its descriptors' numbers are closed.
        std::mem::forget(self);
        code
    }

    fn settle(&mut self, channel: &Channel) -> Done {
        if let Some(proc) = &self.proc {
            self.process.open_label_files_in(proc)?;
            self.process.label_keyring_in(proc)?;
        }
        rustix::process::setsid().at(Step::NewSession, "")?;
        sys::process::new_session_keyring().at(Step::NewKeyring, "")?;
        set_up_stdio(&self.process, &self.stdio, self.user_namespace, channel)
    }
}

fn set_up_stdio(
    plan: &ProcessPlan,
    stdio: &Stdio,
    in_user_namespace: bool,
    channel: &Channel,
) -> Done {
    let Stdio::Terminal { size } = *stdio else {
        return terminal::set_up(stdio, None, plan.owner(), in_user_namespace);
    };
    let root = rustix::fs::open(
        c"/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .at(Step::OpenTerminal, "")?;
    let terminal = Terminal::open(None, &Inside::new(root), size, plan.uid())?;
    terminal::set_up(stdio, Some(&terminal), plan.owner(), in_user_namespace)?;
    channel
        .send(b"T", Some(terminal.control.as_fd()))
        .at(Step::OpenTerminal, "")
}
