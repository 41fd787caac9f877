//! The stages of a container that is being made, as its parent sees them.
//!
//! ```text
//! begin ──► Creating ── wait ──► Created ── go ──► Executing ── wait ──► Running
//!        id maps, hooks, agent      │                 seccomp agent
//!                                   └── leave ──► Running, which waits at its gate
//! ```
//!
//! Each is killed and reaped when it is dropped; a [`Running`] is the caller's to wait for.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::{ContainerState, Spec, State};

use super::agent::Agent;
use super::channel::{Channel, Word};
use super::child::Child;
use super::error::{Error, Result};
use super::net_devices::{self, Device};
use super::user_namespace::Mapping;
use super::{Create, Running, forerunner, hooks, resctrl};
use crate::cgroup::Cgroup;
use crate::seccomp;

/// A container that is being made by its own process.
#[derive(Debug)]
pub struct Creating {
    /// The host's network devices that it has got; they come back, before all else goes, if it is not made.
    pub(super) moved: Option<net_devices::Moved>,
    pub(super) child: Child,
    pub(super) channel: Channel,
    pub(super) mapping: Option<Mapping>,
    /// The host's network devices that it gets.
    pub(super) devices: Vec<Device>,
    /// Who gets the listener of its filter.
    pub(super) agent: Option<seccomp::Agent>,
    /// There if anybody is told of it, or if it has a resctrl class.
    pub(super) told: Option<Told>,
    /// The child is the forerunner still.
    pub(super) has_forerunner: bool,
    pub(super) agent_is_told: bool,
}

/// What hooks and seccomp agents are told of a container.
#[derive(Debug)]
pub(super) struct Told {
    id: String,
    spec: Box<Spec>,
    bundle: Option<PathBuf>,
}

impl Told {
    pub(super) fn new(create: &Create<'_>) -> Self {
        Self {
            id: create.id.to_owned(),
            spec: Box::new(create.spec.clone()),
            bundle: create.bundle.map(Into::into),
        }
    }

    fn state(&self, status: ContainerState, pid: i32) -> State {
        hooks::state(
            &self.id,
            &self.spec,
            self.bundle.as_deref(),
            status,
            Some(pid),
        )
    }

    /// `prestart` (deprecated) and `createRuntime`: in the caller's namespaces, before the container's root is made.
    fn run_hooks(&self, pid: i32) -> Result<()> {
        let Some(list) = self.spec.hooks() else {
            return Ok(());
        };
        let creating = ContainerState::Creating;
        let bundle = self.bundle.as_deref();
        let state = hooks::state_json(&self.id, &self.spec, bundle, creating, Some(pid));
        hooks::run_all("prestart", hooks::prestart(list).as_ref(), &state, bundle)?;
        hooks::run_all(
            "createRuntime",
            list.create_runtime().as_ref(),
            &state,
            bundle,
        )
    }
}

