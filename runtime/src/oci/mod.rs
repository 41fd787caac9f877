//! The OCI runtime's command line, `podling-runtime`: containers from bundles, for container engines and people.
//!
//! Source: runtime-spec `runtime.md`, and the options that engines pass to runc. What lives longer than a command is
//! in the [`store`]; the container's first process waits at its gate, a socket, from `create` to `start`.
//!
//! Deliberately absent: systemd's cgroup driver, checkpoints, `update` and `events`.

use std::process::ExitCode;

use clap::Parser;
use oci_spec::runtime::ContainerState;

use crate::container::protect;

mod cli;
mod console;
mod create;
mod delete;
mod error;
mod exec;
mod foreground;
mod log;
mod report;
mod store;

pub use error::{Error, Result};

use cli::{Cli, Command};
use delete::{cgroup_error, cgroup_of};
use log::Log;
use store::Store;

/// The exit code of a command that failed before any process ran, as with runc.
const FAILED: u8 = 1;

/// Runs the command that the arguments ask for.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = check_preserved(&cli.command) {
        Log::default().error(&error::chain(&error));
        return ExitCode::from(FAILED);
    }
    let log = match Log::open(cli.log.as_ref(), cli.log_format) {
        Ok(log) => log,
        Err(error) => {
            Log::default().error(&error::chain(&error));
            return ExitCode::from(FAILED);
        }
    };
    match run(cli, &log) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log.error(&error::chain(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

fn run(cli: Cli, log: &Log) -> Result<u8> {
    if cli.systemd_cgroup {
        return Err(Error::Argument {
            argument: "--systemd-cgroup",
            reason: "is not supported; cgroups are made directly".to_owned(),
        });
    }
    let store = Store::new(cli.root);
    let store = &store;
    if matches!(
        cli.command,
        Command::Create(_) | Command::Run(_) | Command::Exec(_)
    ) {
        protect::seal()?;
    }
    let done = match cli.command {
        Command::Run(options) => return create::run(store, &options, log),
        Command::Exec(options) => return exec::exec(store, &options),
        Command::Create(options) => create::create(store, &options),
        Command::Start { id } => create::start(store, &id, log),
        Command::State { id } => report::state(store, &id),
        Command::Kill(options) => delete::kill(store, &options),
        Command::Delete(options) => delete::delete(store, &options, log),
        Command::List(options) => report::list(store, &options),
        Command::Ps { id, format } => report::ps(store, &id, format),
        Command::Pause { id } => freeze(store, &id, true),
        Command::Resume { id } => freeze(store, &id, false),
        Command::Spec { bundle } => report::spec(&bundle),
        Command::Features => report::features(),
    };
    done.map(|()| 0)
}

/// Refuses to preserve what is not open, before anything of our own takes its number.
fn check_preserved(command: &Command) -> Result<()> {
    let count = match command {
        Command::Create(options) => options.preserve_fds,
        Command::Run(options) => options.create.preserve_fds,
        Command::Exec(options) => options.preserve_fds,
        _ => 0,
    };
    for number in (3..).take(count as usize) {
        std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).map_err(|_| {
            Error::Argument {
                argument: "--preserve-fds",
                reason: format!("descriptor {number} is not open"),
            }
        })?;
    }
    Ok(())
}

fn freeze(store: &Store, id: &str, freeze: bool) -> Result<()> {
    let record = store.entry(id)?.load()?;
    let cgroup = cgroup_of(&record)?;
    if freeze {
        cgroup.freeze().map_err(cgroup_error("pause", &record))
    } else {
        cgroup.thaw().map_err(cgroup_error("resume", &record))
    }
}

/// A program that is not there or cannot be executed has the shells' exit codes.
fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Container(error) => match error.exit_code() {
            code @ (126 | 127) => code as u8,
            _ => FAILED,
        },
        _ => FAILED,
    }
}

/// The specification's word for a status.
fn status_name(status: ContainerState) -> &'static str {
    match status {
        ContainerState::Creating => "creating",
        ContainerState::Created => "created",
        ContainerState::Running => "running",
        ContainerState::Stopped => "stopped",
    }
}
