//! The `podling` command line.
//!
//! ```text
//! main ─► Cli (clap) ─► one module per command ─► Result<Exit, CommandError> ─► exit code
//!                          │
//!                          ├─ over <run-dir>/agent.sock: get, describe, delete, why, status
//!                          ├─ without the agent: logs (CRI files), exec (the pod's supervisor), images (the store)
//!                          └─ a node in this process: agent, run
//! ```
//!
//! A command that needs the agent says so when it is away, and what still works: pods go on without it, and
//! `get pods`, `describe`, `why`, `logs` and `exec` read what the supervisors know. Errors are printed once, here,
//! as a chain of causes and a hint.

pub mod demo;

mod agent;
mod check;
mod client;
mod columns;
mod delete;
mod describe;
mod dirs;
mod error;
mod exec;
mod get;
mod images;
mod log;
mod logs;
mod manual;
mod name;
mod offline;
mod run;
mod status;
mod stop_pods;
mod table;
mod version;
mod why;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::builder::styling::{AnsiColor, Styles};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::api::age;
pub use dirs::Directories;
pub use error::{CommandError, Exit};

/// The colours of help texts.
const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// What `podling --help` teaches below the list of commands.
const EXAMPLES: &str = "\
Try it, without installing anything:
  podling run examples/hello.yaml         run a pod here, in the foreground; ctrl-C stops it

A node:
  podling check                           what this machine can and cannot do
  podling agent --manifests /etc/podling/manifests
                                          run what that directory says, and keep it running
  podling get pods                        what runs
  podling why hello                       what a pod is waiting for
  podling logs -f hello                   its output
  podling exec -it hello -- /bin/sh       a shell in it

Two nodes on one machine differ in --run-dir and --data-dir, for the agent and for each command that asks it; their \
agents in --cgroup-parent too. Each may have its own file with --config.

Exit status: 0 done, 1 failed, 2 the command line was wrong; exec gives the code of the command it ran.";

/// Runs containers from Kubernetes manifests on one machine: no cluster, no other daemon.
#[derive(Debug, Parser)]
#[command(
    name = "podling",
    version,
    max_term_width = 110,
    styles = STYLES,
    after_help = EXAMPLES,
    arg_required_else_help = true,
    subcommand_required = true
)]
pub struct Cli {
    /// Where the node keeps what belongs to its run
    #[command(flatten)]
    pub directories: dirs::DirectoryArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `podling` can do.
#[derive(Debug, Subcommand)]
#[expect(missing_docs, reason = "the help of each command is on its arguments")]
pub enum Command {
    Run(run::RunArgs),
    Get(get::GetArgs),
    Describe(describe::DescribeArgs),
    Logs(logs::LogsArgs),
    Exec(exec::ExecArgs),
    Why(why::WhyArgs),
    Delete(delete::DeleteArgs),
    Images(images::ImagesArgs),
    Status(status::StatusArgs),
    StopPods(stop_pods::StopPodsArgs),
    Check(check::CheckArgs),
    Agent(Box<agent::AgentArgs>),
    Completion(manual::CompletionArgs),
    Man(manual::ManArgs),
    Version(version::VersionArgs),
    #[command(hide = true)]
    Demo(demo::DemoArgs),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

/// Runs a command line, its program name first.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(e) => {
            if e.kind() == ErrorKind::MissingSubcommand {
                return teach(&arguments);
            }
            // Help and version come as errors too; clap knows which stream each belongs to.
            let printed = e.print();
            let code = if printed.is_ok() { e.exit_code() } else { 1 };
            return ExitCode::from(u8::try_from(code).unwrap_or(1));
        }
    };
    match dispatch(cli) {
        Ok(exit) => exit.into(),
        Err(e) => e.report(),
    }
}

/// The help of a command that was given without what to do. (clap's own `arg_required_else_help` takes options from the
/// environment for arguments.)
fn teach(arguments: &[OsString]) -> ExitCode {
    let mut command = Cli::command();
    command.build();
    for argument in arguments.iter().skip(1).filter_map(|a| a.to_str()) {
        if let Some(found) = command.find_subcommand(argument).cloned() {
            command = found;
        }
    }
    let help = command.render_help();
    let mut stderr = anstream::stderr().lock();
    // The exit code says it all if standard error is closed.
    drop(write!(stderr, "{}", help.ansi()));
    ExitCode::from(2)
}

fn dispatch(cli: Cli) -> Result<Exit, CommandError> {
    let directories = &cli.directories;
    match cli.command {
        Command::Run(args) => run::run(args, directories),
        Command::Get(args) => get::run(&args, &directories.resolve()?),
        Command::Describe(args) => describe::run(&args, &directories.resolve()?),
        Command::Logs(args) => logs::run(&args, &directories.resolve()?),
        Command::Exec(args) => exec::run(&args, &directories.resolve()?),
        Command::Why(args) => why::run(&args, &directories.resolve()?),
        Command::Delete(args) => delete::run(&args, &directories.resolve()?),
        Command::Images(args) => images::run(args, directories),
        Command::Status(args) => status::run(&args, &directories.resolve()?),
        Command::Check(args) => check::run(&args, &directories.resolve()?),
        Command::StopPods(args) => stop_pods::run(&args, &directories.resolve()?),
        Command::Agent(args) => agent::run(*args, directories),
        Command::Completion(args) => manual::completion(&args),
        Command::Man(args) => manual::man(&args),
        Command::Version(args) => version::run(&args),
        Command::Demo(args) => demo::run(args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
