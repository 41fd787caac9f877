//! Control groups: limits, device rules, statistics and collective kill, on v2 and on v1 (hybrid included).
//!
//! ```text
//! Layout::detect() ──► Cgroup::create(path) ──► apply(limits) ──► clone into it (v2) or Joiner (v1)
//!                                                  │
//!                      delete() ◄── kill_all() ◄───┴── stats(), oom_kills(), freeze(), thaw()
//! ```
//!
//! A [`Cgroup`] is a path, held below the root of each hierarchy: it owns no directory and caches nothing, so that
//! any process may name the same one. Limits are written before the first process joins, so that none is ever
//! without. `layout` reads the mounts, `tree` makes and removes directories, `v1` and `v2`
//! write limits, `systemd` says them as properties of a unit, `devices` reduces device rules (with `sys` for bpf(2)),
//! `freezer` stops and kills, `usage` reads, `oom` hears of memory that runs out.
//!
//! Deliberately absent: moving running processes out of a cgroup to remove it, and speaking with systemd (the caller
//! does). A limit that cannot be given is an error, never ignored; a controller that is missing is one only if a limit
//! asks for it.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

use crate::kernel_file;
use crate::sys::process;

mod control;
mod devices;
mod error;
mod freezer;
mod layout;
mod oom;
mod stats;
mod sys;
pub mod systemd;
mod tree;
mod usage;
mod v1;
mod v2;
mod weight;

pub use error::{Error, Result};
pub use layout::{Hierarchy, Layout};
pub use oom::OomWatch;
pub use stats::{CpuStats, IoStats, MemoryStats, PidsStats, Pressure, Stats};
pub use weight::cpu_weight;

/// A cgroup: one path below the root of each hierarchy. Dropping it removes nothing.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
    directories: Directories,
}

/// Where the cgroup is in the file system.
#[derive(Debug, Clone)]
enum Directories {
    V2 { dir: PathBuf },
    V1 { hierarchies: Vec<Hierarchy> },
}

/// Descriptors opened beforehand with which a new process puts itself into a cgroup.
#[derive(Debug)]
pub struct Joiner {
    files: Vec<OwnedFd>,
}

impl Drop for Joiner {
    fn drop(&mut self) {
        process::close_all(std::mem::take(&mut self.files));
    }
}

impl From<Vec<OwnedFd>> for Joiner {
    /// Of the descriptors of another, in their order.
    fn from(files: Vec<OwnedFd>) -> Self {
        Self { files }
    }
}

impl Joiner {
    /// What it consists of, to be sent to another process.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.files.iter().map(AsFd::as_fd)
    }

    /// Puts the calling thread into the cgroup; the calling process on v2, which a hybrid layout has too. Async-signal-safe: one write(2) for each
    /// hierarchy.
    ///
    /// # Errors
    /// That of the first write that fails.
    pub fn join(&self) -> std::io::Result<()> {
        for file in &self.files {
            rustix::io::write(file, b"0")?;
        }
        Ok(())
    }
}