impl Creating {
    /// Lets the process join its cgroup and go on ([`super::Home::InPlanned`]).
    ///
    /// # Errors
    /// When it cannot be told, or the cgroup is not there. Why the process has ended, if it has, [`Self::wait`] hears.
    pub fn cgroup_is_made(&self, cgroup: &Cgroup) -> Result<()> {
        let joiner = cgroup.joiner().map_err(Error::Cgroup)?;
        match self.channel.send_joiner(&joiner) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent.map_err(Error::Channel),
        }
    }

    /// The process id in the caller's pid namespace, as soon as the process is there: at once, but with namespaces that
    /// take a process before it.
    ///
    /// # Errors
    /// As [`super::create`].
    pub fn pid(&mut self) -> Result<i32> {
        while self.has_forerunner {
            if self.answer()?.is_break() {
                return Err(unexpected());
            }
        }
        Ok(self.child.pid())
    }

    /// Does the parent's part, and returns when the container waits for its start.
    ///
    /// # Errors
    /// As [`super::create`].
    pub fn wait(mut self) -> Result<Created> {
        let terminal = loop {
            if let ControlFlow::Break(terminal) = self.answer()? {
                break terminal;
            }
        };
        if let Some(moved) = self.moved {
            moved.keep();
        }
        let pid = self.child.pid();
        if let Some(told) = &self.told {
            resctrl::assign(&told.spec, &told.id, pid)?;
        }
        let state = self
            .told
            .as_ref()
            .map(|told| told.state(ContainerState::Running, pid));
        Ok(Created {
            agent: self.agent.zip(state),
            agent_is_told: self.agent_is_told,
            child: self.child,
            terminal,
            channel: self.channel,
        })
    }

    /// Hears one word and does the parent's part; stops with the terminal, if any, when the process is ready.
    fn answer(&mut self) -> Result<ControlFlow<Option<OwnedFd>>> {
        match self.channel.hear()? {
            Word::IdMaps => {
                let mapping = self.mapping.as_ref().ok_or_else(unexpected)?;
                mapping.settle(self.child.pid())?;
                self.channel.send(b"u", None).map_err(Error::Channel)?;
            }
            Word::Born(pid, pidfd) => {
                forerunner::succeed(&mut self.child, pid, pidfd)?;
                self.has_forerunner = false;
            }
            Word::Devices(socket) => {
                self.moved = Some(net_devices::move_in(&self.devices, socket)?);
                self.channel.send(b"n", None).map_err(Error::Channel)?;
            }
            Word::Hooks => {
                let told = self.told.as_ref().ok_or_else(unexpected)?;
                told.run_hooks(self.child.pid())?;
                self.channel.send(b"h", None).map_err(Error::Channel)?;
            }
            Word::Listener(listener) => {
                let (agent, told) = self
                    .agent
                    .take()
                    .zip(self.told.as_ref())
                    .ok_or(Error::NoListener)?;
                let pid = self.child.pid();
                let state = told.state(ContainerState::Creating, pid);
                Agent::connect(&agent, state)?.hand_over(pid, listener.as_fd())?;
                self.agent_is_told = true;
            }
            Word::Ready(terminal) => return Ok(ControlFlow::Break(terminal)),
            Word::End => return Err(Error::ChildEnded),
            Word::Terminal(_) => return Err(unexpected()),
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// A word that does not belong here.
fn unexpected() -> Error {
    Error::Channel(io::ErrorKind::InvalidData.into())
}

/// A container that waits for its start.
#[derive(Debug)]
pub struct Created {
    child: Child,
    terminal: Option<OwnedFd>,
    channel: Channel,
    /// Who gets the listener of its filter at the start, and what it is told of the container.
    agent: Option<(seccomp::Agent, State)>,
    agent_is_told: bool,
}

impl Created {
    /// The process id in the caller's pid namespace.
    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// The process.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd()
    }

    /// True when the agent of its filter has got the listener already: only with a gate.
    pub fn agent_is_told(&self) -> bool {
        self.agent_is_told
    }

    /// The terminal's controlling side, once; none without [`super::Stdio::Terminal`].
    pub fn terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// Lets the process execute its program, and returns when it has. Not for a container with a gate.
    ///
    /// # Errors
    /// When it cannot be executed; [`Error::exit_code`] tells a missing program from others. The process is gone
    /// then.
    pub fn start(self) -> Result<Running> {
        self.go()?.wait()
    }

    /// Lets the process execute its program, and does not wait for it. Not for a container with a gate.
    ///
    /// # Errors
    /// When it cannot be told, or its seccomp agent cannot be reached.
    pub fn go(self) -> Result<Executing> {
        let agent = self
            .agent
            .map(|(agent, state)| Agent::connect(&agent, state))
            .transpose()?;
        say_start(&self.channel)?;
        Ok(Executing {
            child: self.child,
            terminal: self.terminal,
            channel: self.channel,
            agent,
        })
    }

    /// Leaves the process waiting at its gate. The caller may end; whoever holds the gate's address starts it with
    /// [`super::start_at_gate`]. Until this is called the process ends with the caller: what is to find the process
    /// again must be written down before.
    ///
    /// # Errors
    /// When the process has ended, or there is no descriptor to spare.
    pub fn leave(self) -> Result<Running> {
        say(&self.channel, b"G")?;
        self.child.release(self.terminal).map_err(Error::Channel)
    }
}

/// A container that is about to execute its program.
#[derive(Debug)]
pub struct Executing {
    child: Child,
    terminal: Option<OwnedFd>,
    channel: Channel,
    agent: Option<Agent>,
}

impl Executing {
    /// Returns when the program has been executed.
    ///
    /// # Errors
    /// As [`Created::start`].
    pub fn wait(self) -> Result<Running> {
        hear_executed(&self.channel, self.child.pid(), self.agent)?;
        self.child.release(self.terminal).map_err(Error::Channel)
    }
}

/// Lets a child that waits for its start go on.
pub(super) fn say_start(channel: &Channel) -> Result<()> {
    say(channel, b"S")
}

fn say(channel: &Channel, word: &[u8]) -> Result<()> {
    channel.send(word, None).map_err(|error| {
        // The child was killed while it waited.
        if error.kind() == io::ErrorKind::BrokenPipe {
            Error::ChildEnded
        } else {
            Error::Channel(error)
        }
    })
}

/// Returns when the child has executed its program; the listener of its filter goes to the agent.
pub(super) fn hear_executed(channel: &Channel, pid: i32, mut agent: Option<Agent>) -> Result<()> {
    loop {
        match channel.hear()? {
            Word::Listener(listener) => {
                let agent = agent.take().ok_or(Error::NoListener)?;
                agent.hand_over(pid, listener.as_fd())?;
            }
            Word::End if agent.is_some() => return Err(Error::NoListener),
            Word::End => return Ok(()),
            Word::IdMaps
            | Word::Born(..)
            | Word::Devices(_)
            | Word::Hooks
            | Word::Ready(_)
            | Word::Terminal(_) => return Err(unexpected()),
        }
    }
}
