//! `process.rlimits` (getrlimit(2)).

use oci_spec::runtime::Process;

use super::super::error::{Failure, Result, Step};
use super::{Done, invalid};
use crate::sys;

/// The limits to set, in the spec's order.
#[derive(Debug)]
pub(super) struct Limits(Vec<Rlimit>);

#[derive(Debug)]
struct Rlimit {
    name: String,
    resource: u32,
    soft: u64,
    hard: u64,
}

/// More than the numbers of descriptors that are in use until the start.
const STARTS_WITH_DESCRIPTORS: u64 = 8;

/// `RLIMIT_*` by name, from asm-generic/resource.h.
const RLIMITS: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

impl Limits {
    /// Refuses a limit that is there twice (runtime-spec config.md#posix-process).
    pub(super) fn new(process: &Process) -> Result<Self> {
        let mut seen = 0_u32;
        let mut planned = Vec::new();
        for (index, limit) in process.rlimits().iter().flatten().enumerate() {
            let refused =
                |reason: String| invalid(&format!("process.rlimits[{index}].type"), &reason);
            let name = limit.typ().to_string();
            let resource = RLIMITS
                .iter()
                .position(|&known| known == name)
                .ok_or_else(|| refused(format!("unknown limit {name}")))?;
            if seen & (1 << resource) != 0 {
                return Err(refused(format!("{name} is there twice")));
            }
            if limit.soft() > limit.hard() {
                return Err(invalid(
                    &format!("process.rlimits[{index}].soft"),
                    &format!("{name}: must not be above the hard limit"),
                ));
            }
            seen |= 1 << resource;
            planned.push(Rlimit {
                name,
                resource: resource as u32,
                soft: limit.soft(),
                hard: limit.hard(),
            });
        }
        Ok(Self(planned))
    }

    /// Those under which the process can still hear that it is to start.
    pub(super) fn set(&self) -> Done {
        self.set_those(|limit| !limit.is_tight())
    }

    /// The others.
    pub(super) fn set_tight(&self) -> Done {
        self.set_those(Rlimit::is_tight)
    }

    /// True when [`Limits::set_tight`] has something to set.
    pub(super) fn any_tight(&self) -> bool {
        self.0.iter().any(Rlimit::is_tight)
    }

    fn set_those(&self, chosen: impl Fn(&Rlimit) -> bool) -> Done {
        for limit in self.0.iter().filter(|limit| chosen(limit)) {
            sys::process::set_rlimit(limit.resource, limit.soft, limit.hard).map_err(|error| {
                let hint = if error.raw_os_error() == Some(libc::EPERM) {
                    " (raising a hard limit needs CAP_SYS_RESOURCE)"
                } else {
                    ""
                };
                let subject = format!("{} to {}:{}{hint}", limit.name, limit.soft, limit.hard);
                Failure::new(Step::SetRlimit, subject, &error)
            })?;
        }
        Ok(())
    }
}

impl Rlimit {
    fn is_tight(&self) -> bool {
        self.name == "RLIMIT_NOFILE" && self.soft <= STARTS_WITH_DESCRIPTORS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType, ProcessBuilder};

    fn limit(typ: PosixRlimitType) -> PosixRlimit {
        PosixRlimitBuilder::default()
            .typ(typ)
            .hard(10_u64)
            .soft(10_u64)
            .build()
            .expect("builds")
    }

    fn limits(list: Vec<PosixRlimit>) -> Result<Limits> {
        let process = ProcessBuilder::default()
            .cwd("/")
            .args(["x".to_owned()])
            .rlimits(list)
            .build()
            .expect("builds");
        Limits::new(&process)
    }

    #[test]
    fn every_limit_of_the_spec_is_known() {
        let all = RLIMITS.map(|name| limit(name.parse().expect("of the spec")));
        let planned = limits(all.to_vec()).expect("known");
        for (number, limit) in planned.0.iter().enumerate() {
            assert_eq!(
                (limit.resource as usize, limit.name.as_str()),
                (number, RLIMITS[number])
            );
        }
    }

    #[test]
    fn a_soft_limit_above_the_hard_one_is_refused() {
        let upside_down = PosixRlimitBuilder::default()
            .typ(PosixRlimitType::RlimitCore)
            .hard(10_u64)
            .soft(11_u64)
            .build()
            .expect("builds");
        let error = limits(vec![upside_down]).expect_err("refused").to_string();
        assert!(
            error.starts_with("process.rlimits[0].soft: RLIMIT_CORE"),
            "{error}"
        );
    }

    #[test]
    fn a_limit_given_twice_is_refused() {
        let twice = limit(PosixRlimitType::RlimitNofile);
        let error = limits(vec![twice, twice]).expect_err("refused");
        assert_eq!(
            error.to_string(),
            "process.rlimits[1].type: RLIMIT_NOFILE is there twice"
        );
    }
}
