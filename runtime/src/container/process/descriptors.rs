//! All descriptors but 0, 1, 2, the preserved ones and the channel are closed before the container's own files are
//! looked at.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::super::channel::Channel;
use super::super::error::{At, Failure, Step};
use super::FIRST_FREE_FD;
use crate::sys;

/// Closes all descriptors but 0, 1, 2, those to preserve, the channel and `others`, which get new numbers. Nothing
/// that owned a descriptor may be dropped from here on. Earlier than `execve` would: the working directory and the
/// program must not be reached through `/proc/self/fd` of a host directory (CVE-2024-21626).
pub(super) fn close(
    preserve_fds: u32,
    channel: Channel,
    others: [Option<&OwnedFd>; 2],
) -> std::result::Result<(Channel, [Option<OwnedFd>; 2]), Failure> {
    let first = FIRST_FREE_FD + preserve_fds;
    let failed = |e: rustix::io::Errno| Failure::new(Step::CloseDescriptors, "", &e.into());
    // Copies far above what is wanted, so that moving one into place cannot overwrite another.
    let above = (first + 3).cast_signed();
    let copy = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, above).map_err(failed);
    let channel_copy = copy(channel.as_fd())?;
    let other_copies = others.map(|fd| fd.map(|fd| copy(fd.as_fd())).transpose());
    std::mem::forget(channel);

    let mut next = first.cast_signed();
    let mut place = |copy: OwnedFd| {
        let placed =
            sys::process::duplicate_to(copy.as_raw_fd(), next).at(Step::CloseDescriptors, "")?;
        next += 1;
        Ok::<OwnedFd, Failure>(placed)
    };
    let channel = Channel::from_fd(place(channel_copy)?);
    let [a, b] = other_copies;
    let others = [
        a?.map(&mut place).transpose()?,
        b?.map(&mut place).transpose()?,
    ];
    sys::process::close_from(next.cast_unsigned()).at(Step::CloseDescriptors, "")?;
    Ok((channel, others))
}
