//! What a pod leaves is taken away: processes, volumes, network, cgroups, directories, logs. Each step is idempotent
//! and needs nothing but the pod's UID, so that it also clears up after a crash or a power loss.

use std::io;
use std::path::Path;

use super::context::Context;
use super::final_status;
use super::images::blocking;
use super::supervisor;
use super::volumes::Volumes;
use super::worker::Step;
use podling_runtime::cgroup::Cgroup;
use podling_runtime::chain;
use podling_runtime::pod::protocol::PLAN_FILE;

/// Takes away all that a pod with this UID has here. `logs_of` is the pod whose logs go too.
pub(super) async fn all(
    context: &Context,
    uid: &str,
    logs_of: Option<&(String, String)>,
) -> Step<()> {
    end_processes(context, uid).await?;
    let data_dir = context.data_dir(uid);
    let run_dir = context.run_dir(uid);
    let log_dir = logs_of
        .filter(|_| !context.config.logs.keep_removed)
        .map(|(namespace, name)| context.log_dir(namespace, name, uid));
    blocking(move || {
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
    let removed = blocking(move || remove(&run_dir)).await;
    context.garbage.look();
    removed.map_err(|message| ("TeardownFailed", message))
}

/// Takes back what a pod holds that has come to its end: all but its final status, its plan, which names it, and its
/// logs.
pub(super) async fn ended(context: &Context, uid: &str) -> Step<()> {
    end_processes(context, uid).await?;
    let failed = |message| ("TeardownFailed", message);
    let (data_dir, run_dir) = (context.data_dir(uid), context.run_dir(uid));
    blocking(move || {
        Volumes::new(&data_dir)
            .teardown()
            .map_err(|error| chain(&error))?;
        remove_all_but(&data_dir, &[final_status::FILE])?;
        remove_all_but(&run_dir, &[PLAN_FILE, supervisor::LOG_FILE])
    })
    .await
    .map_err(failed)?;
    let detached = context.network.detach(uid).await;
    detached.map_err(|error| failed(chain(&error)))
}

/// Ends what still runs, and removes the pod's cgroups.
async fn end_processes(context: &Context, uid: &str) -> Step<()> {
    let failed = |message| ("TeardownFailed", message);
    let mut cgroups = context.pod_cgroups(uid).to_vec();
    if let Some(systemd) = &context.systemd {
        let stopped = systemd.stop_scope(&supervisor::scope_name(uid)).await;
        stopped.map_err(|error| failed(chain(&error)))?;
        // It stays in the hierarchies of version 1 that systemd does not use.
        cgroups.push(Cgroup::open(
            &context.layout,
            &supervisor::scope_cgroup(uid),
        ));
    }
    blocking(move || cgroups.iter().try_for_each(end_cgroup))
        .await
        .map_err(failed)
}

fn end_cgroup(cgroup: &Cgroup) -> Result<(), String> {
    let processes = cgroup.processes().map_err(|error| chain(&error))?;
    if !processes.is_empty() {
        cgroup.kill_all().map_err(|error| chain(&error))?;
    }
    cgroup.delete().map_err(|error| chain(&error))
}

fn remove_all_but(dir: &Path, keep: &[&str]) -> Result<(), String> {
    let failed = |error: io::Error| format!("tidy up {}: {error}", dir.display());
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if keep.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if entry.file_type().map_err(failed)?.is_dir() {
            remove(&entry.path())?;
        } else {
            std::fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<(), String> {
    match std::fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("remove {}: {error}", dir.display())),
    }
}
