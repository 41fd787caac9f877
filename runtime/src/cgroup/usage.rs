//! Reading what a cgroup used, from v1's and v2's files.

use std::path::Path;

use super::control::{keyed, read, read_number};
use super::error::Result;
use super::stats::{CpuStats, IoStats, MemoryStats, PidsStats, Pressure, Stats};

/// v1 writes "no limit" as the largest multiple of a page; anything near it is none.
const V1_NO_LIMIT_BYTES: u64 = 0x7fff_ffff_0000_0000;

/// All statistics of a v2 cgroup.
pub(super) fn stats_v2(dir: &Path) -> Result<Stats> {
    Ok(Stats {
        cpu: read(dir, "cpu.stat")?.map(|text| parse_cpu_v2(&text)),
        memory: memory_v2(dir)?,
        pids: pids(dir)?,
        io: read(dir, "io.stat")?.map(|text| parse_io_v2(&text)),
        cpu_pressure: pressure(dir, "cpu.pressure")?,
        memory_pressure: pressure(dir, "memory.pressure")?,
        io_pressure: pressure(dir, "io.pressure")?,
    })
}

/// All statistics of v1 cgroups; `dir` finds the directory in a controller's hierarchy.
pub(super) fn stats_v1<'a>(dir: &dyn Fn(&str) -> Option<&'a Path>) -> Result<Stats> {
    Ok(Stats {
        cpu: cpu_v1(dir)?,
        memory: dir("memory").map(memory_v1).transpose()?.flatten(),
        pids: dir("pids").map(pids).transpose()?.flatten(),
        io: dir("blkio").map(io_v1).transpose()?.flatten(),
        cpu_pressure: None,
        memory_pressure: None,
        io_pressure: None,
    })
}

/// OOM kills here and below, on v2: `memory.events` counts the whole subtree.
pub(super) fn oom_kills_v2(dir: &Path) -> Result<u64> {
    let events = read(dir, "memory.events")?.unwrap_or_default();
    Ok(keyed(&events, "oom_kill").unwrap_or(0))
}

/// OOM kills in one v1 cgroup: the kernel counts them where the victim was.
pub(super) fn oom_kills_v1(dir: &Path) -> Result<u64> {
    let control = read(dir, "memory.oom_control")?.unwrap_or_default();
    Ok(keyed(&control, "oom_kill").unwrap_or(0))
}

fn parse_cpu_v2(text: &str) -> CpuStats {
    let microseconds = |key| keyed(text, key).unwrap_or(0).saturating_mul(1000);
    let count = |key| keyed(text, key).unwrap_or(0);
    CpuStats {
        usage_ns: microseconds("usage_usec"),
        user_ns: microseconds("user_usec"),
        system_ns: microseconds("system_usec"),
        periods: count("nr_periods"),
        throttled_periods: count("nr_throttled"),
        throttled_ns: microseconds("throttled_usec"),
    }
}

fn cpu_v1<'a>(dir: &dyn Fn(&str) -> Option<&'a Path>) -> Result<Option<CpuStats>> {
    let Some(accounting) = dir("cpuacct") else {
        return Ok(None);
    };
    let Some(usage) = read_number(accounting, "cpuacct.usage")? else {
        return Ok(None);
    };
    let nanoseconds = |file| Ok(read_number(accounting, file)?.flatten().unwrap_or(0));
    let throttling = match dir("cpu") {
        Some(cpu) => read(cpu, "cpu.stat")?.unwrap_or_default(),
        None => String::new(),
    };
    let count = |key| keyed(&throttling, key).unwrap_or(0);
    Ok(Some(CpuStats {
        usage_ns: usage.unwrap_or(0),
        user_ns: nanoseconds("cpuacct.usage_user")?,
        system_ns: nanoseconds("cpuacct.usage_sys")?,
        periods: count("nr_periods"),
        throttled_periods: count("nr_throttled"),
        throttled_ns: count("throttled_time"),
    }))
}

fn memory_v2(dir: &Path) -> Result<Option<MemoryStats>> {
    let Some(usage) = read_number(dir, "memory.current")?.flatten() else {
        return Ok(None);
    };
    let text = read(dir, "memory.stat")?.unwrap_or_default();
    let events = read(dir, "memory.events")?.unwrap_or_default();
    let value = |key| keyed(&text, key).unwrap_or(0);
    Ok(Some(MemoryStats {
        usage_bytes: usage,
        working_set_bytes: usage.saturating_sub(value("inactive_file")),
        rss_bytes: value("anon"),
        cache_bytes: value("file"),
        mapped_file_bytes: value("file_mapped"),
        swap_bytes: read_number(dir, "memory.swap.current")?
            .flatten()
            .unwrap_or(0),
        max_usage_bytes: read_number(dir, "memory.peak")?.flatten().unwrap_or(0),
        limit_bytes: read_number(dir, "memory.max")?.flatten(),
        limit_hits: keyed(&events, "max").unwrap_or(0),
        page_faults: value("pgfault"),
        major_page_faults: value("pgmajfault"),
    }))
}

