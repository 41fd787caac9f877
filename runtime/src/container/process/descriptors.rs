//! All descriptors but 0, 1, 2, the preserved ones and the channel are closed before the container's own files are
//! looked at.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::super::channel::Channel;
use super::super::error::{At, Failure, Step};
use super::FIRST_FREE_FD;
use crate::sys;

/// Closes all descriptors but 0, 1, 2, those to preserve, the channel and `others`, which get new numbers. Nothing that
/// owned a descriptor may be dropped from here on. Earlier than `execve` would: the working directory and the program
/// must not be reached through `/proc/self/fd` of a host directory (CVE-2024-21626).
pub(super) fn close<const N: usize>(
    preserve_fds: u32,
    channel: Channel,
    others: [Option<&OwnedFd>; N],
) -> std::result::Result<(Channel, [Option<OwnedFd>; N]), Failure> {
    let first = FIRST_FREE_FD + preserve_fds;
    // Copies far above what is wanted, so that moving one into place cannot overwrite another.
    let above = first.cast_signed() + 1 + N as i32;
    let copy = |fd: BorrowedFd<'_>| {
        rustix::io::fcntl_dupfd_cloexec(fd, above).at(Step::CloseDescriptors, "")
    };
    let channel_copy = copy(channel.as_fd())?;
    let mut copies = [const { None }; N];
    for (copied, fd) in copies.iter_mut().zip(others) {
        *copied = fd.map(|fd| copy(fd.as_fd())).transpose()?;
    }
    std::mem::forget(channel);

    let mut next = first.cast_signed();
    let mut place = |copy: OwnedFd| {
        let placed =
            sys::process::duplicate_to(copy.as_raw_fd(), next).at(Step::CloseDescriptors, "")?;
        next += 1;
        // Its number is closed with all others below.
        std::mem::forget(copy);
        Ok::<OwnedFd, Failure>(placed)
    };
    let channel = Channel::from_fd(place(channel_copy)?);
    let mut placed = [const { None }; N];
    for (placed, copy) in placed.iter_mut().zip(copies) {
        *placed = copy.map(&mut place).transpose()?;
    }
    sys::process::close_from(next.cast_unsigned()).at(Step::CloseDescriptors, "")?;
    Ok((channel, placed))
}
