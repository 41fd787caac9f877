//! `podling logs`: reads the CRI log files themselves, so that it works with the agent dead.

mod files;
mod follow;
mod print;
mod record;

use std::fs;
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use podling_runtime::pod::plan::ContainerKind;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify;

use super::error::written;
use super::name::{NamespaceArg, PodName, parse_duration};
use super::{CommandError, Directories, Exit, offline};
use crate::pod::final_status;
pub(super) use follow::{Found, Reader};
pub(super) use print::Printer;

/// Show what a container printed
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling logs hello                      all of it, rotated files included
  podling logs -f --tail 20 hello         the last 20 lines, then each as it comes, over restarts too
  podling logs --previous hello           what the run before the last restart said
  podling logs -c writer --since 10m site one container of several
  podling logs --all-containers site      each line with its container in front

The files are in the CRI format below the log directory; this command reads them without the agent.")]
pub struct LogsArgs {
    /// The pod
    #[arg(value_name = "POD")]
    pub pod: PodName,
    #[command(flatten)]
    pub namespace: NamespaceArg,
    /// The container; the pod's first if not given
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Every container, with its name before each line
    #[arg(long, conflicts_with = "container")]
    pub all_containers: bool,
    /// Go on with each line as it comes, until the pod ends
    #[arg(short, long)]
    pub follow: bool,
    /// The run before the last restart
    #[arg(short, long, conflicts_with = "follow")]
    pub previous: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    pub tail: Option<usize>,
    /// Only lines younger than this: 30s, 5m, 1h30m
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub since: Option<Duration>,
    /// Each line's time in front
    #[arg(long)]
    pub timestamps: bool,
}

pub(super) fn run(args: &LogsArgs, directories: &Directories) -> Result<Exit, CommandError> {
    let pod = PodLogs::find(args, directories)?;
    let containers = pod.choose(args)?;
    let since = args.since.map(|ago| {
        let ago = jiff::SignedDuration::try_from(ago).unwrap_or(jiff::SignedDuration::MAX);
        Timestamp::now().checked_sub(ago).unwrap_or(Timestamp::MIN)
    });
    let mut streams = Vec::new();
    let has_logs = containers.iter().any(|name| has_log(&pod.dir.join(name)));
    let may_come = args.follow && pod.dir.is_dir();
    if !has_logs && !may_come {
        return Err(pod.nothing_yet(args, &containers, directories));
    }
    for name in containers {
        let prefix = if args.all_containers {
            format!("{name}: ")
        } else {
            String::new()
        };
        let printer = Printer::new(prefix, args.timestamps, since);
        streams.push(
            Stream::start(pod.dir.join(&name), args, printer).map_err(|e| e.of(&name, args))?,
        );
    }
    written(print(&mut streams, args.follow, &pod))
}

/// True when there is something to read, or something that forbids it.
fn has_log(dir: &Path) -> bool {
    files::runs(dir).map_or(true, |runs| !runs.is_empty())
}

/// Where the logs of a pod are.
struct PodLogs {
    dir: PathBuf,
    /// As in the plan; empty if the pod is gone.
    planned: Vec<(String, ContainerKind)>,
    /// Where a pod that is still there keeps how it ended, once it has.
    data: Option<PathBuf>,
}

