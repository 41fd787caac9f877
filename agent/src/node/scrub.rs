//! The slow check of all images in the background.
//!
//! ```text
//!           ┌────────── due (the interval since the last end) ──────────┐
//!  waiting ─┘                                                           └─► part by part ─► end, noted ─► waiting
//!                                       on battery, unless configured: waits ─┘   └─► damaged: mended, or reported
//! ```
//! One thread of the lowest priority (nice 19, I/O class idle) reads at a bounded rate. Which part was checked last is
//! noted in `scrub.json`, so that a node that is often off gets through all of it in time. What is damaged is unpacked
//! again from its blob or fetched again ([`ImageStore::heal_from_registry`]); what cannot be mended is in the log and a
//! problem of the node, noted in `scrub.json` too. It is one no more when the
//! part is needed no more, or is whole when it is looked at again, each hour.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use podling_images::{Healed, ImageStore, Part, Problem, PullOptions, Reference};
use podling_runtime::chain;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::config::ScrubConfig;
use crate::store::{self, Origin, Store};

/// Where the kernel tells of batteries and mains.
const POWER_SUPPLIES: &str = "/sys/class/power_supply";
/// How long it is waited before the time or the battery is looked at again: a clock may be set, a plug pulled.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// What is damaged is read again after so long: people mend it and then ask whether all is well, but it may be large.
const LOOK_AT_DAMAGE_AGAIN: Duration = Duration::from_secs(3600);
/// The name of its problems in the store.
const PROBLEMS: &str = "scrub";
/// The lowest priority of setpriority(2).
const NICE: i32 = 19;
/// `IOPRIO_CLASS_IDLE` of linux/ioprio.h: only when nobody else wants the disk.
const IO_CLASS_IDLE: u8 = 3;

/// The running check. Dropping it ends it at the next part.
#[derive(Debug)]
pub(super) struct Scrub {
    stop: Arc<Stop>,
}

#[derive(Debug, Default)]
struct Stop {
    is_set: Mutex<bool>,
    changed: Condvar,
}

impl Drop for Scrub {
    fn drop(&mut self) {
        *self
            .stop
            .is_set
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.changed.notify_all();
    }
}

impl Stop {
    /// Sleeps, but not longer than until the end. True at the end.
    fn sleep(&self, time: Duration) -> bool {
        let is_set = self.is_set.lock().unwrap_or_else(PoisonError::into_inner);
        let slept = self
            .changed
            .wait_timeout_while(is_set, time, |is_set| !*is_set);
        *slept.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// How far the check has come; what `scrub.json` holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Progress {
    /// When the last check ended, or the node was first started.
    last_end: Option<Timestamp>,
    /// The part that was checked last, of a check that has begun.
    position: Option<String>,
    /// The parts that are damaged and could not be mended.
    damaged: BTreeMap<String, store::Problem>,
}

/// Begins to check the images of `store` from time to time; none when the interval is zero.
pub(super) fn begin(
    store: &ImageStore,
    problems: &Store,
    config: &ScrubConfig,
    data_dir: &Path,
    pull_options: PullOptions,
) -> std::io::Result<Option<Scrub>> {
    if config.interval.0.is_zero() {
        return Ok(None);
    }
    let stop = Arc::new(Stop::default());
    let scrubber = Scrubber {
        store: store.clone(),
        problems: problems.clone(),
        config: config.clone(),
        file: data_dir.join("scrub.json"),
        power_supplies: PathBuf::from(POWER_SUPPLIES),
        pull_options,
        runtime: Handle::current(),
        stop: Arc::clone(&stop),
    };
    std::thread::Builder::new()
        .name("scrub".to_owned())
        .spawn(move || scrubber.run())?;
    Ok(Some(Scrub { stop }))
}

struct Scrubber {
    store: ImageStore,
    problems: Store,
    config: ScrubConfig,
    file: PathBuf,
    power_supplies: PathBuf,
    pull_options: PullOptions,
    runtime: Handle,
    stop: Arc<Stop>,
}

impl Scrubber {
    fn run(&self) {
        lower_priority();
        let mut progress = self.load();
        self.tell(&progress);
        let mut looked = Instant::now();
        loop {
            let now = Timestamp::now();
            let last_end = *progress.last_end.get_or_insert(now);
            let is_going_on = progress.position.is_some();
            if is_going_on || is_due(last_end, now, self.config.interval.0) {
                if self.check_all(&mut progress) {
                    return;
                }
            } else {
                if !progress.damaged.is_empty() {
                    self.forget_gone(&mut progress);
                }
                if looked.elapsed() >= LOOK_AT_DAMAGE_AGAIN {
                    if self.check_damaged(&mut progress) {
                        return;
                    }
                    looked = Instant::now();
                }
                self.save(&progress);
                // Whole seconds are compared: one more than is left.
                let interval = self.config.interval.0 + Duration::from_secs(1);
                if self.stop.sleep(interval.min(LOOK_AGAIN)) {
                    return;
                }
            }
        }
    }

