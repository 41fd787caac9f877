//! `podling describe pod`.

use clap::Args;

use super::get::Kind;
use super::name::{NamespaceArg, PodName};
use super::{CommandError, Directories, Exit};

/// Show all about a pod, for people
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  podling describe pod hello")]
pub struct DescribeArgs {
    /// What to describe
    #[arg(value_name = "KIND")]
    pub kind: Kind,
    /// Which; all of the namespace if none is named
    #[arg(value_name = "NAME")]
    pub names: Vec<PodName>,
    #[command(flatten)]
    pub namespace: NamespaceArg,
}

pub(super) fn run(_args: &DescribeArgs, _directories: &Directories) -> Result<Exit, CommandError> {
    Err(CommandError::new("not yet"))
}
