//! What a service tells the service manager that started it (sd_notify(3)). Without one (`$NOTIFY_SOCKET` unset) each
//! function does nothing and succeeds.

use std::io;
use std::time::Duration;

use sd_notify::NotifyState;

/// The service is up: units ordered after it may start.
///
/// # Errors
/// When the manager's socket cannot be written.
pub fn ready(status: &str) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&one_line(status))])
}

/// One line for `systemctl status`.
///
/// # Errors
/// When the manager's socket cannot be written.
pub fn status(status: &str) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Status(&one_line(status))])
}

/// The service is on its way out.
///
/// # Errors
/// When the manager's socket cannot be written.
pub fn stopping(status: &str) -> io::Result<()> {
    sd_notify::notify(&[
        NotifyState::Stopping,
        NotifyState::Status(&one_line(status)),
    ])
}

/// The service is alive. To be said from its main loop, each [`watchdog_interval`].
///
/// # Errors
/// When the manager's socket cannot be written.
pub fn watchdog() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Watchdog])
}

/// How often to say [`watchdog`]: half of the time after which the manager kills the service. `None` when it does not
/// watch.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled()
        .map(|limit| limit / 2)
        .filter(|interval| !interval.is_zero())
}

/// A line break would begin another field.
fn one_line(status: &str) -> String {
    status.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_cannot_smuggle_in_another_field() {
        assert_eq!(one_line("fine\nMAINPID=1"), "fine MAINPID=1");
    }
}
