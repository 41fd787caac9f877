//! The spec's hooks: programs of the host's administrator that run at points of a container's life.
//!
//! Source: runtime-spec `config.md#posix-platform-hooks`. A hook gets the container's state on standard input. Its
//! environment is what the spec gives it; a hook that runs on the host's side and is given none has the caller's, as
//! with runc and crun. A hook inside the container never sees that.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use oci_spec::runtime::{ContainerState, Hook, Spec, State, StateBuilder};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;

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

/// Runs hooks in order; the first that fails ends it.
///
/// # Errors
/// [`Error::Hook`]
pub fn run_all(kind: &'static str, hooks: Option<&Vec<Hook>>, state: &[u8]) -> Result<()> {
    for hook in hooks.into_iter().flatten() {
        let environment = match hook.env() {
            None => Environment::Callers,
            Some(_) => Environment::Own,
        };
        run(hook, state, environment).map_err(|reason| Error::Hook {
            kind,
            path: hook.path().clone(),
            reason,
        })?;
    }
    Ok(())
}

/// Where a hook's environment is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Environment {
    /// The spec only.
    Own,
    /// Inherited.
    Callers,
}

/// Runs one hook. The error is for people; it continues "the hook failed".
pub(super) fn run(
    hook: &Hook,
    state: &[u8],
    environment: Environment,
) -> std::result::Result<(), String> {
    let stderr = rustix::fs::memfd_create("hook-stderr", MemfdFlags::CLOEXEC)
        .map_err(|e| format!(": cannot make a file for its standard error: {e}"))?;
    let mut stderr = File::from(stderr);
    let mut command = Command::new(hook.path());
    if environment == Environment::Own {
        command.env_clear();
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(
        stderr
            .try_clone()
            .map_err(|e| format!(": cannot copy a descriptor: {e}"))?,
    );
    if let Some([name, arguments @ ..]) = hook.args().as_deref() {
        command.arg0(name).args(arguments);
    }
    for variable in hook.env().iter().flatten() {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        command.env(name, value);
    }
    let mut child = command
        .spawn()
        .map_err(|e| format!(": cannot run it: {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook that does not read its input is fine (EPIPE); so is one that has ended.
        if let Err(error) = stdin.write_all(state)
            && error.kind() != std::io::ErrorKind::BrokenPipe
        {
            tracing::debug!(%error, "a hook did not take the state");
        }
    }
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
            child.kill().map_err(|e| format!(": cannot kill it: {e}"))?;
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
            Environment::Own,
        )
        .expect("runs");
    }

    #[test]
    fn a_failed_hook_tells_why() {
        let reason =
            run(&shell("echo no luck >&2; exit 3"), b"", Environment::Own).expect_err("fails");
        assert_eq!(reason, " with exit code 3: no luck");
    }

    #[test]
    fn a_hook_that_hangs_is_killed() {
        let mut hook = shell("exec sleep 1000");
        hook.set_timeout(Some(1));
        let reason = run(&hook, b"", Environment::Own).expect_err("hangs");
        assert!(reason.contains("within 1 s"), "{reason}");
    }
}
