//! Which devices a cgroup's processes may use: OCI's ordered rules, made into one allow list or deny list, and from
//! there into v1's `devices.allow` and `devices.deny` or v2's `BPF_PROG_TYPE_CGROUP_DEVICE` program.
//!
//! ```text
//! [deny all, allow c 1:3 rwm, …] ── Rules::parse ──► Rules ──► changes() ──► v1 files
//!                                                          └─► program() ──► sys::attach_device_program (v2)
//! ```
//!
//! As in runc the rules begin with nothing allowed, and the devices that every container has are always added.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use podling_systemd::{Property, PropertyValue};

use super::control;
use super::error::{Error, Result};
use super::sys;

/// `mknod(2)`, `open(2)` for reading and for writing, as bits of the kernel's `BPF_DEVCG_ACC_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Access(u8);

impl Access {
    const MKNOD: u8 = 1;
    const READ: u8 = 2;
    const WRITE: u8 = 4;
    const ALL: Self = Self(Self::MKNOD | Self::READ | Self::WRITE);

    fn parse(text: &str) -> Option<Self> {
        text.chars().try_fold(Self(0), |Self(bits), letter| {
            let bit = match letter {
                'm' => Self::MKNOD,
                'r' => Self::READ,
                'w' => Self::WRITE,
                _ => return None,
            };
            Some(Self(bits | bit))
        })
    }

    fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Access {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, letter) in [(Self::READ, "r"), (Self::WRITE, "w"), (Self::MKNOD, "m")] {
            if self.0 & bit != 0 {
                out.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// Block or character, with the kernel's `BPF_DEVCG_DEV_*` numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Block = 1,
    Char = 2,
}

/// One device, or all of a kind, or all of one major number. `None` stands for any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Device {
    kind: Kind,
    major: Option<u32>,
    minor: Option<u32>,
}

impl Device {
    const fn character(major: u32, minor: Option<u32>) -> Self {
        Self {
            kind: Kind::Char,
            major: Some(major),
            minor,
        }
    }

    /// systemd.resource-control(5), `DeviceAllow=`: a node by its numbers, which need not exist, or a whole major.
    fn systemd_name(&self) -> String {
        let kind = match self.kind {
            Kind::Block => "block",
            Kind::Char => "char",
        };
        match (self.major, self.minor) {
            (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
            (Some(major), None) => format!("{kind}-{major}"),
            // One minor of all majors has no name; the cgroup's program narrows it down.
            (None, _) => format!("{kind}-*"),
        }
    }

    /// True when every device that `other` names is named by `self`.
    fn covers(&self, other: &Self) -> bool {
        self.kind == other.kind
            && (self.major.is_none() || self.major == other.major)
            && (self.minor.is_none() || self.minor == other.minor)
    }

    /// True when some device is named by both.
    fn overlaps(&self, other: &Self) -> bool {
        let meet =
            |one: Option<u32>, two: Option<u32>| one.is_none() || two.is_none() || one == two;
        self.kind == other.kind && meet(self.major, other.major) && meet(self.minor, other.minor)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.kind {
            Kind::Block => 'b',
            Kind::Char => 'c',
        };
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |it| it.to_string());
        write!(
            out,
            "{letter} {}:{}",
            number(self.major),
            number(self.minor)
        )
    }
}

/// What every container may use, as in runc: make any device node (which is of no use without opening it), and null,
/// zero, full, random, urandom, tty, console, ptmx, and its own pseudo-terminals.
const ALWAYS: [(Device, Access); 11] = [
    (
        Device {
            kind: Kind::Char,
            major: None,
            minor: None,
        },
        Access(Access::MKNOD),
    ),
    (
        Device {
            kind: Kind::Block,
            major: None,
            minor: None,
        },
        Access(Access::MKNOD),
    ),
    (Device::character(1, Some(3)), Access::ALL),
    (Device::character(1, Some(5)), Access::ALL),
    (Device::character(1, Some(7)), Access::ALL),
    (Device::character(1, Some(8)), Access::ALL),
    (Device::character(1, Some(9)), Access::ALL),
    (Device::character(5, Some(0)), Access::ALL),
    (Device::character(5, Some(1)), Access::ALL),
    (Device::character(5, Some(2)), Access::ALL),
    (Device::character(136, None), Access::ALL),
];

/// Ordered rules reduced to a default and its exceptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rules {
    /// What happens to a device without exception.
    allow_by_default: bool,
    /// Accesses that go the other way.
    exceptions: BTreeMap<Device, Access>,
}

