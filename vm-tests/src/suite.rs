//! Test programs of the workspace's packages, run in a guest.

use std::io;

use crate::artifact::{self, Artifact};
use crate::machine::Machine;
use crate::payload::Payload;

/// Test programs, and the programs that they start.
#[derive(Debug, Default)]
pub struct Suite {
    artifacts: Vec<Artifact>,
}

impl Suite {
    /// Builds integration tests of a package, those whose names are like `tests`, and adds them.
    ///
    /// # Errors
    /// When they do not compile.
    pub fn build(&mut self, package: &str, feature: &str, tests: &[&str]) -> io::Result<()> {
        let mut arguments = vec!["test", "-p", package, "--features", feature, "--no-run"];
        arguments.extend(tests.iter().flat_map(|test| ["--test", test]));
        self.artifacts.extend(artifact::build(&arguments)?);
        Ok(())
    }

    /// Leaves tests out.
    pub fn without(&mut self, names: &[&str]) {
        self.artifacts
            .retain(|artifact| !names.contains(&artifact.name.as_str()));
    }

    /// Adds all programs to what the guest gets.
    ///
    /// # Errors
    /// When one cannot be copied.
    pub fn add_to(&self, payload: &Payload) -> io::Result<()> {
        self.artifacts
            .iter()
            .try_for_each(|artifact| payload.add_program(&artifact.executable, &artifact.name))
    }

    /// Runs the tests in the guest, one program after the other, shows what those that fail say, and gives their names.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn run(&self, machine: &mut Machine) -> io::Result<Vec<String>> {
        // Tests know the programs that they start by the path that cargo gave them.
        for artifact in self.artifacts.iter().filter(|it| it.kind == "bin") {
            let path = artifact.executable.display();
            machine.check(&format!(
                "mkdir -p $(dirname {path}) && ln -s /payload/{} {path}",
                artifact.name
            ))?;
        }
        let mut failed = Vec::new();
        for artifact in self.artifacts.iter().filter(|it| it.kind == "test") {
            println!("--- {} begins", artifact.name);
            // /tmp is on the guest's disk: overlays want more than a tmpfs of old kernels gives.
            let result = machine.run(&format!("/payload/{} --test-threads 2", artifact.name))?;
            println!("--- {} in the guest: {}", artifact.name, result.code);
            if result.code != 0 {
                println!("{}", result.text);
                failed.push(artifact.name.clone());
            }
        }
        Ok(failed)
    }
}
