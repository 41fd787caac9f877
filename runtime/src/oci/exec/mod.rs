//! `exec`: another process in a container.

use std::os::fd::AsFd;
use std::path::PathBuf;

use super::create::{Takers, kill};
use super::error::{Error, Result};
use super::foreground::{self, Signals};
use super::stdio::stdio_of;
use super::store::{Status, Store};
use crate::container::{self, Exec};

mod cgroup;
mod process;

/// Options of `exec`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The container's name
    pub id: String,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
    /// Read the whole process from this file, an OCI process object
    #[arg(
        short,
        long,
        value_name = "FILE",
        conflicts_with_all = ["command", "env", "cwd", "user", "additional_gids", "cap"]
    )]
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
    /// Add a group
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// Add a capability to the bounding, effective and permitted sets, and to the ambient one if it is inheritable
    #[arg(short, long, value_name = "CAP")]
    pub cap: Vec<String>,
    /// Set no_new_privs
    #[arg(long)]
    pub no_new_privs: bool,
    /// The AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// The SELinux label
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// A cgroup that exists below the container's, [CONTROLLER,…:]PATH; / is the container's own
    #[arg(long, value_name = "PATH")]
    pub cgroup: Vec<String>,
    /// Do not refuse a container that is paused: the process starts when it is resumed
    #[arg(long)]
    pub ignore_paused: bool,
    /// Do not wait for its end
    #[arg(short, long)]
    pub detach: bool,
    /// Send the terminal's controlling side to this socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Write the process's pid to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Send a descriptor of the process to this socket
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Let the process keep this many descriptors from 3 on
    #[arg(long, value_name = "N", default_value_t)]
    pub preserve_fds: u32,
}

/// Runs the process, and unless detached waits for it and gives its exit code.
pub(super) fn exec(store: &Store, options: &Options) -> Result<u8> {
    let entry = store.entry(&options.id)?;
    let record = entry.load()?;
    let (status, target) = entry.status(&record)?;
    let target = match (status, target) {
        (Status::Running | Status::Paused, Some(target)) => target,
        (Status::Stopped, _) | (_, None) => {
            return Err(Error::NotRunning {
                id: record.id,
                attempt: "exec in",
            });
        }
        (Status::Created, Some(_)) => return Err(wrong_status(options, Status::Created)),
    };
    let cgroup = cgroup::choose(&record, options)?;
    if let Some(cgroup) = &cgroup
        && !options.ignore_paused
        && cgroup
            .is_frozen()
            .map_err(super::container_cgroup::attempt("look at", &record))?
    {
        return Err(wrong_status(options, Status::Paused));
    }
    let spec = entry.spec()?;
    let (process, seccomp) = process::plan(&spec, options)?;
    let signals = Signals::catch()?;
    let mut running = container::exec(Exec {
        target: target.as_fd(),
        process: &process,
        container: Some(record.container(&spec)),
        stdio: stdio_of(Some(&process)),
        cgroup: cgroup.as_ref(),
        seccomp,
        preserve_fds: options.preserve_fds,
    })?;
    let takers = Takers {
        console_socket: options.console_socket.as_deref(),
        pidfd_socket: options
            .pidfd_socket
            .as_deref()
            .map(|socket| (socket, b"setns".as_slice())),
        pid_file: options.pid_file.as_deref(),
    };
    if let Err(error) = takers.hand_out(&mut running) {
        kill(&running);
        return Err(error);
    }
    if options.detach {
        return Ok(0);
    }
    let exit = foreground::wait(running, &signals, None)?;
    Ok(u8::try_from(exit.code()).unwrap_or(u8::MAX))
}

fn wrong_status(options: &Options, status: Status) -> Error {
    Error::Status {
        id: options.id.clone(),
        status: status.name(),
        command: "exec",
        wanted: match status {
            Status::Paused => "running (or use --ignore-paused)",
            Status::Created | Status::Running | Status::Stopped => "running",
        },
    }
}
