//! Replaces the files of a volume all at once, the way the kubelet does (`pkg/volume/util/atomic_writer.go`), so that
//! programs written for Kubernetes see the same layout and the same inotify events.
//!
//! ```text
//! <volume>/
//!     ..2026_11_21_05_30_00.000000001/   the files
//!     ..data -> ..2026_11_21_05_30_00.000000001     swapped by one rename
//!     colour -> ..data/colour                       one for each first path component
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use jiff::Timestamp;

use super::projection::ProjectedFile;
use super::{VolumeError, ownership};

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// Makes the volume hold exactly `files`. Does nothing when it does already.
pub(super) fn write(
    dir: &Path,
    files: &BTreeMap<String, ProjectedFile>,
    fs_group: Option<u32>,
) -> Result<(), VolumeError> {
    let data = dir.join(DATA);
    let current = match fs::read_link(&data) {
        Ok(target) => Some(target),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(VolumeError::io("read", &data)(error)),
    };
    if let Some(current) = &current
        && holds(&dir.join(current), files, fs_group)
    {
        return remove_stale(dir, files, Some(current));
    }

    let name = Timestamp::now()
        .strftime("..%Y_%m_%d_%H_%M_%S.%9f")
        .to_string();
    let payload = dir.join(&name);
    fs::create_dir(&payload).map_err(VolumeError::io("create", &payload))?;
    fs::set_permissions(&payload, fs::Permissions::from_mode(0o755))
        .map_err(VolumeError::io("set the mode of", &payload))?;
    give(&payload, fs_group)?;
    for (path, file) in files {
        write_file(&payload, path, file, fs_group)?;
    }

    let next = dir.join(DATA_NEXT);
    remove_if_there(&next)?;
    symlink(&name, &next).map_err(VolumeError::io("create", &next))?;
    fs::rename(&next, &data).map_err(VolumeError::io("replace", &data))?;

    for first in first_components(files) {
        let link = dir.join(first);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(first), &link)
                .map_err(VolumeError::io("create", &link))?;
        }
    }
    remove_stale(dir, files, Some(Path::new(&name)))
}

fn write_file(
    payload: &Path,
    path: &str,
    file: &ProjectedFile,
    fs_group: Option<u32>,
) -> Result<(), VolumeError> {
    let target = payload.join(path);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(VolumeError::io("create", parent))?;
        for dir in parent.ancestors().take_while(|dir| *dir != payload) {
            give(dir, fs_group)?;
        }
    }
    let mut out = File::options()
        .write(true)
        .create_new(true)
        .mode(file.mode)
        .open(&target)
        .map_err(VolumeError::io("create", &target))?;
    out.write_all(&file.content)
        .map_err(VolumeError::io("write", &target))?;
    // The mode given to open is cut by the umask.
    out.set_permissions(fs::Permissions::from_mode(file.mode))
        .map_err(VolumeError::io("set the mode of", &target))?;
    give(&target, fs_group)
}

fn give(path: &Path, fs_group: Option<u32>) -> Result<(), VolumeError> {
    fs_group.map_or(Ok(()), |group| ownership::give_to_group(path, group, false))
}

/// True when the directory has just these files, with these contents, modes and group.
fn holds(payload: &Path, files: &BTreeMap<String, ProjectedFile>, fs_group: Option<u32>) -> bool {
    let same = |(path, file): (&String, &ProjectedFile)| {
        let target = payload.join(path);
        let mode = if fs_group.is_some() {
            file.mode | 0o440
        } else {
            file.mode
        };
        fs::metadata(&target).is_ok_and(|m| {
            m.is_file() && m.mode() & 0o777 == mode && fs_group.is_none_or(|group| m.gid() == group)
        }) && fs::read(&target).is_ok_and(|content| content == file.content)
    };
    count_files(payload).is_ok_and(|count| count == files.len()) && files.iter().all(same)
}

fn count_files(dir: &Path) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() {
            count_files(&entry.path())?
        } else {
            1
        };
    }
    Ok(count)
}

/// Removes links of files that are no more, and payloads of earlier writes.
fn remove_stale(
    dir: &Path,
    files: &BTreeMap<String, ProjectedFile>,
    current: Option<&Path>,
) -> Result<(), VolumeError> {
    let wanted = first_components(files);
    for entry in fs::read_dir(dir).map_err(VolumeError::io("list", dir))? {
        let entry = entry.map_err(VolumeError::io("list", dir))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let path = entry.path();
        if let Some(rest) = name.strip_prefix("..") {
            let is_payload = rest.starts_with(|c: char| c.is_ascii_digit());
            if is_payload && current != Some(Path::new(name)) {
                fs::remove_dir_all(&path).map_err(VolumeError::io("remove", &path))?;
            }
        } else if !wanted.contains(name) {
            remove_if_there(&path)?;
        }
    }
    Ok(())
}

fn first_components(files: &BTreeMap<String, ProjectedFile>) -> BTreeSet<&str> {
    files
        .keys()
        .filter_map(|path| path.split('/').next())
        .collect()
}

fn remove_if_there(path: &Path) -> Result<(), VolumeError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(VolumeError::io("remove", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(entries: &[(&str, &str, u32)]) -> BTreeMap<String, ProjectedFile> {
        entries
            .iter()
            .map(|(path, content, mode)| {
                (
                    (*path).to_owned(),
                    ProjectedFile {
                        content: content.as_bytes().to_vec(),
                        mode: *mode,
                    },
                )
            })
            .collect()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        all.sort();
        all
    }

    #[test]
    fn files_are_replaced_together_and_the_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &files(&[("a", "1", 0o644), ("sub/b", "2", 0o600)]),
            None,
        )
        .unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("sub/b")).unwrap(), "2");
        assert_eq!(
            fs::metadata(dir.path().join("sub/b")).unwrap().mode() & 0o777,
            0o600
        );
        let first = fs::read_link(dir.path().join(DATA)).unwrap();

        write(
            dir.path(),
            &files(&[("a", "3", 0o644), ("c", "4", 0o444)]),
            None,
        )
        .unwrap();
        let second = fs::read_link(dir.path().join(DATA)).unwrap();
        assert_ne!(first, second);
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "3");
        let second = second.to_str().unwrap();
        assert_eq!(names(dir.path()), [second, DATA, "a", "c"]);
    }

    #[test]
    fn the_same_files_are_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let content = files(&[("a", "1", 0o644)]);
        write(dir.path(), &content, None).unwrap();
        let before = fs::read_link(dir.path().join(DATA)).unwrap();
        write(dir.path(), &content, None).unwrap();
        assert_eq!(fs::read_link(dir.path().join(DATA)).unwrap(), before);
        write(dir.path(), &files(&[("a", "1", 0o600)]), None).unwrap();
        assert_ne!(
            fs::read_link(dir.path().join(DATA)).unwrap(),
            before,
            "a mode is a change"
        );
    }

    #[test]
    fn an_empty_volume_is_a_volume() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &files(&[]), None).unwrap();
        assert!(fs::read_link(dir.path().join(DATA)).is_ok());
    }

    #[test]
    fn a_write_cut_off_in_the_middle_is_finished_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("..2020_01_01_00_00_00.000000000")).unwrap();
        symlink("nowhere", dir.path().join(DATA_NEXT)).unwrap();
        write(dir.path(), &files(&[("a", "1", 0o644)]), None).unwrap();
        assert_eq!(names(dir.path()).len(), 3);
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "1");
    }
}
