//! The spec's hooks: programs of the host's administrator that run at points of a container's life.
//!
//! Source: runtime-spec `config.md#posix-platform-hooks`. A hook gets the container's state on standard input. Its
//! environment is what the spec gives it. One that is given none has the caller's on the host's side, as with runc and
//! crun, and the process's inside the container, which never sees the caller's.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use oci_spec::runtime::{ContainerState, Hook, Hooks, Spec, State, StateBuilder};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Access, MemfdFlags};

use super::error::{Error, Result};
use crate::sys;

/// How much of a failed hook's standard error is told, in bytes.
const STDERR_TOLD_BYTES: u64 = 1024;

/// The state that hooks are told, as JSON.
pub fn state_json(
    id: &str,
    spec: &Spec,
    bundle: Option<&Path>,
    status: ContainerState,
    pid: Option<i32>,
) -> Vec<u8> {
    // Only strings, numbers and maps of strings: it cannot fail.
    serde_json::to_vec(&state(id, spec, bundle, status, pid)).unwrap_or_default()
}

/// The state of a container, as hooks and seccomp agents are told it.
pub(super) fn state(
    id: &str,
    spec: &Spec,
    bundle: Option<&Path>,
    status: ContainerState,
    pid: Option<i32>,
) -> State {
    let mut state = StateBuilder::default()
        .version(spec.version().clone())
        .id(id)
        .status(status)
        .bundle(bundle.unwrap_or(Path::new("")));
    if let Some(pid) = pid {
        state = state.pid(pid);
    }
    if let Some(annotations) = spec.annotations() {
        state = state.annotations(annotations.clone());
    }
    // No field is required: it cannot fail.
    state.build().unwrap_or_default()
}

/// A list of hooks, from the spec's.
type ListOf = fn(&Hooks) -> &Option<Vec<Hook>>;

/// The kinds of hooks, and where they stand.
const KINDS: [(&str, ListOf); 6] = [
    ("prestart", prestart),
    ("createRuntime", Hooks::create_runtime),
    ("createContainer", Hooks::create_container),
    ("startContainer", Hooks::start_container),
    ("poststart", Hooks::poststart),
    ("poststop", Hooks::poststop),
];

#[allow(deprecated, reason = "the specification keeps prestart hooks alive")]
pub(super) fn prestart(hooks: &Hooks) -> &Option<Vec<Hook>> {
    hooks.prestart()
}

/// Refuses hooks that could not be run.
pub(super) fn validate(spec: &Spec) -> Result<()> {
    let Some(hooks) = spec.hooks() else {
        return Ok(());
    };
    for (kind, list) in KINDS {
        for (index, hook) in list(hooks).iter().flatten().enumerate() {
            let nul =
                |texts: &Option<Vec<String>>| texts.iter().flatten().any(|t| t.contains('\0'));
            let (field, reason) = match hook {
                _ if !hook.path().is_absolute() => ("path", "must be absolute"),
                _ if hook.path().as_os_str().as_bytes().contains(&0) => ("path", NUL),
                _ if nul(hook.args()) => ("args", NUL),
                _ if nul(hook.env()) => ("env", NUL),
                _ if hook.timeout().is_some_and(|secs| secs <= 0) => {
                    ("timeout", "must be greater than zero")
                }
                _ => continue,
            };
            return Err(Error::Invalid {
                field: format!("hooks.{kind}[{index}].{field}"),
                reason: reason.to_owned(),
            });
        }
    }
    Ok(())
}

/// Why a string cannot be passed to a program.
const NUL: &str = "a NUL character is not allowed";

/// Runs hooks in order, on the host's side; the first that fails ends it. They start in `bundle`.
///
/// # Errors
/// [`Error::Hook`]
pub fn run_all(
    kind: &'static str,
    hooks: Option<&Vec<Hook>>,
    state: &[u8],
    bundle: Option<&Path>,
) -> Result<()> {
    for hook in hooks.into_iter().flatten() {
        run(hook, state, Environment::Callers, bundle).map_err(|reason| Error::Hook {
            kind,
            path: hook.path().clone(),
            reason,
        })?;
    }
    Ok(())
}

/// The environment of a hook that is given none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Environment<'a> {
    /// Inherited.
    Callers,
    /// These variables, `NAME=VALUE`.
    These(&'a [String]),
}

/// Runs one hook. The error is for people; it continues "the hook failed". It starts in `directory` where that can be
/// entered, which not every user namespace may.
pub(super) fn run(
    hook: &Hook,
    state: &[u8],
    environment: Environment<'_>,
    directory: Option<&Path>,
) -> std::result::Result<(), String> {
    let stderr = rustix::fs::memfd_create("hook-stderr", MemfdFlags::CLOEXEC)
        .map_err(|e| format!(": cannot make a file for its standard error: {e}"))?;
    let mut stderr = File::from(stderr);
    let stdin =
        state_file(state).map_err(|e| format!(": cannot make a file for the state: {e}"))?;
    let mut command = Command::new(hook.path());
    if let Some(directory) = directory
        && rustix::fs::access(directory, Access::EXEC_OK).is_ok()
    {
        command.current_dir(directory);
    }
    let variables = match (hook.env(), environment) {
        (Some(own), _) => Some(own.as_slice()),
        (None, Environment::These(others)) => Some(others),
        (None, Environment::Callers) => None,
    };
    if let Some(variables) = variables {
        command.env_clear().envs(
            variables
                .iter()
                .map(|variable| variable.split_once('=').unwrap_or((variable, ""))),
        );
    }
    command
        .stdin(stdin)
        // So that what the hook started ends with it when it takes too long.
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(
            stderr
                .try_clone()
                .map_err(|e| format!(": cannot copy a descriptor: {e}"))?,
        );
    if let Some([name, arguments @ ..]) = hook.args().as_deref() {
        command.arg0(name).args(arguments);
    }
    let mut child = command
        .spawn()
        .map_err(|e| format!(": cannot run it: {e}"))?;
    let status = wait(&mut child, hook.timeout())?;
    if status.success() {
        return Ok(());
    }
    let mut reason = match (status.code(), status.signal()) {
        (Some(code), _) => format!(" with exit code {code}"),
        (None, Some(signal)) => format!(" by signal {signal}"),
        (None, None) => String::new(),
    };
    let said = last_words(&mut stderr);
    if !said.is_empty() {
        reason.push_str(": ");
        reason.push_str(&said);
    }
    Err(reason)
}

