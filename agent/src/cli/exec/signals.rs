//! The signals that are meant for the command, and reach its client.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What ends a command at a terminal, by kill(1) or with its session, and what people send on purpose.
const PASSED_ON: [Signal; 6] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Signals as events.
pub(super) struct Signals {
    descriptor: SignalFd,
}

impl Signals {
    /// From now on these signals are read here, and the changes of the terminal's size if asked for. Before any thread
    /// is made, for it inherits the mask.
    pub(super) fn listen(sizes: bool) -> io::Result<Self> {
        let ignored = ignored(&fs::read_to_string("/proc/self/status")?);
        let mut mask = SigSet::empty();
        for signal in PASSED_ON {
            // nohup(1) and shells that start something in the background have their reasons. Blocked, the signal
            // would come all the same.
            if ignored & (1 << (signal as i32 - 1)) == 0 {
                mask.add(signal);
            }
        }
        if sizes {
            mask.add(Signal::SIGWINCH);
        }
        mask.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self {
            descriptor: SignalFd::with_flags(&mask, flags)?,
        })
    }

    /// The next, if one has come.
    pub(super) fn next(&self) -> io::Result<Option<Signal>> {
        let info = self.descriptor.read_signal()?;
        let number = info.and_then(|info| i32::try_from(info.ssi_signo).ok());
        Ok(number.and_then(|number| Signal::try_from(number).ok()))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The set of ignored signals of proc_pid_status(5), bit 0 for signal 1.
fn ignored(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::ignored;

    #[test]
    fn ignored_signals_are_read_from_the_status() {
        assert_eq!(ignored("Name:\tx\nSigIgn:\t0000000000001001\n"), 0x1001);
        assert_eq!(ignored("Name:\tx\n"), 0);
    }
}