    /// Checks all parts after the position. True when the node ends meanwhile.
    fn check_all(&self, progress: &mut Progress) -> bool {
        let parts = match self.store.parts_to_verify() {
            Ok(parts) => parts,
            Err(error) => {
                tracing::error!(error = chain(&error), "cannot check the images");
                return self.stop.sleep(LOOK_AGAIN);
            }
        };
        let position = progress.position.as_deref().and_then(|p| p.parse().ok());
        for (part, images) in parts {
            if !is_after(&part, position.as_ref()) {
                continue;
            }
            if self.wait_for_mains() || self.stop.sleep(Duration::ZERO) {
                return true;
            }
            self.check(&part, &images, progress);
            progress.position = Some(part.to_string());
            self.save(progress);
        }
        self.forget_gone(progress);
        progress.last_end = Some(Timestamp::now());
        progress.position = None;
        self.save(progress);
        false
    }

    /// Checks again what was damaged, and fetches what was dropped. True when the node ends meanwhile.
    fn check_damaged(&self, progress: &mut Progress) -> bool {
        self.forget_gone(progress);
        for (part, images) in self.store.parts_to_verify().unwrap_or_default() {
            if !progress.damaged.contains_key(&part.to_string()) && !self.is_dropped(&part) {
                continue;
            }
            if self.wait_for_mains() || self.stop.sleep(Duration::ZERO) {
                return true;
            }
            self.check(&part, &images, progress);
        }
        false
    }

    /// Checks one part, and mends it.
    fn check(&self, part: &Part, images: &[Reference], progress: &mut Progress) {
        let mut pace = Pace::new(self.config.bytes_per_second, &self.stop);
        let found = self
            .store
            .verify_part(part, images, &mut |bytes| pace.take(bytes));
        let name = part.to_string();
        match found.and_then(|problem| self.mend(&problem)) {
            Some(mut problem) => {
                let known = progress.damaged.get(&name);
                problem.since = known.map_or(problem.since, |known| known.since);
                progress.damaged.insert(name, problem);
            }
            None => drop(progress.damaged.remove(&name)),
        }
        self.tell(progress);
    }

    fn is_dropped(&self, part: &Part) -> bool {
        matches!(part, Part::Blob(digest) if self.store.is_dropped(digest))
    }

    /// Forgets the damage of what is needed no more.
    fn forget_gone(&self, progress: &mut Progress) {
        let Ok(parts) = self.store.parts_to_verify() else {
            return;
        };
        let parts: BTreeSet<String> = parts.iter().map(|(part, _)| part.to_string()).collect();
        progress.damaged.retain(|name, _| parts.contains(name));
        self.tell(progress);
    }

    /// Says in `podling status` what is damaged.
    fn tell(&self, progress: &Progress) {
        let problems = progress.damaged.values().cloned().collect();
        self.problems.set_problems(PROBLEMS, problems);
    }

