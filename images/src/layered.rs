//! Looks up files in unpacked layers as overlayfs would show them, without mounting.
//!
//! In each directory the topmost layer that has a name decides; whiteouts and opaque directories hide what is below.
//! Symbolic links are followed within the image: an absolute one starts at the image's root, and `..` ends there.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::unpack::{is_opaque, is_whiteout};

/// As many as the kernel follows (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// A directory of the image: the directories of the layers that make it up, the topmost first.
type Merged = Rc<Vec<OwnedFd>>;

enum Found {
    Directory(Merged),
    File(OwnedFd),
    Link(Vec<u8>),
    Nothing,
}

/// Reads a file of the image; none if there is no such file. `layers` has the lowest first.
pub(crate) fn read_file(
    layers: &[PathBuf],
    path: &str,
    max_bytes: u64,
) -> io::Result<Option<Vec<u8>>> {
    let root = open_roots(layers)?;
    let mut stack: Vec<Merged> = vec![root];
    let mut todo: VecDeque<Vec<u8>> = components(path.as_bytes()).collect();
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == b".." {
            if stack.len() > 1 {
                stack.pop();
            }
            continue;
        }
        let Some(current) = stack.last() else {
            return Ok(None);
        };
        match look_up(current, &name)? {
            Found::Directory(directory) => stack.push(directory),
            Found::File(fd) if todo.is_empty() => return read_limited(fd, max_bytes).map(Some),
            Found::File(_) | Found::Nothing => return Ok(None),
            Found::Link(target) => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP.into());
                }
                if target.starts_with(b"/") {
                    stack.truncate(1);
                }
                for (i, component) in components(&target).enumerate() {
                    todo.insert(i, component);
                }
            }
        }
    }
    Ok(None)
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|b| *b == b'/')
        .filter(|c| !matches!(*c, b"" | b"."))
        .map(<[u8]>::to_vec)
}

fn open_roots(layers: &[PathBuf]) -> io::Result<Merged> {
    let open = |layer: &PathBuf| open_directory(rustix::fs::CWD, layer.as_path());
    let roots = layers.iter().rev().map(open).collect::<Result<_, _>>()?;
    Ok(Rc::new(roots))
}

fn look_up(directory: &Merged, name: &[u8]) -> io::Result<Found> {
    let mut merged = Vec::new();
    for layer in directory.iter() {
        let stat = match rustix::fs::statat(layer, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e.into()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let fd = open_directory(layer, name)?;
                let opaque = is_opaque(fd.as_fd());
                merged.push(fd);
                if opaque {
                    break;
                }
            }
            // Below a directory it is hidden; a whiteout hides all below it.
            _ if !merged.is_empty() || is_whiteout(&stat) => break,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(layer, name, Vec::new())?;
                return Ok(Found::Link(target.into_bytes()));
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(layer, name, flags, Mode::empty())?;
                return Ok(Found::File(fd));
            }
            // A device or pipe is not opened.
            _ => return Ok(Found::Nothing),
        }
    }
    Ok(if merged.is_empty() {
        Found::Nothing
    } else {
        Found::Directory(Rc::new(merged))
    })
}

fn open_directory(parent: impl AsFd, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, path, flags, Mode::empty())?)
}

fn read_limited(fd: OwnedFd, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::from(fd)
        .take(max_bytes + 1)
        .read_to_end(&mut content)?;
    if content.len() as u64 > max_bytes {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn layers(n: usize) -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let layers: Vec<_> = (0..n).map(|i| dir.path().join(i.to_string())).collect();
        for layer in &layers {
            std::fs::create_dir_all(layer.join("etc")).unwrap();
        }
        (dir, layers)
    }

    fn read(layers: &[PathBuf], path: &str) -> Option<String> {
        let content = read_file(layers, path, 100).unwrap();
        content.map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn the_topmost_layer_wins_and_directories_merge() {
        let (_dir, layers) = layers(3);
        std::fs::write(layers[0].join("etc/passwd"), "low").unwrap();
        std::fs::write(layers[0].join("etc/group"), "group").unwrap();
        std::fs::write(layers[1].join("etc/passwd"), "high").unwrap();
        assert_eq!(read(&layers, "/etc/passwd").as_deref(), Some("high"));
        assert_eq!(read(&layers, "/etc/group").as_deref(), Some("group"));
        assert_eq!(read(&layers, "/etc/none"), None);
        assert_eq!(read(&layers, "/etc/passwd/x"), None);
    }

    #[test]
    fn links_stay_in_the_image() {
        let (_dir, layers) = layers(2);
        std::fs::write(layers[0].join("real"), "inside").unwrap();
        symlink("/real", layers[1].join("etc/absolute")).unwrap();
        symlink("../../../../../../real", layers[1].join("etc/up")).unwrap();
        symlink("/etc/hostname-of-the-host", layers[1].join("etc/outside")).unwrap();
        symlink("loop", layers[1].join("etc/loop")).unwrap();
        assert_eq!(read(&layers, "etc/absolute").as_deref(), Some("inside"));
        assert_eq!(read(&layers, "etc/up").as_deref(), Some("inside"));
        assert_eq!(read(&layers, "etc/outside"), None);
        assert!(read_file(&layers, "etc/loop", 100).is_err());
    }

    #[test]
    fn a_file_that_is_too_large_is_an_error() {
        let (_dir, layers) = layers(1);
        std::fs::write(layers[0].join("big"), [b'x'; 101]).unwrap();
        assert!(read_file(&layers, "big", 100).is_err());
    }
}