impl Rules {
    /// Reduces OCI's rules.
    ///
    /// # Errors
    /// When a rule is malformed, or takes away a part of what an earlier wider rule gave, which neither kernel
    /// interface can express.
    pub(super) fn parse(rules: &[LinuxDeviceCgroup]) -> Result<Self> {
        let mut parsed = Self {
            allow_by_default: false,
            exceptions: BTreeMap::new(),
        };
        for rule in rules {
            parsed.add(rule)?;
        }
        for (device, access) in ALWAYS {
            parsed.set(device, access, true)?;
        }
        Ok(parsed)
    }

    fn add(&mut self, rule: &LinuxDeviceCgroup) -> Result<()> {
        let access = match rule.access().as_deref() {
            None | Some("") => Access::ALL,
            Some(text) => Access::parse(text)
                .ok_or_else(|| unsupported(format!("access {text:?} is not made of r, w and m")))?,
        };
        let major = parse_number(rule.major())?;
        let minor = parse_number(rule.minor())?;
        let kinds: &[Kind] = match rule.typ().unwrap_or(LinuxDeviceType::A) {
            LinuxDeviceType::A => {
                if major.is_none() && minor.is_none() && access == Access::ALL {
                    self.allow_by_default = rule.allow();
                    self.exceptions.clear();
                    return Ok(());
                }
                &[Kind::Block, Kind::Char]
            }
            LinuxDeviceType::B => &[Kind::Block],
            LinuxDeviceType::C | LinuxDeviceType::U => &[Kind::Char],
            LinuxDeviceType::P => return Err(unsupported("a FIFO is no device".to_owned())),
        };
        for &kind in kinds {
            self.set(Device { kind, major, minor }, access, rule.allow())?;
        }
        Ok(())
    }

    /// Allows or denies one entry.
    fn set(&mut self, device: Device, access: Access, allow: bool) -> Result<()> {
        if allow != self.allow_by_default {
            let entry = self.exceptions.entry(device).or_insert(Access(0));
            *entry = entry.with(access);
            return Ok(());
        }
        // Back to the default: exceptions within this entry go; one that is wider cannot be cut.
        let wider = self.exceptions.iter().find(|(other, has)| {
            device.overlaps(other)
                && !device.covers(other)
                && !has.without(has.without(access)).is_empty()
        });
        if let Some((other, _)) = wider {
            // An allowed access that is denied in part must be refused: it would stay open. A denied one that is
            // allowed in part stays closed, which is the safe side, but is not what was asked for either, except for
            // the devices that are always allowed.
            let verb = if allow { "allow" } else { "deny" };
            return Err(unsupported(format!(
                "cannot {verb} {device} after a rule for {other}, of which it is a part"
            )));
        }
        for (other, has) in &mut self.exceptions {
            if device.covers(other) {
                *has = has.without(access);
            }
        }
        self.exceptions.retain(|_, access| !access.is_empty());
        Ok(())
    }

    /// As properties of a systemd unit. It knows lists of allowed devices only: with exceptions from an allowed rest it
    /// is told to leave devices alone.
    pub(super) fn properties(&self) -> Vec<Property> {
        let policy = if self.allow_by_default {
            "auto"
        } else {
            "strict"
        };
        let mut list = vec![Property::new(
            "DevicePolicy",
            PropertyValue::Text(policy.to_owned()),
        )];
        if !self.allow_by_default {
            let devices = self.exceptions.iter();
            let devices =
                devices.map(|(device, access)| (device.systemd_name(), access.to_string()));
            list.push(Property::new(
                "DeviceAllow",
                PropertyValue::Pairs(devices.collect()),
            ));
        }
        list
    }