fn memory_v1(dir: &Path) -> Result<Option<MemoryStats>> {
    let Some(usage) = read_number(dir, "memory.usage_in_bytes")?.flatten() else {
        return Ok(None);
    };
    let text = read(dir, "memory.stat")?.unwrap_or_default();
    let value = |key| keyed(&text, key).unwrap_or(0);
    let number = |file| Ok(read_number(dir, file)?.flatten().unwrap_or(0));
    Ok(Some(MemoryStats {
        usage_bytes: usage,
        working_set_bytes: usage.saturating_sub(value("total_inactive_file")),
        rss_bytes: value("total_rss"),
        cache_bytes: value("total_cache"),
        mapped_file_bytes: value("total_mapped_file"),
        swap_bytes: value("total_swap"),
        max_usage_bytes: number("memory.max_usage_in_bytes")?,
        limit_bytes: Some(number("memory.limit_in_bytes")?).filter(|it| *it < V1_NO_LIMIT_BYTES),
        limit_hits: number("memory.failcnt")?,
        page_faults: value("total_pgfault"),
        major_page_faults: value("total_pgmajfault"),
    }))
}

/// `pids.current` and `pids.max` are the same on both versions.
fn pids(dir: &Path) -> Result<Option<PidsStats>> {
    let Some(current) = read_number(dir, "pids.current")?.flatten() else {
        return Ok(None);
    };
    Ok(Some(PidsStats {
        current,
        limit: read_number(dir, "pids.max")?.flatten(),
    }))
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`
fn parse_io_v2(text: &str) -> IoStats {
    let mut stats = IoStats::default();
    let pairs = text
        .split_whitespace()
        .filter_map(|word| word.split_once('='));
    for (key, value) in pairs {
        let value: u64 = value.parse().unwrap_or(0);
        match key {
            "rbytes" => stats.read_bytes += value,
            "wbytes" => stats.write_bytes += value,
            "rios" => stats.reads += value,
            "wios" => stats.writes += value,
            _ => {}
        }
    }
    stats
}

fn io_v1(dir: &Path) -> Result<Option<IoStats>> {
    let Some(bytes) = read(dir, "blkio.throttle.io_service_bytes_recursive")? else {
        return Ok(None);
    };
    let requests = read(dir, "blkio.throttle.io_serviced_recursive")?.unwrap_or_default();
    Ok(Some(IoStats {
        read_bytes: sum_io_v1(&bytes, "Read"),
        write_bytes: sum_io_v1(&bytes, "Write"),
        reads: sum_io_v1(&requests, "Read"),
        writes: sum_io_v1(&requests, "Write"),
    }))
}

/// `8:0 Read 4096`
fn sum_io_v1(text: &str, operation: &str) -> u64 {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            (words.next()? == operation).then(|| words.next()?.parse::<u64>().ok())?
        })
        .sum()
}

fn pressure(dir: &Path, file: &str) -> Result<Option<Pressure>> {
    Ok(read(dir, file)?.map(|text| parse_pressure(&text)))
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=12345`
fn parse_pressure(text: &str) -> Pressure {
    let total = |kind: &str| {
        text.lines()
            .filter(|line| line.split_whitespace().next() == Some(kind))
            .filter_map(|line| line.rsplit_once("total="))
            .find_map(|(_, total)| total.trim().parse().ok())
            .unwrap_or(0)
    };
    Pressure {
        some_us: total("some"),
        full_us: total("full"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn v2_files_become_statistics() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            (
                "cpu.stat",
                "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 4\nnr_throttled 2\nthrottled_usec 70\n",
            ),
            ("memory.current", "1000\n"),
            ("memory.max", "max\n"),
            (
                "memory.stat",
                "anon 300\nfile 600\nfile_mapped 50\ninactive_file 400\npgfault 9\npgmajfault 1\n",
            ),
            ("memory.events", "low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\n"),
            ("pids.current", "3\n"),
            ("pids.max", "64\n"),
            (
                "io.stat",
                "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n253:0 rbytes=10 wbytes=20 rios=30 wios=40\n",
            ),
            (
                "cpu.pressure",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
            ),
        ] {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let stats = stats_v2(dir.path()).unwrap();
        let cpu = stats.cpu.unwrap();
        assert_eq!((cpu.usage_ns, cpu.throttled_ns), (1_500_000, 70_000));
        let memory = stats.memory.unwrap();
        assert_eq!(
            (
                memory.working_set_bytes,
                memory.limit_bytes,
                memory.limit_hits
            ),
            (600, None, 7)
        );
        assert_eq!(
            stats.pids,
            Some(PidsStats {
                current: 3,
                limit: Some(64)
            })
        );
        assert_eq!(
            stats.io,
            Some(IoStats {
                read_bytes: 11,
                write_bytes: 22,
                reads: 33,
                writes: 44
            })
        );
        assert_eq!(
            stats.cpu_pressure,
            Some(Pressure {
                some_us: 12,
                full_us: 5
            })
        );
        assert_eq!(stats.memory_pressure, None);
        assert_eq!(oom_kills_v2(dir.path()).unwrap(), 1);
    }

    #[test]
    fn a_cgroup_that_is_gone_has_no_statistics() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        assert_eq!(stats_v2(&gone).unwrap(), Stats::default());
        assert_eq!(oom_kills_v2(&gone).unwrap(), 0);
    }

    #[test]
    fn v1_block_lines_are_summed_over_devices() {
        let text = "8:0 Read 100\n8:0 Write 50\n8:16 Read 1\nTotal 151\n";
        assert_eq!(sum_io_v1(text, "Read"), 101);
        assert_eq!(sum_io_v1(text, "Write"), 50);
    }
}
