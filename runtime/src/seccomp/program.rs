//! From rules to a program: a binary search in the numbers of system calls.
//!
//! ```text
//! architecture ─┬► number ─► less than the middle one? ─► … ─► the action of this range of numbers
//!               │                                              or conditions, which decide by the arguments
//!               ├► the next architecture's numbers …
//!               └► the thread ends
//! ```
//! Neighbours with the same answer are one range, so that few comparisons lead to each. That counts, because the kernel
//! tries each number when it takes a filter.
//!
//! Numbers beyond what profiles may be expected to know are refused with ENOSYS where the default action is an error: a C
//! library that tries a new system call falls back on ENOSYS; on EPERM it fails (as runc found with glibc's
//! `faccessat2`). What is allowed by default is allowed when it is new, too, and a profile that kills or traps what it
//! does not name means that for new system calls as well.

use std::borrow::Cow;
use std::slice;

use super::action::Action;
use super::architecture::{Architecture, MULTIPLEXED, Multiplexed, X32_BIT};
use super::bpf::{self, Instruction};
use super::conditions::{Condition, Decision, Rule, Rules, decide};

/// The newest system call that libseccomp 2.5.4 knows, with which profiles are written: `set_mempolicy_home_node`. Since
/// Linux 5.1 a new one has the same number on every architecture.
const EXPECTED: u32 = 450;

/// Where a range of numbers begins, and what is done from there on.
type Range = (u32, Decision);

/// The program for these architectures.
pub(super) fn program(
    default: Action,
    architectures: &[Architecture],
    rules: &Rules<'_>,
) -> Vec<Instruction> {
    let mut code = vec![Instruction::load(Instruction::ARCHITECTURE)];
    let mut rest = architectures;
    while let [first, ..] = rest {
        let (of_token, others) =
            rest.split_at(rest.partition_point(|it| it.token() == first.token()));
        rest = others;
        let ranges = Ranges::new(default, of_token, rules);
        bpf::only_for(&mut code, first.token(), |code| {
            code.push(Instruction::load(Instruction::NUMBER));
            search(code, &ranges.0);
        });
    }
    code.push(Instruction::give(Action::FOREIGN));
    code
}

fn search(code: &mut Vec<Instruction>, ranges: &[Range]) {
    let (less, not_less) = ranges.split_at(ranges.len() / 2);
    match (less, not_less) {
        ([], [(_, Decision::Action(action))]) => code.push(Instruction::give(*action)),
        ([], [(_, Decision::Steps(steps))]) => code.extend(steps),
        (less, [(start, _), ..]) => {
            bpf::split(code, *start, |code| search(code, less));
            search(code, not_less);
        }
        (_, []) => {}
    }
}

/// What is done for each number, from 0 on, neighbours differ.
struct Ranges(Vec<Range>);

impl Ranges {
    /// Of the architectures of one token.
    fn new(default: Action, architectures: &[Architecture], rules: &Rules<'_>) -> Self {
        let mut ranges = Self(Vec::new());
        if !matches!(architectures, [first, ..] if first.first_number() == 0) {
            ranges.push(0, Decision::Action(Action::FOREIGN));
        }
        for architecture in architectures {
            ranges.push_architecture(default, *architecture, rules);
        }
        if architectures == [Architecture::X86_64] {
            ranges.push(X32_BIT, Decision::Action(Action::FOREIGN));
        }
        // What a tracer has made of a call that is to be skipped is not another architecture's.
        ranges.push(u32::MAX, Decision::Action(default));
        ranges
    }

    fn push_architecture(
        &mut self,
        default: Action,
        architecture: Architecture,
        rules: &Rules<'_>,
    ) {
        let begin = architecture.first_number();
        let new = begin | (EXPECTED + 1);
        let unnamed = |number| match number >= new && default.is_errno() {
            true => Decision::Action(Action::UNKNOWN),
            false => Decision::Action(default),
        };
        let within = within_others(default, architecture, rules);
        let within: Vec<(u32, &Rule)> = within
            .iter()
            .map(|(number, rule)| (*number, rule))
            .collect();
        let mut next = begin;
        for (number, rules) in by_number(architecture, rules, &within) {
            if next < number {
                self.push(next, unnamed(next));
                if next < new && new < number {
                    self.push(new, unnamed(new));
                }
            }
            self.push(number, decide(default, &rules, architecture.is_narrow()));
            next = number + 1;
        }
        self.push(next, unnamed(next));
        if next < new {
            self.push(new, unnamed(new));
        }
        // No architecture has numbers that high.
        self.push(begin + X32_BIT, Decision::Action(default));
    }

    /// Ranges are pushed in their order.
    fn push(&mut self, start: u32, decision: Decision) {
        match self.0.last_mut() {
            Some((_, before)) if *before == decision => {}
            Some((last, before)) if *last == start => *before = decision,
            _ => self.0.push((start, decision)),
        }
    }
}

/// The rules for each system call that the profile names, in the order of its numbers.
fn by_number<'a>(
    architecture: Architecture,
    rules: &'a Rules<'a>,
    within: &'a [(u32, &'a Rule)],
) -> Vec<(u32, Cow<'a, [&'a Rule]>)> {
    let mut named: Vec<(u32, &[&Rule])> = Vec::new();
    architecture.each_call(|number, name| {
        if let Some(rules) = rules.get(name) {
            named.push((number, rules));
        }
    });
    let within = within.iter();
    named.extend(within.map(|(number, rule)| (*number, slice::from_ref(rule))));
    // Not every table is in order, and two names can be of one number.
    named.sort_by_key(|(number, _)| *number);
    let same_number = named.chunk_by(|(a, _), (b, _)| a == b);
    same_number
        .filter_map(|same| {
            let (number, rules) = same.first()?;
            let rules = match same.len() {
                1 => Cow::Borrowed(*rules),
                _ => same.iter().flat_map(|(_, rules)| *rules).copied().collect(),
            };
            Some((*number, rules))
        })
        .collect()
}

/// What the rules mean for the calls that have others within them, by these calls' numbers.
fn within_others(
    default: Action,
    architecture: Architecture,
    rules: &Rules<'_>,
) -> Vec<(u32, Rule)> {
    if architecture != Architecture::X86 {
        return Vec::new();
    }
    let within = MULTIPLEXED.iter().filter_map(|call| {
        let rules = rules.get(call.name)?;
        Some((call.within, rules_within(default, call, rules)?))
    });
    within.collect()
}

/// What rules for a call mean for the other one that does the same with arguments in memory. There only those without
/// conditions can be followed. Of those with conditions the strictest is taken without them if it is stricter than the
/// default; else it stays at that.
fn rules_within(default: Action, call: &Multiplexed, rules: &[&Rule]) -> Option<Rule> {
    let plain = rules.iter().find(|rule| rule.conditions.is_empty());
    let strictest = rules.iter().min_by_key(|rule| rule.action.leniency());
    let rule = plain.or(strictest.filter(|rule| rule.action.leniency() < default.leniency()))?;
    Some(Rule {
        conditions: vec![Condition::first_is(call.mask(), call.number)],
        action: rule.action,
    })
}
