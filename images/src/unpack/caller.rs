//! Who unpacks, and what follows: which system calls can be spared, and what the kernel will refuse.

use rustix::fs::Mode;

/// The identity of the calling process, asked once for each layer. Its umask must not change meanwhile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    /// New files belong to this user.
    pub(super) uid: u32,
    /// New files belong to this group, except in directories that pass on theirs.
    pub(super) gid: u32,
    /// Mode bits that the kernel takes away from new files.
    umask: u32,
    /// The ids are those of a user namespace: the kernel makes no devices and no `trusted` attributes.
    pub(super) in_user_namespace: bool,
}

impl Caller {
    pub(super) fn of_this_process() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            umask: umask(),
            in_user_namespace: std::fs::read_to_string("/proc/self/uid_map")
                .is_ok_and(|map| !is_initial(&map)),
        }
    }

    /// True when a file that is created with this mode has it then.
    pub(super) fn creates_with(&self, mode: Mode) -> bool {
        mode.as_raw_mode() & !0o777 == 0 && mode.as_raw_mode() & self.umask == 0
    }
}

/// The umask of this thread; without /proc all bits, so that each mode is set by chmod(2).
fn umask() -> u32 {
    std::fs::read_to_string("/proc/thread-self/status")
        .ok()
        .and_then(|status| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("Umask:"))?;
            u32::from_str_radix(line.trim(), 8).ok()
        })
        .unwrap_or(0o777)
}

/// The initial user namespace maps all ids to themselves (user_namespaces(7)).
fn is_initial(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_map_of_all_ids_to_themselves_is_the_initial_one() {
        assert!(is_initial("         0          0 4294967295\n"));
        assert!(!is_initial("         0       1000          1\n"));
        assert!(!is_initial("0 1000 1\n1 100000 65536\n"));
        assert!(!is_initial(""));
    }

    #[test]
    fn modes_beyond_the_umask_are_set_afterwards() {
        let caller = Caller {
            uid: 0,
            gid: 0,
            umask: 0o022,
            in_user_namespace: false,
        };
        assert!(caller.creates_with(Mode::from_raw_mode(0o644)));
        assert!(!caller.creates_with(Mode::from_raw_mode(0o664)));
        assert!(!caller.creates_with(Mode::from_raw_mode(0o4755)));
    }
}
