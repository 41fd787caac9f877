//! Which image layers pods use: from plans, which are there as long as a supervisor may start containers from them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use podling_runtime::pod::plan::{ContainerSource, Plan};
use podling_runtime::pod::protocol::PLAN_FILE;

/// The layers of each container of any node on this machine, by their true paths: from the plans below `pods_dir` and
/// from those of all supervisors that run.
#[must_use]
pub fn stacks_in_use(pods_dir: &Path) -> Vec<BTreeSet<PathBuf>> {
    let below = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let running = below(Path::new("/proc"))
        .into_iter()
        .filter_map(|process| supervised(&process));
    below(pods_dir)
        .into_iter()
        .chain(running)
        .filter_map(|dir| read_plan(&dir))
        .flat_map(|plan| plan.containers)
        .filter_map(|container| match container.source {
            ContainerSource::Ready { rootfs, .. } => {
                Some(rootfs.layers.into_iter().map(true_path).collect())
            }
            ContainerSource::Waiting { .. } => None,
        })
        .collect()
}

/// The path without symbolic links; as it is, if there is nothing.
#[must_use]
pub fn true_path(path: PathBuf) -> PathBuf {
    path.canonicalize().unwrap_or(path)
}

/// The plan in a pod's run directory; none while it is being made or removed.
#[must_use]
pub fn read_plan(dir: &Path) -> Option<Plan> {
    serde_json::from_slice(&fs::read(dir.join(PLAN_FILE)).ok()?).ok()
}

/// The pod directory that a process is the supervisor of.
fn supervised(process: &Path) -> Option<PathBuf> {
    let command = fs::read(process.join("cmdline")).ok()?;
    let mut arguments = command.split(|byte| *byte == 0);
    if !arguments.next()?.ends_with(b"podling-pod") {
        return None;
    }
    Some(PathBuf::from(OsStr::from_bytes(arguments.next()?)))
}