impl PodLogs {
    /// The pod that runs, else the last one of that name whose logs are still there.
    fn find(args: &LogsArgs, directories: &Directories) -> Result<Self, CommandError> {
        let (namespace, name) = (&args.namespace.namespace, &args.pod.0);
        let running = offline::find(directories, namespace, name);
        if let Ok((_, plan)) = &running
            && let Some(dir) = plan.containers.first().and_then(|c| c.log.dir.parent())
        {
            let planned = plan
                .containers
                .iter()
                .map(|c| (c.name.clone(), c.kind))
                .collect();
            return Ok(Self {
                dir: dir.to_owned(),
                planned,
                data: Some(directories.data.join("pods").join(&plan.pod.uid)),
            });
        }
        let prefix = format!("{namespace}_{name}_");
        let mut dirs: Vec<_> = fs::read_dir(&directories.log)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .collect();
        dirs.sort_by_key(|entry| entry.metadata().and_then(|m| m.modified()).ok());
        match (dirs.pop(), running) {
            (Some(entry), _) => Ok(Self {
                dir: entry.path(),
                planned: Vec::new(),
                data: None,
            }),
            (None, Err(e)) => Err(e.hint(format!(
                "its logs would be in {}",
                directories.log.display()
            ))),
            (None, Ok(_)) => Err(CommandError::new(format!("pod {name} has no logs yet"))),
        }
    }

    /// No container that is asked for has started yet.
    fn nothing_yet(
        &self,
        args: &LogsArgs,
        containers: &[String],
        directories: &Directories,
    ) -> CommandError {
        let namespace = match args.namespace.namespace.as_str() {
            "default" => String::new(),
            other => format!(" -n {other}"),
        };
        CommandError::new(format!(
            "container {} of pod {} has no log: it has not been started yet",
            containers.join(", "),
            args.pod
        ))
        .hint(format!(
            "podling why {}{namespace}{} tells what it waits for",
            args.pod,
            directories.flags()
        ))
    }

    /// True once nothing more can come: the pod has ended for good, or is gone.
    fn has_ended(&self) -> bool {
        let data = self.data.as_deref();
        !self.dir.is_dir() || data.is_some_and(|dir| final_status::read(dir).is_some())
    }

    /// The containers to print: the one named, all, or the first that is not an init container.
    fn choose(&self, args: &LogsArgs) -> Result<Vec<String>, CommandError> {
        let mut names: Vec<String> = self.planned.iter().map(|(name, _)| name.clone()).collect();
        if names.is_empty() {
            let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
            names = entries
                .filter_map(|e| e.file_name().into_string().ok())
                .collect();
            names.sort();
        }
        let list = names.join(", ");
        if args.all_containers {
            return Ok(names);
        }
        if let Some(wanted) = &args.container {
            return if names.contains(wanted) {
                Ok(vec![wanted.clone()])
            } else {
                Err(
                    CommandError::new(format!("pod {} has no container {wanted}", args.pod))
                        .hint(format!("it has {list}")),
                )
            };
        }
        let first_main = self
            .planned
            .iter()
            .find(|(_, kind)| *kind == ContainerKind::Main);
        let first = first_main.map(|(name, _)| name).or(names.first());
        let Some(first) = first else {
            return Err(CommandError::new(format!(
                "pod {} has no logs yet",
                args.pod
            )));
        };
        if names.len() > 1 {
            eprintln!("note: container {first} of {list}; -c chooses, --all-containers shows all");
        }
        Ok(vec![first.clone()])
    }
}

/// The log of one container, and how it is printed.
struct Stream {
    reader: Reader,
    printer: Printer,
}

/// Why a container's log cannot be shown.
enum StreamError {
    NoPrevious,
    Io(io::Error),
}

impl StreamError {
    fn of(self, container: &str, args: &LogsArgs) -> CommandError {
        let what = format!(
            "cannot show the log of container {container} of pod {}",
            args.pod
        );
        match self {
            Self::NoPrevious => CommandError::new(what)
                .because("it has not been restarted, or the log of that run is gone"),
            Self::Io(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                CommandError::new(what).because(e).hint("be root")
            }
            Self::Io(e) => CommandError::new(what).because(e),
        }
    }
}

