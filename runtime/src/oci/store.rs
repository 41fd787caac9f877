//! Containers on disk: one directory each below the state directory (`--root`).
//!
//! ```text
//! <root>/                mode 0700
//!     <id>/
//!         config.json    the bundle's, as it was at create; with the resctrl class that update gave it
//!         state.json     a Record; put there last, by rename: a directory without it is an unfinished create
//!         start.sock     the gate; there from create to start
//!         notify/        the container's NOTIFY_SOCKET, if the caller has one
//!         criu-root/     the root directory for criu, during a restore
//! ```
//!
//! A process is known by its pid and start time, as pids are used again. The status is derived, not stored: the
//! process has ended (stopped), waits at its gate (created) or runs.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use oci_spec::runtime::Spec;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::container_cgroup::is_frozen;
use super::error::{Error, Result, file};
use super::input::parse_file;
use super::replacement::{Replacement, replace_file};
use crate::container::{Container, config};
use crate::{kernel_file, sys};

/// What is known of a container. Fields that an older version did not write have defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Of the spec.
    pub oci_version: String,
    /// Its name.
    pub id: String,
    /// Its bundle, absolute.
    pub bundle: PathBuf,
    /// Its first process.
    pub pid: i32,
    /// That process's start, in clock ticks since boot.
    pub start_time: u64,
    /// Its root directory; empty when an older version created it.
    #[serde(default)]
    pub rootfs: PathBuf,
    /// Below the root of each hierarchy; none when it is in its creator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// The unit that systemd made for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub systemd: Option<Unit>,
    /// The agent of its filter got the listener when it was created.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub agent_is_told: bool,
    /// When it was created.
    pub created: Timestamp,
    /// The user who created it.
    pub owner: u32,
}

impl Record {
    /// The container, for the library. `spec` is its own.
    pub fn container<'a>(&'a self, spec: &'a Spec) -> Container<'a> {
        Container {
            id: &self.id,
            spec,
            bundle: Some(&self.bundle),
            pid: self.pid,
        }
    }
}

/// A systemd unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// As `libpod-1234.scope`.
    pub name: String,
    /// Of the user's own manager, not the machine's.
    pub user: bool,
}

/// What a container is now. Derived, never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It waits for its start.
    Created,
    /// Its program runs.
    Running,
    /// It runs, and all of its processes stand still.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl Status {
    /// The specification's word; `paused` is runc's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// The state directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// The right to remove a container, as long as this lives: a lock (flock(2)) of its directory.
#[derive(Debug)]
pub struct Removal {
    _directory: OwnedFd,
}

/// One container's directory.
#[derive(Debug, Clone)]
pub struct Entry {
    id: String,
    directory: PathBuf,
}

impl Store {
    /// Names the state directory. Does no I/O.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Makes the directory of a new container.
    ///
    /// # Errors
    /// [`Error::Exists`] or [`Error::Unfinished`] when there is one of that name.
    pub fn reserve(&self, id: &str) -> Result<Entry> {
        let entry = self.entry(id)?;
        let make = || DirBuilder::new().mode(0o700).create(&entry.directory);
        let mut made = make();
        if matches!(&made, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.root)
                .map_err(file("make", &self.root))?;
            made = make();
        }
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let (id, is_made) = (id.to_owned(), entry.state().exists());
                Err(if is_made {
                    Error::Exists { id }
                } else {
                    Error::Unfinished { id }
                })
            }
            result => result
                .map_err(file("make", &entry.directory))
                .map(|()| entry),
        }
    }

    /// Names the directory of a container that may or may not be there.
    ///
    /// # Errors
    /// [`Error::Id`]
    pub fn entry(&self, id: &str) -> Result<Entry> {
        check_id(id).map_err(|reason| Error::Id {
            id: id.to_owned(),
            reason,
        })?;
        Ok(Entry {
            id: id.to_owned(),
            directory: self.root.join(id),
        })
    }

    /// All containers that were created, by name.
    ///
    /// # Errors
    /// When the state directory cannot be read; one that is not there is empty.
    pub fn list(&self) -> Result<Vec<Record>> {
        let directory = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            result => result.map_err(file("read", &self.root))?,
        };
        let mut records = Vec::new();
        for item in directory {
            let item = item.map_err(file("read", &self.root))?;
            let Some(id) = item.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            if check_id(&id).is_err() {
                continue;
            }
            match self.entry(&id)?.load() {
                // Being created, or just deleted.
                Err(Error::Missing { .. }) => {}
                result => records.push(result?),
            }
        }
        records.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(records)
    }
}

impl Entry {
    /// The gate's socket.
    pub fn gate(&self) -> PathBuf {
        self.directory.join("start.sock")
    }

