//! `podling exec`: talks to the pod's supervisor, so that it works with the agent dead.
//!
//! The command belongs to its client, as it would without a container between them. ctrl-C and the other signals that a
//! client gets go to the command's process group; when the client is killed, the supervisor sends the group SIGHUP. So
//! does the kernel where there is a terminal, whose keys go to the command as they are typed.
//!
//! Not so elsewhere: `kubectl exec` and `docker exec` without a terminal leave a command running that their client has
//! left, as there is a network, or a daemon, between the two. Here a job of cron that is stopped has stopped.
//! Who wants a command to go on says so as everywhere: `nohup`, `setsid`, or a trap.

mod signals;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::thread;

use clap::Args;
use nix::sys::signal::Signal;
use podling_runtime::pod::client::Client;
use podling_runtime::pod::plan::{ContainerKind, Plan};
use podling_runtime::pod::protocol::{Reply, Request};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::termios::{OptionalActions, Termios};

use super::name::{NamespaceArg, PodName};
use super::{CommandError, Directories, Exit, offline};
use signals::Signals;

/// Run a command in a container
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling exec hello -- /podling demo get http://127.0.0.1:8080/env
  podling exec -it web -- /bin/sh            a shell on a terminal
  tar c src | podling exec -i web -- tar x   standard input goes to the command
  podling exec -c sidecar site -- ls /data

No shell is involved: what follows `--` is the program and its arguments. The exit code is that of the command; \
127 means that there is no such program, 126 that it cannot be executed.

