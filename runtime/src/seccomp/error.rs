//! What can go wrong with a filter.

/// A result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// What was attempted, on what, and why it failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The profile asks for what this program cannot do.
    #[error("seccomp: {field}: {reason}")]
    Unsupported {
        /// Where in the profile.
        field: String,
        /// Why.
        reason: String,
    },
    /// The profile contradicts the specification.
    #[error("seccomp: {field}: {reason}")]
    Invalid {
        /// Where in the profile.
        field: String,
        /// Why.
        reason: String,
    },
    /// The compiled filter is larger than the kernel takes.
    #[error(
        "the compiled seccomp filter has {instructions} instructions, the kernel takes at most 4096"
    )]
    TooLarge {
        /// Its length.
        instructions: usize,
    },
}
