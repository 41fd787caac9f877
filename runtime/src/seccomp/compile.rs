//! From an OCI profile to a BPF program: the profile is checked, its rules are gathered by system call, and `program.rs`
//! makes instructions of them.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall,
};

use super::action::Action;
use super::architecture::{self, Architecture};
use super::bpf;
use super::conditions::{Condition, Rule, Rules};
use super::error::{Error, Result};
use super::program::program;
use super::verdict::{Call, verdict};

/// The kernel's longest program (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;

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
    let rules = rules(profile, default)?;
    let code = program(default, &architectures(profile), &by_name(profile, &rules));
    if code.len() > MAX_INSTRUCTIONS {
        return Err(Error::TooLarge {
            instructions: code.len(),
        });
    }
    let program = bpf::assemble(&code);
    if flags & NEW_LISTENER != 0 {
        check_hand_over(&program)?;
    }
    Ok(Compiled { flags, program })
}

/// The rules of each of the profile's `syscalls`. One that says only what the default says is none.
fn rules(profile: &LinuxSeccomp, default: Action) -> Result<Vec<Vec<Rule>>> {
    let syscalls = profile.syscalls().iter().flatten().enumerate();
    let rules = syscalls.map(|(index, rule)| {
        let field = format!("syscalls[{index}]");
        if rule.names().is_empty() {
            let names = format!("{field}.names");
            return Err(invalid(&names, "must name a system call"));
        }
        let action = action(rule.action(), rule.errno_ret(), &field)?;
        let alternatives = alternatives(conditions_of(rule, &field)?).into_iter();
        for name in rule.names() {
            refuse_lost(default, name, action)?;
        }
        let rules = alternatives.map(|conditions| Rule { conditions, action });
        Ok(rules
            .filter(|it| action != default || !it.conditions.is_empty())
            .collect())
    });
    rules.collect()
}

/// The rules by system call. Those that cannot be filtered by name are never looked up, where that is safe.
fn by_name<'a>(profile: &'a LinuxSeccomp, rules: &'a [Vec<Rule>]) -> Rules<'a> {
    let syscalls = profile.syscalls().iter().flatten();
    let names = syscalls.clone().map(|rule| rule.names().len()).sum();
    let mut by_name = Rules::with_capacity(names);
    for (rule, rules) in syscalls.zip(rules) {
        for name in rule.names() {
            by_name.entry(name).or_default().extend(rules);
        }
    }
    by_name
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

/// A name that nobody knows cannot be filtered. Where everything not named is refused anyway that is safe; where it would
/// be allowed, a rule against it must not be lost.
fn refuse_lost(default: Action, name: &str, action: Action) -> Result<()> {
    if default.allows() && action.leniency() < default.leniency() && !architecture::is_known(name) {
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
        architecture: Architecture::NATIVE.token(),
        args: [0; 6],
    };
    verdict(program, &call).is_some_and(|answer| Action(answer).allows())
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

fn action(action: LinuxSeccompAction, errno_ret: Option<u32>, field: &str) -> Result<Action> {
    let field = match field {
        DEFAULT_ACTION => "defaultErrnoRet".to_owned(),
        field => format!("{field}.errnoRet"),
    };
    Action::new(action, errno_ret).map_err(|reason| invalid(&field, &reason))
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

/// The profile's architectures, those of one token side by side; none means the machine's own.
fn architectures(profile: &LinuxSeccomp) -> Vec<Architecture> {
    let names: &[Arch] = profile.architectures().as_deref().unwrap_or_default();
    if names.is_empty() {
        return vec![Architecture::NATIVE];
    }
    let mut architectures: Vec<_> = names.iter().copied().filter_map(Architecture::of).collect();
    architectures.sort_unstable();
    architectures.dedup();
    architectures
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
