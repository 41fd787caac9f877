//! Where a node lives on this machine: its configuration file, and the three directories that tell one node from another.
//!
//! ```text
//! option ─► environment ─► configuration file ─► default        the first that says something wins, for all commands
//! ```

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use clap::Args;

use super::CommandError;
use crate::node::Config;
use crate::node::config::{DEFAULT_CONFIG, DEFAULT_DATA_DIR, DEFAULT_RUN_DIR};

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
    /// The configuration file, of which the options here win [default: /etc/podling/config.yaml, if there is one]
    #[arg(
        long,
        global = true,
        env = "PODLING_CONFIG",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub config: Option<PathBuf>,
    /// Sockets and state of the running node [default: runDir of the configuration, /run/podling]
    #[arg(
        long,
        global = true,
        env = "PODLING_RUN_DIR",
        value_name = "DIR",
        hide_env_values = true
    )]
    pub run_dir: Option<PathBuf>,
    /// Images, volumes and what the node remembers [default: dataDir of the configuration, /var/lib/podling]
    #[arg(
        long,
        global = true,
        env = "PODLING_DATA_DIR",
        value_name = "DIR",
        hide_env_values = true
    )]
    pub data_dir: Option<PathBuf>,
    /// Container logs [default: logDir of the configuration, /var/log/pods, or <data-dir>/logs/pods with another data
    /// directory]
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
    /// What the configuration file says, and what the options say otherwise: checked, its paths absolute.
    ///
    /// # Errors
    /// When a file that was named is not there, or when one cannot be used.
    pub fn configuration(&self) -> Result<Config, CommandError> {
        self.configuration_with(|_| {})
    }

    /// The same, with more options of a command laid over it before it is checked.
    pub(super) fn configuration_with(
        &self,
        lay_over: impl FnOnce(&mut Config),
    ) -> Result<Config, CommandError> {
        let cannot_use = |e| CommandError::new("cannot use the configuration").because(e);
        let path = self.config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG));
        let mut config = match self.config.is_none() && !path.exists() {
            true => Config::default(),
            false => Config::load(path).map_err(cannot_use)?,
        };
        self.lay_over(&mut config);
        lay_over(&mut config);
        config.resolve().map_err(cannot_use)
    }

    fn lay_over(&self, config: &mut Config) {
        let set = |field: &mut PathBuf, value: &Option<PathBuf>| {
            if let Some(value) = value {
                field.clone_from(value);
            }
        };
        set(&mut config.run_dir, &self.run_dir);
        set(&mut config.data_dir, &self.data_dir);
        if self.log_dir.is_some() {
            config.log_dir.clone_from(&self.log_dir);
        }
    }

    /// Where the node is that a command is about.
    ///
    /// # Errors
    /// As [`Self::configuration`].
    pub fn resolve(&self) -> Result<Directories, CommandError> {
        Ok(self.locate(&self.configuration()?))
    }

    /// The same, with a configuration that was read already.
    #[must_use]
    pub fn locate(&self, config: &Config) -> Directories {
        if self.run_dir.is_none()
            && let Some(run) = only_run(config)
        {
            return run;
        }
        Directories {
            run: config.run_dir.clone(),
            data: config.data_dir.clone(),
            log: config.log_dir(),
        }
    }
}

/// The one `podling run` of the data directory, when no node has the run directory that was not chosen by an option: what
/// a person with two terminals means.
fn only_run(config: &Config) -> Option<Directories> {
    if config.socket_path().exists() {
        return None;
    }
    let runs = fs::read_dir(config.data_dir.join(RUNS_DIR)).ok()?;
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

    fn located(args: &DirectoryArgs, file: &str) -> Directories {
        let mut config = Config::parse(file).expect("valid");
        args.lay_over(&mut config);
        args.locate(&config)
    }

    #[test]
    fn options_win_over_the_file_and_logs_follow_a_data_directory_of_ones_own() {
        let none = DirectoryArgs::default();
        let own = DirectoryArgs {
            data_dir: Some("/d".into()),
            ..DirectoryArgs::default()
        };
        assert_eq!(located(&none, "").log, Path::new("/var/log/pods"));
        assert_eq!(located(&own, "").log, Path::new("/d/logs/pods"));
        assert_eq!(located(&own, "").flags(), " --data-dir /d");
        let file = "{dataDir: /f/data, runDir: /f/run}";
        let expected = Directories {
            run: "/f/run".into(),
            data: "/f/data".into(),
            log: "/f/data/logs/pods".into(),
        };
        assert_eq!(located(&none, file), expected);
        let expected = Directories {
            run: "/f/run".into(),
            data: "/d".into(),
            log: "/f/logs".into(),
        };
        let file = "{dataDir: /f/data, runDir: /f/run, logDir: /f/logs}";
        assert_eq!(located(&own, file), expected);
    }
}
