//! Test programs of the workspace's packages, run in a guest.

use std::io;

use crate::artifact::{self, Artifact};
use crate::machine::Machine;
use crate::payload::Payload;
use crate::say;

/// Test programs, and the programs that they start.
#[derive(Debug)]
pub struct Suite {
    artifacts: Vec<Artifact>,
}

impl Suite {
    /// Builds the workspace's integration tests and takes those that are wanted, with the programs of their packages.
    ///
    /// # Errors
    /// When they do not compile.
    pub fn build(wanted: impl Fn(&Artifact) -> bool) -> io::Result<Self> {
        let all = artifact::build()?;
        let (tests, programs): (Vec<_>, Vec<_>) = all.into_iter().partition(|it| it.kind == "test");
        let tests: Vec<_> = tests.into_iter().filter(|it| wanted(it)).collect();
        let programs = programs.into_iter().filter(|program| {
            let directory = &program.directory;
            program.kind == "bin" && tests.iter().any(|test| test.directory == *directory)
        });
        Ok(Self {
            artifacts: programs.chain(tests.iter().cloned()).collect(),
        })
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
        // Tests know the programs that they start by the path that they were compiled with.
        for artifact in self.artifacts.iter().filter(|it| it.kind == "bin") {
            let path = artifact.executable.display();
            machine.check(&format!(
                "mkdir -p $(dirname {path}) && ln -s /payload/{} {path}",
                artifact.name
            ))?;
        }
        let mut failed = Vec::new();
        for artifact in self.artifacts.iter().filter(|it| it.kind == "test") {
            say(&format!("{} begins", artifact.name));
            // /tmp is on the guest's disk: overlays want more than a tmpfs of old kernels gives.
            let result = machine.run(&format!("/payload/{} --test-threads 2", artifact.name))?;
            say(&format!("{} in the guest: {}", artifact.name, result.code));
            if result.code != 0 {
                println!("{}", result.text);
                failed.push(artifact.name.clone());
            }
        }
        Ok(failed)
    }
}
