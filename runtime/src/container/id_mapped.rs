//! Id-mapped mounts: files show other owners there than on disk (mount_setattr(2), "ID-mapped mounts").
//!
//! The kernel reads the ids from a user namespace. That is the container's own, or one that is made for the mount: a
//! process is born in it, its maps are written, and it ends once the namespace is opened. Only the caller has the
//! right to map a file system of the host, so this happens before the child is made.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespaceType, Mount, Spec};
use rustix::io::retry_on_intr;

use super::child::Child;
use super::error::{Error, Result};
use super::id_maps::IdMaps;
use super::mount_options::IdMapOption;
use super::namespaces::{Had, how};
use super::user_namespace::{UserNamespace, mappings};
use crate::sys;
use crate::sys::namespace::NEW_USER;

/// What a mount's ids become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MountIds {
    /// Also those of the mounts below.
    pub(super) recursive: bool,
    /// None: as in the container's user namespace.
    maps: Option<IdMaps>,
}

/// How the ids of this mount are to be mapped, if they are. Source: runtime-spec `config.md#mounts`.
pub(super) fn plan(
    spec: &Spec,
    mount: &Mount,
    option: Option<&IdMapOption>,
) -> Result<Option<MountIds>> {
    let field = format!("mounts ({})", mount.destination().display());
    let invalid = |reason: &str| Error::Invalid {
        field: field.clone(),
        reason: reason.to_owned(),
    };
    let uids = mount.uid_mappings().as_deref().unwrap_or_default();
    let gids = mount.gid_mappings().as_deref().unwrap_or_default();
    let listed = !uids.is_empty() || !gids.is_empty();
    let recursive = option.is_some_and(|option| option.recursive);
    let custom = option.and_then(|option| option.custom.as_deref());
    let maps = match (custom, option) {
        (Some(_), _) if listed => {
            return Err(invalid("has its ids in mappings and in an option"));
        }
        (Some(text), _) => {
            let (uids, gids) = custom_mappings(text, spec).map_err(|reason| invalid(&reason))?;
            Some(IdMaps::new(&field, &uids, &gids, true)?)
        }
        (None, _) if listed => Some(IdMaps::new(&field, uids, gids, true)?),
        (None, None) => return Ok(None),
        (None, Some(_)) if how(spec, LinuxNamespaceType::User) == Had::Shared => {
            return Err(invalid(
                "idmap needs uidMappings and gidMappings, or a user namespace of the container's",
            ));
        }
        (None, Some(_)) => None,
    };
    Ok(Some(MountIds { recursive, maps }))
}

/// `uids=0-1-10#10-11-10;gids=0-100-10` (crun(1)): for each range the first id on disk, the first on the host and the
/// length. After `@` the second is an id of the container.
fn custom_mappings(
    text: &str,
    spec: &Spec,
) -> std::result::Result<(Vec<LinuxIdMapping>, Vec<LinuxIdMapping>), String> {
    let (mut uids, mut gids) = (Vec::new(), Vec::new());
    let (container_uids, container_gids) = mappings(spec);
    for part in text.split(';') {
        let (list, container, ranges) = match part.split_once('=') {
            Some(("uids", ranges)) => (&mut uids, container_uids, ranges),
            Some(("gids", ranges)) => (&mut gids, container_gids, ranges),
            _ => return Err(format!("{part:?} is neither uids= nor gids=")),
        };
        for range in ranges.split('#') {
            list.push(custom_mapping(range, container)?);
        }
    }
    Ok((uids, gids))
}

fn custom_mapping(
    range: &str,
    container: &[LinuxIdMapping],
) -> std::result::Result<LinuxIdMapping, String> {
    let wrong = || format!("{range:?} is no range of ids (0-100000-65536)");
    let (relative, numbers) = match range.strip_prefix('@') {
        Some(numbers) => (true, numbers),
        None => (false, range),
    };
    let numbers: Vec<u32> = numbers
        .split('-')
        .map(|number| number.parse().map_err(|_| wrong()))
        .collect::<std::result::Result<_, _>>()?;
    let [disk, mut host, size] = numbers[..] else {
        return Err(wrong());
    };
    if relative {
        let inside = |mapping: &&LinuxIdMapping| {
            host >= mapping.container_id()
                && u64::from(host) + u64::from(size)
                    <= u64::from(mapping.container_id()) + u64::from(mapping.size())
        };
        let mapping = container
            .iter()
            .find(inside)
            .ok_or_else(|| format!("{range:?} is in no range of the container's"))?;
        host = mapping.host_id() + (host - mapping.container_id());
    }
    LinuxIdMappingBuilder::default()
        .container_id(disk)
        .host_id(host)
        .size(size)
        .build()
        .map_err(|_| wrong())
}

