//! `podling get pods`.

use clap::{Args, ValueEnum};

use super::name::{NamespaceArg, PodName};
use super::{CommandError, Directories, Exit};

/// Show the node's pods
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling get pods                    those of namespace default
  podling get pods -A -o wide         all, with their addresses and images
  podling get pods -w                 and go on showing each change
  podling get pods hello -o yaml      all that is known of one
  podling get pods -A -o json | jq -r '.items[].status.podIP'

When the agent is away, this shows what the pods' supervisors last recorded, and says so.")]
pub struct GetArgs {
    /// What to show
    #[arg(value_name = "KIND")]
    pub kind: Kind,
    /// Only these
    #[arg(value_name = "NAME")]
    pub names: Vec<PodName>,
    #[command(flatten)]
    pub namespace: NamespaceArg,
    /// Those of all namespaces
    #[arg(short = 'A', long, conflicts_with = "names")]
    pub all_namespaces: bool,
    /// How to print them
    #[arg(short, long, value_enum, default_value_t = Output::Table, hide_default_value = true)]
    pub output: Output,
    /// Go on printing each change
    #[arg(short, long)]
    pub watch: bool,
    /// Leave out the line of column names
    #[arg(long)]
    pub no_headers: bool,
}

/// What `get` can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The pods of this node
    #[value(name = "pods", aliases = ["pod", "po"])]
    Pods,
}

/// How `get` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns, for people
    Table,
    /// Columns, with addresses and images
    Wide,
    /// A Kubernetes PodList, or a Pod if one is named
    Json,
    /// The same as YAML
    Yaml,
    /// `pod/NAME` lines
    Name,
}

pub(super) fn run(_args: &GetArgs, _directories: &Directories) -> Result<Exit, CommandError> {
    Err(CommandError::new("not yet"))
}
