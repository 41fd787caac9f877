//! Resolves `User` of an image or of a container to numbers.

use crate::image::Image;

/// A user, as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User ID.
    pub uid: u32,
    /// Primary group ID.
    pub gid: u32,
    /// Supplementary groups from the image's /etc/group, sorted; none when the group was given.
    pub additional_gids: Vec<u32>,
    /// Home directory from the image's /etc/passwd.
    pub home: Option<String>,
}

/// A user that cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No such name in the image.
    #[error("user `{name}` is not in the image's /etc/passwd")]
    UnknownUser {
        /// The name.
        name: String,
    },
}

impl Image {
    /// Resolves `name`, `uid`, `name:group`, `uid:gid` and mixtures; the empty text is root.
    pub fn user(&self, spec: &str) -> Result<User, UserError> {
        todo!("{spec}")
    }
}
