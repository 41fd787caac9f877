//! Instructions of classic BPF, as far as filters need them.
//!
//! Source: Documentation/networking/filter.rst of Linux and seccomp(2).

use super::action::Action;

/// One instruction (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    value: u32,
}

impl Instruction {
    /// Offsets in `struct seccomp_data`.
    pub(super) const NUMBER: u32 = 0;
    pub(super) const ARCHITECTURE: u32 = 4;

    pub(super) const JUMP_EQUAL: u16 = 0x15;
    pub(super) const JUMP_GREATER: u16 = 0x25;
    pub(super) const JUMP_NOT_LESS: u16 = 0x35;

    const LOAD: u16 = 0x20;
    const AND: u16 = 0x54;
    const JUMP_ALWAYS: u16 = 0x05;
    const RETURN: u16 = 0x06;

    /// Loads the word at an offset of `struct seccomp_data`.
    pub(super) fn load(offset: u32) -> Self {
        Self::plain(Self::LOAD, offset)
    }

    /// Keeps the bits of a mask of what was loaded.
    pub(super) fn and(mask: u32) -> Self {
        Self::plain(Self::AND, mask)
    }

    /// Compares what was loaded with a value, and skips so many instructions.
    pub(super) fn jump(code: u16, value: u32, if_true: u8, if_false: u8) -> Self {
        Self {
            code,
            if_true,
            if_false,
            value,
        }
    }

    pub(super) fn give(action: Action) -> Self {
        Self::plain(Self::RETURN, action.0)
    }

    fn plain(code: u16, value: u32) -> Self {
        Self {
            code,
            if_true: 0,
            if_false: 0,
            value,
        }
    }

    fn bytes(&self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&self.code.to_ne_bytes());
        bytes[2] = self.if_true;
        bytes[3] = self.if_false;
        bytes[4..].copy_from_slice(&self.value.to_ne_bytes());
        bytes
    }
}

/// Adds a part that runs when what was loaded is a value, and is skipped else.
pub(super) fn only_for(
    code: &mut Vec<Instruction>,
    value: u32,
    part: impl FnOnce(&mut Vec<Instruction>),
) {
    let skips = |skip| match u8::try_from(skip) {
        Ok(skip) => Instruction::jump(Instruction::JUMP_EQUAL, value, 0, skip),
        Err(_) => Instruction::jump(Instruction::JUMP_EQUAL, value, 1, 0),
    };
    skippable(code, skips, part);
}

/// Adds one part for what is less than a value, which must not run on, and after it what follows for the rest.
pub(super) fn split(
    code: &mut Vec<Instruction>,
    value: u32,
    less: impl FnOnce(&mut Vec<Instruction>),
) {
    let skips = |skip| match u8::try_from(skip) {
        Ok(skip) => Instruction::jump(Instruction::JUMP_NOT_LESS, value, skip, 0),
        Err(_) => Instruction::jump(Instruction::JUMP_NOT_LESS, value, 0, 1),
    };
    skippable(code, skips, less);
}

/// Adds a comparison that can skip a part of this length, and the part. A comparison skips no more than a byte can say:
/// then it chooses between the part and a jump before it.
fn skippable(
    code: &mut Vec<Instruction>,
    comparison: impl FnOnce(usize) -> Instruction,
    part: impl FnOnce(&mut Vec<Instruction>),
) {
    let at = code.len();
    code.push(Instruction::give(Action::FOREIGN));
    part(code);
    let skip = code.len() - at - 1;
    code[at] = comparison(skip);
    if skip > u8::MAX.into() {
        let jump = Instruction::plain(Instruction::JUMP_ALWAYS, skip as u32);
        code.insert(at + 1, jump);
    }
}

/// What the kernel takes.
pub(super) fn assemble(code: &[Instruction]) -> Vec<u8> {
    code.iter().flat_map(Instruction::bytes).collect()
}
