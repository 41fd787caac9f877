//! Filters, run by a small interpreter, and one put on a thread of this process.

use std::collections::HashSet;

use oci_spec::runtime::{Capability, LinuxSeccomp, LinuxSeccompOperator as Operator};

use super::*;

mod oracle;
mod properties;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// What the filter says.
fn run(filter: &Filter, architecture: u32, number: u32, args: [u64; 6]) -> u32 {
    let call = verdict::Call {
        number,
        architecture,
        args,
    };
    verdict::verdict(&filter.program, &call).expect("a program that the kernel takes")
}

fn call(filter: &Filter, number: libc::c_long, first: u64) -> u32 {
    run(filter, X86_64, number as u32, [first, 0, 0, 0, 0, 0])
}

fn profile(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).unwrap()
}

fn default_filter(capabilities: &[Capability]) -> Filter {
    let capabilities: HashSet<Capability> = capabilities.iter().copied().collect();
    compile(&default_profile(&capabilities)).unwrap()
}

#[test]
fn the_default_profile_allows_work_and_refuses_the_kernels_controls() {
    let filter = default_filter(&[]);
    for number in [
        libc::SYS_read,
        libc::SYS_openat,
        libc::SYS_execve,
        libc::SYS_futex,
    ] {
        assert_eq!(call(&filter, number, 0), ALLOW, "{number}");
    }
    for number in [
        libc::SYS_mount,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_bpf,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_kexec_load,
        libc::SYS_init_module,
        libc::SYS_io_uring_setup,
        libc::SYS_userfaultfd,
        libc::SYS_perf_event_open,
        libc::SYS_open_by_handle_at,
        libc::SYS_swapon,
        libc::SYS_reboot,
    ] {
        assert_eq!(call(&filter, number, 0), EPERM, "{number}");
    }
}

#[test]
fn the_default_profile_lets_nobody_make_namespaces() {
    let filter = default_filter(&[]);
    let thread = (libc::CLONE_VM | libc::CLONE_THREAD) as u64;
    assert_eq!(call(&filter, libc::SYS_clone, thread), ALLOW);
    for flag in [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWCGROUP,
    ] {
        assert_eq!(call(&filter, libc::SYS_clone, thread | flag as u64), EPERM);
    }
    assert_eq!(call(&filter, libc::SYS_clone3, 0), ENOSYS);
}

#[test]
fn the_default_profile_follows_the_capabilities() {
    let admin = default_filter(&[Capability::SysAdmin]);
    for number in [libc::SYS_mount, libc::SYS_clone3, libc::SYS_unshare] {
        assert_eq!(call(&admin, number, 0), ALLOW);
    }
    assert_eq!(
        call(&admin, libc::SYS_clone, libc::CLONE_NEWNS as u64),
        ALLOW
    );
    assert_eq!(call(&admin, libc::SYS_chroot, 0), EPERM);
    let chroot = default_filter(&[Capability::SysChroot]);
    assert_eq!(call(&chroot, libc::SYS_chroot, 0), ALLOW);
    assert_eq!(call(&chroot, libc::SYS_mount, 0), EPERM);
}

#[test]
fn the_default_profile_looks_at_arguments() {
    let filter = default_filter(&[]);
    assert_eq!(call(&filter, libc::SYS_personality, 0xffff_ffff), ALLOW);
    // ADDR_NO_RANDOMIZE
    assert_eq!(call(&filter, libc::SYS_personality, 0x004_0000), EPERM);
    assert_eq!(call(&filter, libc::SYS_socket, libc::AF_INET as u64), ALLOW);
    assert_eq!(
        call(&filter, libc::SYS_socket, libc::AF_VSOCK as u64),
        EPERM
    );
}

#[test]
fn programs_of_the_other_architectures_are_filtered_too() {
    let filter = default_filter(&[]);
    // i386: 3 is read, 21 is mount.
    assert_eq!(run(&filter, I386, 3, [0; 6]), ALLOW);
    assert_eq!(run(&filter, I386, 21, [0; 6]), EPERM);
    // x32: 0x40000000 + 0 is read, + 165 is mount.
    assert_eq!(run(&filter, X86_64, 0x4000_0000, [0; 6]), ALLOW);
    assert_eq!(run(&filter, X86_64, 0x4000_0000 + 165, [0; 6]), EPERM);
    let alien = 0x8000_0016;
    let killed = [
        libc::SECCOMP_RET_KILL_THREAD,
        libc::SECCOMP_RET_KILL_PROCESS,
    ];
    assert!(killed.contains(&run(&filter, alien, 3, [0; 6])));
    assert!(killed.contains(&run(&filter, alien, 500, [0; 6])));
}

