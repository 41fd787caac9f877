//! `podling run`: a node in the foreground that leaves nothing behind.

mod place;
mod tail;
mod view;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::agent::{self, LocalApi};
use super::dirs::DirectoryArgs;
use super::log::{self, Tail};
use super::{CommandError, Exit, status};
use crate::api::{self, ProblemView};
use crate::node::config::GcConfig;
use crate::node::{Config, Node, NodeHandle, Options, Shutdown};
use crate::store::Kind;
use place::Place;
use tail::LogTail;
use view::{Live, Plain, View};

/// Refused manifests are shown by the run itself, with what to do.
const DEFAULT_LOG: &str = "warn,podling_agent::source=off";

/// Run manifests here, in the foreground, until ctrl-C
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling run examples/hello.yaml        one file
  podling run examples/                  every manifest of a directory
  podling run a.yaml b.yaml --quiet      only what goes wrong

The files are watched: save a change and the pods follow. ctrl-C stops the pods and removes everything that was made \
for them; a second ctrl-C does not wait. Needs root, but no agent; several runs may go side by side. Images \
are taken from and kept in --data-dir. Of the configuration file only `registries`, `images` and `dataDir` count.

Ends by itself when every pod has completed, with status 1 if one failed.")]
pub struct RunArgs {
    /// Manifests, and directories of manifests
    #[arg(value_name = "FILE|DIR", required = true)]
    pub paths: Vec<PathBuf>,
    /// Follow changes of the files (the default)
    #[arg(long, overrides_with = "no_watch")]
    pub watch: bool,
    /// Read the files once
    #[arg(long, overrides_with = "watch")]
    pub no_watch: bool,
    /// Print only problems
    #[arg(short, long)]
    pub quiet: bool,
    /// Lines instead of a live table, also on a terminal
    #[arg(long)]
    pub plain: bool,
    /// Where the pods' addresses are taken from [default: a free 10.x.y.0/24]
    #[arg(long, value_name = "CIDR")]
    pub pod_cidr: Option<String>,
    /// What to log on standard error: error, warn, info, debug, trace [default: warn]
    #[arg(
        long,
        value_name = "FILTER",
        env = "PODLING_LOG",
        default_value = DEFAULT_LOG,
        hide_default_value = true,
        hide_env_values = true
    )]
    pub log: String,
}

pub(super) fn run(args: RunArgs, directories: &DirectoryArgs) -> Result<Exit, CommandError> {
    for path in &args.paths {
        if !path.exists() {
            return Err(CommandError::new(format!("there is no {}", path.display()))
                .hint("give manifest files, or directories of them"));
        }
    }
    let given = directories.configuration()?;
    let live = !args.quiet && !args.plain && io::stdout().is_terminal();
    let tail = Tail::default();
    if live {
        log::to_tail(&args.log, &tail)?;
    } else {
        log::to_stderr(&args.log)?;
    }
    let runtime = agent::runtime()?;
    runtime.block_on(async {
        // Before anything is made: a ctrl-C that comes early is not lost.
        let mut stop = Stop::listen()?;
        let place = Place::take(directories, &given.data_dir, &mut stop).await?;
        let live = live.then_some(&tail);
        let ended = in_place(&args, directories, given, &place, live, &mut stop).await;
        let removed = place.remove();
        let exit = ended?;
        removed?;
        Ok(exit)
    })
}

/// The signals that end a run: ctrl-C, SIGTERM, and the end of the terminal.
struct Stop {
    signals: [Signal; 3],
}

impl Stop {
    fn listen() -> Result<Self, CommandError> {
        let listen = |kind| {
            signal(kind).map_err(|e| CommandError::new("cannot listen to signals").because(e))
        };
        Ok(Self {
            signals: [
                listen(SignalKind::interrupt())?,
                listen(SignalKind::terminate())?,
                listen(SignalKind::hangup())?,
            ],
        })
    }

