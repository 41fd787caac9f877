//! A bundle, as `create`, `run` and `restore` are given one (runtime-spec `bundle.md`).

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::error::{Error, Result, file};
use super::input;
use crate::container;

/// A bundle whose configuration was read and is valid.
#[derive(Debug)]
pub(super) struct Bundle {
    /// Its directory, without symbolic links.
    pub(super) directory: PathBuf,
    /// `root.path`
    pub(super) rootfs: PathBuf,
    /// The configuration as it was found.
    pub(super) text: Vec<u8>,
    /// Boxed, as it is large and moves.
    pub(super) spec: Box<Spec>,
}

impl Bundle {
    /// Reads `config.json`, or the file that is named instead, from the bundle's directory.
    ///
    /// # Errors
    /// When it cannot be read, or asks for what cannot be or is not supported.
    pub(super) fn read(directory: &Path, config: Option<&Path>) -> Result<Self> {
        let directory = fs::canonicalize(directory).map_err(file("find", directory))?;
        let config = directory.join(config.unwrap_or(Path::new("config.json")));
        let text = input::read_file(&config).map_err(file("read", &config))?;
        let spec = container::config::parse_spec(&text).map_err(|source| Error::Config {
            path: config,
            source,
        })?;
        container::validate(&spec)?;
        let root = spec.root().as_ref().ok_or_else(|| Error::Argument {
            argument: "root",
            reason: "is missing".to_owned(),
        })?;
        let rootfs = directory.join(check_root(&directory, root.path())?);
        Ok(Self {
            rootfs,
            directory,
            text,
            spec: Box::new(spec),
        })
    }
}

/// Without a path the bundle itself, with its configuration, would be the container's root; a file fails much later, at
/// the first mount.
fn check_root<'a>(directory: &Path, path: &'a Path) -> Result<&'a Path> {
    let is_missing = path.as_os_str().is_empty();
    if !is_missing && !directory.join(path).is_file() {
        return Ok(path);
    }
    Err(Error::Argument {
        argument: "root.path",
        reason: if is_missing {
            "is missing".to_owned()
        } else {
            format!("{} is not a directory", path.display())
        },
    })
}
