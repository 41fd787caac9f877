//! OCI's limits as properties of a systemd unit (systemd.resource-control(5)), so that `systemctl show` tells what
//! holds, and systemd writes the same values whenever it writes any.
//!
//! Not all limits have a property; those that have none are only in the cgroup, where [`super::Cgroup::apply`] writes
//! all. What the cgroup refuses is refused there, with the field's name: here it is left out.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};
use podling_systemd::{Property, PropertyValue};

use super::devices::Rules;
use super::error::Result;
use super::v2::{pids_limit, swap_max};
use super::weight;

/// Where a property is written: the versions differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// The properties of all limits that have one, and of the device rules.
///
/// # Errors
/// When device rules are malformed.
pub fn properties(resources: &LinuxResources, is_v2: bool) -> Result<Vec<Property>> {
    let version = if is_v2 { Version::V2 } else { Version::V1 };
    let mut list = Vec::new();
    if let Some(rules) = resources.devices()
        && !rules.is_empty()
    {
        list.extend(Rules::parse(rules)?.properties());
    }
    if let Some(cpu) = resources.cpu() {
        cpu_properties(cpu, version, &mut list);
    }
    if let Some(memory) = resources.memory() {
        memory_properties(memory, version, &mut list)?;
    }
    if let Some(pids) = resources.pids() {
        list.push(number("TasksMax", pids_limit(pids).unwrap_or(u64::MAX)));
    }
    if let Some(io) = resources.block_io() {
        io_properties(io, version, &mut list);
    }
    for (file, value) in resources.unified().iter().flatten() {
        list.extend(unified_property(file, value.trim()));
    }
    Ok(list)
}

/// Switches the controllers on, for all limits that may come later.
pub fn accounting(is_v2: bool) -> Vec<Property> {
    let io = if is_v2 {
        "IOAccounting"
    } else {
        "BlockIOAccounting"
    };
    ["CPUAccounting", "MemoryAccounting", "TasksAccounting", io]
        .into_iter()
        .map(|name| Property::new(name, PropertyValue::Bool(true)))
        .collect()
}

fn number(name: &str, value: u64) -> Property {
    Property::new(name, PropertyValue::U64(value))
}

/// Negative is no limit.
fn limit(name: &str, value: i64) -> Property {
    number(name, u64::try_from(value).unwrap_or(u64::MAX))
}

fn cpu_properties(cpu: &LinuxCpu, version: Version, list: &mut Vec<Property>) {
    if let Some(shares) = cpu.shares().filter(|it| *it != 0 && cpu.idle() != Some(1)) {
        list.push(match version {
            Version::V2 => number("CPUWeight", weight::cpu_weight(shares)),
            Version::V1 => number("CPUShares", shares),
        });
    }
    let period = cpu.period().filter(|it| *it != 0);
    if let Some(period) = period {
        list.push(number("CPUQuotaPeriodUSec", period));
    }
    if let Some(quota) = cpu.quota() {
        let per_second = quota_per_second(quota, period.unwrap_or(DEFAULT_PERIOD_USECS));
        list.push(number("CPUQuotaPerSecUSec", per_second));
    }
    for (name, set) in [
        ("AllowedCPUs", cpu.cpus()),
        ("AllowedMemoryNodes", cpu.mems()),
    ] {
        // v1's cpuset is not systemd's business.
        if let Some(bits) = set.as_deref().and_then(bits)
            && version == Version::V2
        {
            list.push(Property::new(name, PropertyValue::Bytes(bits)));
        }
    }
}

/// The kernel's, and systemd's.
const DEFAULT_PERIOD_USECS: u64 = 100_000;

/// Processor time a second, in microseconds. systemd keeps whole percents of a processor; what is in between is
/// rounded up, so that its value is not below the one in the cgroup.
fn quota_per_second(quota: i64, period_usecs: u64) -> u64 {
    const PERCENT_USECS: u64 = 10_000;
    let Ok(quota) = u64::try_from(quota) else {
        return u64::MAX;
    };
    let per_second = quota.saturating_mul(1_000_000) / period_usecs.max(1);
    per_second.div_ceil(PERCENT_USECS) * PERCENT_USECS
}

