//! Network interfaces: `ioctl(2)`s of netdevice(7).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::check;

/// Brings `lo` of the calling thread's new network namespace up; its addresses come with it.
///
/// # Errors
/// What socket(2) and ioctl(2) say.
pub fn bring_loopback_up() -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: an all-zero ifreq is valid: an empty name and no flags. netdevice(7).
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    let fd = socket.as_raw_fd();
    // The flags of a new `lo`; IFF_LOOPBACK is not one that can be changed.
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: `request` outlives the call, which only reads it. netdevice(7), SIOCSIFFLAGS.
    let set = unsafe { libc::ioctl(fd, SET_FLAGS, &raw const request) };
    check(set.into())?;
    Ok(())
}

/// Of another type than what `ioctl` takes, in some C libraries.
const SET_FLAGS: libc::Ioctl = libc::SIOCSIFFLAGS as libc::Ioctl;
/// `SIOCGSKNS` of linux/sockios.h.
const GET_SOCKET_NAMESPACE: libc::Ioctl = 0x894C;

/// The network namespace of a socket.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN there.
pub fn namespace_of(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: takes no memory. netdevice(7) has its kind; ioctl_nsfs(2).
    let number = unsafe { libc::ioctl(socket.as_raw_fd(), GET_SOCKET_NAMESPACE) };
    check(number.into())?;
    // SAFETY: the kernel has just opened it for the caller, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