/// Makes the user namespaces that mounts need; one serves all mounts with the same ids.
#[derive(Debug)]
pub(super) struct IdNamespaces<'a> {
    container: &'a UserNamespace,
    made: Vec<(&'a IdMaps, OwnedFd)>,
}

impl<'a> IdNamespaces<'a> {
    pub(super) fn new(container: &'a UserNamespace) -> Self {
        Self {
            container,
            made: Vec::new(),
        }
    }

    /// The namespace for these ids.
    pub(super) fn get(&mut self, ids: &'a MountIds) -> Result<&OwnedFd> {
        let maps = match (&ids.maps, self.container) {
            (Some(maps), _) | (None, UserNamespace::New(maps)) => maps,
            (None, UserNamespace::Joined(namespace, _)) => return Ok(namespace),
            // The path to join was the caller's own namespace.
            (None, UserNamespace::Shared) => {
                return Err(Error::Invalid {
                    field: "mounts".to_owned(),
                    reason: "idmap without mappings needs a user namespace of the container's"
                        .to_owned(),
                });
            }
        };
        let at = match self.made.iter().position(|(known, _)| *known == maps) {
            Some(at) => at,
            None => {
                self.made.push((maps, make(maps)?));
                self.made.len() - 1
            }
        };
        Ok(&self.made[at].1)
    }
}

/// A user namespace that only its descriptor holds.
fn make(maps: &IdMaps) -> Result<OwnedFd> {
    let (until_end, end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| Error::Clone(e.into()))?;
    let end_number = end.as_raw_fd();
    let child = sys::clone::clone_child(NEW_USER, None, || {
        // Until it is killed, or the caller is.
        sys::process::close_number(end_number);
        match retry_on_intr(|| rustix::io::read(&until_end, &mut [0_u8])) {
            Ok(_) => 0,
            Err(_) => 1,
        }
    })
    .map_err(Error::Clone)?;
    // Killed and reaped when this is left.
    let child = Child::new(child);
    maps.write(child.pid())?;
    let path = format!("/proc/{}/ns/user", child.pid());
    let namespace = File::open(&path).map_err(|source| Error::OpenNamespace {
        kind: "user",
        path: path.into(),
        source,
    })?;
    Ok(namespace.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        let json = r#"{"ociVersion": "1.2.0", "linux": {
            "uidMappings": [{"containerID": 0, "hostID": 0, "size": 1},
                            {"containerID": 1, "hostID": 2, "size": 1000}],
            "gidMappings": [{"containerID": 0, "hostID": 5, "size": 10}]}}"#;
        serde_json::from_str(json).expect("a spec")
    }

    fn numbers(list: &[LinuxIdMapping]) -> Vec<(u32, u32, u32)> {
        list.iter()
            .map(|m| (m.container_id(), m.host_id(), m.size()))
            .collect()
    }

    #[test]
    fn custom_ids_are_of_the_host_or_of_the_container() {
        let text = "uids=0-1-10#@1-3-10;gids=0-100-10";
        let (uids, gids) = custom_mappings(text, &spec()).expect("fine");
        // The second is crun's own example.
        assert_eq!(numbers(&uids), [(0, 1, 10), (1, 4, 10)]);
        assert_eq!(numbers(&gids), [(0, 100, 10)]);
    }

    #[test]
    fn what_is_no_range_is_named() {
        for text in [
            "uids=1-2",
            "uids=a-b-c",
            "ids=1-2-3",
            "uids=@1-995-10",
            "gids=@9-9-2",
        ] {
            assert!(custom_mappings(text, &spec()).is_err(), "{text}");
        }
    }
}
