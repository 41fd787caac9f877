//! `spec`: a config.json to start from.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use oci_spec::runtime::Spec;

use super::error::{Error, Result, file};

/// Options of `spec`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The bundle
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    pub bundle: PathBuf,
    /// Write this file instead of the bundle's config.json
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// For a container that an ordinary user runs, in a user namespace
    #[arg(long)]
    pub rootless: bool,
}

/// Writes it; never over a file that is there.
pub(super) fn spec(options: &Options) -> Result<()> {
    let path = match &options.file {
        Some(path) => path.clone(),
        None => options.bundle.join("config.json"),
    };
    let mut spec = if options.rootless {
        let user = rustix::process::geteuid().as_raw();
        Spec::rootless(user, rustix::process::getegid().as_raw())
    } else {
        Spec::default()
    };
    spec.set_hostname(Some("podling".to_owned()));
    let mut text = serde_json::to_vec_pretty(&spec).map_err(|source| Error::Json {
        path: path.clone(),
        source,
    })?;
    text.push(b'\n');
    fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&path)
        .and_then(|mut f| f.write_all(&text))
        .map_err(file("write", path))
}