    /// The v2 program. Its context is `struct bpf_cgroup_dev_ctx { u32 access_type, major, minor }`, the access type
    /// holding the kind in its lower and the access bits in its upper half (linux/bpf.h).
    fn program(&self) -> Vec<Instruction> {
        use Instruction as I;
        const KIND: u8 = 2;
        const ACCESS: u8 = 3;
        const MAJOR: u8 = 4;
        const MINOR: u8 = 5;
        const SCRATCH: u8 = 1;
        let mut code = vec![
            I::load_word(KIND, 0),
            I::and(KIND, 0xffff),
            I::load_word(ACCESS, 0),
            I::shift_right(ACCESS, 16),
            I::load_word(MAJOR, 4),
            I::load_word(MINOR, 8),
        ];
        for (device, access) in &self.exceptions {
            // Each jump's target is the instruction after this exception; its distance is filled in last.
            let start = code.len();
            code.push(I::jump_if_not(KIND, device.kind as i32));
            if *access != Access::ALL {
                code.push(I::copy(SCRATCH, ACCESS));
                if self.allow_by_default {
                    // Denied when any access asked for is among these.
                    code.push(I::and(SCRATCH, i32::from(access.0)));
                    code.push(I::jump_if(SCRATCH, 0));
                } else {
                    // Allowed when no access asked for is beyond these.
                    code.push(I::and(SCRATCH, i32::from(Access::ALL.without(*access).0)));
                    code.push(I::jump_if_not(SCRATCH, 0));
                }
            }
            if let Some(major) = device.major {
                code.push(I::jump_if_not(MAJOR, major as i32));
            }
            if let Some(minor) = device.minor {
                code.push(I::jump_if_not(MINOR, minor as i32));
            }
            code.push(I::set(0, i32::from(!self.allow_by_default)));
            code.push(I::exit());
            let end = code.len();
            for (index, instruction) in code.iter_mut().enumerate().skip(start) {
                instruction.aim(end - index - 1);
            }
        }
        code.push(I::set(0, i32::from(self.allow_by_default)));
        code.push(I::exit());
        code
    }

    /// The writes that lead from what `devices.list` says to these rules: (file, value). Nothing that is allowed
    /// before and after is denied in between.
    fn changes(&self, list: &str) -> Vec<(&'static str, String)> {
        let mut changes = Vec::new();
        if self.allow_by_default {
            changes.push(("devices.allow", "a".to_owned()));
            for (device, access) in &self.exceptions {
                changes.push(("devices.deny", format!("{device} {access}")));
            }
            return changes;
        }
        let current = parse_list(list);
        if current.is_none() {
            changes.push(("devices.deny", "a".to_owned()));
        }
        let current = current.unwrap_or_default();
        for (device, access) in &self.exceptions {
            let has = current.get(device).copied().unwrap_or(Access(0));
            let missing = access.without(has);
            if !missing.is_empty() {
                changes.push(("devices.allow", format!("{device} {missing}")));
            }
        }
        for (device, has) in &current {
            let wanted = self.exceptions.get(device).copied().unwrap_or(Access(0));
            let surplus = has.without(wanted);
            if !surplus.is_empty() {
                changes.push(("devices.deny", format!("{device} {surplus}")));
            }
        }
        changes
    }
}

/// The allow list in `devices.list`; `None` when everything is allowed (`a *:* rwm`).
fn parse_list(list: &str) -> Option<BTreeMap<Device, Access>> {
    let mut devices = BTreeMap::new();
    for line in list.lines() {
        let mut words = line.split_whitespace();
        let kind = match words.next() {
            Some("b") => Kind::Block,
            Some("c") => Kind::Char,
            _ => return None,
        };
        let (major, minor) = words.next()?.split_once(':')?;
        let device = Device {
            kind,
            major: major.parse().ok(),
            minor: minor.parse().ok(),
        };
        let access = Access::parse(words.next()?)?;
        devices.insert(device, access);
    }
    Some(devices)
}