impl Stream {
    fn start(dir: PathBuf, args: &LogsArgs, mut printer: Printer) -> Result<Self, StreamError> {
        let runs = files::runs(&dir).map_err(StreamError::Io)?;
        let last = runs.last().copied();
        let run = match (args.previous, last) {
            (false, last) => last.unwrap_or(0),
            (true, _) => *runs.iter().nth_back(1).ok_or(StreamError::NoPrevious)?,
        };
        // What cannot be read is found out here, where it is not taken for an output that cannot be written.
        if let Some(first) = files::of_run(&dir, run).map_err(StreamError::Io)?.first() {
            match fs::File::open(&first.path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(StreamError::Io(e)),
                _ => {}
            }
        }
        if let Some(tail) = args.tail {
            let mut lines = 0_usize;
            let mut counter = Printer::new(String::new(), false, printer.since);
            Reader::new(dir.clone(), run, args.follow)
                .read(&mut |found| {
                    if let Found::Line(line) = found {
                        lines += usize::from(counter.record(line, &mut io::sink())?);
                    }
                    Ok(())
                })
                .map_err(StreamError::Io)?;
            printer.skip = lines.saturating_sub(tail);
        }
        Ok(Self {
            reader: Reader::new(dir, run, args.follow),
            printer,
        })
    }

    fn print(&mut self, out: &mut impl Write) -> io::Result<()> {
        let printer = &mut self.printer;
        self.reader.read(&mut |found| match found {
            Found::Line(line) => printer.record(line, out).map(drop),
            Found::Restart => printer.restart(out),
        })
    }
}

/// Prints what is there; with `follow` waits for more until the pod has ended or its logs are removed.
fn print(streams: &mut [Stream], follow: bool, pod: &PodLogs) -> io::Result<()> {
    // Watched before the first look, so that nothing falls between.
    let watch = if follow {
        let watch = Watch::new(&pod.dir)?;
        if let Some(data) = &pod.data {
            watch.watch(data, inotify::WatchFlags::MOVED_TO)?;
        }
        Some(watch)
    } else {
        None
    };
    let mut out = BufWriter::new(io::stdout().lock());
    loop {
        // Asked before the last look: all was written when the pod had ended.
        let ended = pod.has_ended();
        for stream in &mut *streams {
            stream.print(&mut out)?;
        }
        out.flush()?;
        match &watch {
            Some(watch) if !ended => watch.wait(&pod.dir, None)?,
            _ => return Ok(()),
        }
    }
}

/// Tells when something changes in a directory or the two levels below: of logs, of a pod, of a container.
pub(super) struct Watch {
    inotify: OwnedFd,
}

impl Watch {
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let inotify =
            inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let watch = Self { inotify };
        // A directory tells of its own end only once nobody has it open; its parent tells at once.
        if let Some(parent) = dir.parent() {
            watch.watch(parent, inotify::WatchFlags::DELETE)?;
        }
        watch.add(dir)?;
        Ok(watch)
    }

    /// Watches what is there now; what is watched already is no loss.
    fn add(&self, dir: &Path) -> io::Result<()> {
        let flags = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::DELETE
            | inotify::WatchFlags::DELETE_SELF;
        let below = subdirectories(dir);
        let deeper: Vec<PathBuf> = below.iter().flat_map(|d| subdirectories(d)).collect();
        for path in [dir.to_owned()].into_iter().chain(below).chain(deeper) {
            self.watch(&path, flags)?;
        }
        Ok(())
    }

    fn watch(&self, path: &Path, flags: inotify::WatchFlags) -> io::Result<()> {
        match inotify::add_watch(&self.inotify, path, flags | inotify::WatchFlags::ONLYDIR) {
            Ok(_) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Returns after the next change, or after `limit`.
    pub(super) fn wait(&self, dir: &Path, limit: Option<Duration>) -> io::Result<()> {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut poll = [PollFd::new(&self.inotify, PollFlags::IN)];
        match rustix::event::poll(&mut poll, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        // What changed does not matter: every stream is looked at anyway.
        let mut events = [0_u8; 8192];
        while rustix::io::read(&self.inotify, &mut events).is_ok_and(|n| n > 0) {}
        // A container that is new has a directory now.
        self.add(dir)
    }
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| p.is_dir()).collect()
}
