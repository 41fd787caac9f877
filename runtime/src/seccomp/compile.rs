//! From an OCI profile to a BPF program, by libseccomp, with two additions before its program: several rules for one
//! system call, and rules for those newer than the linked libseccomp ([`conditions`]); and ENOSYS instead of the default
//! action for newer ones that the profile does not name ([`newer`]). A C library that tries a new system call falls back
//! on ENOSYS; on EPERM it fails (as runc found with glibc's `faccessat2`).

use std::fs::File;
use std::io::{Read, Seek};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall,
};
use rustix::fs::MemfdFlags;

use super::bpf::audit_architecture;
use super::conditions::{self, Condition, Rule, Rules};
use super::error::{Error, Result};
use super::newer;
use super::verdict::{Call, verdict};

/// The kernel's longest program (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;

/// `SCMP_FLTATR_CTL_OPTIMIZE` of seccomp_attr_set(3): a binary tree by system call number.
const SEARCH_TREE: u32 = 2;

/// The kernel's largest error number (`MAX_ERRNO`).
const MAX_ERRNO: u32 = 4095;

/// Where the default action stands in a profile.
const DEFAULT_ACTION: &str = "defaultAction";

/// The filter gives a listener when it is loaded.
const NEW_LISTENER: u32 = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32;

/// Flags for seccomp(2) and the program, eight bytes for each instruction (`struct sock_filter`).
pub(super) struct Compiled {
    pub(super) flags: u32,
    pub(super) program: Vec<u8>,
}

/// Compiles a profile.
pub(super) fn compile(profile: &LinuxSeccomp) -> Result<Compiled> {
    check_listener(profile)?;
    let flags = flags(profile)?;
    let default = action(
        profile.default_action(),
        profile.default_errno_ret(),
        DEFAULT_ACTION,
    )?;
    let architectures = architectures(profile)?;
    let rules = rules(profile, default)?;
    let mut context = context(default, &architectures)?;
    for (name, rules) in &rules {
        // libseccomp refuses a rule that says what the default says.
        for rule in rules.iter().filter(|rule| rule.action != default) {
            if !conditions::are_ours(name, rules) {
                add(&mut context, name, rule)?;
            }
        }
    }
    let own = [native()];
    let decided: &[ScmpArch] = match architectures.is_empty() {
        true => &own,
        false => &architectures,
    };
    let program = [
        conditions::prologue(default, decided, &rules)?,
        newer::prologue(default, decided),
        export(&context)?,
    ]
    .concat();
    let instructions = program.len() / 8;
    if instructions > MAX_INSTRUCTIONS {
        return Err(Error::TooLarge { instructions });
    }
    if flags & NEW_LISTENER != 0 {
        check_hand_over(&program)?;
    }
    Ok(Compiled { flags, program })
}

/// libseccomp's part of the filter, without rules yet.
fn context(default: ScmpAction, architectures: &[ScmpArch]) -> Result<ScmpFilterContext> {
    let mut context = ScmpFilterContext::new(default).map_err(attempt("new filter"))?;
    // The container process may want setuid programs; no_new_privs is decided elsewhere.
    context
        .set_ctl_nnp(false)
        .map_err(attempt("no_new_privs off"))?;
    // A search tree, not a list. The kernel tries each system call when it takes a filter, which is most of what that
    // costs: 0.3 ms and not 0.8 with the default profile. Before Linux 4.17 libseccomp offers lists only.
    if let Err(error) = context.set_ctl_optimize(SEARCH_TREE) {
        tracing::debug!(%error, "the seccomp filter is a list");
    }
    for &architecture in architectures {
        context
            .add_arch(architecture)
            .map_err(attempt(&format!("add the architecture {architecture:?}")))?;
    }
    if !architectures.is_empty() && !architectures.contains(&native()) {
        context
            .remove_arch(ScmpArch::Native)
            .map_err(attempt("remove the native architecture"))?;
    }
    Ok(context)
}

/// The profile's rules by system call; those that cannot be filtered by name are left out where that is safe.
fn rules(profile: &LinuxSeccomp, default: ScmpAction) -> Result<Rules<'_>> {
    let mut rules = Rules::new();
    for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
        let field = format!("syscalls[{index}]");
        if rule.names().is_empty() {
            let names = format!("{field}.names");
            return Err(invalid(&names, "must name a system call"));
        }
        let action = action(rule.action(), rule.errno_ret(), &field)?;
        let alternatives = alternatives(conditions_of(rule, &field)?);
        for name in rule.names() {
            if !is_known(name) {
                refuse_lost(profile, name, action)?;
                continue;
            }
            let each = alternatives.iter().cloned();
            let each = each.map(|conditions| Rule { conditions, action });
            let of_name = rules.entry(name).or_default();
            // One that says only what the default says is none.
            of_name.extend(each.filter(|it| action != default || !it.conditions.is_empty()));
        }
    }
    Ok(rules)
}

