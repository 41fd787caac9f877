//! A container's last words: a file that it may write to, mounted into it, or else the end of its log.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::runtime::{Mount, MountBuilder};

use super::journal::say;
use crate::pod::log;
use crate::pod::plan::TerminationMessage;

/// The longest last words, in bytes: `MaxContainerTerminationMessageLength` of the kubelet.
const MESSAGE_MAX_BYTES: usize = 4_096;

/// Empty, and writable by whoever the container runs as.
pub(super) fn make_message_file(path: &Path) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o666))
}

/// From the file that the container wrote, or the end of its log.
pub(super) fn last_words(
    message: &TerminationMessage,
    failed: bool,
    log_path: &Path,
) -> Option<String> {
    let from_file = read_message(&message.host_file);
    let words = match from_file {
        Ok(words) if words.is_empty() && failed && message.fallback_to_logs => {
            log::last_words(log_path)
        }
        other => other,
    };
    match words {
        Ok(words) if words.is_empty() => None,
        Ok(words) => Some(words),
        Err(e) => {
            say(format_args!("cannot read last words: {e}"));
            None
        }
    }
}

/// The last bytes of a message file. The container could write to it, so it can be of any size.
fn read_message(path: &Path) -> io::Result<String> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(
        size.saturating_sub(MESSAGE_MAX_BYTES as u64),
    ))?;
    let mut bytes = Vec::new();
    file.take(MESSAGE_MAX_BYTES as u64)
        .read_to_end(&mut bytes)?;
    let mut words = String::from_utf8_lossy(&bytes).into_owned();
    // A replaced byte takes three.
    let mut end = words.len().min(MESSAGE_MAX_BYTES);
    while !words.is_char_boundary(end) {
        end -= 1;
    }
    words.truncate(end);
    Ok(words)
}

/// The file in the container.
pub(super) fn message_mount(message: &TerminationMessage) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(&message.path)
        .source(&message.host_file)
        .typ("bind")
        .options(
            ["bind", "rw", "nosuid", "nodev", "noexec"]
                .map(str::to_owned)
                .to_vec(),
        )
        .build()
}
