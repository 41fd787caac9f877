//! `podling demo`: the one program of the built-in demo image. It serves, writes, sleeps, fails and asks, which is
//! what the examples and the tests need of a container. Plain threads, nothing of the agent.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::name::parse_duration;
use super::{CommandError, Exit};

/// What the containers of the built-in demo image can do
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "The image is podling.local/demo:latest; a container's `args` go here."
)]
pub struct DemoArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: DemoCommand,
}

/// What a demo container can do.
#[derive(Debug, Subcommand)]
pub enum DemoCommand {
    /// Serve HTTP: / /healthz /readyz /ready/on /ready/off /crash /fill-memory /env /hostname /files/PATH
    Serve {
        /// The port to listen on
        #[arg(long, default_value_t = 8080)]
        port: u16,
        /// Serve these files below /files/, and its index.html as /
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Answer /healthz and /readyz with 503 for this long after the start
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        slow_start: Option<Duration>,
    },
    /// Write the time into a file, again and again
    Write {
        /// The file
        file: PathBuf,
        /// How often; once if not given
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        every: Option<Duration>,
        /// What to write instead of a small page with the time
        #[arg(long)]
        text: Option<String>,
    },
    /// Print a file, and again whenever it changes
    Show {
        /// The file
        file: PathBuf,
        /// How often to look
        #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1s")]
        every: Duration,
    },
    /// Wait until told to stop
    Sleep {
        /// Only this long
        #[arg(value_parser = parse_duration)]
        time: Option<Duration>,
    },
    /// End with an exit code
    Exit {
        /// The code
        code: u8,
        /// Wait this long first
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        after: Option<Duration>,
        /// Succeed from this attempt on; attempts are counted in --state
        #[arg(long, value_name = "N", requires = "state")]
        succeed_after_attempts: Option<u32>,
        /// The file that counts the attempts
        #[arg(long, value_name = "FILE")]
        state: Option<PathBuf>,
    },
    /// Fetch a URL and print it; fails unless the status is 200 to 399
    Get {
        /// http://HOST:PORT/PATH
        url: String,
        /// Give up after this long
        #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "5s")]
        timeout: Duration,
    },
    /// Succeed if a file exists
    Check {
        /// The file
        file: PathBuf,
    },
}

pub(super) fn run(_args: DemoArgs) -> Result<Exit, CommandError> {
    Err(CommandError::new("not yet"))
}
