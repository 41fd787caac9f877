//! How much CPU the classes of pods get beside each other when all want more than there is.
//!
//! ```text
//! <cgroup parent>            guaranteed pods, each with its own request
//!     burstable              the sum of the requests of its pods
//!     besteffort             the least that the kernel can give
//! ```
//!
//! The rules are the kubelet's (`pkg/kubelet/cm/qos_container_manager_linux.go`, `setCPUCgroupConfig`). Without them
//! a class would weigh as much as one pod with a request of one CPU, whatever its pods asked for.
//!
//! Deliberately absent where systemd runs the pods: their scopes lie side by side in one slice, each with the weight
//! of its own pod, which shares out the CPU in the same way (see [`supervisor`](super::supervisor)).

use std::collections::HashMap;

use k8s_openapi::api::core::v1::PodSpec;
use oci_spec::runtime::{LinuxCpuBuilder, LinuxResourcesBuilder};
use podling_runtime::cgroup::{self, Cgroup};
use podling_runtime::chain;

use super::context::Context;
use super::images::blocking;
use super::resources::{self, MIN_SHARES, Qos};
use crate::store::Key;

/// The pods that share the machine, and what the kernel was told of their classes.
#[derive(Debug, Default)]
pub struct Tiers {
    /// The class and the CPU request, in thousandths, of each pod that has not come to its end.
    pods: HashMap<Key, (Qos, i64)>,
    /// The last shares that the kernel was told, of burstable pods and of those without requests.
    told: [Option<u64>; 2],
}

impl Tiers {
    /// A pod is there, or has changed.
    pub fn note(&mut self, key: &Key, spec: &PodSpec) {
        // Wrong quantities are told to the user when the plan is made.
        let class = resources::qos(spec).unwrap_or(Qos::BestEffort);
        let needs = resources::pod_needs(spec).unwrap_or_default();
        let request = needs.requests.cpu_millis.unwrap_or(0).max(0);
        self.pods.insert(key.clone(), (class, request));
    }

    /// A pod is gone, or has come to its end.
    pub fn forget(&mut self, key: &Key) {
        self.pods.remove(key);
    }

    /// Tells the kernel what is new.
    pub async fn apply(&mut self, context: &Context) {
        if context.systemd.is_some() {
            return;
        }
        let wanted = self.shares();
        let parent = &context.config.cgroup_parent;
        for (i, class) in [Qos::Burstable, Qos::BestEffort].into_iter().enumerate() {
            // A class that never had a pod has no cgroup.
            let (Some(shares), true) = (wanted[i], wanted[i] != self.told[i]) else {
                continue;
            };
            let (layout, path) = (context.layout.clone(), class.cgroup(parent));
            let told = blocking(move || give(&layout, &path, shares)).await;
            match told {
                Ok(()) => self.told[i] = wanted[i],
                Err(error) => {
                    tracing::warn!(class = class.name(), error, "the CPU share is not set");
                }
            }
        }
    }

    /// The shares of the class of burstable pods, and of those without requests; none while there is no such pod and
    /// never was.
    fn shares(&self) -> [Option<u64>; 2] {
        let of = |class| self.pods.values().filter(move |(of, _)| *of == class);
        let requests = of(Qos::Burstable).map(|(_, millis)| *millis);
        let burstable = resources::shares(requests.fold(0, i64::saturating_add));
        let is_there = |class, i: usize| self.told[i].is_some() || of(class).next().is_some();
        [
            is_there(Qos::Burstable, 0).then_some(burstable),
            is_there(Qos::BestEffort, 1).then_some(MIN_SHARES),
        ]
    }
}

fn give(layout: &cgroup::Layout, path: &std::path::Path, shares: u64) -> Result<(), String> {
    let cpu = LinuxCpuBuilder::default().shares(shares).build();
    let resources = cpu
        .and_then(|cpu| LinuxResourcesBuilder::default().cpu(cpu).build())
        .map_err(|error| chain(&error))?;
    Cgroup::create(layout, path)
        .and_then(|tier| tier.apply(&resources))
        .map_err(|error| chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(tiers: &mut Tiers, name: &str, resources: &str) {
        let text = format!("containers: [{{ name: a, resources: {resources} }}]");
        let spec: PodSpec = serde_saphyr::from_str(&text).expect("a pod spec");
        tiers.note(&Key::pod("default", name), &spec);
    }

    #[test]
    fn burstable_pods_weigh_what_they_ask_for_together_and_the_others_least() {
        let mut tiers = Tiers::default();
        assert_eq!(tiers.shares(), [None, None]);
        note(&mut tiers, "a", "{ requests: { cpu: 250m } }");
        note(&mut tiers, "b", "{ requests: { cpu: 1500m } }");
        note(
            &mut tiers,
            "guaranteed",
            "{ limits: { cpu: 4, memory: 1Gi } }",
        );
        assert_eq!(tiers.shares(), [Some(1792), None]);
        note(&mut tiers, "best", "{}");
        assert_eq!(tiers.shares(), [Some(1792), Some(2)]);
        note(&mut tiers, "b", "{ requests: { cpu: 750m } }");
        assert_eq!(tiers.shares()[0], Some(1024));
        tiers.forget(&Key::pod("default", "a"));
        assert_eq!(tiers.shares()[0], Some(768));
    }

    #[test]
    fn a_class_without_pods_keeps_the_least() {
        let mut tiers = Tiers::default();
        note(&mut tiers, "a", "{ requests: { memory: 1Gi } }");
        assert_eq!(tiers.shares()[0], Some(2));
        tiers.told = [Some(1024), None];
        tiers.forget(&Key::pod("default", "a"));
        assert_eq!(tiers.shares(), [Some(2), None]);
    }

    #[test]
    fn a_pod_s_own_request_counts_in_place_of_its_containers() {
        let mut tiers = Tiers::default();
        let text = "{ resources: { requests: { cpu: 2 } }, containers: [{ name: a, resources: { requests: { cpu: 500m } } }] }";
        let spec: PodSpec = serde_saphyr::from_str(text).expect("a pod spec");
        tiers.note(&Key::pod("default", "a"), &spec);
        assert_eq!(tiers.shares()[0], Some(2048));
    }
}