/// A device number; absent and -1 stand for any.
fn parse_number(number: Option<i64>) -> Result<Option<u32>> {
    match number {
        None | Some(-1) => Ok(None),
        // The kernel's device numbers have 12 and 20 bits; the comparison in BPF takes a positive i32.
        Some(number @ 0..=0xf_ffff) => Ok(Some(number as u32)),
        Some(number) => Err(unsupported(format!("{number} is no device number"))),
    }
}

fn unsupported(reason: String) -> Error {
    Error::Unsupported {
        limit: "linux.resources.devices",
        reason,
    }
}

/// Writes the rules to a v1 `devices` cgroup.
pub(super) fn apply_v1(dir: &Path, rules: &Rules) -> Result<()> {
    let list = control::read(dir, "devices.list")?.unwrap_or_default();
    rules
        .changes(&list)
        .chunk_by(|(a, _), (b, _)| a == b)
        .filter_map(|changes| Some((changes.first()?.0, changes)))
        .try_for_each(|(file, changes)| {
            control::write_each(dir, file, changes.iter().map(|(_, value)| value.as_str()))
        })
}

/// Attaches the rules' program to a v2 cgroup, in the place of those attached before.
pub(super) fn apply_v2(dir: &Path, rules: &Rules) -> Result<()> {
    let error = |attempt| {
        move |source| Error::Devices {
            attempt,
            path: dir.to_owned(),
            source,
        }
    };
    let cgroup = std::fs::File::open(dir).map_err(error("open the directory for"))?;
    let program = sys::load_device_program(&rules.program()).map_err(error("load"))?;
    let before = sys::device_programs(&cgroup).map_err(error("list"))?;
    // While old and new are both attached, a device needs the leave of both: never more than either gives.
    sys::attach_device_program(&cgroup, &program).map_err(error("attach"))?;
    for old in before {
        sys::detach_device_program(&cgroup, &old).map_err(error("detach"))?;
    }
    Ok(())
}

/// One eBPF instruction, as the kernel takes it (`struct bpf_insn`, Documentation/bpf/instruction-set).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    code: u8,
    /// Destination in the lower, source in the upper four bits.
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    const LOAD_WORD: u8 = 0x61;
    const AND: u8 = 0x57;
    const SHIFT_RIGHT: u8 = 0x77;
    const COPY: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const JUMP_IF: u8 = 0x15;
    const JUMP_IF_NOT: u8 = 0x55;
    const EXIT: u8 = 0x95;

    const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        Self {
            code,
            registers: destination | source << 4,
            offset,
            immediate,
        }
    }

    /// `register = *(u32 *)(r1 + offset)`; r1 points to the context at the start.
    const fn load_word(register: u8, offset: i16) -> Self {
        Self::new(Self::LOAD_WORD, register, 1, offset, 0)
    }

    const fn and(register: u8, mask: i32) -> Self {
        Self::new(Self::AND, register, 0, 0, mask)
    }

    const fn shift_right(register: u8, bits: i32) -> Self {
        Self::new(Self::SHIFT_RIGHT, register, 0, 0, bits)
    }

    const fn copy(to: u8, from: u8) -> Self {
        Self::new(Self::COPY, to, from, 0, 0)
    }

    const fn set(register: u8, value: i32) -> Self {
        Self::new(Self::SET, register, 0, 0, value)
    }

    const fn jump_if(register: u8, value: i32) -> Self {
        Self::new(Self::JUMP_IF, register, 0, 0, value)
    }

    const fn jump_if_not(register: u8, value: i32) -> Self {
        Self::new(Self::JUMP_IF_NOT, register, 0, 0, value)
    }

    const fn exit() -> Self {
        Self::new(Self::EXIT, 0, 0, 0, 0)
    }

    /// Makes a jump lead `distance` instructions beyond the next; other instructions stay. A block is 9 instructions
    /// at most.
    fn aim(&mut self, distance: usize) {
        if matches!(self.code, Self::JUMP_IF | Self::JUMP_IF_NOT) {
            self.offset = distance as i16;
        }
    }
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