    /// None when it is whole now, or needed no more.
    fn mend(&self, problem: &Problem) -> Option<store::Problem> {
        // It may have been removed since.
        let is_needed = self.store.parts_to_verify().is_ok_and(|parts| {
            let mut parts = parts.iter();
            parts.any(|(part, _)| *part == problem.part)
        });
        if !is_needed {
            return None;
        }
        let was_dropped = self.is_dropped(&problem.part);
        let path = problem.path.display();
        let images: Vec<_> = problem.images.iter().map(ToString::to_string).collect();
        let images = images.join(", ");
        let healing = self.store.heal_from_registry(problem, &self.pull_options);
        match self.runtime.block_on(healing) {
            Ok(Healed::Broken(reason)) => {
                let reason = chain(&*reason);
                let what = &problem.what;
                tracing::error!(%path, images, what, reason, "an image is damaged; load or pull it again");
                Some(lasting(problem, &images, &reason))
            }
            // The image runs without it. It is tried each hour: once in the log is enough.
            Ok(Healed::Dropped) if was_dropped => None,
            Ok(healed) => {
                tracing::warn!(
                    %path,
                    images,
                    what = problem.what,
                    ?healed,
                    "an image was damaged, and is mended; containers that run see it when they start again"
                );
                None
            }
            Err(error) => {
                let reason = chain(&error);
                tracing::error!(%path, images, error = reason, "cannot mend an image");
                Some(lasting(problem, &images, &reason))
            }
        }
    }

    /// True when the node ends meanwhile.
    fn wait_for_mains(&self) -> bool {
        while !self.config.on_battery && is_on_battery(&self.power_supplies) {
            if self.stop.sleep(LOOK_AGAIN) {
                return true;
            }
        }
        false
    }

    fn load(&self) -> Progress {
        let text = fs::read(&self.file).unwrap_or_default();
        // Without it, or with one that a power cut has damaged, the check begins anew.
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn save(&self, progress: &Progress) {
        let new = self.file.with_extension("json.new");
        let saved = serde_json::to_vec(progress)
            .map_err(std::io::Error::from)
            .and_then(|text| fs::write(&new, text))
            .and_then(|()| fs::rename(&new, &self.file));
        if let Err(error) = saved {
            tracing::warn!(%error, file = %self.file.display(), "cannot note how far images were checked");
        }
    }
}

/// What is told of damage until it is mended.
fn lasting(problem: &Problem, images: &str, reason: &str) -> store::Problem {
    let message = format!(
        "an image is damaged ({images}): {}; it cannot be mended: {reason}",
        problem.what
    );
    store::Problem::new(Origin::file(&problem.path), message).remedy("load or pull it again")
}

fn lower_priority() {
    // Both concern this thread alone (setpriority(2), ioprio_set(2)).
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "images are checked with ordinary priority");
    }
    if let Err(error) = podling_runtime::sys::schedule::set_io_priority(IO_CLASS_IDLE, 0) {
        tracing::debug!(%error, "images are checked with ordinary I/O priority");
    }
}

/// A clock that was set back does not keep a check from ever being due.
fn is_due(last_end: Timestamp, now: Timestamp, interval: Duration) -> bool {
    let since = now.duration_since(last_end).as_secs();
    let interval = i64::try_from(interval.as_secs()).unwrap_or(i64::MAX);
    since < -3600 || since >= interval
}

fn is_after(part: &Part, position: Option<&Part>) -> bool {
    position.is_none_or(|position| part > position)
}

/// Keeps to a rate, over the part that is being read.
struct Pace<'a> {
    bytes_per_second: u64,
    bytes: u64,
    begun: Instant,
    stop: &'a Stop,
}

impl<'a> Pace<'a> {
    fn new(bytes_per_second: u64, stop: &'a Stop) -> Self {
        Self {
            bytes_per_second,
            bytes: 0,
            begun: Instant::now(),
            stop,
        }
    }

    fn take(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        let early = self.due().saturating_sub(self.begun.elapsed());
        if !early.is_zero() {
            self.stop.sleep(early);
        }
    }

    /// How long what was taken should take.
    fn due(&self) -> Duration {
        match self.bytes_per_second {
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(self.bytes as f64 / rate as f64),
        }
    }
}

/// True when a battery of the machine itself is being drained, and nothing else supplies it.
fn is_on_battery(power_supplies: &Path) -> bool {
    let Ok(supplies) = fs::read_dir(power_supplies) else {
        return false;
    };
    let mut drained = false;
    for supply in supplies.flatten() {
        let read = |name: &str| {
            let text = fs::read_to_string(supply.path().join(name)).unwrap_or_default();
            text.trim().to_owned()
        };
        match read("type").as_str() {
            // Of a mouse or headset.
            "Battery" if read("scope") == "Device" => {}
            "Battery" => drained |= read("status") == "Discharging",
            "Mains" | "USB" | "Wireless" if read("online") == "1" => return false,
            _ => {}
        }
    }
    drained
}

#[cfg(test)]
mod tests;
