//! From v1's scales to v2's.

/// v2's `cpu.weight` (1 to 10000) for v1's `cpu.shares` (2 to 262144), so that 1024 shares become 100 and the extremes
/// meet: `ceil(10^((L² + 125 L) / 612 - 7/34))` with L = log2(shares). It is the conversion of runc since 1.3.2 and
/// crun since 1.23; the older linear one gave a container of one CPU a weight of 39 beside the default of 100.
pub fn cpu_weight(shares: u64) -> u64 {
    const MIN_SHARES: u64 = 2;
    const MAX_SHARES: u64 = 262_144;
    if shares <= MIN_SHARES {
        return 1;
    }
    if shares >= MAX_SHARES {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil() as u64
}

/// v2's `io.weight` (1 to 10000) for v1's `blkio.weight` (10 to 1000).
pub(super) fn io_weight(weight: u16) -> u64 {
    let weight = u64::from(weight.clamp(10, 1000));
    1 + (weight - 10) * 9_999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_weights_are_those_of_the_kubelets_runtimes() {
        let weights: Vec<u64> = [10, 102, 256, 512, 1024, 2048, 4096]
            .into_iter()
            .map(cpu_weight)
            .collect();
        assert_eq!(weights, [4, 17, 35, 59, 100, 174, 303]);
        assert_eq!(cpu_weight(2), 1);
        assert_eq!(cpu_weight(0), 1);
        assert_eq!(cpu_weight(262_144), 10_000);
        assert_eq!(cpu_weight(u64::MAX), 10_000);
    }

    #[test]
    fn io_weights_meet_at_both_ends() {
        assert_eq!(io_weight(10), 1);
        assert_eq!(io_weight(1000), 10_000);
        assert_eq!(io_weight(0), 1);
    }

    proptest::proptest! {
        #[test]
        fn more_shares_never_weigh_less(shares in 0u64..300_000) {
            let weight = cpu_weight(shares);
            proptest::prop_assert!((1..=10_000).contains(&weight));
            proptest::prop_assert!(weight <= cpu_weight(shares + 1));
        }
    }
}
