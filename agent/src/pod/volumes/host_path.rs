//! hostPath: something of the host, checked against its type.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use super::VolumeError;

/// Checks the path, or makes it where the type says so. Types as in the Kubernetes documentation, "hostPath volume
/// types".
pub(super) fn prepare(name: &str, source: &HostPathVolumeSource) -> Result<PathBuf, VolumeError> {
    let path = PathBuf::from(&source.path);
    if !path.is_absolute() {
        return Err(VolumeError::Invalid {
            volume: name.to_owned(),
            reason: format!("hostPath `{}` is not an absolute path", source.path),
        });
    }
    let kind = match fs::metadata(&path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(VolumeError::io("look at", &path)(error)),
    };
    let expected = match source.type_.as_deref().unwrap_or("") {
        // No check, but a container cannot be bound to nothing: Docker makes a directory, and so do we.
        "" => {
            if kind.is_none() {
                create_directory(&path)?;
            }
            return Ok(path);
        }
        "DirectoryOrCreate" => {
            if kind.is_none() {
                create_directory(&path)?;
                return Ok(path);
            }
            ("a directory", kind.is_some_and(|k| k.is_dir()))
        }
        "FileOrCreate" => {
            if kind.is_none() {
                create_file(&path)?;
                return Ok(path);
            }
            ("a file", kind.is_some_and(|k| k.is_file()))
        }
        "Directory" => ("a directory", kind.is_some_and(|k| k.is_dir())),
        "File" => ("a file", kind.is_some_and(|k| k.is_file())),
        "Socket" => ("a socket", kind.is_some_and(|k| k.is_socket())),
        "CharDevice" => (
            "a character device",
            kind.is_some_and(|k| k.is_char_device()),
        ),
        "BlockDevice" => ("a block device", kind.is_some_and(|k| k.is_block_device())),
        other => {
            return Err(VolumeError::Invalid {
                volume: name.to_owned(),
                reason: format!("hostPath type `{other}` is unknown"),
            });
        }
    };
    match expected {
        (_, true) => Ok(path),
        (expected, false) => Err(VolumeError::HostPathType {
            volume: name.to_owned(),
            path,
            expected,
        }),
    }
}

fn create_directory(path: &Path) -> Result<(), VolumeError> {
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .map_err(VolumeError::io("create", path))
}

/// The directory must be there: only the file is made, as in Kubernetes.
fn create_file(path: &Path) -> Result<(), VolumeError> {
    File::create_new(path)
        .and_then(|file| file.set_permissions(fs::Permissions::from_mode(0o644)))
        .map_err(VolumeError::io("create", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &Path, kind: &str) -> Result<PathBuf, VolumeError> {
        prepare(
            "v",
            &HostPathVolumeSource {
                path: path.display().to_string(),
                type_: Some(kind.into()),
            },
        )
    }

    #[test]
    fn types_are_checked_and_created() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(check(dir.path(), "Directory").is_ok());
        assert!(check(&file, "File").is_ok());
        assert!(check(Path::new("/dev/null"), "CharDevice").is_ok());
        for (path, kind) in [
            (file.as_path(), "Directory"),
            (dir.path(), "File"),
            (&file, "Socket"),
            (&file, "BlockDevice"),
            (&dir.path().join("absent"), "File"),
            (&file, "DirectoryOrCreate"),
        ] {
            assert!(
                matches!(check(path, kind), Err(VolumeError::HostPathType { .. })),
                "{path:?} as {kind}"
            );
        }
        assert!(
            check(&dir.path().join("a/b"), "DirectoryOrCreate")
                .unwrap()
                .is_dir()
        );
        assert!(
            check(&dir.path().join("made"), "FileOrCreate")
                .unwrap()
                .is_file()
        );
        assert!(matches!(
            check(&dir.path().join("no/such/dir"), "FileOrCreate"),
            Err(VolumeError::Io { .. })
        ));
        assert!(matches!(
            check(Path::new("relative"), ""),
            Err(VolumeError::Invalid { .. })
        ));
        assert!(matches!(
            check(dir.path(), "Folder"),
            Err(VolumeError::Invalid { .. })
        ));
    }
}
