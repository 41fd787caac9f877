//! What a filter says to a system call: an interpreter for the instructions of classic BPF that filters are made of.
//!
//! The kernel runs filters; this answers questions about one before it is loaded. Source:
//! Documentation/networking/filter.rst and kernel/seccomp.c (seccomp_check_filter) of Linux.

/// A system call as a filter sees it (`struct seccomp_data`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) number: u32,
    /// `AUDIT_ARCH_*`.
    pub(super) architecture: u32,
    pub(super) args: [u64; 6],
}

impl Call {
    /// The 32-bit word at an offset of `struct seccomp_data`; the instruction pointer reads as 0.
    fn word(&self, offset: u32) -> Option<u32> {
        match offset {
            0 => Some(self.number),
            4 => Some(self.architecture),
            8 | 12 => Some(0),
            16..64 if offset.is_multiple_of(4) => {
                let arg = self.args[((offset - 16) / 8) as usize].to_ne_bytes();
                let half = if offset.is_multiple_of(8) {
                    &arg[..4]
                } else {
                    &arg[4..]
                };
                Some(u32::from_ne_bytes(half.try_into().ok()?))
            }
            _ => None,
        }
    }
}

/// The filter's answer, `SECCOMP_RET_*`. None when the program is not one that the kernel would take.
pub(super) fn verdict(program: &[u8], call: &Call) -> Option<u32> {
    let (instructions, rest) = program.as_chunks::<8>();
    if !rest.is_empty() {
        return None;
    }
    let (mut accumulator, mut index) = (0_u32, 0_u32);
    let mut scratch = [0_u32; 16];
    let mut at = 0_usize;
    // Jumps lead forward only, so that every program ends.
    loop {
        let &[c0, c1, if_true, if_false, v0, v1, v2, v3] = instructions.get(at)?;
        let value = u32::from_ne_bytes([v0, v1, v2, v3]);
        at += 1;
        let mut jump = |condition: bool| {
            at += usize::from(if condition { if_true } else { if_false });
        };
        match u16::from_ne_bytes([c0, c1]) {
            // LD W ABS, LD IMM, LD MEM, LDX IMM, LDX MEM, ST, STX
            0x20 => accumulator = call.word(value)?,
            0x00 => accumulator = value,
            0x60 => accumulator = *scratch.get(value as usize)?,
            0x01 => index = value,
            0x61 => index = *scratch.get(value as usize)?,
            0x02 => *scratch.get_mut(value as usize)? = accumulator,
            0x03 => *scratch.get_mut(value as usize)? = index,
            // AND, OR, LSH, RSH; TAX, TXA
            0x54 => accumulator &= value,
            0x5c => accumulator &= index,
            0x44 => accumulator |= value,
            0x4c => accumulator |= index,
            0x64 => accumulator = accumulator.checked_shl(value)?,
            0x74 => accumulator = accumulator.checked_shr(value)?,
            0x07 => index = accumulator,
            0x87 => accumulator = index,
            // JA, JEQ, JGT, JGE, JSET; each but JA with a constant or with the index
            0x05 => at = at.checked_add(value as usize)?,
            0x15 => jump(accumulator == value),
            0x1d => jump(accumulator == index),
            0x25 => jump(accumulator > value),
            0x2d => jump(accumulator > index),
            0x35 => jump(accumulator >= value),
            0x3d => jump(accumulator >= index),
            0x45 => jump(accumulator & value != 0),
            0x4d => jump(accumulator & index != 0),
            // RET
            0x06 => return Some(value),
            0x16 => return Some(accumulator),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn program(code: &[(u16, u8, u8, u32)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (operation, if_true, if_false, value) in code {
            bytes.extend(operation.to_ne_bytes());
            bytes.extend([*if_true, *if_false]);
            bytes.extend(value.to_ne_bytes());
        }
        bytes
    }

    const CALL: Call = Call {
        number: 7,
        architecture: 9,
        args: [1 << 32 | 5, 0, 0, 0, 0, 6],
    };

    #[test]
    fn arguments_are_two_words() {
        let load = |offset| program(&[(0x20, 0, 0, offset), (0x16, 0, 0, 0)]);
        let little = cfg!(target_endian = "little");
        assert_eq!(verdict(&load(0), &CALL), Some(7));
        assert_eq!(verdict(&load(4), &CALL), Some(9));
        assert_eq!(verdict(&load(16), &CALL), Some(if little { 5 } else { 1 }));
        assert_eq!(verdict(&load(20), &CALL), Some(if little { 1 } else { 5 }));
        assert_eq!(verdict(&load(64), &CALL), None);
        assert_eq!(verdict(&load(17), &CALL), None);
    }

    #[test]
    fn jumps_skip() {
        let code = program(&[
            (0x20, 0, 0, 0),
            (0x15, 0, 1, 7),
            (0x06, 0, 0, 1),
            (0x06, 0, 0, 2),
        ]);
        assert_eq!(verdict(&code, &CALL), Some(1));
        assert_eq!(verdict(&code, &Call { number: 8, ..CALL }), Some(2));
    }

    #[test]
    fn what_the_kernel_would_refuse_has_no_verdict() {
        assert_eq!(verdict(&[], &CALL), None);
        assert_eq!(verdict(&[0; 7], &CALL), None);
        assert_eq!(verdict(&program(&[(0x05, 0, 0, u32::MAX)]), &CALL), None);
        assert_eq!(verdict(&program(&[(0x02, 0, 0, 16)]), &CALL), None);
        assert_eq!(verdict(&program(&[(0xff, 0, 0, 0)]), &CALL), None);
    }

    proptest! {
        #[test]
        fn no_program_panics_or_runs_for_ever(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            verdict(&bytes, &CALL);
        }
    }
}
