//! What a pod leaves is taken away: processes, volumes, network, cgroups, directories, logs. Each step is idempotent
//! and needs nothing but the pod's UID, so that it also clears up after a crash or a power loss.

use std::io;
use std::path::Path;

use super::context::Context;
use super::images::{blocking, chain};
use super::supervisor;
use super::volumes::Volumes;
use super::worker::Step;
use podling_runtime::cgroup::Cgroup;

/// Takes away all that a pod with this UID has here. `logs_of` is the pod whose logs go too.
pub(super) async fn all(
    context: &Context,
    uid: &str,
    logs_of: Option<&(String, String)>,
) -> Step<()> {
    if let Some(systemd) = &context.systemd {
        systemd
            .stop_scope(&supervisor::scope_name(uid))
            .await
            .map_err(|error| ("TeardownFailed", chain(&error)))?;
    }
    let cgroups = context.pod_cgroups(uid);
    let data_dir = context.data_dir(uid);
    let run_dir = context.run_dir(uid);
    let log_dir = logs_of
        .filter(|_| !context.config.logs.keep_removed)
        .map(|(namespace, name)| context.log_dir(namespace, name, uid));
    blocking(move || {
        cgroups.iter().try_for_each(end_cgroup)?;
        Volumes::new(&data_dir)
            .teardown()
            .map_err(|error| chain(&error))?;
        remove(&data_dir)?;
        log_dir.as_deref().map_or(Ok(()), remove)
    })
    .await
    .map_err(|message| ("TeardownFailed", message))?;
    context
        .network
        .detach(uid)
        .await
        .map_err(|error| ("TeardownFailed", chain(&error)))?;
    // Last: as long as it is there, a new agent knows that there is something to take away.
    blocking(move || remove(&run_dir))
        .await
        .map_err(|message| ("TeardownFailed", message))
}

fn end_cgroup(cgroup: &Cgroup) -> Result<(), String> {
    let processes = cgroup.processes().map_err(|error| chain(&error))?;
    if !processes.is_empty() {
        cgroup.kill_all().map_err(|error| chain(&error))?;
    }
    cgroup.delete().map_err(|error| chain(&error))
}

fn remove(dir: &Path) -> Result<(), String> {
    match std::fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("remove {}: {error}", dir.display())),
    }
}
