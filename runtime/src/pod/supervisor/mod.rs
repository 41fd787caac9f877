//! The pod supervisor: one process per pod, one thread, one event loop.
//!
//! ```text
//!             ┌──────────────── epoll ────────────────┐
//! pidfds, FIFOs, terminals, sockets of probes, clients, signals
//!             │
//!             ▼
//!        Input ─► Lifecycle (policy) ─► Steps ─► state.json ─► carried out here (I/O)
//!                      └─► Snapshot ─► subscribed clients
//! ```
//!
//! | file | |
//! |---|---|
//! | `mod` | the loop, and who gets which event |
//! | `steps` | carries out what the lifecycle decides |
//! | `start` | containers that start together, side by side |
//! | `requests` | what clients ask |
//! | `resume` | a supervisor that starts again finds what lives |
//! | `sandbox` | the namespaces that containers share |
//! | `container`, `output` | one run: cgroup, process, streams, log |
//! | `run_spec`, `filter`, `scratch` | what a run is made from: OCI spec, seccomp filter, writable layer |
//! | `host_devices` | the nodes that privileged containers get |
//! | `last_words` | a container's termination message |
//! | `attempt` | probes and hooks under way |
//! | `connection` | a client |
//! | `record` | `state.json` |
//! | `plans` | `plan.json`, and the plan that was taken last |
//! | `keeper` | holds a terminal while no supervisor does |
//! | `launch` | what a run was started with |
//!
//! Order, always: facts change, the record is replaced, the steps are carried out, clients are told. The supervisor
//! never waits for a client, a probe or a hook; it waits for the kernel to make a container (milliseconds), and for a
//! disk that takes a log.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::epoll::EpollFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use thiserror::Error;

mod attempt;
mod connection;
mod container;
mod filter;
mod host_devices;
mod journal;
mod keeper;
mod last_words;
mod launch;
mod output;
mod plans;
mod process;
mod reactor;
mod record;
mod requests;
mod resume;
mod run_spec;
mod sandbox;
mod scratch;
mod start;
mod steps;

pub use container::StartError;
pub use launch::LaunchError;
pub use record::RecordError;
pub use sandbox::SandboxError;

use crate::cgroup::{self, Cgroup, Layout};
use crate::chain;
use crate::pod::clock::Now;
use crate::pod::lifecycle::{ExitStatus, Input, Lifecycle, PlanError, Process};
use crate::pod::plan::Plan;
use crate::pod::snapshot::Snapshot;
use attempt::Attempt;
use connection::Connection;
use container::{Run, Surroundings};
use journal::say;
use reactor::{Key, Reactor, Source};
use record::RecordRef;
use sandbox::Sandbox;

/// Clients at once; each takes a descriptor, and the soft limit is 1,024.
const CONNECTIONS_MAX: usize = 256;
/// Inputs beget steps and steps inputs; a lifecycle that would go on for ever is a fault.
const ROUNDS_MAX: usize = 1_000;
/// How long clients wait when there is no descriptor for them.
const LISTENER_REST_MS: u64 = 500;

