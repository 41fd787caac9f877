//! The pods' logs as they come, all containers of all pods, for `podling run`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::super::logs::{Found, Printer, Reader, Watch};

/// After a change, others are waited for so long: a chatty container costs one look for many lines.
const GATHER: Duration = Duration::from_millis(50);

/// A thread that gives each line of each container to a function.
pub(super) struct LogTail {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl LogTail {
    /// Follows those pods below `dir`, which exists, whose UIDs `is_ours` knows: others may have left their logs there.
    /// `each` gets lines with `pod/container | ` in front.
    pub(super) fn start(
        dir: &Path,
        is_ours: impl Fn(&str) -> bool + Send + 'static,
        mut each: impl FnMut(&str) + Send + 'static,
    ) -> io::Result<Self> {
        let watch = Watch::new(dir)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (dir, stopped) = (dir.to_owned(), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut streams = BTreeMap::new();
            loop {
                // Seen before the last look, so that what was said before the end is not lost.
                let last = stopped.load(Ordering::Acquire);
                look(&dir, &is_ours, &mut streams, &mut each);
                if last {
                    return;
                }
                if let Err(error) = watch.wait(&dir, Some(Duration::from_secs(1))) {
                    tracing::warn!(%error, "cannot follow the pods' logs");
                    return;
                }
                thread::sleep(GATHER);
            }
        });
        Ok(Self { stop, thread })
    }

    /// Gives what is left, and ends.
    pub(super) fn finish(self) {
        self.stop.store(true, Ordering::Release);
        if self.thread.join().is_err() {
            tracing::warn!("the thread that follows logs has failed");
        }
    }
}

struct Stream {
    reader: Reader,
    printer: Printer,
}

fn look(
    dir: &Path,
    is_ours: &impl Fn(&str) -> bool,
    streams: &mut BTreeMap<PathBuf, Stream>,
    each: &mut impl FnMut(&str),
) {
    let mut here = BTreeSet::new();
    for pod in directories(dir) {
        let name = pod.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        // <namespace>_<name>_<uid>
        let mut parts = name.split('_');
        let mut part = || parts.next().unwrap_or_default();
        let (namespace, name, uid) = (part(), part(), part());
        // A pod of this run that is gone from the store is followed to its last line.
        let is_followed = || streams.keys().any(|container| container.starts_with(&pod));
        if !is_ours(uid) && !is_followed() {
            continue;
        }
        let label = if namespace == "default" {
            name.to_owned()
        } else {
            format!("{namespace}/{name}")
        };
        for container in directories(&pod) {
            let short = container
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            let prefix = format!("{label}/{short} | ");
            let stream = streams.entry(container.clone()).or_insert_with(|| Stream {
                reader: Reader::new(container.clone(), 0, true),
                printer: Printer::new(prefix, false, None),
            });
            // Its last lines may be gone with the pod: what can be read is shown.
            if let Err(error) = stream.print(each) {
                tracing::debug!(%error, "cannot read a log");
            }
            here.insert(container);
        }
    }
    streams.retain(|path, _| here.contains(path));
}

impl Stream {
    fn print(&mut self, each: &mut impl FnMut(&str)) -> io::Result<()> {
        let mut text = Vec::new();
        let printer = &mut self.printer;
        let read = self.reader.read(&mut |found| match found {
            Found::Line(line) => printer.record(line, &mut text).map(drop),
            Found::Restart => printer.restart(&mut text),
        });
        // A line whose end has not come yet is shown as it is now.
        printer.end_line(&mut text)?;
        for line in String::from_utf8_lossy(&text).lines() {
            each(line);
        }
        read
    }
}

fn directories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| p.is_dir()).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_containers_are_prefixed_and_given_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let container = dir.path().join("default_web_uid/main");
        fs::create_dir_all(&container).expect("a directory");
        fs::write(
            container.join("0.log"),
            "2026-01-01T00:00:00Z stdout F hello\n",
        )
        .expect("a log");
        let mut streams = BTreeMap::new();
        let mut lines = Vec::new();
        for _ in 0..2 {
            look(dir.path(), &|_| true, &mut streams, &mut |l| {
                lines.push(l.to_owned());
            });
        }
        assert_eq!(lines, ["web/main | hello"]);
    }

    #[test]
    fn logs_of_pods_that_are_not_of_this_run_are_not_shown() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for uid in ["earlier", "ours"] {
            let container = dir.path().join(format!("default_web_{uid}/main"));
            fs::create_dir_all(&container).expect("a directory");
            let line = format!("2026-01-01T00:00:00Z stdout F {uid}\n");
            fs::write(container.join("0.log"), line).expect("a log");
        }
        let mut streams = BTreeMap::new();
        let mut lines = Vec::new();
        look(dir.path(), &|uid| uid == "ours", &mut streams, &mut |l| {
            lines.push(l.to_owned());
        });
        assert_eq!(lines, ["web/main | ours"]);
    }
}
