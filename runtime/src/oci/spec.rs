//! `spec`: a config.json to start from.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxCapabilities, LinuxDeviceCgroup, LinuxResources, Spec};

use super::error::{Error, Result, file};
use super::features::SPEC_VERSION;

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
    let spec = start_from(options.rootless);
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

/// As runc's and crun's `spec` have it: a shell on a terminal that may do little. What the library gives
/// otherwise would pass capabilities on to any program (inheritable, ambient), and let any device be opened.
fn start_from(rootless: bool) -> Spec {
    let mut spec = if rootless {
        let user = rustix::process::geteuid().as_raw();
        Spec::rootless(user, rustix::process::getegid().as_raw())
    } else {
        Spec::default()
    };
    spec.set_version(SPEC_VERSION.to_owned());
    spec.set_hostname(Some("podling".to_owned()));
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_terminal(Some(true));
    let mut capabilities = LinuxCapabilities::default();
    capabilities.set_inheritable(None);
    capabilities.set_ambient(None);
    process.set_capabilities(Some(capabilities));
    spec.set_process(Some(process));
    // An ordinary user has no cgroup to set rules for.
    if !rootless && let Some(mut linux) = spec.linux().clone() {
        linux.set_resources(Some(no_devices()));
        spec.set_linux(Some(linux));
    }
    spec
}

/// No device but those that every container has (config-linux.md#default-devices).
fn no_devices() -> LinuxResources {
    let mut all = LinuxDeviceCgroup::default();
    all.set_allow(false).set_access(Some("rwm".to_owned()));
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(vec![all]));
    resources
}
