//! `process.scheduler`, `process.ioPriority` and `process.execCPUAffinity`; `linux.memoryPolicy` and
//! `linux.personality`, which hold for every process of the container.
//!
//! Nothing is called for what the spec does not ask for.

use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, Linux, LinuxIOPriority, LinuxMemoryPolicy,
    LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy, MemoryPolicyFlagType,
    MemoryPolicyModeType, Process, Scheduler,
};

use super::super::error::{At, Error, Failure, Result, Step};
use super::number_list::{self, Bits};
use super::{Done, invalid};
use crate::sys;
use crate::sys::schedule::SchedulerAttributes;

/// What is asked of the kernel for this process.
#[derive(Debug, Default)]
pub(super) struct Scheduling {
    scheduler: Option<SchedulerAttributes>,
    io_priority: Option<(u8, u8)>,
    memory_policy: Option<(i32, Bits)>,
    personality: Option<u64>,
}

impl Scheduling {
    pub(super) fn new(process: &Process, linux: Option<&Linux>) -> Result<Self> {
        Ok(Self {
            scheduler: process.scheduler().as_ref().map(scheduler).transpose()?,
            io_priority: process
                .io_priority()
                .as_ref()
                .map(io_priority)
                .transpose()?,
            memory_policy: linux
                .and_then(|l| l.memory_policy().as_ref())
                .map(memory_policy)
                .transpose()?,
            personality: linux.map(personality).transpose()?.flatten(),
        })
    }

    /// With the privileges that real-time classes and negative nice values take.
    pub(super) fn set(&self) -> Done {
        if let Some(personality) = self.personality {
            sys::process::set_personality(personality).at(Step::SetPersonality, "")?;
        }
        if let Some((mode, nodes)) = &self.memory_policy {
            sys::schedule::set_memory_policy(*mode, nodes).at(Step::SetMemoryPolicy, "")?;
        }
        if let Some((class, priority)) = self.io_priority {
            sys::schedule::set_io_priority(class, priority)
                .map_err(|e| hinted(Step::SetIoPriority, e))?;
        }
        if let Some(scheduler) = &self.scheduler {
            sys::schedule::set_scheduler(scheduler).map_err(|e| match is_real_time(scheduler) {
                true => real_time_hinted(e),
                false => hinted(Step::SetScheduler, e),
            })?;
        }
        Ok(())
    }
}

fn hinted(step: Step, error: std::io::Error) -> Failure {
    let subject = match error.raw_os_error() {
        Some(libc::EPERM) => "(it needs CAP_SYS_NICE)",
        _ => "",
    };
    Failure::new(step, subject, &error)
}

/// sched(7), "Real-time group scheduling": on cgroup version 1 a group runs no real-time process before it is given time.
fn real_time_hinted(error: std::io::Error) -> Failure {
    let subject = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "(it needs CAP_SYS_NICE and, on cgroup version 1 with CONFIG_RT_GROUP_SCHED, linux.resources.cpu.realtimeRuntime)"
        }
        _ => "",
    };
    Failure::new(Step::SetScheduler, subject, &error)
}

fn is_real_time(asked: &SchedulerAttributes) -> bool {
    [libc::SCHED_FIFO, libc::SCHED_RR].contains(&asked.policy.cast_signed())
}

/// sched(7). What the policy does not use is refused, not ignored.
fn scheduler(asked: &Scheduler) -> Result<SchedulerAttributes> {
    let refused =
        |field: &str, reason: &str| Err(invalid(&format!("process.scheduler.{field}"), reason));
    let policy = match asked.policy() {
        LinuxSchedulerPolicy::SchedOther => libc::SCHED_OTHER,
        LinuxSchedulerPolicy::SchedFifo => libc::SCHED_FIFO,
        LinuxSchedulerPolicy::SchedRr => libc::SCHED_RR,
        LinuxSchedulerPolicy::SchedBatch => libc::SCHED_BATCH,
        LinuxSchedulerPolicy::SchedIdle => libc::SCHED_IDLE,
        LinuxSchedulerPolicy::SchedDeadline => libc::SCHED_DEADLINE,
        LinuxSchedulerPolicy::SchedIso => {
            return Err(Error::Unsupported {
                field: "process.scheduler.policy".to_owned(),
                reason: "SCHED_ISO is a reserved name that no kernel has".to_owned(),
            });
        }
    };
    let nice = asked.nice().unwrap_or(0);
    let priority = asked.priority().unwrap_or(0);
    let real_time = matches!(policy, libc::SCHED_FIFO | libc::SCHED_RR);
    if nice != 0 && !matches!(policy, libc::SCHED_OTHER | libc::SCHED_BATCH) {
        return refused("nice", "is for SCHED_OTHER and SCHED_BATCH");
    }
    if !(-20..=19).contains(&nice) {
        return refused("nice", "must be from -20 to 19");
    }
    if real_time && !(1..=99).contains(&priority) {
        return refused("priority", "must be from 1 to 99");
    }
    if !real_time && priority != 0 {
        return refused("priority", "is for SCHED_FIFO and SCHED_RR");
    }
    let times = [asked.runtime(), asked.deadline(), asked.period()].map(|t| t.unwrap_or(0));
    for (field, time) in ["runtime", "deadline", "period"].into_iter().zip(times) {
        if time != 0 && policy != libc::SCHED_DEADLINE {
            return refused(field, "is for SCHED_DEADLINE");
        }
    }
    let [runtime, deadline, period] = times;
    if policy == libc::SCHED_DEADLINE {
        check_deadline(asked, runtime, deadline, period)?;
    }
    Ok(SchedulerAttributes {
        policy: policy.cast_unsigned(),
        flags: scheduler_flags(asked),
        nice,
        priority: priority.cast_unsigned(),
        runtime,
        deadline,
        period,
    })
}

