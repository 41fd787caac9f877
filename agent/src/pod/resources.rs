//! CPU and memory: what a pod asks for, which class it belongs to, and what the kernel is told.
//!
//! The rules are the kubelet's: `pkg/apis/core/v1/helper/qos`, `pkg/kubelet/qos/policy.go`,
//! `pkg/kubelet/cm/helpers_linux.go` and `k8s.io/component-helpers/resource`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
};

use crate::manifest::quantity::{self, QuantityError};

/// The period of CPU quotas, in microseconds.
const QUOTA_PERIOD_MICROS: u64 = 100_000;
/// The kernel takes no smaller quota (`min_cfs_quota_period`), in microseconds.
const MIN_QUOTA_MICROS: i64 = 1000;
/// The smallest share that the kernel takes.
pub(super) const MIN_SHARES: u64 = 2;

/// What the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Thousandths of a CPU.
    pub cpu_millis: i64,
    /// Bytes of memory.
    pub memory_bytes: i64,
    /// The machine has swap, which containers with a memory limit must not use.
    pub swap: bool,
}

impl Capacity {
    /// What this machine has.
    #[must_use]
    pub fn of_machine() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let info = rustix::system::sysinfo();
        let unit = u64::from(info.mem_unit.max(1));
        let total = info.totalram.saturating_mul(unit);
        Self {
            cpu_millis: i64::try_from(cpus).unwrap_or(1) * 1000,
            memory_bytes: i64::try_from(total).unwrap_or(i64::MAX),
            swap: info.totalswap > 0,
        }
    }
}

/// A container's or pod's CPU and memory; none is "not said".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amounts {
    /// Thousandths of a CPU.
    pub cpu_millis: Option<i64>,
    /// Bytes of memory.
    pub memory_bytes: Option<i64>,
}

/// Requests and limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// What it is sure to get.
    pub requests: Amounts,
    /// What it never gets more of.
    pub limits: Amounts,
}

/// Quality of service: who suffers first when memory runs out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qos {
    /// Every container has limits equal to its requests.
    Guaranteed,
    /// Something in between.
    Burstable,
    /// Nothing is said.
    BestEffort,
}

impl Qos {
    /// As in `status.qosClass`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    /// The cgroup of all pods of this class.
    #[must_use]
    pub fn cgroup(self, parent: &Path) -> PathBuf {
        match self {
            Self::Guaranteed => parent.to_owned(),
            Self::Burstable => parent.join("burstable"),
            Self::BestEffort => parent.join("besteffort"),
        }
    }

    /// A pod's cgroup.
    #[must_use]
    pub fn pod_cgroup(self, parent: &Path, uid: &str) -> PathBuf {
        self.cgroup(parent).join(format!("pod{uid}"))
    }
}

fn amounts(map: Option<&BTreeMap<String, Quantity>>) -> Result<Amounts, QuantityError> {
    let get = |name: &str| map.and_then(|map| map.get(name));
    Ok(Amounts {
        cpu_millis: get("cpu").map(|q| quantity::millis(&q.0)).transpose()?,
        memory_bytes: get("memory").map(|q| quantity::units(&q.0)).transpose()?,
    })
}

/// What a container asks for; a limit without a request is its own request.
///
/// # Errors
/// When an amount is not a quantity.
pub fn needs(resources: Option<&ResourceRequirements>) -> Result<Needs, QuantityError> {
    let Some(resources) = resources else {
        return Ok(Needs::default());
    };
    let limits = amounts(resources.limits.as_ref())?;
    let mut requests = amounts(resources.requests.as_ref())?;
    requests.cpu_millis = requests.cpu_millis.or(limits.cpu_millis);
    requests.memory_bytes = requests.memory_bytes.or(limits.memory_bytes);
    Ok(Needs { requests, limits })
}

fn all_containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
}

