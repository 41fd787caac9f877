//! `linux.netDevices`: devices of the caller's network namespace that move into the container's.
//!
//! ```text
//! child, in its network namespace ── N: a netlink socket from there ──► parent, which has rights in both
//!                                                                       per device: find, take its addresses down,
//!                                                                       send it away under its new name, give it
//!                                                                       the addresses again, bring it up
//!                                 ◄──────────────── n ─────────────────
//! ```
//!
//! The kernel keeps a device's hardware address and MTU and forgets its addresses; the permanent global ones are given
//! again. What was moved when the container cannot be made after all is moved back: a virtual device would end with
//! the namespace. Afterwards a device's way is the kernel's business: physical ones return to the host when the
//! container ends. Source: runtime-spec `config-linux.md#network-devices`.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::error::{Error, Result};
use super::namespaces::{Had, how};
use crate::sys;

mod netlink;

pub(super) use netlink::open as open_socket;
use netlink::{Address, Netlink};

/// The longest name of a device, in bytes (`IFNAMSIZ` without its NUL).
const NAME_MAX_BYTES: usize = 15;
/// Ends a name for which the kernel's next free number is wanted.
const TEMPLATE: &str = "%d";
/// The highest number that is tried for one.
const NUMBERS_MAX: u32 = 1000;

/// A device to move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    /// Its name in the caller's namespace.
    host: String,
    /// Its name in the container, perhaps a template.
    container: String,
}

/// The devices that the spec asks for.
pub(super) fn plan(spec: &Spec) -> Result<Vec<Device>> {
    let Some(asked) = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.net_devices().as_ref())
        .filter(|devices| !devices.is_empty())
    else {
        return Ok(Vec::new());
    };
    let invalid = |name: &str, reason: &str| Error::Invalid {
        field: format!("linux.netDevices ({name})"),
        reason: reason.to_owned(),
    };
    let mut names = HashSet::new();
    let mut devices = Vec::new();
    for (host, device) in asked {
        if how(spec, LinuxNamespaceType::Network) == Had::Shared {
            return Err(invalid(
                host,
                "needs a network namespace of the container's",
            ));
        }
        let given = device.name().as_deref().filter(|name| !name.is_empty());
        let container = given.unwrap_or(host);
        if !is_name(host) || !is_name(container.strip_suffix(TEMPLATE).unwrap_or(container)) {
            return Err(invalid(host, "is not a device's name"));
        }
        if !container.ends_with(TEMPLATE) && !names.insert(container) {
            return Err(invalid(
                host,
                "has the same name in the container as another",
            ));
        }
        devices.push(Device {
            host: host.clone(),
            container: container.to_owned(),
        });
    }
    // As a map has no order, templates are filled in this one.
    devices.sort_by(|a, b| a.host.cmp(&b.host));
    Ok(devices)
}

/// As the kernel's `dev_valid_name`.
fn is_name(name: &str) -> bool {
    let bad = |c: char| matches!(c, '/' | ':' | '%') || c.is_ascii_whitespace() || c.is_control();
    !name.is_empty()
        && name.len() <= NAME_MAX_BYTES
        && !matches!(name, "." | "..")
        && !name.contains(bad)
}

/// Devices that are in the container. Dropped, they go back.
#[derive(Debug)]
pub(super) struct Moved {
    host: Netlink,
    container: Netlink,
    devices: Vec<MovedDevice>,
}

#[derive(Debug)]
struct MovedDevice {
    names: Device,
    addresses: Vec<Address>,
    was_up: bool,
}

/// Moves all devices. `socket` is a netlink socket of the container's namespace.
pub(super) fn move_in(devices: &[Device], socket: OwnedFd) -> Result<Moved> {
    let own = netlink::open().map_err(|source| failed("(netlink)", source))?;
    let mut moved = Moved {
        host: Netlink::new(own),
        container: Netlink::new(socket),
        devices: Vec::new(),
    };
    for device in devices {
        moved
            .move_one(device)
            .map_err(|source| failed(&device.host, source))?;
    }
    Ok(moved)
}

fn failed(device: &str, source: io::Error) -> Error {
    Error::NetDevice {
        device: device.to_owned(),
        source,
    }
}

