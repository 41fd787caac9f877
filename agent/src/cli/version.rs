//! `podling version`.

use std::io::Write;

use clap::Args;

use super::{CommandError, Exit, error::written};

/// Print the version
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  podling version      Podling's version, and what it was built for")]
pub struct VersionArgs {}

pub(super) fn run(_: &VersionArgs) -> Result<Exit, CommandError> {
    let mut out = std::io::stdout().lock();
    written(writeln!(
        out,
        "podling {} ({} {})",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    ))
}