/// Why the supervisor cannot work.
#[derive(Debug, Error)]
pub enum Error {
    /// The plan's file.
    #[error("cannot read {}", path.display())]
    ReadPlan {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The plan's form.
    #[error("{} is not a plan", path.display())]
    ParsePlan {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The plan's content.
    #[error("the plan is refused")]
    Plan(#[from] PlanError),
    /// A change that a running pod cannot take.
    #[error("{what} cannot change while the pod runs")]
    Fixed {
        /// Which part of the plan.
        what: &'static str,
    },
    /// Cgroups.
    #[error("cannot prepare the pod's cgroup")]
    Cgroup(#[source] cgroup::Error),
    /// New limits.
    #[error("the new limits of {what} cannot be given")]
    Resize {
        /// The pod or a container.
        what: String,
        /// Why.
        #[source]
        source: cgroup::Error,
    },
    /// Namespaces.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Another supervisor has the pod.
    #[error("another supervisor runs in {}", dir.display())]
    Busy {
        /// The pod directory.
        dir: PathBuf,
    },
    /// The event loop.
    #[error("cannot {attempt}")]
    Loop {
        /// What was tried.
        attempt: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Supervises the pod of a run directory until it is released. Calls `ready` once when it listens at its socket.
///
/// # Errors
/// When the pod cannot be set up, or the supervisor cannot go on; the caller says so and ends.
pub fn run(dir: &Path, ready: impl FnOnce() -> io::Result<()>) -> Result<(), Error> {
    let lock = lock(dir)?;
    let mut supervisor = Supervisor::new(dir)?;
    ready().map_err(failed("say that it is ready"))?;
    supervisor.work()?;
    drop(lock);
    Ok(())
}

/// The supervisor.
struct Supervisor {
    dir: PathBuf,
    boot_id: String,
    plan: Plan,
    life: Lifecycle,
    snapshot: Snapshot,
    layout: Layout,
    pod_cgroup: Cgroup,
    sandbox: Sandbox,
    reactor: Reactor,
    signals: SignalFd,
    listener: OwnedFd,
    listener_key: Option<Key>,
    /// There was no descriptor for another client.
    listener_rests_until_ms: Option<u64>,
    /// The lifecycle has changed without an input.
    stale: bool,
    runs: BTreeMap<String, Run>,
    attempts: BTreeMap<u64, Attempt>,
    /// Commands that clients run.
    commands: BTreeMap<u64, Command>,
    connections: BTreeMap<u64, Connection>,
    /// What happened and is not taken note of yet.
    inputs: Vec<Input>,
    buffer: Vec<u8>,
    children_ended: bool,
    leave_when_ended: bool,
    /// The record could not be written, and this was said.
    record_trouble: bool,
    leave: bool,
}

/// A command that a client runs in a container.
struct Command {
    connection: u64,
    process: Process,
    handle: OwnedFd,
    key: Key,
    /// The kernel sends SIGHUP when the client's side is closed.
    has_terminal: bool,
}

/// Two supervisors of one pod would start everything twice. A child between clone and exec holds the lock for a
/// moment longer than its parent.
fn lock(dir: &Path) -> Result<OwnedFd, Error> {
    use rustix::fs::{FlockOperation, flock};
    let lock: OwnedFd = fs::File::open(dir)
        .map_err(failed("open the pod directory"))?
        .into();
    for _ in 0..100 {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Err(e) => return Err(failed("lock the pod directory")(e.into())),
        }
    }
    Err(Error::Busy {
        dir: dir.to_owned(),
    })
}

fn failed(attempt: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Loop { attempt, source }
}

/// The signals that are read as events.
fn listen_to_signals() -> Result<SignalFd, Error> {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
    ] {
        set.add(signal);
    }
    set.thread_block()
        .map_err(|e| failed("block signals")(e.into()))?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|e| failed("listen to signals")(e.into()))
}

impl Supervisor {
    fn work(&mut self) -> Result<(), Error> {
        self.settle();
        while !self.leave {
            let now = Now::read();
            let timeout_ms = self.wake_ms().map(|at| at.saturating_sub(now.ms));
            let keys = self
                .reactor
                .wait(timeout_ms)
                .map_err(failed("wait for events"))?;
            for key in keys {
                if let Some(source) = self.reactor.source(key) {
                    self.dispatch(source);
                }
            }
            self.end_late_attempts();
            self.wake_listener();
            // Output of containers and clients that come and go are no concern of the lifecycle's.
            let due = self.life.wake_ms().is_some_and(|at| at <= Now::read().ms);
            if due || self.stale || self.leave || !self.inputs.is_empty() {
                self.settle();
            } else {
                self.tell();
            }
            self.reap();
        }
        self.clean_up();
        Ok(())
    }

    fn wake_ms(&self) -> Option<u64> {
        let attempts = self.attempts.values().filter_map(Attempt::wake_ms);
        attempts
            .chain(self.life.wake_ms())
            .chain(self.listener_rests_until_ms)
            .min()
    }

    fn dispatch(&mut self, source: Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.read_signals(),
            Source::Container(name) => self.container_ended(&name),
            Source::Output(name, stream) => {
                if let Some(run) = self.runs.get_mut(&name) {
                    let (log, output) = (&mut run.log, &mut run.output);
                    output.forward(stream, log, &mut self.buffer, &mut self.reactor);
                    if let Some((e, lost)) = log.take_trouble() {
                        say(format_args!(
                            "{name}: {lost} log records are lost: {}: {e}",
                            log.path().display()
                        ));
                    }
                }
            }
            Source::Connection(number) => self.serve(number),
            Source::Attempt(number) => self.advance_attempt(number),
            Source::AttemptOutput(number) => {
                if let Some(attempt) = self.attempts.get_mut(&number) {
                    attempt.take_output(&mut self.reactor);
                }
            }
            Source::Exec(number) => self.command_ended(number),
        }
    }

    /// Takes note of what happened, and does what follows, until nothing does.
    fn settle(&mut self) {
        self.stale = false;
        for _ in 0..ROUNDS_MAX {
            let now = Now::read();
            for input in std::mem::take(&mut self.inputs) {
                self.life.handle(input, now);
            }
            let steps = self.life.advance(now);
            let changed = self.note_snapshot(now);
            if changed || steps.iter().any(|s| s.action.changes_containers()) {
                self.save();
            }
            let idle = steps.is_empty();
            self.carry_out_all(steps, now);
            if idle && self.inputs.is_empty() {
                break;
            }
        }
        self.tell();
        if self.life.has_ended() && self.leave_when_ended {
            self.leave = true;
        }
    }

    /// True when the snapshot has changed.
    fn note_snapshot(&mut self, now: Now) -> bool {
        let snapshot = self.life.snapshot(self.snapshot.sequence, now);
        if snapshot == self.snapshot {
            return false;
        }
        self.snapshot = snapshot;
        self.snapshot.sequence += 1;
        for connection in self.connections.values_mut() {
            connection.notice_change();
        }
        true
    }

    fn save(&mut self) {
        let record = RecordRef {
            version: RecordRef::VERSION,
            boot_id: &self.boot_id,
            sequence: self.snapshot.sequence,
            lifecycle: &self.life,
            pid_init: self.sandbox.pid_init(),
            leave_when_ended: self.leave_when_ended,
        };
        // A pod whose record cannot be written is better run than not: only a killed supervisor would miss it.
        match record.save(&self.dir) {
            Ok(()) => self.record_trouble = false,
            Err(e) if !self.record_trouble => {
                self.record_trouble = true;
                say(format_args!("{}", chain(&e)));
            }
            Err(_) => {}
        }
    }

    fn tell(&mut self) {
        let mut gone = Vec::new();
        for (&number, connection) in &mut self.connections {
            if connection.has_work() && connection.flush(&self.snapshot, &self.reactor).is_err() {
                gone.push(number);
            }
        }
        for number in gone {
            self.drop_connection(number);
        }
    }

    fn read_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo)
                .ok()
                .and_then(|number| Signal::try_from(number).ok());
            match signal {
                Some(Signal::SIGCHLD) => self.children_ended = true,
                Some(signal @ (Signal::SIGTERM | Signal::SIGINT)) => {
                    say(format_args!("got {signal}: ends the pod"));
                    self.leave_when_ended = true;
                    self.inputs.push(Input::Terminate {
                        grace_ms: self.life.grace_ms(),
                        reason: format!("the supervisor got {signal}"),
                    });
                }
                // SIGHUP: the terminal of whoever started this is no concern of the pod's.
                _ => {}
            }
        }
    }

    fn container_ended(&mut self, name: &str) {
        let Some(run) = self.runs.get(name) else {
            return;
        };
        if let Some(status) = process::exit_status(run.handle.as_fd(), run.process) {
            self.gather(name, status);
        }
    }

    /// What is left of a run that has ended becomes an input.
    fn gather(&mut self, name: &str, status: ExitStatus) {
        let Some(run) = self.runs.remove(name) else {
            return;
        };
        self.end_attempts_of(name);
        let plan = self.plan.containers.iter().find(|c| c.name == name);
        let pod = Surroundings {
            dir: &self.dir,
            layout: &self.layout,
            pod_cgroup: &self.pod_cgroup,
            sandbox: &self.sandbox,
        };
        let exit = run.finish(status, plan, name, pod, &mut self.buffer, &mut self.reactor);
        // A burst's buffer goes back.
        self.buffer = Vec::new();
        say(format_args!(
            "{name}: ended: {:?}{}",
            exit.status,
            if exit.oom_killed {
                ", out of memory"
            } else {
                ""
            }
        ));
        self.inputs.push(Input::Exited {
            container: name.to_owned(),
            exit,
        });
    }

    /// Orphans of containers that share a pid namespace with this process or were killed with their parents.
    fn reap(&mut self) {
        if !self.children_ended {
            return;
        }
        let known = |pid: i32| {
            self.runs.values().any(|run| run.process.pid == pid)
                || self.commands.values().any(|c| c.process.pid == pid)
                || self.attempts.values().any(|a| a.pid() == Some(pid))
        };
        self.children_ended = !process::reap_orphans(known);
    }

    /// The pod has ended and this process leaves: nothing of it stays but its record and its logs.
    fn clean_up(&mut self) {
        for (_, attempt) in std::mem::take(&mut self.attempts) {
            attempt.end(&mut self.reactor);
        }
        self.sandbox.close();
        container::remove_cgroup(&self.pod_cgroup);
        if let Err(e) = fs::remove_file(self.dir.join(crate::pod::protocol::SOCKET_FILE)) {
            say(format_args!("cannot remove the socket: {e}"));
        }
        say(format_args!("leaves"));
    }

    fn accept(&mut self) {
        use rustix::io::Errno;
        use rustix::net::{SocketFlags, accept_with};
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            let socket = match accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(Errno::MFILE | Errno::NFILE) => {
                    self.rest_listener();
                    return;
                }
                Err(_) => return,
            };
            // Beyond the limit a client sees its connection closed, as it does when a supervisor ends.
            if self.connections.len() < CONNECTIONS_MAX {
                let number = self.reactor.fresh();
                match Connection::new(socket, number, &mut self.reactor) {
                    Ok(connection) => {
                        self.connections.insert(number, connection);
                    }
                    Err(e) => say(format_args!("cannot serve a client: {e}")),
                }
            }
        }
    }

    /// The client in the queue cannot be taken, and would be reported again and again.
    fn rest_listener(&mut self) {
        say(format_args!("no descriptor is free for another client"));
        if let Some(key) = self.listener_key.take() {
            self.reactor.remove(&self.listener, key);
        }
        self.listener_rests_until_ms = Some(Now::read().ms.saturating_add(LISTENER_REST_MS));
    }

    fn wake_listener(&mut self) {
        if self
            .listener_rests_until_ms
            .is_none_or(|at| at > Now::read().ms)
        {
            return;
        }
        self.listener_rests_until_ms = None;
        if let Err(e) = self.listen() {
            say(format_args!("{}", chain(&e)));
            self.rest_listener();
        }
    }

    fn listen(&mut self) -> Result<(), Error> {
        let key = self
            .reactor
            .add(&self.listener, Source::Listener, EpollFlags::EPOLLIN)
            .map_err(failed("listen"))?;
        self.listener_key = Some(key);
        Ok(())
    }

    fn drop_connection(&mut self, number: u64) {
        if let Some(connection) = self.connections.remove(&number) {
            connection.close(&mut self.reactor);
            self.hang_up(number);
        }
    }

    fn register(&mut self) -> Result<(), Error> {
        self.listen()?;
        self.reactor
            .add(&self.signals, Source::Signals, EpollFlags::EPOLLIN)
            .map_err(failed("listen to signals"))?;
        Ok(())
    }
}
