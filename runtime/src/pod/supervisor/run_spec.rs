//! The OCI spec of a run: the plan's, completed with what the pod has.

use std::path::Path;

use oci_spec::runtime::{Linux, LinuxResources, Spec};

use super::container::{StartError, file_error};
use super::host_devices;
use super::last_words::message_mount;
use super::sandbox::Sandbox;
use crate::pod::plan::ContainerPlan;

/// The plan's spec with the pod's namespaces and the file for last words.
pub(super) fn complete(
    spec: &Spec,
    plan: &ContainerPlan,
    sandbox: &Sandbox,
) -> Result<Spec, StartError> {
    let mut spec = spec.clone();
    let mut linux: Linux = spec.linux().clone().unwrap_or_default();
    linux.set_namespaces(Some(sandbox.namespaces()?));
    linux.set_cgroups_path(None);
    linux.set_resources(None);
    linux.set_seccomp(None);
    if plan.host_devices && !has_own_dev(&spec) {
        let mut devices = host_devices::list().map_err(file_error(Path::new("/dev")))?;
        devices.extend(linux.devices().clone().unwrap_or_default());
        linux.set_devices(Some(devices));
    }
    spec.set_linux(Some(linux));
    spec.set_hostname(None);
    if let Some(process) = spec.process_mut() {
        process.set_terminal(Some(plan.tty));
    }
    if let Some(message) = &plan.termination_message {
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        mounts.push(message_mount(message)?);
        spec.set_mounts(Some(mounts));
    }
    Ok(spec)
}

/// A volume is mounted as `/dev`: its nodes are somebody else's.
fn has_own_dev(spec: &Spec) -> bool {
    let mounts = spec.mounts().iter().flatten();
    mounts
        .filter(|mount| mount.typ().as_deref() == Some("bind"))
        .any(|mount| mount.destination() == Path::new("/dev"))
}

/// The resources of a spec.
pub(super) fn resources(spec: &Spec) -> Option<&LinuxResources> {
    spec.linux().as_ref()?.resources().as_ref()
}