/// The rules of sched_setattr(2) and of the kernel's `__checkparam_dl`, in nanoseconds. The words are crun's.
fn check_deadline(asked: &Scheduler, runtime: u64, deadline: u64, period: u64) -> Result<()> {
    /// The kernel's `1 << DL_SCALE`.
    const RUNTIME_MIN_NS: u64 = 1024;
    /// The highest bit is for signs.
    const RUNTIME_MAX_NS: u64 = i64::MAX.cast_unsigned();
    let refused = |field: &str, reason: &str| {
        let reason = format!("sched_setattr: `SCHED_DEADLINE` {reason}");
        Err(invalid(&format!("process.scheduler.{field}"), &reason))
    };
    for (field, time) in [("runtime", asked.runtime()), ("deadline", asked.deadline())] {
        if time.is_none() {
            return refused(field, &format!("requires `{field}`"));
        }
    }
    if runtime == 0 {
        return refused("runtime", "runtime must be greater than 0");
    }
    if !(RUNTIME_MIN_NS..=RUNTIME_MAX_NS).contains(&runtime) {
        let limits =
            format!("runtime {runtime} must be between {RUNTIME_MIN_NS} and {RUNTIME_MAX_NS}");
        return refused("runtime", &limits);
    }
    if runtime > deadline {
        return refused(
            "runtime",
            &format!("runtime {runtime} must be <= deadline {deadline}"),
        );
    }
    if period != 0 && deadline > period {
        return refused(
            "deadline",
            &format!("deadline {deadline} must be <= period {period}"),
        );
    }
    Ok(())
}

/// `SCHED_FLAG_*` of linux/sched.h.
fn scheduler_flags(asked: &Scheduler) -> u64 {
    asked
        .flags()
        .iter()
        .flatten()
        .map(|flag| match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
            LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
        })
        .fold(0, |all, flag: u64| all | flag)
}

/// Class and priority: `IOPRIO_CLASS_*` of linux/ioprio.h.
fn io_priority(asked: &LinuxIOPriority) -> Result<(u8, u8)> {
    let class = match asked.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u8::try_from(asked.priority()) {
        Ok(priority @ 0..=7) => Ok((class, priority)),
        _ => Err(invalid(
            "process.ioPriority.priority",
            "must be from 0 to 7",
        )),
    }
}

/// Mode with flags, and nodes: `MPOL_*` of linux/mempolicy.h.
fn memory_policy(asked: &LinuxMemoryPolicy) -> Result<(i32, Bits)> {
    use MemoryPolicyModeType as Mode;
    let mode = match asked.mode() {
        Mode::MpolDefault => 0,
        Mode::MpolPreferred => 1,
        Mode::MpolBind => 2,
        Mode::MpolInterleave => 3,
        Mode::MpolLocal => 4,
        Mode::MpolPreferredMany => 5,
        Mode::MpolWeightedInterleave => 6,
    };
    let nodes = number_list::parse(asked.nodes().as_deref().unwrap_or_default())
        .map_err(|reason| invalid("linux.memoryPolicy.nodes", &reason))?;
    let reason = match asked.mode() {
        Mode::MpolDefault | Mode::MpolLocal if !nodes.is_empty() => "must be empty with this mode",
        Mode::MpolBind
        | Mode::MpolInterleave
        | Mode::MpolPreferredMany
        | Mode::MpolWeightedInterleave
            if nodes.is_empty() =>
        {
            "must name a node with this mode"
        }
        _ => "",
    };
    if !reason.is_empty() {
        return Err(invalid("linux.memoryPolicy.nodes", reason));
    }
    let flags = asked
        .flags()
        .iter()
        .flatten()
        .map(|flag| match flag {
            MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
            MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
            MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
        })
        .fold(0, |all, flag: i32| all | flag);
    if flags & (1 << 15) != 0 && flags & (1 << 14) != 0 {
        return Err(invalid(
            "linux.memoryPolicy.flags",
            "MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other",
        ));
    }
    Ok((mode | flags, nodes))
}

