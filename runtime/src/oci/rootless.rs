//! Whether this is an ordinary user, or root of a user namespace only: state lies elsewhere then, and cgroups may be
//! out of reach.

use std::path::{Path, PathBuf};

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
    crate::kernel_file::read_text(Path::new("/proc/self/uid_map"))
        .is_ok_and(|map| !map.split_whitespace().eq(WHOLE_MAP))
}

/// The state directory where `--root` names none.
pub fn default_root() -> PathBuf {
    if !Rootless::Auto.is_so() {
        return PathBuf::from(STATE);
    }
    // Root in a user namespace cannot write to the host's /run.
    let runtime = match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(named) => PathBuf::from(named),
        // Where systemd has it (pam_systemd(8)).
        None => PathBuf::from(format!("/run/user/{}", rustix::process::getuid().as_raw())),
    };
    runtime.join("podling-runtime")
}
