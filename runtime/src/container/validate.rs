//! Refuses specs that ask for what is not done, before anything is created.

use std::os::unix::ffi::OsStrExt;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::error::{Error, Result};
use super::masks::Masks;
use super::namespaces::{Had, how};
use super::sysctls::Sysctls;
use super::time_offsets::TimeOffsets;
use super::{
    devices, guest, hooks, mount_plan, namespaces, net_devices, process, resctrl, user_namespace,
};

/// Refuses a spec that asks for what [`super::create`] does not do; that calls it too.
///
/// # Errors
/// [`Error::Unsupported`] or [`Error::Invalid`] with the first such field.
pub fn validate(spec: &Spec) -> Result<()> {
    version(spec.version())?;
    absent("solaris", spec.solaris().is_some())?;
    absent("windows", spec.windows().is_some())?;
    absent("vm", spec.vm().is_some())?;
    absent("zos", spec.zos().is_some())?;
    absent("uidMappings", given(spec.uid_mappings().as_deref()))?;
    absent("gidMappings", given(spec.gid_mappings().as_deref()))?;
    process::validate(super::process_of(spec)?, spec.linux().as_ref())?;
    let Some(linux) = spec.linux() else {
        return Err(Error::Invalid {
            field: "linux".to_owned(),
            reason: "is missing".to_owned(),
        });
    };
    process::check_mount_label(linux.mount_label().as_deref())?;
    namespaces::validate(spec)?;
    guest::validate(spec)?;
    user_namespace::validate(spec)?;
    TimeOffsets::new(spec)?;
    names(spec)?;
    if let Some(path) = linux.cgroups_path() {
        without_nul("linux.cgroupsPath", path.as_os_str().as_bytes())?;
    }
    annotations(spec)?;
    hooks::validate(spec)?;
    Masks::new(spec).validate()?;
    resctrl::validate(spec)?;
    mount_plan::validate(spec)?;
    devices::plan(spec)?;
    net_devices::plan(spec)?;
    Sysctls::new(spec).map(drop)
}

/// The specification's versions 1.x.
fn version(version: &str) -> Result<()> {
    if version.split('.').next() == Some("1") {
        Ok(())
    } else {
        Err(Error::Invalid {
            field: "ociVersion".to_owned(),
            reason: format!("{version:?} is not a version 1"),
        })
    }
}

/// runtime-spec config.md#annotations
fn annotations(spec: &Spec) -> Result<()> {
    if spec.annotations().iter().any(|all| all.contains_key("")) {
        return Err(Error::Invalid {
            field: "annotations".to_owned(),
            reason: "a key must not be empty".to_owned(),
        });
    }
    Ok(())
}

/// The longest host name that the kernel takes, in bytes (`__NEW_UTS_LEN`).
const HOST_NAME_MAX_BYTES: usize = 64;

fn names(spec: &Spec) -> Result<()> {
    for (field, name) in [
        ("hostname", spec.hostname()),
        ("domainname", spec.domainname()),
    ] {
        let name = name.as_deref().unwrap_or_default();
        without_nul(field, name.as_bytes())?;
        if name.len() > HOST_NAME_MAX_BYTES {
            return Err(Error::Invalid {
                field: field.to_owned(),
                reason: format!("is longer than {HOST_NAME_MAX_BYTES} bytes"),
            });
        }
        if !name.is_empty() && how(spec, LinuxNamespaceType::Uts) == Had::Shared {
            return Err(Error::Invalid {
                field: field.to_owned(),
                reason: "needs a uts namespace".to_owned(),
            });
        }
    }
    Ok(())
}

/// The kernel would read no further.
fn without_nul(field: &str, text: &[u8]) -> Result<()> {
    if text.contains(&0) {
        return Err(Error::Invalid {
            field: field.to_owned(),
            reason: "a NUL character is not allowed".to_owned(),
        });
    }
    Ok(())
}

fn given<T>(list: Option<&[T]>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}