/// True for an init container that goes on beside the others.
#[must_use]
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The pod's quality of service.
///
/// # Errors
/// When an amount is not a quantity.
pub fn qos(spec: &PodSpec) -> Result<Qos, QuantityError> {
    let mut guaranteed = true;
    let mut best_effort = true;
    let own = spec.resources.as_ref();
    let parts: Vec<Option<&ResourceRequirements>> = if own.is_some() {
        vec![own]
    } else {
        all_containers(spec).map(|c| c.resources.as_ref()).collect()
    };
    for part in parts {
        let needs = needs(part)?;
        // Zero counts as nothing said.
        let said = |amount: Option<i64>| amount.filter(|amount| *amount > 0);
        let pairs = [
            (
                said(needs.requests.cpu_millis),
                said(needs.limits.cpu_millis),
            ),
            (
                said(needs.requests.memory_bytes),
                said(needs.limits.memory_bytes),
            ),
        ];
        for (request, limit) in pairs {
            best_effort &= request.is_none() && limit.is_none();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    Ok(match (best_effort, guaranteed) {
        (true, _) => Qos::BestEffort,
        (false, true) => Qos::Guaranteed,
        (false, false) => Qos::Burstable,
    })
}

fn plus(a: Amounts, b: Amounts) -> Amounts {
    let add = |a: Option<i64>, b: Option<i64>| match (a, b) {
        (None, None) => None,
        (a, b) => Some(a.unwrap_or(0).saturating_add(b.unwrap_or(0))),
    };
    Amounts {
        cpu_millis: add(a.cpu_millis, b.cpu_millis),
        memory_bytes: add(a.memory_bytes, b.memory_bytes),
    }
}

fn greater(a: Amounts, b: Amounts) -> Amounts {
    Amounts {
        cpu_millis: a.cpu_millis.max(b.cpu_millis),
        memory_bytes: a.memory_bytes.max(b.memory_bytes),
    }
}

/// What the pod as a whole asks for: the greater of what runs together in the end and of each init container with the
/// sidecars started before it.
///
/// # Errors
/// When an amount is not a quantity.
pub fn pod_needs(spec: &PodSpec) -> Result<Needs, QuantityError> {
    if spec.resources.is_some() {
        return needs(spec.resources.as_ref());
    }
    let mut sidecars = Needs::default();
    let mut init = Needs::default();
    for container in spec.init_containers.iter().flatten() {
        let own = needs(container.resources.as_ref())?;
        let together = Needs {
            requests: plus(sidecars.requests, own.requests),
            limits: plus(sidecars.limits, own.limits),
        };
        init = Needs {
            requests: greater(init.requests, together.requests),
            limits: greater(init.limits, together.limits),
        };
        if is_sidecar(container) {
            sidecars = together;
        }
    }
    let mut sum = sidecars;
    for container in &spec.containers {
        let own = needs(container.resources.as_ref())?;
        sum.requests = plus(sum.requests, own.requests);
        sum.limits = plus(sum.limits, own.limits);
    }
    Ok(Needs {
        requests: greater(sum.requests, init.requests),
        limits: greater(sum.limits, init.limits),
    })
}

/// `cpu.shares` for an amount of CPU.
#[must_use]
pub fn shares(cpu_millis: i64) -> u64 {
    let millis = u64::try_from(cpu_millis).unwrap_or(0);
    (millis.saturating_mul(1024) / 1000).clamp(MIN_SHARES, 262_144)
}

/// The CPU quota for a limit, in microseconds of each 100 ms.
#[must_use]
pub fn quota_micros(cpu_millis: i64) -> i64 {
    cpu_millis.saturating_mul(100).max(MIN_QUOTA_MICROS)
}

fn linux(
    cpu_request: Option<i64>,
    cpu_limit: Option<i64>,
    memory_limit: Option<i64>,
    pids: Option<i64>,
    capacity: &Capacity,
) -> Result<LinuxResources, OciSpecError> {
    let positive = |amount: Option<i64>| amount.filter(|amount| *amount > 0);
    let mut cpu = LinuxCpuBuilder::default().shares(shares(cpu_request.unwrap_or(0)));
    if let Some(limit) = positive(cpu_limit) {
        cpu = cpu.quota(quota_micros(limit)).period(QUOTA_PERIOD_MICROS);
    }
    let mut resources = LinuxResourcesBuilder::default().cpu(cpu.build()?);
    if let Some(limit) = positive(memory_limit) {
        let mut memory = LinuxMemoryBuilder::default().limit(limit);
        if capacity.swap {
            // OCI's swap is memory and swap together: none beyond the limit.
            memory = memory.swap(limit);
        }
        resources = resources.memory(memory.build()?);
    }
    if let Some(limit) = positive(pids) {
        resources = resources.pids(LinuxPidsBuilder::default().limit(limit).build()?);
    }
    resources.build()
}

/// What the kernel is told of a container.
///
/// # Errors
/// When the OCI builder refuses, which it has no reason to.
pub fn container_resources(
    needs: &Needs,
    capacity: &Capacity,
) -> Result<LinuxResources, OciSpecError> {
    linux(
        needs.requests.cpu_millis,
        needs.limits.cpu_millis,
        needs.limits.memory_bytes,
        None,
        capacity,
    )
}

/// What the kernel is told of a pod: its whole CPU share; a quota or memory limit only when each container has one,
/// since otherwise one of them may use what the machine has.
///
/// # Errors
/// When an amount is not a quantity.
pub fn pod_resources(
    spec: &PodSpec,
    pids: i64,
    capacity: &Capacity,
) -> Result<LinuxResources, PodResourcesError> {
    let needs = pod_needs(spec)?;
    let class = qos(spec)?;
    let (mut cpu_limited, mut memory_limited) = (true, true);
    if spec.resources.is_none() {
        for container in all_containers(spec) {
            let every = self::needs(container.resources.as_ref())?;
            cpu_limited &= every.limits.cpu_millis.is_some_and(|limit| limit > 0);
            memory_limited &= every.limits.memory_bytes.is_some_and(|limit| limit > 0);
        }
    }
    let request = match class {
        Qos::BestEffort => None,
        Qos::Guaranteed | Qos::Burstable => needs.requests.cpu_millis,
    };
    Ok(linux(
        request,
        needs.limits.cpu_millis.filter(|_| cpu_limited),
        needs.limits.memory_bytes.filter(|_| memory_limited),
        Some(pids),
        capacity,
    )?)
}

/// Pod resources that cannot be told to the kernel.
#[derive(Debug, thiserror::Error)]
pub enum PodResourcesError {
    /// An amount is not a quantity.
    #[error(transparent)]
    Quantity(#[from] QuantityError),
    /// The OCI object cannot be built.
    #[error("build the pod's resources")]
    Build(#[from] OciSpecError),
}

/// How likely the OOM killer takes a container's processes, -1000 to 1000.
///
/// # Errors
/// When an amount is not a quantity.
pub fn oom_score_adj(
    spec: &PodSpec,
    container: &Container,
    capacity: &Capacity,
) -> Result<i32, QuantityError> {
    let critical = matches!(
        spec.priority_class_name.as_deref(),
        Some("system-node-critical")
    );
    let class = qos(spec)?;
    if critical || class == Qos::Guaranteed {
        return Ok(-997);
    }
    if class == Qos::BestEffort {
        return Ok(1000);
    }
    let of = |container: &Container| -> Result<i32, QuantityError> {
        let request = needs(container.resources.as_ref())?
            .requests
            .memory_bytes
            .unwrap_or(0);
        let score = 1000 - request.saturating_mul(1000) / capacity.memory_bytes.max(1);
        Ok(i32::try_from(score.clamp(3, 999)).unwrap_or(999))
    };
    let own = of(container)?;
    if !is_sidecar(container) {
        return Ok(own);
    }
    // A sidecar is not killed before the container that it serves.
    let mut lowest = own;
    let mut smallest: Option<i64> = None;
    for main in &spec.containers {
        let request = needs(main.resources.as_ref())?
            .requests
            .memory_bytes
            .unwrap_or(0);
        if smallest.is_none_or(|smallest| request < smallest) {
            smallest = Some(request);
            lowest = own.min(of(main)?);
        }
    }
    Ok(lowest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: Capacity = Capacity {
        cpu_millis: 4000,
        memory_bytes: 4 << 30,
        swap: false,
    };

    fn spec(text: &str) -> PodSpec {
        serde_saphyr::from_str(text).expect("a pod spec")
    }

    fn one(resources: &str) -> PodSpec {
        spec(&format!(
            "containers: [{{ name: a, resources: {resources} }}]"
        ))
    }

    #[test]
    fn qos_classes() {
        for (resources, expected) in [
            ("{}", Qos::BestEffort),
            ("{ requests: { cpu: 0 } }", Qos::BestEffort),
            ("{ requests: { cpu: 1 } }", Qos::Burstable),
            ("{ limits: { cpu: 1 } }", Qos::Burstable),
            ("{ limits: { cpu: 1, memory: 1Gi } }", Qos::Guaranteed),
            (
                "{ limits: { cpu: 1, memory: 1Gi }, requests: { cpu: 1000m, memory: 1024Mi } }",
                Qos::Guaranteed,
            ),
            (
                "{ limits: { cpu: 1, memory: 1Gi }, requests: { cpu: 500m } }",
                Qos::Burstable,
            ),
        ] {
            assert_eq!(qos(&one(resources)), Ok(expected), "{resources}");
        }
        let mixed = spec(
            "{ containers: [{ name: a, resources: { limits: { cpu: 1, memory: 1Gi } } }, { name: b }] }",
        );
        assert_eq!(qos(&mixed), Ok(Qos::Burstable));
    }

    #[test]
    fn init_containers_and_sidecars_count_when_they_are_the_most() {
        let spec = spec(
            "initContainers:\n\
             - { name: side, restartPolicy: Always, resources: { requests: { cpu: 100m } } }\n\
             - { name: init, resources: { requests: { cpu: 900m, memory: 10Mi } } }\n\
             containers:\n\
             - { name: a, resources: { requests: { cpu: 200m, memory: 50Mi } } }\n\
             - { name: b, resources: { requests: { cpu: 300m } } }\n",
        );
        let needs = pod_needs(&spec).expect("needs");
        assert_eq!(needs.requests.cpu_millis, Some(1000));
        assert_eq!(needs.requests.memory_bytes, Some(50 << 20));
        assert_eq!(needs.limits, Amounts::default());
    }

    #[test]
    fn shares_and_quota() {
        assert_eq!(shares(0), 2);
        assert_eq!(shares(1), 2);
        assert_eq!(shares(100), 102);
        assert_eq!(shares(1000), 1024);
        assert_eq!(quota_micros(5), 1000);
        assert_eq!(quota_micros(250), 25_000);
    }

    #[test]
    fn a_limit_without_a_request_is_the_request() {
        let spec = one("{ limits: { cpu: 500m } }");
        let resources = container_resources(
            &needs(spec.containers[0].resources.as_ref()).expect("needs"),
            &CAPACITY,
        )
        .expect("resources");
        let cpu = resources.cpu().as_ref().expect("cpu");
        assert_eq!(cpu.shares(), Some(512));
        assert_eq!(cpu.quota(), Some(50_000));
        assert!(resources.memory().is_none());
    }

    #[test]
    fn a_pod_is_limited_only_when_all_its_containers_are() {
        let spec = spec(
            "{ containers: [{ name: a, resources: { limits: { cpu: 1, memory: 1Gi } } },\
             { name: b, resources: { limits: { cpu: 1 } } }] }",
        );
        let resources = pod_resources(&spec, 100, &CAPACITY).expect("resources");
        assert_eq!(
            resources.cpu().as_ref().and_then(|cpu| cpu.quota()),
            Some(200_000)
        );
        assert!(resources.memory().is_none());
        assert_eq!(
            resources
                .pids()
                .as_ref()
                .map(oci_spec::runtime::LinuxPids::limit),
            Some(100)
        );
    }

    #[test]
    fn oom_scores() {
        let score = |text: &str| {
            let spec = one(text);
            oom_score_adj(&spec, &spec.containers[0], &CAPACITY).expect("score")
        };
        assert_eq!(score("{}"), 1000);
        assert_eq!(score("{ limits: { cpu: 1, memory: 1Gi } }"), -997);
        assert_eq!(score("{ requests: { memory: 1Gi } }"), 750);
        assert_eq!(score("{ requests: { memory: 1 } }"), 999);
        assert_eq!(score("{ requests: { memory: 8Gi } }"), 3);
        let spec = spec(
            "initContainers:\n\
             - { name: side, restartPolicy: Always, resources: { requests: { memory: 1Mi } } }\n\
             containers:\n\
             - { name: a, resources: { requests: { memory: 2Gi } } }\n",
        );
        let sidecar = &spec.init_containers.as_ref().expect("init")[0];
        assert_eq!(oom_score_adj(&spec, sidecar, &CAPACITY), Ok(500));
    }

    #[test]
    fn cgroup_paths() {
        let parent = Path::new("/podling");
        assert_eq!(
            Qos::Guaranteed.pod_cgroup(parent, "1"),
            Path::new("/podling/pod1")
        );
        assert_eq!(
            Qos::BestEffort.pod_cgroup(parent, "1"),
            Path::new("/podling/besteffort/pod1")
        );
    }
}
