//! Which pod has which address, kept on disk.
//!
//! `<data-dir>/network/leases` is a log of JSON lines: a header with the range and where the search for the next
//! address starts, then one line for each lease taken or freed. It is written anew when it has grown long; a last line
//! without its newline is the trace of a crash, and ignored.
//!
//! An address goes to the next pod only once the whole range has been used: peers may still hold connections, names
//! or neighbour entries for the pod that had it before.
//!
//! Lines are in the page cache before a pod uses its address, so an agent that is killed forgets nothing. They are
//! synced to disk soon after ([`Leases::sync_handle`]), not before: a power cut ends all pods, so it cannot make two
//! of them hold one address.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cidr::Cidr;
use super::{Error, HostPort};

/// Rewrite the log when it has this many lines beyond one per lease: a page or two of text.
const SLACK_LINES: usize = 64;

/// A pod's place on the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    /// The pod's uid.
    pub(super) uid: String,
    /// `namespace/name`, for messages.
    pub(super) pod: String,
    /// Its address.
    pub(super) address: Ipv4Addr,
    /// Ports of the host that lead to it.
    #[serde(default)]
    pub(super) host_ports: Vec<HostPort>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Header { cidr: String, next: u32 },
    Take(Lease),
    Free(String),
}

/// All leases of this node.
#[derive(Debug)]
pub(super) struct Leases {
    path: PathBuf,
    file: File,
    lines: usize,
    cidr: Cidr,
    /// Where the search for the next address starts.
    next: u32,
    by_uid: HashMap<String, Lease>,
    in_use: HashSet<Ipv4Addr>,
}

impl Leases {
    /// The range that the leases in `data_dir` are in, if there are any.
    pub(super) fn stored_cidr(data_dir: &Path) -> Result<Option<String>, Error> {
        Ok(read(&lease_path(data_dir))?.cidr)
    }

    /// Opens the leases in `data_dir`. Those outside of `cidr` are forgotten.
    pub(super) fn open(data_dir: &Path, cidr: Cidr) -> Result<Leases, Error> {
        let path = lease_path(data_dir);
        let dir = path.parent().unwrap_or(data_dir);
        fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
        let mut content = read(&path)?;
        let same_cidr = content.cidr.as_deref() == Some(cidr.to_string().as_str());
        let next = if same_cidr { content.next } else { 0 };
        content
            .by_uid
            .retain(|_, lease| cidr.pod_index(lease.address).is_some());
        let by_uid = content.by_uid;
        let (file, lines) = if same_cidr && content.whole && !is_long(content.lines, by_uid.len()) {
            // The usual case: a restart of the agent writes nothing.
            (open_to_append(&path)?, content.lines)
        } else {
            write(&path, cidr, next, by_uid.values())?
        };
        let in_use = by_uid.values().map(|lease| lease.address).collect();
        Ok(Leases {
            path,
            file,
            lines,
            cidr,
            next,
            by_uid,
            in_use,
        })
    }

    /// Gives a pod an address, the same as before if it has one, and records its host ports. The second value says
    /// whether anything is new.
    pub(super) fn take(
        &mut self,
        uid: &str,
        pod: &str,
        host_ports: &[HostPort],
    ) -> Result<(Lease, bool), Error> {
        let address = match self.by_uid.get(uid) {
            Some(lease) if lease.host_ports == host_ports && lease.pod == pod => {
                return Ok((lease.clone(), false));
            }
            Some(lease) => lease.address,
            None => self.free_address()?,
        };
        let lease = Lease {
            uid: uid.to_string(),
            pod: pod.to_string(),
            address,
            host_ports: host_ports.to_vec(),
        };
        self.append(&Line::Take(lease.clone()))?;
        self.record(lease.clone());
        Ok((lease, true))
    }

    /// Gives a pod's address back; None if it had none.
    pub(super) fn free(&mut self, uid: &str) -> Result<Option<Lease>, Error> {
        if !self.by_uid.contains_key(uid) {
            return Ok(None);
        }
        self.append(&Line::Free(uid.to_string()))?;
        let lease = self.by_uid.remove(uid);
        if let Some(lease) = &lease {
            self.in_use.remove(&lease.address);
        }
        Ok(lease)
    }

    /// A pod's lease.
    pub(super) fn get(&self, uid: &str) -> Option<&Lease> {
        self.by_uid.get(uid)
    }