    /// The directory of the socket for readiness, which the container sees too.
    pub fn notify(&self) -> PathBuf {
        self.directory.join("notify")
    }

    /// Where `restore` mounts the root directory for criu.
    pub fn criu_root(&self) -> PathBuf {
        self.directory.join("criu-root")
    }

    fn config(&self) -> PathBuf {
        self.directory.join("config.json")
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    /// Keeps the spec's text.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_spec(&self, text: &[u8]) -> Result<()> {
        fs::write(self.config(), text).map_err(file("write", self.config()))
    }

    /// Keeps another text of a container that exists: readers see the old one or the new one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn replace_spec(&self, text: &[u8]) -> Result<()> {
        replace_file(&self.config(), text)
    }

    /// The text that was kept.
    ///
    /// # Errors
    /// [`Error::Missing`] when the container was removed; when it cannot be read.
    pub fn spec_text(&self) -> Result<Vec<u8>> {
        fs::read(self.config()).map_err(|error| match error.kind() {
            // It is there as long as the record is.
            io::ErrorKind::NotFound => self.missing(),
            _ => file("read", self.config())(error),
        })
    }

    /// The spec as it was at create.
    ///
    /// # Errors
    /// As [`Entry::spec_text`], and when it is no spec.
    pub fn spec(&self) -> Result<Spec> {
        let text = self.spec_text()?;
        config::parse_spec(&text).map_err(|source| Error::Config {
            path: self.config(),
            source,
        })
    }

    /// Writes the record beside its place; when that is moved there the container exists.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn draft(&self, record: &Record) -> Result<Replacement> {
        let path = self.state();
        let text = serde_json::to_vec(record).map_err(|source| Error::Json {
            path: path.clone(),
            source,
        })?;
        Replacement::write(&path, &text)
    }

    /// Reads the record.
    ///
    /// # Errors
    /// [`Error::Missing`] when there is none.
    pub fn load(&self) -> Result<Record> {
        match parse_file(&self.state()) {
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(self.missing())
            }
            result => result,
        }
    }

    fn missing(&self) -> Error {
        Error::Missing {
            id: self.id.clone(),
        }
    }

    /// Waits until nobody else removes this container: a `run` whose container has ended and any number of `delete`
    /// may want to at once. None when there is nothing left to remove.
    ///
    /// # Errors
    /// When the directory cannot be locked, or the record not be read.
    pub fn lock_removal(&self, record: &Record) -> Result<Option<Removal>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = match rustix::fs::open(&self.directory, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            result => result.map_err(|e| file("open", &self.directory)(e.into()))?,
        };
        rustix::io::retry_on_intr(|| flock(&directory, FlockOperation::LockExclusive))
            .map_err(|e| file("lock", &self.directory)(e.into()))?;
        // A container of the same name may have been made since; a record tells its process and its time.
        match self.load() {
            Ok(there) if there == *record => Ok(Some(Removal {
                _directory: directory,
            })),
            Ok(_) | Err(Error::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes all of it.
    ///
    /// # Errors
    /// When it cannot be removed; one that is gone is fine.
    pub fn remove(&self) -> Result<()> {
        // What is in it as a rule; without the socket, which start removes.
        for file in [self.state(), self.config()] {
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(super::error::file("remove", file)(error));
                }
                _ => {}
            }
        }
        match fs::remove_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => return result.map_err(file("remove", &self.directory)),
        }
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(file("remove", &self.directory)),
        }
    }

    /// What the container is now, and its process while it lives. A paused one runs.
    ///
    /// # Errors
    /// When the process cannot be looked at.
    pub fn status(&self, record: &Record) -> Result<(Status, Option<OwnedFd>)> {
        let Some(pidfd) = open_process(record.pid, record.start_time)? else {
            return Ok((Status::Stopped, None));
        };
        let status = if self.gate().exists() {
            Status::Created
        } else {
            Status::Running
        };
        Ok((status, Some(pidfd)))
    }

    /// As [`Entry::status`], and tells whether it is paused.
    ///
    /// # Errors
    /// When the process or its cgroup cannot be looked at.
    pub fn full_status(&self, record: &Record) -> Result<Status> {
        let (status, _) = self.status(record)?;
        if status != Status::Running {
            return Ok(status);
        }
        Ok(if is_frozen(record)? {
            Status::Paused
        } else {
            status
        })
    }
}

/// The process with this pid and start time, if it has not ended.
fn open_process(pid: i32, start_time: u64) -> Result<Option<OwnedFd>> {
    let failed = |source| Error::Process {
        attempt: "open",
        pid,
        source,
    };
    let pidfd = match sys::pidfd::open(pid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        result => result.map_err(failed)?,
    };
    // Read after the descriptor was opened: what it tells is of the same process, or of none.
    Ok(match start_time_of(pid).map_err(failed)? {
        Some(time) if time == start_time => Some(pidfd),
        _ => None,
    })
}

