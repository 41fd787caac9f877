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
        Ok(Self {
            bounding: set("bounding", LinuxCapabilities::bounding)?,
            effective: set("effective", LinuxCapabilities::effective)?,
            permitted: set("permitted", LinuxCapabilities::permitted)?,
            inheritable: set("inheritable", LinuxCapabilities::inheritable)?,
            ambient: set("ambient", LinuxCapabilities::ambient)?,
        })
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
}