/// A set as `0-2,7` in systemd's words: bit n of byte n / 8.
fn bits(set: &str) -> Option<Vec<u8>> {
    /// The kernel's largest number of processors is 8192.
    const MAX: usize = 8192;
    let mut bits = Vec::new();
    for part in set.split(',').map(str::trim).filter(|it| !it.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last >= MAX {
            return None;
        }
        for bit in first..=last {
            if bits.len() <= bit / 8 {
                bits.resize(bit / 8 + 1, 0);
            }
            bits[bit / 8] |= 1 << (bit % 8);
        }
    }
    (!bits.is_empty()).then_some(bits)
}

fn memory_properties(
    memory: &LinuxMemory,
    version: Version,
    list: &mut Vec<Property>,
) -> Result<()> {
    let asked = memory.limit().filter(|it| *it != 0);
    if let Some(bytes) = asked {
        list.push(match version {
            Version::V2 => limit("MemoryMax", bytes),
            Version::V1 => limit("MemoryLimit", bytes),
        });
    }
    if version == Version::V1 {
        return Ok(());
    }
    if let Some(swap) = swap_max(asked, memory.swap().filter(|it| *it != 0))? {
        list.push(number("MemorySwapMax", swap.parse().unwrap_or(u64::MAX)));
    }
    if let Some(reservation) = memory.reservation().filter(|it| *it != 0) {
        list.push(limit("MemoryLow", reservation));
    }
    Ok(())
}

fn io_properties(io: &LinuxBlockIo, version: Version, list: &mut Vec<Property>) {
    if let Some(weight) = io.weight().filter(|it| *it != 0) {
        list.push(match version {
            Version::V2 => number("IOWeight", weight::io_weight(weight)),
            Version::V1 => number("BlockIOWeight", weight.into()),
        });
    }
    if version == Version::V1 {
        return;
    }
    for (name, devices) in [
        ("IOReadBandwidthMax", io.throttle_read_bps_device()),
        ("IOWriteBandwidthMax", io.throttle_write_bps_device()),
        ("IOReadIOPSMax", io.throttle_read_iops_device()),
        ("IOWriteIOPSMax", io.throttle_write_iops_device()),
    ] {
        let devices = devices.as_deref().unwrap_or_default();
        if !devices.is_empty() {
            let rates = devices.iter().map(rate).collect();
            list.push(Property::new(name, PropertyValue::Rates(rates)));
        }
    }
}

fn rate(device: &LinuxThrottleDevice) -> (String, u64) {
    let path = format!("/dev/block/{}:{}", device.major(), device.minor());
    let rate = match device.rate() {
        0 => u64::MAX,
        rate => rate,
    };
    (path, rate)
}

