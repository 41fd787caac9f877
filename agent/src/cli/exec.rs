//! `podling exec`: talks to the pod's supervisor, so that it works with the agent dead.

use clap::Args;

use super::name::{NamespaceArg, PodName};
use super::{CommandError, Directories, Exit};

/// Run a command in a container
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling exec hello -- /podling demo get http://127.0.0.1:8080/env
  podling exec -it web -- /bin/sh            a shell on a terminal
  tar c src | podling exec -i web -- tar x   standard input goes to the command
  podling exec -c sidecar site -- ls /data

No shell is involved: what follows `--` is the program and its arguments. The exit code is that of the command.")]
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

pub(super) fn run(_args: &ExecArgs, _directories: &Directories) -> Result<Exit, CommandError> {
    Err(CommandError::new("not yet"))
}
