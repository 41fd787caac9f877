//! The status of a pod that has come to its end, kept on disk until the pod is deleted: a pod that has succeeded or
//! failed for good is not run again, not even after a reboot, and needs nobody to remember it.

use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::PodStatus;

use super::status;

/// In the pod's data directory.
pub const FILE: &str = "status.json";

/// Where it is, below a pod's data directory.
#[must_use]
pub fn path(pod_data_dir: &Path) -> PathBuf {
    pod_data_dir.join(FILE)
}

/// The final status that is kept there; none of a pod that has not come to its end.
#[must_use]
pub fn read(pod_data_dir: &Path) -> Option<PodStatus> {
    let bytes = std::fs::read(path(pod_data_dir)).ok()?;
    serde_json::from_slice(&bytes)
        .ok()
        .filter(status::is_terminal)
}

/// Keeps it, over a loss of power too.
///
/// # Errors
/// When it cannot be written.
pub fn write(pod_data_dir: &Path, status: &PodStatus) -> io::Result<()> {
    let path = path(pod_data_dir);
    let new = path.with_extension("json.new");
    let file = std::fs::File::create(&new)?;
    serde_json::to_writer(&file, status)?;
    file.sync_all()?;
    std::fs::rename(&new, &path)?;
    std::fs::File::open(pod_data_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(phase: &str) -> PodStatus {
        PodStatus {
            phase: Some(phase.to_owned()),
            ..PodStatus::default()
        }
    }

    #[test]
    fn only_an_end_is_final() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), None);
        write(dir.path(), &of("Running")).unwrap();
        assert_eq!(read(dir.path()), None);
        write(dir.path(), &of("Failed")).unwrap();
        assert_eq!(read(dir.path()), Some(of("Failed")));
    }

    #[test]
    fn half_a_file_is_no_end() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(path(dir.path()), b"{\"phase\":\"Failed").unwrap();
        assert_eq!(read(dir.path()), None);
    }
}