/// The name, with the lowest free number in place of the template. One that is taken is an error, before anything
/// is moved.
fn free_name(namespace: &Netlink, name: &str) -> io::Result<String> {
    let taken = || io::Error::from_raw_os_error(libc::EEXIST);
    let Some(prefix) = name.strip_suffix(TEMPLATE) else {
        return match namespace.link(name)? {
            Some(_) => Err(taken()),
            None => Ok(name.to_owned()),
        };
    };
    for number in 0..NUMBERS_MAX {
        let name = format!("{prefix}{number}");
        if name.len() > NAME_MAX_BYTES {
            break;
        }
        if namespace.link(&name)?.is_none() {
            return Ok(name);
        }
    }
    Err(taken())
}

impl Moved {
    fn move_one(&mut self, device: &Device) -> io::Result<()> {
        let container = free_name(&self.container, &device.container)?;
        let link = self.host.link(&device.host)?.ok_or_else(missing)?;
        let mut addresses = self.host.addresses(link)?;
        addresses.retain(Address::is_permanent_and_global);
        let names = Device {
            host: device.host.clone(),
            container,
        };
        // From here on there may be something to take back.
        self.devices.push(MovedDevice {
            names: names.clone(),
            addresses: addresses.clone(),
            was_up: link.is_up,
        });
        transfer(&self.host, &self.container, &names.host, &names.container)?;
        furnish(&self.container, &names.container, &addresses, true)
    }

    /// They stay where they are.
    pub(super) fn keep(mut self) {
        self.devices.clear();
    }

    fn move_back(&self, device: &MovedDevice) -> io::Result<()> {
        let MovedDevice {
            names,
            addresses,
            was_up,
        } = device;
        if self.container.link(&names.container)?.is_none() {
            // It never left.
            return Ok(());
        }
        transfer(&self.container, &self.host, &names.container, &names.host)?;
        furnish(&self.host, &names.host, addresses, *was_up)
    }
}

/// Takes a device down, and moves it.
fn transfer(from: &Netlink, to: &Netlink, name: &str, new_name: &str) -> io::Result<()> {
    let link = from.link(name)?.ok_or_else(missing)?;
    let namespace = sys::network::namespace_of(to.as_fd())?;
    from.send_away(link, new_name, namespace.as_fd())
}

/// Gives a device its addresses, and brings it up if it is to be.
fn furnish(namespace: &Netlink, name: &str, addresses: &[Address], up: bool) -> io::Result<()> {
    let link = namespace.link(name)?.ok_or_else(missing)?;
    for address in addresses {
        namespace.add_address(link, address)?;
    }
    match up {
        true => namespace.bring_up(link),
        false => Ok(()),
    }
}

fn missing() -> io::Error {
    io::Error::from_raw_os_error(libc::ENODEV)
}

impl Drop for Moved {
    fn drop(&mut self) {
        for device in std::mem::take(&mut self.devices) {
            if let Err(error) = self.move_back(&device) {
                let device = &device.names.host;
                tracing::warn!(%device, %error, "a network device is lost with the container");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(json: &str) -> Result<Vec<Device>> {
        let linux = format!(
            r#"{{"ociVersion":"1.3.0","linux":{{"namespaces":[{{"type":"network"}}],"netDevices":{json}}}}}"#
        );
        plan(&serde_json::from_str(&linux).expect("a spec"))
    }

    #[test]
    fn a_device_keeps_its_name_unless_it_gets_another() {
        let planned = devices(r#"{"eth1":{},"veth0":{"name":"eth%d"}}"#).expect("fine");
        let names: Vec<_> = planned
            .iter()
            .map(|d| (d.host.as_str(), d.container.as_str()))
            .collect();
        assert_eq!(names, [("eth1", "eth1"), ("veth0", "eth%d")]);
    }

    #[test]
    fn what_the_kernel_would_refuse_is_named() {
        for json in [
            r#"{"a/b":{}}"#,
            r#"{"a":{"name":"0123456789abcdef"}}"#,
            r#"{"a":{"name":"b c"}}"#,
            r#"{"a":{"name":"%d%d"}}"#,
            r#"{"..":{}}"#,
            r#"{"a":{"name":"c"},"b":{"name":"c"}}"#,
        ] {
            let error = devices(json).expect_err(json).to_string();
            assert!(error.starts_with("linux.netDevices ("), "{error}");
        }
    }
}
