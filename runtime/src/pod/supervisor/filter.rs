//! A container's seccomp filter, from its plan.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use oci_spec::runtime::{LinuxSeccomp, Process};

use super::container::{StartError, file_error};
use crate::pod::plan::SeccompPlan;
use crate::seccomp::{self, Filter};

/// None for a container without one. `dir` is the pod's.
///
/// # Errors
/// When the profile cannot be read or used.
pub(super) fn filter(
    plan: &SeccompPlan,
    process: &Process,
    dir: &Path,
) -> Result<Option<Filter>, StartError> {
    let profile: LinuxSeccomp = match plan {
        SeccompPlan::Unconfined => return Ok(None),
        SeccompPlan::RuntimeDefault => {
            let bounding = process
                .capabilities()
                .as_ref()
                .and_then(|c| c.bounding().clone())
                .unwrap_or_default();
            seccomp::default_profile(&bounding.into_iter().collect::<HashSet<_>>())
        }
        SeccompPlan::Localhost { path } => {
            let bytes = fs::read(path).map_err(file_error(path))?;
            serde_json::from_slice(&bytes).map_err(|source| StartError::Profile {
                path: path.clone(),
                source,
            })?
        }
    };
    // All pods of a node share compiled filters: <run-dir>/seccomp beside <run-dir>/pods.
    let cache = dir
        .parent()
        .filter(|pods| pods.file_name().is_some_and(|n| n == "pods"))
        .and_then(Path::parent)
        .map(|run_dir| run_dir.join("seccomp"));
    let filter = seccomp::compile(&profile, cache.as_deref()).map_err(StartError::Seccomp)?;
    Ok(Some(filter))
}