    /// All leases.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.by_uid.values()
    }

    /// A handle whose `sync_data` makes all that was recorded durable.
    pub(super) fn sync_handle(&self) -> Result<File, Error> {
        self.file
            .try_clone()
            .map_err(Error::file("sync", &self.path))
    }

    fn free_address(&self) -> Result<Ipv4Addr, Error> {
        let count = self.cidr.pod_count();
        (0..count)
            .map(|step| self.cidr.pod_address(self.next.wrapping_add(step)))
            .find(|address| !self.in_use.contains(address))
            .ok_or_else(|| Error::Exhausted {
                cidr: self.cidr.to_string(),
                count,
            })
    }

    fn record(&mut self, lease: Lease) {
        if self.in_use.insert(lease.address) {
            self.next = after(self.cidr, lease.address);
        }
        self.by_uid.insert(lease.uid.clone(), lease);
    }

    fn append(&mut self, line: &Line) -> Result<(), Error> {
        if is_long(self.lines, self.by_uid.len()) {
            (self.file, self.lines) =
                write(&self.path, self.cidr, self.next, self.by_uid.values())?;
        }
        // One write, so that a crash leaves a whole line or a torn last one.
        self.file
            .write_all(&encode(line, &self.path)?)
            .map_err(Error::file("write", &self.path))?;
        self.lines += 1;
        Ok(())
    }
}

fn lease_path(data_dir: &Path) -> PathBuf {
    data_dir.join("network").join("leases")
}

fn after(cidr: Cidr, address: Ipv4Addr) -> u32 {
    cidr.pod_index(address)
        .map_or(0, |index| (index + 1) % cidr.pod_count().max(1))
}

fn is_long(lines: usize, leases: usize) -> bool {
    lines > 2 * leases + SLACK_LINES
}

/// What a file says.
#[derive(Default)]
struct Content {
    cidr: Option<String>,
    next: u32,
    by_uid: HashMap<String, Lease>,
    lines: usize,
    /// The last line has its newline.
    whole: bool,
}

fn read(path: &Path) -> Result<Content, Error> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(source) => {
            return Err(Error::File {
                what: "read",
                path: path.to_path_buf(),
                source,
            });
        }
    };
    let mut content = Content {
        whole: true,
        ..Content::default()
    };
    for line in text.split_inclusive('\n') {
        if !line.ends_with('\n') {
            content.whole = false;
            break;
        }
        content.lines += 1;
        let line = serde_json::from_str(line).map_err(|source| Error::LeaseFile {
            path: path.to_path_buf(),
            line: content.lines,
            source,
        })?;
        content.apply(line);
    }
    Ok(content)
}

impl Content {
    fn apply(&mut self, line: Line) {
        match line {
            Line::Header { cidr, next } => (self.cidr, self.next) = (Some(cidr), next),
            Line::Take(lease) => {
                let range = self
                    .cidr
                    .as_deref()
                    .and_then(|text| Cidr::parse_for_pods(text).ok());
                let known = self
                    .by_uid
                    .get(&lease.uid)
                    .is_some_and(|old| old.address == lease.address);
                if let (Some(range), false) = (range, known) {
                    self.next = after(range, lease.address);
                }
                self.by_uid.insert(lease.uid.clone(), lease);
            }
            Line::Free(uid) => {
                self.by_uid.remove(&uid);
            }
        }
    }
}

/// Replaces the file, durably, and returns it open for appending, with the number of its lines.
fn write<'a>(
    path: &Path,
    cidr: Cidr,
    next: u32,
    leases: impl Iterator<Item = &'a Lease>,
) -> Result<(File, usize), Error> {
    let mut leases: Vec<&Lease> = leases.collect();
    leases.sort_by_key(|lease| lease.address);
    let header = encode(
        &Line::Header {
            cidr: cidr.to_string(),
            next,
        },
        path,
    )?;
    let mut bytes = header.clone();
    for lease in &leases {
        bytes.extend(encode(&Line::Take((*lease).clone()), path)?);
    }
    // Once more, since the lines between would move `next` on reading.
    bytes.extend(header);
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary).map_err(Error::file("create", &temporary))?;
    file.write_all(&bytes)
        .map_err(Error::file("write", &temporary))?;
    file.sync_all().map_err(Error::file("sync", &temporary))?;
    fs::rename(&temporary, path).map_err(Error::file("replace", path))?;
    let dir = path.parent().unwrap_or(path);
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::file("sync", dir))?;
    Ok((open_to_append(path)?, leases.len() + 2))
}

