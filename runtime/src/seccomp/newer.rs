//! System calls that are newer than libseccomp 2.5.4, the one in Debian 12: their numbers, and a few instructions before
//! its program for those that the profile does not name. Those that it names are the matter of [`super::conditions`].
//!
//! Since Linux 5.1 a new system call has the same number on every architecture, so that one comparison serves all.

use libseccomp::{ScmpAction, ScmpArch, ScmpSyscall};

use super::bpf::{self, Instruction, audit_architecture};

/// Names and numbers from `arch/x86/entry/syscalls/syscall_64.tbl`.
const NEWER: [(&str, u32); 19] = [
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("statmount", 457),
    ("listmount", 458),
    ("lsm_get_self_attr", 459),
    ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
];

/// The newest that libseccomp 2.5.4 knows: `set_mempolicy_home_node`.
pub(super) const KNOWN_TO_ALL: u32 = 450;

/// x32's system calls have this bit (`arch/x86/include/uapi/asm/unistd.h`).
const X32_BIT: u32 = 0x4000_0000;

/// The number, on an architecture, of a system call that libseccomp may not know.
pub(super) fn number(name: &str, architecture: ScmpArch) -> Option<u32> {
    let (_, number) = NEWER.iter().find(|(other, _)| *other == name)?;
    Some(match architecture {
        ScmpArch::X32 => *number | X32_BIT,
        _ => *number,
    })
}

/// Instructions that tell ENOSYS of system calls beyond libseccomp's knowledge, and leave all others to what follows.
/// None where what is not named is not refused with an error: what is allowed then is allowed when it is new, too, and a
/// profile that kills or traps what it does not name means that for new system calls as well.
pub(super) fn prologue(default: ScmpAction, architectures: &[ScmpArch]) -> Vec<u8> {
    let ScmpAction::Errno(_) = default else {
        return Vec::new();
    };
    let newest_known = NEWER
        .iter()
        .filter(|(name, _)| ScmpSyscall::from_name(name).is_ok())
        .map(|(_, number)| *number)
        .fold(KNOWN_TO_ALL, u32::max);
    let mut tokens: Vec<u32> = architectures
        .iter()
        .filter_map(audit_architecture)
        .collect();
    tokens.sort_unstable();
    tokens.dedup();
    let mut code = vec![Instruction::load(Instruction::ARCHITECTURE)];
    for (index, token) in tokens.iter().enumerate() {
        let others = (tokens.len() - index - 1) as u8;
        // On the last one a miss leads past everything; a hit leads to the number's comparison.
        let miss = if others == 0 { 4 } else { 0 };
        code.push(Instruction::jump(
            Instruction::JUMP_EQUAL,
            *token,
            others,
            miss,
        ));
    }
    code.extend([
        Instruction::load(Instruction::NUMBER),
        // x32's others are libseccomp's matter.
        Instruction::jump(Instruction::JUMP_NOT_LESS, X32_BIT, 2, 0),
        Instruction::jump(Instruction::JUMP_GREATER, newest_known, 0, 1),
        Instruction::give(ScmpAction::Errno(libc::ENOSYS)),
    ]);
    bpf::assemble(&code)
}
