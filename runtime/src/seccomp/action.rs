//! What a filter says to a system call.

use oci_spec::runtime::LinuxSeccompAction;

/// The kernel's largest error number (`MAX_ERRNO`).
const MAX_ERRNO: u32 = 4095;

/// A filter's answer, `SECCOMP_RET_*` with its data (seccomp(2)). The smaller, the stricter: of several filters' answers
/// the kernel takes the smallest, as signed numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Action(pub(super) u32);

impl Action {
    /// For calls of an architecture that the profile does not name: as libseccomp does, and with it all runtimes.
    pub(super) const FOREIGN: Self = Self(libc::SECCOMP_RET_KILL_THREAD);

    /// For calls that the profile cannot know of.
    pub(super) const UNKNOWN: Self = Self::errno(libc::ENOSYS as u32);

    const fn errno(number: u32) -> Self {
        Self(libc::SECCOMP_RET_ERRNO | number)
    }

    /// Of a profile.
    ///
    /// # Errors
    /// Why that error number makes no sense.
    pub(super) fn new(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Self, String> {
        let takes_errno = matches!(
            action,
            LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace
        );
        let number = errno.unwrap_or(libc::EPERM as u32);
        if number > MAX_ERRNO {
            return Err(format!("{number} is no error number"));
        }
        if errno.is_some() && !takes_errno {
            return Err(format!("{action} has no error number"));
        }
        Ok(match action {
            LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
                Self(libc::SECCOMP_RET_KILL_THREAD)
            }
            LinuxSeccompAction::ScmpActKillProcess => Self(libc::SECCOMP_RET_KILL_PROCESS),
            LinuxSeccompAction::ScmpActTrap => Self(libc::SECCOMP_RET_TRAP),
            LinuxSeccompAction::ScmpActErrno => Self::errno(number),
            LinuxSeccompAction::ScmpActTrace => Self(libc::SECCOMP_RET_TRACE | number),
            LinuxSeccompAction::ScmpActLog => Self(libc::SECCOMP_RET_LOG),
            LinuxSeccompAction::ScmpActAllow => Self(libc::SECCOMP_RET_ALLOW),
            LinuxSeccompAction::ScmpActNotify => Self(libc::SECCOMP_RET_USER_NOTIF),
        })
    }

    /// True for an action that lets the call through.
    pub(super) const fn allows(self) -> bool {
        matches!(self.0, libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG)
    }

    /// True for an answer with an error number.
    pub(super) const fn is_errno(self) -> bool {
        self.0 & libc::SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_ERRNO
    }

    /// The kernel's order of actions; their data does not count.
    pub(super) const fn leniency(self) -> i32 {
        (self.0 & libc::SECCOMP_RET_ACTION_FULL) as i32
    }
}
