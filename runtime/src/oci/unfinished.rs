//! What a `create` or `run` leaves that was killed before it had recorded its container.
//!
//! Its child ends with it. What stays is the directory with the spec, which names the cgroup and the resctrl class that
//! may have been made. No record says that they were, so a cgroup is removed only when it is empty: with processes in it
//! it is another container's. A scope of systemd's ends by itself.

use std::thread::sleep;
use std::time::{Duration, Instant};

use oci_spec::runtime::Spec;

use super::error::{Error, Result};
use super::log::Log;
use super::store::Entry;
use super::{container_cgroup, placement};
use crate::cgroup::Cgroup;
use crate::chain;
use crate::container::resctrl;

/// How long processes in the cgroup have to end: the child of a killed creator does so as soon as it looks, a hook of
/// the child's when it is done.
const ENDS: Duration = Duration::from_secs(2);

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(1);

/// Removes all of it. Nothing there is fine.
///
/// # Errors
/// When something cannot be removed.
pub(super) fn remove(entry: &Entry, id: &str, log: &Log) -> Result<()> {
    match entry.spec() {
        Ok(spec) => {
            remove_cgroup(id, &spec, log)?;
            resctrl::release(&spec, id)?;
        }
        // Killed before the spec was there, or in the middle of it: nothing had been made.
        Err(Error::Missing { .. } | Error::File { .. } | Error::Config { .. }) => {}
        Err(error) => return Err(error),
    }
    entry.remove()
}

fn remove_cgroup(id: &str, spec: &Spec, log: &Log) -> Result<()> {
    let failed = |source| Error::Cgroup {
        attempt: "remove",
        id: id.to_owned(),
        source,
    };
    // One that systemd is to make has no path.
    let Ok(path) = placement::cgroup_path(id, spec) else {
        return Ok(());
    };
    let cgroup = match container_cgroup::layout() {
        Ok(layout) => Cgroup::open(layout, &path),
        Err(error) => {
            log.warning(&chain(&error));
            return Ok(());
        }
    };
    let deadline = Instant::now() + ENDS;
    while !cgroup.delete_if_empty().map_err(failed)? {
        if Instant::now() > deadline {
            let path = path.display();
            log.warning(&format!("cgroup {path} has processes, and stays"));
            return Ok(());
        }
        sleep(PAUSE);
    }
    Ok(())
}
