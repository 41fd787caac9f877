//! Real virtual machines for tests: Debian with systemd under qemu, driven from outside. The kernel has cgroup v2 and
//! AppArmor unless its parameters say otherwise.
//!
//! ```text
//! Image::build() ── mmdebstrap, mkfs.ext4 -d ──► target/vm/<hash>/{disk.ext4,vmlinuz,initrd.img}     (cached)
//! Payload::build(files) ── mkfs.ext4 -d ──► a second disk, mounted at /payload
//! Machine::boot(image, payload) ──► qemu-system-x86_64 (emulated, no KVM needed)
//!         run("command") ──► virtio-serial port ──► guest/control.sh ──► exit code and output
//! ```
//!
//! The first disk is never written: qemu keeps changes in a temporary file, which survives a reboot of the guest and
//! ends with the machine. The machine has no network card. Nothing of the host's network, mounts or cgroups is
//! touched.

pub mod artifact;
pub mod image;
pub mod machine;
pub mod payload;
pub mod suite;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Instant;

/// The workspace's directory.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// When the first line was said.
static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Tells what a test is about to do, with the seconds since the first of these lines and the test's module: several
/// tests say something at a time.
pub fn say(what: &str) {
    let seconds = BEGIN.elapsed().as_secs();
    let thread = std::thread::current();
    let test = thread.name().unwrap_or_default();
    let module = test.split("::").next().unwrap_or_default();
    println!("--- {seconds:>4} s  {module}: {what}");
}

/// Runs a command of the host; its output is the error's text when it fails.
fn run_command(command: &mut Command) -> io::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot run {name}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{name} failed ({}): {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )))
}

/// An error with what was attempted on which path.
fn attempt(what: &str, path: &Path) -> impl FnOnce(io::Error) -> io::Error + use<> {
    let text = format!("cannot {what} {}", path.display());
    move |error| io::Error::new(error.kind(), format!("{text}: {error}"))
}
