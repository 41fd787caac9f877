//! What a run was started with, for the commands that probes, hooks and clients run beside it: by then the plan may
//! say something else.
//!
//! `<pod dir>/<container>.run` is written before the run's first process is made, and read for each command: a
//! supervisor that was started again finds it, and one with many containers does not hold their environments in
//! memory.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Process, Spec};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::pod::lifecycle::Process as RunningProcess;
use crate::pod::plan::SeccompPlan;

/// What a run was started with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Launch {
    /// The run's id: the file may be that of a run before.
    id: String,
    /// Its environment, user, capabilities, working directory.
    pub(super) process: Process,
    /// The system calls it may make.
    pub(super) seccomp: SeccompPlan,
    /// Who holds its terminal, if it has one.
    pub(super) keeper: Option<RunningProcess>,
    /// Its spec's version and annotations, for the agent of a filter that notifies. An earlier version did not write
    /// them.
    #[serde(default)]
    version: String,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

/// Why it is not known what a run was started with.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// The plan names no process.
    #[error("its OCI spec has no process")]
    NoProcess,
    /// The file.
    #[error("cannot {attempt} {}", path.display())]
    File {
        /// `read` or `write`.
        attempt: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is in it.
    #[error("{} does not say how this run was started", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// Why; none when it is about another run.
        #[source]
        source: Option<serde_json::Error>,
    },
}

fn path(dir: &Path, container: &str) -> PathBuf {
    dir.join(format!("{container}.run"))
}

impl Launch {
    /// Of a run that is about to be started with this spec.
    pub(super) fn new(id: &str, spec: &Spec, seccomp: &SeccompPlan) -> Result<Self, LaunchError> {
        Ok(Self {
            id: id.to_owned(),
            process: spec.process().clone().ok_or(LaunchError::NoProcess)?,
            seccomp: seccomp.clone(),
            keeper: None,
            version: spec.version().clone(),
            annotations: spec.annotations().clone(),
        })
    }

    /// What the agent of a filter that notifies is told of the container. Of its namespaces it names but the mount
    /// namespace, which is always the container's own: a command enters those of the run's first process.
    pub(super) fn told(&self) -> Spec {
        let mut mount = LinuxNamespace::default();
        mount.set_typ(LinuxNamespaceType::Mount);
        let mut linux = Linux::default();
        linux.set_namespaces(Some(vec![mount]));
        let mut spec = Spec::default();
        spec.set_version(self.version.clone())
            .set_annotations(self.annotations.clone())
            .set_linux(Some(linux));
        spec
    }

    /// Replaces what is known of the run before.
    pub(super) fn save(&self, dir: &Path, container: &str) -> Result<(), LaunchError> {
        let path = path(dir, container);
        let new = path.with_extension("run.new");
        let bytes = serde_json::to_vec(self).map_err(|e| LaunchError::Content {
            path: path.clone(),
            source: Some(e),
        })?;
        fs::write(&new, bytes)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|source| LaunchError::File {
                attempt: "write",
                path,
                source,
            })
    }

    /// Of a run that was started.
    pub(super) fn load(dir: &Path, container: &str, id: &str) -> Result<Self, LaunchError> {
        let path = path(dir, container);
        let bytes = fs::read(&path).map_err(|source| LaunchError::File {
            attempt: "read",
            path: path.clone(),
            source,
        })?;
        match serde_json::from_slice::<Self>(&bytes) {
            Ok(launch) if launch.id == id => Ok(launch),
            Ok(_) => Err(LaunchError::Content { path, source: None }),
            Err(e) => Err(LaunchError::Content {
                path,
                source: Some(e),
            }),
        }
    }

    /// The run is over.
    pub(super) fn remove(dir: &Path, container: &str) -> io::Result<()> {
        match fs::remove_file(path(dir, container)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(id: &str, variable: &str) -> Launch {
        let mut process = Process::default();
        process.set_env(Some(vec![variable.to_owned()]));
        let mut spec = Spec::default();
        spec.set_process(Some(process));
        Launch::new(id, &spec, &SeccompPlan::Unconfined).expect("a process")
    }

    #[test]
    fn what_a_run_was_started_with_is_found_again_and_no_other_run_s() {
        let dir = tempfile::tempdir().expect("a directory");
        launch("a1", "COLOUR=red")
            .save(dir.path(), "web.1")
            .expect("saves");
        let found = Launch::load(dir.path(), "web.1", "a1").expect("loads");
        assert_eq!(
            found.process.env().as_deref(),
            Some(&["COLOUR=red".to_owned()][..])
        );
        assert!(matches!(
            Launch::load(dir.path(), "web.1", "a2"),
            Err(LaunchError::Content { source: None, .. })
        ));
        Launch::remove(dir.path(), "web.1").expect("removes");
        Launch::remove(dir.path(), "web.1").expect("removing again is fine");
        assert!(Launch::load(dir.path(), "web.1", "a1").is_err());
    }
}
