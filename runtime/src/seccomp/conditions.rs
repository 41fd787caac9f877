//! Comparisons of a system call's arguments, and the part of a filter that decides where libseccomp cannot be trusted
//! to, or does not know the system call.
//!
//! libseccomp merges all rules for one system call into a tree, and that goes wrong for some: 2.5.4 allows
//! `socket(_, 0, 7)` where only `arg1 & 1 == 0 && arg2 < 1` and `arg1 > 0` are allowed, and of some rules it never
//! comes back. So it gets no system call with several rules of which one has conditions. These, and those for system calls
//! that are newer than libseccomp, are tried here one after the other, in instructions before libseccomp's program:
//!
//! ```text
//! architecture ─► number ─► first rule's conditions, each leads on or to the next rule ─► its action
//!                           second rule …                                                its action
//!                           the default action
//! ```
//!
//! When several hold, the strictest action is taken, as the kernel does with several filters (seccomp(2)). A rule
//! without conditions goes before all that have some, and the first of those before the others, as in libseccomp.

use std::collections::BTreeMap;
use std::mem::offset_of;

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpSyscall};
use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator as Operator};

use super::bpf::{self, Instruction, audit_architecture};
use super::error::{Error, Result};
use super::newer;

/// How many arguments a system call has.
const ARGUMENTS: u32 = 6;

/// One comparison.
#[derive(Debug, Clone, Copy)]
pub(super) struct Condition {
    /// 0 to 5.
    pub(super) argument: u32,
    operator: Operator,
    /// What is compared with; the mask for a masked comparison.
    value: u64,
    /// What the masked argument is compared with.
    second: u64,
}

/// x86's numbers of calls that have been in socketcall(2) and ipc(2) too: `arch/x86/entry/syscalls/syscall_32.tbl`.
/// libseccomp has other numbers for these, negative ones, and for accept, semop and semtimedop, which are only there.
const X86_DIRECT: [(&str, u32); 25] = [
    ("socket", 359),
    ("socketpair", 360),
    ("bind", 361),
    ("connect", 362),
    ("listen", 363),
    ("accept4", 364),
    ("getsockopt", 365),
    ("setsockopt", 366),
    ("getsockname", 367),
    ("getpeername", 368),
    ("sendto", 369),
    ("sendmsg", 370),
    ("recvfrom", 371),
    ("recvmsg", 372),
    ("shutdown", 373),
    ("semget", 393),
    ("semctl", 394),
    ("shmget", 395),
    ("shmctl", 396),
    ("shmat", 397),
    ("shmdt", 398),
    ("msgget", 399),
    ("msgsnd", 400),
    ("msgrcv", 401),
    ("msgctl", 402),
];

/// libseccomp's numbers of the calls that are in socketcall(2) and ipc(2).
const X86_WITHIN: std::ops::RangeInclusive<i32> = -299..=-100;

/// All rules for each system call by name, in the profile's order.
pub(super) type Rules<'a> = BTreeMap<&'a str, Vec<Rule>>;

/// A rule for one system call: conditions that must all hold, and what happens then.
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: ScmpAction,
}

impl Condition {
    /// From a profile; None for an argument that no system call has.
    pub(super) fn new(arg: &LinuxSeccompArg) -> Option<Self> {
        let argument = u32::try_from(arg.index()).ok();
        Some(Self {
            argument: argument.filter(|it| *it < ARGUMENTS)?,
            operator: arg.op(),
            value: arg.value(),
            second: arg.value_two().unwrap_or(0),
        })
    }

