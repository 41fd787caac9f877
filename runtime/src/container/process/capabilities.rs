//! The five capability sets of `process.capabilities` (capabilities(7)).

use std::str::FromStr;

use oci_spec::runtime::{Capabilities, LinuxCapabilities};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::super::error::{At, Failure, Result, Step};
use super::{Done, invalid};

/// The sets, as bits.
#[derive(Debug)]
pub(super) struct CapabilityPlan {
    bounding: CapabilitySet,
    effective: CapabilitySet,
    permitted: CapabilitySet,
    inheritable: CapabilitySet,
    ambient: CapabilitySet,
}

impl CapabilityPlan {
    /// No capabilities at all when the spec has none.
    pub(super) fn new(sets: Option<&LinuxCapabilities>) -> Result<Self> {
        let set = |name, of: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
            bits(name, sets.and_then(|sets| of(sets).as_ref()))
        };
        let bounding = set("bounding", LinuxCapabilities::bounding)?;
        let inheritable = set("inheritable", LinuxCapabilities::inheritable)?;
        let outside = inheritable - bounding;
        if !outside.is_empty() {
            // As the kernel says to one that tries (capset(2)).
            return Err(invalid(
                "process.capabilities.inheritable",
                &format!(
                    "{} is not in bounding: Operation not permitted",
                    names(outside)
                ),
            ));
        }
        Ok(Self {
            bounding,
            effective: set("effective", LinuxCapabilities::effective)?,
            permitted: set("permitted", LinuxCapabilities::permitted)?,
            inheritable,
            ambient: set("ambient", LinuxCapabilities::ambient)?,
        })
    }

    /// Leaves out what cannot be given, and says so (runtime-spec config.md#linux-process): `own` is what this process
    /// may give, and a set is limited by others (capabilities(7), "Programmatically adjusting capability sets").
    pub(super) fn limit(&mut self, own: CapabilitySet) {
        let limit = |name: &str, set: &mut CapabilitySet, limit: CapabilitySet, why: &str| {
            let lost = *set - limit;
            *set &= limit;
            if !lost.is_empty() {
                tracing::warn!(
                    "process.capabilities.{name}: {} left out: {why}",
                    names(lost)
                );
            }
        };
        let not_ours = "this process does not have it";
        limit("bounding", &mut self.bounding, own, not_ours);
        limit("permitted", &mut self.permitted, own, not_ours);
        limit(
            "effective",
            &mut self.effective,
            self.permitted,
            "it is not permitted",
        );
        limit(
            "inheritable",
            &mut self.inheritable,
            own & self.bounding,
            "it is not in the bounding set",
        );
        limit(
            "ambient",
            &mut self.ambient,
            self.permitted & self.inheritable,
            "it is not both permitted and inheritable",
        );
    }

    pub(super) fn drop_bounding(&self) -> Done {
        for number in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            if self.bounding.contains(capability) {
                continue;
            }
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                Ok(()) => {}
                // Past the kernel's last capability.
                Err(rustix::io::Errno::INVAL) => break,
                Err(error) => {
                    return Err(Failure::new(
                        Step::DropBounding,
                        number.to_string(),
                        &error.into(),
                    ));
                }
            }
        }
        Ok(())
    }

    pub(super) fn set(&self, extra: CapabilitySet) -> Done {
        rustix::thread::set_capabilities(
            None,
            CapabilitySets {
                effective: self.effective | extra,
                permitted: self.permitted | extra,
                inheritable: self.inheritable,
            },
        )
        .at(Step::SetCapabilities, "")
    }

    pub(super) fn raise_ambient(&self) -> Done {
        rustix::thread::clear_ambient_capability_set().at(Step::SetAmbient, "")?;
        for capability in self.ambient.iter() {
            rustix::thread::configure_capability_in_ambient_set(capability, true)
                .at(Step::SetAmbient, format!("{capability:?}"))?;
        }
        Ok(())
    }
}

/// `CAP_CHOWN, CAP_KILL`
fn names(set: CapabilitySet) -> String {
    let mut known: Vec<caps::Capability> = caps::all().into_iter().collect();
    known.sort_unstable_by_key(caps::Capability::index);
    let names: Vec<String> = known
        .iter()
        .filter(|c| set.bits() & c.bitmask() != 0)
        .map(caps::Capability::to_string)
        .collect();
    names.join(", ")
}

fn bits(set: &str, capabilities: Option<&Capabilities>) -> Result<CapabilitySet> {
    let mut bits = CapabilitySet::empty();
    for capability in capabilities.into_iter().flatten() {
        let name = format!("CAP_{capability}");
        let known = caps::Capability::from_str(&name).map_err(|_| {
            invalid(
                &format!("process.capabilities.{set}"),
                &format!("unknown capability {name}"),
            )
        })?;
        bits |= CapabilitySet::from_bits_retain(known.bitmask());
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_of_the_spec_is_known() {
        let all: Capabilities = caps::all()
            .iter()
            .filter_map(|c| c.to_string().strip_prefix("CAP_")?.parse().ok())
            .collect();
        assert_eq!(all.len(), caps::all().len());
        let set = bits("bounding", Some(&all)).expect("known");
        assert_eq!(set.bits(), (1 << 41) - 1);
    }

    fn plan(json: serde_json::Value) -> CapabilityPlan {
        let sets: LinuxCapabilities = serde_json::from_value(json).expect("sets");
        CapabilityPlan::new(Some(&sets)).expect("known")
    }

    #[test]
    fn what_cannot_be_given_is_left_out() {
        let mut planned = plan(serde_json::json!({
            "bounding": ["CAP_CHOWN", "CAP_SYS_RESOURCE"],
            "permitted": ["CAP_CHOWN", "CAP_SYS_RESOURCE"],
            "effective": ["CAP_CHOWN", "CAP_SYS_RESOURCE", "CAP_KILL"],
            "inheritable": ["CAP_CHOWN", "CAP_SYS_RESOURCE"],
            "ambient": ["CAP_CHOWN", "CAP_KILL"],
        }));
        planned.limit(CapabilitySet::all() - CapabilitySet::SYS_RESOURCE);
        let chown = CapabilitySet::CHOWN;
        assert_eq!(
            [
                planned.bounding,
                planned.permitted,
                planned.effective,
                planned.inheritable,
                planned.ambient
            ],
            [chown; 5]
        );
    }

    #[test]
    fn sets_that_contradict_each_other_are_refused() {
        let json = serde_json::json!({"bounding": ["CAP_CHOWN"], "inheritable": ["CAP_KILL"]});
        let sets: LinuxCapabilities = serde_json::from_value(json).expect("sets");
        let error = CapabilityPlan::new(Some(&sets)).expect_err("refused");
        assert!(error.to_string().contains("CAP_KILL"), "{error}");
    }

    #[test]
    fn an_ambient_capability_must_be_inheritable() {
        let mut planned = plan(serde_json::json!({
            "bounding": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"]}));
        planned.limit(CapabilitySet::all());
        assert!(planned.ambient.is_empty());
        assert_eq!(
            names(CapabilitySet::CHOWN | CapabilitySet::KILL),
            "CAP_CHOWN, CAP_KILL"
        );
    }
}
