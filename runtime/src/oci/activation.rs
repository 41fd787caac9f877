//! Sockets that systemd opened for this command and that are meant for the container's program (sd_listen_fds(3)):
//! its descriptors from 3 on stay open, and it is told of them as this command was.

use super::error::{Error, Result};
use crate::container::ListenFds;

/// The descriptors passed to this process; none when the variables are another process's.
///
/// # Errors
/// When `LISTEN_FDS` is no number.
pub(super) fn passed() -> Result<Option<ListenFds>> {
    let variable = |name| std::env::var(name).ok();
    passed_by(
        variable("LISTEN_FDS").as_deref(),
        variable("LISTEN_PID").as_deref(),
        variable("LISTEN_FDNAMES"),
        std::process::id,
    )
}

fn passed_by(
    count: Option<&str>,
    pid: Option<&str>,
    names: Option<String>,
    own_pid: impl FnOnce() -> u32,
) -> Result<Option<ListenFds>> {
    let Some(count) = count.filter(|count| !count.is_empty()) else {
        return Ok(None);
    };
    // Inherited from a parent for whom they were: sd_listen_fds(3), "LISTEN_PID".
    if pid.is_some_and(|pid| pid.parse() != Ok(own_pid())) {
        return Ok(None);
    }
    let count: u32 = count.parse().map_err(|_| Error::Argument {
        argument: "LISTEN_FDS",
        reason: format!("{count:?} is no number of descriptors"),
    })?;
    Ok((count > 0).then_some(ListenFds { count, names }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_process_was_passed_is_not_ours() {
        let passed = |count, pid| passed_by(count, pid, None, || 7).expect("fine");
        assert_eq!(passed(Some("2"), Some("7")).map(|p| p.count), Some(2));
        // conmon and its like do not set it.
        assert_eq!(passed(Some("2"), None).map(|p| p.count), Some(2));
        assert_eq!(passed(Some("2"), Some("8")), None);
        assert_eq!(passed(Some("0"), Some("7")), None);
        assert_eq!(passed(None, Some("7")), None);
        assert!(passed_by(Some("x"), None, None, || 7).is_err());
        assert!(passed_by(Some("-1"), None, None, || 7).is_err());
    }
}
