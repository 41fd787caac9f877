//! The guest's system: Debian's packages, by the machine's own package sources.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::{attempt, run_command, say, workspace};

/// The Debian release of the guest.
const SUITE: &str = "bookworm";

/// What is installed beside the essential packages.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,udev,linux-image-cloud-amd64,iproute2,procps,curl,kmod,busybox-static,dbus-user-session,libpam-systemd,uidmap,criu,iptables,strace,podman,runc,catatonit,docker-registry,apparmor,secilc";

/// Answers the host on the virtio-serial port.
const CONTROL_SCRIPT: &str = include_str!("../guest/control.sh");

/// Starts it.
const CONTROL_UNIT: &str = include_str!("../guest/control.service");

/// Makes the initial RAM disk in the guest's root.
const MAKE_INITRD: &str = include_str!("../guest/make-initrd.sh");

/// Its only program.
const INIT: &str = include_str!("../guest/init");

/// Units that packages bring and no test wants, of the machine and of its users: each costs an emulated boot seconds.
/// Tests load the profiles of AppArmor and start the registry that they want, and podman needs no service.
const MASKED: [&str; 15] = [
    "apparmor.service",
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "docker-registry.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "podman-auto-update.service",
    "podman-auto-update.timer",
    "podman-restart.service",
    "podman.service",
    "podman.socket",
    "systemd-update-utmp.service",
];

/// The disk's size; it is sparse.
const DISK_SIZE: &str = "3G";

/// A system to boot.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its root file system; never written.
    pub disk: PathBuf,
    /// Its kernel.
    pub kernel: PathBuf,
    /// What the kernel needs to find the disk.
    pub initrd: PathBuf,
}

impl Image {
    /// Builds the image, or takes the one that was built from the same inputs.
    ///
    /// # Errors
    /// When a tool is missing or fails.
    pub fn build() -> io::Result<Self> {
        // The second of two tests waits for the image of the first.
        static BUILDING: Mutex<()> = Mutex::new(());
        let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = cache_dir();
        let image = Self {
            disk: dir.join("disk.ext4"),
            kernel: dir.join("vmlinuz"),
            initrd: dir.join("initrd.img"),
        };
        // Written last.
        if image.disk.exists() {
            return Ok(image);
        }
        say("the guest's image is made");
        fs::create_dir_all(&dir).map_err(attempt("create", &dir))?;
        let root = tempfile::tempdir_in(&dir)?;
        install(root.path())?;
        configure(root.path())?;
        make_initrd(root.path())?;
        copy(&root.path().join("vmlinuz"), &image.kernel)?;
        copy(&root.path().join("initrd.img"), &image.initrd)?;
        let unfinished = dir.join(format!("disk.{}.tmp", std::process::id()));
        make_disk(root.path(), &unfinished, DISK_SIZE)?;
        fs::rename(&unfinished, &image.disk).map_err(attempt("rename", &unfinished))?;
        Ok(image)
    }
}

/// `target/vm/<hash of all inputs>`
fn cache_dir() -> PathBuf {
    let mut hasher = DefaultHasher::new();
    (CONTROL_SCRIPT, CONTROL_UNIT, MAKE_INITRD, INIT).hash(&mut hasher);
    include_str!("image.rs").hash(&mut hasher);
    let hash = hasher.finish();
    workspace().join("target/vm").join(format!("{hash:016x}"))
}

/// Installs the packages. mmdebstrap takes the package sources and keys of this machine.
fn install(root: &Path) -> io::Result<()> {
    // It makes the directory's files as root of the guest, which it will be.
    run_command(
        Command::new("mmdebstrap")
            // For the kernel's package: the initial RAM disk is not Debian's.
            .env("INITRD", "No")
            .args(["--mode=root", "--variant=minbase", "--format=directory"])
            // What is half made when the machine fails is made again.
            .arg("--dpkgopt=force-unsafe-io")
            .args(["--dpkgopt=path-exclude=/usr/share/{doc,man,locale,info}/*"])
            .arg(format!("--include={PACKAGES}"))
            .args([SUITE])
            .arg(root),
    )
}

/// Makes it a test machine: a control service, the payload's mount point, no password, no waiting.
fn configure(root: &Path) -> io::Result<()> {
    let etc = root.join("etc");
    write(&etc.join("hostname"), "podling-vm\n", 0o644)?;
    write(
        &etc.join("hosts"),
        "127.0.0.1 localhost podling-vm\n",
        0o644,
    )?;
    write(
        &etc.join("fstab"),
        "/dev/vda / ext4 defaults 0 0\n/dev/vdb /payload ext4 ro 0 0\n",
        0o644,
    )?;
    write(&etc.join("machine-id"), "", 0o444)?;
    fs::create_dir_all(root.join("payload"))?;
    write(
        &root.join("usr/local/sbin/vm-control"),
        CONTROL_SCRIPT,
        0o755,
    )?;
    let units = etc.join("systemd/system");
    write(&units.join("vm-control.service"), CONTROL_UNIT, 0o644)?;
    let wants = units.join("multi-user.target.wants");
    fs::create_dir_all(&wants).map_err(attempt("create", &wants))?;
    let of_users = etc.join("systemd/user");
    fs::create_dir_all(&of_users).map_err(attempt("create", &of_users))?;
    for unit in MASKED {
        symlink("/dev/null", units.join(unit))?;
        symlink("/dev/null", of_users.join(unit))?;
    }
    symlink("../vm-control.service", wants.join("vm-control.service"))
}

/// Makes `initrd.img` with the tools of the guest.
fn make_initrd(root: &Path) -> io::Result<()> {
    let dir = root.join("initrd");
    fs::create_dir(&dir).map_err(attempt("create", &dir))?;
    write(&dir.join("init"), INIT, 0o755)?;
    run_command(
        Command::new("chroot")
            .arg(root)
            .args(["sh", "-c", MAKE_INITRD]),
    )
}

/// An empty disk of an ext4 file system with a journal, which a power cut leaves consistent.
///
/// # Errors
/// When a tool is missing or fails.
pub fn make_journaled_disk(disk: &Path, size: &str) -> io::Result<()> {
    run_command(
        Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .arg(disk)
            .arg(size),
    )
}

/// An ext4 file system with the content of a directory.
pub(crate) fn make_disk(content: &Path, disk: &Path, size: &str) -> io::Result<()> {
    run_command(
        Command::new("mkfs.ext4")
            .args([
                "-q",
                "-F",
                "-E",
                "lazy_itable_init=1",
                "-O",
                "^has_journal",
                "-d",
            ])
            .arg(content)
            .arg(disk)
            .arg(size),
    )
}

fn write(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    fs::write(path, content).map_err(attempt("write", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(attempt("chmod", path))
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to).map(drop).map_err(attempt("copy", from))
}