The command belongs to this one: it gets ctrl-C and the signals HUP, INT, QUIT, TERM, USR1 and USR2, and SIGHUP when \
this is killed. To start something that goes on, let a shell end before it: \
podling exec POD -- sh -c 'PROGRAM >/dev/null 2>&1 &'")]
pub struct ExecArgs {
    /// The pod
    #[arg(value_name = "POD")]
    pub pod: PodName,
    #[command(flatten)]
    pub namespace: NamespaceArg,
    /// The container; the first of the pod's if not given
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Pass standard input to the command
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

pub(super) fn run(args: &ExecArgs, directories: &Directories) -> Result<Exit, CommandError> {
    let (dir, plan) = offline::find(directories, &args.namespace.namespace, &args.pod.0)?;
    let container = choose(args, &plan)?;
    let failed = || {
        CommandError::new(format!(
            "cannot run {} in container {container} of pod {}",
            args.command[0], args.pod
        ))
    };
    let client = Client::connect(&dir).map_err(|e| {
        let end = offline::end_of(directories, &plan);
        if let Some(phase) = end.and_then(|status| status.phase) {
            failed()
                .because(format!("the pod has ended: {phase}"))
                .hint(format!("its output is there: podling logs {}", args.pod))
        } else if e.is_gone() {
            failed()
                .because(e)
                .hint("the agent starts a pod's supervisor again; is it running?")
        } else {
            failed().because(e).hint("be root")
        }
    })?;
    let stdin = rustix::stdio::stdin();
    let on_terminal = args.tty && rustix::termios::isatty(stdin);
    if args.tty && args.stdin && !on_terminal {
        eprintln!("note: standard input is not a terminal; the command gets one all the same");
    }
    let size = on_terminal
        .then(|| rustix::termios::tcgetwinsize(stdin).ok())
        .flatten();
    let request = Request::Exec {
        container: container.clone(),
        command: args.command.clone(),
        tty: args.tty,
        stdin: args.stdin,
        size: size.map(|s| (s.ws_col, s.ws_row)),
    };
    let fds = match client.request(&request) {
        Ok((Reply::ExecStarted, fds)) => fds,
        Ok((Reply::ExecRefused { exit_code, message }, _)) => {
            return Err(refused(failed(), exit_code, message, &args.command[0]));
        }
        Ok((other, _)) => return Err(failed().because(format!("the supervisor answers {other:?}"))),
        Err(e) => return Err(failed().because(e)),
    };
    let streams = Streams::new(fds, args)
        .ok_or_else(|| failed().because("the supervisor did not send the command's streams"))?;
    let signals = Signals::listen(on_terminal).map_err(|e| failed().because(e))?;
    let raw = if on_terminal && args.stdin {
        Some(RawTerminal::enter().map_err(|e| failed().because(e))?)
    } else {
        None
    };
    let code = streams.relay(&client, &signals);
    drop(raw);
    let code = code.map_err(|e| failed().because(e))?;
    Ok(Exit::Code(u8::try_from(code & 0xff).unwrap_or(1)))
}

/// A command that does not run, with the exit code that a shell would give.
fn refused(failed: CommandError, exit_code: i32, message: String, program: &str) -> CommandError {
    let error = failed
        .because(message)
        .code(u8::try_from(exit_code).unwrap_or(1));
    match exit_code {
        NOT_FOUND => error.hint(format!(
            "the container's image has no {program}; it is looked up in the container's own PATH, without a shell"
        )),
        NOT_EXECUTABLE => error.hint(format!(
            "{program} is there, but cannot be executed: its permissions, or its first line"
        )),
        _ => error,
    }
}

/// What shells say of a program that is not there.
const NOT_FOUND: i32 = 127;
/// What shells say of a program that cannot be executed.
const NOT_EXECUTABLE: i32 = 126;

/// The container named, else the pod's first that is not an init container.
fn choose(args: &ExecArgs, plan: &Plan) -> Result<String, CommandError> {
    let names: Vec<&str> = plan.containers.iter().map(|c| c.name.as_str()).collect();
    if let Some(wanted) = &args.container {
        return if names.contains(&wanted.as_str()) {
            Ok(wanted.clone())
        } else {
            Err(
                CommandError::new(format!("pod {} has no container {wanted}", args.pod))
                    .hint(format!("it has {}", names.join(", "))),
            )
        };
    }
    let first = plan
        .containers
        .iter()
        .find(|c| c.kind == ContainerKind::Main)
        .map(|c| c.name.clone());
    first.ok_or_else(|| CommandError::new(format!("pod {} has no containers", args.pod)))
}

/// What goes to the command and comes from it.
struct Streams {
    stdin: Option<OwnedFd>,
    outputs: Vec<Output>,
    /// The controlling side of the command's terminal.
    terminal: Option<OwnedFd>,
}

struct Output {
    /// None when it has ended, or nobody reads it any more.
    from: Option<OwnedFd>,
    to_stderr: bool,
}

impl Streams {
    /// In the order of the protocol; None if there are too few.
    fn new(fds: Vec<OwnedFd>, args: &ExecArgs) -> Option<Self> {
        let mut fds = fds.into_iter();
        let output = |from: OwnedFd, to_stderr| Output {
            from: Some(from),
            to_stderr,
        };
        if args.tty {
            let terminal = fds.next()?;
            let stdin = args.stdin.then(|| terminal.try_clone()).transpose().ok()?;
            return Some(Self {
                stdin,
                outputs: vec![output(terminal.try_clone().ok()?, false)],
                terminal: Some(terminal),
            });
        }
        let stdin = if args.stdin { Some(fds.next()?) } else { None };
        Some(Self {
            stdin,
            outputs: vec![output(fds.next()?, false), output(fds.next()?, true)],
            terminal: None,
        })
    }

