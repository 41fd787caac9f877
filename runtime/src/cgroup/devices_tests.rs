//! Device rules: the reduction, v1's writes, and v2's program run by a small interpreter.

use oci_spec::runtime::{LinuxDeviceCgroupBuilder, LinuxDeviceType};

use super::*;

fn rule(
    allow: bool,
    typ: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut builder = LinuxDeviceCgroupBuilder::default()
        .allow(allow)
        .typ(typ)
        .access(access);
    if let Some(major) = major {
        builder = builder.major(major);
    }
    if let Some(minor) = minor {
        builder = builder.minor(minor);
    }
    builder.build().unwrap()
}

fn deny_all() -> LinuxDeviceCgroup {
    rule(false, LinuxDeviceType::A, None, None, "rwm")
}

/// What the kernel's interpreter does with the few instructions that are used here.
fn run(program: &[Instruction], kind: Kind, major: u32, minor: u32, access: u8) -> bool {
    let context = [kind as u32 | u32::from(access) << 16, major, minor];
    let mut registers = [0u64; 11];
    let mut at = 0;
    loop {
        let it = program[at];
        let to = usize::from(it.registers & 0xf);
        let from = usize::from(it.registers >> 4);
        let value = it.immediate as i64 as u64;
        at += 1;
        match it.code {
            Instruction::LOAD_WORD => {
                assert_eq!(from, 1, "only the context is read");
                registers[to] = u64::from(context[it.offset as usize / 4]);
            }
            Instruction::AND => registers[to] &= value,
            Instruction::SHIFT_RIGHT => registers[to] >>= value,
            Instruction::COPY => registers[to] = registers[from],
            Instruction::SET => registers[to] = value,
            Instruction::JUMP_IF if registers[to] == value => at += it.offset as usize,
            Instruction::JUMP_IF_NOT if registers[to] != value => at += it.offset as usize,
            Instruction::JUMP_IF | Instruction::JUMP_IF_NOT => {}
            Instruction::EXIT => return registers[0] == 1,
            code => panic!("unknown instruction {code:#x}"),
        }
    }
}

const MKNOD: u8 = Access::MKNOD;
const READ: u8 = Access::READ;
const WRITE: u8 = Access::WRITE;

#[test]
fn a_container_has_its_usual_devices_and_no_other() {
    let program = Rules::parse(&[deny_all()]).unwrap().program();
    assert!(run(&program, Kind::Char, 1, 3, READ | WRITE), "null");
    assert!(run(&program, Kind::Char, 136, 7, READ | WRITE), "a pty");
    assert!(run(&program, Kind::Block, 8, 0, MKNOD), "mknod is harmless");
    assert!(!run(&program, Kind::Block, 8, 0, READ), "a disk");
    assert!(!run(&program, Kind::Block, 8, 0, READ | MKNOD));
    assert!(!run(&program, Kind::Char, 1, 1, READ), "memory");
    assert!(!run(&program, Kind::Block, 1, 3, READ), "the kind counts");
}

#[test]
fn an_allowed_device_is_open_for_what_it_is_allowed() {
    let read_only = rule(true, LinuxDeviceType::B, Some(8), Some(0), "r");
    let program = Rules::parse(&[deny_all(), read_only]).unwrap().program();
    assert!(run(&program, Kind::Block, 8, 0, READ));
    assert!(!run(&program, Kind::Block, 8, 0, READ | WRITE));
    assert!(!run(&program, Kind::Block, 8, 1, READ));
}

#[test]
fn an_empty_rule_list_allows_only_the_usual_devices() {
    assert_eq!(
        Rules::parse(&[]).unwrap(),
        Rules::parse(&[deny_all()]).unwrap()
    );
}

#[test]
fn a_privileged_container_loses_only_what_is_denied() {
    let all = rule(true, LinuxDeviceType::A, Some(-1), Some(-1), "rwm");
    let no_disk = rule(false, LinuxDeviceType::B, Some(8), None, "w");
    let rules = Rules::parse(&[deny_all(), all, no_disk]).unwrap();
    let program = rules.program();
    assert!(run(&program, Kind::Char, 1, 1, READ));
    assert!(run(&program, Kind::Block, 8, 3, READ));
    assert!(!run(&program, Kind::Block, 8, 3, READ | WRITE));
    assert_eq!(
        rules.changes("a *:* rwm\n"),
        [
            ("devices.allow", "a".to_owned()),
            ("devices.deny", "b 8:* w".to_owned())
        ]
    );
}

#[test]
fn the_type_a_with_numbers_means_both_kinds() {
    let both = rule(true, LinuxDeviceType::A, Some(10), Some(200), "rwm");
    let program = Rules::parse(&[both]).unwrap().program();
    assert!(run(&program, Kind::Char, 10, 200, READ));
    assert!(run(&program, Kind::Block, 10, 200, READ));
}

#[test]
fn what_cannot_be_expressed_is_refused() {
    let all_disks = rule(true, LinuxDeviceType::B, Some(8), None, "rwm");
    let one_less = rule(false, LinuxDeviceType::B, Some(8), Some(1), "w");
    let error = Rules::parse(&[all_disks.clone(), one_less]).unwrap_err();
    assert!(error.to_string().contains("b 8:1"), "{error}");
    let none_left = rule(false, LinuxDeviceType::B, None, None, "rwm");
    assert!(Rules::parse(&[all_disks, none_left]).is_ok());
    let nonsense = rule(true, LinuxDeviceType::C, Some(1), Some(1), "x");
    assert!(Rules::parse(&[nonsense]).is_err());
    let too_large = rule(true, LinuxDeviceType::C, Some(1 << 40), None, "r");
    assert!(Rules::parse(&[too_large]).is_err());
}

#[test]
fn v1_changes_lead_to_the_rules_and_only_once() {
    let disk = rule(true, LinuxDeviceType::B, Some(8), Some(0), "r");
    let rules = Rules::parse(&[deny_all(), disk]).unwrap();
    let first = rules.changes("a *:* rwm\n");
    assert_eq!(first[0], ("devices.deny", "a".to_owned()));
    let list: String = first[1..]
        .iter()
        .map(|(file, value)| {
            assert_eq!(*file, "devices.allow");
            format!("{value}\n")
        })
        .collect();
    assert_eq!(rules.changes(&list), []);
    let stricter = Rules::parse(&[deny_all()]).unwrap();
    assert_eq!(
        stricter.changes(&list),
        [("devices.deny", "b 8:0 r".to_owned())]
    );
}

proptest::proptest! {
    /// A deny-all list followed by allows: the program allows exactly what one of the rules, or one of the usual
    /// devices, contains.
    #[test]
    fn the_program_agrees_with_the_rules(
        rules in proptest::collection::vec((0u32..3, 0u32..3, 1u8..8), 0..6),
        major in 0u32..3,
        minor in 0u32..3,
        access in 1u8..8,
    ) {
        let mut list = vec![deny_all()];
        for (major, minor, access) in &rules {
            list.push(rule(
                true,
                LinuxDeviceType::B,
                Some(i64::from(*major)),
                Some(i64::from(*minor)),
                &Access(*access).to_string(),
            ));
        }
        let granted = rules
            .iter()
            .filter(|(its_major, its_minor, _)| *its_major == major && *its_minor == minor)
            .fold(0, |all, (_, _, access)| all | access);
        let expected = access & !granted == 0 || access == MKNOD;
        let program = Rules::parse(&list).unwrap().program();
        proptest::prop_assert_eq!(run(&program, Kind::Block, major, minor, access), expected);
    }
}
