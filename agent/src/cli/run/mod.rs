//! `podling run`: a node in the foreground that leaves nothing behind.

use std::path::PathBuf;

use clap::Args;

use super::dirs::DirectoryArgs;
use super::{CommandError, Exit};

/// Run manifests here, in the foreground, until ctrl-C
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling run examples/hello.yaml        one file
  podling run examples/                  every manifest of a directory
  podling run a.yaml b.yaml --quiet      only what goes wrong

The files are watched: save a change and the pods follow. ctrl-C stops the pods and removes everything that was made
for them; a second ctrl-C does not wait. Needs root, and no running agent; several runs may go side by side. Images
are taken from and kept in --data-dir.

Ends by itself when every pod has completed, with status 1 if one failed.")]
pub struct RunArgs {
    /// Manifests, and directories of manifests
    #[arg(value_name = "FILE|DIR", required = true)]
    pub paths: Vec<PathBuf>,
    /// Follow changes of the files (the default)
    #[arg(long, overrides_with = "no_watch")]
    pub watch: bool,
    /// Read the files once
    #[arg(long, overrides_with = "watch")]
    pub no_watch: bool,
    /// Print only problems
    #[arg(short, long)]
    pub quiet: bool,
    /// Lines instead of a live table, also on a terminal
    #[arg(long)]
    pub plain: bool,
    /// Where the pods' addresses are taken from [default: a free 10.x.y.0/24]
    #[arg(long, value_name = "CIDR")]
    pub pod_cidr: Option<String>,
    /// What to log on standard error: error, warn, info, debug, trace
    #[arg(
        long,
        value_name = "FILTER",
        env = "PODLING_LOG",
        default_value = "warn",
        hide_env_values = true
    )]
    pub log: String,
}

pub(super) fn run(_args: RunArgs, _directories: &DirectoryArgs) -> Result<Exit, CommandError> {
    Err(CommandError::new("not yet"))
}
