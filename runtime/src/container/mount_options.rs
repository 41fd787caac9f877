//! The options of a spec's mounts, as mount(8) names them, sorted by who takes them.
//!
//! Source: runtime-spec `config.md#mounts` ("Linux mount options") and mount_setattr(2).

use crate::sys::mount::Attributes;

/// A mount's options, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct MountOptions {
    /// For the mount itself.
    pub(super) top: Attributes,
    /// For the mount and all below it.
    pub(super) recursive: Attributes,
    /// `bind` (false) or `rbind` (true).
    pub(super) bind: Option<bool>,
    /// `idmap` or `ridmap`.
    pub(super) id_map: Option<IdMapOption>,
    /// `tmpcopyup`: fill the new file system with what it covers.
    pub(super) copy_up: bool,
    /// `remount`: change the mount that is there.
    pub(super) remount: bool,
    /// `copy-symlink`: where the source is a symbolic link, make one like it.
    pub(super) copy_symlink: bool,
    /// `src-nofollow`: bind a symbolic link itself.
    pub(super) source_nofollow: bool,
    /// `dest-nofollow`: mount over a symbolic link itself.
    pub(super) target_nofollow: bool,
    /// For the file system: `name` or `name=value`.
    pub(super) data: Vec<(String, Option<String>)>,
}

/// How a mount's ids are to be mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IdMapOption {
    /// `ridmap`: also the mounts below.
    pub(super) recursive: bool,
    /// What stands behind `=`, as crun has it: `uids=0-1-10#10-11-10;gids=0-100-10`.
    pub(super) custom: Option<String>,
}

/// Sorts the options.
pub(super) fn parse_options(options: &[String]) -> MountOptions {
    let mut parsed = MountOptions::default();
    for option in options {
        apply(&mut parsed, option);
    }
    parsed
}

fn id_map(option: &str) -> Option<IdMapOption> {
    let (name, custom) = match option.split_once('=') {
        Some((name, custom)) => (name, Some(custom.to_owned())),
        None => (option, None),
    };
    let recursive = match name {
        "idmap" => false,
        "ridmap" => true,
        _ => return None,
    };
    Some(IdMapOption { recursive, custom })
}

fn apply(parsed: &mut MountOptions, option: &str) {
    if let Some((attribute, set)) = attribute(option) {
        change(&mut parsed.top, attribute, set);
    } else if let Some((attribute, set)) = option.strip_prefix('r').and_then(attribute) {
        change(&mut parsed.recursive, attribute, set);
    } else if let Some((propagation, recursive)) = propagation(option) {
        let attributes = if recursive {
            &mut parsed.recursive
        } else {
            &mut parsed.top
        };
        attributes.propagation = propagation;
    } else {
        match option {
            // The last one is about messages of the kernel's.
            "" | "defaults" | "silent" | "loud" => {}
            // With both it is recursive, whichever comes last.
            "bind" => parsed.bind = parsed.bind.or(Some(false)),
            "rbind" => parsed.bind = Some(true),
            "remount" => parsed.remount = true,
            "tmpcopyup" => parsed.copy_up = true,
            "copy-symlink" => parsed.copy_symlink = true,
            "src-nofollow" => parsed.source_nofollow = true,
            "dest-nofollow" => parsed.target_nofollow = true,
            _ if id_map(option).is_some() => parsed.id_map = id_map(option),
            _ => parsed.data.push(match option.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (option.to_owned(), None),
            }),
        }
    }
}

/// The bits of an option and whether it sets them.
fn attribute(option: &str) -> Option<(u64, bool)> {
    Some(match option {
        "ro" => (libc::MOUNT_ATTR_RDONLY, true),
        "rw" => (libc::MOUNT_ATTR_RDONLY, false),
        "nosuid" => (libc::MOUNT_ATTR_NOSUID, true),
        "suid" => (libc::MOUNT_ATTR_NOSUID, false),
        "nodev" => (libc::MOUNT_ATTR_NODEV, true),
        "dev" => (libc::MOUNT_ATTR_NODEV, false),
        "noexec" => (libc::MOUNT_ATTR_NOEXEC, true),
        "exec" => (libc::MOUNT_ATTR_NOEXEC, false),
        "nodiratime" => (libc::MOUNT_ATTR_NODIRATIME, true),
        "diratime" => (libc::MOUNT_ATTR_NODIRATIME, false),
        "nosymfollow" => (libc::MOUNT_ATTR_NOSYMFOLLOW, true),
        "symfollow" => (libc::MOUNT_ATTR_NOSYMFOLLOW, false),
        // The access time is one field of several bits: one value replaces another.
        "relatime" => (libc::MOUNT_ATTR_RELATIME, true),
        "noatime" => (libc::MOUNT_ATTR_NOATIME, true),
        "strictatime" => (libc::MOUNT_ATTR_STRICTATIME, true),
        "atime" | "norelatime" | "nostrictatime" => (libc::MOUNT_ATTR_RELATIME, true),
        _ => return None,
    })
}

