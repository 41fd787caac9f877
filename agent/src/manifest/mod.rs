//! Manifests: from text to objects.

pub mod quantity;
