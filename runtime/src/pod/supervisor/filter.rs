//! A container's seccomp filter, from its plan.

use std::collections::HashSet;
use std::fs;

use oci_spec::runtime::{LinuxSeccomp, Process};

use super::container::{StartError, file_error};
use crate::pod::plan::SeccompPlan;
use crate::seccomp::{self, Filter};

/// None for a container without one.
///
/// # Errors
/// When the profile cannot be read or used.
pub(super) fn filter(plan: &SeccompPlan, process: &Process) -> Result<Option<Filter>, StartError> {
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
    let filter = seccomp::compile(&profile).map_err(StartError::Seccomp)?;
    Ok(Some(filter))
}