#[test]
fn system_calls_newer_than_the_profile_are_unknown_not_forbidden() {
    let filter = default_filter(&[]);
    // fchmodat2 is as new, and in the profile.
    for architecture in [X86_64, I386] {
        assert_eq!(run(&filter, architecture, 452, [0; 6]), ALLOW);
        assert_eq!(run(&filter, architecture, 460, [0; 6]), ENOSYS);
        assert_eq!(run(&filter, architecture, 1000, [0; 6]), ENOSYS);
    }
    let strict = profile(r#"{"defaultAction":"SCMP_ACT_KILL_PROCESS"}"#);
    let strict = compile(&strict).unwrap();
    assert_eq!(call(&strict, 1000, 0), libc::SECCOMP_RET_KILL_PROCESS);
}

#[test]
fn a_deny_list_holds_for_newer_system_calls_too() {
    let deny = profile(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {"names":["mseal","mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}"#,
    );
    let filter = compile(&deny).unwrap();
    let eacces = libc::SECCOMP_RET_ERRNO | 13;
    assert_eq!(call(&filter, 462, 0), eacces);
    assert_eq!(call(&filter, libc::SYS_mkdir, 0), eacces);
    assert_eq!(call(&filter, 463, 0), ALLOW);
    assert_eq!(call(&filter, 1000, 0), ALLOW);
}

/// Rules for system calls that libseccomp 2.5.4 does not know, on each architecture of the profile.
#[test]
fn conditions_hold_for_newer_system_calls_too() {
    let filter = compile(
        &profile(
            r#"{"defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": [
                {"names": ["file_getattr"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 3, "value": 0, "op": "SCMP_CMP_EQ"}]},
                {"names": ["file_setattr"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 9, "op": "SCMP_CMP_LT"}]},
                {"names": ["file_setattr"], "action": "SCMP_ACT_KILL_PROCESS", "args": [{"index": 1, "value": 1, "op": "SCMP_CMP_EQ"}]},
                {"names": ["open_tree_attr"], "action": "SCMP_ACT_ERRNO"}
            ]}"#,
        ),
    )
    .unwrap();
    for (architecture, bit) in [(X86_64, 0), (I386, 0), (X86_64, 0x4000_0000)] {
        let fourth = |arg| run(&filter, architecture, bit | 468, [7, 7, 7, arg, 7, 7]);
        assert_eq!(fourth(0), ALLOW);
        assert_eq!(fourth(0x100), EPERM);
        let setattr = |first, second| {
            let args = [first, second, 0, 0, 0, 0];
            run(&filter, architecture, bit | 469, args)
        };
        assert_eq!(setattr(8, 0), ALLOW);
        assert_eq!(setattr(9, 0), EPERM);
        assert_eq!(setattr(8, 1), libc::SECCOMP_RET_KILL_PROCESS);
        // It is named: what the profile says of it is the default action, not that nobody knows it.
        assert_eq!(run(&filter, architecture, bit | 467, [0; 6]), EPERM);
    }
    assert_eq!(run(&filter, X86_64, 466, [0; 6]), ENOSYS);
}

#[test]
fn what_cannot_be_filtered_as_written_is_refused() {
    for (json, word) in [
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]}"#,
            "listenerPath: SCMP_ACT_NOTIFY needs",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerMetadata":"m"}"#,
            "listenerMetadata",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_NOTIFY","listenerPath":"/run/agent.sock"}"#,
            "sendmsg must be allowed",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":[],"action":"SCMP_ACT_KILL"}]}"#,
            "syscalls[0].names",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","defaultErrnoRet":1}"#,
            "defaultErrnoRet",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
                {"names":["mkdir"],"action":"SCMP_ACT_KILL","errnoRet":1}]}"#,
            "syscalls[0].errnoRet",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#,
            "flags",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
                {"names":["no_such_call"],"action":"SCMP_ACT_KILL"}]}"#,
            "no_such_call",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":70000}"#,
            "defaultErrnoRet",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["socket"],"action":"SCMP_ACT_ALLOW",
                "args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}]}"#,
            "six",
        ),
    ] {
        let error = compile(&profile(json)).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

/// As runc and crun read it.
#[test]
fn of_two_conditions_on_one_argument_any_suffices() {
    let allow = profile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[
            {"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":16,"op":"SCMP_CMP_EQ"},
            {"index":1,"value":3,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    let filter = compile(&allow).unwrap();
    let socket = |domain: u64, kind: u64| {
        let args = [domain, kind, 0, 0, 0, 0];
        run(&filter, X86_64, libc::SYS_socket as u32, args)
    };
    assert_eq!(socket(1, 9), ALLOW);
    assert_eq!(socket(16, 9), ALLOW);
    assert_eq!(socket(2, 3), ALLOW);
    assert_eq!(socket(2, 9), EPERM);
}

#[test]
fn every_action_is_what_the_kernel_calls_it() {
    for (action, want) in [
        ("SCMP_ACT_KILL", libc::SECCOMP_RET_KILL_THREAD),
        ("SCMP_ACT_KILL_THREAD", libc::SECCOMP_RET_KILL_THREAD),
        ("SCMP_ACT_KILL_PROCESS", libc::SECCOMP_RET_KILL_PROCESS),
        ("SCMP_ACT_TRAP", libc::SECCOMP_RET_TRAP),
        ("SCMP_ACT_ERRNO", EPERM),
        (
            "SCMP_ACT_TRACE",
            libc::SECCOMP_RET_TRACE | libc::EPERM as u32,
        ),
        ("SCMP_ACT_LOG", libc::SECCOMP_RET_LOG),
        ("SCMP_ACT_NOTIFY", libc::SECCOMP_RET_USER_NOTIF),
    ] {
        // mseal is newer than what profiles may be expected to know.
        let profile = profile(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/agent.sock","syscalls":[
                {{"names":["mkdir","mseal"],"action":"{action}"}}]}}"#
        ));
        let filter = compile(&profile).unwrap();
        assert_eq!(call(&filter, libc::SYS_mkdir, 0), want, "{action}");
        assert_eq!(call(&filter, 462, 0), want, "{action}");
        assert_eq!(call(&filter, libc::SYS_rmdir, 0), ALLOW, "{action}");
        assert_eq!(filter.agent().is_some(), action == "SCMP_ACT_NOTIFY");
    }
}