impl Cgroup {
    /// Makes the cgroup and its missing ancestors in each hierarchy; one that is there already is taken as it is.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn create(layout: &Layout, path: &Path) -> Result<Self> {
        let path = tree::normalise(path);
        match layout {
            Layout::V2 { root } => tree::create_v2(root, &path)?,
            Layout::V1 { hierarchies } => {
                for hierarchy in hierarchies {
                    let is_cpuset = hierarchy.controllers.iter().any(|name| name == "cpuset");
                    tree::create_v1(&hierarchy.root, &path, is_cpuset)?;
                }
            }
        }
        Ok(Self::open(layout, &path))
    }

    /// Names a cgroup that may or may not be there. Does no I/O. `..` in the path is dropped: it cannot leave the
    /// hierarchies.
    pub fn open(layout: &Layout, path: &Path) -> Self {
        let path = tree::normalise(path);
        let below = |root: &Path| root.join(path.strip_prefix("/").unwrap_or(&path));
        let directories = match layout {
            Layout::V2 { root } => Directories::V2 { dir: below(root) },
            Layout::V1 { hierarchies } => Directories::V1 {
                hierarchies: hierarchies
                    .iter()
                    .map(|hierarchy| Hierarchy {
                        controllers: hierarchy.controllers.clone(),
                        root: below(&hierarchy.root),
                    })
                    .collect(),
            },
        };
        Self { path, directories }
    }

    /// Names the cgroup at `path` below this one, in the hierarchies of these controllers, or in all when there are
    /// none given; in the others it stays this one.
    ///
    /// # Errors
    /// When a controller has no hierarchy here. v2 has one for all, which has no name.
    pub fn below(&self, path: &Path, controllers: &[&str]) -> Result<Self> {
        let missing = |controller: &str| Error::MissingController {
            limit: "cgroup",
            controller: controller.to_owned(),
            cgroup: self.path.clone(),
        };
        let directories = match &self.directories {
            Directories::V2 { dir } => match controllers.first() {
                Some(controller) => return Err(missing(controller)),
                None => Directories::V2 {
                    dir: dir.join(path),
                },
            },
            Directories::V1 { hierarchies } => {
                for controller in controllers {
                    controller_dir(hierarchies, controller).ok_or_else(|| missing(controller))?;
                }
                let is_chosen = |hierarchy: &Hierarchy| {
                    controllers.is_empty()
                        || hierarchy
                            .controllers
                            .iter()
                            .any(|name| controllers.contains(&name.as_str()))
                };
                Directories::V1 {
                    hierarchies: hierarchies
                        .iter()
                        .map(|hierarchy| Hierarchy {
                            controllers: hierarchy.controllers.clone(),
                            root: if is_chosen(hierarchy) {
                                hierarchy.root.join(path)
                            } else {
                                hierarchy.root.clone()
                            },
                        })
                        .collect(),
                }
            }
        };
        Ok(Self {
            path: self.path.join(path),
            directories,
        })
    }

    /// The cgroup below this one in which a process lives, where this one can hold none because it gives controllers
    /// to its children (v2). None when this one can, and when the process lives elsewhere.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn home_of(&self, pid: i32) -> Result<Option<Self>> {
        let Directories::V2 { dir } = &self.directories else {
            return Ok(None);
        };
        let given = control::read(dir, "cgroup.subtree_control")?.unwrap_or_default();
        if given.trim().is_empty() {
            return Ok(None);
        }
        let of_process = control::read(&PathBuf::from(format!("/proc/{pid}")), "cgroup")?;
        let of_process = of_process.unwrap_or_default();
        let home = of_process.lines().find_map(|line| line.strip_prefix("0::"));
        match home.and_then(|home| Path::new(home).strip_prefix(&self.path).ok()) {
            Some(path) if !path.as_os_str().is_empty() => self.below(path, &[]).map(Some),
            _ => Ok(None),
        }
    }

    /// The path below the root of each hierarchy, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets limits and device rules. What is not given is left as it is; device rules that are given also allow the
    /// devices that every container has.
    ///
    /// # Errors
    /// When a limit cannot be given: nothing that was asked for is ignored.
    pub fn apply(&self, resources: &LinuxResources) -> Result<()> {
        match &self.directories {
            Directories::V2 { dir } => v2::Writer {
                dir,
                path: &self.path,
            }
            .apply(resources),
            Directories::V1 { hierarchies } => v1::Writer {
                dir: &|controller| controller_dir(hierarchies, controller),
                path: &self.path,
            }
            .apply(resources),
        }
    }

    /// Makes the kernel's OOM killer end all processes of this cgroup together, as the kubelet asks for containers
    /// (`memory.oom.group`). Not for a pod's cgroup: one container would take the others with it. v1 has nothing of
    /// the kind and is left as it is.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn kill_together_on_oom(&self) -> Result<()> {
        match &self.directories {
            Directories::V2 { dir } => v2::kill_together_on_oom(dir),
            Directories::V1 { .. } => Ok(()),
        }
    }

    /// The directory for `CLONE_INTO_CGROUP`; `None` on v1, where the child must use a [`Joiner`].
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn clone_target(&self) -> Result<Option<OwnedFd>> {
        match &self.directories {
            Directories::V2 { dir } => OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
                .open(dir)
                .map(|directory| Some(directory.into()))
                .map_err(|source| Error::Read {
                    path: dir.clone(),
                    source,
                }),
            Directories::V1 { .. } => Ok(None),
        }
    }

    /// Opens what a child needs to put itself here.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn joiner(&self) -> Result<Joiner> {
        let open = |path: PathBuf| open_for_writing(&path).map(OwnedFd::from);
        let files = match &self.directories {
            Directories::V2 { dir } => vec![open(dir.join("cgroup.procs"))?],
            Directories::V1 { hierarchies } => hierarchies
                .iter()
                .map(|hierarchy| {
                    // A single thread moves without the lock over all of the system's forks that cgroup.procs takes.
                    let file = match hierarchy.is_v2() {
                        true => "cgroup.procs",
                        false => "tasks",
                    };
                    open(hierarchy.root.join(file))
                })
                .collect::<Result<_>>()?,
        };
        Ok(Joiner { files })
    }

    /// Puts the calling process with all its threads here.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn join_self(&self) -> Result<()> {
        self.add(0)
    }

    /// Puts a process with all its threads here; 0 is the caller.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn add(&self, pid: i32) -> Result<()> {
        self.dirs()
            .try_for_each(|dir| control::write(dir, "cgroup.procs", &pid.to_string()))
    }

    /// The processes here and in all cgroups below. None when the cgroup is gone.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn processes(&self) -> Result<Vec<i32>> {
        self.tracker().map_or(Ok(Vec::new()), tree::processes)
    }

    /// Sends SIGKILL to all processes here and below, with none escaping by forking. Does not wait for their end.
    ///
    /// # Errors
    /// When the kernel refuses it. A cgroup that is gone is fine.
    pub fn kill_all(&self) -> Result<()> {
        match &self.directories {
            Directories::V2 { dir } => freezer::kill_v2(dir),
            Directories::V1 { hierarchies } => match self.tracker() {
                Some(tracker) => freezer::kill_v1(controller_dir(hierarchies, "freezer"), tracker),
                None => Ok(()),
            },
        }
    }

    /// Stops all processes here and below, and waits until they have stopped.
    ///
    /// # Errors
    /// When they do not stop in time, or v1 has no freezer.
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen(true)
    }

    /// Lets frozen processes go on.
    ///
    /// # Errors
    /// When the kernel refuses it, or v1 has no freezer.
    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    /// True while its processes are asked to stand still, by itself or from above. A cgroup that is gone is not.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn is_frozen(&self) -> Result<bool> {
        match &self.directories {
            Directories::V2 { dir } => freezer::is_frozen_v2(dir),
            Directories::V1 { hierarchies } => {
                controller_dir(hierarchies, "freezer").map_or(Ok(false), freezer::is_frozen_v1)
            }
        }
    }

    fn set_frozen(&self, freeze: bool) -> Result<()> {
        match &self.directories {
            Directories::V2 { dir } => freezer::freeze_v2(dir, freeze),
            Directories::V1 { hierarchies } => {
                let dir = controller_dir(hierarchies, "freezer").ok_or_else(|| {
                    Error::MissingController {
                        limit: "freezing",
                        controller: "freezer".to_owned(),
                        cgroup: self.path.clone(),
                    }
                })?;
                freezer::freeze_v1(dir, freeze)
            }
        }
    }

    /// How many processes here and below the OOM killer has ended so far. Zero without a memory controller. On v1
    /// those in cgroups that were removed since are forgotten.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn oom_kills(&self) -> Result<u64> {
        match &self.directories {
            Directories::V2 { dir } => usage::oom_kills_v2(dir),
            Directories::V1 { hierarchies } => match controller_dir(hierarchies, "memory") {
                Some(dir) => tree::walk(dir)?
                    .iter()
                    .try_fold(0, |sum, dir| Ok(sum + usage::oom_kills_v1(dir)?)),
                None => Ok(0),
            },
        }
    }

    /// Listens for memory running out here; on v2 below too. None without a memory controller.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn watch_oom(&self) -> Result<Option<OomWatch>> {
        match &self.directories {
            Directories::V2 { dir } => OomWatch::v2(dir),
            Directories::V1 { hierarchies } => match controller_dir(hierarchies, "memory") {
                Some(dir) => OomWatch::v1(dir),
                None => Ok(None),
            },
        }
    }

    /// What was used so far. A cgroup that is gone used nothing.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn stats(&self) -> Result<Stats> {
        match &self.directories {
            Directories::V2 { dir } => usage::stats_v2(dir),
            Directories::V1 { hierarchies } => {
                usage::stats_v1(&|controller| controller_dir(hierarchies, controller))
            }
        }
    }

    /// The text of a control file: on v1 that of the controller's hierarchy, on v2 there is one for all. `None` when
    /// the file, the hierarchy or the cgroup is not there.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn read(&self, controller: &str, file: &str) -> Result<Option<String>> {
        match self.controller_dir(controller) {
            Some(dir) => control::read(dir, file),
            None => Ok(None),
        }
    }

    /// The directory in a controller's hierarchy, there or not; on v2 that of all.
    pub fn controller_dir(&self, controller: &str) -> Option<&Path> {
        match &self.directories {
            Directories::V2 { dir } => Some(dir),
            Directories::V1 { hierarchies } => controller_dir(hierarchies, controller),
        }
    }

    /// True on cgroup v2.
    pub fn is_v2(&self) -> bool {
        matches!(self.directories, Directories::V2 { .. })
    }

    /// True when it is there in any hierarchy.
    pub fn exists(&self) -> bool {
        self.dirs().any(Path::exists)
    }

    /// True when it is there in every hierarchy.
    pub fn exists_everywhere(&self) -> bool {
        self.dirs().all(Path::exists)
    }

    /// Removes the cgroup and those below; waits a bounded time for processes that are ending. One that is gone is
    /// fine.
    ///
    /// # Errors
    /// When processes stay.
    pub fn delete(&self) -> Result<()> {
        self.dirs().try_for_each(tree::remove)
    }

    /// Removes the cgroup if no process is in it: true when it is gone.
    ///
    /// # Errors
    /// When the kernel refuses it for another reason.
    pub fn delete_if_empty(&self) -> Result<bool> {
        // The tracker first: once that is gone no process can be left.
        let tracker = self.tracker();
        if let Some(tracker) = tracker
            && !tree::remove_if_empty(tracker)?
        {
            return Ok(false);
        }
        let mut others = self.dirs().filter(|dir| Some(*dir) != tracker);
        others.try_for_each(tree::remove).map(|()| true)
    }

    /// Its directory in each hierarchy.
    fn dirs(&self) -> Box<dyn Iterator<Item = &Path> + '_> {
        match &self.directories {
            Directories::V2 { dir } => Box::new(std::iter::once(dir.as_path())),
            Directories::V1 { hierarchies } => {
                Box::new(hierarchies.iter().map(|hierarchy| hierarchy.root.as_path()))
            }
        }
    }

    /// The directory to read processes from: the freezer's on v1, so that what is read is what is frozen.
    fn tracker(&self) -> Option<&Path> {
        match &self.directories {
            Directories::V2 { dir } => Some(dir),
            Directories::V1 { hierarchies } => ["freezer", "pids", "memory"]
                .iter()
                .find_map(|controller| controller_dir(hierarchies, controller))
                .or_else(|| {
                    hierarchies
                        .first()
                        .map(|hierarchy| hierarchy.root.as_path())
                }),
        }
    }
}

/// The directory in the hierarchy of a controller.
fn controller_dir<'a>(hierarchies: &'a [Hierarchy], controller: &str) -> Option<&'a Path> {
    hierarchies
        .iter()
        .find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
        .map(|hierarchy| hierarchy.root.as_path())
}

fn open_for_writing(path: &Path) -> Result<File> {
    kernel_file::open_for_writing(path).map_err(|source| Error::Write {
        path: path.to_owned(),
        value: "0".to_owned(),
        source,
    })
}
