//! A problem with something that a writer wants: what `podling status` shows until it is put right.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::object::{Key, Origin};

/// Something a writer wants and does not get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Where it was written; the line is that of the field.
    pub origin: Origin,
    /// Which object it is about, if that much is known.
    pub object: Option<Key>,
    /// The field, such as `spec.containers[0].resources.limits.cpu`.
    pub field: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
    /// When it was first seen.
    pub since: Timestamp,
}

impl Problem {
    /// A problem, seen now.
    pub fn new(origin: Origin, message: impl Into<String>) -> Self {
        Self {
            origin,
            object: None,
            field: None,
            message: message.into(),
            remedy: None,
            since: Timestamp::now(),
        }
    }

    /// With the object that it is about.
    #[must_use]
    pub fn object(mut self, key: Option<Key>) -> Self {
        self.object = key;
        self
    }

    /// With the field that it is about.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into()).filter(|field| !field.is_empty());
        self
    }

    /// With what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The same but for the time.
    pub fn is_same(&self, other: &Problem) -> bool {
        self.origin == other.origin
            && self.object == other.object
            && self.field == other.field
            && self.message == other.message
            && self.remedy == other.remedy
    }
}

impl fmt::Display for Problem {
    /// `origin:line: object: field: message (remedy)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.message)?;
        if let Some(remedy) = &self.remedy {
            write!(f, " ({remedy})")?;
        }
        Ok(())
    }
}