#[test]
fn flags_are_the_profiles() {
    let flags = |flags: &str, action: &str| {
        let profile = profile(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/agent.sock",{flags}
                "syscalls":[{{"names":["mkdir"],"action":"{action}"}}]}}"#
        ));
        u64::from(compile(&profile).unwrap().flags)
    };
    let all = r#""flags":["SECCOMP_FILTER_FLAG_TSYNC","SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_SPEC_ALLOW"],"#;
    let three = libc::SECCOMP_FILTER_FLAG_TSYNC
        | libc::SECCOMP_FILTER_FLAG_LOG
        | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    assert_eq!(flags(all, "SCMP_ACT_TRAP"), three);
    assert_eq!(
        flags("", "SCMP_ACT_TRAP"),
        libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
    );
    assert_eq!(flags(r#""flags":[],"#, "SCMP_ACT_TRAP"), 0);
    let listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    assert_eq!(
        flags(all, "SCMP_ACT_NOTIFY"),
        three | listener | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH
    );
    let killable = r#""flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],"#;
    assert_eq!(
        flags(killable, "SCMP_ACT_NOTIFY"),
        listener | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
    );
}

/// No kernel here runs programs of the others, whatever their byte order.
#[test]
fn architectures_that_nobody_has_here_change_nothing() {
    let of = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|it| format!("SCMP_ARCH_{it}")).collect();
        let json = serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": names,
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]});
        compile(&profile(&json.to_string())).unwrap()
    };
    let known = of(&["X86_64", "X86"]);
    let all = [
        "MIPS",
        "X86",
        "S390X",
        "PPC64LE",
        "X86_64",
        "RISCV64",
        "MIPSEL64N32",
        "SHEB",
    ];
    assert_eq!(of(&all), known);
    // For these alone, nothing may be called.
    let none = of(&["MIPSEL", "S390"]);
    assert_eq!(
        call(&none, libc::SYS_read, 0),
        libc::SECCOMP_RET_KILL_THREAD
    );
}

