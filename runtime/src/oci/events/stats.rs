//! A cgroup's statistics in runc's words.

use serde_json::{Map, Value, json};

use crate::cgroup::{Cgroup, Result};

/// All that the cgroup counts.
///
/// # Errors
/// When a file that is there cannot be read.
pub(super) fn read(cgroup: &Cgroup) -> Result<Value> {
    let source = Source { cgroup };
    let stats = cgroup.stats()?;
    let pids = stats.pids.unwrap_or_default();
    Ok(json!({
        "cpu": source.cpu()?,
        "cpuset": source.cpuset()?,
        "memory": source.memory()?,
        "pids": {"current": pids.current, "limit": pids.limit.unwrap_or(0)},
        "blkio": source.blkio()?,
        "hugetlb": source.hugetlb()?,
        "intel_rdt": {},
        "network_interfaces": null,
    }))
}

/// A cgroup's files.
struct Source<'a> {
    cgroup: &'a Cgroup,
}

impl Source<'_> {
    fn text(&self, controller: &str, file: &str) -> Result<String> {
        Ok(self.cgroup.read(controller, file)?.unwrap_or_default())
    }

    /// A file of one number; `max` is the largest. 0 when it is not there.
    fn number(&self, controller: &str, file: &str) -> Result<u64> {
        Ok(parse_number(&self.text(controller, file)?))
    }

    fn cpu(&self) -> Result<Value> {
        let stats = self.cgroup.stats()?.cpu.unwrap_or_default();
        let per_cpu: Vec<u64> = numbers(&self.text("cpuacct", "cpuacct.usage_percpu")?);
        let mut usage = json!({
            "total": stats.usage_ns,
            "kernel": stats.system_ns,
            "user": stats.user_ns,
        });
        if !per_cpu.is_empty() {
            usage["percpu"] = json!(per_cpu);
            let (user, kernel) = split_columns(&self.text("cpuacct", "cpuacct.usage_all")?);
            usage["percpu_user"] = json!(user);
            usage["percpu_kernel"] = json!(kernel);
        }
        let mut cpu = json!({
            "usage": usage,
            "throttling": {
                "periods": stats.periods,
                "throttledPeriods": stats.throttled_periods,
                "throttledTime": stats.throttled_ns,
            },
        });
        self.add_pressure(&mut cpu, "cpu.pressure")?;
        Ok(cpu)
    }

    fn cpuset(&self) -> Result<Value> {
        // v1 only, as with runc: v2 has none of the switches.
        if self.cgroup.is_v2() {
            return Ok(json!({}));
        }
        let mut cpuset = json!({
            "cpus": list(&self.text("cpuset", "cpuset.cpus")?),
            "mems": list(&self.text("cpuset", "cpuset.mems")?),
        });
        for file in [
            "cpu_exclusive",
            "mem_hardwall",
            "mem_exclusive",
            "memory_migrate",
            "memory_spread_page",
            "memory_spread_slab",
            "memory_pressure",
            "sched_load_balance",
        ] {
            cpuset[file] = json!(self.number("cpuset", &format!("cpuset.{file}"))?);
        }
        let level = self.text("cpuset", "cpuset.sched_relax_domain_level")?;
        cpuset["sched_relax_domain_level"] = json!(level.trim().parse::<i64>().unwrap_or(0));
        Ok(cpuset)
    }

    fn memory(&self) -> Result<Value> {
        let text = self.text("memory", "memory.stat")?;
        let raw: Map<String, Value> = pairs(&text)
            .map(|(key, value)| (key.to_owned(), json!(value)))
            .collect();
        let of = |key: &str| raw.get(key).cloned().unwrap_or_else(|| json!(0));
        let mut memory = if self.cgroup.is_v2() {
            json!({
                "cache": of("file"),
                "usage": self.v2_entry("memory.current", "memory.max", "memory.peak")?,
                "swap": self.v2_entry("memory.swap.current", "memory.swap.max", "memory.swap.peak")?,
            })
        } else {
            json!({
                "cache": of("cache"),
                "usage": self.v1_entry("memory")?,
                "swap": self.v1_entry("memory.memsw")?,
                "kernel": self.v1_entry("memory.kmem")?,
                "kernelTCP": self.v1_entry("memory.kmem.tcp")?,
            })
        };
        if self.cgroup.is_v2() {
            let events = self.text("memory", "memory.events")?;
            let hits = pairs(&events).find(|(key, _)| *key == "max");
            memory["usage"]["failcnt"] = json!(hits.map_or(0, |(_, hits)| hits));
        }
        memory["raw"] = Value::Object(raw);
        self.add_pressure(&mut memory, "memory.pressure")?;
        Ok(memory)
    }

    fn v2_entry(&self, usage: &str, limit: &str, peak: &str) -> Result<Value> {
        Ok(json!({
            "limit": self.number("memory", limit)?,
            "usage": self.number("memory", usage)?,
            "max": self.number("memory", peak)?,
            "failcnt": 0,
        }))
    }

    fn v1_entry(&self, prefix: &str) -> Result<Value> {
        let number = |name: &str| self.number("memory", &format!("{prefix}.{name}"));
        Ok(json!({
            "limit": number("limit_in_bytes")?,
            "usage": number("usage_in_bytes")?,
            "max": number("max_usage_in_bytes")?,
            "failcnt": number("failcnt")?,
        }))
    }

    fn blkio(&self) -> Result<Value> {
        let mut blkio = json!({});
        if self.cgroup.is_v2() {
            let (bytes, requests) = io_stat(&self.text("io", "io.stat")?);
            blkio["ioServiceBytesRecursive"] = json!(bytes);
            blkio["ioServicedRecursive"] = json!(requests);
            self.add_pressure(&mut blkio, "io.pressure")?;
            return Ok(blkio);
        }
        for (name, file) in [
            (
                "ioServiceBytesRecursive",
                "throttle.io_service_bytes_recursive",
            ),
            ("ioServicedRecursive", "throttle.io_serviced_recursive"),
            ("ioQueueRecursive", "bfq.io_queued_recursive"),
            ("ioServiceTimeRecursive", "bfq.io_service_time_recursive"),
            ("ioWaitTimeRecursive", "bfq.io_wait_time_recursive"),
            ("ioMergedRecursive", "bfq.io_merged_recursive"),
            ("ioTimeRecursive", "bfq.time_recursive"),
            ("sectorsRecursive", "bfq.sectors_recursive"),
        ] {
            let entries = blkio_entries(&self.text("blkio", &format!("blkio.{file}"))?);
            if !entries.is_empty() {
                blkio[name] = json!(entries);
            }
        }
        Ok(blkio)
    }

    fn hugetlb(&self) -> Result<Value> {
        let mut all = Map::new();
        for size in page_sizes() {
            let names = if self.cgroup.is_v2() {
                [format!("hugetlb.{size}.current"), String::new()]
            } else {
                ["usage_in_bytes", "max_usage_in_bytes"].map(|it| format!("hugetlb.{size}.{it}"))
            };
            let Some(usage) = self.cgroup.read("hugetlb", &names[0])? else {
                continue;
            };
            let failures = if self.cgroup.is_v2() {
                let events = self.text("hugetlb", &format!("hugetlb.{size}.events"))?;
                pairs(&events)
                    .find(|(key, _)| *key == "max")
                    .map_or(0, |(_, n)| n)
            } else {
                self.number("hugetlb", &format!("hugetlb.{size}.failcnt"))?
            };
            let mut entry = json!({"usage": parse_number(&usage), "failcnt": failures});
            if !names[1].is_empty() {
                entry["max"] = json!(self.number("hugetlb", &names[1])?);
            }
            all.insert(size, entry);
        }
        Ok(Value::Object(all))
    }

    /// Pressure stall information where the kernel has it (v2).
    fn add_pressure(&self, to: &mut Value, file: &str) -> Result<()> {
        if self.cgroup.is_v2()
            && let Some(text) = self.cgroup.read("", file)?
        {
            to["psi"] = pressure(&text);
        }
        Ok(())
    }
}

