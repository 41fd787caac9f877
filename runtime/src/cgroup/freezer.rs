//! Stopping a cgroup's processes, and killing all of them so that none escapes by forking.

use std::fs::File;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::control;
use super::error::{Error, Result};
use super::tree;

/// How long freezing may take: a process in an uninterruptible wait (a slow disk, NFS) freezes only after it.
const FREEZE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a kill waits for the freezer: what has not frozen by then is killed as it is.
const KILL_FREEZE_DEADLINE: Duration = Duration::from_millis(200);

/// v1 tells nobody when a cgroup has frozen.
const V1_PAUSE: Duration = Duration::from_millis(1);

/// Rounds of reading and killing without a freezer: each round leaves only what was forked in it, and a killed
/// process forks no more.
const KILL_ROUNDS: usize = 100;

/// Stops or continues a v2 cgroup and waits for `cgroup.events` to say so.
pub(super) fn freeze_v2(dir: &Path, freeze: bool) -> Result<()> {
    control::write(dir, "cgroup.freeze", if freeze { "1" } else { "0" })?;
    let wanted = u64::from(freeze);
    let started = Instant::now();
    let path = dir.join("cgroup.events");
    let read = |source| Error::Read {
        path: path.clone(),
        source,
    };
    // Opened before the first look, so that no change is missed.
    let events = File::open(&path).map_err(read)?;
    loop {
        let text = control::read(dir, "cgroup.events")?.unwrap_or_default();
        if control::keyed(&text, "frozen") == Some(wanted) {
            return Ok(());
        }
        let waited = started.elapsed();
        let Some(left) = FREEZE_DEADLINE.checked_sub(waited) else {
            return Err(freeze_error(dir, freeze, waited));
        };
        // A change is announced as POLLPRI to who has read the file.
        let step = left.min(Duration::from_millis(100));
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(step.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(read(error.into())),
        }
    }
}

/// True while a v2 cgroup is frozen, or on its way to be.
pub(super) fn is_frozen_v2(dir: &Path) -> Result<bool> {
    let asked = control::read(dir, "cgroup.freeze")?.unwrap_or_default();
    if asked.trim() == "1" {
        return Ok(true);
    }
    // One above may be.
    let events = control::read(dir, "cgroup.events")?.unwrap_or_default();
    Ok(control::keyed(&events, "frozen") == Some(1))
}

/// True while a v1 cgroup is frozen, or on its way to be.
pub(super) fn is_frozen_v1(dir: &Path) -> Result<bool> {
    let state = control::read(dir, "freezer.state")?.unwrap_or_default();
    Ok(matches!(state.trim(), "FROZEN" | "FREEZING"))
}

/// Stops or continues a v1 freezer cgroup and waits until it is so.
pub(super) fn freeze_v1(dir: &Path, freeze: bool) -> Result<()> {
    set_v1_state(dir, freeze, FREEZE_DEADLINE)
}

fn set_v1_state(dir: &Path, freeze: bool, limit: Duration) -> Result<()> {
    let state = if freeze { "FROZEN" } else { "THAWED" };
    let started = Instant::now();
    loop {
        // Written each time: a process forked meanwhile may keep the cgroup in FREEZING (as runc found).
        control::write(dir, "freezer.state", state)?;
        let now = control::read(dir, "freezer.state")?.unwrap_or_default();
        if now.trim() == state {
            return Ok(());
        }
        let waited = started.elapsed();
        if waited >= limit {
            return Err(freeze_error(dir, freeze, waited));
        }
        sleep(V1_PAUSE);
    }
}

fn freeze_error(dir: &Path, freeze: bool, waited: Duration) -> Error {
    Error::Freeze {
        path: dir.to_owned(),
        wanted: if freeze { "frozen" } else { "thawed" },
        waited_ms: waited.as_millis(),
    }
}

/// SIGKILL to all in a v2 cgroup: one write since Linux 5.14, else frozen first.
pub(super) fn kill_v2(dir: &Path) -> Result<()> {
    match control::try_write(dir, "cgroup.kill", "1") {
        Ok(()) => Ok(()),
        Err(_) if !dir.exists() => Ok(()),
        Err(_) if !dir.join("cgroup.kill").exists() => {
            control::write(dir, "cgroup.freeze", "1")?;
            let killed = kill_each(dir);
            control::write(dir, "cgroup.freeze", "0")?;
            killed
        }
        Err(source) => Err(Error::Write {
            path: dir.join("cgroup.kill"),
            value: "1".to_owned(),
            source,
        }),
    }
}

/// SIGKILL to all in v1 cgroups: frozen first when there is a freezer, so that the list stays true while it is read.
/// `tracker` is the hierarchy to read processes from.
pub(super) fn kill_v1(freezer: Option<&Path>, tracker: &Path) -> Result<()> {
    let freezer = freezer.filter(|dir| dir.exists());
    let Some(freezer) = freezer else {
        return kill_each(tracker);
    };
    // One that does not freeze in time is killed all the same, by rounds.
    let frozen = match set_v1_state(freezer, true, KILL_FREEZE_DEADLINE) {
        Ok(()) | Err(Error::Freeze { .. }) => Ok(()),
        Err(_) if !freezer.exists() => return Ok(()),
        Err(error) => Err(error),
    };
    let killed = frozen.and_then(|()| kill_once(tracker).map(drop));
    // The signal is acted on only after this.
    thaw_v1_tree(freezer)?;
    killed?;
    kill_each(tracker)
}

/// Thaws a v1 cgroup and all below it. A child that was frozen by itself (by someone who was killed in the middle of
/// this very function) stays frozen when only its parent is thawed, and a frozen process cannot die.
fn thaw_v1_tree(freezer: &Path) -> Result<()> {
    for dir in tree::walk(freezer)? {
        match set_v1_state(&dir, false, FREEZE_DEADLINE) {
            Err(_) if !dir.exists() => {}
            // Below a frozen parent a child cannot thaw; the parent's owner thaws both.
            Err(Error::Freeze { .. }) if dir != freezer => {}
            other => other?,
        }
    }
    Ok(())
}

/// Kills what is there until a round finds nothing new: what is listed twice has the signal already and is on its
/// way out.
fn kill_each(dir: &Path) -> Result<()> {
    let mut known = Vec::new();
    for _ in 0..KILL_ROUNDS {
        let found = kill_once(dir)?;
        if found.iter().all(|pid| known.contains(pid)) {
            break;
        }
        known = found;
    }
    Ok(())
}

fn kill_once(dir: &Path) -> Result<Vec<i32>> {
    let pids = tree::processes(dir)?;
    for &pid in &pids {
        let target = nix::unistd::Pid::from_raw(pid);
        match nix::sys::signal::kill(target, nix::sys::signal::Signal::SIGKILL) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(errno) => {
                return Err(Error::Kill {
                    pid,
                    path: dir.to_owned(),
                    source: errno.into(),
                });
            }
        }
    }
    Ok(pids)
}