#[test]
fn an_unknown_name_in_an_allow_list_stays_forbidden() {
    let allow = profile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {"names":["read","no_such_call"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    let filter = compile(&allow).unwrap();
    assert_eq!(call(&filter, libc::SYS_read, 0), ALLOW);
    assert_eq!(call(&filter, libc::SYS_write, 0), EPERM);
}

/// libseccomp 2.5.4 would allow `socket(_, 0, 7)`.
#[test]
fn rules_that_libseccomp_merges_wrongly_hold() {
    let rule = |args: serde_json::Value| serde_json::json!({"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": args});
    let masked = rule(serde_json::json!([
        {"index": 1, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"},
        {"index": 2, "value": 1, "op": "SCMP_CMP_LT"}]));
    let greater = rule(serde_json::json!([{"index": 1, "value": 0, "op": "SCMP_CMP_GT"}]));
    for rules in [[&masked, &greater], [&greater, &masked]] {
        let profile = serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules});
        let filter = compile(&self::profile(&profile.to_string())).unwrap();
        let socket = |second, third| {
            let args = [0, second, third, 0, 0, 0];
            run(&filter, X86_64, libc::SYS_socket as u32, args)
        };
        assert_eq!(socket(0, 7), EPERM);
        assert_eq!(socket(0, 0), ALLOW);
        assert_eq!(socket(1 << 32, 7), ALLOW);
    }
}

#[test]
fn of_several_rules_that_hold_the_strictest_is_taken() {
    let filter = compile(
        &profile(
            r#"{"defaultAction": "SCMP_ACT_LOG", "syscalls": [
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 9, "op": "SCMP_CMP_LT"}]},
                {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}]},
                {"names": ["personality"], "action": "SCMP_ACT_KILL_PROCESS", "args": [{"index": 1, "value": 1, "op": "SCMP_CMP_EQ"}]}
            ]}"#,
        ),
    )
    .unwrap();
    let personality = |first, second| {
        let args = [first, second, 0, 0, 0, 0];
        run(&filter, X86_64, libc::SYS_personality as u32, args)
    };
    assert_eq!(personality(4, 0), ALLOW);
    assert_eq!(personality(5, 0), EPERM);
    assert_eq!(personality(5, 1), libc::SECCOMP_RET_KILL_PROCESS);
    assert_eq!(personality(9, 0), libc::SECCOMP_RET_LOG);
}

/// On x86 arguments have 32 bits, and -1 in 64 bits is that argument's -1.
#[test]
fn rules_hold_on_each_architecture() {
    let filter = compile(
        &profile(
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "syscalls": [
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 18446744073709551615, "op": "SCMP_CMP_EQ"}]},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
                {"names": ["read"], "action": "SCMP_ACT_ALLOW"}
            ]}"#,
        ),
    )
    .unwrap();
    let first =
        |architecture, number, arg| run(&filter, architecture, number, [arg, 0, 0, 0, 0, 0]);
    for (architecture, personality, read) in [(X86_64, 135, 0), (I386, 136, 3)] {
        assert_eq!(first(architecture, personality, 8), ALLOW);
        assert_eq!(first(architecture, personality, 7), EPERM);
        assert_eq!(first(architecture, read, 7), ALLOW);
    }
    assert_eq!(first(X86_64, 135, u64::MAX), ALLOW);
    assert_eq!(first(X86_64, 135, u64::from(u32::MAX)), EPERM);
    assert_eq!(first(I386, 136, u64::from(u32::MAX)), ALLOW);
    // Neither call's number is the other's.
    assert_eq!(first(X86_64, 136, 8), EPERM);
    assert_eq!(first(I386, 135, 8), EPERM);
}

/// 32-bit x86 has these calls under numbers of their own and within another call.
#[test]
fn rules_hold_for_calls_that_x86_has_twice() {
    let of = |default: &str, action: &str| {
        let rule = |value| serde_json::json!({"names": ["socket"], "action": action, "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]});
        let profile = serde_json::json!({"defaultAction": default, "syscalls": [rule(1), rule(2)],
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]});
        compile(&self::profile(&profile.to_string()))
    };
    let allowing = of("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW").unwrap();
    for (number, first, verdict) in [(359, 1, ALLOW), (359, 3, EPERM), (102, 1, EPERM)] {
        assert_eq!(
            run(&allowing, I386, number, [first, 0, 0, 0, 0, 0]),
            verdict
        );
    }
    // Within the other call arguments are out of sight: what is forbidden for some is forbidden for all.
    let refusing = of("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO").unwrap();
    for (number, first, verdict) in [
        (359, 1, EPERM),
        (359, 3, ALLOW),
        (102, 1, EPERM),
        (102, 2, ALLOW),
    ] {
        assert_eq!(
            run(&refusing, I386, number, [first, 0, 0, 0, 0, 0]),
            verdict
        );
    }
}

/// ipc(2) has a version in the upper half of what says which call it is.
#[test]
fn what_is_forbidden_is_so_within_ipc_too() {
    let filter = compile(&profile(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "syscalls": [
            {"names": ["shmat"], "action": "SCMP_ACT_ERRNO"}]}"#,
    ))
    .unwrap();
    for (first, verdict) in [(21, EPERM), (0x1_0015, EPERM), (22, ALLOW)] {
        assert_eq!(run(&filter, I386, 117, [first, 0, 0, 0, 0, 0]), verdict);
    }
}

#[test]
fn a_loaded_filter_works() {
    let filter = default_filter(&[]);
    std::thread::spawn(move || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        filter.load().unwrap();
        let refused = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUTS);
        assert_eq!(refused, Err(nix::errno::Errno::EPERM));
        assert!(std::fs::read("/proc/self/status").is_ok());
    })
    .join()
    .unwrap();
}