fn parse_number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        number => number.parse().unwrap_or(0),
    }
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// `cpu user system` with a heading.
fn split_columns(text: &str) -> (Vec<u64>, Vec<u64>) {
    text.lines()
        .skip(1)
        .filter_map(|line| match numbers(line)[..] {
            [_, user, system] => Some((user, system)),
            _ => None,
        })
        .unzip()
}

/// `0-2,7` as numbers.
fn list(text: &str) -> Vec<u16> {
    text.trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse::<u16>().ok()?..=last.parse().ok()?)
        })
        .flatten()
        .collect()
}

/// `key value` lines.
fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

/// `8:0 Read 4096`, or without an operation.
fn blkio_entries(text: &str) -> Vec<Value> {
    text.lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (device, operation, value) = match words[..] {
                [device, operation, value] => (device, operation, value),
                [device, value] => (device, "", value),
                _ => return None,
            };
            entry(device, operation, value.parse().ok()?)
        })
        .collect()
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …` as bytes and requests.
fn io_stat(text: &str) -> (Vec<Value>, Vec<Value>) {
    let (mut bytes, mut requests) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(device) = words.next() else { continue };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, operation) = match key {
                "rbytes" => (&mut bytes, "Read"),
                "wbytes" => (&mut bytes, "Write"),
                "rios" => (&mut requests, "Read"),
                "wios" => (&mut requests, "Write"),
                _ => continue,
            };
            list.extend(entry(device, operation, value.parse().unwrap_or(0)));
        }
    }
    (bytes, requests)
}

fn entry(device: &str, operation: &str, value: u64) -> Option<Value> {
    let (major, minor) = device.split_once(':')?;
    let (major, minor): (u64, u64) = (major.parse().ok()?, minor.parse().ok()?);
    Some(json!({"major": major, "minor": minor, "op": operation, "value": value}))
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=12345`
fn pressure(text: &str) -> Value {
    let mut all = json!({});
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(kind @ ("some" | "full")) = words.next() else {
            continue;
        };
        let mut data = json!({});
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            data[key] = match key {
                "total" => json!(value.parse::<u64>().unwrap_or(0)),
                _ => json!(value.parse::<f64>().unwrap_or(0.0)),
            };
        }
        all[kind] = data;
    }
    all
}

