//! Hearing when a cgroup's memory runs out.

use std::fs::File;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::EventfdFlags;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use super::control;
use super::error::{Error, Result};

/// A descriptor that becomes readable when memory runs out.
#[derive(Debug)]
pub struct OomWatch {
    descriptor: OwnedFd,
    /// v1: the kernel's side of the notification lives as long as this file.
    _control: Option<File>,
    path: PathBuf,
}

impl OomWatch {
    /// v2: `memory.events` is modified (cgroup-v2.rst).
    pub(super) fn v2(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("memory.events");
        let failed = |source: Errno| Error::Read {
            path: path.clone(),
            source: source.into(),
        };
        let descriptor =
            inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(failed)?;
        match inotify::add_watch(&descriptor, &path, WatchFlags::MODIFY) {
            Ok(_) => Ok(Some(Self {
                descriptor,
                _control: None,
                path,
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// v1: an eventfd that `cgroup.event_control` connects to `memory.oom_control` (memory.rst, section 10).
    pub(super) fn v1(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("memory.oom_control");
        let control = match File::open(&path) {
            Ok(control) => control,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Read { path, source }),
        };
        let descriptor = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|source| Error::Read {
                path: path.clone(),
                source: source.into(),
            })?;
        let request = format!("{} {}", descriptor.as_raw_fd(), control.as_raw_fd());
        control::write(dir, "cgroup.event_control", &request)?;
        Ok(Some(Self {
            descriptor,
            _control: Some(control),
            path,
        }))
    }

    /// Becomes readable when memory runs out; [`OomWatch::acknowledge`] makes it quiet again.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Takes what was heard.
    ///
    /// # Errors
    /// When the descriptor cannot be read.
    pub fn acknowledge(&self) -> Result<()> {
        // Longer than a number, and than several inotify events without names.
        let mut buffer = [MaybeUninit::<u8>::uninit(); 1024];
        loop {
            match rustix::io::read(&self.descriptor, &mut buffer) {
                Ok((read, _)) if !read.is_empty() => {}
                Ok(_) | Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(source) => {
                    return Err(Error::Read {
                        path: self.path.clone(),
                        source: source.into(),
                    });
                }
            }
        }
    }
}
