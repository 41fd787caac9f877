//! What `checkpoint` and `restore` have in common: options of the command line, and criu's.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::super::error::{Error, Result, file};
use super::Message;

/// Options of `checkpoint` and of `restore`.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Common {
    /// Where the image's files are
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    pub image_path: PathBuf,
    /// Where criu keeps its log and other files; the image's directory if not given
    #[arg(long, value_name = "DIR")]
    pub work_path: Option<PathBuf>,
    /// Allow established TCP connections
    #[arg(long)]
    pub tcp_established: bool,
    /// Allow sockets whose other end is outside
    #[arg(long)]
    pub ext_unix_sk: bool,
    /// Allow the caller's terminal
    #[arg(long)]
    pub shell_job: bool,
    /// Save file locks, and take them again
    #[arg(long)]
    pub file_locks: bool,
    /// Fetch memory when it is used
    #[arg(long)]
    pub lazy_pages: bool,
    /// Remove from the image what is in another
    #[arg(long)]
    pub auto_dedup: bool,
    /// How much of cgroups is restored
    #[arg(long, value_enum, value_name = "MODE", default_value_t)]
    pub manage_cgroups_mode: Mode,
    /// Make a namespace, and leave what is in it: network
    #[arg(long, value_name = "NAMESPACE")]
    pub empty_ns: Vec<Empty>,
}

/// `criu_cg_mode`: criu(8), `--manage-cgroups`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Not at all
    Ignore = 0,
    /// Properties of those that are missing
    #[default]
    Soft = 3,
    /// All cgroups and properties
    Full = 4,
    /// As full, and fail when one is there already
    Strict = 5,
}

/// A namespace whose content is not criu's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Empty {
    /// The network
    Network,
}

/// The image's directory, and the one for criu's log, open for criu.
#[derive(Debug)]
pub struct Images {
    images: OwnedFd,
    work: Option<OwnedFd>,
    log: PathBuf,
}

impl Images {
    /// Opens them; `make` makes what is missing.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn open(common: &Common, make: bool, log: &str) -> Result<Self> {
        let open = |path: &Path| -> Result<OwnedFd> {
            if make {
                match DirBuilder::new().mode(0o700).create(path) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    result => result.map_err(file("make", path))?,
                }
            }
            Ok(File::open(path).map_err(file("open", path))?.into())
        };
        let images = open(&common.image_path)?;
        let work = common.work_path.as_deref().map(open).transpose()?;
        Ok(Self {
            images,
            work,
            log: common
                .work_path
                .as_ref()
                .unwrap_or(&common.image_path)
                .join(log),
        })
    }

    /// criu's log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The descriptors that criu inherits.
    pub fn into_descriptors(self) -> Vec<OwnedFd> {
        std::iter::once(self.images).chain(self.work).collect()
    }
}

/// `criu_opts`, as it is built.
#[derive(Debug, Default)]
pub struct Opts(pub Message);

impl Opts {
    /// What `checkpoint` and `restore` both say. `log` is a name in the work directory.
    pub fn new(common: &Common, images: &Images, root: &Path, log: &str) -> Result<Self> {
        /// criu's word for the network among the flags of clone(2).
        const NEW_NETWORK: u64 = libc::CLONE_NEWNET as u64;
        /// As much as runc asks for.
        const LOG_LEVEL: u64 = 4;
        let mut opts = Message::default();
        opts.number(1, descriptor(&images.images))
            .number(9, LOG_LEVEL)
            .text(10, log)
            .flag(12, true)
            .text(13, text(root)?)
            .flag(4, common.ext_unix_sk)
            .flag(5, common.tcp_established)
            .flag(7, common.shell_job)
            .flag(8, common.file_locks)
            .flag(16, common.auto_dedup)
            .flag(24, common.manage_cgroups_mode != Mode::Ignore)
            .number(34, common.manage_cgroups_mode as u64)
            .flag(48, common.lazy_pages)
            // The controlling side of a container's terminal is ours.
            .flag(50, true);
        if let Some(work) = &images.work {
            opts.number(17, descriptor(work));
        }
        if common.empty_ns.contains(&Empty::Network) {
            opts.number(38, NEW_NETWORK);
        }
        Ok(Self(opts))
    }

    /// `ext_mount_map`: a mount that comes from outside.
    pub fn external_mount(&mut self, key: &str, value: &str) {
        let mut map = Message::default();
        map.text(1, key).text(2, value);
        self.0.message(23, &map);
    }
}

fn descriptor(fd: &OwnedFd) -> u64 {
    // A valid descriptor is not negative.
    fd.as_raw_fd().cast_unsigned().into()
}

/// A path as text, which criu's messages hold.
///
/// # Errors
/// When it is not UTF-8.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::Argument {
        argument: "paths",
        reason: format!("{} is not UTF-8, which criu wants", path.display()),
    })
}

/// The namespaces that the spec joins by path, which criu knows as external ones: kind in criu's words, key, path.
///
/// # Errors
/// When one is joined that cannot be external.
pub fn external_namespaces(spec: &Spec) -> Result<Vec<(&'static str, String, PathBuf)>> {
    let mut external = Vec::new();
    let namespaces = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    for namespace in namespaces.into_iter().flatten() {
        let Some(path) = namespace.path() else {
            continue;
        };
        let (kind, word) = match namespace.typ() {
            LinuxNamespaceType::Network => ("net", "Net"),
            LinuxNamespaceType::Pid => ("pid", "Pid"),
            other => {
                return Err(Error::Argument {
                    argument: "linux.namespaces",
                    reason: format!(
                        "a container that joins a {other} namespace by path cannot be saved or restored"
                    ),
                });
            }
        };
        external.push((kind, format!("extRoot{word}NS"), path.clone()));
    }
    Ok(external)
}