/// `2MB`, `1GB`: those that the kernel has, in the words of its control files.
fn page_sizes() -> Vec<String> {
    let Ok(sizes) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    let kilobytes = sizes.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse::<u64>()
            .ok()
    });
    kilobytes.map(page_size).collect()
}

fn page_size(kilobytes: u64) -> String {
    match kilobytes {
        size if size >= 1 << 20 => format!("{}GB", size >> 20),
        size if size >= 1 << 10 => format!("{}MB", size >> 10),
        size => format!("{size}KB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_spread_out() {
        assert_eq!(list("0-2,7\n"), [0, 1, 2, 7]);
        assert_eq!(list("\n"), [0u16; 0]);
    }

    #[test]
    fn block_lines_have_runcs_names() {
        let entries = blkio_entries("8:0 Read 4096\nTotal 4096\n");
        assert_eq!(
            json!(entries),
            json!([{"major": 8, "minor": 0, "op": "Read", "value": 4096}])
        );
        let (bytes, requests) = io_stat("8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0\n");
        assert_eq!((bytes.len(), requests.len()), (2, 2));
        assert_eq!(requests[1]["value"], 4);
    }

    #[test]
    fn pressure_keeps_its_numbers() {
        let text = "some avg10=1.50 avg60=0.00 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        let value = pressure(text);
        assert_eq!(value["some"]["avg10"], 1.5);
        assert_eq!(value["full"]["total"], 5);
    }

    #[test]
    fn page_sizes_are_the_kernels_words() {
        assert_eq!(page_size(2048), "2MB");
        assert_eq!(page_size(1 << 20), "1GB");
        assert_eq!(page_size(64), "64KB");
    }
}