fn absent(field: &str, present: bool) -> Result<()> {
    if present {
        Err(Error::Unsupported {
            field: field.to_owned(),
            reason: "is not supported".to_owned(),
        })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{Linux, LinuxIdMappingBuilder, LinuxIntelRdt, LinuxNamespaceBuilder};

    fn refused(change: impl FnOnce(&mut Spec)) -> String {
        let mut spec = Spec::default();
        validate(&spec).expect("the default spec is fine");
        change(&mut spec);
        validate(&spec).expect_err("refused").to_string()
    }

    fn linux(spec: &mut Spec) -> &mut Linux {
        spec.linux_mut().as_mut().expect("linux")
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let mut rdt = LinuxIntelRdt::default();
        rdt.set_clos_id(Some("..".into()));
        assert!(
            refused(|s| {
                linux(s).set_intel_rdt(Some(rdt));
            })
            .starts_with("linux.intelRdt.closID")
        );
        assert!(
            refused(|s| {
                linux(s).set_mount_label(Some("system_u:object_r:x:s0".into()));
            })
            .starts_with("linux.mountLabel")
        );
        assert!(
            refused(|s| {
                s.set_version("2.0.0".into());
            })
            .starts_with("ociVersion")
        );
        assert!(
            refused(|s| {
                s.set_process(None);
            })
            .starts_with("process")
        );
    }

    #[test]
    fn a_host_name_needs_a_uts_namespace() {
        let reason = refused(|s| {
            let own: Vec<_> = linux(s)
                .namespaces()
                .iter()
                .flatten()
                .filter(|n| n.typ() != LinuxNamespaceType::Uts)
                .cloned()
                .collect();
            linux(s).set_namespaces(Some(own));
            s.set_hostname(Some("x".into()));
        });
        assert_eq!(reason, "hostname: needs a uts namespace");
    }

    #[test]
    fn a_nul_character_is_refused_by_field() {
        let reason = refused(|s| {
            s.set_hostname(Some("a\0b".into()));
        });
        assert_eq!(reason, "hostname: a NUL character is not allowed");
        let reason = refused(|s| {
            linux(s).set_cgroups_path(Some("/a\0b".into()));
        });
        assert_eq!(reason, "linux.cgroupsPath: a NUL character is not allowed");
        let mount = |destination: &str, options: &str| {
            refused(|s| {
                let mut mount = oci_spec::runtime::Mount::default();
                mount
                    .set_destination(destination.into())
                    .set_typ(Some("tmpfs".into()))
                    .set_options(Some(vec![options.into()]));
                s.set_mounts(Some(vec![mount]));
            })
        };
        assert_eq!(
            mount("/mnt\0", "ro"),
            "mounts (/mnt\0): a NUL character is not allowed"
        );
        assert_eq!(
            mount("/mnt", "size=1\0"),
            "mounts (/mnt): a NUL character is not allowed"
        );
        assert_eq!(mount("", "ro"), "mounts (): has no destination");
    }

    #[test]
    fn a_device_is_no_other_than_the_one_named() {
        let device = |major: i64, minor: i64, uid: u32| {
            let device = oci_spec::runtime::LinuxDeviceBuilder::default()
                .path("/dev/x")
                .typ(oci_spec::runtime::LinuxDeviceType::C)
                .major(major)
                .minor(minor)
                .uid(uid)
                .build()
                .expect("builds");
            move |spec: &mut Spec| {
                linux(spec).set_devices(Some(vec![device]));
            }
        };
        let mut spec = Spec::default();
        device(4095, 1_048_575, 0)(&mut spec);
        validate(&spec).expect("the last numbers are fine");
        for (major, minor) in [(4096, 0), (0, 1_048_576), (-1, 0)] {
            assert_eq!(
                refused(device(major, minor, 0)),
                "linux.devices[0] (/dev/x): a device number is out of range"
            );
        }
        assert_eq!(
            refused(device(1, 3, u32::MAX)),
            "linux.devices[0] (/dev/x): 4294967295 (-1) is no id"
        );
    }

    fn own_user_namespace(spec: &mut Spec, inside: u32, count: u32) {
        let user = LinuxNamespaceBuilder::default()
            .typ(LinuxNamespaceType::User)
            .build()
            .expect("builds");
        let mapping = LinuxIdMappingBuilder::default()
            .container_id(inside)
            .host_id(100_000_u32)
            .size(count)
            .build()
            .expect("builds");
        let linux = linux(spec);
        linux.namespaces_mut().get_or_insert_default().push(user);
        linux
            .set_uid_mappings(Some(vec![mapping]))
            .set_gid_mappings(Some(vec![mapping]));
    }

    #[test]
    fn a_user_namespace_needs_maps_and_maps_need_one() {
        let reason = refused(|s| {
            own_user_namespace(s, 0, 10);
            linux(s).set_gid_mappings(None);
        });
        assert!(
            reason.starts_with("linux.gidMappings: is missing"),
            "{reason}"
        );
        let reason = refused(|s| {
            own_user_namespace(s, 0, 10);
            linux(s).set_namespaces(
                Spec::default()
                    .linux()
                    .as_ref()
                    .and_then(|l| l.namespaces().clone()),
            );
        });
        assert_eq!(reason, "linux.uidMappings: needs a user namespace");
    }

    #[test]
    fn the_processs_user_must_be_mapped() {
        let reason = refused(|s| own_user_namespace(s, 1, 10));
        assert_eq!(reason, "process.user.uid: 0 is not in linux.uidMappings");
        let mut spec = Spec::default();
        own_user_namespace(&mut spec, 0, 1);
        validate(&spec).expect("fine");
    }
}