/// `PER_LINUX` and `PER_LINUX32` of linux/personality.h.
fn personality(linux: &Linux) -> Result<Option<u64>> {
    let Some(asked) = linux.personality() else {
        return Ok(None);
    };
    if asked.flags().as_ref().is_some_and(|f| !f.is_empty()) {
        return Err(Error::Unsupported {
            field: "linux.personality.flags".to_owned(),
            reason: "the specification defines no flags".to_owned(),
        });
    }
    Ok(Some(match asked.domain() {
        LinuxPersonalityDomain::PerLinux => 0x0000,
        LinuxPersonalityDomain::PerLinux32 => 0x0008,
    }))
}

/// `process.execCPUAffinity`: for exec only, as the specification says.
#[derive(Debug, Default)]
pub(in super::super) struct Affinity {
    before: Option<Bits>,
    after: Option<Bits>,
}

impl Affinity {
    pub(in super::super) fn new(process: &Process) -> Result<Self> {
        let Some(asked) = process.exec_cpu_affinity() else {
            return Ok(Self::default());
        };
        let list = |field: &str, of: fn(&ExecCPUAffinity) -> &Option<String>| {
            let text = of(asked).as_deref().unwrap_or_default();
            let bits = number_list::parse(text)
                .map_err(|reason| invalid(&format!("process.execCPUAffinity.{field}"), &reason))?;
            Ok((!bits.is_empty()).then_some(bits))
        };
        Ok(Self {
            before: list("initial", ExecCPUAffinity::initial)?,
            after: list("final", ExecCPUAffinity::cpu_affinity_final)?,
        })
    }

    /// Runs `f`, which makes the child, on the initial processors: the child inherits them, wherever it is born.
    pub(in super::super) fn around<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(processors) = &self.before else {
            return f();
        };
        let own = sys::schedule::affinity().map_err(Error::Affinity)?;
        sys::schedule::set_affinity(processors).map_err(Error::Affinity)?;
        // It is gone before anybody could look. The words are those by which runc's and youki's tests find theirs.
        tracing::debug!(
            "the initial CPU affinity: 0x{}",
            number_list::mask(processors)
        );
        let result = f();
        sys::schedule::set_affinity(&own).map_err(Error::Affinity)?;
        result
    }

    /// In the child, once it is in its cgroup.
    pub(in super::super) fn settle(&self) -> Done {
        match (&self.after, &self.before) {
            (Some(processors), _) => {
                sys::schedule::set_affinity(processors).at(Step::SetAffinity, "")
            }
            (None, Some(_)) => Ok(()),
            (None, None) => forget_affinity(),
        }
    }
}

/// As many processors as a kernel may have (CONFIG_NR_CPUS).
const EVERY_PROCESSOR: [u64; 128] = [u64::MAX; 128];