    /// For libseccomp.
    pub(super) fn compare(&self) -> ScmpArgCompare {
        let (operator, datum) = match self.operator {
            Operator::ScmpCmpNe => (ScmpCompareOp::NotEqual, self.value),
            Operator::ScmpCmpLt => (ScmpCompareOp::Less, self.value),
            Operator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, self.value),
            Operator::ScmpCmpEq => (ScmpCompareOp::Equal, self.value),
            Operator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, self.value),
            Operator::ScmpCmpGt => (ScmpCompareOp::Greater, self.value),
            Operator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(self.value), self.second),
        };
        ScmpArgCompare::new(self.argument, operator, datum)
    }

    /// For an architecture whose arguments have 32 bits: whether one is equal is said of those, so that -1 may be
    /// written with 64.
    fn narrow(mut self) -> Self {
        let is_of_size = matches!(
            self.operator,
            Operator::ScmpCmpLt | Operator::ScmpCmpLe | Operator::ScmpCmpGe | Operator::ScmpCmpGt
        );
        if !is_of_size {
            self.value &= u64::from(u32::MAX);
            self.second &= u64::from(u32::MAX);
        }
        self
    }

    /// Steps that compare the upper half of the argument, then the lower one.
    fn steps(&self) -> Vec<Step> {
        use Target::{Holds, Not, On};
        const EQUAL: u16 = Instruction::JUMP_EQUAL;
        const GREATER: u16 = Instruction::JUMP_GREATER;
        const NOT_LESS: u16 = Instruction::JUMP_NOT_LESS;
        let [upper, lower] = halves(self.value);
        let [first, last] = self.offsets();
        let load = |offset| Step::Plain(Instruction::load(offset));
        let size = |beyond: Target, short: Target, last_code, over: Target, under: Target| {
            vec![
                load(first),
                Step::Jump(GREATER, upper, beyond, On),
                Step::Jump(EQUAL, upper, On, short),
                load(last),
                Step::Jump(last_code, lower, over, under),
            ]
        };
        match self.operator {
            Operator::ScmpCmpEq => vec![
                load(first),
                Step::Jump(EQUAL, upper, On, Not),
                load(last),
                Step::Jump(EQUAL, lower, Holds, Not),
            ],
            Operator::ScmpCmpNe => vec![
                load(first),
                Step::Jump(EQUAL, upper, On, Holds),
                load(last),
                Step::Jump(EQUAL, lower, Not, Holds),
            ],
            Operator::ScmpCmpGt => size(Holds, Not, GREATER, Holds, Not),
            Operator::ScmpCmpGe => size(Holds, Not, NOT_LESS, Holds, Not),
            Operator::ScmpCmpLe => size(Not, Holds, GREATER, Not, Holds),
            Operator::ScmpCmpLt => size(Not, Holds, NOT_LESS, Not, Holds),
            Operator::ScmpCmpMaskedEq => {
                // Bits outside of the mask do not count, as seccomp_rule_add(3) has it.
                let [wanted_upper, wanted_lower] = halves(self.second & self.value);
                vec![
                    load(first),
                    Step::Plain(Instruction::and(upper)),
                    Step::Jump(EQUAL, wanted_upper, On, Not),
                    load(last),
                    Step::Plain(Instruction::and(lower)),
                    Step::Jump(EQUAL, wanted_lower, Holds, Not),
                ]
            }
        }
    }

    /// Where the halves of the argument are in `struct seccomp_data`, the upper one first.
    fn offsets(&self) -> [u32; 2] {
        let argument = offset_of!(libc::seccomp_data, args) as u32 + self.argument * 8;
        if cfg!(target_endian = "little") {
            [argument + 4, argument]
        } else {
            [argument, argument + 4]
        }
    }
}

/// An instruction whose jumps are not counted yet.
enum Step {
    Plain(Instruction),
    Jump(u16, u32, Target, Target),
}

#[derive(Clone, Copy)]
enum Target {
    /// The next instruction.
    On,
    /// The condition holds: what follows it.
    Holds,
    /// The condition does not hold: the next rule.
    Not,
}

fn halves(value: u64) -> [u32; 2] {
    [(value >> 32) as u32, value as u32]
}

/// Whether a system call's rules are for this module, not for libseccomp.
pub(super) fn are_ours(name: &str, rules: &[Rule]) -> bool {
    let are_several = rules.len() > 1 && rules.iter().any(|rule| !rule.conditions.is_empty());
    are_several || ScmpSyscall::from_name(name).is_err()
}

