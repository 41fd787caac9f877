//! libseccomp, asked the same: where it can be trusted, its filters give the same answers.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek};

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use proptest::prelude::*;

use super::super::architecture::{Architecture, MULTIPLEXED, X32_BIT};
use super::*;

const ARCHITECTURES: [(Architecture, ScmpArch, &str); 5] = [
    (Architecture::X86_64, ScmpArch::X8664, "SCMP_ARCH_X86_64"),
    (Architecture::X32, ScmpArch::X32, "SCMP_ARCH_X32"),
    (Architecture::X86, ScmpArch::X86, "SCMP_ARCH_X86"),
    (
        Architecture::Aarch64,
        ScmpArch::Aarch64,
        "SCMP_ARCH_AARCH64",
    ),
    (Architecture::Arm, ScmpArch::Arm, "SCMP_ARCH_ARM"),
];

/// The newest that libseccomp 2.5.4 knows.
const EXPECTED: u32 = 450;

/// Our table of an architecture's calls.
fn calls(architecture: Architecture) -> BTreeMap<u32, Vec<&'static str>> {
    let mut calls: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    architecture.each_call(|number, name| calls.entry(number).or_default().push(name));
    calls
}

#[test]
fn system_calls_have_the_numbers_that_libseccomp_knows() {
    let mut missing = Vec::new();
    for (ours, theirs, _) in ARCHITECTURES {
        let calls = calls(ours);
        let each = calls
            .iter()
            .flat_map(|(number, names)| names.iter().map(|name| (*name, *number)));
        let by_name: BTreeMap<&str, u32> = each.collect();
        assert!(calls.len() > 300, "{ours:?}: {}", calls.len());
        let first = ours.first_number();
        let private = 0xf0000..0xf0010;
        for number in (first..first + 600).chain(private) {
            let syscall = ScmpSyscall::from(number as i32);
            let Ok(name) = syscall.get_name_by_arch(theirs) else {
                continue;
            };
            if by_name.get(name.as_str()) != Some(&number) {
                missing.push((ours, name, number));
            }
        }
        for (name, number) in by_name {
            if let Ok(syscall) = ScmpSyscall::from_name_by_arch(name, theirs) {
                let known = syscall.as_raw_syscall();
                let multiplexed = MULTIPLEXED.iter().any(|it| it.name == name);
                assert!(
                    known == number as i32 || (known < 0 && multiplexed),
                    "{ours:?} {name}: {number}, {known}"
                );
            }
        }
    }
    assert_eq!(missing, []);
}

/// libseccomp's filter for a profile. None where it refuses it.
fn theirs(profile: &LinuxSeccomp, architectures: &[ScmpArch]) -> Option<Vec<u8>> {
    let action = |action: LinuxSeccompAction, errno: Option<u32>| match action {
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno.unwrap_or(1) as i32),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        other => panic!("{other}"),
    };
    let default = action(profile.default_action(), profile.default_errno_ret());
    let mut context = ScmpFilterContext::new(default).unwrap();
    for architecture in architectures {
        context.add_arch(*architecture).unwrap();
    }
    if !architectures.contains(&ScmpArch::X8664) {
        context.remove_arch(ScmpArch::X8664).unwrap();
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret());
        if action == default {
            continue;
        }
        let compare = rule.args().iter().flatten().map(|arg| {
            let (operator, datum) = match arg.op() {
                Operator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
                Operator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
                Operator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
                Operator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
                Operator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
                Operator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
                Operator::ScmpCmpMaskedEq => {
                    let masked = ScmpCompareOp::MaskedEqual(arg.value());
                    (masked, arg.value_two().unwrap_or(0))
                }
            };
            ScmpArgCompare::new(arg.index() as u32, operator, datum)
        });
        let compare: Vec<_> = compare.collect();
        for name in rule.names() {
            let Ok(syscall) = ScmpSyscall::from_name(name) else {
                continue;
            };
            if compare.is_empty() {
                context.add_rule(action, syscall).ok()?;
            } else {
                context
                    .add_rule_conditional(action, syscall, &compare)
                    .ok()?;
            }
        }
    }
    let memory = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut memory = File::from(memory);
    context.export_bpf(&memory).unwrap();
    let mut program = Vec::new();
    memory.rewind().unwrap();
    memory.read_to_end(&mut program).unwrap();
    Some(program)
}