fn add(context: &mut ScmpFilterContext, name: &str, rule: &Rule) -> Result<()> {
    let conditions: Vec<ScmpArgCompare> = rule.conditions.iter().map(Condition::compare).collect();
    ScmpSyscall::from_name(name)
        .and_then(|syscall| match conditions.as_slice() {
            [] => context.add_rule(rule.action, syscall),
            all => context.add_rule_conditional(rule.action, syscall, all),
        })
        .map(drop)
        .map_err(|source| Error::Compile {
            attempt: format!("add the rule for {name}"),
            source,
        })
}

/// The conditions of a rule, as sets of which one must hold wholly: a single set, as the specification has it, unless
/// two conditions are on one argument. That libseccomp cannot express; then each stands for itself, as runc and crun
/// have it since before conditions could be combined, and engines' profiles count on it.
fn alternatives(conditions: Vec<Condition>) -> Vec<Vec<Condition>> {
    let mut arguments: Vec<u32> = conditions.iter().map(|it| it.argument).collect();
    arguments.sort_unstable();
    let is_repeated = arguments.windows(2).any(|pair| pair[0] == pair[1]);
    if is_repeated {
        let each = conditions.into_iter();
        each.map(|condition| vec![condition]).collect()
    } else {
        vec![conditions]
    }
}

/// True for a system call that rules can be made for.
fn is_known(name: &str) -> bool {
    ScmpSyscall::from_name(name).is_ok() || newer::number(name, native()).is_some()
}

/// A name that nobody knows cannot be filtered. Where everything not named is refused anyway that is safe; where it would
/// be allowed, a rule against it must not be lost.
fn refuse_lost(profile: &LinuxSeccomp, name: &str, action: ScmpAction) -> Result<()> {
    let is_permissive = matches!(
        profile.default_action(),
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog
    );
    if is_permissive && action != ScmpAction::Allow {
        return Err(unsupported(
            "syscalls",
            format!("the system call {name:?} is not known"),
        ));
    }
    Ok(())
}

fn check_listener(profile: &LinuxSeccomp) -> Result<()> {
    match profile.listener_path() {
        None if super::notifies(profile) => Err(invalid(
            "listenerPath",
            "SCMP_ACT_NOTIFY needs the path of the agent's socket",
        )),
        None if profile.listener_metadata().is_some() => Err(invalid(
            "listenerMetadata",
            "must not be set without listenerPath",
        )),
        Some(path) if !path.is_absolute() => Err(invalid("listenerPath", "must be absolute")),
        _ => Ok(()),
    }
}

/// The process hands its listener over by one sendmsg(2) under the filter. One that waited for an answer there would
/// wait for ever: nobody holds the listener yet.
fn check_hand_over(program: &[u8]) -> Result<()> {
    if allows(program, libc::SYS_sendmsg) {
        return Ok(());
    }
    Err(unsupported(
        "syscalls",
        "with SCMP_ACT_NOTIFY sendmsg must be allowed: by it the listener reaches the agent"
            .to_owned(),
    ))
}

/// True when this process's system call of that number, with arguments that no rule is likely to name, is allowed.
pub(super) fn allows(program: &[u8], number: i64) -> bool {
    let call = Call {
        number: number as u32,
        architecture: audit_architecture(&native()).unwrap_or_default(),
        args: [0; 6],
    };
    matches!(
        verdict(program, &call),
        Some(libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG)
    )
}

/// Without flags the profile gets SPEC_ALLOW, as in runc: the mitigation that it switches off slows the container
/// down and was never meant for filters as such (seccomp(2); Linux 5.16 has it off by default).
fn flags(profile: &LinuxSeccomp) -> Result<u32> {
    let listener = if super::notifies(profile) {
        NEW_LISTENER
    } else {
        0
    };
    let Some(flags) = profile.flags() else {
        return Ok(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32 | listener);
    };
    flags.iter().try_fold(listener, |all, flag| {
        let bit = match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            // One number cannot be both a listener and a thread that did not follow: seccomp(2).
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync if listener != 0 => {
                libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if listener != 0 => {
                libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                return Err(invalid(
                    "flags",
                    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs SCMP_ACT_NOTIFY",
                ));
            }
        };
        Ok(all | bit as u32)
    })
}

