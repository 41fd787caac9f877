//! What holds for every profile.

use proptest::prelude::*;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 3000, ..ProptestConfig::default() })]

    /// The translation: a profile's filter gives the verdicts that its rules read as.
    #[test]
    fn verdicts_are_those_of_the_rules(
        rules in proptest::collection::vec(
            (0usize..5, 0usize..4, proptest::collection::vec((0usize..6, (word(), 0usize..7, word())), 0..3)),
            0..8,
        ),
        calls in proptest::collection::vec((0usize..6, proptest::array::uniform6(word())), 64),
    ) {
        // The last one has no rules, the one before is newer than libseccomp.
        const NAMES: [(&str, libc::c_long); 6] = [("read", libc::SYS_read), ("openat", libc::SYS_openat),
            ("mount", libc::SYS_mount), ("socket", libc::SYS_socket), ("file_getattr", 468), ("write", libc::SYS_write)];
        const OPERATORS: [&str; 7] = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
        // The strictest first; the second is the default.
        const ACTIONS: [(&str, u32); 4] = [("KILL_PROCESS", libc::SECCOMP_RET_KILL_PROCESS), ("ERRNO", EPERM),
            ("LOG", libc::SECCOMP_RET_LOG), ("ALLOW", ALLOW)];
        let holds = |arg: u64, value: u64, operator: usize, second: u64| match operator {
            0 => arg != value,
            1 => arg < value,
            2 => arg <= value,
            3 => arg == value,
            4 => arg >= value,
            5 => arg > value,
            // Bits outside of the mask do not count.
            _ => arg & value == second & value,
        };
        let syscalls: Vec<serde_json::Value> = rules.iter().map(|(name, action, args)| {
            let args: Vec<serde_json::Value> = args.iter().map(|(index, (value, operator, two))| serde_json::json!({
                "index": index, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{}", OPERATORS[*operator]),
            })).collect();
            serde_json::json!({
                "names": [NAMES[*name].0], "action": format!("SCMP_ACT_{}", ACTIONS[*action].0), "args": args,
            })
        }).collect();
        let profile: LinuxSeccomp = serde_json::from_value(serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO", "syscalls": syscalls,
        })).unwrap();
        let filter = compile(&profile).unwrap();
        for (name, args) in calls {
            let holding = rules.iter().filter(|(rule, action, conditions)| {
                let mut each = conditions.iter().map(|(index, (value, operator, two))| {
                    holds(args[*index], *value, *operator, *two)
                });
                // Of several conditions on one argument any suffices.
                let repeated = matches!(conditions.as_slice(), [(first, _), (second, _)] if first == second);
                // A rule that says the same as the default is none when it has no conditions.
                let is_none = conditions.is_empty() && *action == 1;
                *rule == name && !is_none && if repeated { each.any(|it| it) } else { each.all(|it| it) }
            });
            let holding: Vec<_> = holding.map(|(_, action, conditions)| (*action, conditions.is_empty())).collect();
            // The first without conditions goes before all that have some.
            let plain = holding.iter().find(|(_, is_plain)| *is_plain);
            let is_new = NAMES[name].0 == "file_getattr" && rules.iter().all(|(rule, ..)| *rule != name);
            let otherwise = if is_new { ENOSYS } else { EPERM };
            let want = plain.or_else(|| holding.iter().min()).map_or(otherwise, |(action, _)| ACTIONS[*action].1);
            prop_assert_eq!(run(&filter, X86_64, NAMES[name].1 as u32, args), want, "{} {:?}", NAMES[name].0, args);
        }
    }
}

/// Arguments whose halves are near each other's.
pub(super) fn word() -> impl Strategy<Value = u64> {
    let halves = (0u64..6, 0u64..9).prop_map(|(upper, lower)| upper << 32 | lower);
    prop_oneof![0u64..9, halves, Just(u64::MAX)]
}
