//! System call filters: OCI profiles compiled to BPF, kept on disk, and put on the container's process.
//!
//! ```text
//! default_profile(capabilities) ─┐
//! OCI linux.seccomp ─────────────┴─► compile() ──► Filter ──► load() in the child, just before exec
//!                                      │   ▲
//!                              newer   ▼   │ cache (by the profile's hash)
//!                    (ENOSYS for what libseccomp does not know yet)
//! ```
//!
//! Deliberately absent: user notification (`SCMP_ACT_NOTIFY`), which is refused. A profile that cannot be applied as
//! it is written is an error, and the container does not start.

use std::io;
use std::path::Path;

use oci_spec::runtime::LinuxSeccomp;

mod cache;
mod compile;
mod default;
mod error;
mod newer;
mod sys;

pub use default::default_profile;
pub use error::{Error, Result};

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    flags: u32,
    program: Vec<u8>,
}

/// Compiles a profile. With `cache_dir`, a filter compiled before is read from there, and a new one is kept there.
///
/// # Errors
/// When the profile asks for what is not supported; then the container must not start.
pub fn compile(profile: &LinuxSeccomp, cache_dir: Option<&Path>) -> Result<Filter> {
    let path = cache_dir.and_then(|dir| cache::path(dir, profile));
    if let Some(compiled) = path.as_deref().and_then(cache::read) {
        return Ok(Filter::from(compiled));
    }
    let compiled = compile::compile(profile)?;
    if let Some(path) = path
        && let Err(error) = cache::write(&path, &compiled)
    {
        tracing::warn!(path = %path.display(), %error, "cannot keep the compiled seccomp filter");
    }
    Ok(Filter::from(compiled))
}

impl From<compile::Compiled> for Filter {
    fn from(compiled: compile::Compiled) -> Self {
        Self {
            flags: compiled.flags,
            program: compiled.program,
        }
    }
}

impl Filter {
    /// Puts the filter on the calling thread. Async-signal-safe: one system call, no allocation. It takes
    /// CAP_SYS_ADMIN in the thread's user namespace or no_new_privs: without no_new_privs call it before capabilities
    /// are dropped.
    ///
    /// # Errors
    /// When the kernel refuses it; then the container must not start.
    pub fn load(&self) -> io::Result<()> {
        sys::set_filter(self.flags, &self.program)
    }

    /// The number of BPF instructions.
    pub fn instructions(&self) -> usize {
        self.program.len() / 8
    }
}

#[cfg(test)]
mod tests;
