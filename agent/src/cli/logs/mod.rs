//! `podling logs`: reads the CRI log files themselves, so that it works with the agent dead.

use std::time::Duration;

use clap::Args;

use super::name::{NamespaceArg, PodName, parse_duration};
use super::{CommandError, Directories, Exit};

/// Show what a container printed
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling logs hello                      all of it, rotated files included
  podling logs -f --tail 20 hello         the last 20 lines, then each as it comes, over restarts too
  podling logs --previous hello           what the run before the last restart said
  podling logs -c writer --since 10m site one container of several
  podling logs --all-containers site      each line with its container in front

The files are in the CRI format below the log directory; this command reads them without the agent.")]
pub struct LogsArgs {
    /// The pod
    #[arg(value_name = "POD")]
    pub pod: PodName,
    #[command(flatten)]
    pub namespace: NamespaceArg,
    /// The container; needed if the pod has several
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Every container, with its name before each line
    #[arg(long, conflicts_with = "container")]
    pub all_containers: bool,
    /// Go on with each line as it comes
    #[arg(short, long)]
    pub follow: bool,
    /// The run before the last restart
    #[arg(short, long, conflicts_with = "follow")]
    pub previous: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    pub tail: Option<usize>,
    /// Only lines younger than this: 30s, 5m, 1h30m
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub since: Option<Duration>,
    /// Each line's time in front
    #[arg(long)]
    pub timestamps: bool,
}

pub(super) fn run(_args: &LogsArgs, _directories: &Directories) -> Result<Exit, CommandError> {
    Err(CommandError::new("not yet"))
}