/// The state as a file: a hook that does not read it cannot stop us, as with a pipe.
fn state_file(state: &[u8]) -> std::io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("state", MemfdFlags::CLOEXEC)?);
    file.write_all(state)?;
    file.rewind()?;
    Ok(file)
}

/// Waits for the hook, at most `timeout` seconds; kills it then.
fn wait(child: &mut Child, timeout: Option<i64>) -> std::result::Result<ExitStatus, String> {
    if let Some(secs) = timeout {
        let pidfd = sys::pidfd::open(child.id().cast_signed())
            .map_err(|e| format!(": cannot watch it: {e}"))?;
        let limit = Timespec {
            tv_sec: Duration::from_secs(secs.max(0).cast_unsigned())
                .as_secs()
                .cast_signed(),
            tv_nsec: 0,
        };
        let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
        let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut ended, Some(&limit)))
            .map_err(|e| format!(": cannot watch it: {e}"))?;
        if ready == 0 {
            kill_group(child).map_err(|e| format!(": cannot kill it: {e}"))?;
            child
                .wait()
                .map_err(|e| format!(": cannot wait for it: {e}"))?;
            return Err(format!(": it did not end within {secs} s"));
        }
    }
    child
        .wait()
        .map_err(|e| format!(": cannot wait for it: {e}"))
}

fn kill_group(child: &Child) -> std::io::Result<()> {
    let group = rustix::process::Pid::from_raw(child.id().cast_signed())
        .ok_or_else(|| std::io::Error::from_raw_os_error(libc::ESRCH))?;
    Ok(rustix::process::kill_process_group(
        group,
        rustix::process::Signal::KILL,
    )?)
}

fn last_words(stderr: &mut File) -> String {
    let mut words = Vec::new();
    let length = stderr.metadata().map(|m| m.len()).unwrap_or(0);
    let start = length.saturating_sub(STDERR_TOLD_BYTES);
    match stderr
        .seek(SeekFrom::Start(start))
        .and_then(|_| stderr.read_to_end(&mut words))
    {
        Ok(_) => String::from_utf8_lossy(&words).trim().to_owned(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::HookBuilder;

    fn shell(script: &str) -> Hook {
        HookBuilder::default()
            .path("/bin/sh")
            .args(["sh", "-c", script].map(str::to_owned))
            .timeout(20)
            .build()
            .expect("builds")
    }

    #[test]
    fn a_hook_reads_the_state_and_nothing_of_our_environment() {
        run(
            &shell(r#"test "$(cat)" = state && test -z "$CARGO_MANIFEST_DIR""#),
            b"state",
            Environment::These(&[]),
            None,
        )
        .expect("runs");
    }

    #[test]
    fn a_failed_hook_tells_why() {
        let reason = run(
            &shell("echo no luck >&2; exit 3"),
            b"",
            Environment::These(&[]),
            None,
        )
        .expect_err("fails");
        assert_eq!(reason, " with exit code 3: no luck");
    }

    #[test]
    fn a_hook_that_does_not_read_a_long_state_is_fine() {
        run(
            &shell("true"),
            &vec![b' '; 1 << 20],
            Environment::These(&[]),
            None,
        )
        .expect("runs");
    }

    #[test]
    fn hooks_that_could_not_run_are_refused_by_field() {
        let hook = |path: &str, timeout: i64| {
            let hook = HookBuilder::default().path(path).timeout(timeout);
            hook.build().expect("builds")
        };
        for (bad, field) in [
            (hook("true", 1), "hooks.poststop[1].path: "),
            (hook("/bin/true", 0), "hooks.poststop[1].timeout: "),
            (hook("/bin/true", -1), "hooks.poststop[1].timeout: "),
        ] {
            let mut hooks = Hooks::default();
            hooks.set_poststop(Some(vec![hook("/bin/true", 1), bad]));
            let mut spec = Spec::default();
            spec.set_hooks(Some(hooks));
            let message = validate(&spec).expect_err("refused").to_string();
            assert!(message.starts_with(field), "{message}");
        }
    }

    #[test]
    fn a_hook_that_hangs_is_killed_with_what_it_started() {
        // Both hold the pipe: it ends when both have ended.
        let (reader, writer) = rustix::pipe::pipe().expect("pipe");
        rustix::io::fcntl_setfd(&writer, rustix::io::FdFlags::empty()).expect("inherits");
        let mut hook = shell("sleep 1000 & sleep 1000");
        hook.set_timeout(Some(1));
        run(&hook, b"", Environment::These(&[]), None).expect_err("hangs");
        drop(writer);
        let mut rest = Vec::new();
        File::from(reader).read_to_end(&mut rest).expect("ends");
    }

    #[test]
    fn a_hook_that_hangs_is_killed() {
        let mut hook = shell("exec sleep 1000");
        hook.set_timeout(Some(1));
        let reason = run(&hook, b"", Environment::These(&[]), None).expect_err("hangs");
        assert!(reason.contains("within 1 s"), "{reason}");
    }
}
