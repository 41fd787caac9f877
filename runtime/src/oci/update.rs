//! `update`: other limits for a container that runs, in place.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::container_cgroup::{attempt, find, of};
use super::error::{Error, Result, file};
use super::store::{Entry, Record, Status, Store};
use super::{input, scope};
use crate::container::{self, resctrl};

/// Options of `update`. Bytes take the suffixes k, m, g and t.
#[derive(Debug, Default, clap::Args)]
#[command(allow_negative_numbers = true)]
pub struct Options {
    /// The container's name
    pub id: String,
    /// Read an OCI resources object from this file, - is standard input; other options are not looked at
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Weight of the block devices' use, 10 to 1000
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u16>,
    /// Length of a processor period, in microseconds
    #[arg(long, value_name = "USECS")]
    pub cpu_period: Option<u64>,
    /// Processor time in a period, in microseconds; -1 is all
    #[arg(long, value_name = "USECS")]
    pub cpu_quota: Option<i64>,
    /// Processor time that may be saved up, in microseconds
    #[arg(long, value_name = "USECS")]
    pub cpu_burst: Option<u64>,
    /// Weight of the processors' use
    #[arg(long, visible_alias = "cpu-shares", value_name = "N")]
    pub cpu_share: Option<u64>,
    /// 1: run only when nothing else wants to (SCHED_IDLE)
    #[arg(long, value_name = "0|1")]
    pub cpu_idle: Option<i64>,
    /// Length of a real-time period, in microseconds
    #[arg(long, value_name = "USECS")]
    pub cpu_rt_period: Option<u64>,
    /// Real-time processor time in a period, in microseconds
    #[arg(long, value_name = "USECS")]
    pub cpu_rt_runtime: Option<i64>,
    /// Processors, as 0-2,7
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes, as 0-1
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Kernel memory; only on cgroup v1 of old kernels
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub kernel_memory: Option<i64>,
    /// Kernel memory of TCP; only on cgroup v1
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub kernel_memory_tcp: Option<i64>,
    /// Memory; -1 is all
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory: Option<i64>,
    /// Memory that is kept for it when others want some
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory_reservation: Option<i64>,
    /// Memory and swap together; -1 is all
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory_swap: Option<i64>,
    /// Processes and threads; -1 is any number
    #[arg(long, value_name = "N")]
    pub pids_limit: Option<i64>,
    /// Intel's cache allocation, a line of resctrl's schemata
    #[arg(long, value_name = "SCHEMA")]
    pub l3_cache_schema: Option<String>,
    /// Intel's memory bandwidth allocation, a line of resctrl's schemata
    #[arg(long, value_name = "SCHEMA")]
    pub mem_bw_schema: Option<String>,
}

/// Changes the limits; what is not given stays.
pub(super) fn update(store: &Store, options: &Options) -> Result<()> {
    let entry = store.entry(&options.id)?;
    let record = entry.load()?;
    if entry.status(&record)?.0 == Status::Stopped {
        return Err(Error::NotRunning {
            id: record.id,
            attempt: "update",
        });
    }
    let resources = resources(options)?;
    let has_class = options.l3_cache_schema.is_some() || options.mem_bw_schema.is_some();
    if has_class && options.resources.is_none() {
        change_class(&entry, &record, options)?;
    }
    if resources == LinuxResources::default() {
        return Ok(());
    }
    let cgroup = of(&record)?;
    cgroup
        .apply(&resources)
        .map_err(attempt("limit", &record))?;
    // Last: what the cgroup refused must not come back with the next reload of systemd's.
    match &record.systemd {
        Some(unit) => scope::update(unit, &record.id, &resources, cgroup.is_v2()),
        None => Ok(()),
    }
}

/// The file's resources, or those of the single options.
fn resources(options: &Options) -> Result<LinuxResources> {
    match &options.resources {
        None => single(options),
        Some(path) if path == Path::new("-") => {
            let name = Path::new("standard input");
            let text = input::read(io::stdin(), 0).map_err(file("read", name))?;
            parse(&text, name)
        }
        Some(path) => parse(&input::read_file(path).map_err(file("read", path))?, path),
    }
}

fn parse(text: &[u8], path: &Path) -> Result<LinuxResources> {
    container::config::parse_resources(text).map_err(|source| Error::Config {
        path: path.to_owned(),
        source,
    })
}