    /// The next one. Cancel-safe.
    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// From the node's start to its end; the place is there before and after.
async fn in_place(
    args: &RunArgs,
    directories: &DirectoryArgs,
    given: Config,
    place: &Place,
    live: Option<&Tail>,
    stop: &mut Stop,
) -> Result<Exit, CommandError> {
    let mut config = Config {
        manifests: args.paths.clone(),
        // Of the machine's configuration only this and where its images are: neither how its registries are spoken to
        // nor which images may run is a choice of a run.
        registries: given.registries,
        images: given.images,
        ..Config::default()
    };
    place.apply(&mut config);
    // Which of the machine's images are needed is not for a run to know.
    config.images.gc = GcConfig::off();
    config.network.pod_cidr.clone_from(&args.pod_cidr);
    let options = Options {
        watch: !args.no_watch,
        uid_seed: Some(place.uid_seed()),
    };
    let node = Node::start(config, options)
        .await
        .map_err(agent::cannot_start)?;
    let started = async {
        let api = LocalApi::start(&node)?;
        let (lines, quiet) = (live.cloned(), args.quiet);
        let store = node.store().clone();
        let is_ours = move |uid: &str| store.list(Kind::Pod).iter().any(|pod| pod.uid == uid);
        let logs = LogTail::start(&place.logs, is_ours, move |line| match &lines {
            Some(tail) => tail.push(line),
            None if quiet => {}
            // A reader that has gone is found out by the next change of a pod.
            None => drop(view::say(line)),
        });
        let logs =
            logs.map_err(|e| CommandError::new("cannot follow the pods' logs").because(e))?;
        Ok((api, logs))
    };
    let (api, logs) = match started.await {
        Ok(started) => started,
        Err(e) => {
            end(&node).await?;
            return Err(e);
        }
    };
    let mut view = match live {
        Some(tail) => View::Live(Live::new(tail.clone())),
        None => View::Plain(Plain::new(args.quiet)),
    };
    let flags = if directories.run_dir.is_some() {
        format!(" --run-dir {}", place.run.display())
    } else {
        String::new()
    };
    let head = format!(
        "ctrl-C stops and removes all. In another terminal: podling get pods{flags}, logs, exec, why"
    );
    let outcome = attend(&node, &mut view, &head, args, stop).await;
    let ended = terminate(&node, &mut view, stop).await;
    logs.finish();
    api.stop().await;
    ended?;
    outcome
}

/// Shows the pods until all have completed, or a signal comes.
async fn attend(
    node: &NodeHandle,
    view: &mut View,
    head: &str,
    args: &RunArgs,
    stop: &mut Stop,
) -> Result<Exit, CommandError> {
    let store = node.store();
    let mut changes = store.watch();
    let mut clock = tokio::time::interval(REDRAW);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    shown(view.say(head))?;
    if !args.no_watch && api::pods(store).is_empty() {
        view.warn("there is no pod to run yet; the files are watched");
    }
    loop {
        let pods = api::pods(store);
        let problems: Vec<ProblemView> = store.problems().iter().map(ProblemView::from).collect();
        if args.no_watch && pods.is_empty() {
            return Err(nothing_to_run(&problems));
        }
        shown(view.show(&pods, &problems))?;
        if let Some(exit) = outcome(&pods) {
            return Ok(exit);
        }
        // All are cancel-safe.
        tokio::select! {
            () = stop.next() => return Ok(Exit::Done),
            _ = changes.next() => tokio::time::sleep(GATHER).await,
            _ = clock.tick() => {}
        }
    }
}

/// Ages are redrawn this often.
const REDRAW: Duration = Duration::from_secs(1);
/// Changes that come together are drawn together.
const GATHER: Duration = Duration::from_millis(30);

/// None while a pod still has something to do; else whether one failed.
fn outcome(pods: &[Pod]) -> Option<Exit> {
    if pods.is_empty() || !pods.iter().all(has_ended) {
        return None;
    }
    let failed = pods.iter().any(|p| phase(p) == Some("Failed"));
    Some(if failed { Exit::Negative } else { Exit::Done })
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), Some("Succeeded" | "Failed"))
}

fn nothing_to_run(problems: &[ProblemView]) -> CommandError {
    let now = jiff::Timestamp::now();
    let all: Vec<String> = problems
        .iter()
        .map(|p| status::render_problem(p, now))
        .collect();
    let error = CommandError::new("there is no pod to run");
    if all.is_empty() {
        error.hint("the manifests hold none: give files with `kind: Pod`")
    } else {
        error.because(format!("these manifests were refused:\n{}", all.concat()))
    }
}

/// Terminates the pods while they go on being shown, those that ran as terminating. A signal meanwhile kills what is
/// left. In the end those are shown that had come to an end of their own.
async fn terminate(
    node: &NodeHandle,
    view: &mut View,
    stop: &mut Stop,
) -> Result<(), CommandError> {
    shown(view.say("stopping the pods; ctrl-C again kills them"))?;
    let mut changes = node.store().watch();
    let (over, _): (Vec<Pod>, Vec<Pod>) = api::pods(node.store()).into_iter().partition(has_ended);
    let first = end(node);
    let second = async {
        stop.next().await;
        end(node).await
    };
    tokio::pin!(first, second);
    let mut killing = false;
    loop {
        shown(view.show(&api::pods(node.store()), &[]))?;
        // The two ends are pinned and go on; the others are cancel-safe.
        tokio::select! {
            ended = &mut first => break ended?,
            killed = &mut second, if !killing => {
                killed?;
                killing = true;
            }
            _ = changes.next() => {}
        }
    }
    shown(view.show(&over, &[]))?;
    shown(view.say("everything has been stopped and removed"))?;
    // A live table shows what is said when it is drawn.
    shown(view.show(&over, &[]))
}

async fn end(node: &NodeHandle) -> Result<(), CommandError> {
    node.shutdown(Shutdown::TerminatePods)
        .await
        .map_err(|e| CommandError::new("not everything could be removed").because(e))
}

/// A terminal that has gone is no reason to leave pods behind: the run goes on to its end.
fn shown(result: io::Result<()>) -> Result<(), CommandError> {
    match result {
        Ok(()) => Ok(()),
        Err(error) => {
            tracing::debug!(%error, "cannot show the pods");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pods(phases: &[&str]) -> Vec<Pod> {
        let pod = |phase: &&str| {
            serde_json::from_value(json!({ "metadata": {}, "status": { "phase": phase } }))
                .expect("a pod")
        };
        phases.iter().map(pod).collect()
    }

    #[test]
    fn a_run_ends_when_all_pods_have_and_fails_if_one_did() {
        assert_eq!(outcome(&pods(&[])), None);
        assert_eq!(outcome(&pods(&["Succeeded", "Running"])), None);
        assert_eq!(
            outcome(&pods(&["Succeeded", "Succeeded"])),
            Some(Exit::Done)
        );
        assert_eq!(
            outcome(&pods(&["Succeeded", "Failed"])),
            Some(Exit::Negative)
        );
    }
}
