//! Standard input, output and error, and terminals.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::error::{At, Failure, Step};
use super::inside::{Inside, stat};
use super::{Stdio, TerminalSize};

type Done = Result<(), Failure>;

/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Both sides of a terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    /// For the caller.
    pub(super) control: OwnedFd,
    /// For the process.
    pub(super) user: OwnedFd,
}

impl Terminal {
    /// Makes a terminal from the devpts at `/dev/pts` in the container, or `devpts` if it was just mounted. Nothing
    /// but a devpts is believed: the container may have put anything there.
    pub(super) fn open(
        devpts: Option<&OwnedFd>,
        inside: &Inside,
        size: Option<TerminalSize>,
        uid: u32,
    ) -> Result<Self, Failure> {
        Self::try_open(devpts, inside, size, uid)
            .at(Step::OpenTerminal, "in the container's /dev/pts")
    }

    fn try_open(
        devpts: Option<&OwnedFd>,
        inside: &Inside,
        size: Option<TerminalSize>,
        uid: u32,
    ) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let control = match devpts {
            Some(devpts) => rustix::fs::openat(devpts, "ptmx", flags, Mode::empty())?,
            None => {
                let devpts =
                    inside.open(Path::new("/dev/pts"), OFlags::PATH | OFlags::DIRECTORY)?;
                check_devpts(devpts.as_fd())?;
                rustix::fs::openat(&devpts, "ptmx", flags, Mode::empty())?
            }
        };
        check_devpts(control.as_fd())?;
        rustix::pty::unlockpt(&control)?;
        let user = rustix::pty::ioctl_tiocgptpeer(
            &control,
            OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
        )?;
        rustix::fs::fchown(&user, Some(Uid::from_raw(uid)), None)?;
        if let Some(TerminalSize { columns, rows }) = size {
            let size = Winsize {
                ws_col: columns,
                ws_row: rows,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            rustix::termios::tcsetwinsize(&user, size)?;
        }
        Ok(Self { control, user })
    }
}

fn check_devpts(fd: BorrowedFd<'_>) -> io::Result<()> {
    if rustix::fs::fstatfs(fd)?.f_type == DEVPTS_MAGIC {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ENOTTY))
    }
}

/// Makes descriptors 0, 1 and 2 what they are to be; `terminal` with [`Stdio::Terminal`]. The process leads a
/// session. In a user namespace pipes that are the host's stay with their owner.
pub(super) fn set_up(
    stdio: &Stdio,
    terminal: Option<&Terminal>,
    owner: (u32, u32),
    in_user_namespace: bool,
) -> Done {
    match (stdio, terminal) {
        (_, Some(terminal)) => {
            rustix::process::ioctl_tiocsctty(&terminal.user).at(Step::OpenTerminal, "")?;
            let user = &terminal.user;
            replace([user, user, user])?;
        }
        (
            Stdio::Fds {
                stdin,
                stdout,
                stderr,
            },
            None,
        ) => {
            replace([stdin, stdout, stderr])?;
            give_pipes(owner, in_user_namespace)?;
        }
        (Stdio::Inherit, None) => give_pipes(owner, in_user_namespace)?,
        (Stdio::Terminal { .. }, None) => {
            let error = io::Error::from_raw_os_error(libc::ENOTTY);
            return Err(Failure::new(Step::OpenTerminal, "", &error));
        }
    }
    Ok(())
}

fn replace(fds: [&OwnedFd; 3]) -> Done {
    // Copies above 2 first: one of the three may be 0, 1 or 2 itself.
    let mut copies = Vec::new();
    for fd in fds {
        copies.push(rustix::io::fcntl_dupfd_cloexec(fd, 3).at(Step::SetStdio, "")?);
    }
    rustix::stdio::dup2_stdin(&copies[0]).at(Step::SetStdio, "0")?;
    rustix::stdio::dup2_stdout(&copies[1]).at(Step::SetStdio, "1")?;
    rustix::stdio::dup2_stderr(&copies[2]).at(Step::SetStdio, "2")?;
    Ok(())
}

/// Lets the container's user open its own pipes again by `/dev/stdout` and `/dev/stderr`, as programs that log there
/// do: a pipe belongs to who made it.
fn give_pipes((uid, gid): (u32, u32), in_user_namespace: bool) -> Done {
    if uid == 0 {
        return Ok(());
    }
    for fd in [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ] {
        let number = fd.as_raw_fd().to_string();
        let kind = FileType::from_raw_mode(stat(fd).at(Step::SetStdio, &number)?.st_mode);
        if kind == FileType::Fifo {
            match rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
                Err(Errno::PERM) if in_user_namespace => {}
                result => result.at(Step::SetStdio, &number)?,
            }
        }
    }
    Ok(())
}
