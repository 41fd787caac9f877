//! What cargo builds for the guest.
//!
//! It is asked for the very programs that `make test-root` has it build: with another choice of packages it would choose
//! other features for what they depend on, and compile all of that once more.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::{say, workspace};

/// The command line of `make test-root`, but for what is run.
const ARGUMENTS: [&str; 9] = [
    "test",
    "--workspace",
    "--features",
    "privileged-tests",
    "--test",
    "*",
    "--no-run",
    "--message-format",
    "json",
];

/// Podling's programs.
const PROGRAMS: [&str; 3] = ["podling", "podling-pod", "podling-runtime"];

/// Something that cargo built.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// The target's name.
    pub name: String,
    /// `bin`, `test`, …
    pub kind: String,
    /// The name of the directory that its package lies in.
    pub directory: String,
    /// Where it is.
    pub executable: PathBuf,
}

/// The workspace's test programs, and the programs that they start: made now, or found made.
///
/// # Errors
/// When something does not compile, with the compiler's words.
pub fn build() -> io::Result<Vec<Artifact>> {
    static BUILT: Mutex<Vec<Artifact>> = Mutex::new(Vec::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if built.is_empty() {
        say("cargo builds the tests");
        let output = Command::new(env!("CARGO"))
            .current_dir(workspace())
            .args(ARGUMENTS)
            .output()?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("cargo {ARGUMENTS:?}: {errors}")));
        }
        let messages = String::from_utf8_lossy(&output.stdout);
        built.extend(messages.lines().filter_map(artifact));
    }
    Ok(built.clone())
}

/// Reads one of cargo's messages, if it is about an executable.
fn artifact(line: &str) -> Option<Artifact> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let package = Path::new(message["manifest_path"].as_str()?).parent()?;
    let mut artifact = Artifact {
        name: message["target"]["name"].as_str()?.to_owned(),
        kind: message["target"]["kind"][0].as_str()?.to_owned(),
        directory: package.file_name()?.to_string_lossy().into_owned(),
        executable: PathBuf::from(message["executable"].as_str()?),
    };
    // The one that the tests were told of when they were compiled (runtime/tests/program).
    if artifact.kind == "bin" && artifact.name == "podling-runtime" {
        artifact.executable =
            std::env::var_os("PODLING_RUNTIME").map_or(artifact.executable, PathBuf::from);
    }
    Some(artifact)
}

/// Podling's programs, by name: those in the directory `PODLING_BIN_DIR`, or built as cargo builds tests.
///
/// # Errors
/// When they do not compile.
pub fn programs() -> io::Result<Vec<(String, PathBuf)>> {
    if let Some(dir) = std::env::var_os("PODLING_BIN_DIR") {
        let dir = PathBuf::from(dir);
        return Ok(PROGRAMS
            .map(|name| (name.to_owned(), dir.join(name)))
            .into());
    }
    let mut programs = build()?;
    programs.retain(|it| it.kind == "bin" && PROGRAMS.contains(&it.name.as_str()));
    Ok(programs
        .into_iter()
        .map(|it| (it.name, it.executable))
        .collect())
}
