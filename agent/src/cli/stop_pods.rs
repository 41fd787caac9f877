//! `podling stop-pods`: what the machine's shutdown runs.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use podling_runtime::pod::client::{Client, ClientError};
use podling_runtime::pod::plan::Plan;
use podling_runtime::pod::protocol::{Reply, Request, STATE_FILE};
use podling_runtime::pod::snapshot::Stage;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{CommandError, Directories, Exit, offline};

/// What a pod may take beyond its grace period: its last processes are killed then, and that takes no time.
const MARGIN: Duration = Duration::from_secs(10);

/// End all pods of this node gracefully, without changing what should run
#[derive(Debug, Args)]
#[command(after_help = "\
The machine's shutdown runs this after the agent has stopped: preStop hooks, stop signals and grace periods count as \
in a deletion, all pods at once. The next start of the agent starts the pods again, from their manifests.

Example:
  systemctl stop podling-pods    stops the agent, then does this")]
pub struct StopPodsArgs {
    /// Seconds between the stop signal and SIGKILL; each pod's own if not given
    #[arg(long, value_name = "SECONDS")]
    pub grace_period: Option<u64>,
}

pub(super) fn run(args: &StopPodsArgs, directories: &Directories) -> Result<Exit, CommandError> {
    if UnixStream::connect(directories.agent_socket()).is_ok() {
        return Err(
            CommandError::new("the agent runs, and would start the pods again")
                .hint("stop it first: systemctl stop podling"),
        );
    }
    let pods = offline::plans(directories)?;
    if pods.is_empty() {
        println!("no pod runs here");
        return Ok(Exit::Done);
    }
    let outcomes: Vec<Result<(), CommandError>> = std::thread::scope(|scope| {
        let stops: Vec<_> = pods
            .iter()
            .map(|(dir, plan)| scope.spawn(|| stop(dir, plan, args.grace_period)))
            .collect();
        stops
            .into_iter()
            .map(|stop| {
                stop.join()
                    .unwrap_or_else(|_| Err(CommandError::new("stopping a pod failed")))
            })
            .collect()
    });
    let mut exit = Exit::Done;
    for outcome in outcomes {
        if let Err(error) = outcome {
            // One pod that does not end keeps no other from ending; each is told.
            error.report();
            exit = Exit::Negative;
        }
    }
    Ok(exit)
}

/// Ends one pod and waits until it has ended.
fn stop(dir: &Path, plan: &Plan, grace_secs: Option<u64>) -> Result<(), CommandError> {
    let grace_secs = grace_secs.unwrap_or(plan.termination_grace_secs);
    let name = format!("{}/{}", plan.pod.namespace, plan.pod.name);
    let failed =
        |error: ClientError| CommandError::new(format!("cannot end pod {name}")).because(error);
    let client = match Client::connect(dir) {
        Ok(client) => client,
        // It has ended, or never began.
        Err(error) if error.is_gone() => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    client.send(&Request::Subscribe).map_err(failed)?;
    let terminate = Request::Terminate {
        grace_secs,
        reason: "the node's pods are stopped".to_owned(),
    };
    client.send(&terminate).map_err(failed)?;
    let deadline = Instant::now() + Duration::from_secs(grace_secs) + MARGIN;
    loop {
        match client.try_recv() {
            Ok(Some((Reply::Snapshot(snapshot), _))) => {
                if matches!(snapshot.stage, Stage::Ended { .. }) {
                    return release(dir, &client).map_err(failed);
                }
            }
            Ok(Some((Reply::Error { message }, _))) => {
                return Err(failed(ClientError::Refused { message }));
            }
            Ok(Some(_)) => {}
            Ok(None) => wait(&client, deadline).map_err(|error| {
                CommandError::new(format!("pod {name} does not end")).because(error)
            })?,
            Err(error) if error.is_gone() => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Lets the supervisor of an ended pod go, and forgets how the pod ended: the next agent begins it anew.
fn release(dir: &Path, client: &Client) -> Result<(), ClientError> {
    client.send(&Request::Release)?;
    loop {
        match client.recv() {
            Ok((Reply::Error { message }, _)) => return Err(ClientError::Refused { message }),
            Ok(_) => {}
            Err(error) if error.is_gone() => break,
            Err(error) => return Err(error),
        }
    }
    match std::fs::remove_file(dir.join(STATE_FILE)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ClientError::Connect {
            dir: dir.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Until the supervisor says something.
fn wait(client: &Client, deadline: Instant) -> io::Result<()> {
    let left = deadline
        .checked_duration_since(Instant::now())
        .ok_or(io::ErrorKind::TimedOut)?;
    let timeout = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    match poll(&mut [PollFd::new(client, PollFlags::IN)], Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directories(run: &Path) -> Directories {
        Directories {
            run: run.to_owned(),
            data: run.join("data"),
            log: run.join("log"),
        }
    }

    #[test]
    fn a_node_without_pods_has_nothing_to_stop() {
        let run = tempfile::tempdir().unwrap();
        let args = StopPodsArgs { grace_period: None };
        let exit = super::run(&args, &directories(run.path()));
        assert!(matches!(exit, Ok(Exit::Done)));
    }

    #[test]
    fn a_running_agent_keeps_its_pods() {
        let run = tempfile::tempdir().unwrap();
        let directories = directories(run.path());
        let _agent = std::os::unix::net::UnixListener::bind(directories.agent_socket()).unwrap();
        let args = StopPodsArgs { grace_period: None };
        assert!(super::run(&args, &directories).is_err());
    }
}
