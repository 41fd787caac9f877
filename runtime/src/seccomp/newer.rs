//! System calls that are newer than libseccomp 2.5.4, the one in Debian 12: a few instructions before its program.
//!
//! Since Linux 5.1 a new system call has the same number on every architecture, so that one comparison serves all.

use libseccomp::{ScmpAction, ScmpArch, ScmpSyscall};
use oci_spec::runtime::LinuxSyscall;

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
const KNOWN_TO_ALL: u32 = 450;

/// x32's system calls have this bit; their program is libseccomp's matter.
const X32_BIT: u32 = 0x4000_0000;

/// The number of a system call that libseccomp may not know.
pub(super) fn number(name: &str) -> Option<u32> {
    NEWER
        .iter()
        .find(|(other, _)| *other == name)
        .map(|(_, number)| *number)
}

/// Instructions that decide about system calls beyond libseccomp's knowledge, and leave all others to what follows.
/// None when everything not named is allowed: then nobody is told EPERM for what is only new. A rule against a newer
/// system call is kept even then.
pub(super) fn prologue(
    default: ScmpAction,
    architectures: &[ScmpArch],
    unknown: &[(&LinuxSyscall, &str, ScmpAction)],
) -> Vec<u8> {
    let newest_known = NEWER
        .iter()
        .filter(|(name, _)| ScmpSyscall::from_name(name).is_ok())
        .map(|(_, number)| *number)
        .fold(KNOWN_TO_ALL, u32::max);
    let otherwise = match default {
        ScmpAction::Errno(_) => Some(ScmpAction::Errno(libc::ENOSYS)),
        // A profile that kills or traps what it does not name means that for new system calls too.
        _ => None,
    };
    let mut decisions: Vec<(u32, ScmpAction)> = Vec::new();
    for (_, name, action) in unknown {
        if let Some(number) = number(name)
            && *action != default
            && !decisions.iter().any(|(other, _)| *other == number)
        {
            decisions.push((number, *action));
        }
    }
    if decisions.is_empty() && otherwise.is_none() {
        return Vec::new();
    }
    assemble(newest_known, architectures, &decisions, otherwise)
}

fn assemble(
    newest_known: u32,
    architectures: &[ScmpArch],
    decisions: &[(u32, ScmpAction)],
    otherwise: Option<ScmpAction>,
) -> Vec<u8> {
    let mut tokens: Vec<u32> = architectures
        .iter()
        .filter_map(audit_architecture)
        .collect();
    tokens.sort_unstable();
    tokens.dedup();
    // First what is decided; its length gives the distance to libseccomp's program.
    let mut decided = Vec::new();
    for (number, action) in decisions {
        decided.push(Instruction::jump(Instruction::JUMP_EQUAL, *number, 0, 1));
        decided.push(Instruction::give(*action));
    }
    decided.extend(otherwise.map(Instruction::give));
    let decided_length = decided.len() as u8;
    let mut code = vec![Instruction::load(Instruction::ARCHITECTURE)];
    for (index, token) in tokens.iter().enumerate() {
        let others = (tokens.len() - index - 1) as u8;
        // On the last one a miss leads past everything; a hit leads to the number's comparison.
        let miss = if others == 0 { 3 + decided_length } else { 0 };
        code.push(Instruction::jump(
            Instruction::JUMP_EQUAL,
            *token,
            others,
            miss,
        ));
    }
    code.push(Instruction::load(Instruction::NUMBER));
    code.push(Instruction::jump(
        Instruction::JUMP_NOT_LESS,
        X32_BIT,
        decided_length + 1,
        0,
    ));
    code.push(Instruction::jump(
        Instruction::JUMP_GREATER,
        newest_known,
        0,
        decided_length,
    ));
    code.extend(decided);
    bpf::assemble(&code)
}