/// Compares the answers for every number of every architecture, named or not, with these arguments.
fn agree(
    filter: &Filter,
    theirs: &[u8],
    named: &HashSet<&str>,
    arguments: &[[u64; 6]],
) -> std::result::Result<(), String> {
    let tables = ARCHITECTURES.map(|(it, ..)| (it, calls(it)));
    let alien = (0x8000_0016, 0);
    let bases = [
        (X86_64, 0),
        (X86_64, X32_BIT),
        (I386, 0),
        (0xc000_00b7, 0),
        alien,
    ];
    for (token, base) in bases.into_iter().chain([(0x4000_0028, 0)]) {
        let ends = [u32::MAX - 1, u32::MAX, X32_BIT - 1, X32_BIT + 0x3fff_ffff];
        for number in (base..base + 600).chain(ends) {
            let name = tables.iter().find_map(|(it, calls)| {
                let is_its = it.token() == token && (number >= X32_BIT) == (it.first_number() > 0);
                calls.get(&number).filter(|_| is_its)
            });
            for args in arguments {
                let call = verdict::Call {
                    number,
                    architecture: token,
                    args: *args,
                };
                let ours = verdict::verdict(&filter.program, &call);
                let want = verdict::verdict(theirs, &call);
                // What is beyond libseccomp is unknown here, and what is newer than it is not to be asked of it.
                let is_new = number & !X32_BIT > EXPECTED && number < 0x8000_0000
                    || name
                        .is_some_and(|it| it.iter().all(|it| ScmpSyscall::from_name(it).is_err()));
                let is_unknown = ours == Some(ENOSYS)
                    && !name.is_some_and(|it| it.iter().any(|it| named.contains(it)));
                if ours != want && !(is_new && (is_unknown || name.is_some())) {
                    return Err(format!(
                        "{token:#x} {number:#x} {name:?} {args:?}: {ours:x?}, libseccomp says {want:x?}"
                    ));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn the_default_profile_means_what_libseccomp_makes_of_it() {
    for capabilities in [vec![], vec![Capability::SysAdmin, Capability::SysPtrace]] {
        let mut profile = default_profile(&capabilities.into_iter().collect());
        // Of a rule for a call that is within another one libseccomp forgets the first argument on x86.
        let mut syscalls = profile.syscalls().clone().unwrap();
        for rule in &mut syscalls {
            if rule.names().contains(&"socket".to_owned()) {
                rule.set_args(None);
            }
        }
        profile.set_syscalls(Some(syscalls));
        let architectures = [ScmpArch::X8664, ScmpArch::X86, ScmpArch::X32];
        let theirs = theirs(&profile, &architectures).expect("libseccomp takes it");
        let rules = profile.syscalls().clone().unwrap_or_default();
        let named = rules
            .iter()
            .flat_map(|rule| rule.names())
            .map(String::as_str)
            .collect();
        let firsts = [
            0,
            8,
            9,
            0x20000,
            0x20008,
            0xffff_ffff,
            1 << 32,
            0x7e02_0000,
            0x1_1000,
            40,
        ];
        let arguments = firsts.map(|first| [first, 0, 0, 0, 0, 0]);
        let filter = compile(&profile).unwrap();
        agree(&filter, &theirs, &named, &arguments).unwrap();
        // Its program is the smaller one: the kernel tries each call when it takes it.
        assert!(filter.program.len() < theirs.len());
    }
}

/// A rule for a system call: its number on x86-64, the action, conditions.
type Choice = (usize, usize, Vec<(usize, u64, usize, u64)>);

fn choices() -> impl Strategy<Value = Vec<Choice>> {
    let condition = (0usize..6, properties::word(), 0usize..7, properties::word());
    let conditions = prop_oneof![
        3 => Just(Vec::new()),
        2 => proptest::collection::vec(condition, 1..3),
    ];
    proptest::collection::vec((0usize..600, 0usize..4, conditions), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 300, ..ProptestConfig::default() })]

    /// One rule for each call: of several with conditions it makes what it should not.
    #[test]
    fn filters_answer_as_libseccomps_do(
        choices in choices(),
        default in 0usize..4,
        of_architectures in prop_oneof![1usize..8, 9usize..12],
        arguments in proptest::collection::vec(proptest::array::uniform6(properties::word()), 3),
    ) {
        const ACTIONS: [&str; 4] = ["ALLOW", "ERRNO", "LOG", "KILL_PROCESS"];
        const OPERATORS: [&str; 7] = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
        // Of one machine: libseccomp makes mistakes where arm is beside x86.
        let machine = if of_architectures < 8 { &ARCHITECTURES[..3] } else { &ARCHITECTURES[3..] };
        let chosen: Vec<_> = machine.iter().enumerate()
            .filter_map(|(n, it)| (of_architectures & (1 << n) != 0).then_some(it)).collect();
        let tables: Vec<_> = chosen.iter().map(|(it, ..)| calls(*it)).collect();
        let mut named = HashSet::new();
        let mut syscalls = Vec::new();
        for (n, (number, action, conditions)) in choices.iter().enumerate() {
            let table = &tables[n % tables.len()];
            let first = chosen[n % tables.len()].0.first_number();
            let Some(&name) = table.get(&(first + *number as u32)).and_then(|it| it.first()) else { continue };
            // What it does not know, and what it has two numbers for.
            let multiplexed = MULTIPLEXED.iter().any(|it| it.name == name)
                || ["socketcall", "ipc"].contains(&name);
            let once = conditions.iter().map(|it| it.0).collect::<HashSet<_>>().len() == conditions.len();
            // It cuts what 32 bits are compared with to that length, too, where nothing can be that large.
            let has_room = chosen.iter().all(|(it, ..)| !it.is_narrow())
                || conditions.iter().all(|it| [0, 3, 6].contains(&it.2) || it.1 <= u64::from(u32::MAX));
            // Beside a rule for a call that an architecture has not it forgets the first conditions.
            let is_everywhere = tables.iter().all(|it| it.values().flatten().any(|it| *it == name));
            let is_comparable = ScmpSyscall::from_name(name).is_ok() && once && has_room && is_everywhere
                && (!multiplexed || conditions.is_empty());
            if !is_comparable || !named.insert(name) {
                continue;
            }
            let args: Vec<_> = conditions.iter().map(|(index, value, operator, two)| serde_json::json!({
                "index": index, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{}", OPERATORS[*operator]),
            })).collect();
            syscalls.push(serde_json::json!({
                "names": [name], "action": format!("SCMP_ACT_{}", ACTIONS[*action]), "args": args,
            }));
        }
        let profile: LinuxSeccomp = serde_json::from_value(serde_json::json!({
            "defaultAction": format!("SCMP_ACT_{}", ACTIONS[default]), "syscalls": syscalls,
            "architectures": chosen.iter().map(|it| it.2).collect::<Vec<_>>(),
        })).unwrap();
        let of_libseccomp: Vec<_> = chosen.iter().map(|it| it.1).collect();
        if let Some(theirs) = theirs(&profile, &of_libseccomp) {
            let filter = compile(&profile).unwrap();
            let verdict = agree(&filter, &theirs, &named, &arguments);
            prop_assert!(verdict.is_ok(), "{}\n{}", verdict.unwrap_err(), serde_json::to_string(&profile).unwrap());
        }
    }
}