    /// Copies until the command has ended, and gives its exit code. What a process that it left behind says later is
    /// not waited for.
    fn relay(mut self, client: &Client, signals: &Signals) -> io::Result<i32> {
        if let Some(stdin) = self.stdin.take() {
            let tty = self.terminal.is_some();
            thread::spawn(move || send_stdin(stdin, tty));
        }
        let mut code = None;
        while code.is_none() {
            let mut poll = vec![
                PollFd::new(client, PollFlags::IN),
                PollFd::new(signals, PollFlags::IN),
            ];
            for from in self.outputs.iter().filter_map(|o| o.from.as_ref()) {
                poll.push(PollFd::new(from, PollFlags::IN));
            }
            match rustix::event::poll(&mut poll, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            drop(poll);
            if let Some(signal) = signals.next()? {
                code = self.pass_on(signal, client)?;
            }
            if let Some((reply, _)) = client.try_recv().map_err(io::Error::other)? {
                match reply {
                    Reply::ExecExited { exit_code } => code = Some(exit_code),
                    Reply::Error { message } => return Err(io::Error::other(message)),
                    Reply::Ok
                    | Reply::Snapshot(_)
                    | Reply::ExecStarted
                    | Reply::ExecRefused { .. }
                    | Reply::Attached => {}
                }
            }
            // After the exit was seen, all that the command wrote is there to be read.
            for output in &mut self.outputs {
                output.copy()?;
            }
        }
        Ok(code.unwrap_or_default())
    }

    /// Tells the command of a signal. A command on a terminal hears of the client's end from the kernel, and often
    /// ignores all else, as shells do: there the signal ends this client, with the code that is returned.
    fn pass_on(&self, signal: Signal, client: &Client) -> io::Result<Option<i32>> {
        match &self.terminal {
            Some(terminal) if signal == Signal::SIGWINCH => {
                let size = rustix::termios::tcgetwinsize(rustix::stdio::stdin())?;
                rustix::termios::tcsetwinsize(terminal, size)?;
                Ok(None)
            }
            Some(_) => Ok(Some(128 + signal as i32)),
            None => {
                let signal = signal as i32;
                client
                    .send(&Request::Signal { signal })
                    .map_err(io::Error::other)?;
                Ok(None)
            }
        }
    }
}

impl Output {
    /// Copies what is there. When the reader of a pipe has gone (`| head`) the command's own pipe is closed, and what
    /// it writes next ends it, as it would without this program between.
    fn copy(&mut self) -> io::Result<()> {
        let mut buffer = [0; 32 << 10];
        while let Some(from) = &self.from
            && is_readable(from)?
        {
            let written = match rustix::io::read(from, &mut buffer) {
                // A terminal whose other side is closed says EIO.
                Ok(0) | Err(rustix::io::Errno::IO) => {
                    self.from = None;
                    return Ok(());
                }
                Ok(n) if self.to_stderr => io::stderr().write_all(&buffer[..n]),
                Ok(n) => {
                    let mut out = io::stdout();
                    out.write_all(&buffer[..n]).and_then(|()| out.flush())
                }
                Err(rustix::io::Errno::INTR) => Ok(()),
                Err(e) => return Err(e.into()),
            };
            match written {
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.from = None,
                other => other?,
            }
        }
        Ok(())
    }
}

/// Asked before each read: `O_NONBLOCK` would also change the writing side of a terminal.
fn is_readable(from: &OwnedFd) -> io::Result<bool> {
    let mut poll = [PollFd::new(from, PollFlags::IN)];
    Ok(rustix::event::poll(&mut poll, Some(&Timespec::default()))? > 0)
}

/// Copies standard input until either end is closed.
fn send_stdin(to: OwnedFd, tty: bool) {
    let mut to = File::from(to);
    let copied = io::copy(&mut io::stdin().lock(), &mut to);
    if tty && copied.is_ok() {
        // A terminal has no end of its own: the character that means it. A command that is gone does not mind.
        drop(to.write_all(&[END_OF_TRANSMISSION]));
    }
}

/// Control-D.
const END_OF_TRANSMISSION: u8 = 4;

/// The user's terminal passing every key to the command; as it was when this is dropped.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> io::Result<Self> {
        let stdin = rustix::stdio::stdin();
        let before = rustix::termios::tcgetattr(stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let stdin = rustix::stdio::stdin();
        if let Err(e) = rustix::termios::tcsetattr(stdin, OptionalActions::Now, &self.before) {
            eprintln!("cannot restore the terminal ({e}); `reset` does");
        }
    }
}