fn is_access_time(attribute: u64) -> bool {
    [
        libc::MOUNT_ATTR_RELATIME,
        libc::MOUNT_ATTR_NOATIME,
        libc::MOUNT_ATTR_STRICTATIME,
    ]
    .contains(&attribute)
}

/// The last option about a bit counts.
fn change(attributes: &mut Attributes, attribute: u64, set: bool) {
    if is_access_time(attribute) {
        attributes.clear |= libc::MOUNT_ATTR__ATIME;
        attributes.set = attributes.set & !libc::MOUNT_ATTR__ATIME | attribute;
    } else if set {
        attributes.set |= attribute;
        attributes.clear &= !attribute;
    } else {
        attributes.clear |= attribute;
        attributes.set &= !attribute;
    }
}

/// The propagation that an option names, and whether it is for all mounts below too.
pub(super) fn propagation(option: &str) -> Option<(u64, bool)> {
    Some(match option {
        "private" => (libc::MS_PRIVATE, false),
        "rprivate" => (libc::MS_PRIVATE, true),
        "slave" => (libc::MS_SLAVE, false),
        "rslave" => (libc::MS_SLAVE, true),
        "shared" => (libc::MS_SHARED, false),
        "rshared" => (libc::MS_SHARED, true),
        "unbindable" => (libc::MS_UNBINDABLE, false),
        "runbindable" => (libc::MS_UNBINDABLE, true),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> MountOptions {
        let options: Vec<String> = options.iter().map(|&o| o.to_owned()).collect();
        parse_options(&options)
    }

    #[test]
    fn options_are_sorted_by_who_takes_them() {
        let parsed = parse(&["nosuid", "ro", "mode=755", "rbind", "rro", "rslave", "sync"]);
        assert_eq!(
            parsed.top.set,
            libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_RDONLY
        );
        assert_eq!(parsed.recursive.set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(parsed.recursive.propagation, libc::MS_SLAVE);
        assert_eq!(parsed.bind, Some(true));
        assert_eq!(
            parsed.data,
            [
                ("mode".to_owned(), Some("755".to_owned())),
                ("sync".to_owned(), None)
            ]
        );
    }

    #[test]
    fn the_last_option_counts() {
        assert_eq!(parse(&["ro", "rw"]).top.set, 0);
        assert_eq!(parse(&["rw", "ro"]).top.clear, 0);
        let times = parse(&["relatime", "noatime", "strictatime"]).top;
        assert_eq!(times.set, libc::MOUNT_ATTR_STRICTATIME);
        assert_eq!(times.clear, libc::MOUNT_ATTR__ATIME);
    }

    #[test]
    fn relatime_is_not_recursive_elatime() {
        let parsed = parse(&["relatime", "rrelatime", "rw", "rrw"]);
        assert_eq!(
            parsed.top.clear,
            libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_RDONLY
        );
        assert_eq!(
            parsed.recursive.clear,
            libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_RDONLY
        );
    }

    #[test]
    fn id_maps_are_recursive_and_custom() {
        let parsed = parse(&["ridmap=uids=0-1-10;gids=0-1-10"])
            .id_map
            .expect("one");
        assert!(parsed.recursive);
        assert_eq!(parsed.custom.as_deref(), Some("uids=0-1-10;gids=0-1-10"));
        let parsed = parse(&["idmap"]).id_map.expect("one");
        assert_eq!((parsed.recursive, parsed.custom), (false, None));
        assert_eq!(parse(&["idmapped"]).id_map, None);
    }
}