fn action(action: LinuxSeccompAction, errno_ret: Option<u32>, field: &str) -> Result<ScmpAction> {
    let errno = errno_ret.unwrap_or(libc::EPERM as u32);
    let field = match field {
        DEFAULT_ACTION => "defaultErrnoRet".to_owned(),
        field => format!("{field}.errnoRet"),
    };
    if errno > MAX_ERRNO {
        return Err(invalid(&field, &format!("{errno} is no error number")));
    }
    let takes_errno = matches!(
        action,
        LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace
    );
    if errno_ret.is_some() && !takes_errno {
        return Err(invalid(&field, &format!("{action} has no error number")));
    }
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            Ok(ScmpAction::KillThread)
        }
        LinuxSeccompAction::ScmpActKillProcess => Ok(ScmpAction::KillProcess),
        LinuxSeccompAction::ScmpActTrap => Ok(ScmpAction::Trap),
        LinuxSeccompAction::ScmpActErrno => Ok(ScmpAction::Errno(errno as i32)),
        LinuxSeccompAction::ScmpActTrace => Ok(ScmpAction::Trace(errno as u16)),
        LinuxSeccompAction::ScmpActLog => Ok(ScmpAction::Log),
        LinuxSeccompAction::ScmpActAllow => Ok(ScmpAction::Allow),
        LinuxSeccompAction::ScmpActNotify => Ok(ScmpAction::Notify),
    }
}

fn conditions_of(rule: &LinuxSyscall, field: &str) -> Result<Vec<Condition>> {
    let args: &[LinuxSeccompArg] = rule.args().as_deref().unwrap_or_default();
    args.iter()
        .map(|arg| {
            Condition::new(arg)
                .ok_or_else(|| unsupported(field, "a system call has six arguments".to_owned()))
        })
        .collect()
}

/// The profile's architectures; none means the machine's own.
fn architectures(profile: &LinuxSeccomp) -> Result<Vec<ScmpArch>> {
    let names: &[Arch] = profile.architectures().as_deref().unwrap_or_default();
    names
        .iter()
        .map(|name| match name {
            Arch::ScmpArchNative => Ok(native()),
            Arch::ScmpArchX86 => Ok(ScmpArch::X86),
            Arch::ScmpArchX86_64 => Ok(ScmpArch::X8664),
            Arch::ScmpArchX32 => Ok(ScmpArch::X32),
            Arch::ScmpArchArm => Ok(ScmpArch::Arm),
            Arch::ScmpArchAarch64 => Ok(ScmpArch::Aarch64),
            Arch::ScmpArchRiscv64 => Ok(ScmpArch::Riscv64),
            Arch::ScmpArchMips => Ok(ScmpArch::Mips),
            Arch::ScmpArchMips64 => Ok(ScmpArch::Mips64),
            Arch::ScmpArchMips64n32 => Ok(ScmpArch::Mips64N32),
            Arch::ScmpArchMipsel => Ok(ScmpArch::Mipsel),
            Arch::ScmpArchMipsel64 => Ok(ScmpArch::Mipsel64),
            Arch::ScmpArchMipsel64n32 => Ok(ScmpArch::Mipsel64N32),
            Arch::ScmpArchPpc => Ok(ScmpArch::Ppc),
            Arch::ScmpArchPpc64 => Ok(ScmpArch::Ppc64),
            Arch::ScmpArchPpc64le => Ok(ScmpArch::Ppc64Le),
            Arch::ScmpArchS390 => Ok(ScmpArch::S390),
            Arch::ScmpArchS390x => Ok(ScmpArch::S390X),
            Arch::ScmpArchParisc => Ok(ScmpArch::Parisc),
            Arch::ScmpArchParisc64 => Ok(ScmpArch::Parisc64),
            Arch::ScmpArchLoongarch64 => Ok(ScmpArch::Loongarch64),
            Arch::ScmpArchM68k => Ok(ScmpArch::M68k),
            Arch::ScmpArchSh => Ok(ScmpArch::Sh),
            Arch::ScmpArchSheb => Ok(ScmpArch::Sheb),
        })
        .collect()
}

/// The machine's own architecture.
pub(super) fn native() -> ScmpArch {
    if cfg!(target_arch = "aarch64") {
        ScmpArch::Aarch64
    } else {
        ScmpArch::X8664
    }
}

/// libseccomp 2.5 writes a program only to a descriptor.
fn export(context: &ScmpFilterContext) -> Result<Vec<u8>> {
    let io = |error: rustix::io::Errno| Error::Export(error.into());
    let memory = rustix::fs::memfd_create("seccomp", MemfdFlags::CLOEXEC).map_err(io)?;
    let mut memory = File::from(memory);
    context
        .export_bpf(&memory)
        .map_err(attempt("generate the program"))?;
    let mut program = Vec::new();
    memory.rewind().map_err(Error::Export)?;
    memory.read_to_end(&mut program).map_err(Error::Export)?;
    Ok(program)
}

fn attempt(attempt: &str) -> impl FnOnce(libseccomp::error::SeccompError) -> Error + use<> {
    let attempt = attempt.to_owned();
    move |source| Error::Compile { attempt, source }
}

fn invalid(field: &str, reason: &str) -> Error {
    Error::Invalid {
        field: field.to_owned(),
        reason: reason.to_owned(),
    }
}

fn unsupported(field: &str, reason: String) -> Error {
    Error::Unsupported {
        field: field.to_owned(),
        reason,
    }
}
