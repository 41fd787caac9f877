//! Finds out which functions a program and its children enter: a breakpoint is at the first instruction of each, and is
//! taken away when it was met, so that all runs nearly as fast as without.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use nix::sys::ptrace::{self, AddressType, Event, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::Result;

/// `offsetof(struct user, regs.rip)` on x86-64 (sys/user.h).
const INSTRUCTION_POINTER: usize = 16 * 8;
/// `int3`, after which the instruction pointer is one byte further.
const BREAKPOINT: u8 = 0xcc;

/// Which of `functions` the program that `arguments` start enters, or a child of it before that executes another
/// program. `started` gets the first process's id.
pub(crate) fn entered(
    arguments: &[&OsStr],
    functions: &BTreeSet<u64>,
    started: impl FnOnce(Pid),
) -> Result<BTreeSet<u64>> {
    // A shell stops itself, to be followed from there on.
    let shell = Command::new("/bin/sh")
        .args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""])
        .args(arguments)
        .spawn()?;
    let first = Pid::from_raw(shell.id().cast_signed());
    waitpid(first, Some(WaitPidFlag::WUNTRACED))?;
    ptrace::attach(first)?;
    waitpid(first, None)?;
    let children =
        Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK;
    ptrace::setoptions(first, children | Options::PTRACE_O_TRACEEXEC)?;
    nix::sys::signal::kill(first, Signal::SIGCONT)?;
    ptrace::cont(first, None)?;
    started(first);
    let mut was = HashMap::new();
    let mut seen = BTreeSet::new();
    loop {
        // Other threads may wait for children of their own.
        let status = match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
            Err(nix::Error::ECHILD) => return Ok(seen),
            status => status?,
        };
        match status {
            // The program; it may execute itself once more.
            WaitStatus::PtraceEvent(pid, _, event)
                if event == Event::PTRACE_EVENT_EXEC as i32 && pid == first =>
            {
                was = set_breakpoints(pid, functions)?;
                resume(pid, None)?;
            }
            // Another one, such as a container's.
            WaitStatus::PtraceEvent(pid, _, event) if event == Event::PTRACE_EVENT_EXEC as i32 => {
                ptrace::detach(pid, None)?;
            }
            WaitStatus::PtraceEvent(pid, ..) | WaitStatus::Stopped(pid, Signal::SIGSTOP) => {
                resume(pid, None)?;
            }
            WaitStatus::Stopped(pid, Signal::SIGTRAP) => {
                let after = ptrace::read_user(pid, INSTRUCTION_POINTER as AddressType)?;
                let at = after.cast_unsigned() - 1;
                if let Some(byte) = was.get(&at) {
                    seen.insert(at);
                    memory(pid)?.write_all_at(&[*byte], at)?;
                    ptrace::write_user(pid, INSTRUCTION_POINTER as AddressType, after - 1)?;
                }
                resume(pid, None)?;
            }
            WaitStatus::Stopped(pid, signal) => resume(pid, Some(signal))?,
            _ => {}
        }
    }
}

/// Lets a process go on, unless it was killed meanwhile.
fn resume(pid: Pid, signal: Option<Signal>) -> Result<()> {
    match ptrace::cont(pid, signal) {
        Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Sets all of them, and gives the bytes that were there.
fn set_breakpoints(pid: Pid, functions: &BTreeSet<u64>) -> Result<HashMap<u64, u8>> {
    let (Some(first), Some(last)) = (functions.first(), functions.last()) else {
        return Err("the program has no functions".into());
    };
    let memory = memory(pid)?;
    let mut code = vec![0; usize::try_from(last - first)? + 1];
    memory.read_exact_at(&mut code, *first)?;
    let mut was = HashMap::with_capacity(functions.len());
    for function in functions {
        let byte = &mut code[usize::try_from(function - first)?];
        was.insert(*function, std::mem::replace(byte, BREAKPOINT));
    }
    memory.write_all_at(&code, *first)?;
    Ok(was)
}

/// The memory of a process, also where it may not write itself.
fn memory(pid: Pid) -> Result<File> {
    let path = format!("/proc/{pid}/mem");
    Ok(File::options().read(true).write(true).open(path)?)
}
