//! `checkpoint`: saves a container's processes to files, by criu.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::container_cgroup::find;
use super::criu::{Common, Images, Kind, Message, Notice, Opts, Session};
use super::criu::{external_namespaces, text};
use super::error::{Error, Result, file};
use super::log::Log;
use super::replacement::replace_file;
use super::store::{Record, Status, Store};
use super::{delete, kill};

/// criu's log in the work directory.
const LOG: &str = "dump.log";

/// What the first process's standard streams were: beside criu's files, as runc keeps it.
pub(super) const DESCRIPTORS: &str = "descriptors.json";

/// Options of `checkpoint`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The container's name
    pub id: String,
    /// As for `restore`
    #[command(flatten)]
    pub common: Common,
    /// An image saved before, relative to this one, whose memory need not be saved again
    #[arg(long, value_name = "DIR")]
    pub parent_path: Option<PathBuf>,
    /// Let the container run on
    #[arg(long)]
    pub leave_running: bool,
    /// Save memory only, and let the container run on
    #[arg(long)]
    pub pre_dump: bool,
    /// Leave out connections that are being made
    #[arg(long)]
    pub tcp_skip_in_flight: bool,
    /// Save files that have been removed but are open, as links
    #[arg(long)]
    pub link_remap: bool,
    /// Send memory to this page server, ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub page_server: Option<String>,
    /// criu writes a NUL byte to this descriptor when lazy pages can be fetched
    #[arg(long, value_name = "FD")]
    pub status_fd: Option<u32>,
}

/// Saves the container, and unless it is to run on, removes it.
pub(super) fn checkpoint(store: &Store, options: &Options, criu: &Path, log: &Log) -> Result<()> {
    let entry = store.entry(&options.id)?;
    let record = entry.load()?;
    let (status, process) = entry.status(&record)?;
    let process = process.filter(|_| matches!(status, Status::Running | Status::Paused));
    let Some(process) = process else {
        return Err(Error::Status {
            id: record.id,
            status: status.name(),
            command: "checkpoint",
            wanted: "running",
        });
    };
    let spec = entry.spec()?;
    let images = Images::open(&options.common, true, LOG)?;
    let request = request(options, &record, &spec, &images)?;
    if !options.pre_dump {
        save_descriptors(&record, &options.common.image_path)?;
    }
    let kind = if options.pre_dump {
        Kind::PreDump
    } else {
        Kind::Dump
    };
    let criu_log = images.log().to_owned();
    let session = Session::start(criu, images.into_descriptors())?;
    session.request(kind, &request, &criu_log, |notice: Notice| {
        tracing::debug!(script = notice.script, "criu works");
        Ok::<(), Error>(())
    })?;
    if options.leave_running || options.pre_dump {
        return Ok(());
    }
    end(&process, &record)?;
    delete::remove(&entry, &record, &spec, log)
}

/// criu has killed the processes; the first one may still be on its way out.
fn end(process: &OwnedFd, record: &Record) -> Result<()> {
    kill::signal_process(process.as_fd(), record.pid, libc::SIGKILL)?;
    delete::await_end(process.as_fd(), record)
}

/// `criu_opts` of a dump.
fn request(options: &Options, record: &Record, spec: &Spec, images: &Images) -> Result<Message> {
    let mut opts = Opts::new(&options.common, images, &record.rootfs, LOG)?;
    opts.0
        .number(2, record.pid.cast_unsigned().into())
        .flag(3, options.leave_running)
        .flag(18, options.link_remap)
        .flag(46, options.tcp_skip_in_flight);
    if let Some(parent) = &options.parent_path {
        opts.0.text(14, text(parent)?).flag(15, true);
    } else {
        // Memory that is saved again later is tracked from now on.
        opts.0.flag(15, options.pre_dump);
    }
    if let Some(server) = &options.page_server {
        opts.0.message(11, &page_server(server)?);
    }
    if let Some(fd) = options.status_fd {
        opts.0.number(49, fd.into());
    }
    if let Some(freezer) = freezer(record)? {
        opts.0.text(44, text(&freezer)?);
    }
    for (kind, key, path) in external_namespaces(spec)? {
        let found = fs::metadata(&path).map_err(file("look at", &path))?;
        opts.0.text(37, &format!("{kind}[{}]:{key}", found.ino()));
    }
    if !options.pre_dump {
        for (key, value) in external_mounts(record, spec) {
            opts.external_mount(&key, &value);
        }
    }
    Ok(opts.0)
}

/// `criu_page_server_info`
fn page_server(server: &str) -> Result<Message> {
    let invalid = || Error::Argument {
        argument: "--page-server",
        reason: format!("{server:?} is not ADDRESS:PORT"),
    };
    let (address, port) = server.rsplit_once(':').ok_or_else(invalid)?;
    let port: u16 = port.parse().map_err(|_| invalid())?;
    let mut info = Message::default();
    info.text(1, address).number(2, port.into());
    Ok(info)
}

/// The directory by which criu stops the processes; without one it stops them one by one.
fn freezer(record: &Record) -> Result<Option<PathBuf>> {
    let cgroup = find(record)?;
    Ok(cgroup.and_then(|it| it.controller_dir("freezer").map(Path::to_owned)))
}

/// Mounts whose source is outside the container: bind mounts by their place, masked files as `/dev/null`.
fn external_mounts(record: &Record, spec: &Spec) -> Vec<(String, String)> {
    let mounts = spec.mounts().iter().flatten();
    let binds = mounts
        .filter(|mount| crate::container::is_bind(mount))
        .map(|mount| {
            let place = mount.destination().display().to_string();
            (place.clone(), place)
        });
    let masked = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.masked_paths().as_ref());
    let root = PathBuf::from(format!("/proc/{}/root", record.pid));
    let files = masked.into_iter().flatten().filter(move |path| {
        let path = root.join(path.trim_start_matches('/'));
        fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir())
    });
    let files = files.map(|path| (path.clone(), "/dev/null".to_owned()));
    binds.chain(files).collect()
}

/// What the standard streams are connected to: on restore pipes are replaced by the caller's.
fn save_descriptors(record: &Record, images: &Path) -> Result<()> {
    let links = (0..3).map(|number| {
        let path = PathBuf::from(format!("/proc/{}/fd/{number}", record.pid));
        let link = fs::read_link(&path).unwrap_or_default();
        link.to_string_lossy().into_owned()
    });
    let links: Vec<String> = links.collect();
    let path = images.join(DESCRIPTORS);
    let text = serde_json::to_vec(&links).map_err(|source| Error::Json {
        path: path.clone(),
        source,
    })?;
    replace_file(&path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_server_has_an_address_and_a_port() {
        assert!(page_server("127.0.0.1:7").is_ok());
        assert!(page_server("[::1]:7").is_ok());
        for wrong in ["", "host", "host:", "host:70000"] {
            assert!(page_server(wrong).is_err(), "{wrong}");
        }
    }
}
