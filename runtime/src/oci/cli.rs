//! The command line, as container engines call it. Options have the names that runc gave them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::log::Format;

/// Runs containers from OCI bundles.
#[derive(Debug, Parser)]
#[command(name = "podling-runtime", version, about, max_term_width = 100)]
pub struct Cli {
    /// Where containers' state is kept
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/run/podling-runtime"
    )]
    pub root: PathBuf,
    /// Write errors to this file too
    #[arg(long, global = true, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// How the log file's lines look
    #[arg(long, global = true, value_enum, default_value_t)]
    pub log_format: Format,
    /// Log more; accepted for compatibility, all errors are logged anyway
    #[arg(long, global = true)]
    pub debug: bool,
    /// Let systemd make cgroups; not supported yet
    #[arg(long, global = true)]
    pub systemd_cgroup: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a container, which waits for its start
    Create(Create),
    /// Start a container that was created
    Start {
        /// Its name
        id: String,
    },
    /// Create and start a container, and wait for its end
    Run(Run),
    /// Print a container's state as JSON
    State {
        /// Its name
        id: String,
    },
    /// Send a signal to a container's first process
    Kill(Kill),
    /// Remove a container that has ended
    Delete(Delete),
    /// Run another process in a container
    Exec(Exec),
    /// List containers
    List(List),
    /// Print the pids of a container's processes
    Ps {
        /// Its name
        id: String,
        /// Print a JSON array
        #[arg(short, long, value_enum, default_value_t)]
        format: ListFormat,
    },
    /// Suspend all processes of a container
    Pause {
        /// Its name
        id: String,
    },
    /// Let a paused container go on
    Resume {
        /// Its name
        id: String,
    },
    /// Write a bundle's config.json to start from
    Spec {
        /// The bundle
        #[arg(short, long, default_value = ".", value_name = "DIR")]
        bundle: PathBuf,
    },
    /// Print what this runtime supports as JSON
    Features,
}

/// Options of `create` that `run` has too.
#[derive(Debug, Args)]
pub struct Create {
    /// The container's name
    pub id: String,
    /// The directory that holds config.json
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    pub bundle: PathBuf,
    /// Send the terminal's controlling side to this socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Write the first process's pid to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Let the process keep this many descriptors from 3 on
    #[arg(long, value_name = "N", default_value_t)]
    pub preserve_fds: u32,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// As for `create`
    #[command(flatten)]
    pub create: Create,
    /// Do not wait for the container's end
    #[arg(short, long)]
    pub detach: bool,
    /// Keep the container's state when it has ended
    #[arg(long)]
    pub keep: bool,
}

/// Options of `kill`.
#[derive(Debug, Args)]
pub struct Kill {
    /// The container's name
    pub id: String,
    /// A signal's name or number
    #[arg(default_value = "TERM")]
    pub signal: String,
    /// Signal all processes of the container
    #[arg(short, long)]
    pub all: bool,
}

/// Options of `delete`.
#[derive(Debug, Args)]
pub struct Delete {
    /// The container's name
    pub id: String,
    /// Kill it if it runs; one that does not exist is fine
    #[arg(short, long)]
    pub force: bool,
}

/// Options of `exec`.
#[derive(Debug, Args)]
pub struct Exec {
    /// The container's name
    pub id: String,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
    /// Read the whole process from this file, an OCI process object
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["command", "env", "cwd", "user", "cap"])]
    pub process: Option<PathBuf>,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Add an environment variable, NAME=VALUE
    #[arg(short, long, value_name = "VAR")]
    pub env: Vec<String>,
    /// The working directory
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// The user, UID[:GID]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Add a capability to all sets but the ambient one
    #[arg(short, long, value_name = "CAP")]
    pub cap: Vec<String>,
    /// Set no_new_privs
    #[arg(long)]
    pub no_new_privs: bool,
    /// Do not wait for its end
    #[arg(short, long)]
    pub detach: bool,
    /// Send the terminal's controlling side to this socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Write the process's pid to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Let the process keep this many descriptors from 3 on
    #[arg(long, value_name = "N", default_value_t)]
    pub preserve_fds: u32,
}

/// Options of `list`.
#[derive(Debug, Args)]
pub struct List {
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    pub format: ListFormat,
    /// Names only
    #[arg(short, long)]
    pub quiet: bool,
}

/// How `list` prints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ListFormat {
    /// Columns
    #[default]
    Table,
    /// A JSON array
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_an_exec_command_are_its_own() {
        let cli =
            Cli::try_parse_from(["r", "exec", "-t", "id", "ls", "-t", "--root"]).expect("parses");
        let Command::Exec(exec) = cli.command else {
            panic!("another command")
        };
        assert!(exec.tty);
        assert_eq!(exec.command, ["ls", "-t", "--root"]);
    }

    #[test]
    fn engines_put_options_first() {
        let cli = Cli::try_parse_from([
            "r",
            "--log-format=json",
            "--log",
            "/tmp/l",
            "--root",
            "/r",
            "create",
            "--bundle",
            "/b",
            "id",
        ])
        .expect("parses");
        assert_eq!(cli.root, PathBuf::from("/r"));
    }
}
