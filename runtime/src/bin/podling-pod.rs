//! The pod supervisor: `podling-pod <pod directory>`, started by the agent.
//!
//! It waits for `go` on standard input, so that whoever started it can first put it where it belongs (a systemd
//! scope) and write its plan, and then outlives that process. It closes standard output when it can be talked to, so
//! that nobody has to try its socket again and again: that end, or its own, is what its starter sees.

#![no_main]

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead};
use std::path::{Path, PathBuf};

use podling_runtime::chain;
use podling_runtime::container::protect;
use podling_runtime::pod::supervisor;
use rustix::fs::Mode;

mod sys {
    //! The C library's way into this program ([`podling_runtime::start`]).
    #![allow(unsafe_code)]

    use std::ffi::{c_char, c_int};

    use podling_runtime::start;

    // SAFETY: the one `main` of this program, with the C library's idea of it.
    #[unsafe(no_mangle)]
    extern "C" fn main(count: c_int, arguments: *const *const c_char) -> c_int {
        // SAFETY: they are what `main` was given.
        let arguments = unsafe { start::arguments(count, arguments) };
        start::run(&arguments, super::supervise)
    }
}

fn supervise(arguments: &[OsString]) -> u8 {
    match run(arguments) {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("podling-pod: {}", chain(&*e));
            1
        }
    }
}

fn run(arguments: &[OsString]) -> Result<(), Box<dyn std::error::Error>> {
    let dir = pod_dir(arguments)?;
    protect::seal(arguments)?;
    std::env::set_current_dir("/")?;
    // Fails for a process group's leader, as which nobody starts it but a shell: no harm then.
    rustix::process::setsid().map(drop).unwrap_or_default();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    wait_for_go()?;
    supervisor::run(&dir, close_stdout)?;
    Ok(())
}

fn pod_dir(arguments: &[OsString]) -> Result<PathBuf, Box<dyn std::error::Error>> {
    match arguments {
        [_, dir] => Ok(std::path::absolute(Path::new(dir))?),
        _ => Err(
            "usage: podling-pod <pod directory>\nThe agent starts this program, one for each pod."
                .into(),
        ),
    }
}

fn wait_for_go() -> Result<(), Box<dyn std::error::Error>> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    if line.trim_end() != "go" {
        return Err("whoever started this supervisor did not let it begin".into());
    }
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(())
}

/// Tells whoever waits for it that the supervisor listens at its socket.
fn close_stdout() -> io::Result<()> {
    let null = File::options().write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdout(null)?)
}
