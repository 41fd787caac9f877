//! From an OCI profile to a BPF program, by libseccomp, with one addition: system calls newer than the linked
//! libseccomp get ENOSYS, or the action that the profile names for them, instead of the default action. A C library
//! that tries a new system call falls back on ENOSYS; on EPERM it fails (as runc found with glibc's `faccessat2`).

use std::fs::File;
use std::io::{Read, Seek};

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use rustix::fs::MemfdFlags;

use super::error::{Error, Result};
use super::newer;

/// The kernel's longest program (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;

/// The kernel's largest error number (`MAX_ERRNO`).
const MAX_ERRNO: u32 = 4095;

/// Flags for seccomp(2) and the program, eight bytes for each instruction (`struct sock_filter`).
pub(super) struct Compiled {
    pub(super) flags: u32,
    pub(super) program: Vec<u8>,
}

/// Compiles a profile.
pub(super) fn compile(profile: &LinuxSeccomp) -> Result<Compiled> {
    refuse_listener(profile)?;
    let flags = flags(profile)?;
    let default = action(
        profile.default_action(),
        profile.default_errno_ret(),
        "defaultAction",
    )?;
    let architectures = architectures(profile)?;
    let mut context = ScmpFilterContext::new(default).map_err(attempt("new filter"))?;
    // The container process may want setuid programs; no_new_privs is decided elsewhere.
    context
        .set_ctl_nnp(false)
        .map_err(attempt("no_new_privs off"))?;
    for &architecture in &architectures {
        context
            .add_arch(architecture)
            .map_err(attempt("add an architecture"))?;
    }
    if !architectures.is_empty() && !architectures.contains(&native()) {
        context
            .remove_arch(ScmpArch::Native)
            .map_err(attempt("remove the native architecture"))?;
    }
    let mut unknown = Vec::new();
    for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
        let field = format!("syscalls[{index}]");
        let action = action(rule.action(), rule.errno_ret(), &field)?;
        let conditions = conditions(rule, &field)?;
        for name in rule.names() {
            match ScmpSyscall::from_name(name) {
                // libseccomp refuses a rule that says what the default says.
                Ok(_) if action == default => {}
                Ok(syscall) => add(&mut context, action, syscall, &conditions, name)?,
                Err(_) => unknown.push((rule, name.as_str(), action)),
            }
        }
    }
    refuse_unknown(profile, &unknown)?;
    let own = newer::prologue(default, &architectures, &unknown);
    let program = [own, export(&context)?].concat();
    let instructions = program.len() / 8;
    if instructions > MAX_INSTRUCTIONS {
        return Err(Error::TooLarge { instructions });
    }
    Ok(Compiled { flags, program })
}

fn add(
    context: &mut ScmpFilterContext,
    action: ScmpAction,
    syscall: ScmpSyscall,
    conditions: &[ScmpArgCompare],
    name: &str,
) -> Result<()> {
    let added = if conditions.is_empty() {
        context.add_rule(action, syscall).map(drop)
    } else {
        context
            .add_rule_conditional(action, syscall, conditions)
            .map(drop)
    };
    added.map_err(|source| Error::Compile {
        attempt: format!("add the rule for {name}"),
        source,
    })
}

/// A name that libseccomp does not know cannot be filtered by it. Where everything not named is refused anyway that
/// is safe; where it would be allowed, a rule against it must not be lost.
fn refuse_unknown(
    profile: &LinuxSeccomp,
    unknown: &[(&LinuxSyscall, &str, ScmpAction)],
) -> Result<()> {
    let permissive = matches!(
        profile.default_action(),
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog
    );
    let lost = unknown
        .iter()
        .find(|(_, name, action)| *action != ScmpAction::Allow && newer::number(name).is_none());
    match lost {
        Some((_, name, _)) if permissive => Err(unsupported(
            "syscalls",
            format!("the system call {name:?} is not known"),
        )),
        _ => {
            let with_conditions = unknown.iter().find(|(rule, name, _)| {
                newer::number(name).is_some()
                    && rule.args().as_ref().is_some_and(|it| !it.is_empty())
            });
            match with_conditions {
                Some((_, name, _)) => Err(unsupported(
                    "syscalls",
                    format!("conditions on the arguments of {name:?} are not supported"),
                )),
                None => Ok(()),
            }
        }
    }
}

fn refuse_listener(profile: &LinuxSeccomp) -> Result<()> {
    if profile.listener_path().is_some() {
        return Err(unsupported(
            "listenerPath",
            "user notification is not supported".to_owned(),
        ));
    }
    Ok(())
}

/// Without flags the profile gets SPEC_ALLOW, as in runc: the mitigation that it switches off slows the container
/// down and was never meant for filters as such (seccomp(2); Linux 5.16 has it off by default).
fn flags(profile: &LinuxSeccomp) -> Result<u32> {
    let Some(flags) = profile.flags() else {
        return Ok(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32);
    };
    flags.iter().try_fold(0, |all, flag| {
        let bit = match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                return Err(unsupported(
                    "flags",
                    format!("{flag} needs user notification, which is not supported"),
                ));
            }
        };
        Ok(all | bit as u32)
    })
}

fn action(action: LinuxSeccompAction, errno_ret: Option<u32>, field: &str) -> Result<ScmpAction> {
    let errno = errno_ret.unwrap_or(libc::EPERM as u32);
    if errno > MAX_ERRNO {
        return Err(unsupported(
            &format!("{field}.errnoRet"),
            format!("{errno} is no error number"),
        ));
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
        LinuxSeccompAction::ScmpActNotify => Err(unsupported(
            field,
            "SCMP_ACT_NOTIFY (user notification) is not supported".to_owned(),
        )),
    }
}

fn conditions(rule: &LinuxSyscall, field: &str) -> Result<Vec<ScmpArgCompare>> {
    let args: &[LinuxSeccompArg] = rule.args().as_deref().unwrap_or_default();
    let mut seen = [false; 6];
    args.iter()
        .map(|arg| {
            let slot = seen
                .get_mut(arg.index())
                .ok_or_else(|| unsupported(field, "a system call has six arguments".to_owned()))?;
            if std::mem::replace(slot, true) {
                // libseccomp cannot express it; other runtimes make "or" of it, which allows more than was written.
                return Err(unsupported(
                    field,
                    "two conditions on one argument are not supported: write two rules".to_owned(),
                ));
            }
            let value = arg.value();
            let (operator, datum) = match arg.op() {
                LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
                LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, value),
                LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
                LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, value),
                LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
                LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, value),
                LinuxSeccompOperator::ScmpCmpMaskedEq => (
                    ScmpCompareOp::MaskedEqual(value),
                    arg.value_two().unwrap_or(0),
                ),
            };
            Ok(ScmpArgCompare::new(arg.index() as u32, operator, datum))
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
            other => Err(unsupported(
                "architectures",
                format!("{other} is not supported"),
            )),
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

fn unsupported(field: &str, reason: String) -> Error {
    Error::Unsupported {
        field: field.to_owned(),
        reason,
    }
}
