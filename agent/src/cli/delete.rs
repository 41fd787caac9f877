//! `podling delete`.

use std::path::PathBuf;

use clap::Args;

use super::name::NamespaceArg;
use super::{CommandError, Directories, Exit};

/// Stop a pod and remove it
#[derive(Debug, Args)]
#[command(
    override_usage = "podling delete pod NAME…\n       podling delete -f FILE",
    after_help = "\
Examples:
  podling delete pod hello
  podling delete pod hello --grace-period 0    kill it at once
  podling delete -f hello.yaml                 the pods that a file names

A pod that comes from a manifest directory or from etcd belongs to its manifest: deleting it here would bring it
back at once, so that is refused, with the name of the file or key to remove. To start such a pod afresh, use
--restart: it is stopped, and its manifest starts it again."
)]
pub struct DeleteArgs {
    /// `pod` and its names
    #[arg(value_name = "KIND NAME", num_args = 1.., required_unless_present = "files")]
    pub targets: Vec<String>,
    /// The pods in this manifest
    #[arg(
        short,
        long = "filename",
        value_name = "FILE",
        conflicts_with = "targets"
    )]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub namespace: NamespaceArg,
    /// Seconds between the stop signal and SIGKILL; the pod's own if not given
    #[arg(long, value_name = "SECONDS")]
    pub grace_period: Option<u32>,
    /// Stop a pod although its manifest will start it again
    #[arg(long)]
    pub restart: bool,
    /// Return at once instead of waiting for the pod's end
    #[arg(long)]
    pub no_wait: bool,
}

pub(super) fn run(_args: &DeleteArgs, _directories: &Directories) -> Result<Exit, CommandError> {
    Err(CommandError::new("not yet"))
}
