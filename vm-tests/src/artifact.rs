//! What cargo builds for the guest.

use std::io;
use std::path::PathBuf;
use std::process::Command;

use crate::workspace;

/// Something that cargo built.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// The target's name.
    pub name: String,
    /// `bin`, `test`, …
    pub kind: String,
    /// Where it is.
    pub executable: PathBuf,
}

/// Runs cargo with these arguments and gives the programs that it made, or found made.
///
/// # Errors
/// When something does not compile, with the compiler's words.
pub fn build(arguments: &[&str]) -> io::Result<Vec<Artifact>> {
    let output = Command::new(env!("CARGO"))
        .current_dir(workspace())
        .args(arguments)
        .args(["--message-format", "json"])
        .output()?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("cargo {arguments:?}: {errors}")));
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(artifact)
        .collect())
}

/// Reads one of cargo's messages, if it is about an executable.
fn artifact(line: &str) -> Option<Artifact> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    Some(Artifact {
        name: message["target"]["name"].as_str()?.to_owned(),
        kind: message["target"]["kind"][0].as_str()?.to_owned(),
        executable: PathBuf::from(message["executable"].as_str()?),
    })
}

/// Podling's programs, by name: those in the directory `PODLING_BIN_DIR`, or built as cargo builds tests.
///
/// # Errors
/// When they do not compile.
pub fn programs() -> io::Result<Vec<(String, PathBuf)>> {
    let names = ["podling", "podling-pod", "podling-runtime"];
    if let Some(dir) = std::env::var_os("PODLING_BIN_DIR") {
        let dir = PathBuf::from(dir);
        return Ok(names.map(|name| (name.to_owned(), dir.join(name))).into());
    }
    let packages = ["-p", "podling-agent", "-p", "podling-runtime"];
    let mut programs = build(&[&["build", "--bins"], &packages[..]].concat())?;
    programs.retain(|it| names.contains(&it.name.as_str()));
    Ok(programs
        .into_iter()
        .map(|it| (it.name, it.executable))
        .collect())
}
