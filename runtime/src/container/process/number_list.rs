//! Lists of processors or memory nodes: `0-3,7` (cpuset(7), "List format").

/// Bit n stands for number n; the last word is not 0.
pub(super) type Bits = Vec<u64>;

/// More than any kernel has processors or nodes (`CONFIG_NR_CPUS` of at most 8192).
const NUMBER_MAX: u32 = 8191;

/// Parses a list; an empty one has no words. The error is for people.
pub(super) fn parse(text: &str) -> Result<Bits, String> {
    let mut bits = Vec::new();
    if text.trim().is_empty() {
        return Ok(bits);
    }
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            text.trim()
                .parse()
                .ok()
                .filter(|&n: &u32| n <= NUMBER_MAX)
                .ok_or_else(|| {
                    format!("{part:?} is not a number from 0 to {NUMBER_MAX}, or a range of such")
                })
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("the range {part:?} is backwards"));
        }
        for number in first..=last {
            let word = (number / u64::BITS) as usize;
            if bits.len() <= word {
                bits.resize(word + 1, 0);
            }
            bits[word] |= 1 << (number % u64::BITS);
        }
    }
    Ok(bits)
}

/// The bits as one hexadecimal number, as taskset(1) has them.
pub(super) fn mask(bits: &[u64]) -> String {
    let Some((last, others)) = bits.split_last() else {
        return "0".to_owned();
    };
    others.iter().rev().fold(format!("{last:x}"), |text, word| {
        format!("{text}{word:016x}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_and_ranges_are_bits() {
        assert_eq!(parse("0-3,7").expect("parses"), [0b1000_1111]);
        assert_eq!(parse("64").expect("parses"), [0, 1]);
        assert_eq!(parse(" ").expect("parses"), [0; 0]);
    }

    #[test]
    fn a_mask_is_one_number() {
        let shown = |list| mask(&parse(list).expect("parses"));
        assert_eq!(shown(""), "0");
        assert_eq!(shown("0-1,7"), "83");
        assert_eq!(shown("4,65"), "20000000000000010");
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for wrong in [
            "a",
            "1-",
            "-1",
            "3-1",
            "1,,2",
            "8192",
            "0-4294967296",
            "1;2",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn every_listed_number_is_there_and_no_other(numbers in proptest::collection::btree_set(0u32..300, 1..20)) {
            let text: Vec<String> = numbers.iter().map(u32::to_string).collect();
            let bits = parse(&text.join(",")).expect("parses");
            for number in 0..400u32 {
                let word = bits.get((number / 64) as usize).copied().unwrap_or(0);
                prop_assert_eq!(word >> (number % 64) & 1 == 1, numbers.contains(&number));
            }
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            if let Ok(bits) = parse(&text) {
                prop_assert!(bits.len() <= 128);
            }
        }
    }
}
