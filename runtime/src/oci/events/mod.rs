//! `events`: what a container uses, each interval, and when its memory runs out. One JSON object a line, as runc
//! prints them (its `types/events.go`), which containerd and cAdvisor read.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::{Value, json};

use super::container_cgroup::{attempt, of};
use super::error::{Error, Result};
use super::print;
use super::store::{Record, Store};
use crate::cgroup::{Cgroup, OomWatch};

mod stats;

/// Options of `events`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The container's name
    pub id: String,
    /// Print what is used now, and end
    #[arg(long)]
    pub stats: bool,
    /// Time between two prints, as 5s, 500ms or 1m30s
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub interval: Duration,
}

/// Prints events until the container ends.
pub(super) fn events(store: &Store, options: &Options) -> Result<()> {
    let entry = store.entry(&options.id)?;
    let record = entry.load()?;
    let (_, process) = entry.status(&record)?;
    let process = process.ok_or_else(|| Error::NotRunning {
        id: record.id.clone(),
        attempt: "watch",
    })?;
    let cgroup = of(&record)?;
    if options.stats {
        return print_stats(&cgroup, &record);
    }
    let watch = cgroup.watch_oom().map_err(attempt("watch", &record))?;
    follow(&process, &cgroup, watch.as_ref(), &record, options.interval)
}

/// Statistics each interval, an event for each time that memory ran out, until the first process ends.
fn follow(
    process: &OwnedFd,
    cgroup: &Cgroup,
    watch: Option<&OomWatch>,
    record: &Record,
    interval: Duration,
) -> Result<()> {
    let mut next = Instant::now();
    let mut kills = cgroup.oom_kills().map_err(attempt("watch", record))?;
    loop {
        let wait = next.saturating_duration_since(Instant::now());
        let (ended, oom) =
            wait_for(process.as_fd(), watch, wait).map_err(|source| Error::Process {
                attempt: "wait for",
                pid: record.pid,
                source,
            })?;
        if oom && let Some(watch) = watch {
            watch.acknowledge().map_err(attempt("watch", record))?;
            let now = cgroup.oom_kills().map_err(attempt("watch", record))?;
            // v1 counts no kills in cgroups that are gone, and wakes for their end too.
            if now > kills || (!cgroup.is_v2() && cgroup.exists()) {
                print::line(&event("oom", record, None))?;
            }
            kills = now;
        }
        if ended {
            return Ok(());
        }
        if Instant::now() >= next {
            print_stats(cgroup, record)?;
            next = Instant::now() + interval;
        }
    }
}

/// Whether the process has ended, and whether memory ran out, after at most this time.
fn wait_for(
    process: BorrowedFd<'_>,
    watch: Option<&OomWatch>,
    time: Duration,
) -> std::io::Result<(bool, bool)> {
    let mut sources = vec![PollFd::from_borrowed_fd(process, PollFlags::IN)];
    sources.extend(watch.map(|watch| PollFd::from_borrowed_fd(watch.as_fd(), PollFlags::IN)));
    let limit = Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut sources, Some(&limit)))?;
    let ready = |index: usize| {
        let source: Option<&PollFd<'_>> = sources.get(index);
        source.is_some_and(|source| !source.revents().is_empty())
    };
    Ok((ready(0), ready(1)))
}

fn print_stats(cgroup: &Cgroup, record: &Record) -> Result<()> {
    let stats = stats::read(cgroup).map_err(attempt("read", record))?;
    print::line(&event("stats", record, Some(stats)))
}

fn event(kind: &str, record: &Record, data: Option<Value>) -> String {
    let mut event = json!({"type": kind, "id": record.id});
    if let Some(data) = data {
        event["data"] = data;
    }
    event.to_string()
}

/// A duration as Go writes it: `5s`, `1m30s`, `500ms`.
fn parse_duration(text: &str) -> std::result::Result<Duration, String> {
    let invalid = || format!("{text:?} is no time, as 5s, 500ms or 1m30s");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(invalid)?;
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let end = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let unit_secs = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(invalid()),
        };
        rest = &rest[end..];
        let part = Duration::try_from_secs_f64(number * unit_secs).map_err(|_| invalid())?;
        total = total.checked_add(part).ok_or_else(invalid)?;
    }
    if total.is_zero() {
        return Err("the interval must be longer than nothing".to_owned());
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let millis = |text: &str| parse_duration(text).map(|it| it.as_millis());
        assert_eq!(millis("5s"), Ok(5000));
        assert_eq!(millis("1m30s"), Ok(90_000));
        assert_eq!(millis("500ms"), Ok(500));
        assert_eq!(millis("1.5s"), Ok(1500));
        for wrong in ["", "0s", "5", "s", "5x", "-1s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
