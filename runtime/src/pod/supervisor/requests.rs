//! What clients ask.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::epoll::EpollFlags;
use nix::sys::signal::Signal;
use oci_spec::runtime::LinuxResources;
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use super::connection::Connection;
use super::container::Run;
use super::journal::say;
use super::reactor::Source;
use super::run_spec::resources;
use super::{Command, Error, StartError, Supervisor, output, plans, process};
use crate::chain;
use crate::container::{Running, Stdio, TerminalSize};
use crate::pod::clock::Now;
use crate::pod::lifecycle::{ExitStatus, Input};
use crate::pod::packet::PacketError;
use crate::pod::plan::{ContainerSource, Plan};
use crate::pod::protocol::{Reply, Request};

/// Requests of one client that are answered before others get their turn.
const REQUESTS_AT_ONCE: usize = 16;
/// Commands of clients that run at once; each takes a descriptor.
const COMMANDS_MAX: usize = 256;
/// Descriptors on their way to clients that have not read their replies yet.
const QUEUED_DESCRIPTORS_MAX: usize = 128;

type Answer = Result<(Reply, Vec<OwnedFd>), String>;

/// Why a command does not run.
struct ExecRefused {
    /// As a shell would have it.
    exit_code: i32,
    message: String,
}

impl ExecRefused {
    /// It was not even tried.
    fn other(message: impl ToString) -> Self {
        Self {
            exit_code: 1,
            message: message.to_string(),
        }
    }
}

impl From<StartError> for ExecRefused {
    fn from(error: StartError) -> Self {
        Self {
            exit_code: match &error {
                StartError::Runtime(error) => error.exit_code(),
                _ => 1,
            },
            message: chain(&error),
        }
    }
}

impl Supervisor {
    /// Something happened to a client's socket.
    pub(super) fn serve(&mut self, number: u64) {
        for _ in 0..REQUESTS_AT_ONCE {
            let Some(connection) = self.connections.get(&number) else {
                return;
            };
            match connection.receive(&mut self.buffer) {
                Ok(Some(request)) => self.answer(number, request),
                Ok(None) => break,
                Err(e @ (PacketError::Malformed(_) | PacketError::TooLarge)) => {
                    let reply = Reply::Error { message: chain(&e) };
                    self.reply(number, &reply, Vec::new());
                }
                Err(PacketError::Closed | PacketError::Socket(_)) => {
                    self.drop_connection(number);
                    return;
                }
            }
        }
        self.buffer = Vec::new();
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        if connection.flush(&self.snapshot, &self.reactor).is_err() {
            self.drop_connection(number);
        }
    }

    fn answer(&mut self, number: u64, request: Request) {
        let answer = match request {
            Request::Subscribe => {
                if let Some(connection) = self.connections.get_mut(&number) {
                    connection.subscribe();
                }
                return;
            }
            Request::Reload => self
                .reload()
                .map(|()| (Reply::Ok, Vec::new()))
                .map_err(|e| chain(&e)),
            Request::Terminate { grace_secs, reason } => {
                say(format_args!("is asked to end the pod: {reason}"));
                self.inputs.push(Input::Terminate {
                    grace_ms: grace_secs.saturating_mul(1_000),
                    reason,
                });
                Ok((Reply::Ok, Vec::new()))
            }
            Request::Release => self.release(),
            Request::Exec {
                container,
                command,
                tty,
                stdin,
                size,
            } => {
                let started = self.exec(number, &container, &command, tty, stdin, size);
                started.or_else(|ExecRefused { exit_code, message }| {
                    Ok((Reply::ExecRefused { exit_code, message }, Vec::new()))
                })
            }
            Request::Signal { signal } => self.signal_commands(number, signal),
            Request::Attach { container } => self.attach(&container),
        };
        match answer {
            Ok((reply, descriptors)) => self.reply(number, &reply, descriptors),
            Err(message) => self.reply(number, &Reply::Error { message }, Vec::new()),
        }
    }

    fn reply(&mut self, number: u64, reply: &Reply, descriptors: Vec<OwnedFd>) {
        if let Some(connection) = self.connections.get_mut(&number)
            && !connection.reply(reply, descriptors)
        {
            say(format_args!("drops a client that does not read"));
            self.drop_connection(number);
        }
    }

    fn release(&mut self) -> Answer {
        if !self.life.has_ended() {
            return Err("the pod has not ended".to_owned());
        }
        self.leave = true;
        Ok((Reply::Ok, Vec::new()))
    }

    /// Takes `plan.json` as it is now; what is refused changes nothing.
    fn reload(&mut self) -> Result<(), Error> {
        let offered = plans::read(&self.dir)?;
        plans::check_fixed(&self.plan, &offered.plan)?;
        self.life.replace_plan(&offered.plan, Now::read())?;
        let plan = plans::take(&self.dir, offered);
        let old = std::mem::replace(&mut self.plan, plan);
        say(format_args!("has plan {} now", self.plan.generation));
        for container in &self.plan.containers {
            if let Some(run) = self.runs.get_mut(&container.name) {
                run.log.set_limits(&container.log);
            }
        }
        // At the next turn of the loop; the record must know of the new plan even if nothing else follows.
        self.stale = true;
        self.note_snapshot(Now::read());
        self.save();
        self.resize(&old)
    }

