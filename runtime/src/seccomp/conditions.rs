//! Comparisons of a system call's arguments, and the instructions that decide by them.
//!
//! ```text
//! first rule's conditions, each leads on or to the next rule ─► its action
//! second rule …                                               ─► its action
//! the default action
//! ```
//!
//! When several hold, the strictest action is taken, as the kernel does with several filters (seccomp(2)). A rule
//! without conditions goes before all that have some, and the first of those before the others, as in libseccomp.

use std::collections::HashMap;
use std::mem::offset_of;

use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator as Operator};

use super::action::Action;
use super::bpf::Instruction;

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

/// All rules for each system call by name, in the profile's order; none for one that the profile names only to say of it
/// what it says of all others.
pub(super) type Rules<'a> = HashMap<&'a str, Vec<&'a Rule>>;

/// What a profile says of the system calls that it names in one place: conditions that must all hold, and what happens then.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
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

    /// That these bits of the first argument have a value.
    pub(super) const fn first_is(mask: u64, value: u64) -> Self {
        Self {
            argument: 0,
            operator: Operator::ScmpCmpMaskedEq,
            value: mask,
            second: value,
        }
    }

    /// Steps for an architecture whose arguments have 32 bits. Whether one is equal is said of those, so that -1 may be
    /// written with 64; no argument is as large as a number that has more.
    fn narrow_steps(&self) -> Vec<Step> {
        use Target::{Holds, Not, On};
        const EQUAL: u16 = Instruction::JUMP_EQUAL;
        const GREATER: u16 = Instruction::JUMP_GREATER;
        const NOT_LESS: u16 = Instruction::JUMP_NOT_LESS;
        let [_, lower] = halves(self.value);
        let [_, last] = self.offsets();
        let mut steps = vec![Step::Plain(Instruction::load(last))];
        let size = |code, over: Target, under: Target| match u32::try_from(self.value) {
            Ok(value) => Step::Jump(code, value, over, under),
            Err(_) => Step::Jump(NOT_LESS, 0, under, On),
        };
        let comparison = match self.operator {
            Operator::ScmpCmpEq => Step::Jump(EQUAL, lower, Holds, Not),
            Operator::ScmpCmpNe => Step::Jump(EQUAL, lower, Not, Holds),
            Operator::ScmpCmpGt => size(GREATER, Holds, Not),
            Operator::ScmpCmpGe => size(NOT_LESS, Holds, Not),
            Operator::ScmpCmpLe => size(GREATER, Not, Holds),
            Operator::ScmpCmpLt => size(NOT_LESS, Not, Holds),
            Operator::ScmpCmpMaskedEq => {
                steps.push(Step::Plain(Instruction::and(lower)));
                Step::Jump(EQUAL, self.second as u32 & lower, Holds, Not)
            }
        };
        steps.push(comparison);
        steps
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

/// What is done about a system call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Whatever its arguments are.
    Action(Action),
    /// They are looked at.
    Steps(Vec<Instruction>),
}

/// The rules one after the other, the strictest first; then the default action.
pub(super) fn decide(default: Action, rules: &[&Rule], is_narrow: bool) -> Decision {
    if let Some(rule) = rules.iter().find(|rule| rule.conditions.is_empty()) {
        return Decision::Action(rule.action);
    }
    if rules.is_empty() {
        return Decision::Action(default);
    }
    let mut by_strictness = rules.to_vec();
    by_strictness.sort_by_key(|rule| rule.action.leniency());
    let mut code = Vec::new();
    for rule in by_strictness {
        let conditions = rule.conditions.iter();
        let steps: Vec<Vec<Step>> = conditions
            .map(|it| {
                if is_narrow {
                    it.narrow_steps()
                } else {
                    it.steps()
                }
            })
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
    Decision::Steps(code)
}
