//! Where a `podling run` lives, and that nothing is left of it.
//!
//! ```text
//! <data-dir>/images                 shared with the node of this machine and with all runs
//! <data-dir>/runs/<pid>/            this run's own data directory
//!                     images ─►     ../../images
//!                     run    ─►     its run directory, so that other commands find it
//!                     logs/
//! /run/podling-run-<pid>/           its run directory
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::super::CommandError;
use super::super::dirs::{DirectoryArgs, RUN_LINK, RUN_LOGS, RUNS_DIR};
use crate::node::{Config, Node, Options, Shutdown};

/// The directories and names of a run.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) data: PathBuf,
    pub(super) run: PathBuf,
    pub(super) logs: PathBuf,
    pub(super) cgroup_parent: PathBuf,
    /// The run directory was made here, so it goes too.
    own_run: bool,
}

fn failed(action: &str, path: &Path) -> impl FnOnce(io::Error) -> CommandError {
    let what = format!("cannot {action} {}", path.display());
    move |e| {
        let denied = e.kind() == io::ErrorKind::PermissionDenied;
        let error = CommandError::new(what).because(e);
        if denied {
            error.hint("containers need root: try with sudo")
        } else {
            error
        }
    }
}

impl Place {
    /// Makes the directories.
    pub(super) fn make(directories: &DirectoryArgs) -> Result<Self, CommandError> {
        let shared = directories.resolve_data();
        let id = std::process::id().to_string();
        let data = shared.join(RUNS_DIR).join(&id);
        let images = shared.join("images");
        for dir in [&images, &data] {
            fs::create_dir_all(dir).map_err(failed("make", dir))?;
        }
        let run = match &directories.run_dir {
            Some(dir) => std::path::absolute(dir).map_err(failed("find", dir))?,
            None => run_base().join(format!("podling-run-{id}")),
        };
        let own_run = !run.exists();
        fs::create_dir_all(&run).map_err(failed("make", &run))?;
        let logs = match &directories.log_dir {
            Some(dir) => std::path::absolute(dir).map_err(failed("find", dir))?,
            None => data.join(RUN_LOGS),
        };
        fs::create_dir_all(&logs).map_err(failed("make", &logs))?;
        let images = images.canonicalize().map_err(failed("find", &images))?;
        for (target, name) in [(&images, "images"), (&run, RUN_LINK)] {
            let link = data.join(name);
            std::os::unix::fs::symlink(target, &link).map_err(failed("make", &link))?;
        }
        Ok(Self {
            cgroup_parent: cgroup_parent(&id),
            data,
            run,
            logs,
            own_run,
        })
    }

    pub(super) fn apply(&self, config: &mut Config) {
        config.data_dir.clone_from(&self.data);
        config.run_dir.clone_from(&self.run);
        config.log_dir = Some(self.logs.clone());
        config.cgroup_parent.clone_from(&self.cgroup_parent);
    }

    /// Removes what was made.
    pub(super) fn remove(&self) -> Result<(), CommandError> {
        remove_dir(&self.data)?;
        if self.own_run {
            remove_dir(&self.run)?;
        }
        Ok(())
    }
}

fn cgroup_parent(id: &str) -> PathBuf {
    PathBuf::from(format!("/podling-run-{id}"))
}

/// `$TMPDIR` if the user has a wish, else /run, which no reboot outlives.
fn run_base() -> PathBuf {
    match std::env::var_os("TMPDIR") {
        Some(dir) => dir.into(),
        None if Path::new("/run").is_dir() => "/run".into(),
        None => std::env::temp_dir(),
    }
}

fn remove_dir(path: &Path) -> Result<(), CommandError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed("remove", path)(e)),
    }
}

/// Ends what runs left that were killed: their pods go on, as pods do. A node is started in each one's place, without
/// manifests, which takes its pods over and terminates them.
pub(super) async fn reclaim(directories: &DirectoryArgs) -> Result<(), CommandError> {
    let runs = directories.resolve_data().join(RUNS_DIR);
    for entry in fs::read_dir(&runs).into_iter().flatten().flatten() {
        let data = entry.path();
        let Some(id) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        let Ok(run) = fs::read_link(data.join(RUN_LINK)) else {
            continue;
        };
        if is_alive(&id, &run) {
            continue;
        }
        if run.join("pods").is_dir() {
            eprintln!("note: ending the pods of a run that was killed (process {id})");
            let mut config = Config {
                manifests: Vec::new(),
                ..Config::default()
            };
            let place = Place {
                cgroup_parent: cgroup_parent(&id),
                logs: data.join(RUN_LOGS),
                data: data.clone(),
                run: run.clone(),
                own_run: true,
            };
            place.apply(&mut config);
            let failed =
                |e| CommandError::new("cannot end the pods of a run that was killed").because(e);
            let node = Node::start(config, Options { watch: false })
                .await
                .map_err(failed)?;
            node.shutdown(Shutdown::TerminatePods)
                .await
                .map_err(failed)?;
        }
        remove_dir(&run)?;
        remove_dir(&data)?;
    }
    Ok(())
}

/// Its process is there, or holds the lock of its run directory.
fn is_alive(id: &str, run: &Path) -> bool {
    if !Path::new("/proc").join(id).exists() {
        return false;
    }
    match File::open(run.join("agent.lock")) {
        Ok(file) => matches!(file.try_lock(), Err(TryLockError::WouldBlock)),
        // It is just starting, or the number belongs to another process now: the next run will know.
        Err(_) => true,
    }
}
