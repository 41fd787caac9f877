//! `podling why`: what a pod is waiting for.

use clap::Args;

use super::name::{NamespaceArg, PodName};
use super::{CommandError, Directories, Exit};

/// Explain what a pod is waiting for, or why it fails
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  podling why hello

Exit status: 0 if the pod is ready or has completed, 1 if something keeps it from that.")]
pub struct WhyArgs {
    /// The pod
    #[arg(value_name = "POD")]
    pub pod: PodName,
    #[command(flatten)]
    pub namespace: NamespaceArg,
}

pub(super) fn run(_args: &WhyArgs, _directories: &Directories) -> Result<Exit, CommandError> {
    Err(CommandError::new("not yet"))
}
