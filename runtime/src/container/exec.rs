//! A process in a container that runs: the child enters the namespaces of the container's first process.

use std::os::fd::{BorrowedFd, OwnedFd};

use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::{Mode, OFlags};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::channel::{Channel, Word};
use super::child::Child;
use super::error::{At, Error, Failure, Result, Step};
use super::init::report;
use super::inside::Inside;
use super::namespaces::{self, in_pid_namespace};
use super::process::{Affinity, ProcessPlan};
use super::terminal::{self, Terminal};
use super::{Exec, Running, Stdio, process, protect};
use crate::cgroup::Joiner;
use crate::sys;

type Done = std::result::Result<(), Failure>;

/// Runs a process in a container that runs, and returns when its program has been executed. It is a child of the
/// caller, who must have one thread, and is in the pid namespace of `target` as well as in all its others.
///
/// # Errors
/// When it cannot be run; [`Error::exit_code`] tells a missing program from others. No process is left then.
pub fn exec(exec: Exec<'_>) -> Result<Running> {
    protect::ensure_sealed()?;
    let linux = exec.spec.and_then(|spec| spec.linux().as_ref());
    process::validate(exec.process, linux)?;
    let affinity = Affinity::new(exec.process)?;
    let mut plan = ProcessPlan::new(exec.process, linux, exec.seccomp, exec.preserve_fds)?;
    let own_user_namespace = exec.spec.is_some_and(|spec| {
        namespaces::how(spec, LinuxNamespaceType::User) == namespaces::Had::Own
    });
    plan.limit_capabilities(own_user_namespace)?;
    let (directory, joiner) = super::cgroup_entry(exec.cgroup)?;
    let (parent, child_end) = Channel::pair(false)?;
    let mut child_plan = Some((plan, joiner, exec.stdio, child_end));
    let affinity = &affinity;
    let child = in_pid_namespace(
        || {
            Ok(move_into_thread_name_spaces(
                exec.target,
                ThreadNameSpaceType::PROCESS_ID,
            )?)
        },
        || {
            let target = exec.target;
            let parent_number = parent.as_raw_fd();
            affinity.around(|| {
                super::clone_into(0, directory.as_ref(), || {
                    sys::process::close_number(parent_number);
                    match child_plan.take() {
                        Some((plan, joiner, stdio, channel)) => {
                            run(plan, joiner.as_ref(), affinity, &stdio, target, channel)
                        }
                        None => 1,
                    }
                })
            })
        },
    )?;
    drop(child_plan);
    finish(parent, child)
}

/// Hears the child out. End of file: it has executed its program.
fn finish(parent: Channel, child: Child) -> Result<Running> {
    let mut terminal: Option<OwnedFd> = None;
    loop {
        match parent.hear()? {
            Word::Terminal(control) => terminal = Some(control),
            Word::End => break,
            Word::Hooks | Word::Ready(_) => {
                return Err(Error::Channel(std::io::ErrorKind::InvalidData.into()));
            }
        }
    }
    child.release(terminal).map_err(Error::Channel)
}

/// In the child: all steps.
fn run(
    mut plan: ProcessPlan,
    cgroup: Option<&Joiner>,
    affinity: &Affinity,
    stdio: &Stdio,
    target: BorrowedFd<'_>,
    channel: Channel,
) -> i32 {
    let entered = enter(&mut plan, cgroup, affinity, target)
        .and_then(|()| set_up_stdio(&plan, stdio, &channel));
    if let Err(failure) = entered {
        return report(&channel, &failure);
    }
    let channel = match plan.close_descriptors(channel, [None, None]) {
        Ok((channel, _)) => channel,
        Err(failure) => return failure.exit_code(),
    };
    plan.add_home();
    let ready = plan
        .find_program()
        .and_then(|()| plan.set_limits())
        .and_then(|()| plan.give_up_privileges(|| Ok(())));
    match ready {
        Ok(()) => report(&channel, &plan.execute()),
        Err(failure) => report(&channel, &failure),
    }
}

/// Into the cgroup and the namespaces; the pid namespace is the child's from birth.
fn enter(
    plan: &mut ProcessPlan,
    cgroup: Option<&Joiner>,
    affinity: &Affinity,
    target: BorrowedFd<'_>,
) -> Done {
    sys::process::reset_signals().at(Step::ResetSignals, "")?;
    if let Some(cgroup) = cgroup {
        cgroup.join().at(Step::JoinCgroup, "")?;
    }
    affinity.settle()?;
    plan.write_oom_score_adj()?;
    plan.open_label_files()?;
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::CONTROL_GROUP;
    move_into_thread_name_spaces(target, all).at(Step::JoinNamespace, "of the container")?;
    rustix::process::setsid().at(Step::NewSession, "")?;
    sys::process::new_session_keyring().at(Step::NewKeyring, "")
}

fn set_up_stdio(plan: &ProcessPlan, stdio: &Stdio, channel: &Channel) -> Done {
    let Stdio::Terminal { size } = *stdio else {
        return terminal::set_up(stdio, None, plan.uid());
    };
    let root = rustix::fs::open(
        c"/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .at(Step::OpenTerminal, "")?;
    let terminal = Terminal::open(None, &Inside::new(root), size, plan.uid())?;
    terminal::set_up(stdio, Some(&terminal), plan.uid())?;
    channel
        .send(b"T", Some(std::os::fd::AsFd::as_fd(&terminal.control)))
        .at(Step::OpenTerminal, "")
}