    /// Gives new limits to the pod and its containers. More must be given to the pod first, less to its containers
    /// first: what fails in one order is tried once more after the others.
    fn resize(&self, old: &Plan) -> Result<(), Error> {
        let mut changes = Vec::new();
        if old.cgroup.resources != self.plan.cgroup.resources {
            let new = &self.plan.cgroup.resources;
            changes.push(("the pod".to_owned(), &self.pod_cgroup, new));
        }
        for container in &self.plan.containers {
            let before = old.containers.iter().find(|c| c.name == container.name);
            let (Some(run), Some(before)) = (self.runs.get(&container.name), before) else {
                continue;
            };
            if before.spec_hash != container.spec_hash {
                continue;
            }
            if let Some(new) = limits(&container.source)
                && limits(&before.source) != Some(new)
            {
                changes.push((format!("container {}", container.name), &run.cgroup, new));
            }
        }
        let mut again = Vec::new();
        for change in changes {
            if change.1.apply(change.2).is_err() {
                again.push(change);
            }
        }
        for (what, cgroup, new) in again {
            cgroup
                .apply(new)
                .map_err(|source| Error::Resize { what, source })?;
        }
        Ok(())
    }

    fn exec(
        &mut self,
        number: u64,
        name: &str,
        command: &[String],
        tty: bool,
        stdin: bool,
        size: Option<(u16, u16)>,
    ) -> Result<(Reply, Vec<OwnedFd>), ExecRefused> {
        if command.is_empty() {
            return Err(ExecRefused::other("the command is empty"));
        }
        let queued: usize = self
            .connections
            .values()
            .map(Connection::queued_descriptors)
            .sum();
        if self.commands.len() >= COMMANDS_MAX || queued >= QUEUED_DESCRIPTORS_MAX {
            return Err(ExecRefused::other(
                "too many commands run at once in this pod; try again",
            ));
        }
        let run = self.running(name)?;
        let (stdio, mut descriptors) = if tty {
            let size = size.map(|(columns, rows)| TerminalSize { columns, rows });
            (Stdio::Terminal { size }, Vec::new())
        } else {
            pipes(stdin).map_err(|e| ExecRefused::other(format!("cannot make pipes: {e}")))?
        };
        let Running {
            pid,
            pidfd,
            terminal,
        } = run.exec(&self.dir, name, command, stdio)?;
        descriptors.extend(terminal);
        let process = process::look(pid).map_err(ExecRefused::other)?;
        let exec = self.reactor.fresh();
        let key = self
            .reactor
            .add(&pidfd, Source::Exec(exec), EpollFlags::EPOLLIN)
            .map_err(ExecRefused::other)?;
        let command = Command {
            connection: number,
            process,
            handle: pidfd,
            key,
            has_terminal: tty,
        };
        self.commands.insert(exec, command);
        Ok((Reply::ExecStarted, descriptors))
    }

    fn signal_commands(&self, number: u64, signal: i32) -> Answer {
        let signal = Signal::try_from(signal).map_err(|_| format!("{signal} is not a signal"))?;
        let own = self.commands.values().filter(|c| c.connection == number);
        for command in own {
            process::signal_group(command.process, signal)
                .map_err(|e| format!("cannot send {signal}: {e}"))?;
        }
        Ok((Reply::Ok, Vec::new()))
    }

    /// A client is gone: its commands are told, as those on a terminal are told by the kernel. They end by it unless
    /// they are meant not to, as by nohup(1).
    pub(super) fn hang_up(&self, number: u64) {
        let own = self.commands.values().filter(|c| c.connection == number);
        for command in own.filter(|c| !c.has_terminal) {
            if let Err(e) = process::signal_group(command.process, Signal::SIGHUP) {
                say(format_args!(
                    "cannot hang up on process {}, whose client is gone: {e}",
                    command.process.pid
                ));
            }
        }
    }

    /// A client's command has ended.
    pub(super) fn command_ended(&mut self, number: u64) {
        let Some(command) = self.commands.get(&number) else {
            return;
        };
        let Some(status) = process::exit_status(command.handle.as_fd(), command.process) else {
            return;
        };
        let Some(command) = self.commands.remove(&number) else {
            return;
        };
        self.reactor.remove(&command.handle, command.key);
        let exit_code = match status {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => 128 + signal,
            ExitStatus::Unknown => 255,
        };
        self.reply(
            command.connection,
            &Reply::ExecExited { exit_code },
            Vec::new(),
        );
    }

    fn running(&self, name: &str) -> Result<&Run, ExecRefused> {
        if let Some(run) = self.runs.get(name) {
            return Ok(run);
        }
        let known = self.plan.containers.iter().any(|c| c.name == name);
        Err(ExecRefused::other(if known {
            format!("container {name} does not run")
        } else {
            format!("there is no container {name}")
        }))
    }

    fn attach(&mut self, name: &str) -> Answer {
        let plan = self.plan.containers.iter().find(|c| c.name == name);
        let plan = plan.ok_or_else(|| format!("there is no container {name}"))?;
        let run = self.runs.get_mut(name);
        let run = run.ok_or_else(|| format!("container {name} does not run"))?;
        match run.output.attach(plan.tty) {
            Ok(Some(descriptor)) => Ok((Reply::Attached, vec![descriptor])),
            Ok(None) => Err(format!(
                "container {name} has no standard input to attach to; set `stdin: true`"
            )),
            Err(e) => Err(format!("cannot open the standard input of {name}: {e}")),
        }
    }
}

fn limits(source: &ContainerSource) -> Option<&LinuxResources> {
    match source {
        ContainerSource::Ready { spec, .. } => resources(spec),
        ContainerSource::Waiting { .. } => None,
    }
}

/// A command's ends, and the client's in the protocol's order: stdin if asked for, stdout, stderr.
fn pipes(stdin: bool) -> std::io::Result<(Stdio, Vec<OwnedFd>)> {
    let mut ours = Vec::new();
    let stdin = if stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        ours.push(write);
        read
    } else {
        output::null(OFlags::RDONLY)?
    };
    let (out_read, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (err_read, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    ours.extend([out_read, err_read]);
    let stdio = Stdio::Fds {
        stdin,
        stdout,
        stderr,
    };
    Ok((stdio, ours))
}
