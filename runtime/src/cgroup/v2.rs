//! OCI's limits, written to a v2 cgroup (`Documentation/admin-guide/cgroup-v2.rst`).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxPids, LinuxRdma,
    LinuxResources,
};

use super::control;
use super::devices::{self, Rules};
use super::error::{Error, Result};
use super::weight;

/// One v2 cgroup to be limited.
pub(super) struct Writer<'a> {
    /// Its directory.
    pub(super) dir: &'a Path,
    /// Its path below the hierarchy's root, for errors.
    pub(super) path: &'a Path,
}

impl Writer<'_> {
    /// Applies all that is given, in an order in which no step needs a later one.
    pub(super) fn apply(&self, resources: &LinuxResources) -> Result<()> {
        if let Some(rules) = resources.devices()
            && !rules.is_empty()
        {
            devices::apply_v2(self.dir, &Rules::parse(rules)?)?;
        }
        if let Some(cpu) = resources.cpu() {
            self.apply_cpu(cpu)?;
        }
        if let Some(memory) = resources.memory() {
            self.apply_memory(memory)?;
        }
        if let Some(pids) = resources.pids() {
            self.apply_pids(pids)?;
        }
        if let Some(io) = resources.block_io() {
            self.apply_io(io)?;
        }
        for limit in resources.hugepage_limits().iter().flatten() {
            self.apply_hugepages(limit)?;
        }
        if let Some(network) = resources.network() {
            refuse_network(network)?;
        }
        for (device, limit) in resources.rdma().iter().flatten() {
            self.apply_rdma(device, limit)?;
        }
        // Last, so that they win over what was derived from v1's fields.
        for (file, value) in resources.unified().iter().flatten() {
            self.apply_unified(file, value)?;
        }
        Ok(())
    }

    fn apply_cpu(&self, cpu: &LinuxCpu) -> Result<()> {
        refuse(
            cpu.realtime_runtime().is_some_and(|it| it != 0)
                || cpu.realtime_period().is_some_and(|it| it != 0),
            "linux.resources.cpu.realtimeRuntime",
            "cgroup v2 has no real-time limits",
        )?;
        if let Some(idle) = cpu.idle() {
            self.write("linux.resources.cpu.idle", "cpu.idle", &idle.to_string())?;
        }
        // An idle cgroup has no weight; the kernel refuses one.
        if let Some(shares) = cpu.shares().filter(|it| *it != 0 && cpu.idle() != Some(1)) {
            let weight = weight::cpu_weight(shares).to_string();
            self.write("linux.resources.cpu.shares", "cpu.weight", &weight)?;
        }
        self.apply_bandwidth(cpu)?;
        if let Some(cpus) = cpu.cpus().as_deref().filter(|it| !it.is_empty()) {
            self.write("linux.resources.cpu.cpus", "cpuset.cpus", cpus)?;
        }
        if let Some(mems) = cpu.mems().as_deref().filter(|it| !it.is_empty()) {
            self.write("linux.resources.cpu.mems", "cpuset.mems", mems)?;
        }
        Ok(())
    }

    /// Quota and period are one write; the burst must never be above the quota, so that either order can be right.
    fn apply_bandwidth(&self, cpu: &LinuxCpu) -> Result<()> {
        const MAX: &str = "linux.resources.cpu.quota";
        const BURST: &str = "linux.resources.cpu.burst";
        let max = match (cpu.quota(), cpu.period().filter(|it| *it != 0)) {
            (None, None) => None,
            (Some(quota), None) => Some(limit_or_max(quota)),
            (Some(quota), Some(period)) => Some(format!("{} {period}", limit_or_max(quota))),
            (None, Some(period)) => {
                let now = control::read(self.dir, "cpu.max")?.unwrap_or_default();
                let quota = now.split_whitespace().next().unwrap_or("max");
                Some(format!("{quota} {period}"))
            }
        };
        let burst = cpu.burst().map(|burst| burst.to_string());
        match (max, burst) {
            (None, None) => Ok(()),
            (Some(max), None) => self.write(MAX, "cpu.max", &max),
            (None, Some(burst)) => self.write(BURST, "cpu.max.burst", &burst),
            (Some(max), Some(burst)) => match self.write(MAX, "cpu.max", &max) {
                Ok(()) => self.write(BURST, "cpu.max.burst", &burst),
                Err(_) => {
                    self.write(BURST, "cpu.max.burst", &burst)?;
                    self.write(MAX, "cpu.max", &max)
                }
            },
        }
    }

    fn apply_memory(&self, memory: &LinuxMemory) -> Result<()> {
        refuse_v1_memory(memory)?;
        let limit = memory.limit().filter(|it| *it != 0);
        if let Some(limit) = limit
            && memory.check_before_update() == Some(true)
        {
            self.check_usage(limit)?;
        }
        let swap = memory.swap().filter(|it| *it != 0);
        // Changed alone, swap goes with the limit that holds.
        let holding = match (limit, swap) {
            (None, Some(1..)) => self.memory_limit()?,
            _ => limit,
        };
        if let Some(swap) = swap_max(holding, swap)? {
            self.write("linux.resources.memory.swap", "memory.swap.max", &swap)?;
        }
        if let Some(limit) = limit {
            let value = limit_or_max(limit);
            self.write("linux.resources.memory.limit", "memory.max", &value)?;
        }
        if let Some(reservation) = memory.reservation().filter(|it| *it != 0) {
            let value = limit_or_max(reservation);
            self.write("linux.resources.memory.reservation", "memory.low", &value)?;
        }
        Ok(())
    }

    /// The limit of memory that holds now; none without one.
    fn memory_limit(&self) -> Result<Option<i64>> {
        let limit = control::read_number(self.dir, "memory.max")?.flatten();
        Ok(limit.and_then(|limit| i64::try_from(limit).ok()))
    }

    fn check_usage(&self, limit: i64) -> Result<()> {
        let usage = control::read_number(self.dir, "memory.current")?
            .flatten()
            .unwrap_or(0);
        refuse(
            u64::try_from(limit).is_ok_and(|limit| limit < usage),
            "linux.resources.memory.limit",
            &format!("{limit} bytes are less than the {usage} in use"),
        )
    }

    fn apply_pids(&self, pids: &LinuxPids) -> Result<()> {
        let value = pids_max(pids);
        self.write("linux.resources.pids.limit", "pids.max", &value)
    }

    fn apply_io(&self, io: &LinuxBlockIo) -> Result<()> {
        refuse(
            io.leaf_weight().is_some_and(|it| it != 0),
            "linux.resources.blockIO.leafWeight",
            "cgroup v2 has no leaf weights",
        )?;
        // The BFQ scheduler's file takes v1's scale and comes first, as in runc.
        let has_bfq = self.dir.join("io.bfq.weight").exists();
        if let Some(weight) = io.weight().filter(|it| *it != 0) {
            const FIELD: &str = "linux.resources.blockIO.weight";
            if has_bfq {
                self.write(FIELD, "io.bfq.weight", &weight.to_string())?;
            } else {
                let weight = weight::io_weight(weight).to_string();
                self.write(FIELD, "io.weight", &weight)?;
            }
        }
        for device in io.weight_device().iter().flatten() {
            const FIELD: &str = "linux.resources.blockIO.weightDevice";
            refuse(
                device.leaf_weight().is_some_and(|it| it != 0),
                FIELD,
                "cgroup v2 has no leaf weights",
            )?;
            let Some(weight) = device.weight() else {
                continue;
            };
            let name = format!("{}:{}", device.major(), device.minor());
            if has_bfq {
                self.write(FIELD, "io.bfq.weight", &format!("{name} {weight}"))?;
            } else {
                let weight = weight::io_weight(weight);
                self.write(FIELD, "io.weight", &format!("{name} {weight}"))?;
            }
        }
        let throttles = [
            ("rbps", io.throttle_read_bps_device()),
            ("wbps", io.throttle_write_bps_device()),
            ("riops", io.throttle_read_iops_device()),
            ("wiops", io.throttle_write_iops_device()),
        ];
        for (key, devices) in throttles {
            for device in devices.iter().flatten() {
                // Zero takes the limit away, as on v1.
                let rate = match device.rate() {
                    0 => "max".to_owned(),
                    rate => rate.to_string(),
                };
                let value = format!("{}:{} {key}={rate}", device.major(), device.minor());
                self.write("linux.resources.blockIO.throttle", "io.max", &value)?;
            }
        }
        Ok(())
    }

    fn apply_hugepages(&self, limit: &LinuxHugepageLimit) -> Result<()> {
        const FIELD: &str = "linux.resources.hugepageLimits";
        refuse_slash(FIELD, limit.page_size())?;
        let value = limit_or_max(limit.limit());
        let size = limit.page_size();
        self.write(FIELD, &format!("hugetlb.{size}.max"), &value)?;
        // Reservations count too where the kernel knows them (5.7): else a process that reserves beyond its limit
        // dies of SIGBUS later.
        let reservations = format!("hugetlb.{size}.rsvd.max");
        if self.dir.join(&reservations).exists() {
            self.write(FIELD, &reservations, &value)?;
        }
        Ok(())
    }

    fn apply_rdma(&self, device: &str, limit: &LinuxRdma) -> Result<()> {
        let value = rdma_max(device, limit);
        self.write("linux.resources.rdma", "rdma.max", &value)
    }

    fn apply_unified(&self, file: &str, value: &str) -> Result<()> {
        const FIELD: &str = "linux.resources.unified";
        refuse_slash(FIELD, file)?;
        refuse(
            file.starts_with("cgroup.")
                && file != "cgroup.max.depth"
                && file != "cgroup.max.descendants",
            FIELD,
            &format!("{file} is no limit"),
        )?;
        // A file of several keys, such as io.max, takes one line for each write.
        value
            .lines()
            .try_for_each(|line| self.write(FIELD, file, line))
    }

    /// Writes one file; when it is not there, its controller is not.
    fn write(&self, limit: &'static str, file: &str, value: &str) -> Result<()> {
        control::try_write(self.dir, file, value).map_err(|source| {
            let controller = file.split('.').next().unwrap_or(file);
            // Opening for writing where no file is asks cgroupfs to make one, which it refuses.
            let is_missing = matches!(
                source.kind(),
                ErrorKind::NotFound | ErrorKind::PermissionDenied
            ) && !self.dir.join(file).exists();
            if is_missing && self.dir.exists() {
                Error::MissingController {
                    limit,
                    controller: controller.to_owned(),
                    cgroup: self.path.to_owned(),
                }
            } else {
                Error::Write {
                    path: self.dir.join(file),
                    value: value.to_owned(),
                    source,
                }
            }
        })
    }
}