/// When a process was started, in clock ticks since boot; none when it has ended.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn start_time_of(pid: i32) -> io::Result<Option<u64>> {
    match kernel_file::read_one(Path::new(&format!("/proc/{pid}/stat"))) {
        // Bytes, as the process chooses its name.
        Ok(stat) => Ok(parse_start_time(&String::from_utf8_lossy(&stat))),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// proc_pid_stat(5): the name is in parentheses and may hold any; field 3 is the state, 22 the start time.
fn parse_start_time(stat: &str) -> Option<u64> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// A name becomes a directory's. The error says what is wrong, after the name.
fn check_id(id: &str) -> std::result::Result<(), &'static str> {
    /// `NAME_MAX` of linux/limits.h.
    const LENGTH_MAX: usize = 255;
    let is_known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
    if id.is_empty() {
        return Err("is empty");
    }
    if id.len() > LENGTH_MAX {
        return Err("is longer than 255 bytes");
    }
    if !id.starts_with(|c: char| c.is_ascii_alphanumeric()) || !id.chars().all(is_known) {
        return Err(
            "has an invalid character: it must start with a letter or digit and hold only letters, digits and _ + - .",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        Record {
            oci_version: "1.2.0".into(),
            id: id.into(),
            bundle: "/bundle".into(),
            pid: std::process::id().cast_signed(),
            start_time: start_time_of(std::process::id().cast_signed())
                .expect("reads")
                .expect("runs"),
            rootfs: "/bundle/rootfs".into(),
            cgroup: Some("/x".into()),
            systemd: None,
            agent_is_told: false,
            created: Timestamp::UNIX_EPOCH,
            owner: 0,
        }
    }

    #[test]
    fn a_name_cannot_leave_the_state_directory() {
        let store = Store::new("/nowhere".into());
        for id in ["", ".", "..", "a/b", "../x", ".hidden", "ä", "a b"] {
            assert!(matches!(store.entry(id), Err(Error::Id { .. })), "{id}");
        }
        let refused = |id| store.entry(id).expect_err("refused").to_string();
        assert!(refused("a/b").starts_with("container ID \"a/b\" has an invalid character: "));
        assert_eq!(refused(""), "container ID \"\" is empty");
        assert!(refused(&"a".repeat(256)).ends_with("is longer than 255 bytes"));
        assert!(store.entry("a_B-1.2+3").is_ok());
    }

    #[test]
    fn a_name_is_given_once() {
        let root = tempfile::tempdir().expect("directory");
        let store = Store::new(root.path().join("state"));
        let entry = store.reserve("a").expect("reserves");
        assert!(matches!(store.reserve("a"), Err(Error::Unfinished { .. })));
        entry.remove().expect("removes");
        store.reserve("a").expect("reserves again");
    }

    #[test]
    fn an_unfinished_container_is_not_listed() {
        let root = tempfile::tempdir().expect("directory");
        let store = Store::new(root.path().to_owned());
        store.reserve("unfinished").expect("reserves");
        let entry = store.reserve("a").expect("reserves");
        let draft = entry.draft(&record("a")).expect("writes");
        assert_eq!(store.list().expect("lists"), []);
        draft.put().expect("moves");
        assert_eq!(store.list().expect("lists"), [record("a")]);
    }

    #[test]
    fn a_record_of_the_first_version_is_understood() {
        let text = r#"{"oci_version":"1.0.2","id":"a","bundle":"/b","pid":7,"start_time":8,"cgroup":"/c",
            "created":"1970-01-01T00:00:00Z","owner":0}"#;
        let record: Record = serde_json::from_str(text).expect("understood");
        assert_eq!(record.cgroup.as_deref(), Some(Path::new("/c")));
        assert_eq!(record.systemd, None);
    }

    #[test]
    fn another_process_with_the_same_pid_is_not_the_container() {
        let root = tempfile::tempdir().expect("directory");
        let entry = Store::new(root.path().to_owned())
            .reserve("a")
            .expect("reserves");
        let mut record = record("a");
        assert_eq!(entry.status(&record).expect("status").0, Status::Running);
        record.start_time += 1;
        assert_eq!(entry.status(&record).expect("status").0, Status::Stopped);
    }

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(parse_start_time(stat), Some(4711));
        assert_eq!(parse_start_time(&stat.replace(" S ", " Z ")), None);
        assert_eq!(parse_start_time("nonsense"), None);
    }
}
