//! OCI images: pull, verify, store, unpack.
//!
//! ```text
//!  registry ──pull──┐
//!  OCI layout ──────┤                    ┌─► blobs/       all that came, by digest
//!  OCI archive ─────┼─► manifest, config ┼─► layers/      unpacked directories, by diff ID: overlay lower layers
//!  docker-archive ──┤     and layers     ├─► references/  records: reference ─► manifest
//!  host files ──────┘                    └─► index.json   which makes the store an OCI layout
//! ```
//!
//! The way back: [`save`] writes archives of what is here.
//!
//! Reading order: [`reference`] and [`digest`] (names), [`store`] (disk layout, locks, commit order), [`unpack`]
//! (a hostile tar becomes a directory), [`load`] and [`pull`] (where images come from),
//! [`registry`] (how registries are spoken to), [`image`] (what a caller
//! gets). [`names`] resolves host names, for the agent too.
//!
//! Each byte is checked against its digest before an image that holds it becomes visible. This crate knows nothing
//! of pods or containers, and mounts nothing: it hands out the paths of the layers.

mod artifact;
pub mod build;
mod bundle;
pub mod changes;
mod compression;
mod confined;
pub mod digest;
pub mod image;
mod layered;
pub mod load;
mod manifest;
pub mod names;
pub mod platform;
pub mod pull;
pub mod push;
pub mod reference;
pub mod registry;
pub mod save;
pub mod store;
mod tar_stream;
#[cfg(test)]
mod test_archive;
pub mod trust;
pub mod unpack;
pub mod usage;
pub mod user;
mod whole_index;

pub use build::{BuildError, FileSource, ImageFile};
pub use bundle::BundleError;
pub use changes::{Aspect, Change, ChangeKind, ChangesError, changes};
pub use digest::Digest;
pub use image::{Image, ImageLayer, LayerBlob};
pub use load::{LoadError, LoadOptions};
pub use manifest::{DocumentKind, ManifestError, check_config, check_document};
pub use oci_spec::image::ImageConfiguration;
pub use platform::Platform;
pub use pull::{FetchedBlobs, LayerSummary, Progress, PullError, PullOptions};
pub use push::{Arrival, PushError, PushOptions, PushProgress, Pushed};
pub use reference::{Reference, ReferenceError};
pub use registry::{
    ConnectError, ConnectKind, Credentials, HostsError, Keyring, KeyringError, Patience,
    ProxyError, RegistriesConfig, RegistryError, Retry,
};
pub use save::{ArchiveFormat, Platforms, SaveError, SavedImage};
pub use store::{
    Collected, Fetch, FetchError, Healed, ImageHold, ImageStore, JudgeError, Lost, Part, Problem,
    Removed, StoreError,
};
pub use tar_stream::TarError;
pub use trust::{Distrust, Policy, PolicyError, PublicKey};
pub use unpack::{Limits, UnpackError};
pub use usage::{DiskUsage, ImageUsage, Usage};
pub use user::{User, UserError};