/// `-1`, as all negative values, is no limit.
fn limit_or_max(limit: i64) -> String {
    if limit < 0 {
        "max".to_owned()
    } else {
        limit.to_string()
    }
}

/// None is no limit. 0 is a limit (runtime-spec config-linux.md#pids), and written as 1, as runc does: systemd has no 0
/// for it, version 2 would not let the first process in, and no more than the first process is what both mean.
pub(super) fn pids_limit(pids: &LinuxPids) -> Option<u64> {
    u64::try_from(pids.limit()).ok().map(|limit| limit.max(1))
}

pub(super) fn pids_max(pids: &LinuxPids) -> String {
    pids_limit(pids).map_or_else(|| "max".to_owned(), |limit| limit.to_string())
}

/// OCI's swap is memory and swap together; v2's is swap alone.
pub(super) fn swap_max(limit: Option<i64>, swap: Option<i64>) -> Result<Option<String>> {
    const FIELD: &str = "linux.resources.memory.swap";
    match (limit, swap) {
        // Unlimited memory, and nothing said of swap: unlimited swap.
        (Some(limit), None) if limit < 0 => Ok(Some("max".to_owned())),
        (_, None) => Ok(None),
        (_, Some(swap)) if swap < 0 => Ok(Some("max".to_owned())),
        (Some(limit), Some(swap)) if limit >= 0 => {
            refuse(
                swap < limit,
                FIELD,
                &format!("{swap} bytes of memory and swap are less than the {limit} of memory"),
            )?;
            Ok(Some((swap - limit).to_string()))
        }
        (_, Some(_)) => Err(unsupported(
            FIELD,
            "a limit of memory and swap together needs a limit of memory",
        )),
    }
}

