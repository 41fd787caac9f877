//! The OCI runtime's command line, `podling-runtime`: containers from bundles, for container engines and people.
//!
//! Source: runtime-spec `runtime.md`, and the commands and options that engines pass to runc(8) and crun(1). Each
//! command has a module, with its options. What lives longer than a command is in the [`store`]; the container's first
//! process waits at its [`gate`], a socket, from `create` to `start`.

use std::ffi::OsString;

use crate::container::protect;

mod activation;
mod bundle;
mod checkpoint;
mod cli;
mod completion;
mod console;
mod container_cgroup;
mod create;
mod criu;
mod delete;
mod descriptor_socket;
mod error;
mod events;
mod exec;
mod features;
mod foreground;
mod gate;
mod input;
mod kill;
mod list;
mod log;
mod notify;
mod pattern;
mod pause;
mod placement;
mod preserved;
mod print;
mod ps;
mod replacement;
mod restore;
mod rootless;
mod run;
mod scope;
mod spec;
mod start;
mod state;
mod stdio;
mod store;
mod unfinished;
mod update;

pub use error::{Error, Result};

use cli::{CgroupManager, Cli, Command};
use log::Log;
use rootless::Rootless;
use store::Store;

/// The exit code of a command that failed before any process ran, as with runc.
const FAILED: u8 = 1;

/// What the global options say to commands that make containers.
#[derive(Debug, Clone, Copy)]
struct Globals {
    cgroup_manager: CgroupManager,
    rootless: Rootless,
}

/// Runs the command that the arguments ask for, and gives its exit code.
pub fn main(arguments: &[OsString]) -> u8 {
    // First of all: it starts this program again, and what was done before was for nothing.
    let sealed = if may_make_a_process(arguments) {
        protect::seal(arguments)
    } else {
        Ok(())
    };
    let mut cli = Cli::of(arguments);
    if let Err(error) = preserved::settle(&mut cli.command) {
        Log::default().error(&crate::chain(&error));
        return FAILED;
    }
    let log = match Log::open(cli.log.as_ref(), cli.log_format, cli.debug) {
        Ok(log) => log,
        Err(error) => {
            Log::default().error(&crate::chain(&error));
            return FAILED;
        }
    };
    log.install();
    match sealed.map_err(Error::from).and_then(|()| run(cli, &log)) {
        Ok(code) => code,
        Err(error) => {
            log.error(&crate::chain(&error));
            exit_code(&error)
        }
    }
}

fn run(cli: Cli, log: &Log) -> Result<u8> {
    let globals = Globals {
        cgroup_manager: cli.cgroup_manager(),
        rootless: cli.rootless,
    };
    let store = &Store::new(match cli.root {
        Some(root) => root,
        None => rootless::default_root(),
    });
    let done = match cli.command {
        Command::Run(options) => return run::run(store, &options, &globals, log),
        Command::Exec(options) => return exec::exec(store, &options),
        Command::Restore(options) => {
            return restore::restore(store, &options, &globals, &cli.criu, log);
        }
        Command::Checkpoint(options) => checkpoint::checkpoint(store, &options, &cli.criu, log),
        Command::Create(options) => create::create(store, &options, &globals),
        Command::Start(options) => start::start(store, &options, log),
        Command::State(options) => state::state(store, &options),
        Command::Kill(options) => kill::kill(store, &options, log),
        Command::Delete(options) => delete::delete(store, &options, log),
        Command::List(options) => list::list(store, &options),
        Command::Ps(options) => ps::ps(store, &options),
        Command::Pause(options) => pause::pause(store, &options),
        Command::Resume(options) => pause::resume(store, &options),
        Command::Update(options) => update::update(store, &options),
        Command::Events(options) => events::events(store, &options),
        Command::Spec(options) => spec::spec(&options),
        Command::Features => features::features(),
        Command::Completion(options) => completion::completion(&options),
    };
    done.map(|()| 0)
}

/// True when the arguments name a command that makes a process in a container, or perhaps only a container so named:
/// what cannot be told apart without parsing them costs a moment. Unsealed, no process is ever made.
fn may_make_a_process(arguments: &[OsString]) -> bool {
    arguments
        .iter()
        .skip(1)
        .any(|argument| argument == "run" || argument == "create" || argument == "exec")
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
