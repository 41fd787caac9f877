//! OCI's limits, written to v1 cgroups (`Documentation/admin-guide/cgroup-v1`).

use std::io::ErrorKind;
use std::path::Path;

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxResources,
};

use super::control;
use super::devices::{self, Rules};
use super::error::{Error, Result};
use super::v2::{pids_max, rdma_max, refuse, refuse_slash};

/// A v1 cgroup to be limited, in all its hierarchies.
pub(super) struct Writer<'a> {
    /// Finds the directory in a controller's hierarchy.
    pub(super) dir: &'a dyn Fn(&str) -> Option<&'a Path>,
    /// The path below the hierarchies' roots, for errors.
    pub(super) path: &'a Path,
}

impl<'a> Writer<'a> {
    /// Applies all that is given.
    pub(super) fn apply(&self, resources: &LinuxResources) -> Result<()> {
        refuse(
            resources
                .unified()
                .as_ref()
                .is_some_and(|it| !it.is_empty()),
            "linux.resources.unified",
            "this machine has cgroup v1",
        )?;
        if let Some(rules) = resources.devices()
            && !rules.is_empty()
        {
            let dir = self.controller("linux.resources.devices", "devices")?;
            devices::apply_v1(dir, &Rules::parse(rules)?)?;
        }
        if let Some(cpu) = resources.cpu() {
            self.apply_cpu(cpu)?;
        }
        if let Some(memory) = resources.memory() {
            self.apply_memory(memory)?;
        }
        if let Some(pids) = resources.pids() {
            self.write("linux.resources.pids.limit", "pids.max", &pids_max(pids))?;
        }
        if let Some(io) = resources.block_io() {
            self.apply_io(io)?;
        }
        for limit in resources.hugepage_limits().iter().flatten() {
            self.apply_hugepages(limit)?;
        }
        if let Some(network) = resources.network() {
            self.apply_network(network)?;
        }
        for (device, limit) in resources.rdma().iter().flatten() {
            self.write("linux.resources.rdma", "rdma.max", &rdma_max(device, limit))?;
        }
        Ok(())
    }