/// One line of `rdma.max`.
pub(super) fn rdma_max(device: &str, limit: &LinuxRdma) -> String {
    let mut value = device.to_owned();
    if let Some(handles) = limit.hca_handles() {
        value.push_str(&format!(" hca_handle={handles}"));
    }
    if let Some(objects) = limit.hca_objects() {
        value.push_str(&format!(" hca_object={objects}"));
    }
    value
}

fn refuse_v1_memory(memory: &LinuxMemory) -> Result<()> {
    let is_limit = |limit: Option<i64>| limit.is_some_and(|it| it > 0);
    refuse(
        is_limit(memory.kernel()) || is_limit(memory.kernel_tcp()),
        "linux.resources.memory.kernel",
        "cgroup v2 counts the kernel's memory with the rest and has no limit of its own for it",
    )?;
    refuse(
        memory.swappiness().is_some(),
        "linux.resources.memory.swappiness",
        "cgroup v2 has no swappiness",
    )?;
    refuse(
        memory.disable_oom_killer() == Some(true),
        "linux.resources.memory.disableOOMKiller",
        "cgroup v2 cannot switch the OOM killer off",
    )?;
    refuse(
        memory.use_hierarchy() == Some(false),
        "linux.resources.memory.useHierarchy",
        "cgroup v2 is always hierarchical",
    )
}