/// The property of a v2 control file; none for files that systemd does not know.
fn unified_property(file: &str, value: &str) -> Vec<Property> {
    let amount = || match value {
        "max" => Some(u64::MAX),
        number => number.parse().ok(),
    };
    let one = |name: &str| {
        amount()
            .map(|value| number(name, value))
            .into_iter()
            .collect()
    };
    match file {
        "memory.max" => one("MemoryMax"),
        "memory.high" => one("MemoryHigh"),
        "memory.low" => one("MemoryLow"),
        "memory.min" => one("MemoryMin"),
        "memory.swap.max" => one("MemorySwapMax"),
        "pids.max" => one("TasksMax"),
        "cpu.weight" => one("CPUWeight"),
        "cpu.max" => cpu_max(value).unwrap_or_default(),
        "cpuset.cpus" | "cpuset.mems" => {
            let name = if file == "cpuset.cpus" {
                "AllowedCPUs"
            } else {
                "AllowedMemoryNodes"
            };
            let set = bits(value).map(|bits| Property::new(name, PropertyValue::Bytes(bits)));
            set.into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// `max 100000`, `50000`
fn cpu_max(value: &str) -> Option<Vec<Property>> {
    let mut words = value.split_whitespace();
    let quota = match words.next()? {
        "max" => -1,
        number => number.parse().ok()?,
    };
    let period = match words.next() {
        Some(period) => period.parse().ok()?,
        None => DEFAULT_PERIOD_USECS,
    };
    Some(vec![
        number("CPUQuotaPeriodUSec", period),
        number("CPUQuotaPerSecUSec", quota_per_second(quota, period)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str, is_v2: bool) -> Vec<(String, PropertyValue)> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let list = properties(&resources, is_v2).unwrap();
        list.into_iter().map(|it| (it.name, it.value)).collect()
    }

    fn numbers(list: &[(&str, u64)]) -> Vec<(String, PropertyValue)> {
        list.iter()
            .map(|(name, value)| ((*name).to_owned(), PropertyValue::U64(*value)))
            .collect()
    }

    #[test]
    fn limits_have_properties() {
        let json = r#"{"cpu":{"shares":1024,"quota":25000,"period":50000},
            "memory":{"limit":1000,"swap":1500,"reservation":500},"pids":{"limit":7},"blockIO":{"weight":1000}}"#;
        let v2 = [
            ("CPUWeight", 100),
            ("CPUQuotaPeriodUSec", 50_000),
            ("CPUQuotaPerSecUSec", 500_000),
            ("MemoryMax", 1000),
            ("MemorySwapMax", 500),
            ("MemoryLow", 500),
            ("TasksMax", 7),
            ("IOWeight", 10_000),
        ];
        assert_eq!(of(json, true), numbers(&v2));
        let v1 = [
            ("CPUShares", 1024),
            ("CPUQuotaPeriodUSec", 50_000),
            ("CPUQuotaPerSecUSec", 500_000),
            ("MemoryLimit", 1000),
            ("TasksMax", 7),
            ("BlockIOWeight", 1000),
        ];
        assert_eq!(of(json, false), numbers(&v1));
    }

    #[test]
    fn no_limit_is_infinity() {
        let json = r#"{"cpu":{"quota":-1},"memory":{"limit":-1},"pids":{"limit":-1}}"#;
        let all = [
            "CPUQuotaPerSecUSec",
            "MemoryMax",
            "MemorySwapMax",
            "TasksMax",
        ];
        assert_eq!(of(json, true), numbers(&all.map(|name| (name, u64::MAX))));
    }

    #[test]
    fn quotas_are_whole_percents() {
        assert_eq!(quota_per_second(33_333, 100_000), 340_000);
        assert_eq!(quota_per_second(100_000, 100_000), 1_000_000);
        assert_eq!(quota_per_second(1, 1_000_000), 10_000);
    }

    #[test]
    fn sets_become_bits() {
        assert_eq!(bits("0-2,9"), Some(vec![0b111, 0b10]));
        assert_eq!(bits(""), None);
        assert_eq!(bits("99999"), None);
    }

    #[test]
    fn unified_files_have_properties() {
        let json = r#"{"unified":{"memory.high":"900"}}"#;
        assert_eq!(of(json, true), numbers(&[("MemoryHigh", 900)]));
        let json = r#"{"unified":{"cpu.max":"max 50000"}}"#;
        assert_eq!(
            of(json, true),
            numbers(&[
                ("CPUQuotaPeriodUSec", 50_000),
                ("CPUQuotaPerSecUSec", u64::MAX)
            ])
        );
        assert_eq!(of(r#"{"unified":{"misc.max":"1"}}"#, true), []);
    }

    #[test]
    fn only_allowed_devices_are_listed() {
        let json = r#"{"devices":[{"allow":false,"access":"rwm"},
            {"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]}"#;
        let list = of(json, true);
        assert_eq!(
            list[0],
            (
                "DevicePolicy".to_owned(),
                PropertyValue::Text("strict".to_owned())
            )
        );
        let PropertyValue::Pairs(devices) = &list[1].1 else {
            panic!("{list:?}")
        };
        let has =
            |path: &str, access: &str| devices.contains(&(path.to_owned(), access.to_owned()));
        assert!(has("/dev/char/10:229", "rw"), "{devices:?}");
        assert!(has("/dev/char/1:3", "rwm"), "{devices:?}");
        assert!(has("char-136", "rwm"), "{devices:?}");
        assert!(has("block-*", "m"), "{devices:?}");
        // What is denied after all was allowed has no property; the cgroup's program denies it.
        let json = r#"{"devices":[{"allow":true,"access":"rwm"},
            {"allow":false,"type":"c","major":10,"minor":229,"access":"rw"}]}"#;
        assert_eq!(
            of(json, true),
            [(
                "DevicePolicy".to_owned(),
                PropertyValue::Text("auto".to_owned())
            )]
        );
    }
}
