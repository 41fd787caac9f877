//! Whether this is an ordinary user, or root of a user namespace only: state lies elsewhere then, and cgroups may be
//! out of reach.

use std::path::PathBuf;

use super::error::{Error, Result};

/// Where root keeps containers' state.
const STATE: &str = "/run/podling-runtime";

/// The identity map of the initial user namespace (user_namespaces(7)).
const WHOLE_MAP: [&str; 3] = ["0", "0", "4294967295"];

/// The option `--rootless`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Rootless {
    /// It is
    True,
    /// It is not: what may not be done is an error
    False,
    /// Look at the user and its namespace
    #[default]
    Auto,
}

impl Rootless {
    /// The answer.
    pub fn is_so(self) -> bool {
        match self {
            Self::True => true,
            Self::False => false,
            Self::Auto => !rustix::process::geteuid().is_root() || in_user_namespace(),
        }
    }
}

/// True in another user namespace than the initial one. An unreadable map is none.
pub fn in_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| !map.split_whitespace().eq(WHOLE_MAP))
}

/// The state directory where `--root` names none.
///
/// # Errors
/// When an ordinary user has no runtime directory.
pub fn default_root() -> Result<PathBuf> {
    let user = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    match user {
        // Root in a user namespace cannot write to the host's /run.
        Some(user) if Rootless::Auto.is_so() => Ok(PathBuf::from(user).join("podling-runtime")),
        _ if rustix::process::geteuid().is_root() => Ok(PathBuf::from(STATE)),
        _ => Err(Error::Argument {
            argument: "--root",
            reason: "must be given where XDG_RUNTIME_DIR is not set".to_owned(),
        }),
    }
}
