//! Where a node lives on this machine: the three directories that tell one node from another.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use clap::Args;

/// The node's run directory when none is given.
pub(super) const DEFAULT_RUN_DIR: &str = "/run/podling";
/// The node's data directory when none is given.
pub(super) const DEFAULT_DATA_DIR: &str = "/var/lib/podling";
/// Where container logs go when neither a log directory nor a data directory is given: where Kubernetes has them.
pub(super) const DEFAULT_LOG_DIR: &str = "/var/log/pods";

/// Below the data directory: one directory for each `podling run`, named by its process.
pub(super) const RUNS_DIR: &str = "runs";
/// In it: a link to its run directory.
pub(super) const RUN_LINK: &str = "run";
/// In it: its logs.
pub(super) const RUN_LOGS: &str = "logs";

/// The options that choose a node; every command takes them.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which node")]
pub struct DirectoryArgs {
    /// Sockets and state of the running node [default: /run/podling]
    #[arg(
        long,
        global = true,
        env = "PODLING_RUN_DIR",
        value_name = "DIR",
        hide_env_values = true
    )]
    pub run_dir: Option<PathBuf>,
    /// Images, volumes and what the node remembers [default: /var/lib/podling]
    #[arg(
        long,
        global = true,
        env = "PODLING_DATA_DIR",
        value_name = "DIR",
        hide_env_values = true
    )]
    pub data_dir: Option<PathBuf>,
    /// Container logs [default: /var/log/pods, or <data-dir>/logs/pods if --data-dir is given]
    #[arg(
        long,
        global = true,
        env = "PODLING_LOG_DIR",
        value_name = "DIR",
        hide_env_values = true
    )]
    pub log_dir: Option<PathBuf>,
}

impl DirectoryArgs {
    /// The data directory.
    #[must_use]
    pub fn resolve_data(&self) -> PathBuf {
        let data = self.data_dir.clone();
        data.unwrap_or_else(|| DEFAULT_DATA_DIR.into())
    }

    /// Fills in the defaults.
    #[must_use]
    pub fn resolve(&self) -> Directories {
        let data = self.resolve_data();
        if self.run_dir.is_none()
            && let Some(run) = only_run(&data)
        {
            return run;
        }
        let log = self
            .log_dir
            .clone()
            .unwrap_or_else(|| default_log_dir(&data));
        Directories {
            run: self
                .run_dir
                .clone()
                .unwrap_or_else(|| DEFAULT_RUN_DIR.into()),
            data,
            log,
        }
    }
}

/// The one `podling run` of this data directory, when no node has the default run directory: what a person with two
/// terminals means.
fn only_run(data: &Path) -> Option<Directories> {
    if Path::new(DEFAULT_RUN_DIR).join("agent.sock").exists() {
        return None;
    }
    let runs = fs::read_dir(data.join(RUNS_DIR)).ok()?;
    let mut live: Vec<Directories> = runs
        .flatten()
        .map(|entry| entry.path())
        .filter_map(|path| {
            let run = fs::read_link(path.join(RUN_LINK)).ok()?;
            UnixStream::connect(run.join("agent.sock")).ok()?;
            Some(Directories {
                run,
                log: path.join(RUN_LOGS),
                data: path,
            })
        })
        .collect();
    if live.len() > 1 {
        let all: Vec<String> = live.iter().map(|d| d.run.display().to_string()).collect();
        eprintln!(
            "note: several `podling run` are active; choose one with --run-dir: {}",
            all.join(", ")
        );
        return None;
    }
    live.pop()
}

fn default_log_dir(data: &Path) -> PathBuf {
    if data == Path::new(DEFAULT_DATA_DIR) {
        DEFAULT_LOG_DIR.into()
    } else {
        data.join("logs/pods")
    }
}

/// Where a node lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    /// `agent.sock`, and `pods/<uid>` with each supervisor's socket.
    pub run: PathBuf,
    /// The image store, volumes, the object store.
    pub data: PathBuf,
    /// `<namespace>_<name>_<uid>/<container>/<restart>.log`.
    pub log: PathBuf,
}

impl Directories {
    /// The agent's API socket.
    #[must_use]
    pub fn agent_socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }

    /// The directory of all pods' run directories.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.run.join("pods")
    }

    /// The options that name this node, for hints: empty when they are the defaults.
    #[must_use]
    pub fn flags(&self) -> String {
        let mut flags = String::new();
        if self.run != Path::new(DEFAULT_RUN_DIR) {
            flags.push_str(&format!(" --run-dir {}", self.run.display()));
        }
        if self.data != Path::new(DEFAULT_DATA_DIR) {
            flags.push_str(&format!(" --data-dir {}", self.data.display()));
        }
        flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_follow_a_data_directory_of_ones_own() {
        assert_eq!(
            DirectoryArgs::default().resolve().log,
            Path::new("/var/log/pods")
        );
        let own = DirectoryArgs {
            data_dir: Some("/d".into()),
            ..DirectoryArgs::default()
        };
        assert_eq!(own.resolve().log, Path::new("/d/logs/pods"));
        assert_eq!(own.resolve().flags(), " --data-dir /d");
    }
}