    fn apply_cpu(&self, cpu: &LinuxCpu) -> Result<()> {
        if let Some(idle) = cpu.idle() {
            self.write("linux.resources.cpu.idle", "cpu.idle", &idle.to_string())?;
        }
        // An idle cgroup has no shares; the kernel refuses them.
        if let Some(shares) = cpu.shares().filter(|it| *it != 0 && cpu.idle() != Some(1)) {
            self.write(
                "linux.resources.cpu.shares",
                "cpu.shares",
                &shares.to_string(),
            )?;
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

    /// Period, quota and burst bound each other, as do the real-time ones, so that none can always come first: those that the kernel refuses
    /// beside the old values of the others are tried again after them.
    fn apply_bandwidth(&self, cpu: &LinuxCpu) -> Result<()> {
        let period = cpu.period().filter(|it| *it != 0);
        let realtime_period = cpu.realtime_period().filter(|it| *it != 0);
        let realtime_runtime = cpu.realtime_runtime().filter(|it| *it != 0);
        let writes = [
            (
                "linux.resources.cpu.period",
                "cpu.cfs_period_us",
                period.map(|it| it.to_string()),
            ),
            (
                "linux.resources.cpu.quota",
                "cpu.cfs_quota_us",
                cpu.quota().map(|it| it.max(-1).to_string()),
            ),
            (
                "linux.resources.cpu.burst",
                "cpu.cfs_burst_us",
                cpu.burst().map(|it| it.to_string()),
            ),
            (
                "linux.resources.cpu.realtimePeriod",
                "cpu.rt_period_us",
                realtime_period.map(|it| it.to_string()),
            ),
            (
                "linux.resources.cpu.realtimeRuntime",
                "cpu.rt_runtime_us",
                realtime_runtime.map(|it| it.to_string()),
            ),
        ];
        let mut refused = Vec::new();
        for (limit, file, value) in &writes {
            if let Some(value) = value
                && self.write(limit, file, value).is_err()
            {
                refused.push((limit, file, value));
            }
        }
        refused
            .into_iter()
            .try_for_each(|(limit, file, value)| self.write(limit, file, value))
    }

    fn apply_memory(&self, memory: &LinuxMemory) -> Result<()> {
        refuse(
            memory.use_hierarchy() == Some(false),
            "linux.resources.memory.useHierarchy",
            "accounting is always hierarchical",
        )?;
        self.apply_memory_limit(memory)?;
        let numbers = [
            (
                "linux.resources.memory.reservation",
                "memory.soft_limit_in_bytes",
                memory.reservation().filter(|it| *it != 0),
            ),
            (
                "linux.resources.memory.kernel",
                "memory.kmem.limit_in_bytes",
                memory.kernel().filter(|it| *it > 0),
            ),
            (
                "linux.resources.memory.kernelTCP",
                "memory.kmem.tcp.limit_in_bytes",
                memory.kernel_tcp().filter(|it| *it != 0),
            ),
        ];
        for (limit, file, value) in numbers {
            if let Some(value) = value {
                self.write(limit, file, &value.max(-1).to_string())?;
            }
        }
        if let Some(swappiness) = memory.swappiness() {
            let value = swappiness.to_string();
            self.write(
                "linux.resources.memory.swappiness",
                "memory.swappiness",
                &value,
            )?;
        }
        if memory.disable_oom_killer() == Some(true) {
            self.write(
                "linux.resources.memory.disableOOMKiller",
                "memory.oom_control",
                "1",
            )?;
        }
        Ok(())
    }

    /// The limit of memory and swap together must never be below that of memory: the larger one is moved first.
    fn apply_memory_limit(&self, memory: &LinuxMemory) -> Result<()> {
        const LIMIT: &str = "linux.resources.memory.limit";
        const SWAP: &str = "linux.resources.memory.swap";
        const LIMIT_FILE: &str = "memory.limit_in_bytes";
        const SWAP_FILE: &str = "memory.memsw.limit_in_bytes";
        let limit = memory.limit().filter(|it| *it != 0).map(|it| it.max(-1));
        let mut swap = memory.swap().filter(|it| *it != 0).map(|it| it.max(-1));
        let Some(limit) = limit else {
            return match swap {
                Some(swap) => self.write(SWAP, SWAP_FILE, &swap.to_string()),
                None => Ok(()),
            };
        };
        let dir = self.controller(LIMIT, "memory")?;
        if memory.check_before_update() == Some(true) {
            let usage = read_bytes(dir, "memory.usage_in_bytes")?;
            refuse(
                u64::try_from(limit).is_ok_and(|limit| limit < usage),
                LIMIT,
                &format!("{limit} bytes are less than the {usage} in use"),
            )?;
        }
        if limit < 0 && swap.is_none() && dir.join(SWAP_FILE).exists() {
            swap = Some(-1);
        }
        let Some(swap) = swap else {
            return self.write(LIMIT, LIMIT_FILE, &limit.to_string());
        };
        refuse(
            swap >= 0 && (limit < 0 || swap < limit),
            SWAP,
            &format!("{swap} bytes of memory and swap are less than the memory limit {limit}"),
        )?;
        let grows = swap < 0 || read_bytes(dir, LIMIT_FILE)? < swap.unsigned_abs();
        if grows {
            // The old limit of memory may be the default, "none": then the new sum is below it and has to wait.
            if self.write(SWAP, SWAP_FILE, &swap.to_string()).is_ok() {
                return self.write(LIMIT, LIMIT_FILE, &limit.to_string());
            }
        }
        self.write(LIMIT, LIMIT_FILE, &limit.to_string())?;
        self.write(SWAP, SWAP_FILE, &swap.to_string())
    }

    fn apply_io(&self, io: &LinuxBlockIo) -> Result<()> {
        if let Some(weight) = io.weight().filter(|it| *it != 0) {
            self.write_weight(
                "linux.resources.blockIO.weight",
                "weight",
                &weight.to_string(),
            )?;
        }
        if let Some(weight) = io.leaf_weight().filter(|it| *it != 0) {
            let value = weight.to_string();
            self.write_weight("linux.resources.blockIO.leafWeight", "leaf_weight", &value)?;
        }
        for device in io.weight_device().iter().flatten() {
            const FIELD: &str = "linux.resources.blockIO.weightDevice";
            let name = format!("{}:{}", device.major(), device.minor());
            if let Some(weight) = device.weight() {
                self.write_weight(FIELD, "weight_device", &format!("{name} {weight}"))?;
            }
            if let Some(weight) = device.leaf_weight() {
                self.write_weight(FIELD, "leaf_weight_device", &format!("{name} {weight}"))?;
            }
        }
        let throttles = [
            ("read_bps", io.throttle_read_bps_device()),
            ("write_bps", io.throttle_write_bps_device()),
            ("read_iops", io.throttle_read_iops_device()),
            ("write_iops", io.throttle_write_iops_device()),
        ];
        for (kind, devices) in throttles {
            for device in devices.iter().flatten() {
                let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
                let file = format!("blkio.throttle.{kind}_device");
                self.write("linux.resources.blockIO.throttle", &file, &value)?;
            }
        }
        Ok(())
    }

    /// Weights belong to the disk scheduler: BFQ today, CFQ before Linux 5.0.
    fn write_weight(&self, limit: &'static str, name: &str, value: &str) -> Result<()> {
        let dir = self.controller(limit, "blkio")?;
        let bfq = format!("blkio.bfq.{name}");
        if dir.join(&bfq).exists() {
            self.write(limit, &bfq, value)
        } else {
            self.write(limit, &format!("blkio.{name}"), value)
        }
    }

    fn apply_hugepages(&self, limit: &LinuxHugepageLimit) -> Result<()> {
        const FIELD: &str = "linux.resources.hugepageLimits";
        refuse_slash(FIELD, limit.page_size())?;
        let size = limit.page_size();
        let value = limit.limit().max(-1).to_string();
        self.write(FIELD, &format!("hugetlb.{size}.limit_in_bytes"), &value)?;
        let reservations = format!("hugetlb.{size}.rsvd.limit_in_bytes");
        if self
            .controller(FIELD, "hugetlb")?
            .join(&reservations)
            .exists()
        {
            self.write(FIELD, &reservations, &value)?;
        }
        Ok(())
    }

    fn apply_network(&self, network: &LinuxNetwork) -> Result<()> {
        if let Some(class) = network.class_id().filter(|it| *it != 0) {
            self.write(
                "linux.resources.network.classID",
                "net_cls.classid",
                &class.to_string(),
            )?;
        }
        for entry in network.priorities().iter().flatten() {
            let value = format!("{} {}", entry.name(), entry.priority());
            self.write(
                "linux.resources.network.priorities",
                "net_prio.ifpriomap",
                &value,
            )?;
        }
        Ok(())
    }

    /// The directory in the controller's hierarchy; an error when there is none.
    fn controller(&self, limit: &'static str, controller: &str) -> Result<&'a Path> {
        (self.dir)(controller).ok_or_else(|| self.missing(limit, controller))
    }

    /// Writes one file, whose name begins with its controller's.
    fn write(&self, limit: &'static str, file: &str, value: &str) -> Result<()> {
        let controller = file.split('.').next().unwrap_or(file);
        let dir = self.controller(limit, controller)?;
        control::try_write(dir, file, value).map_err(|source| {
            let is_missing = matches!(
                source.kind(),
                ErrorKind::NotFound | ErrorKind::PermissionDenied
            ) && !dir.join(file).exists();
            if is_missing && dir.exists() {
                self.missing(limit, file)
            } else {
                Error::Write {
                    path: dir.join(file),
                    value: value.to_owned(),
                    source,
                }
            }
        })
    }

    fn missing(&self, limit: &'static str, controller: &str) -> Error {
        Error::MissingController {
            limit,
            controller: controller.to_owned(),
            cgroup: self.path.to_owned(),
        }
    }
}

/// A number of bytes; zero when the file is not there.
fn read_bytes(dir: &Path, file: &str) -> Result<u64> {
    Ok(control::read_number(dir, file)?.flatten().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One directory of plain files stands in for all hierarchies.
    fn written(files: &[&str], json: &str) -> (Result<()>, impl Fn(&str) -> String + use<>) {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let writer = Writer {
            dir: &|_| Some(dir.path()),
            path: Path::new("/pod"),
        };
        let result = writer.apply(&resources);
        let read = move |file: &str| std::fs::read_to_string(dir.path().join(file)).unwrap();
        (result, read)
    }

    #[test]
    fn limits_go_to_their_files() {
        let files = [
            "cpu.cfs_period_us",
            "cpu.cfs_quota_us",
            "cpu.rt_period_us",
            "cpu.rt_runtime_us",
            "memory.soft_limit_in_bytes",
            "memory.swappiness",
            "memory.oom_control",
            "blkio.bfq.weight",
            "blkio.throttle.read_bps_device",
            "hugetlb.2MB.limit_in_bytes",
            "hugetlb.2MB.rsvd.limit_in_bytes",
            "net_cls.classid",
            "net_prio.ifpriomap",
            "rdma.max",
        ];
        let json = r#"{"cpu":{"quota":-1,"period":50000,"realtimePeriod":1000,"realtimeRuntime":500},
            "memory":{"reservation":1048576,"swappiness":7,"disableOOMKiller":true},
            "blockIO":{"weight":300,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":4096}]},
            "hugepageLimits":[{"pageSize":"2MB","limit":4194304}],
            "network":{"classID":1048577,"priorities":[{"name":"eth0","priority":5}]},
            "rdma":{"mlx5_0":{"hcaHandles":3,"hcaObjects":4}}}"#;
        let (result, read) = written(&files, json);
        result.unwrap();
        for (file, value) in [
            ("cpu.cfs_period_us", "50000"),
            ("cpu.cfs_quota_us", "-1"),
            ("cpu.rt_period_us", "1000"),
            ("cpu.rt_runtime_us", "500"),
            ("memory.soft_limit_in_bytes", "1048576"),
            ("memory.swappiness", "7"),
            ("memory.oom_control", "1"),
            ("blkio.bfq.weight", "300"),
            ("blkio.throttle.read_bps_device", "8:0 4096"),
            ("hugetlb.2MB.limit_in_bytes", "4194304"),
            ("hugetlb.2MB.rsvd.limit_in_bytes", "4194304"),
            ("net_cls.classid", "1048577"),
            ("net_prio.ifpriomap", "eth0 5"),
            ("rdma.max", "mlx5_0 hca_handle=3 hca_object=4"),
        ] {
            assert_eq!(read(file), value, "{file}");
        }
    }

    #[test]
    fn what_v1_cannot_do_is_refused_with_the_fields_name() {
        for (json, field) in [
            (r#"{"unified":{"memory.high":"1"}}"#, "unified"),
            (r#"{"memory":{"limit":100,"swap":50}}"#, "memory.swap"),
            (r#"{"memory":{"useHierarchy":false}}"#, "useHierarchy"),
            (r#"{"cpu":{"burst":7}}"#, "cpu.burst"),
        ] {
            let error = written(&[], json).0.unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn a_limit_below_what_is_in_use_is_refused_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("memory.usage_in_bytes"), "4096").unwrap();
        std::fs::write(dir.path().join("memory.limit_in_bytes"), "").unwrap();
        let writer = Writer {
            dir: &|_| Some(dir.path()),
            path: Path::new("/pod"),
        };
        let apply = |json| writer.apply(&serde_json::from_str(json).unwrap());
        let below = r#"{"memory":{"limit":1024,"checkBeforeUpdate":true}}"#;
        let error = apply(below).unwrap_err().to_string();
        assert!(error.contains("4096 in use"), "{error}");
        apply(r#"{"memory":{"limit":1024}}"#).unwrap();
    }
}
