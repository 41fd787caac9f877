//! How the kernel schedules a process: sched_setattr(2), ioprio_set(2), sched_setaffinity(2), set_mempolicy(2).

use std::io;

use super::check;

/// What sched_setattr(2) sets: `struct sched_attr` without its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SchedulerAttributes {
    /// `SCHED_*` of linux/sched.h.
    pub policy: u32,
    /// `SCHED_FLAG_*` of linux/sched.h.
    pub flags: u64,
    /// -20 to 19, for `SCHED_OTHER` and `SCHED_BATCH`.
    pub nice: i32,
    /// 1 to 99, for `SCHED_FIFO` and `SCHED_RR`.
    pub priority: u32,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub runtime: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub deadline: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub period: u64,
}

/// `struct sched_attr` of linux/sched/types.h, version 1 (Linux 5.3).
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

/// Sets the calling thread's scheduling policy.
///
/// # Errors
/// `EPERM` without CAP_SYS_NICE; else what sched_setattr(2) says.
pub fn set_scheduler(attributes: &SchedulerAttributes) -> io::Result<()> {
    let attr = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: attributes.policy,
        flags: attributes.flags,
        nice: attributes.nice,
        priority: attributes.priority,
        runtime: attributes.runtime,
        deadline: attributes.deadline,
        period: attributes.period,
        util_min: 0,
        util_max: 0,
    };
    // SAFETY: `attr` outlives the call and says its own size; the kernel only reads it (it writes `size` for E2BIG
    // through the user's pointer, for which the struct has room). sched_setattr(2).
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })?;
    Ok(())
}

/// Sets the calling thread's I/O class (`IOPRIO_CLASS_*` of linux/ioprio.h) and its priority in it, 0 (high) to 7.
///
/// # Errors
/// `EPERM` for the real-time class without CAP_SYS_ADMIN or CAP_SYS_NICE.
pub fn set_io_priority(class: u8, priority: u8) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IOPRIO_CLASS_SHIFT: u32 = 13;
    let value = libc::c_int::from(class) << IOPRIO_CLASS_SHIFT | libc::c_int::from(priority);
    // SAFETY: takes no memory. ioprio_set(2).
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) })?;
    Ok(())
}

/// Lets the calling thread run on these processors only: bit n of the words is processor n.
///
/// # Errors
/// `EINVAL` when none of them is one that the thread's cpuset allows.
pub fn set_affinity(processors: &[u64]) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as the slice has. sched_setaffinity(2).
    check(unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            0,
            size_of_val(processors),
            processors.as_ptr(),
        )
    })?;
    Ok(())
}

/// The processors that the calling thread may run on, as in [`set_affinity`].
///
/// # Errors
/// What sched_getaffinity(2) says.
pub fn affinity() -> io::Result<Vec<u64>> {
    // The kernel wants room for every processor it may have: at most 8192 (CONFIG_NR_CPUS).
    let mut words = vec![0_u64; 128];
    // SAFETY: the kernel writes at most as many bytes as it is told, which is what the vector has.
    // sched_getaffinity(2).
    let bytes = check(unsafe {
        libc::syscall(
            libc::SYS_sched_getaffinity,
            0,
            size_of_val(words.as_slice()),
            words.as_mut_ptr(),
        )
    })?;
    words.truncate((bytes as usize).div_ceil(size_of::<u64>()));
    Ok(words)
}

/// Sets the calling thread's memory policy: `MPOL_*` with its `MPOL_F_*`, and the nodes as bits.
///
/// # Errors
/// `ENOSYS` in a kernel without NUMA; `EINVAL` when the mode cannot have these nodes or flags.
pub fn set_memory_policy(mode: i32, nodes: &[u64]) -> io::Result<()> {
    // The kernel reads one bit less than it is told (get_nodes in mm/mempolicy.c).
    let bits = match nodes.len() {
        0 => 0,
        words => words * u64::BITS as usize + 1,
    };
    let pointer = match nodes.len() {
        0 => std::ptr::null(),
        _ => nodes.as_ptr(),
    };
    // SAFETY: the kernel reads `bits - 1` bits from the pointer, which is what the slice has; none from null.
    // set_mempolicy(2).
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) })?;
    Ok(())
}
