//! Where a `podling run` lives, and that nothing is left of it.
//!
//! ```text
//! <data-dir>/images                 shared with the node of this machine and with all runs
//! <data-dir>/runs/                  locked while a run makes its place, or removes what killed ones left
//! <data-dir>/runs/<pid>/            this run's own data directory, locked as long as it lives
//!                     images ─►     ../../images
//!                     run    ─►     its run directory, so that other commands find it
//!                     logs/
//! /run/podling-run-<pid>/           its run directory
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use super::super::CommandError;
use super::super::dirs::{DirectoryArgs, RUN_LINK, RUN_LOGS, RUNS_DIR};
use super::Stop;
use crate::node::config::GcConfig;
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
    /// Held for life: the kernel lets go of it whatever happens.
    _lock: File,
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
    /// Ends what killed runs left, then makes the directories of this one. One run at a time: none takes another that
    /// is just starting for a dead one.
    pub(super) async fn take(
        directories: &DirectoryArgs,
        shared: &Path,
        stop: &mut Stop,
    ) -> Result<Self, CommandError> {
        let runs = shared.join(RUNS_DIR);
        fs::create_dir_all(&runs).map_err(failed("make", &runs))?;
        let turn = tokio::task::spawn_blocking(move || {
            let turn = File::open(&runs).map_err(failed("open", &runs))?;
            turn.lock().map_err(failed("lock", &runs)).map(|()| turn)
        });
        let turn = turn
            .await
            .map_err(|e| CommandError::new("cannot wait for other runs").because(e))??;
        reclaim(shared, stop).await?;
        let place = Self::make(directories, shared);
        drop(turn);
        place
    }

    /// Makes the directories, this run's own data below the shared data.
    fn make(directories: &DirectoryArgs, shared: &Path) -> Result<Self, CommandError> {
        let id = std::process::id().to_string();
        let data = shared.join(RUNS_DIR).join(&id);
        let images = shared.join("images");
        for dir in [&images, &data] {
            fs::create_dir_all(dir).map_err(failed("make", dir))?;
        }
        let lock = lock(&data)?.ok_or_else(|| {
            CommandError::new(format!("another process holds {}", data.display()))
        })?;
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
            _lock: lock,
        })
    }

    pub(super) fn apply(&self, config: &mut Config) {
        config.data_dir.clone_from(&self.data);
        config.run_dir.clone_from(&self.run);
        config.log_dir = Some(self.logs.clone());
        config.cgroup_parent.clone_from(&self.cgroup_parent);
    }

    /// Makes this run's pods others than those of all runs before, whose logs may be in the same directory.
    pub(super) fn uid_seed(&self) -> String {
        format!("{} {}", self.data.display(), Timestamp::now())
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

/// How long pods of a run that was killed have to end: whoever starts a run waits for it.
const RECLAIM_GRACE: Duration = Duration::from_secs(5);

/// Ends what runs left that were killed: their pods go on, as pods do. A node is started in each one's place, without
/// manifests, which takes its pods over and terminates them. A signal kills them at once.
async fn reclaim(shared: &Path, stop: &mut Stop) -> Result<(), CommandError> {
    let runs = shared.join(RUNS_DIR);
    for entry in fs::read_dir(&runs).into_iter().flatten().flatten() {
        let data = entry.path();
        let Some(id) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        let Some(lock) = lock(&data)? else {
            // It lives.
            continue;
        };
        let Ok(run) = fs::read_link(data.join(RUN_LINK)) else {
            // It came to nothing.
            remove_dir(&data)?;
            continue;
        };
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
                _lock: lock,
            };
            place.apply(&mut config);
            config.images.gc = GcConfig::off();
            let once = Options {
                watch: false,
                ..Options::default()
            };
            let failed =
                |e| CommandError::new("cannot end the pods of a run that was killed").because(e);
            let node = Node::start(config, once).await.map_err(failed)?;
            let gently = node.shutdown(Shutdown::TerminatePods);
            let at_once = async {
                tokio::select! {
                    () = stop.next() => {}
                    () = tokio::time::sleep(RECLAIM_GRACE) => {}
                }
                node.shutdown(Shutdown::TerminatePods).await
            };
            // The first goes on to its end, which the second brings about.
            tokio::pin!(gently);
            tokio::select! {
                ended = &mut gently => ended.map_err(failed)?,
                killed = at_once => {
                    killed.map_err(failed)?;
                    gently.await.map_err(failed)?;
                }
            }
        }
        remove_dir(&run)?;
        remove_dir(&data)?;
    }
    Ok(())
}

/// Locks a directory; none while another process has it.
fn lock(dir: &Path) -> Result<Option<File>, CommandError> {
    let file = File::open(dir).map_err(failed("open", dir))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(failed("lock", dir)(e)),
    }
}
