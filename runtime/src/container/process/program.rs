//! The program: its arguments, where it is looked for, and its execution.

use std::ffi::CString;
use std::io;

use rustix::fs::{Access, AtFlags, CWD};

use super::super::error::{Failure, Result, Step};
use super::{Done, c_string, c_strings, invalid};
use crate::sys;

/// Where programs are looked for when the environment has no PATH, as the C library's execvp does.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to execute.
#[derive(Debug)]
pub(super) struct Program {
    argv: Vec<CString>,
    /// Where it may be; one path when its name has a slash.
    search: Vec<CString>,
}

impl Program {
    /// `path` is the container's `PATH`; none means [`DEFAULT_PATH`].
    pub(super) fn new(args: &[String], path: Option<&str>) -> Result<Self> {
        let Some(program) = args.first().filter(|a| !a.is_empty()) else {
            return Err(invalid("process.args", "there is no program"));
        };
        Ok(Self {
            argv: c_strings("process.args", args)?,
            search: candidates(program, path.unwrap_or(DEFAULT_PATH))?,
        })
    }

    /// Looks for the program, so that a missing one is told when the container is created. It may still fail to
    /// execute.
    pub(super) fn find(&self) -> Done {
        let mut denied = false;
        for candidate in &self.search {
            match rustix::fs::accessat(CWD, candidate, Access::EXEC_OK, AtFlags::empty()) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::ACCESS) => denied = true,
                Err(_) => {}
            }
        }
        let error = if denied { libc::EACCES } else { libc::ENOENT };
        Err(self.not_found(Step::FindProgram, &io::Error::from_raw_os_error(error)))
    }

    fn not_found(&self, step: Step, error: &io::Error) -> Failure {
        let name = self.argv[0].to_string_lossy();
        let subject = if self.search.len() > 1 {
            format!("{name:?} in $PATH")
        } else {
            format!("{name:?}")
        };
        Failure::new(step, subject, error)
    }

    /// Becomes the program; returns only the failure.
    pub(super) fn execute(&self, env: &[CString]) -> Failure {
        let mut last = io::Error::from_raw_os_error(libc::ENOENT);
        for candidate in &self.search {
            let error = sys::process::execve(candidate, &self.argv, env);
            match error.raw_os_error() {
                // As execvp(3): go on, and remember what was there but denied.
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES) => last = error,
                _ => {
                    last = error;
                    break;
                }
            }
        }
        self.not_found(Step::Execute, &last)
    }
}

/// The paths to try for a program: itself when it has a slash, else in each directory of PATH.
fn candidates(program: &str, path: &str) -> Result<Vec<CString>> {
    if program.contains('/') {
        return Ok(vec![c_string("process.args", program.as_bytes())?]);
    }
    path.split(':')
        .map(|directory| {
            let directory = if directory.is_empty() { "." } else { directory };
            c_string("process.env", format!("{directory}/{program}").as_bytes())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_in_path() {
        let paths = candidates("sh", "/bin::/usr/bin").expect("candidates");
        assert_eq!(
            paths,
            [
                c"/bin/sh".into(),
                c"./sh".into(),
                CString::from(c"/usr/bin/sh")
            ]
        );
        assert_eq!(
            candidates("./sh", "/bin").expect("candidates"),
            [CString::from(c"./sh")]
        );
    }
}
