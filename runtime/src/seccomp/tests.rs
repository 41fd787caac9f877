//! Filters, run by a small interpreter, and one put on a thread of this process.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;

use oci_spec::runtime::{Capability, LinuxSeccomp};
use proptest::prelude::*;

use super::*;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// What the kernel does with the instructions that libseccomp and this module make.
fn run(filter: &Filter, architecture: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_ne_bytes());
    data.extend(architecture.to_ne_bytes());
    data.extend(0u64.to_ne_bytes());
    args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
    let word = |at: usize| u32::from_ne_bytes(data[at..at + 4].try_into().unwrap());
    let mut accumulator = 0u32;
    let mut scratch = [0u32; 16];
    let mut at = 0usize;
    loop {
        let code: [u8; 8] = filter.program[at * 8..at * 8 + 8].try_into().unwrap();
        let operation = u16::from_ne_bytes([code[0], code[1]]);
        let value = u32::from_ne_bytes(code[4..].try_into().unwrap());
        at += 1;
        let mut jump = |condition: bool| at += usize::from(code[if condition { 2 } else { 3 }]);
        match operation {
            0x20 => accumulator = word(value as usize),
            0x02 => scratch[value as usize] = accumulator,
            0x60 => accumulator = scratch[value as usize],
            0x54 => accumulator &= value,
            0x05 => at += value as usize,
            0x15 => jump(accumulator == value),
            0x25 => jump(accumulator > value),
            0x35 => jump(accumulator >= value),
            0x06 => return value,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}

fn call(filter: &Filter, number: libc::c_long, first: u64) -> u32 {
    run(filter, X86_64, number as u32, [first, 0, 0, 0, 0, 0])
}

fn profile(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).unwrap()
}

fn default_filter(capabilities: &[Capability]) -> Filter {
    let capabilities: HashSet<Capability> = capabilities.iter().copied().collect();
    compile(&default_profile(&capabilities), None).unwrap()
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
    // fchmodat2 is in the profile but not in libseccomp 2.5.4.
    for architecture in [X86_64, I386] {
        assert_eq!(run(&filter, architecture, 452, [0; 6]), ALLOW);
        assert_eq!(run(&filter, architecture, 460, [0; 6]), ENOSYS);
        assert_eq!(run(&filter, architecture, 1000, [0; 6]), ENOSYS);
    }
    let strict = profile(r#"{"defaultAction":"SCMP_ACT_KILL_PROCESS"}"#);
    let strict = compile(&strict, None).unwrap();
    assert_eq!(call(&strict, 1000, 0), libc::SECCOMP_RET_KILL_PROCESS);
}

#[test]
fn a_deny_list_holds_for_newer_system_calls_too() {
    let deny = profile(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {"names":["mseal","mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}"#,
    );
    let filter = compile(&deny, None).unwrap();
    let eacces = libc::SECCOMP_RET_ERRNO | 13;
    assert_eq!(call(&filter, 462, 0), eacces);
    assert_eq!(call(&filter, libc::SYS_mkdir, 0), eacces);
    assert_eq!(call(&filter, 463, 0), ALLOW);
    assert_eq!(call(&filter, 1000, 0), ALLOW);
}

#[test]
fn what_cannot_be_filtered_as_written_is_refused() {
    for (json, word) in [
        (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "NOTIFY"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/agent.sock"}"#,
            "listenerPath",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#,
            "flags",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_MIPS"]}"#,
            "architectures",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
                {"names":["no_such_call"],"action":"SCMP_ACT_KILL"}]}"#,
            "no_such_call",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":70000}"#,
            "errnoRet",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["socket"],"action":"SCMP_ACT_ALLOW",
                "args":[{"index":0,"value":1,"op":"SCMP_CMP_GE"},{"index":0,"value":9,"op":"SCMP_CMP_LE"}]}]}"#,
            "two conditions",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["socket"],"action":"SCMP_ACT_ALLOW",
                "args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}]}"#,
            "six",
        ),
    ] {
        let error = compile(&profile(json), None).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn an_unknown_name_in_an_allow_list_stays_forbidden() {
    let allow = profile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {"names":["read","no_such_call"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    let filter = compile(&allow, None).unwrap();
    assert_eq!(call(&filter, libc::SYS_read, 0), ALLOW);
    assert_eq!(call(&filter, libc::SYS_write, 0), EPERM);
}

#[test]
fn the_cache_gives_back_what_was_compiled() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("seccomp");
    let profile = default_profile(&HashSet::new());
    let fresh = compile(&profile, None).unwrap();
    assert_eq!(compile(&profile, Some(&cache)).unwrap(), fresh);
    let files: Vec<_> = std::fs::read_dir(&cache).unwrap().flatten().collect();
    assert_eq!(files.len(), 1, "no temporary file is left");
    let file = files[0].path();
    let mode = files[0].metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(compile(&profile, Some(&cache)).unwrap(), fresh);

    // A torn or changed file, one that others can write and one that is a link are not believed.
    let good = std::fs::read(&file).unwrap();
    let mut changed = good.clone();
    *changed.last_mut().unwrap() ^= 1;
    for bad in [&good[..good.len() / 2], &changed, b""] {
        std::fs::write(&file, bad).unwrap();
        assert_eq!(compile(&profile, Some(&cache)).unwrap(), fresh);
        assert_eq!(std::fs::read(&file).unwrap(), good, "made anew");
    }
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(cache::read(&file).is_none());
    let link = cache.join("link.bpf");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    assert!(cache::read(&link).is_none());
}

#[test]
fn a_cache_that_cannot_be_written_is_no_obstacle() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let profile = default_profile(&HashSet::new());
    let below_a_file = file.path().join("cache");
    assert!(compile(&profile, Some(&below_a_file)).is_ok());
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_cached_filter_is_the_fresh_one(
        default_errno in 1u32..100,
        rules in proptest::collection::vec(
            (0usize..8, 0usize..3, 0u32..100, proptest::option::of((0usize..6, any::<u64>(), 0usize..7))),
            0..8,
        ),
    ) {
        const NAMES: [&str; 8] = ["read", "openat", "mount", "clone", "socket", "fchmodat2", "_llseek", "unheard_of"];
        const ACTIONS: [&str; 3] = ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"];
        const OPERATORS: [&str; 7] = ["SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE",
            "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ"];
        let syscalls: Vec<serde_json::Value> = rules
            .iter()
            .map(|(name, action, errno, arg)| {
                let args: Vec<serde_json::Value> = arg
                    .iter()
                    .map(|(index, value, op)| serde_json::json!({"index": index, "value": value, "op": OPERATORS[*op]}))
                    .collect();
                serde_json::json!({"names": [NAMES[*name]], "action": ACTIONS[*action], "errnoRet": errno, "args": args})
            })
            .collect();
        let profile: LinuxSeccomp = serde_json::from_value(serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": default_errno,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": syscalls,
        })).unwrap();
        let dir = tempfile::tempdir().unwrap();
        // libseccomp refuses rules that contradict each other; then both refuse.
        let fresh = compile(&profile, None).ok();
        prop_assert_eq!(&compile(&profile, Some(dir.path())).ok(), &fresh);
        prop_assert_eq!(&compile(&profile, Some(dir.path())).ok(), &fresh);
    }
}