/// In the child, once it is in its cgroup: whatever processors the caller was bound to (by its service's `CPUAffinity=`),
/// the container has all that its cpuset allows. runc and crun do the same.
pub(in super::super) fn forget_affinity() -> Done {
    match sys::schedule::set_affinity(&EVERY_PROCESSOR) {
        // A filter around this runtime forbids the call: what it was given is all that there is.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => Ok(()),
        done => done.at(Step::SetAffinity, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Spec;

    fn process(json: serde_json::Value) -> Process {
        let mut all = serde_json::json!({"user": {}, "args": ["x"], "cwd": "/"});
        all.as_object_mut()
            .expect("object")
            .extend(json.as_object().expect("object").clone());
        serde_json::from_value(all).expect("a process")
    }

    fn linux(json: serde_json::Value) -> Linux {
        serde_json::from_value(json).expect("linux")
    }

    fn attributes(json: serde_json::Value) -> Result<SchedulerAttributes> {
        let process = process(serde_json::json!({"scheduler": json}));
        Scheduling::new(&process, None).map(|s| s.scheduler.expect("asked for"))
    }

    #[test]
    fn nothing_is_done_unasked() {
        let spec = Spec::default();
        let planned = Scheduling::new(spec.process().as_ref().expect("one"), spec.linux().as_ref())
            .expect("plans");
        assert!(planned.scheduler.is_none() && planned.io_priority.is_none());
        assert!(planned.memory_policy.is_none() && planned.personality.is_none());
    }

    #[test]
    fn each_policy_takes_what_is_its_own() {
        let deadline = attributes(serde_json::json!({"policy": "SCHED_DEADLINE",
            "runtime": 10_000, "deadline": 20_000, "period": 30_000, "flags": ["SCHED_FLAG_RECLAIM"]}))
        .expect("plans");
        assert_eq!((deadline.policy, deadline.flags), (6, 2));
        assert_eq!(
            (deadline.runtime, deadline.deadline, deadline.period),
            (10_000, 20_000, 30_000)
        );
        let fifo = attributes(serde_json::json!({"policy": "SCHED_FIFO", "priority": 99}));
        assert_eq!(fifo.expect("plans").priority, 99);
        let batch = attributes(serde_json::json!({"policy": "SCHED_BATCH", "nice": -20}));
        assert_eq!(batch.expect("plans").nice, -20);
    }

    #[test]
    fn what_a_policy_has_no_use_for_is_refused_by_field() {
        for (json, field) in [
            (serde_json::json!({"policy": "SCHED_FIFO"}), "priority"),
            (
                serde_json::json!({"policy": "SCHED_RR", "priority": 100}),
                "priority",
            ),
            (
                serde_json::json!({"policy": "SCHED_OTHER", "priority": 1}),
                "priority",
            ),
            (
                serde_json::json!({"policy": "SCHED_FIFO", "priority": 1, "nice": 1}),
                "nice",
            ),
            (
                serde_json::json!({"policy": "SCHED_OTHER", "nice": 20}),
                "nice",
            ),
            (
                serde_json::json!({"policy": "SCHED_OTHER", "runtime": 1}),
                "runtime",
            ),
            (serde_json::json!({"policy": "SCHED_DEADLINE"}), "runtime"),
            (
                serde_json::json!({"policy": "SCHED_DEADLINE", "runtime": 3000, "deadline": 2000}),
                "runtime",
            ),
            (serde_json::json!({"policy": "SCHED_ISO"}), "policy"),
        ] {
            let error = attributes(json).expect_err("refused").to_string();
            assert!(
                error.starts_with(&format!("process.scheduler.{field}: ")),
                "{error}"
            );
        }
    }

    #[test]
    fn io_priorities_are_eight() {
        let planned = |priority: i64| {
            let process = process(serde_json::json!({
                "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": priority}}));
            Scheduling::new(&process, None).map(|s| s.io_priority)
        };
        assert_eq!(planned(7).expect("plans"), Some((3, 7)));
        assert!(planned(8).is_err() && planned(-1).is_err());
    }

    #[test]
    fn memory_policies_are_modes_flags_and_nodes() {
        let planned = |json: serde_json::Value| {
            let linux = linux(serde_json::json!({"memoryPolicy": json}));
            Scheduling::new(&process(serde_json::json!({})), Some(&linux)).map(|s| s.memory_policy)
        };
        let (mode, nodes) = planned(
            serde_json::json!({"mode": "MPOL_INTERLEAVE", "nodes": "0,2-3",
            "flags": ["MPOL_F_STATIC_NODES"]}),
        )
        .expect("plans")
        .expect("asked for");
        assert_eq!((mode, nodes.as_slice()), (3 | 1 << 15, &[0b1101][..]));
        for wrong in [
            serde_json::json!({"mode": "MPOL_BIND"}),
            serde_json::json!({"mode": "MPOL_DEFAULT", "nodes": "0"}),
            serde_json::json!({"mode": "MPOL_BIND", "nodes": "x"}),
            serde_json::json!({"mode": "MPOL_BIND", "nodes": "0",
                "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]}),
        ] {
            assert!(planned(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn personalities_have_no_flags() {
        let planned = |json: serde_json::Value| {
            let linux = linux(serde_json::json!({"personality": json}));
            Scheduling::new(&process(serde_json::json!({})), Some(&linux)).map(|s| s.personality)
        };
        assert_eq!(
            planned(serde_json::json!({"domain": "LINUX32"})).expect("plans"),
            Some(8)
        );
        assert!(planned(serde_json::json!({"domain": "LINUX", "flags": ["X"]})).is_err());
    }
}
