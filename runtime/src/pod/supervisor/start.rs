//! Containers that start together are made side by side: each by its own process, while this one goes on with the next.
//!
//! ```text
//! for each   cgroup, directories, streams, clone ─────► its process: mounts, root file system
//! for each   made ◄───────────────────────────────────── waits
//! once       on record: a supervisor that is killed from here on finds the processes again
//! for each   go ──────────────────────────────────────► privileges, filter, execve
//! for each   executed ◄────────────────────────────────── (its channel closes)
//! ```
//!
//! One that cannot start does not keep the others.

use nix::sys::epoll::EpollFlags;

use super::container::{self, Executing, Made, Making, Run, Surroundings};
use super::journal::say;
use super::reactor::Source;
use super::{StartError, Supervisor};
use crate::chain;
use crate::pod::clock::Now;
use crate::pod::lifecycle::Input;

/// A container on its way, at one of the stages above.
pub(super) struct Start<T = Making> {
    name: String,
    id: String,
    stage: T,
}

impl<T> Start<T> {
    /// Takes it to the next stage; one that fails is given back with the reason.
    fn advance<U>(
        self,
        step: impl FnOnce(T, &str) -> Result<U, StartError>,
    ) -> Result<Start<U>, (String, StartError)> {
        match step(self.stage, &self.id) {
            Ok(stage) => Ok(Start {
                name: self.name,
                id: self.id,
                stage,
            }),
            Err(error) => Err((self.name, error)),
        }
    }
}

impl Supervisor {
    /// The first stage. None when it failed, which is an input by then.
    pub(super) fn begin_start(
        &mut self,
        name: String,
        id: String,
        restart_count: u32,
    ) -> Option<Start> {
        let plan = self.plan.containers.iter().find(|c| c.name == name);
        let pod = Surroundings {
            dir: &self.dir,
            layout: &self.layout,
            pod_cgroup: &self.pod_cgroup,
            sandbox: &self.sandbox,
        };
        let made = plan
            .ok_or(StartError::NotReady)
            .and_then(|plan| container::make(plan, &id, restart_count, pod));
        match made {
            Ok(stage) => Some(Start { name, id, stage }),
            Err(error) => {
                self.start_failed(name, &error);
                None
            }
        }
    }

    /// All stages but the first.
    pub(super) fn finish_starts(&mut self, starts: Vec<Start>) {
        if starts.is_empty() {
            return;
        }
        let made = self.advance_all(starts, |making, _| making.wait());
        self.put_on_record(&made);
        let executing = self.advance_all(made, |made, _| made.go());
        let running = self.advance_all(executing, |executing: Executing, id| {
            executing.wait(id.to_owned())
        });
        for start in running {
            let name = start.name.clone();
            if let Err(error) = self.look_after(start) {
                self.start_failed(name, &error);
            }
        }
    }

    fn advance_all<T, U>(
        &mut self,
        starts: Vec<Start<T>>,
        step: impl Fn(T, &str) -> Result<U, StartError>,
    ) -> Vec<Start<U>> {
        let mut advanced = Vec::with_capacity(starts.len());
        for start in starts {
            match start.advance(&step) {
                Ok(start) => advanced.push(start),
                Err((name, error)) => self.start_failed(name, &error),
            }
        }
        advanced
    }

    /// Before the programs run: a supervisor that is killed now finds the processes again.
    fn put_on_record(&mut self, made: &[Start<Made>]) {
        let now = Now::read();
        for start in made {
            let created = Input::Created {
                container: start.name.clone(),
                process: start.stage.process,
            };
            self.life.handle(created, now);
        }
        self.note_snapshot(now);
        self.save();
    }

    fn look_after(&mut self, start: Start<Run>) -> Result<(), StartError> {
        let Start {
            name,
            stage: mut run,
            ..
        } = start;
        let source = Source::Container(name.clone());
        let key = self
            .reactor
            .add(&run.handle, source, EpollFlags::EPOLLIN)
            .map_err(StartError::Process)?;
        run.key = Some(key);
        if let Err(error) = run.output.listen(&name, &mut self.reactor) {
            self.reactor.remove(&run.handle, key);
            return Err(StartError::Streams(error));
        }
        self.runs.insert(name.clone(), run);
        self.inputs.push(Input::Started { container: name });
        Ok(())
    }

    fn start_failed(&mut self, name: String, error: &StartError) {
        let message = chain(error);
        say(format_args!("{name}: cannot start: {message}"));
        container::abandon(&name, &self.layout, &self.pod_cgroup);
        self.inputs.push(Input::StartFailed {
            container: name,
            message,
        });
    }
}