/// Instructions that decide about the system calls whose rules are this module's, and leave all others to what follows.
/// Architectures that Podling is not built for never call: no kernel here runs their programs.
///
/// # Errors
/// When a rule is stricter than the default action and x86's socketcall(2) or ipc(2) would be a way around it.
pub(super) fn prologue(
    default: ScmpAction,
    architectures: &[ScmpArch],
    rules: &Rules<'_>,
) -> Result<Vec<u8>> {
    let mut code = Vec::new();
    for architecture in architectures {
        let Some(token) = audit_architecture(architecture) else {
            continue;
        };
        let (mut of_architecture, mut of_newer) = (Vec::new(), Vec::new());
        for (name, rules) in rules.iter().filter(|(name, rules)| are_ours(name, rules)) {
            if let Some(number) = number(name, *architecture, default, rules)? {
                let is_narrow = matches!(architecture, ScmpArch::X86 | ScmpArch::Arm);
                let part = match number > newer::KNOWN_TO_ALL {
                    true => &mut of_newer,
                    false => &mut of_architecture,
                };
                part.extend(bpf::only_for(number, decide(default, rules, is_narrow)));
            }
        }
        if !of_newer.is_empty() {
            // Profiles name many of these, and few calls are.
            let greater = Instruction::JUMP_GREATER;
            of_architecture.extend(bpf::only_if(greater, newer::KNOWN_TO_ALL, of_newer));
        }
        if !of_architecture.is_empty() {
            of_architecture.insert(0, Instruction::load(Instruction::NUMBER));
            code.push(Instruction::load(Instruction::ARCHITECTURE));
            code.extend(bpf::only_for(token, of_architecture));
        }
    }
    Ok(bpf::assemble(&code))
}

/// A system call's number; None when the architecture has none for it.
fn number(
    name: &str,
    architecture: ScmpArch,
    default: ScmpAction,
    rules: &[Rule],
) -> Result<Option<u32>> {
    let Ok(syscall) = ScmpSyscall::from_name_by_arch(name, architecture) else {
        return Ok(newer::number(name, architecture));
    };
    let number = syscall.as_raw_syscall();
    if architecture != ScmpArch::X86 || !X86_WITHIN.contains(&number) {
        return Ok(u32::try_from(number).ok());
    }
    let is_stricter = |rule: &Rule| leniency(rule.action) < leniency(default);
    if rules.iter().any(is_stricter) {
        return Err(Error::Unsupported {
            field: "syscalls".to_owned(),
            reason: format!(
                "several rules for {name:?} cannot hold on SCMP_ARCH_X86, where another system call does the same with \
                 arguments in memory: leave out that architecture, or the conditions"
            ),
        });
    }
    let direct = X86_DIRECT.iter().find(|(other, _)| *other == name);
    Ok(direct.map(|(_, number)| *number))
}

/// The rules one after the other, the strictest first; then the default action.
fn decide(default: ScmpAction, rules: &[Rule], is_narrow: bool) -> Vec<Instruction> {
    if let Some(rule) = rules.iter().find(|rule| rule.conditions.is_empty()) {
        return vec![Instruction::give(rule.action)];
    }
    let mut by_strictness: Vec<&Rule> = rules.iter().collect();
    by_strictness.sort_by_key(|rule| leniency(rule.action));
    let mut code = Vec::new();
    for rule in by_strictness {
        let conditions = rule.conditions.iter();
        let steps: Vec<Vec<Step>> = conditions
            .map(|it| if is_narrow { it.narrow() } else { *it }.steps())
            .collect();
        // After all conditions comes the action, after that the next rule.
        let mut left: usize = steps.iter().map(Vec::len).sum();
        for condition in steps {
            let after = left - condition.len();
            for step in condition {
                left -= 1;
                // A rule's 37 instructions at most are always within a byte.
                let distance = |target| match target {
                    Target::On => 0,
                    Target::Holds => (left - after) as u8,
                    Target::Not => (left + 1) as u8,
                };
                code.push(match step {
                    Step::Plain(instruction) => instruction,
                    Step::Jump(operation, value, if_true, if_false) => {
                        Instruction::jump(operation, value, distance(if_true), distance(if_false))
                    }
                });
            }
        }
        code.push(Instruction::give(rule.action));
    }
    code.push(Instruction::give(default));
    code
}

/// The kernel's order of actions, the strictest first (seccomp(2)).
fn leniency(action: ScmpAction) -> u32 {
    match action {
        ScmpAction::KillThread => 1,
        ScmpAction::Trap => 2,
        ScmpAction::Errno(_) => 3,
        ScmpAction::Notify => 4,
        ScmpAction::Trace(_) => 5,
        ScmpAction::Log => 6,
        ScmpAction::Allow => 7,
        // KillProcess.
        _ => 0,
    }
}
