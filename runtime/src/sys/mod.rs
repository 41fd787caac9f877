//! System calls that no crate wraps safely, each as a small function that is safe to call.
//!
//! The only modules of this crate with `unsafe` in them, but for the BPF loaders. Errors are bare `io::Error`s: the
//! caller names what it worked on.
#![allow(unsafe_code)]

pub mod clone;
pub mod entry;
pub mod mount;
pub mod namespace;
pub mod network;
pub mod pidfd;
pub mod process;
pub mod schedule;

use std::io;

/// The result of a raw system call.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
