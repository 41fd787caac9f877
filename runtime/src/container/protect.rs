//! Keeps containers away from this program's own file.
//!
//! A container can name `/proc/self/exe` as its program, or as the interpreter of a script. The kernel resolves it in
//! the child that is about to execute, where it still is this program's file; the container would then run this
//! program, open `/proc/<pid>/exe` of it, and once nobody executes the file any more write to it as the host's root
//! (CVE-2019-5736). Checks on the program's name cannot help: links change, and scripts name interpreters.
//!
//! So this program runs from a read-only mount: [`seal`] clones the file's mount detached (`open_tree`), makes the
//! clone read-only and executes itself from there once. Whoever opens `/proc/<pid>/exe` gets a file on that mount,
//! where writing is `EROFS`; nobody can remount it, as it is in no mount namespace. A program that was started from
//! such a clone ([`read_only_clone`]) is not executed again. One on a read-only file system is: that may be remounted
//! for an update while a container still has it open.
//!
//! An ordinary user clones no mounts. A file that root owns and nobody else may write is safe from that user's
//! containers, whose ids are never root's; of any other one the program executes a sealed copy in memory (memfd).
//!
//! The process also stops being dumpable, which children inherit until they execute: no process of a shared pid
//! namespace can trace the child or open its descriptors while it is neither here nor there (CVE-2016-9962).

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, MemfdFlags, Mode, SealFlags, StatVfsMountFlags};
use rustix::mount::OpenTreeFlags;
use rustix::process::DumpableBehavior;

use super::error::{Error, Result};
use crate::sys;

const OWN_FILE: &str = "/proc/self/exe";
const COPY_NAME: &str = "podling-runtime";
/// Set once [`seal`] has found this process sealed.
static SEALED: AtomicBool = AtomicBool::new(false);

/// Protects this program's file. Call it first thing in `main`: it may start the program again, with the arguments
/// given, which are its own (the program's name is the first), and the same environment.
///
/// # Errors
/// When the file cannot be protected; then no container may be made.
pub fn seal(arguments: &[OsString]) -> Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| failed("PR_SET_DUMPABLE")(e.into()))?;
    if is_sealed()? {
        SEALED.store(true, Ordering::Relaxed);
        return name_after(arguments.first());
    }
    let clone = match read_only_clone(Path::new(OWN_FILE)) {
        Err(Error::Protect { source, .. }) if source.raw_os_error() == Some(libc::EPERM) => {
            sealed_copy()?
        }
        result => result?,
    };
    let program = CString::new(format!("/proc/self/fd/{}", clone.as_raw_fd()))
        .map_err(|e| failed("the path of the clone")(e.into()))?;
    let argv: Vec<CString> = arguments
        .iter()
        .map(|argument| CString::new(argument.as_bytes()))
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| failed("the arguments")(e.into()))?;
    let env: Vec<CString> = std::env::vars_os()
        .map(|(name, value)| {
            let mut pair = name.into_vec();
            pair.push(b'=');
            pair.extend_from_slice(value.as_bytes());
            CString::new(pair)
        })
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| failed("the environment")(e.into()))?;
    Err(failed("execve")(sys::process::execve(
        &program, &argv, &env,
    )))
}

/// A detached read-only mount of one file. A program started from `/proc/self/fd/<it>` need not start itself again
/// in [`seal`].
///
/// # Errors
/// When the file is not there or the kernel cannot do it.
pub fn read_only_clone(file: &Path) -> Result<OwnedFd> {
    let clone = rustix::mount::open_tree(
        CWD,
        file,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .map_err(|e| failed("open_tree")(e.into()))?;
    let read_only = sys::mount::Attributes {
        set: libc::MOUNT_ATTR_RDONLY,
        ..Default::default()
    };
    sys::mount::set_attributes(clone.as_fd(), false, read_only).map_err(failed("mount_setattr"))?;
    Ok(clone)
}

/// A copy of this program's file that nobody can write to.
fn sealed_copy() -> Result<OwnedFd> {
    let failed = |e: io::Error| failed("memfd")(e);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know the flag, and need none.
    let copy = rustix::fs::memfd_create(COPY_NAME, flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create(COPY_NAME, flags))
        .map_err(|e| failed(e.into()))?;
    let mut copy = File::from(copy);
    let mut own = File::open(OWN_FILE).map_err(failed)?;
    io::copy(&mut own, &mut copy).map_err(failed)?;
    rustix::fs::fcntl_add_seals(&copy, all_seals()).map_err(|e| failed(e.into()))?;
    // What is open for writing is not executed.
    let read_only = File::open(format!("/proc/self/fd/{}", copy.as_raw_fd())).map_err(failed)?;
    Ok(read_only.into())
}

fn all_seals() -> SealFlags {
    SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE
}

/// True when no container of this process can write to this program's file.
fn is_sealed() -> Result<bool> {
    let path = rustix::fs::readlinkat(CWD, OWN_FILE, Vec::new())
        .map_err(|e| failed("readlink")(e.into()))?;
    match path.as_bytes() {
        // On a mount that is in no mount namespace the file is the root, with nothing above: no program's path in a
        // mount namespace can be this.
        b"/" => {
            let mount = rustix::fs::statvfs(OWN_FILE).map_err(|e| failed("statvfs")(e.into()))?;
            Ok(mount.f_flag.contains(StatVfsMountFlags::RDONLY))
        }
        path if path.starts_with(b"/memfd:") => {
            let own = File::open(OWN_FILE).map_err(failed("open"))?;
            // Any other file has no seals.
            Ok(rustix::fs::fcntl_get_seals(own).is_ok_and(|seals| seals.contains(all_seals())))
        }
        _ if rustix::process::geteuid().is_root() => Ok(false),
        _ => {
            let own = rustix::fs::stat(OWN_FILE).map_err(|e| failed("stat")(e.into()))?;
            let others = Mode::from_raw_mode(own.st_mode) & (Mode::WGRP | Mode::WOTH);
            Ok(own.st_uid == 0 && others.is_empty())
        }
    }
}

/// Fails unless [`seal`] was called and has worked: what it has found true of this process stays so.
pub(super) fn ensure_sealed() -> Result<()> {
    if SEALED.load(Ordering::Relaxed) {
        Ok(())
    } else {
        Err(Error::Unprotected)
    }
}

/// After the second execution the kernel's name for this process is the number of a descriptor.
fn name_after(argument: Option<&OsString>) -> Result<()> {
    let name = argument
        .and_then(|argument| Path::new(argument).file_name())
        .unwrap_or(OsStr::new("podling"));
    let name = CString::new(name.as_bytes()).map_err(|e| failed("the name")(e.into()))?;
    rustix::thread::set_name(&name).map_err(|e| failed("PR_SET_NAME")(e.into()))
}

fn failed(attempt: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Protect { attempt, source }
}