fn single(options: &Options) -> Result<LinuxResources> {
    let mut all = Map::new();
    let mut section = |name: &str, fields: &[(&str, Value)]| {
        let given = fields.iter().filter(|(_, value)| !value.is_null());
        let given: Map<String, Value> = given
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        if !given.is_empty() {
            all.insert(name.to_owned(), Value::Object(given));
        }
    };
    section(
        "cpu",
        &[
            ("period", json!(options.cpu_period)),
            ("quota", json!(options.cpu_quota)),
            ("burst", json!(options.cpu_burst)),
            ("shares", json!(options.cpu_share)),
            ("idle", json!(options.cpu_idle)),
            ("realtimePeriod", json!(options.cpu_rt_period)),
            ("realtimeRuntime", json!(options.cpu_rt_runtime)),
            ("cpus", json!(options.cpuset_cpus)),
            ("mems", json!(options.cpuset_mems)),
        ],
    );
    section(
        "memory",
        &[
            ("limit", json!(options.memory)),
            ("reservation", json!(options.memory_reservation)),
            ("swap", json!(options.memory_swap)),
            ("kernel", json!(options.kernel_memory)),
            ("kernelTCP", json!(options.kernel_memory_tcp)),
        ],
    );
    section("pids", &[("limit", json!(options.pids_limit))]);
    section("blockIO", &[("weight", json!(options.blkio_weight))]);
    serde_json::from_value(Value::Object(all)).map_err(|source| Error::Json {
        path: "the command line".into(),
        source,
    })
}

/// Changes the container's resctrl class; one without gets a class of its own, as with runc.
fn change_class(entry: &Entry, record: &Record, options: &Options) -> Result<()> {
    let (cache, bandwidth) = (&options.l3_cache_schema, &options.mem_bw_schema);
    let spec = entry.spec()?;
    if resctrl::is_asked(&spec) {
        let lines: Vec<&str> = [cache, bandwidth]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        return Ok(resctrl::change(&spec, &record.id, &lines)?);
    }
    // In the spec, so that delete removes the class, and before it is there.
    let before = entry.spec_text()?;
    let mut asked = Map::new();
    for (name, line) in [("l3CacheSchema", cache), ("memBwSchema", bandwidth)] {
        if let Some(line) = line {
            asked.insert(name.to_owned(), json!(line));
        }
    }
    let mut text: Value = serde_json::from_slice(&before).map_err(|source| Error::Json {
        path: "the container's config.json".into(),
        source,
    })?;
    text["linux"]["intelRdt"] = Value::Object(asked);
    let text = text.to_string();
    let spec = container::config::parse_spec(text.as_bytes()).map_err(|source| Error::Config {
        path: "the container's config.json".into(),
        source,
    })?;
    resctrl::validate(&spec)?;
    entry.replace_spec(text.as_bytes())?;
    let threads = || threads_of(record);
    match resctrl::assign_running(&spec, &record.id, record.pid, threads) {
        Ok(()) => Ok(()),
        Err(error) => {
            entry.replace_spec(&before)?;
            Err(error.into())
        }
    }
}

/// The ids of all threads in the container's cgroup; those of its first process when it has none.
fn threads_of(record: &Record) -> io::Result<Vec<i32>> {
    let cgroup = find(record).map_err(io::Error::other)?;
    let processes = match cgroup {
        Some(cgroup) => cgroup.processes().map_err(io::Error::other)?,
        None => vec![record.pid],
    };
    let mut threads = Vec::new();
    for pid in processes {
        match fs::read_dir(format!("/proc/{pid}/task")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            directory => {
                for thread in directory? {
                    threads.extend(thread?.file_name().to_string_lossy().parse::<i32>());
                }
            }
        }
    }
    Ok(threads)
}

/// `512m`, `1073741824`, `-1`
fn parse_bytes(text: &str) -> std::result::Result<i64, String> {
    let invalid = || format!("{text:?} is no number of bytes, as 1048576 or 512m");
    let lower = text.trim_end_matches(['b', 'B']).to_ascii_lowercase();
    let (digits, shift) = match lower.char_indices().last() {
        Some((at, 'k')) => (&lower[..at], 10),
        Some((at, 'm')) => (&lower[..at], 20),
        Some((at, 'g')) => (&lower[..at], 30),
        Some((at, 't')) => (&lower[..at], 40),
        _ => (lower.as_str(), 0),
    };
    let number: i64 = digits.parse().map_err(|_| invalid())?;
    if number < -1 {
        return Err(invalid());
    }
    if number == -1 {
        return Ok(-1);
    }
    number.checked_mul(1 << shift).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_suffixes() {
        assert_eq!(parse_bytes("1048576"), Ok(1 << 20));
        assert_eq!(parse_bytes("512m"), Ok(512 << 20));
        assert_eq!(parse_bytes("2GB"), Ok(2 << 30));
        assert_eq!(parse_bytes("-1"), Ok(-1));
        for wrong in ["", "m", "1x", "-2", "9999999999t"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn options_become_resources() {
        let options = Options {
            memory: Some(1 << 20),
            cpu_quota: Some(-1),
            cpu_idle: Some(1),
            pids_limit: Some(7),
            ..Options::default()
        };
        let resources = single(&options).expect("resources");
        let memory = resources.memory().as_ref().expect("memory");
        assert_eq!(memory.limit(), Some(1 << 20));
        assert_eq!(memory.swap(), None);
        let cpu = resources.cpu().as_ref().expect("cpu");
        assert_eq!((cpu.quota(), cpu.idle()), (Some(-1), Some(1)));
        assert!(resources.block_io().is_none());
        assert_eq!(
            single(&Options::default()).expect("resources"),
            LinuxResources::default()
        );
    }
}
