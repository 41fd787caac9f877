//! A user's home directory, from the container's own `/etc/passwd`.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The most that is read of a container's `/etc/passwd`, in bytes.
const PASSWD_MAX_BYTES: u64 = 1 << 20;

/// The home directory of a user in the container's `/etc/passwd`. A file that cannot be read has nobody in it.
pub(super) fn home_of(uid: u32) -> Option<Vec<u8>> {
    let file = File::options()
        .read(true)
        // A FIFO there must not stop us, and a terminal not become ours.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(Path::new("/etc/passwd"))
        .ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(PASSWD_MAX_BYTES).read_to_end(&mut text).ok()?;
    home_in(&text, uid)
}

/// passwd(5): `name:password:UID:GID:GECOS:directory:shell`
fn home_in(passwd: &[u8], uid: u32) -> Option<Vec<u8>> {
    passwd
        .split(|&b| b == b'\n')
        .find_map(|line| {
            let mut fields = line.split(|&b| b == b':').skip(2);
            let id: u32 = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
            (id == uid).then(|| fields.nth(2))?
        })
        .filter(|home| !home.is_empty())
        .map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_the_sixth_field() {
        let passwd =
            b"root:x:0:0:root:/root:/bin/sh\nbad\nweb:x:33:33::/var/www:/bin/false\nx:x:5:5:::\n";
        assert_eq!(home_in(passwd, 33).as_deref(), Some(&b"/var/www"[..]));
        assert_eq!(home_in(passwd, 0).as_deref(), Some(&b"/root"[..]));
        assert_eq!(home_in(passwd, 5), None);
        assert_eq!(home_in(passwd, 7), None);
    }
}
