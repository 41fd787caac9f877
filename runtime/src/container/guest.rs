//! Containers in a mount namespace that is not theirs: the caller's, or another by path.
//!
//! Nothing is mounted or changed there, as others live in it: such a container's root directory is `root.path` as that
//! namespace shows it, by chroot(2). So all that a mount would be needed for is refused; and the capabilities that
//! lead out of a changed root directory are too. Who is in it cannot make a user namespace to regain them: the kernel
//! refuses that to whoever has a changed root (user_namespaces(7)).

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::{Capability, LinuxNamespaceType, Process, Spec};
use rustix::fs::{Mode, OFlags};

use super::error::{At, Error, Failure, Result, Step};
use super::inside::Inside;
use super::namespaces::{Had, how, path_of};

/// True when the spec asks for no mount namespace of the container's own.
pub(super) fn is_guest(spec: &Spec) -> bool {
    how(spec, LinuxNamespaceType::Mount) == Had::Shared
        || path_of(spec, LinuxNamespaceType::Mount).is_some()
}

/// Refuses what a guest cannot have.
pub(super) fn validate(spec: &Spec) -> Result<()> {
    if !is_guest(spec) {
        return Ok(());
    }
    let linux = spec.linux().as_ref();
    let any = |list: Option<&Vec<String>>| list.is_some_and(|list| !list.is_empty());
    let asked = [
        ("mounts", spec.mounts().iter().flatten().next().is_some()),
        (
            "root.readonly",
            spec.root()
                .as_ref()
                .is_some_and(|root| root.readonly().unwrap_or(false)),
        ),
        (
            "linux.maskedPaths",
            any(linux.and_then(|l| l.masked_paths().as_ref())),
        ),
        (
            "linux.readonlyPaths",
            any(linux.and_then(|l| l.readonly_paths().as_ref())),
        ),
        (
            "linux.devices",
            linux
                .and_then(|l| l.devices().as_ref())
                .is_some_and(|devices| !devices.is_empty()),
        ),
        (
            "linux.rootfsPropagation",
            linux
                .and_then(|l| l.rootfs_propagation().as_ref())
                .is_some_and(|text| !text.is_empty()),
        ),
    ];
    match asked.iter().find(|(_, given)| *given) {
        Some((field, _)) => Err(refused(
            field,
            "needs a mount namespace of the container's own (linux.namespaces)",
        )),
        None => spec.process().as_ref().map_or(Ok(()), check_capabilities),
    }
}

/// Refuses the capabilities that lead out of a changed root directory.
pub(super) fn check_capabilities(process: &Process) -> Result<()> {
    let Some(sets) = process.capabilities() else {
        return Ok(());
    };
    let all = [
        sets.bounding(),
        sets.effective(),
        sets.permitted(),
        sets.inheritable(),
        sets.ambient(),
    ];
    for capability in all.into_iter().flatten().flatten() {
        if matches!(capability, Capability::SysChroot | Capability::SysAdmin) {
            return Err(refused(
                "process.capabilities",
                &format!(
                    "CAP_{capability} leads out of the root directory of a container without a mount namespace of its own"
                ),
            ));
        }
    }
    Ok(())
}

fn refused(field: &str, reason: &str) -> Error {
    Error::Invalid {
        field: field.to_owned(),
        reason: reason.to_owned(),
    }
}

/// In the child: makes the directory `/`.
pub(super) fn change_root(inside: &Inside) -> std::result::Result<(), Failure> {
    change_to(inside.root())
}

/// In a process that enters: makes the container's root directory `/`.
pub(super) fn change_to(root: BorrowedFd<'_>) -> std::result::Result<(), Failure> {
    rustix::process::fchdir(root).at(Step::PivotRoot, "")?;
    rustix::process::chroot(c".").at(Step::PivotRoot, "")?;
    rustix::process::chdir(c"/").at(Step::PivotRoot, "")
}

/// The root directory of a process: what a mount namespace does not tell of its guests.
pub(super) fn root_of(process: BorrowedFd<'_>) -> Result<OwnedFd> {
    let failed = |source| Error::Process { pid: 0, source };
    // proc_pid_fdinfo(5): a line "Pid:" for a pidfd.
    let info = format!("/proc/self/fdinfo/{}", process.as_raw_fd());
    let text = std::fs::read_to_string(info).map_err(failed)?;
    let pid = text
        .lines()
        .find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i32>().ok())
        .filter(|pid| *pid > 0)
        .ok_or_else(|| failed(std::io::Error::from_raw_os_error(libc::ESRCH)))?;
    let root = rustix::fs::open(
        format!("/proc/{pid}/root"),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| Error::Process {
        pid,
        source: e.into(),
    })?;
    // The number is not another process's by now.
    crate::sys::pidfd::send_signal(process, 0).map_err(|source| Error::Process { pid, source })?;
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(json: &str) -> Option<String> {
        let text = format!(r#"{{"ociVersion":"1.2.0",{json}}}"#);
        let spec = serde_json::from_str(&text).expect("a spec");
        validate(&spec).err().map(|e| e.to_string())
    }

    #[test]
    fn a_guest_changes_nothing() {
        assert_eq!(reason(r#""linux":{}"#), None);
        let own = r#""linux":{"namespaces":[{"type":"mount"}],"maskedPaths":["/x"]}"#;
        assert_eq!(reason(own), None);
        for (json, field) in [
            (r#""linux":{"maskedPaths":["/x"]}"#, "linux.maskedPaths"),
            (
                r#""mounts":[{"destination":"/x","type":"tmpfs"}]"#,
                "mounts",
            ),
            (r#""root":{"path":"x","readonly":true}"#, "root.readonly"),
            (
                r#""linux":{"namespaces":[{"type":"mount","path":"/x"}],"rootfsPropagation":"slave"}"#,
                "linux.rootfsPropagation",
            ),
        ] {
            let reason = reason(json).expect(json);
            assert!(
                reason.starts_with(&format!("{field}: needs a mount")),
                "{reason}"
            );
        }
    }

    #[test]
    fn a_guest_does_not_leave_its_root() {
        let process = |capability| {
            reason(&format!(
                r#""process":{{"cwd":"/","user":{{}},"capabilities":{{"bounding":["{capability}"]}}}}"#
            ))
        };
        assert_eq!(process("CAP_KILL"), None);
        for capability in ["CAP_SYS_CHROOT", "CAP_SYS_ADMIN"] {
            let reason = process(capability).expect("refused");
            assert!(reason.contains(capability), "{reason}");
        }
    }
}