fn open_to_append(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .append(true)
        .open(path)
        .map_err(Error::file("open", path))
}

fn encode(line: &Line, path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = serde_json::to_vec(line).map_err(|source| Error::LeaseFile {
        path: path.to_path_buf(),
        line: 0,
        source,
    })?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Protocol;

    fn open(dir: &Path, cidr: &str) -> Leases {
        Leases::open(dir, Cidr::parse_for_pods(cidr).unwrap()).unwrap()
    }

    fn take(leases: &mut Leases, uid: &str) -> Ipv4Addr {
        leases.take(uid, "default/x", &[]).unwrap().0.address
    }

    #[test]
    fn an_address_comes_again_only_when_the_range_wraps() {
        let dir = tempfile::tempdir().unwrap();
        let mut leases = open(dir.path(), "10.9.8.0/29");
        let mut seen = HashSet::new();
        for n in 0..5 {
            let address = take(&mut leases, &format!("u{n}"));
            assert!(seen.insert(address), "{address} came twice");
            leases.free(&format!("u{n}")).unwrap();
        }
        assert_eq!(take(&mut leases, "u5"), Ipv4Addr::new(10, 9, 8, 2));
    }

    #[test]
    fn a_pod_keeps_its_address_and_the_range_its_place_over_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let mut leases = open(dir.path(), "10.9.8.0/24");
        let first = take(&mut leases, "first");
        take(&mut leases, "second");
        leases.free("second").unwrap();
        for _ in 0..3 {
            let mut leases = open(dir.path(), "10.9.8.0/24");
            assert_eq!(take(&mut leases, "first"), first);
        }
        let mut leases = open(dir.path(), "10.9.8.0/24");
        assert_eq!(
            take(&mut leases, "third"),
            Ipv4Addr::new(10, 9, 8, 4),
            "10.9.8.3 must rest"
        );
    }

    #[test]
    fn exhaustion_names_the_range_and_freeing_helps() {
        let dir = tempfile::tempdir().unwrap();
        let mut leases = open(dir.path(), "10.9.8.0/29");
        for n in 0..5 {
            take(&mut leases, &format!("u{n}"));
        }
        let error = leases
            .take("one-more", "default/x", &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("10.9.8.0/29") && error.contains('5'),
            "{error}"
        );
        leases.free("u3").unwrap();
        assert_eq!(take(&mut leases, "one-more"), Ipv4Addr::new(10, 9, 8, 5));
    }

    #[test]
    fn a_torn_last_line_is_ignored_and_a_broken_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut leases = open(dir.path(), "10.9.8.0/24");
        let address = take(&mut leases, "whole");
        let path = lease_path(dir.path());
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"take\":{\"uid\":\"torn").unwrap();
        let leases = open(dir.path(), "10.9.8.0/24");
        assert_eq!(leases.iter().count(), 1);
        assert_eq!(leases.get("whole").unwrap().address, address);

        fs::write(&path, "nonsense\n").unwrap();
        let cidr = Cidr::parse_for_pods("10.9.8.0/24").unwrap();
        assert!(matches!(
            Leases::open(dir.path(), cidr),
            Err(Error::LeaseFile { line: 1, .. })
        ));
    }

    #[test]
    fn host_ports_are_kept_and_a_change_of_them_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let port = HostPort {
            host_ip: None,
            host_port: 80,
            container_port: 8080,
            protocol: Protocol::Tcp,
        };
        let mut leases = open(dir.path(), "10.9.8.0/24");
        assert!(leases.take("u", "default/x", &[]).unwrap().1);
        assert!(!leases.take("u", "default/x", &[]).unwrap().1);
        assert!(leases.take("u", "default/x", &[port]).unwrap().1);
        let leases = open(dir.path(), "10.9.8.0/24");
        assert_eq!(leases.get("u").unwrap().host_ports, vec![port]);
    }

    #[test]
    fn the_log_stays_short() {
        let dir = tempfile::tempdir().unwrap();
        let mut leases = open(dir.path(), "10.9.8.0/24");
        for n in 0..1000 {
            take(&mut leases, &format!("u{n}"));
            leases.free(&format!("u{n}")).unwrap();
        }
        let lines = fs::read_to_string(lease_path(dir.path()))
            .unwrap()
            .lines()
            .count();
        assert!(lines <= 2 * SLACK_LINES, "{lines} lines");
    }
}
