//! The start of a program, in place of the standard library's: what that does before `main` and is needed here.
//!
//! Of its steps (`std::rt`) two are kept: descriptors 0, 1 and 2 that are closed become `/dev/null`, as what is opened
//! next would take their place and get what is written to standard output; and SIGPIPE is ignored, so that a reader who
//! went away is an error. One is added: SIGCHLD has its default, whatever the caller ignored. Left out is the handler
//! that explains a stack overflow: to find the stack's end it reads `/proc/self/maps` and takes a dozen system calls, a
//! tenth of all that a short command makes. A stack that overflows ends the process without it too, at the guard page.

use std::ffi::OsString;
use std::io::Write;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};

pub use crate::sys::entry::arguments;
use crate::sys::process;

/// Runs a program's `main` with its arguments, and gives its exit code.
pub fn run(arguments: &[OsString], main: fn(&[OsString]) -> u8) -> i32 {
    open_standard_streams();
    process::ignore_broken_pipes();
    process::keep_ended_children();
    let code = main(arguments);
    // What is buffered is written now; where that fails there is nobody left to tell.
    std::io::stdout().flush().unwrap_or_default();
    code.into()
}

/// Opens `/dev/null` in the place of each standard stream that is closed.
fn open_standard_streams() {
    let mut streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ]
    .map(|stream| PollFd::from_borrowed_fd(stream, PollFlags::empty()));
    let now = Timespec::default();
    let asked = rustix::io::retry_on_intr(|| rustix::event::poll(&mut streams, Some(&now)));
    let is_closed = |stream: &PollFd<'_>| stream.revents().contains(PollFlags::NVAL);
    if asked.is_ok() && !streams.iter().any(is_closed) {
        return;
    }
    // The lowest number that is free is the next one; beyond 2 all are open.
    loop {
        match rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()) {
            Ok(null) => {
                if !process::keep_standard(null) {
                    return;
                }
            }
            Err(error) => {
                // As the standard library has it: without them nothing can be written safely.
                tracing::error!(%error, "cannot open /dev/null");
                std::process::abort();
            }
        }
    }
}
