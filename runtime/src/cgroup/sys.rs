//! bpf(2), as far as device control needs it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::devices::Instruction;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;

const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;

/// More programs than this on one cgroup are not Podling's doing (the kernel's own limit is 64).
const MAX_PROGRAMS: usize = 64;

/// The start of `union bpf_attr` for `BPF_PROG_LOAD`. The kernel takes what is left out as zero.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// `union bpf_attr` for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// `union bpf_attr` for `BPF_PROG_QUERY`.
#[repr(C)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

/// `union bpf_attr` for `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
struct ById {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

/// The kernel verifies the program and gives a descriptor for it.
pub(super) fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut attributes = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    let descriptor = bpf(BPF_PROG_LOAD, &mut attributes)?;
    // SAFETY: bpf(2), BPF_PROG_LOAD: on success the result is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// The device programs attached to the cgroup directory itself.
pub(super) fn device_programs(cgroup: &impl AsFd) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0u32; MAX_PROGRAMS];
    let mut attributes = Query {
        target_fd: number(cgroup),
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: MAX_PROGRAMS as u32,
        padding: 0,
    };
    bpf(BPF_PROG_QUERY, &mut attributes)?;
    let count = (attributes.prog_cnt as usize).min(MAX_PROGRAMS);
    ids[..count].iter().map(|&id| program_by_id(id)).collect()
}

fn program_by_id(prog_id: u32) -> io::Result<OwnedFd> {
    let mut attributes = ById {
        prog_id,
        next_id: 0,
        open_flags: 0,
    };
    let descriptor = bpf(BPF_PROG_GET_FD_BY_ID, &mut attributes)?;
    // SAFETY: bpf(2), BPF_PROG_GET_FD_BY_ID: on success the result is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Adds the program to those of the cgroup; a device needs the leave of all.
pub(super) fn attach_device_program(cgroup: &impl AsFd, program: &impl AsFd) -> io::Result<()> {
    bpf(
        BPF_PROG_ATTACH,
        &mut attachment(cgroup, program, BPF_F_ALLOW_MULTI),
    )
    .map(drop)
}

/// Takes the program from the cgroup.
pub(super) fn detach_device_program(cgroup: &impl AsFd, program: &impl AsFd) -> io::Result<()> {
    bpf(BPF_PROG_DETACH, &mut attachment(cgroup, program, 0)).map(drop)
}

fn attachment(cgroup: &impl AsFd, program: &impl AsFd, attach_flags: u32) -> Attach {
    Attach {
        target_fd: number(cgroup),
        attach_bpf_fd: number(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags,
        replace_bpf_fd: 0,
    }
}

fn number(descriptor: &impl AsFd) -> u32 {
    // A valid descriptor is not negative.
    descriptor.as_fd().as_raw_fd() as u32
}

/// bpf(2) with one of the attribute structures above.
fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: `attributes` is one of the `repr(C)` structures above, without padding bytes, and its size is passed;
    // the pointers in it (instructions, licence, ids) come from values that the callers keep alive over this call,
    // with lengths passed beside them. The kernel writes only into `attributes` and `prog_ids` (bpf(2)).
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>() as libc::c_uint,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // The commands used here return a descriptor or zero.
    Ok(result as libc::c_int)
}
