//! The plan as the agent writes it, and the last one that was taken.
//!
//! ```text
//! plan.json   ── read, checked ──► taken ──► taken.json, another name of the same file
//!                      └─► refused: what was taken goes on, also in the next supervisor
//! ```

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, linkat};

use super::journal::say;
use super::{Error, sandbox};
use crate::chain;
use crate::pod::plan::Plan;
use crate::pod::protocol::{PLAN_FILE, TAKEN_PLAN_FILE};

/// A plan that may be taken, and its file.
pub(super) struct Offered {
    pub(super) plan: Plan,
    file: File,
}

/// Reads and checks `plan.json`.
pub(super) fn read(dir: &Path) -> Result<Offered, Error> {
    read_file(&dir.join(PLAN_FILE))
}

fn read_file(path: &Path) -> Result<Offered, Error> {
    let failed = |source| Error::ReadPlan {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(failed)?;
    let plan: Plan = serde_json::from_slice(&bytes).map_err(|source| Error::ParsePlan {
        path: path.to_owned(),
        source,
    })?;
    crate::pod::lifecycle::check(&plan)?;
    sandbox::check_sysctls(&plan)?;
    Ok(Offered { plan, file })
}

/// The plan to begin with: that of the agent, or for a pod that runs the one that was taken last, if the agent's is
/// refused: its containers must not be without a supervisor.
pub(super) fn read_first(dir: &Path, resumes: bool) -> Result<Plan, Error> {
    let offered = read(dir);
    let taken = match resumes {
        true => read_file(&dir.join(TAKEN_PLAN_FILE)).ok(),
        false => None,
    };
    let Some(taken) = taken else {
        return offered.map(|offered| take(dir, offered));
    };
    let offered = offered.and_then(|offered| {
        check_fixed(&taken.plan, &offered.plan)?;
        Ok(offered)
    });
    match offered {
        Ok(offered) => Ok(take(dir, offered)),
        Err(e) => {
            // The agent is told when it asks for a reload.
            say(format_args!(
                "goes on with plan {}: {}",
                taken.plan.generation,
                chain(&e)
            ));
            Ok(taken.plan)
        }
    }
}

/// Notes that this plan counts from now on. A pod is better run than not: without the note only a supervisor that starts
/// again under a plan that it refuses would miss something.
pub(super) fn take(dir: &Path, offered: Offered) -> Plan {
    if let Err(e) = note(dir, &offered.file) {
        say(format_args!("cannot note which plan it took: {e}"));
    }
    offered.plan
}

/// Gives the plan's file its second name. It stays as it is when the agent replaces the first.
fn note(dir: &Path, file: &File) -> io::Result<()> {
    let new = dir.join(format!(".{TAKEN_PLAN_FILE}"));
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // The file that was read, whatever has its name by now.
    let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, opened, CWD, &new, AtFlags::SYMLINK_FOLLOW)?;
    fs::rename(&new, dir.join(TAKEN_PLAN_FILE))?;
    // Where both were names of that file already, rename(2) does nothing.
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Refuses changes of what the containers share.
pub(super) fn check_fixed(old: &Plan, new: &Plan) -> Result<(), Error> {
    let same = [
        ("the host name", old.hostname == new.hostname),
        ("the network", old.network == new.network),
        ("shareProcessNamespace", old.share_pid == new.share_pid),
        ("hostPID", old.host_pid == new.host_pid),
        ("hostIPC", old.host_ipc == new.host_ipc),
        ("the sysctls", old.sysctls == new.sysctls),
        (
            "the cgroup",
            old.cgroup.path == new.cgroup.path && old.cgroup.scope == new.cgroup.scope,
        ),
    ];
    match same.into_iter().find(|(_, same)| !same) {
        Some((what, _)) => Err(Error::Fixed { what }),
        None => Ok(()),
    }
}