fn refuse_network(network: &LinuxNetwork) -> Result<()> {
    refuse(
        network.class_id().is_some_and(|it| it != 0)
            || network
                .priorities()
                .as_ref()
                .is_some_and(|it| !it.is_empty()),
        "linux.resources.network",
        "cgroup v2 has no network classes and priorities",
    )
}

/// A name that becomes part of a file name must not lead elsewhere.
pub(super) fn refuse_slash(limit: &'static str, name: &str) -> Result<()> {
    refuse(
        name.is_empty() || name.contains('/'),
        limit,
        &format!("{name:?} is no file name"),
    )
}

/// An error when `condition` holds.
pub(super) fn refuse(condition: bool, limit: &'static str, reason: &str) -> Result<()> {
    if condition {
        Err(unsupported(limit, reason))
    } else {
        Ok(())
    }
}

fn unsupported(limit: &'static str, reason: &str) -> Error {
    Error::Unsupported {
        limit,
        reason: reason.to_owned(),
    }
}

/// All usage of memory in this cgroup ends together when the OOM killer comes.
pub(super) fn kill_together_on_oom(dir: &Path) -> Result<()> {
    // Without the memory controller there is no OOM kill by cgroup.
    match control::try_write(dir, "memory.oom.group", "1") {
        Ok(()) => Ok(()),
        Err(_) if !dir.join("memory.oom.group").exists() => Ok(()),
        Err(source) => Err(Error::Write {
            path: PathBuf::from(dir).join("memory.oom.group"),
            value: "1".to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_what_is_beyond_memory() {
        assert_eq!(
            swap_max(Some(100), Some(100)).unwrap().as_deref(),
            Some("0")
        );
        assert_eq!(
            swap_max(Some(100), Some(150)).unwrap().as_deref(),
            Some("50")
        );
        assert_eq!(
            swap_max(Some(100), Some(-1)).unwrap().as_deref(),
            Some("max")
        );
        assert_eq!(swap_max(Some(-1), None).unwrap().as_deref(), Some("max"));
        assert_eq!(swap_max(Some(100), None).unwrap(), None);
        assert!(swap_max(Some(100), Some(50)).is_err());
        assert!(swap_max(None, Some(50)).is_err());
    }

    /// A directory of plain files stands in for the kernel's: what is written where can be seen without root.
    fn written(files: &[&str], json: &str) -> (Result<()>, impl Fn(&str) -> String + use<>) {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let writer = Writer {
            dir: dir.path(),
            path: Path::new("/pod"),
        };
        let result = writer.apply(&resources);
        let read = move |file: &str| std::fs::read_to_string(dir.path().join(file)).unwrap();
        (result, read)
    }

    #[test]
    fn limits_go_to_their_files() {
        let (result, read) = written(
            &[
                "cpu.weight",
                "cpu.max",
                "memory.max",
                "memory.swap.max",
                "memory.low",
                "pids.max",
                "cpuset.cpus",
            ],
            r#"{"cpu":{"shares":512,"quota":30000,"period":100000,"cpus":"0-1"},
                "memory":{"limit":209715200,"swap":209715200,"reservation":1048576},"pids":{"limit":64}}"#,
        );
        result.unwrap();
        assert_eq!(read("cpu.weight"), "59");
        assert_eq!(read("cpu.max"), "30000 100000");
        assert_eq!(read("cpuset.cpus"), "0-1");
        assert_eq!(read("memory.max"), "209715200");
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("memory.low"), "1048576");
        assert_eq!(read("pids.max"), "64");
    }

    #[test]
    fn a_limit_without_its_controller_is_refused_and_others_do_not_need_it() {
        let limit = r#"{"hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#;
        let error = written(&["pids.max"], limit).0.unwrap_err();
        assert!(
            matches!(&error, Error::MissingController { controller, .. } if controller == "hugetlb"),
            "{error}"
        );
        written(&["pids.max"], r#"{"pids":{"limit":0}}"#).0.unwrap();
    }

    #[test]
    fn a_limit_of_no_processes_lets_the_first_one_run_alone() {
        for (limit, text) in [(0, "1"), (-1, "max"), (7, "7")] {
            let mut pids = LinuxPids::default();
            pids.set_limit(limit);
            assert_eq!(pids_max(&pids), text);
        }
    }

    #[test]
    fn what_v2_cannot_do_is_refused_with_the_fields_name() {
        for (json, field) in [
            (r#"{"memory":{"swappiness":10}}"#, "swappiness"),
            (r#"{"memory":{"kernel":1000000}}"#, "memory.kernel"),
            (
                r#"{"memory":{"disableOOMKiller":true}}"#,
                "disableOOMKiller",
            ),
            (r#"{"cpu":{"realtimeRuntime":1000}}"#, "realtimeRuntime"),
            (r#"{"network":{"classID":7}}"#, "network"),
            (r#"{"blockIO":{"leafWeight":7}}"#, "leafWeight"),
            (r#"{"unified":{"../pids.max":"1"}}"#, "unified"),
            (r#"{"unified":{"cgroup.procs":"1"}}"#, "unified"),
        ] {
            let error = written(&[], json).0.unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn unified_values_win() {
        let (result, read) = written(
            &["memory.max", "memory.high"],
            r#"{"memory":{"limit":1000},"unified":{"memory.high":"900","memory.max":"2000"}}"#,
        );
        result.unwrap();
        assert_eq!(read("memory.high"), "900");
        assert!(read("memory.max").starts_with("2000"));
    }
}
